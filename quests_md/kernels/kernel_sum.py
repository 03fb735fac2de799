"""Exact sums of Gaussian kernels, by log-sum-exp over blocks of references.

The squared distance of a query q from the references r of a block with centre c is |q−c|² − 2(q−c)·(r−c) + |r−c|². The
first term is computed from differences, in double precision. The others are one product of matrices per block, in the
precision of its `tiles`. Terms are powers of two: all exponents below are those of 2, so s = log₂e / h² and a term is
2^(−s/2 · ‖q − r‖²).

Bounds make the sums exact. Each is checked for every query and block, so no result depends on other queries:

- A term is left out if all such terms together cannot add `negligible` of the sum to it. Most of them are left out
  unseen: with their block, if that is far enough away; or with their panel of it, if the first coordinates alone put
  it far enough away (`_simd_panel`).
- How wrong a product may make an exponent is bounded, for any processor (`blocks.error_of_panels`). If that is more
  than `tolerance`, the block is summed from differences of its rows, in double precision.
- The sum is relative to 2^top, a lower bound of the largest term, so nothing that matters underflows. Differences are
  used if a term may be so much larger that it overflows; they raise the top.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd_panel import NORMS, SQUARINGS, WIDE, add_panels, exponents_plain
from ._simd_sum import ROWS, exp_negative
from .blocks import LOG2E, SAFE, TILE, Blocks, error_of_panels, error_of_turn, find_coordinates, is_allowed, padded
from .jit import inlined, kernel, ordered

Array = NDArray[Any]

BLOCK = 16 * ROWS  # queries that pass a block of references while it is in the second cache
_LN2 = math.log(2.0)
PART = 8192  # rows of a part, if there are no blocks; a thread takes some parts
_CHUNK = 32  # rows at a time: in double precision they stay in the first cache
_NOTHING = -80.0  # log₂ of a term, relative to the largest, that is not computed: 10⁹ of them add 1e-15
_FAR = 1e12  # beyond this exponent differences are used, so that no product overflows
_NEVER = 1e30  # the exponent that a term must exceed, for a query that leaves out a block

SKIP, PANELS, DIFFERENCES = 0, 1, 2  # the ways to sum a block, cheapest first


class Queries(NamedTuple):
    """The queries that pass a block of references together, and what is known about each."""

    centred: Array  # (n, d and zeros)
    groups: Array  # (n / 6, 6·d): six queries, coordinate by coordinate
    squared: Array  # (n, places) squared distances from the centres
    near: Array  # (n, places) the part of the first coordinates, which tell whether a panel is needed
    upper: Array  # (n, places) upper bounds of the exponents
    way: Array  # (n, places) how each block is summed
    drop: Array  # (n,) terms below 2 to this are left out
    state: Array  # (n, 4): top; the sum so far relative to 2^top; the sums of weights, and of weights times residuals


class Room(NamedTuple):
    """Scratch arrays."""

    queries: Array  # (groups, 6·d) the queries less the centre of a block
    active: Array  # (groups,) whether any query of a group takes the panels of this block
    numbers: Array  # (groups, 3, 6) what `add_panels` wants to know of the queries
    sums: Array  # (groups, kinds·6·lanes_of) of a block, in the precision of its products
    totals: Array  # (groups, 6·lanes_of) of all blocks: of terms. The other kinds need no more than single precision
    local: Array  # (groups, 6) what y is multiplied by (`add_panels`)
    known: Array  # (groups, 6) the top that this is for
    exponents: Array  # (TILE,) of plain loops
    chunk: Array  # (_CHUNK, d and zeros)
    places: Array  # (n, d and zeros) the coordinates of the queries
    means: Array  # (places,)


@kernel
def make_queries(n: int, blocks: Blocks) -> Queries:
    """Make room for n queries, a multiple of six."""
    d, places = blocks.centres.shape
    return Queries(
        np.zeros((n, padded(d))),
        np.zeros((n // ROWS, ROWS * d)),
        np.empty((n, places)),
        np.empty((n, places)),
        np.empty((n, places)),
        np.zeros((n, places), np.int8),
        np.zeros(n),
        np.zeros((n, 4)),
    )


@kernel
def make_room(n: int, blocks: Blocks) -> Room:
    """Make scratch arrays for n queries."""
    groups, d, dtype = n // ROWS, len(blocks.columns), blocks.tiles.dtype
    parts = (3 if len(blocks.residuals) else 1) * ROWS * (blocks.tiles.shape[3] // 2)
    return Room(
        np.zeros((groups, ROWS * d), dtype),
        np.zeros(groups, np.int8),
        np.zeros((groups, 3, ROWS)),
        np.zeros((groups, parts), dtype),
        np.zeros((groups, ROWS * (blocks.tiles.shape[3] // 2))),
        np.ones((groups, ROWS)),
        np.ones((groups, ROWS)),
        np.empty(TILE),
        np.zeros((_CHUNK, padded(d))),
        np.zeros((n, padded(d))),
        np.empty(len(blocks.radius)),
    )


@inlined
def measure(place: Array, blocks: Blocks, squared: Array, near: Array) -> None:
    """Write the squared distances of a query at `place` from the centres of blocks, and the part of the first axes."""
    near[:], squared[:] = 0.0, 0.0
    _add_squares(place, blocks.centres, 0, blocks.first, near)
    _add_squares(place, blocks.centres, blocks.first, len(blocks.columns), squared)
    for b in range(len(squared)):
        squared[b] += near[b]


@kernel
def _add_squares(place: Array, centres: Array, first: int, last: int, out: Array) -> None:
    """Add squared distances from `centres` (d, places), in the coordinates first..last, to `out`."""
    for c in range(first, last - 7, 8):  # eight coordinates at a time: reads and writes `out` more seldom
        q0, q1, q2, q3 = place[c], place[c + 1], place[c + 2], place[c + 3]
        q4, q5, q6, q7 = place[c + 4], place[c + 5], place[c + 6], place[c + 7]
        for b in range(len(out)):
            d0, d1, d2, d3 = q0 - centres[c, b], q1 - centres[c + 1, b], q2 - centres[c + 2, b], q3 - centres[c + 3, b]
            d4, d5, d6, d7 = (
                q4 - centres[c + 4, b],
                q5 - centres[c + 5, b],
                q6 - centres[c + 6, b],
                q7 - centres[c + 7, b],
            )
            out[b] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
    for c in range(last - (last - first) % 8, last):
        for b in range(len(out)):
            out[b] += (place[c] - centres[c, b]) ** 2


@inlined
def bound_distances(place: Array, squared: Array, blocks: Blocks, inside: Array, gap: Array) -> None:
    """Write lower bounds of the squared distance of a query from all references of each block into `gap`.

    A bound is the larger of two: from the ball around the centre, and from the box along the axes with the ball across
    them. The query lies at `place`, `inside` is scratch. A nan bounds nothing.
    """
    radius, across, centres, low, high = blocks.radius, blocks.across, blocks.centres, blocks.low, blocks.high
    inside[:], gap[:] = 0.0, 0.0
    for k in range(len(low)):
        x = place[k]
        for b in range(len(squared)):
            part = x - centres[k, b]
            outside = max(0.0, max(part - high[k, b], low[k, b] - part))
            inside[b] += part * part
            gap[b] += outside * outside
    for b in range(len(squared)):
        ball = max(0.0, math.sqrt(squared[b]) - radius[b])
        tail = max(0.0, math.sqrt(max(0.0, squared[b] * (1.0 - SAFE) - inside[b])) - across[b])
        box = gap[b] + tail * tail
        ball *= ball
        gap[b] = (1.0 - SAFE) * (box if box > ball else ball)


@inlined
def _find_top(squared: Array, blocks: Blocks, means: Array) -> tuple[float, float]:
    """Return an exponent that the largest term of a query reaches, and one that the mean term reaches.

    By Jensen's inequality the mean of the terms of a block is at least 2^(−s/2·(|q−c|² + mean|r−c|²)). So one term
    reaches that, and the number of terms times that is a lower bound of their sum.
    """
    top, scale, spread, counts = -np.inf, blocks.scale, blocks.spread, blocks.counts
    for b in range(len(squared)):
        means[b] = -0.5 * scale * (squared[b] + spread[b])
        top = max(top, means[b])
    least, rows = 0.0, 0.0
    for b in range(len(squared)):
        least += counts[b] * exp_negative((means[b] - top) * _LN2)
        rows += counts[b]
    return top, top + math.log2((least + 1e-300) / max(rows, 1.0))


@inlined
def choose_ways(
    drop: float, top: float, total: float, turned: float, squared: Array, upper: Array, blocks: Blocks, way: Array
) -> None:
    """Choose how one query sums each block.

    `upper` holds bounds of the squared distances, and receives upper bounds of the exponents. What is below 2^`drop` is
    left out. The sum is at least 2^`total`. Turning makes exponents wrong by `turned`. A block at a distance that is
    not finite is skipped.
    """
    scale, radius, weighted = blocks.scale, blocks.radius, blocks.weighted
    log_rows = math.log2(max(1, len(blocks.order)))
    for b in range(len(squared)):
        bound, far = -0.5 * scale * upper[b], scale * squared[b]
        upper[b] = bound
        error = turned + error_of_panels(squared[b], radius[b], weighted[b], top, blocks)
        fits = is_allowed(error, bound, log_rows, total, blocks) and far < _FAR
        way[b] = (PANELS if fits else DIFFERENCES) if bound > drop and far < np.inf else SKIP


@inlined
def lay_out(query: Array, blocks: Blocks, place: Array, room: Array, group: Array, r: int) -> float:
    """Write the coordinates of a query into `place`, and into a group, as the r-th of six; return its length.

    `room` (d and zeros,) is scratch. The coordinates of a query that is not finite are nan, and 0 in the group.
    """
    d, squared = len(blocks.columns), 0.0
    for c in range(d):
        room[c] = query[c] - blocks.middle[c]
        squared += room[c] * room[c]
    find_coordinates(room, blocks.turn, blocks.columns, place)
    for k in range(d):
        group[ROWS * k + r] = place[k] if squared < np.inf else 0.0
    return math.sqrt(squared)


@kernel
def _subtract(group: Array, centre: Array, out: Array) -> None:
    for k in range(len(centre)):
        out[k] = group[k] - centre[k]


@kernel
def subtract_centre(b: int, queries: Queries, blocks: Blocks, room: Room, tops: Array, n_groups: int) -> bool:
    """Lay out the first groups of queries for the panels of block b; return whether any query takes them.

    Exponents will be relative to `tops` (n,).
    """
    groups, way, near, squared, drop = queries.groups, queries.way, queries.near, queries.squared, queries.drop
    shifted, active, numbers = room.queries, room.active, room.numbers
    centre, half, any_active = blocks.repeated[b], 0.5 * blocks.scale, False
    for g in range(n_groups):
        active[g] = 0
        for r in range(ROWS):
            i = ROWS * g + r
            if way[i, b] == PANELS:
                active[g] = 1
                first = tops[i] + half * near[i, b]
                numbers[g, 0, r] = first
                # What rounding takes from the first is part of the second, which is smaller.
                numbers[g, 1, r] = half * (squared[i, b] - near[i, b]) + (first - shifted.dtype.type(first))
                numbers[g, 2, r] = drop[i] - tops[i]
            else:
                numbers[g, 0, r], numbers[g, 1, r], numbers[g, 2, r] = 0.0, 0.0, _NEVER
        if active[g]:
            any_active = True
            _subtract(groups[g], centre, shifted[g])
    return any_active


# -- local residuals ---------------------------------------------------------------------------------------------------


@kernel
def power_of(blocks: Blocks) -> float:
    """Return the power of a term, 2^(squarings − 1), of which the weight of its residual is a function."""
    return float(0.5 * 2.0**blocks.squarings)


@kernel
def _weigh(y: float, narrow: float) -> float:
    """Return the weight of a residual as `add_panels` computes it."""
    peak = y * narrow
    for _ in range(SQUARINGS):
        peak *= peak
    return WIDE * y + peak


@kernel
def _find_narrow(top: float, power: float) -> float:
    """Return what y is multiplied by before y¹⁶, so that both parts of a weight are relative to 2^(power·top)."""
    return float(2.0 ** max(power * top * (1.0 - 0.5**SQUARINGS), -1000.0))


@kernel
def _add_residual(exponent: float, residual: float, narrow: float, power: float, state: Array, r: int) -> None:
    """Add the weight of a residual, and this times the residual, to the sums of query r. Nan adds nothing."""
    if not math.isnan(residual):
        weight = _weigh(exp_negative(power * exponent * _LN2), narrow)
        state[r, 2] += weight
        state[r, 3] += weight * residual


# -- sums --------------------------------------------------------------------------------------------------------------


@kernel
def _add_differences(
    query: Array, b: int, blocks: Blocks, chunk: Array, state: Array, r: int, least: float, local: Any
) -> None:
    """Add block `b` to the sum of query r, from differences in double precision.

    A residual counts if its term is above 2^`least`.
    """
    rows, order, scale, exponents = blocks.rows, blocks.order, blocks.scale, np.empty(_CHUNK)
    end = min(len(order), (b + 1) * TILE)
    for begin in range(b * TILE, end, _CHUNK):
        count = min(_CHUNK, end - begin)
        for j in range(count):
            i = order[begin + j]
            for c in range(rows.shape[1]):
                chunk[j, c] = rows[i, c]
        matters = _add_chunk(query, chunk, count, scale, exponents, power_of(blocks), state, r)
        if local is not None and matters:
            top, power = state[r, 0], power_of(blocks)
            narrow = _find_narrow(top, power)
            for j in range(count):
                if exponents[j] > least:
                    _add_residual(exponents[j] - top, blocks.residuals[order[begin + j]], narrow, power, state, r)


@kernel
def _add_chunk(
    query: Array, chunk: Array, count: int, scale: float, exponents: Array, power: float, state: Array, r: int
) -> bool:
    """Add the first `count` rows of `chunk` to the sum of query r, from differences; return whether any matters."""
    largest = -np.inf
    for j in range(count):
        squared = 0.0
        for c in range(len(query)):
            squared += (query[c] - chunk[j, c]) ** 2
        exponents[j] = -0.5 * scale * squared
        largest = max(largest, exponents[j])
    if not largest > state[r, 0] * (1.0 + 1e-9) + _NOTHING:  # the top is negative or 0, and rounded
        return False
    _raise(state, r, largest, power)
    top, total = state[r, 0], 0.0
    for j in range(count):
        total += exp_negative((exponents[j] - top) * _LN2)
    state[r, 1] += total
    return True


@kernel
def _raise(state: Array, r: int, exponent: float, power: float) -> None:
    """Make the sums of query r relative to at least 2^exponent; (top, total, ...) are its row of `state`."""
    if exponent > state[r, 0]:
        state[r, 1] *= 2.0 ** (state[r, 0] - exponent)
        for kind in range(2, state.shape[1]):
            state[r, kind] *= 2.0 ** (power * (state[r, 0] - exponent))
        state[r, 0] = exponent


@kernel
def _add_plain(b: int, g: int, queries: Queries, blocks: Blocks, room: Room, local: Any) -> None:
    """Add the panel of block b to the sums of a group, by plain loops. These cannot sum a term above 1."""
    tile, numbers, exponents, state = blocks.tiles[b, 0], room.numbers[g], room.exponents, queries.state
    d, power = len(blocks.columns), power_of(blocks)
    for r in range(ROWS):
        i = ROWS * g + r
        if queries.way[i, b] != PANELS:
            continue
        if exponents_plain(room.queries[g], r, numbers, tile, d, blocks.first, exponents):
            limit, before, largest = numbers[2, r], state[i, 0], -np.inf
            for j in range(len(exponents)):
                largest = max(largest, exponents[j])
            _raise(state, i, before + largest, power)
            shift, total = before - state[i, 0], 0.0
            for j in range(len(exponents)):
                total += exp_negative((exponents[j] + shift) * _LN2) if exponents[j] > limit else 0.0
            state[i, 1] += total
            if local is not None:
                narrow = _find_narrow(state[i, 0], power)
                for j in range(len(exponents)):
                    if exponents[j] > limit and tile[NORMS + d, j] > 0.0:
                        _add_residual(exponents[j] + shift, tile[NORMS + d + 1, j], narrow, power, state, i)


@ordered
def take_sums(sums: Array, totals: Array, n_groups: int) -> None:
    """Add the sums of the terms of a block, in parts (groups, 6·lanes_of), to those of all blocks, and empty them."""
    for g in range(n_groups):
        for k in range(totals.shape[1]):
            totals[g, k] += sums[g, k]
            sums[g, k] = 0.0


@ordered
def take_total(totals: Array, i: int, kind: int, lanes: int) -> float:
    """Return a sum of query i of what `take_sums` added up, and empty it. Its place changes no digit."""
    g, first, total = i // ROWS, lanes * (ROWS * kind + i % ROWS), 0.0
    for k in range(first, first + lanes):
        total += totals[g, k]
        totals[g, k] = 0.0
    return total


@kernel
def take_totals(room: Room, i: int, state: Array) -> None:
    """Move all sums of query i to its row of `state`."""
    sums, totals = room.sums, room.totals
    lanes = totals.shape[1] // ROWS
    state[i, 1] += take_total(totals, i, 0, lanes)
    for kind in range(1, sums.shape[1] // (ROWS * lanes)):
        state[i, 1 + kind] += take_total(sums, i, kind, lanes)


@kernel
def _add_block(b: int, n_groups: int, queries: Queries, blocks: Blocks, plain: Any, local: Any, room: Room) -> None:
    """Add block `b` to the sums of all queries."""
    # Take arrays out of their tuples once: numba counts their users, and threads wait for each other's counts.
    way, state, drop, upper, narrow, known = (
        queries.way, queries.state, queries.drop, queries.upper, room.local, room.known,
    )  # fmt: skip
    n, headroom = ROWS * n_groups, blocks.headroom
    for i in range(n):
        # One term is at least 2^top, which differences may have raised.
        drop[i] = max(drop[i], state[i, 0] + blocks.log_negligible)
        if way[i, b] == PANELS and upper[i, b] > state[i, 0] + headroom:
            way[i, b] = DIFFERENCES
    if subtract_centre(b, queries, blocks, room, state[:, 0], n_groups):
        if plain is None:
            active, tile, first = room.active[:n_groups], blocks.tiles[b], blocks.first
            if local is None:
                add_panels(room.queries, active, room.numbers, tile, first, room.sums, None, None, 0)
            else:
                for g in range(n_groups):
                    for r in range(ROWS):
                        if known[g, r] != state[ROWS * g + r, 0]:
                            known[g, r] = state[ROWS * g + r, 0]
                            narrow[g, r] = _find_narrow(known[g, r], power_of(blocks))
                squarings = blocks.squarings
                add_panels(room.queries, active, room.numbers, tile, first, room.sums, None, narrow, squarings)
            take_sums(room.sums, room.totals, n_groups)
        else:
            for g in range(n_groups):
                if room.active[g]:
                    _add_plain(b, g, queries, blocks, room, local)
    for i in range(n):
        if way[i, b] == DIFFERENCES:
            take_totals(room, i, state)  # differences may raise what the sums are relative to
            _add_differences(queries.centred[i], b, blocks, room.chunk, state, i, drop[i], local)


@kernel
def prepare(block: int, queries: Queries, blocks: Blocks, nothing: float, room: Room) -> None:
    """Plan the sums of the first `block` queries and make groups of them."""
    scale, way, places, lengths = blocks.scale, queries.way, room.places, np.empty(block)
    scratch = np.zeros(places.shape[1])
    way[:], log_rows = SKIP, math.log2(max(1, len(blocks.order)))  # places without a query are skipped
    for i in range(block):  # one loop after the other: what they read fills the first cache
        lengths[i] = lay_out(queries.centred[i], blocks, places[i], scratch, queries.groups[i // ROWS], i % ROWS)
    for i in range(block):
        squared, upper = queries.squared[i], queries.upper[i]
        measure(places[i], blocks, squared, queries.near[i])
        top, mean = _find_top(squared, blocks, room.means)
        drop = max(nothing, mean + math.log2(blocks.negligible))
        turned = error_of_turn(lengths[i], math.sqrt(-2.0 * drop / scale), blocks)
        bound_distances(places[i], squared, blocks, room.means, upper)
        choose_ways(drop, top, mean + log_rows, turned, squared, upper, blocks, way[i])
        queries.drop[i], queries.state[i, 0], queries.state[i, 1:] = drop, top, 0.0


@kernel
def share_of_differences(blocks: Blocks) -> float:
    """Return which share of the blocks that matter to some of the references has to be summed from differences."""
    n, d = blocks.rows.shape
    queries, room = make_queries(BLOCK, blocks), make_room(BLOCK, blocks)
    block, panels, differences = min(n, BLOCK), 0, 0
    for i in range(block):
        for c in range(d):
            queries.centred[i, c] = blocks.rows[i * n // block, c]
    prepare(block, queries, blocks, -np.inf, room)
    for i in range(block):
        for b in range(len(blocks.tiles)):
            panels += queries.way[i, b] == PANELS
            differences += queries.way[i, b] == DIFFERENCES
    return differences / max(1, panels + differences)


@kernel
def _order_along(query: Array, blocks: Blocks, first: int, last: int) -> Array:
    """Return the queries first..last in their order along the longest axis: near queries leave out the same blocks.

    A block is left out only if no query of a group needs it.
    """
    turn, places, longest = blocks.turn, np.zeros(last - first), blocks.first - 1
    for i in range(len(places)):
        for c in range(query.shape[1]):
            if len(turn):
                places[i] += query[first + i, c] * turn[c, longest]
        if len(turn) == 0:
            places[i] = query[first + i, blocks.columns[longest]] if query.shape[1] else 0.0
    return first + np.argsort(places)


@kernel
def log_kernel_sum(
    query: Array,
    centre: Array,
    blocks: Blocks,
    plain: Any,
    nothing: float,
    first: int,
    last: int,
    out: Array,
    local: Any = None,
) -> None:
    """Write ln Σ_j exp(-‖q - c - r_j‖² / 2h²) of the queries first..last into `out`.

    `centre` was subtracted from the references. `plain` is None for vector code, and 1 for plain loops. None is a type
    of its own, so the compiler leaves out the plain loops, which saves seconds. Terms below 2^`nothing` need not be
    added; it is −inf unless the caller knows that the sum, or a larger sum that it is part of, is far larger. The order
    of the sum over references is fixed, so a result depends neither on the block nor on the thread of its query. It is
    -inf if there is no reference, or the query is not finite.

    `local` (n_query, 2) is None, or receives the local residual s = Σ_j w_j e_j / Σ_j w_j of each query, and
    ln Σ_j w_j; the `blocks` hold the residuals e_j. A weight is y¹⁶ + 2⁻¹⁸ y, with y = K_j to the power of `power_of`.
    Terms that are left out of the sum have no weight, so s is nan if none of the references that matters has a
    residual.
    """
    d, n = len(blocks.columns), len(blocks.tiles)
    queries, room = make_queries(BLOCK, blocks), make_room(BLOCK, blocks)
    order = _order_along(query, blocks, first, last)
    for begin in range(0, last - first, BLOCK):
        block = min(BLOCK, last - first - begin)
        for i in range(block):
            for c in range(d):
                queries.centred[i, c] = query[order[begin + i], c] - centre[c]
        prepare(block, queries, blocks, nothing, room)
        for b in range(n):
            _add_block(b, (block + ROWS - 1) // ROWS, queries, blocks, plain, local, room)
        for i in range(block):
            state = queries.state
            take_totals(room, i, state)
            top, total = state[i, 0], state[i, 1]
            out[order[begin + i]] = np.log(total) + top * _LN2 if total > 0.0 else -np.inf
            if local is not None:
                weights = state[i, 2]
                local[order[begin + i], 0] = state[i, 3] / weights if weights > 0.0 else np.nan
                local[order[begin + i], 1] = (
                    np.log(weights) + power_of(blocks) * top * _LN2 if weights > 0.0 else -np.inf
                )


@kernel
def log_sums_of_parts(query: Array, rows: Array, bandwidth: float, first: int, last: int, out: Array) -> None:
    """Write ln Σ_j exp(-‖q - r_j‖² / 2h²) over each of the parts first..last of `rows` into `out` (parts, n_query).

    A part is `PART` rows. This reads the rows as they are, and takes differences in double precision. It is for few
    queries, for which blocks are not worth making. The result is -inf if the query is not finite.
    """
    n, d = query.shape
    queries, chunk, state = np.zeros((n, padded(d))), np.zeros((_CHUNK, padded(d))), np.empty((n, 2))
    queries[:, :d] = query
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
                _add_chunk(queries[i], chunk, count, scale, exponents, 1.0, state, i)
        for i in range(n):
            out[part, i] = np.log(state[i, 1]) + state[i, 0] * _LN2 if state[i, 1] > 0.0 else -np.inf
