"""Exact sums of Gaussian kernels of a dataset over itself. Every pair is computed once, for both of its rows.

This is simpler than `kernel_sum`: a row is its own neighbour, so every sum is at least 1, and need not be relative to
its largest term. A block is left out if all its terms together are `negligible` beside 1, for the row as well as for
the block. Blocks i and j > i are multiplied once, and a term is added to two sums: that of its row of block i, and that
of its row of block j. If a product would round too much, differences in double precision are used.

The sums are made in strips of blocks. The strips do not depend on threads and ranks, and are added up in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._simd_sum import ROWS, add_exp2, add_exp2_plain, exp_negative, products, products_plain
from .blocks import TILE, Blocks, allowed_error, error_of_products
from .jit import kernel
from .kernel_sum import _bound, _padded, _squared_distances, _subtract, lay_out

Array = NDArray[Any]

_LN2 = math.log(2.0)
_FAR = 1e6  # beyond this exponent differences are used, so that no product overflows
_AWAY = -1e30  # added to an exponent, it makes the term nothing
_SKIP, _PRODUCT, _DIFFERENCES = 0, 1, 2
_GROUPS = -(-TILE // ROWS)  # of six rows in a block


def strips(n: int) -> list[tuple[int, int]]:
    """Return the blocks (first, last) of each strip of n rows: at most 32 strips with about as many pairs each."""
    blocks = -(-n // TILE)
    count = min(blocks, 32)
    # Block i meets all blocks from i on: strips are equal areas below a falling line.
    ends = [round(blocks * (1.0 - math.sqrt(1.0 - (s + 1) / count))) for s in range(count)]
    ends[-1] = blocks
    bounds, first = [], 0
    for last in ends:
        if last > first:
            bounds.append((first, last))
            first = last
    return bounds


@kernel
def _plan(place: Array, lost: float, squared: Array, blocks: Blocks, drop: float, room: Array, way: Array) -> None:
    """Choose how the terms of one row with each block are computed; write it into `way` (n_blocks,)."""
    scale, radius, weighted, bounds = blocks.scale, blocks.radius, blocks.weighted, room[1]
    log_rows = math.log2(len(blocks.order))
    _bound(place, squared, blocks, room[0], bounds)
    for b in range(len(squared)):
        bound = -0.5 * scale * bounds[b]
        allowed = allowed_error(bound, log_rows, blocks) if scale * squared[b] < _FAR else -1.0
        error = error_of_products(weighted[b], radius[b], math.sqrt(squared[b]), lost, blocks)
        way[b] = _SKIP if bound <= drop else (_PRODUCT if error <= allowed else _DIFFERENCES)


@kernel
def _prepare(i: int, blocks: Blocks, drop: float, centred: Array, groups: Array, squared: Array, way: Array) -> None:
    """Lay out the rows of block i as queries, and plan their terms with each block."""
    axes, rows, order, columns = blocks.axes, blocks.rows, blocks.order, blocks.columns
    d, n = blocks.centres.shape
    place, room = np.empty(len(axes)), np.empty((2, n))
    count = min(TILE, len(order) - i * TILE)
    groups[:], way[:] = 0.0, _SKIP
    for r in range(count):
        query = centred[r]
        for c in range(d):
            query[c] = rows[order[i * TILE + r], c]
        lost = lay_out(query, columns, groups[r // ROWS], r % ROWS)
        for k in range(len(axes)):
            total = 0.0
            for c in range(d):
                total += axes[k, c] * query[c]
            place[k] = total
        _squared_distances(query, blocks.centres, squared[r])
        _plan(place, lost, squared[r], blocks, drop, room, way[r])


@kernel
def _add_differences(query: Array, j: int, blocks: Blocks, both: bool, own: Array, r: int, others: Array) -> None:
    """Add the terms of a row with block j, from differences."""
    rows, order, scale = blocks.rows, blocks.order, blocks.scale
    for t in range(min(TILE, len(order) - j * TILE)):
        squared, place = 0.0, order[j * TILE + t]
        for c in range(rows.shape[1]):
            squared += (query[c] - rows[place, c]) ** 2
        term = exp_negative(-0.5 * scale * squared * _LN2)
        own[r] += term
        if both:
            others[t] += term


@kernel
def add_strip(blocks: Blocks, plain: Any, first: int, last: int, sums: Array) -> None:
    """Add the terms of the blocks first..last, with themselves and with all later blocks, to `sums` (n_blocks, TILE).

    The sums are in the order of the blocks. `plain` is as in `kernel_sum.log_kernel_sum`.
    """
    d, n = blocks.centres.shape
    dtype, half = blocks.tiles.dtype, 0.5 * blocks.scale
    centred, groups = np.zeros((TILE, _padded(d))), np.zeros((_GROUPS, ROWS * (d + 1)), dtype)
    squared, way = np.zeros((_GROUPS * ROWS, n)), np.empty((_GROUPS * ROWS, n), np.int8)
    shifted, exponents = np.empty(ROWS * (d + 1), dtype), np.empty((ROWS, TILE), dtype)
    shifts, nobody = np.empty(ROWS), np.zeros(TILE)
    own = np.empty(_GROUPS * ROWS)
    drop = math.log2(blocks.negligible / len(blocks.order))
    for i in range(first, last):
        _prepare(i, blocks, drop, centred, groups, squared, way)
        own[:] = 0.0
        for j in range(i, n):
            tile, centre = blocks.tiles[j], blocks.repeated[j]
            others = sums[j] if j > i else nobody  # within a block every row adds its own terms
            for g in range(_GROUPS):
                start, ways = g * ROWS, 0
                for r in range(ROWS):
                    ways |= way[start + r, j]
                    shifts[r] = -half * squared[start + r, j] if way[start + r, j] == _PRODUCT else _AWAY
                if ways & _PRODUCT:
                    _subtract(groups, g, centre, shifted)
                    if plain is None:
                        products(shifted, tile, exponents)
                        add_exp2(exponents, shifts, own[start : start + ROWS], others)
                    else:
                        products_plain(shifted, tile, exponents)
                        add_exp2_plain(exponents, shifts, own[start : start + ROWS], others)
                if ways & _DIFFERENCES:
                    for r in range(start, start + ROWS):
                        if way[r, j] == _DIFFERENCES:
                            _add_differences(centred[r], j, blocks, j > i, own, r, others)
        for r in range(TILE):
            sums[i, r] += own[r]
