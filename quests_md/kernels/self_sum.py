"""Exact sums of Gaussian kernels of a dataset over itself. Every pair is computed once, for both of its rows.

This is simpler than `kernel_sum`: a row is its own neighbour, so every sum is at least 1, and need not be relative to
its largest term. A term is left out if n such terms together are `negligible` beside 1. Blocks i and j > i are
multiplied once, and a term is added to two sums: that of its row of block i, and that of its row of block j. If a
product would round too much, differences in double precision are used.

The sums are made in strips of blocks. The strips do not depend on threads and ranks, and are added up in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._simd_panel import add_panels, exponents_plain
from ._simd_sum import ROWS, exp_negative
from .blocks import TILE, Blocks, error_of_turn, padded
from .jit import kernel
from .kernel_sum import (
    DIFFERENCES,
    PANELS,
    SKIP,
    Queries,
    Room,
    bound_distances,
    choose_ways,
    lay_out,
    make_queries,
    make_room,
    measure,
    subtract_centre,
    take_sums,
    take_total,
)

Array = NDArray[Any]

_LN2 = math.log(2.0)
GROUPS = -(-TILE // ROWS)  # of six rows in a block


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
def prepare(i: int, blocks: Blocks, drop: float, queries: Queries, room: Room) -> None:
    """Lay out the rows of block i as queries, and plan their terms with each block."""
    rows, order, way = blocks.rows, blocks.order, queries.way
    d, count, places = len(blocks.columns), min(TILE, len(order) - i * TILE), room.places
    scratch, reach, lengths = np.zeros(padded(d)), math.sqrt(-2.0 * drop / blocks.scale), np.empty(count)
    way[:], queries.drop[:] = SKIP, drop
    for r in range(count):
        query = queries.centred[r]
        for c in range(d):
            query[c] = rows[order[i * TILE + r], c]
        lengths[r] = lay_out(query, blocks, places[r], scratch, queries.groups[r // ROWS], r % ROWS)
    for r in range(count):
        squared, upper = queries.squared[r], queries.upper[r]
        measure(places[r], blocks, squared, queries.near[r])
        bound_distances(places[r], squared, blocks, room.means, upper)
        choose_ways(drop, 0.0, 0.0, error_of_turn(lengths[r], reach, blocks), squared, upper, blocks, way[r])


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
def _add_plain(j: int, g: int, queries: Queries, blocks: Blocks, room: Room, own: Array, others: Array) -> None:
    """Add the terms of a group with block j, by plain loops."""
    tile, numbers, exponents = blocks.tiles[j, 0], room.numbers[g], room.exponents
    for r in range(ROWS):
        i = ROWS * g + r
        if queries.way[i, j] != PANELS:
            continue
        if exponents_plain(room.queries[g], r, numbers, tile, len(blocks.columns), blocks.first, exponents):
            for t in range(TILE):
                if exponents[t] > numbers[2, r]:
                    term = exp_negative(exponents[t] * _LN2)
                    own[i] += term
                    others[t] += term


@kernel
def add_strip(blocks: Blocks, plain: Any, first: int, last: int, sums: Array) -> None:
    """Add the terms of the blocks first..last, with themselves and with all later blocks, to `sums` (n_blocks, TILE).

    The sums are in the order of the blocks. `plain` is as in `kernel_sum.log_kernel_sum`.
    """
    n = len(blocks.tiles)
    queries, room = make_queries(GROUPS * ROWS, blocks), make_room(GROUPS * ROWS, blocks)
    own, nobody, tops = np.empty(GROUPS * ROWS), np.zeros(TILE), np.zeros(GROUPS * ROWS)
    for i in range(first, last):
        prepare(i, blocks, blocks.log_negligible, queries, room)
        own[:] = 0.0
        for j in range(i, n):
            others = sums[j] if j > i else nobody  # within a block every row adds its own terms
            if subtract_centre(j, queries, blocks, room, tops, GROUPS):
                if plain is None:
                    add_panels(
                        room.queries,
                        room.active,
                        room.numbers,
                        blocks.tiles[j],
                        blocks.first,
                        room.sums,
                        others,
                        None,
                        0,
                    )
                    take_sums(room.sums, room.totals, GROUPS)
                else:
                    for g in range(GROUPS):
                        if room.active[g]:
                            _add_plain(j, g, queries, blocks, room, own, others)
            for r in range(TILE):
                if queries.way[r, j] == DIFFERENCES:
                    _add_differences(queries.centred[r], j, blocks, j > i, own, r, others)
        for r in range(TILE):
            sums[i, r] += own[r] + take_total(room.totals, r, 0, blocks.tiles.shape[3] // 2)
