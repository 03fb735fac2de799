"""x1 and x2 with vectors. This computes what `descriptor.describe` does, faster, for up to 32 neighbours.

Neighbours are stored as rows of x, of y and of z, so that a vector holds one coordinate of several neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._simd import BYTES, WIDTH, inside, ranks, sorted_sums
from .descriptor import ALL, NONE, TIE_R2, direction_before
from .jit import kernel
from .neighbors import adjacent_ranges

Array = NDArray[Any]

# Whole vectors read and write up to this many numbers past the end.
_SPARE = 16
# If more neighbours than this are inside the cutoff, they are thinned out before they are ranked.
_MANY = 128


def available(k: int) -> bool:
    """Return whether this processor has vectors, and the networks sort k neighbours."""
    return BYTES > 0 and k <= WIDTH


def scratch(precision: type) -> Array:
    """Return the array into which `describe` writes neighbours. The matrix behind x2 has its precision."""
    return np.empty((4, WIDTH), precision)


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


@kernel
def _inside(
    centre: int, coordinates: Array, ranges: Array, n_ranges: int, cutoff: float, rows: Array, r2: Array
) -> int:
    """Collect the neighbours inside the cutoff, unsorted: their `rows` in `coordinates`, and r². Return how many."""
    n = 0
    for r in range(n_ranges):
        n = inside(coordinates, ranges[r, 0], ranges[r, 1], centre, cutoff * cutoff, rows, n)
    for i in range(n):
        r2[i] = 0.0
        for c in range(3):
            r2[i] += (coordinates[c, rows[i]] - coordinates[c, centre]) ** 2
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


@kernel
def _sort(n: int, r2: Array, rank: Array, nearest: Array) -> None:
    """Write the indices of the neighbours, nearest first, into ``nearest[:n]``."""
    ranks(r2, n, rank)
    nearest[:n] = -1
    for i in range(n):
        slot = rank[i]
        while nearest[slot] >= 0:  # an earlier one has exactly the same distance
            slot += 1
        nearest[slot] = i


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


@kernel
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
    sums: Array,
    out: Array,
) -> None:
    """Write [x1, x2] of an environment of n ≤ k neighbours into `out`; `near` (4, WIDTH) and `sums` are scratch."""
    for j in range(n):
        i = nearest[j]
        for c in range(3):
            near[c, j] = coordinates[c, rows[i]] - coordinates[c, centre]
        u = 1.0 - r2[i] / (cutoff * cutoff)
        near[3, j] = u
        out[j] = u * u / np.sqrt(r2[i])
    for j in range(n, WIDTH):  # an empty place: no weight, and a position of its own
        near[0, j], near[1, j], near[2, j], near[3, j] = (2.0 + j) * cutoff, 0.0, 0.0, 0.0
    if n <= 16:
        sorted_sums(16, near, n, sums)
    elif n <= 24:
        sorted_sums(24, near, n, sums)
    elif n <= 28:  # diamond within 5 Å
        sorted_sums(28, near, n, sums)
    else:
        sorted_sums(32, near, n, sums)
    out[n:k] = 0.0
    for s in range(min(n, k - 1)):
        out[k + s] = sums[s] / k
    out[k + n :] = 0.0


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
) -> None:
    """Write the blocks of the points at `places` of `coordinates` into the rows of `out`, from `column` on.

    `kinds` are the kinds of the points, in the order of the bins. `kernels.descriptor` explains `wanted`. `near` is
    `scratch` of the wanted precision.
    """
    _, start, low, width, count = bins
    ranges = np.empty((9, 2), np.int64)
    most = coordinates.shape[1]
    rows, r2, rank, nearest = (
        np.empty(most, np.int64),
        np.empty(most),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
    )
    kept_rows, kept_r2 = np.empty(most, np.int64), np.empty(most)
    sums = np.empty(WIDTH)
    n_blocks = wanted.shape[1]
    for e in range(places.shape[0]):
        centre = places[e]
        n_ranges = adjacent_ranges(coordinates[:, centre], start, low, width, count, ranges)
        n_all = _inside(centre, coordinates, ranges, n_ranges, cutoff, rows, r2)
        if n_blocks > 1:  # each block thins out its own neighbours
            for i in range(n_all):
                kept_rows[i], kept_r2[i] = rows[i], r2[i]
        for b in range(n_blocks):
            begin = column + b * (2 * k - 1)
            block, kind, n = out[e, begin : begin + 2 * k - 1], wanted[kinds[centre], b], n_all
            if kind == NONE:
                block[:] = 0.0
                continue
            if kind != ALL:
                n = _of_kind(n_all, kind, kinds, kept_rows, kept_r2, rows, r2)
            if n > _MANY:
                n = _keep_nearest(n, k, cutoff, rows, r2)
            _sort(n, r2, rank, nearest)
            if n > k and r2[nearest[k]] - r2[nearest[k - 1]] <= TIE_R2:
                _settle_tie(n, k, rows, r2, coordinates, nearest)
            _describe(min(n, k), k, centre, coordinates, rows, r2, nearest, cutoff, near, sums, block)
