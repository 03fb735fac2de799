"""Which of a few prototypes is nearest to a row, in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import kernel

__all__ = ["lay_out", "take_nearest"]

Array = NDArray[Any]

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
    """Write the value of the nearest prototype of each query less the centre, first..last, into `out`.

    Of prototypes that are equally near, as far as single precision tells, the first counts.
    """
    d, n = columns.shape
    x, far = np.zeros(d, np.float32), np.empty(n, np.float32)
    for i in range(first, last):
        for c in range(query.shape[1]):
            x[c] = -2.0 * (query[i, c] - centre[c])
        for p in range(n):
            far[p] = squares[p]
        for c in range(0, d, 4):  # |c|² − 2 q·c orders like the distance
            x0, x1, x2, x3 = x[c], x[c + 1], x[c + 2], x[c + 3]
            for p in range(n):
                near, more = (
                    x0 * columns[c, p] + x1 * columns[c + 1, p],
                    x2 * columns[c + 2, p] + x3 * columns[c + 3, p],
                )
                far[p] += near + more
        best = 0
        for p in range(1, n):
            if far[p] < far[best]:
                best = p
        out[i] = values[best]
