"""Exact sums of Gaussian kernels, by log-sum-exp over blocks of references.

The squared distance of a query q to the references r of a block with centre c is |q−c|² − 2(q−c)·(r−c) + |r−c|². The
first term is computed from differences, in double precision; the others are one product of matrices per block, in the
precision of the block's `tiles`. Terms are powers of two: exponents below are those of 2, so s = log₂e / h² and a term
is 2^(−s/2 · ‖q − r‖²).

Exactness rests on three bounds, each looked at per query and block, so that no result depends on other queries:

- A block whose references are all so far that the blocks left out cannot add 1e-12 to the sum is left out.
- The product rounds to a few u·s·R·(|q−c| + R/2), with R = max|r−c| and u the rounding of a number near 1. Where
  that is more than `_TOLERANCE`, differences are used.
- The sum is kept relative to 2^top. `top` starts as a lower bound of the largest term, so nothing that matters
  underflows, and is raised where an upper bound says that a term may overflow.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel
from ._simd_sum import ROWS, lanes, products, products_plain, sum_exp2, sum_exp2_plain

Array = NDArray[Any]

TILE = 256  # references of a block: a multiple of every `lanes`
BLOCK = 16 * ROWS  # queries that pass a block of references while it is in the second cache
_LOG2E = math.log2(math.e)
_LN2 = math.log(2.0)
_PADDING = -1e30  # the exponent where a block has no reference: 2^x is clamped to nothing
_NEGLIGIBLE = -40.0  # log₂ of what may be left out of a sum, as a part of it: 9e-13
_HEADROOM = 100.0  # exponents by which a term may exceed 2^top in the vector path; single precision overflows at 128
_FAR = 1e6  # exponents beyond this are left to differences, so that no product overflows
# Largest error of an exponent that a product may have: absolute, and relative to the smallest exponent of the block.
_TOLERANCE = {4: (1.2e-4, 1e-6), 8: (1e-11, 1e-11)}
_ROUNDINGS = 4.0  # measured: the error reached 3.4 of the unit below in the systems that were sampled; mostly 0.4


_SKIP, _PRODUCT, _DIFFERENCES = 0, 1, 2  # the ways to sum a block


class Blocks(NamedTuple):
    """References in blocks of `TILE`, laid out for `log_kernel_sum` at one bandwidth."""

    rows: Array  # (n, d) the references themselves
    order: Array  # (n,) rows in the order of the blocks
    tiles: Array  # (n_blocks, panels, d + 1, lanes): s·(r − c); in the last coordinate −s/2·|r − c|²
    centres: Array  # (d, n_blocks)
    repeated: Array  # (n_blocks, 6·(d + 1)): every coordinate of c six times; in the last, −1
    radius: Array  # (n_blocks,) largest distance from the centre
    spread: Array  # (n_blocks,) mean squared distance from the centre
    scale: float  # s
    unit: float  # u, the rounding of the tiles' precision
    tolerance: tuple[float, float]
    vector: bool  # laid out for vector code: panels of `lanes`; else one panel, so that plain loops are long


class Queries(NamedTuple):
    """The queries that pass a block of references together, and what is known of each."""

    centred: Array  # (BLOCK, d)
    groups: Array  # (BLOCK / 6, 6·(d + 1)): six queries, coordinate by coordinate; in the last, zeros
    squared: Array  # (BLOCK, n_blocks) squared distances from the centres
    upper: Array  # (BLOCK, n_blocks) upper bounds of the exponents
    way: Array  # (BLOCK, n_blocks)
    state: Array  # (BLOCK, 2): top, and the sum so far relative to 2^top


class Room(NamedTuple):
    """Room to work in."""

    shifted: Array  # (6·(d + 1),) six queries less the centre of a block
    exponents: Array  # (6, TILE)


def empty_blocks(rows: Array, order: Array, bandwidth: float, dtype: Any, vector: bool) -> Blocks:
    """Make room for the blocks of the references `rows` (n, d), taken in `order`; `pack` fills it."""
    n, d = rows.shape
    size = np.dtype(dtype).itemsize
    blocks, width = -(-n // TILE), lanes(size) if vector else TILE
    return Blocks(
        rows=rows,
        order=order,
        tiles=np.empty((blocks, TILE // width, d + 1, width), dtype),
        centres=np.empty((d, blocks)),
        repeated=np.empty((blocks, ROWS * (d + 1))),
        radius=np.empty(blocks),
        spread=np.empty(blocks),
        scale=_LOG2E / bandwidth**2,
        unit=0.5 * float(np.finfo(dtype).eps),
        tolerance=_TOLERANCE[size],
        vector=vector,
    )


@kernel
def pack(blocks: Blocks, first: int, last: int) -> None:
    """Fill the blocks first..last."""
    n, d = blocks.rows.shape
    width = blocks.tiles.shape[3]
    centre = np.empty(d)
    for b in range(first, last):
        begin, end = b * TILE, min(n, (b + 1) * TILE)
        centre[:] = 0.0
        for j in range(begin, end):
            for c in range(d):
                centre[c] += blocks.rows[blocks.order[j], c] / (end - begin)
        for c in range(d):
            blocks.centres[c, b] = centre[c]
            blocks.repeated[b, ROWS * c : ROWS * (c + 1)] = centre[c]
        blocks.repeated[b, ROWS * d :] = -1.0
        largest, total = 0.0, 0.0
        for j in range(end - begin):
            row = blocks.rows[blocks.order[begin + j]]
            squared = _pack_row(row, centre, blocks.scale, blocks.tiles[b, j // width, :, j % width])
            largest, total = max(largest, squared), total + squared
        for j in range(end - begin, TILE):
            blocks.tiles[b, j // width, :, j % width] = 0.0
            blocks.tiles[b, j // width, d, j % width] = _PADDING
        blocks.radius[b], blocks.spread[b] = math.sqrt(largest), total / (end - begin)


@kernel
def _pack_row(row: Array, centre: Array, scale: float, column: Array) -> float:
    """Write one reference into its column of a tile; return its squared distance from the centre."""
    squared = 0.0
    for c in range(len(row)):
        difference = row[c] - centre[c]
        column[c] = difference * scale
        squared += difference * difference
    column[len(row)] = -0.5 * scale * squared
    return squared


@kernel
def _squared_distances(query: Array, centres: Array, out: Array) -> None:
    """Write the squared distances of a query (d,) from `centres` (d, n_blocks) into `out`."""
    d = len(query)
    out[:] = 0.0
    for c in range(0, d - 3, 4):  # four coordinates at a time: `out` is read and written a quarter as often
        q0, q1, q2, q3 = query[c], query[c + 1], query[c + 2], query[c + 3]
        for b in range(len(out)):
            d0, d1 = q0 - centres[c, b], q1 - centres[c + 1, b]
            d2, d3 = q2 - centres[c + 2, b], q3 - centres[c + 3, b]
            out[b] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for c in range(d // 4 * 4, d):
        for b in range(len(out)):
            out[b] += (query[c] - centres[c, b]) ** 2


@kernel
def _plan(squared: Array, blocks: Blocks, upper: Array, way: Array) -> float:
    """Choose how one query sums each block; return `top`, an exponent that its largest term reaches.

    `upper` receives upper bounds of the exponents of each block. By Jensen's inequality the terms of a block have a
    mean of at least 2^(−s/2·(|q−c|² + mean|r−c|²)), so one of them reaches that.
    A distance that is not a finite number needs nothing.
    """
    scale, radius, spread = blocks.scale, blocks.radius, blocks.spread
    absolute, relative = blocks.tolerance
    rounding = _ROUNDINGS * blocks.unit * scale
    top = -np.inf
    for b in range(len(squared)):
        upper[b] = -np.inf
        if squared[b] < np.inf:
            gap = max(0.0, math.sqrt(squared[b]) * (1.0 - 1e-12) - radius[b] * (1.0 + 1e-12))  # rounded to safety
            upper[b] = -0.5 * scale * gap * gap
            top = max(top, -0.5 * scale * (squared[b] + spread[b]))
    drop = top + _NEGLIGIBLE - math.log2(TILE * max(1, len(squared)))
    for b in range(len(squared)):
        error = rounding * radius[b] * (math.sqrt(squared[b]) + 0.5 * radius[b])
        if not upper[b] > drop:
            way[b] = _SKIP
        elif scale * squared[b] < _FAR and error <= absolute - relative * upper[b]:
            way[b] = _PRODUCT
        else:
            way[b] = _DIFFERENCES
    return top


@kernel
def _raise(state: Array, r: int, exponent: float) -> None:
    """Keep the sum of query r, whose (top, total) are a row of `state`, relative to at least 2^exponent."""
    if exponent > state[r, 0]:
        state[r, 1] *= 2.0 ** (state[r, 0] - exponent)
        state[r, 0] = exponent


@kernel
def _largest(values: Array, row: int) -> float:
    largest = -np.inf
    for j in range(values.shape[1]):
        largest = max(largest, values[row, j])
    return largest


@kernel
def _subtract(groups: Array, g: int, centre: Array, out: Array) -> None:
    for i in range(len(out)):
        out[i] = groups[g, i] - centre[i]


@kernel
def _add_exponents(exponents: Array, row: int, start: float, upper: float, vector: bool, state: Array, r: int) -> None:
    """Add Σ_j 2^(start + exponents[row, j]), in which no exponent exceeds `upper`, to the sum of query r."""
    if not vector:
        _raise(state, r, start + _largest(exponents, row))
        state[r, 1] += sum_exp2_plain(exponents, row, start - state[r, 0])
        return
    if upper > state[r, 0] + _HEADROOM:
        _raise(state, r, start + _largest(exponents, row))
    state[r, 1] += sum_exp2(exponents, row, start - state[r, 0])


@kernel
def _add_differences(query: Array, b: int, blocks: Blocks, state: Array, r: int) -> None:
    """Add block `b` to the sum of query r by differences, in double precision."""
    chosen = blocks.order[b * TILE : (b + 1) * TILE]
    exponents = np.empty((1, len(chosen)))
    for j in range(len(chosen)):
        row, squared = blocks.rows[chosen[j]], 0.0
        for c in range(len(query)):
            squared += (query[c] - row[c]) ** 2
        exponents[0, j] = -0.5 * blocks.scale * squared
    _add_exponents(exponents, 0, 0.0, 0.0, False, state, r)


@kernel
def _add_block(b: int, n_groups: int, queries: Queries, blocks: Blocks, vector: bool, room: Room) -> None:
    """Add block `b` to the sums of all queries."""
    way, squared, upper, state = queries.way, queries.squared, queries.upper, queries.state
    tile, centre, scale = blocks.tiles[b], blocks.repeated[b], blocks.scale
    shifted, exponents = room.shifted, room.exponents
    for g in range(n_groups):
        kinds = 0
        for i in range(g * ROWS, (g + 1) * ROWS):
            kinds |= way[i, b]
        if kinds & _PRODUCT:
            _subtract(queries.groups, g, centre, shifted)
            if vector:
                products(shifted, tile, exponents)
            else:
                products_plain(shifted, tile, exponents)
        for i in range(g * ROWS, (g + 1) * ROWS):
            if way[i, b] == _PRODUCT:
                start = -0.5 * scale * squared[i, b]
                _add_exponents(exponents, i - g * ROWS, start, upper[i, b], vector, state, i)
        if kinds & _DIFFERENCES:
            for i in range(g * ROWS, (g + 1) * ROWS):
                if way[i, b] == _DIFFERENCES:
                    _add_differences(queries.centred[i], b, blocks, state, i)


@kernel
def log_kernel_sum(
    query: Array, centre: Array, blocks: Blocks, vector: bool, first: int, last: int, out: Array
) -> None:
    """Write ln Σ_j exp(-‖q - c - r_j‖² / 2h²) of the queries first..last into `out`.

    `centre` was subtracted from the references. `vector` chooses between vector code and plain loops. The order of
    the sum over references is fixed, so a result depends neither on the block nor on the thread it falls into.
    -inf where there is no reference, or the query is not finite.
    """
    d, n = blocks.centres.shape
    dtype = blocks.tiles.dtype
    queries = Queries(
        np.zeros((BLOCK, d)),
        np.zeros((BLOCK // ROWS, ROWS * (d + 1))),
        np.empty((BLOCK, n)),
        np.empty((BLOCK, n)),
        np.zeros((BLOCK, n), np.int8),
        np.empty((BLOCK, 2)),
    )
    room = Room(np.empty(ROWS * (d + 1), dtype), np.empty((ROWS, TILE), dtype))
    for begin in range(first, last, BLOCK):
        block = min(BLOCK, last - begin)
        queries.way[:] = _SKIP  # rows without a query need nothing
        for i in range(block):
            for c in range(d):
                queries.centred[i, c] = query[begin + i, c] - centre[c]
                queries.groups[i // ROWS, ROWS * c + i % ROWS] = queries.centred[i, c]
            _squared_distances(queries.centred[i], blocks.centres, queries.squared[i])
            queries.state[i, 0] = _plan(queries.squared[i], blocks, queries.upper[i], queries.way[i])
            queries.state[i, 1] = 0.0
        for b in range(n):
            _add_block(b, (block + ROWS - 1) // ROWS, queries, blocks, vector, room)
        for i in range(block):
            top, total = queries.state[i, 0], queries.state[i, 1]
            out[begin + i] = np.log(total) + top * _LN2 if total > 0.0 else -np.inf
