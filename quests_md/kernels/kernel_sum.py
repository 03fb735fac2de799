"""Exact sums of Gaussian kernels, by log-sum-exp over blocks of references.

The squared distance of a query q from the references r of a block with centre c is |q−c|² − 2(q−c)·(r−c) + |r−c|². The
first term is computed from differences, in double precision. The others are one product of matrices per block, in the
precision of its `tiles`. Terms are powers of two: all exponents below are those of 2, so s = log₂e / h² and a term is
2^(−s/2 · ‖q − r‖²).

Three bounds make the sums exact. Each is checked for every query and block, so no result depends on other queries:

- A block is left out if its references are so far away that together they cannot add `negligible` of the sum to it.
- The product of a query at a and a reference at b from the centre is wrong by at most u·s·(|a|·|w∘b| + …), with u
  the rounding of a number near 1, and w how often each term is rounded: a proven bound, on any processor
  (`blocks.error_of_products`). If that is more
  than `tolerance` for a reference of the block, differences are used. They are in the precision of the tiles if their
  own rounding allows it: it moves q − r by at most e, and changes its square by the factor 1 ± g. In an exponent this
  is s·(ρ·e + e²/2 + g·ρ²/2), at the distance ρ beyond which no reference matters (`blocks.error_of_squares`). Else
  they are in double precision.
- The sum is relative to 2^top. `top` starts as a lower bound of the largest term, so nothing that matters underflows.
  It is raised if an upper bound says that a term may overflow.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd_sum import (
    ROWS,
    exp_negative,
    products,
    products_plain,
    squares,
    squares_plain,
    sums_exp2,
    sums_exp2_plain,
)
from .blocks import LOG2E, SAFE, TILE, Blocks, allowed_error, error_of_products, error_of_squares
from .jit import kernel

Array = NDArray[Any]

BLOCK = 16 * ROWS  # queries that pass a block of references while it is in the second cache
_LN2 = math.log(2.0)
_HEADROOM = 100.0  # a term may exceed 2^top by so many exponents in vector code; single precision overflows at 128
PART = 8192  # rows of a part, if there are no blocks; a thread takes some parts
_CHUNK = 32  # rows at a time: in double precision they stay in the first cache
_NOTHING = -80.0  # log₂ of a term, relative to the largest, that is not computed: 10⁹ of them add 1e-15
_FAR = 1e6  # beyond this exponent differences are used, so that no product overflows

_SKIP, _PRODUCT, _SQUARES, _DIFFERENCES = 0, 1, 2, 4  # the ways to sum a block, cheapest first


class Queries(NamedTuple):
    """The queries that pass a block of references together, and what is known about each."""

    centred: Array  # (BLOCK, d and zeros)
    groups: Array  # (BLOCK / 6, 6·(d + 1)), as the tiles: six queries, coordinate by coordinate; the last one is 0
    squared: Array  # (BLOCK, n_blocks) squared distances from the centres
    upper: Array  # (BLOCK, n_blocks) upper bounds of the exponents
    way: Array  # (BLOCK, n_blocks) how each block is summed
    state: Array  # (BLOCK, 2): top, and the sum so far relative to 2^top


class Room(NamedTuple):
    """Scratch arrays."""

    shifted: Array  # (6·(d + 1),) six queries less the centre of a block
    exponents: Array  # (6, TILE)
    shifts: Array  # (6,) what is added to the exponents of a row
    sums: Array  # (6,)
    chunk: Array  # (_CHUNK, d and zeros)
    means: Array  # (n_blocks,)


@kernel
def _squared_distances(query: Array, centres: Array, out: Array) -> None:
    """Write the squared distances of a query (d and zeros,) from `centres` (d, n_blocks) into `out`."""
    d = len(centres)
    out[:] = 0.0
    for c in range(0, d - 3, 4):  # four coordinates at a time: reads and writes `out` a quarter as often
        q0, q1, q2, q3 = query[c], query[c + 1], query[c + 2], query[c + 3]
        for b in range(len(out)):
            d0, d1 = q0 - centres[c, b], q1 - centres[c + 1, b]
            d2, d3 = q2 - centres[c + 2, b], q3 - centres[c + 3, b]
            out[b] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for c in range(d // 4 * 4, d):
        for b in range(len(out)):
            out[b] += (query[c] - centres[c, b]) ** 2


@kernel
def _bound(place: Array, squared: Array, blocks: Blocks, inside: Array, gap: Array) -> None:
    """Write lower bounds of the squared distance of a query from all references of each block into `gap`.

    A bound is the larger of two: from the ball around the centre, and from the box along the axes with the ball across
    them. `place` is the query along the axes, `inside` is scratch. A nan bounds nothing.
    """
    radius, across, along, low, high = blocks.radius, blocks.across, blocks.along, blocks.low, blocks.high
    inside[:], gap[:] = 0.0, 0.0
    for k in range(len(place)):
        x = place[k]
        for b in range(len(squared)):
            part = x - along[k, b]
            outside = max(0.0, max(part - high[k, b], low[k, b] - part))
            inside[b] += part * part
            gap[b] += outside * outside
    for b in range(len(squared)):
        ball = max(0.0, math.sqrt(squared[b]) - radius[b])
        tail = max(0.0, math.sqrt(max(0.0, squared[b] * (1.0 - SAFE) - inside[b])) - across[b])
        box = gap[b] + tail * tail
        ball *= ball
        gap[b] = (1.0 - SAFE) * (box if box > ball else ball)


@kernel
def _plan(
    place: Array,
    lost: float,
    squared: Array,
    blocks: Blocks,
    nothing: float,
    upper: Array,
    way: Array,
    room: Room,
) -> float:
    """Choose how one query sums each block; return `top`, an exponent that its largest term reaches.

    Rounding moves the query by `lost`. It lies at `place` along the axes. `upper` receives upper bounds of the
    exponents of each block. By Jensen's inequality the mean of the terms of a block is at least 2^(−s/2·(|q−c|² +
    mean|r−c|²)). So one term reaches that, and the number of terms times that is a lower bound of their sum. What is
    left out is small beside the lower bound of the whole sum, or below 2^`nothing`. A block at a distance that is not
    finite is skipped.
    """
    scale, radius, weighted = blocks.scale, blocks.radius, blocks.weighted
    spread, counts, means = blocks.spread, blocks.counts, room.means
    _bound(place, squared, blocks, means, upper)
    top = -np.inf
    for b in range(len(squared)):
        means[b] = -0.5 * scale * (squared[b] + spread[b])
        top = max(top, means[b])
    least, rows = 0.0, 0.0
    for b in range(len(squared)):
        least += counts[b] * exp_negative((means[b] - top) * _LN2)
        rows += counts[b]
    rest = top + math.log2((least + 1e-300) / max(rows, 1.0))  # the sum is at least n times 2 to this
    drop = rest + math.log2(blocks.negligible)
    if nothing > drop:
        drop = nothing
    log_rows = math.log2(max(rows, 1.0))
    mean = -rest  # the mean exponent of the terms is at most this, without the sign: their entropy is at most log₂ n
    reach = math.sqrt(-2.0 * drop / scale)  # a reference farther away than this does not matter
    for b in range(len(squared)):
        bound = -0.5 * scale * upper[b]
        upper[b] = bound
        far = math.sqrt(squared[b])
        allowed = allowed_error(bound, log_rows, blocks) if scale * squared[b] < _FAR else -1.0
        error = error_of_products(weighted[b], radius[b], far, lost, blocks)
        error_squares = error_of_squares(radius[b], far, lost, reach, mean, blocks)
        chosen = _PRODUCT if error <= allowed else (_SQUARES if error_squares <= allowed else _DIFFERENCES)
        way[b] = chosen if bound > drop and squared[b] < np.inf else _SKIP
    return top


@kernel
def _raise(state: Array, r: int, exponent: float) -> None:
    """Make the sum of query r relative to at least 2^exponent; (top, total) are its row of `state`."""
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
def _add_differences(query: Array, b: int, blocks: Blocks, chunk: Array, state: Array, r: int) -> None:
    """Add block `b` to the sum of query r, from differences in double precision."""
    rows, order, scale, exponents = blocks.rows, blocks.order, blocks.scale, np.empty(_CHUNK)
    end = min(len(order), (b + 1) * TILE)
    for begin in range(b * TILE, end, _CHUNK):
        count = min(_CHUNK, end - begin)
        for j in range(count):
            i = order[begin + j]
            for c in range(rows.shape[1]):
                chunk[j, c] = rows[i, c]
        _add_chunk(query, chunk, count, scale, exponents, state, r)


@kernel
def _add_chunk(query: Array, chunk: Array, count: int, scale: float, exponents: Array, state: Array, r: int) -> None:
    """Add the first `count` rows of `chunk` to the sum of query r, from differences."""
    largest = -np.inf
    for j in range(count):
        squared = 0.0
        for c in range(len(query)):
            squared += (query[c] - chunk[j, c]) ** 2
        exponents[j] = -0.5 * scale * squared
        largest = max(largest, exponents[j])
    if largest > state[r, 0] * (1.0 + 1e-9) + _NOTHING:  # the top is negative or 0, and rounded
        if largest > state[r, 0]:
            state[r, 1] *= 2.0 ** (state[r, 0] - largest)
            state[r, 0] = largest
        top, total = state[r, 0], 0.0
        for j in range(count):
            total += exp_negative((exponents[j] - top) * _LN2)
        state[r, 1] += total


@kernel
def _square(shifted: Array, tile: Array, plain: Any, scale: Any, to_exponents: Any, exponents: Array) -> None:
    """Write exponents from differences, in the precision of the tile. This scales `shifted` as the tile is scaled."""
    for i in range(len(shifted)):
        shifted[i] *= scale
    if plain is None:
        squares(shifted, tile, exponents)
    else:
        squares_plain(shifted, tile, exponents)
    for r in range(ROWS):
        for j in range(exponents.shape[1]):
            exponents[r, j] *= to_exponents


@kernel
def _add_block(b: int, n_groups: int, queries: Queries, blocks: Blocks, plain: Any, room: Room) -> None:
    """Add block `b` to the sums of all queries."""
    # Take arrays out of their tuples once: numba counts their users, and threads wait for each other's counts.
    groups, way, state, squared, upper = queries.groups, queries.way, queries.state, queries.squared, queries.upper
    tile, centre, half = blocks.tiles[b], blocks.repeated[b], 0.5 * blocks.scale
    shifted, exponents, shifts, sums, chunk = room.shifted, room.exponents, room.shifts, room.sums, room.chunk
    scale, to_exponents = shifted.dtype.type(blocks.scale), shifted.dtype.type(-0.5 / blocks.scale)
    for g in range(n_groups):
        first, ways = g * ROWS, 0
        for r in range(ROWS):
            ways |= way[first + r, b]
        if ways & (_PRODUCT | _SQUARES):
            _subtract(groups, g, centre, shifted)
        for kind in (_PRODUCT, _SQUARES):
            if ways & kind == 0:
                continue
            if kind == _PRODUCT:
                if plain is None:
                    products(shifted, tile, exponents)
                else:
                    products_plain(shifted, tile, exponents)
            else:
                _square(shifted, tile, plain, scale, to_exponents, exponents)
            lacking = half if kind == _PRODUCT else 0.0
            for r in range(ROWS):
                i = first + r
                shifts[r] = 0.0  # nobody reads the sum of a query that goes another way
                if way[i, b] == kind:
                    start = -lacking * squared[i, b]
                    may_exceed = True  # plain loops cannot sum a term above 1
                    if plain is None:
                        may_exceed = upper[i, b] > state[i, 0] + _HEADROOM
                    if may_exceed:
                        _raise(state, i, start + _largest(exponents, r))
                    shifts[r] = start - state[i, 0]
            if plain is None:
                sums_exp2(exponents, shifts, sums)
            else:
                sums_exp2_plain(exponents, shifts, sums)
            for r in range(ROWS):
                if way[first + r, b] == kind:
                    state[first + r, 1] += sums[r]
        if ways & _DIFFERENCES:
            for i in range(first, first + ROWS):
                if way[i, b] == _DIFFERENCES:
                    _add_differences(queries.centred[i], b, blocks, chunk, state, i)


@kernel
def lay_out(query: Array, columns: Array, group: Array, r: int) -> float:
    """Write a query into a group, as the r-th of six; return how far it is moved if that rounds it."""
    lost = 0.0
    for k in range(len(columns)):
        value = query[columns[k]]
        group[ROWS * k + r] = value
        lost += (value - group[ROWS * k + r]) ** 2
    return math.sqrt(lost)


@kernel
def _padded(d: int) -> int:
    """Return the width at which rows are whole vectors of double precision."""
    return (d + 15) // 16 * 16


@kernel
def _prepare(block: int, queries: Queries, blocks: Blocks, nothing: float, room: Room) -> None:
    """Plan the sums of the first `block` queries and make groups of them."""
    axes, columns, groups, place = blocks.axes, blocks.columns, queries.groups, np.empty(len(blocks.axes))
    queries.way[:] = _SKIP  # places without a query
    for i in range(block):
        query = queries.centred[i]
        lost = lay_out(query, columns, groups[i // ROWS], i % ROWS)
        for k in range(len(axes)):
            total = 0.0
            for c in range(axes.shape[1]):
                total += axes[k, c] * query[c]
            place[k] = total
        squared = queries.squared[i]
        _squared_distances(query, blocks.centres, squared)
        top = _plan(place, lost, squared, blocks, nothing, queries.upper[i], queries.way[i], room)
        queries.state[i, 0], queries.state[i, 1] = top, 0.0


@kernel
def _order_along(query: Array, axis: Array, first: int, last: int) -> Array:
    """Return the queries first..last in their order along an axis: near queries leave out the same blocks.

    A block is left out only if no query of a group needs it.
    """
    places = np.zeros(last - first)
    for i in range(len(places)):
        for c in range(len(axis)):
            places[i] += query[first + i, c] * axis[c]
    return first + np.argsort(places)


@kernel
def log_kernel_sum(
    query: Array, centre: Array, blocks: Blocks, plain: Any, nothing: float, first: int, last: int, out: Array
) -> None:
    """Write ln Σ_j exp(-‖q - c - r_j‖² / 2h²) of the queries first..last into `out`.

    `centre` was subtracted from the references. `plain` is None for vector code, and 1 for plain loops. None is a type
    of its own, so the compiler leaves out the plain loops, which saves seconds. Terms below 2^`nothing` need not be
    added; it is −inf unless the caller knows that the sum, or a larger sum that it is part of, is far larger. The order
    of the sum over references is fixed, so a result depends neither on the block nor on the thread of its query. It is
    -inf if there is no reference, or the query is not finite.
    """
    d, n = blocks.centres.shape
    dtype = blocks.tiles.dtype
    queries = Queries(
        np.zeros((BLOCK, _padded(d))),
        np.zeros((BLOCK // ROWS, ROWS * (d + 1)), dtype),
        np.empty((BLOCK, n)),
        np.empty((BLOCK, n)),
        np.zeros((BLOCK, n), np.int8),
        np.empty((BLOCK, 2)),
    )
    room = Room(
        np.empty(ROWS * (d + 1), dtype),
        np.empty((ROWS, TILE), dtype),
        np.empty(ROWS),
        np.empty(ROWS),
        np.zeros((_CHUNK, _padded(d))),
        np.empty(n),
    )
    order = _order_along(query, blocks.axes[0], first, last)
    for begin in range(0, last - first, BLOCK):
        block = min(BLOCK, last - first - begin)
        for i in range(block):
            for c in range(d):
                queries.centred[i, c] = query[order[begin + i], c] - centre[c]
        _prepare(block, queries, blocks, nothing, room)
        for b in range(n):
            _add_block(b, (block + ROWS - 1) // ROWS, queries, blocks, plain, room)
        for i in range(block):
            top, total = queries.state[i, 0], queries.state[i, 1]
            out[order[begin + i]] = np.log(total) + top * _LN2 if total > 0.0 else -np.inf


@kernel
def log_sums_of_parts(query: Array, rows: Array, bandwidth: float, first: int, last: int, out: Array) -> None:
    """Write ln Σ_j exp(-‖q - r_j‖² / 2h²) over each of the parts first..last of `rows` into `out` (parts, n_query).

    A part is `PART` rows. This reads the rows as they are, and takes differences in double precision. It is for few
    queries, for which blocks are not worth making. The result is -inf if the query is not finite.
    """
    n, d = query.shape
    padded, chunk, state = np.zeros((n, _padded(d))), np.zeros((_CHUNK, _padded(d))), np.empty((n, 2))
    padded[:, :d] = query
    scale, exponents = LOG2E / bandwidth**2, np.empty(_CHUNK)
    for part in range(first, last):
        state[:, 0], state[:, 1] = -np.inf, 0.0
        end = min(len(rows), (part + 1) * PART)
        for begin in range(part * PART, end, _CHUNK):
            count = min(_CHUNK, end - begin)
            for j in range(count):
                for c in range(d):
                    chunk[j, c] = rows[begin + j, c]
            for i in range(n):
                _add_chunk(padded[i], chunk, count, scale, exponents, state, i)
        for i in range(n):
            out[part, i] = np.log(state[i, 1]) + state[i, 0] * _LN2 if state[i, 1] > 0.0 else -np.inf
