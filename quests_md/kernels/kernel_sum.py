"""Exact sums of Gaussian kernels, by log-sum-exp over tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel

Array = NDArray[Any]

# A tile of references (64 × 64 doubles, 32 kB) stays in the first cache while a block of queries passes it.
TILE = 64
BLOCK = 32
# exp(-60) of the largest term, times 10⁹ references, is below the last digit of a double.
_NEGLIGIBLE = -60.0


@kernel
def exp_negative(x: float) -> float:
    """Return exp(x) for x ≤ 0, to 1e-13; never less than exp(-60).

    exp(x) = exp(x/128)¹²⁸: a Taylor polynomial and seven squarings. Unlike a call of exp, a loop over it is vectorised.
    """
    y = max(x, _NEGLIGIBLE) * 0.0078125
    p = 1.0 + y * (1.0 / 13.0)
    p = 1.0 + y * (1.0 / 12.0) * p
    p = 1.0 + y * (1.0 / 11.0) * p
    p = 1.0 + y * (1.0 / 10.0) * p
    p = 1.0 + y * (1.0 / 9.0) * p
    p = 1.0 + y * (1.0 / 8.0) * p
    p = 1.0 + y * (1.0 / 7.0) * p
    p = 1.0 + y * (1.0 / 6.0) * p
    p = 1.0 + y * (1.0 / 5.0) * p
    p = 1.0 + y * (1.0 / 4.0) * p
    p = 1.0 + y * (1.0 / 3.0) * p
    p = 1.0 + y * (1.0 / 2.0) * p
    p = 1.0 + y * p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    return p * p


@kernel
def _squared_distances(queries: Array, tile: Array, out: Array) -> None:
    """Write ‖q − r‖² of four queries (4, d) and a tile of references (d, TILE) into `out` (4, TILE); 4 divides d."""
    out[:] = 0.0
    for c in range(0, tile.shape[0], 4):
        # Four coordinates of four queries at a time: the tile is read, and `out` written, a quarter as often.
        for b in range(4):
            q0, q1, q2, q3 = queries[b, c], queries[b, c + 1], queries[b, c + 2], queries[b, c + 3]
            for j in range(TILE):
                d0, d1 = q0 - tile[c, j], q1 - tile[c + 1, j]
                d2, d3 = q2 - tile[c + 2, j], q3 - tile[c + 3, j]
                out[b, j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@kernel
def _smallest(values: Array) -> float:
    a, b, c, d = np.inf, np.inf, np.inf, np.inf
    for j in range(0, TILE, 4):  # four chains of comparisons, none waiting for the others
        a, b = min(a, values[j]), min(b, values[j + 1])
        c, d = min(c, values[j + 2]), min(d, values[j + 3])
    return min(min(a, b), min(c, d))


@kernel
def _add_tile(squared: Array, width: int, scale: float, nearest: Array, total: Array) -> None:
    """Add a tile of squared distances to the sum of one query, which is kept relative to its nearest reference."""
    smallest = _smallest(squared)
    if smallest < nearest[0]:
        total[0] *= np.exp((smallest - nearest[0]) * scale)
        nearest[0] = smallest
    if nearest[0] < np.inf:
        shift, partial = nearest[0], 0.0
        for j in range(width):
            partial += exp_negative((shift - squared[j]) * scale)
        total[0] += partial


@kernel
def log_kernel_sum(
    query: Array, reference: Array, centre: Array, bandwidth: float, first: int, last: int, out: Array
) -> None:
    """Write ln Σ_j exp(-‖q - c - r_j‖² / 2h²) of the queries first..last into `out`.

    `reference` holds rows less `centre`, in single or double precision; the arithmetic is double. The order of the
    sum over references is fixed, so a result depends neither on the block nor on the thread it falls into.
    -inf where there is no reference, or the query is not finite.
    """
    n, d = reference.shape
    padded = (d + 3) // 4 * 4
    scale = 0.5 / (bandwidth * bandwidth)
    tile = np.zeros((padded, TILE))
    squared = np.empty((4, TILE))
    queries = np.zeros((BLOCK, padded))
    nearest, total = np.full(BLOCK, np.inf), np.zeros(BLOCK)
    for begin in range(first, last, BLOCK):
        block = min(BLOCK, last - begin)
        for b in range(block):
            nearest[b], total[b] = np.inf, 0.0
            for c in range(d):
                queries[b, c] = query[begin + b, c] - centre[c]
        for t in range(0, n, TILE):
            width = min(TILE, n - t)
            for j in range(width):
                for c in range(d):
                    tile[c, j] = reference[t + j, c]
            for b in range(0, block, 4):
                _squared_distances(queries[b : b + 4], tile, squared)
                squared[:, width:] = np.inf
                for i in range(4):
                    _add_tile(squared[i], width, scale, nearest[b + i : b + i + 1], total[b + i : b + i + 1])
        for b in range(block):
            out[begin + b] = np.log(total[b]) - nearest[b] * scale if total[b] > 0.0 else -np.inf
