"""x1 and x2 with vectors. This computes what `descriptor.describe` does, faster, for up to 32 neighbours.

Neighbours are stored as rows of x, of y and of z, so that a vector holds one coordinate of several neighbours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._simd import BYTES, SPAN, WIDTH, gather, inside, ranks, sorted_sums
from .descriptor import ALL, NONE, TIE_R2, direction_before
from .jit import inlined, kernel
from .neighbors import adjacent_ranges

Array = NDArray[Any]

# Whole vectors read and write up to this many numbers past the end.
_SPARE = 64
# The shape of the array into which `describe` writes neighbours. The matrix behind x2 has its precision.
SCRATCH = (4, SPAN)
# If more neighbours than this are inside the cutoff, they are thinned out before they are ranked.
_MANY = 128


def available(k: int) -> bool:
    """Return whether this processor has vectors, and the networks sort k neighbours."""
    return BYTES > 0 and k <= WIDTH


@kernel
def sort_points(points: Array, kinds: Array, order: Array) -> tuple[Array, Array, Array]:
    """Return coordinates (3, m + spare) and kinds (m,) in the order of the bins, and where each point is in it."""
    m = points.shape[0]
    coordinates, place, sorted_kinds = np.zeros((3, m + _SPARE)), np.empty(m, np.int64), np.empty_like(kinds)
    for s in range(m):
        p = order[s]
        place[p] = s
        sorted_kinds[s] = kinds[p]
        for c in range(3):
            coordinates[c, s] = points[p, c]
    return coordinates, sorted_kinds, place


@inlined
def _inside(
    centre: int, coordinates: Array, ranges: Array, n_ranges: int, cutoff: float, squares: Array, rows: Array, r2: Array
) -> int:
    """Collect the neighbours inside the cutoff, unsorted: their `rows` in `coordinates`, and r². Return how many."""
    n = 0
    for r in range(n_ranges):
        n = inside(coordinates, ranges[r, 0], ranges[r, 1], centre, cutoff * cutoff, rows, n, squares)
    for i in range(n):
        r2[i] = squares[rows[i]]
    return n


@kernel
def _keep_nearest(n: int, k: int, cutoff: float, rows: Array, r2: Array) -> int:
    """Drop neighbours that are surely beyond the k nearest, because ranking costs the square of their number."""
    low, high = 0.0, cutoff * cutoff
    for _ in range(12):
        middle = 0.5 * (low + high)
        closer = 0
        for i in range(n):
            closer += int(r2[i] < middle - TIE_R2)
        if closer >= k:  # so every neighbour that ties with the k-th is below `middle` too
            high = middle
        else:
            low = middle
    kept = 0
    for i in range(n):
        rows[kept], r2[kept] = rows[i], r2[i]
        kept += int(r2[i] < high)
    return kept


@inlined
def _sort(n: int, r2: Array, short: Array, rank: Array, nearest: Array) -> None:
    """Write the indices of the neighbours, nearest first, into ``nearest[:n]``."""
    for i in range(n):
        short[i] = r2[i]
    ranks(short, n, rank)
    total = 0
    for i in range(n):
        total += rank[i]
    if total == n * (n - 1) // 2:  # no two have the same rank: each lowers the sum
        for i in range(n):
            nearest[rank[i]] = i
    else:
        _sort_equal(n, r2, rank, nearest)


@kernel
def _sort_equal(n: int, r2: Array, rank: Array, nearest: Array) -> None:
    """Sort neighbours some of whose distances are equal in single precision, in which they were ranked."""
    nearest[:n] = -1
    for i in range(n):
        slot = rank[i]
        while nearest[slot] >= 0:
            slot += 1
        nearest[slot] = i
    for i in range(1, n):
        slot = i
        while slot > 0 and r2[nearest[slot]] < r2[nearest[slot - 1]]:
            nearest[slot], nearest[slot - 1] = nearest[slot - 1], nearest[slot]
            slot -= 1


@kernel
def _settle_tie(n: int, k: int, rows: Array, r2: Array, coordinates: Array, nearest: Array) -> None:
    """Sort the neighbours that tie with the k-th by their direction, which is the same on every rank."""
    tied = r2[nearest[k - 1]]
    first, last = k - 1, k
    while first > 0 and tied - r2[nearest[first - 1]] <= TIE_R2:
        first -= 1
    while last < n and r2[nearest[last]] - tied <= TIE_R2:
        last += 1
    for i in range(first + 1, last):
        slot = i
        while slot > first and direction_before(
            coordinates[:, rows[nearest[slot]]], coordinates[:, rows[nearest[slot - 1]]]
        ):
            nearest[slot], nearest[slot - 1] = nearest[slot - 1], nearest[slot]
            slot -= 1


@inlined
def _describe(
    n: int,
    k: int,
    centre: int,
    coordinates: Array,
    rows: Array,
    r2: Array,
    nearest: Array,
    cutoff: float,
    near: Array,
    x1: Array,
    x2: Array,
    out: Array,
    e: int,
    begin: int,
) -> tuple[float, float]:
    """Write [x1, x2] of an environment of n ≤ k neighbours into ``out[e, begin:]``; `near`, `x1`, `x2` are scratch.

    It returns the smallest r² of two neighbours, and |x2|².
    """
    gather(coordinates, centre, nearest, rows, r2, n, cutoff, near, x1)
    if n <= 16:
        closest = sorted_sums(16, near, n, x2)
    elif n <= 24:
        closest = sorted_sums(24, near, n, x2)
    elif n <= 28:  # diamond within 5 Å
        closest = sorted_sums(28, near, n, x2)
    else:
        closest = sorted_sums(32, near, n, x2)
    for j in range(n):
        out[e, begin + j] = x1[j]
    for j in range(n, k):
        out[e, begin + j] = 0.0
    squared = 0.0
    for j in range(min(n, k - 1)):
        value = x2[j] / k
        out[e, begin + k + j] = value
        squared += value * value
    for j in range(n, k - 1):
        out[e, begin + k + j] = 0.0
    return closest, squared


@kernel
def _of_kind(n: int, kind: int, kinds: Array, kept_rows: Array, kept_r2: Array, rows: Array, r2: Array) -> int:
    """Write the neighbours of one kind, out of n, into `rows` and `r2`; return how many."""
    m = 0
    for i in range(n):
        rows[m], r2[m] = kept_rows[i], kept_r2[i]
        m += int(kinds[kept_rows[i]] == kind)
    return m


@kernel
def describe(
    coordinates: Array,
    kinds: Array,
    wanted: Array,
    places: Array,
    bins: tuple[Array, Array, Array, Array, Array],
    k: int,
    cutoff: float,
    column: int,
    near: Array,
    out: Array,
) -> tuple[float, float]:
    """Write the blocks of the points at `places` of `coordinates` into the rows of `out`, from `column` on.

    It returns the smallest r² of two neighbours, and the largest |x2|² of a row: `error_in_single` needs them.

    `kinds` are the kinds of the points, in the order of the bins. `kernels.descriptor` explains `wanted`. `near` is
    of the shape `SCRATCH` and of the wanted precision.
    """
    _, start, low, width, count = bins
    ranges = np.empty((9, 2), np.int64)
    most = coordinates.shape[1]
    rows, r2, squares = np.empty(most, np.int64), np.empty(most), np.empty(most)
    short, rank, nearest = np.empty(most, np.float32), np.empty(most, np.int32), np.empty(most, np.int64)
    kept_rows, kept_r2 = np.empty(most, np.int64), np.empty(most)
    x1, x2 = np.empty(WIDTH), np.empty(WIDTH)
    n_blocks = wanted.shape[1]
    smallest, largest = np.inf, 0.0
    for e in range(places.shape[0]):
        centre = places[e]
        n_ranges = adjacent_ranges(coordinates[:, centre], start, low, width, count, ranges)
        n_all = _inside(centre, coordinates, ranges, n_ranges, cutoff, squares, rows, r2)
        if n_blocks > 1:  # each block thins out its own neighbours
            for i in range(n_all):
                kept_rows[i], kept_r2[i] = rows[i], r2[i]
        of_row = 0.0
        for b in range(n_blocks):
            begin = column + b * (2 * k - 1)
            kind, n = wanted[kinds[centre], b], n_all
            if kind == NONE:
                out[e, begin : begin + 2 * k - 1] = 0.0
                continue
            if kind != ALL:
                n = _of_kind(n_all, kind, kinds, kept_rows, kept_r2, rows, r2)
            if n > _MANY:
                n = _keep_nearest(n, k, cutoff, rows, r2)
            _sort(n, r2, short, rank, nearest)
            if n > k and r2[nearest[k]] - r2[nearest[k - 1]] <= TIE_R2:
                _settle_tie(n, k, rows, r2, coordinates, nearest)
            closest, squared = _describe(
                min(n, k), k, centre, coordinates, rows, r2, nearest, cutoff, near, x1, x2, out, e, begin
            )
            smallest, of_row = min(smallest, closest), of_row + squared
        largest = max(largest, of_row)
    return smallest, largest


def error_in_single(smallest: float, largest: float, cutoff: float) -> float:
    """Return the largest distance (1/Å) between a row of `describe` in single precision and that in double.

    `smallest` and `largest` are what `describe` returned for single precision.

    Positions of neighbours j and l are rounded to u = 2⁻²⁴ of their distances from the centre, which are at most the
    cutoff. So r_jl is off by at most u·2·cutoff, which counts most for the nearest two. Then each term is rounded: its
    difference by u; squares and their sum by 4 u, which the root halves; 1/√x is off by at most 7 u
    (tests/kernels/test_simd.py); u_j, u_l and two products by u each. That makes 14 u. If no term is off by more, no
    place of a sorted column is. Sums of up to 32 columns round 9 times with the shortest vectors: 7 in turn, and 2 to
    add up the elements. x2 is thus off by a share of |x2|, and x1 is not off: it is computed in double precision.
    """
    unit = 2.0**-24
    apart = np.sqrt(smallest) * (1.0 - 4.0 * unit) - 2.0 * unit * cutoff
    if not apart > 8.0 * unit * cutoff:  # too near: the share below would not be small
        return math.inf
    moved = 2.0 * unit * cutoff / apart
    share = (1.0 + moved / (1.0 - moved)) * (1.0 + 24.0 * unit) - 1.0  # 23, and all powers of u
    return float(1.001 * share / (1.0 - share) * np.sqrt(largest))
