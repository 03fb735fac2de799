"""Exact sums of Gaussian kernels, by log-sum-exp over tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel

Array = NDArray[Any]

# A tile of references (128 × 63 doubles, 64 kB) stays in the second-level cache while a block of queries passes it.
TILE = 128
BLOCK = 32
# exp(-60) of the largest term, times 10⁹ references, is below the last digit of a double.
_NEGLIGIBLE = 60.0


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
    scale = 0.5 / (bandwidth * bandwidth)
    tile = np.empty((d, TILE))
    squared = np.empty(TILE)
    queries = np.empty((BLOCK, d))
    nearest, total = np.empty(BLOCK), np.empty(BLOCK)
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
            for b in range(block):
                squared[:] = 0.0
                for c in range(d):
                    q = queries[b, c]
                    for j in range(TILE):
                        squared[j] += (q - tile[c, j]) * (q - tile[c, j])
                smallest = np.inf
                for j in range(width):
                    smallest = min(smallest, squared[j])
                if smallest < nearest[b]:
                    total[b] *= np.exp((smallest - nearest[b]) * scale)
                    nearest[b] = smallest
                limit = nearest[b] + _NEGLIGIBLE / scale
                for j in range(width):
                    if squared[j] <= limit and squared[j] < np.inf:
                        total[b] += np.exp((nearest[b] - squared[j]) * scale)
        for b in range(block):
            out[begin + b] = np.log(total[b]) - nearest[b] * scale if total[b] > 0.0 else -np.inf
