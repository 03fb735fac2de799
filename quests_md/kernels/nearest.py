"""Which of a few prototypes is nearest to a row, in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import kernel

__all__ = ["MOST", "lay_out", "take_nearest"]

Array = NDArray[Any]

MOST = 128  # prototypes; a power of two
_TOGETHER = 4  # coordinates that are added at a time, so that the sums are loaded less often
_LANES = 16  # the number of prototypes is filled up to a multiple of this


def lay_out(prototypes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return prototypes (n, d) as columns, and their squares, both filled up: by zeros, and by squares that are inf."""
    n, d = prototypes.shape
    width = -(-n // _LANES) * _LANES
    columns = np.zeros((-(-d // _TOGETHER) * _TOGETHER, width), np.float32)
    squares = np.full(width, np.inf, np.float32)
    columns[:d, :n] = prototypes.T
    squares[:n] = (prototypes.astype(np.float64) ** 2).sum(axis=1)
    return columns, squares


@kernel
def take_nearest(
    query: Array, centre: Array, columns: Array, squares: Array, values: Array, first: int, last: int, out: Array
) -> None:
    """Write the value of the nearest of at most `MOST` prototypes to each query less the centre into `out`.

    The queries are first..last. Distances count to 17 bits; of prototypes that are equally near the first is taken.
    """
    d, n = columns.shape
    x, far = np.zeros(d, np.float32), np.empty(n, np.float32)
    # Numbers that are not negative order like their bits do, as integers. With its place in the last bits, the least of
    # them tells where it is: so no branch is needed, which processors would guess wrongly.
    bits, places, largest = far.view(np.int32), np.int32(MOST - 1), np.int32(2**31 - 1)
    for i in range(first, last):
        own = np.float32(0.0)
        for c in range(query.shape[1]):
            x[c] = -2.0 * (query[i, c] - centre[c])
            own += x[c] * x[c]
        own *= np.float32(0.25)
        for p in range(n):
            far[p] = own + squares[p]
        for c in range(0, d, 4):
            x0, x1, x2, x3 = x[c], x[c + 1], x[c + 2], x[c + 3]
            for p in range(n):
                one = x0 * columns[c, p] + x1 * columns[c + 1, p]
                far[p] += one + (x2 * columns[c + 2, p] + x3 * columns[c + 3, p])
        least = largest
        for p in range(n):
            least = min(least, (bits[p] & ~places) | np.int32(p))
        out[i] = values[least & places]
