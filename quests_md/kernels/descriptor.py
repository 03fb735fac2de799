"""x1 and x2 of environments (docs/method.md has the formulas).

A row has blocks [x1, x2] side by side. Each block describes some of the neighbours, and `wanted` (n_kinds, n_blocks)
says which. Block b of a centre of kind a describes its neighbours of the kind ``wanted[a, b]``. If that is `NONE`, the
block is zero. If it is `ALL`, the block describes all neighbours: the first block may be such, and a single block must
be. Kinds are elements if these make a difference; else all points are of kind 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import kernel
from .neighbors import adjacent_ranges

Array = NDArray[Any]

ALL, NONE = -1, -2

# Distances that differ by less than this (Å²; Å for components) tie at the k-th neighbour. Rounding differs between
# hosts by far less, and thermal motion separates atoms by far more.
TIE_R2 = 1e-8
_TIE_X = 1e-6


@kernel
def direction_before(a: Array, b: Array) -> bool:
    """Order neighbours (x, y, z) at the same distance by their direction, which is the same on every rank."""
    for c in range(2):
        if abs(a[c] - b[c]) > _TIE_X:
            return bool(a[c] < b[c])
    return bool(a[2] < b[2])


@kernel
def _comes_before(a: Array, b: Array) -> bool:
    """Order neighbours (r², x, y, z): nearest first, and ties by their direction."""
    if abs(a[0] - b[0]) > TIE_R2:
        return bool(a[0] < b[0])
    return bool(direction_before(a[1:], b[1:]))


@kernel
def nearest_neighbors(
    i: int,
    points: Array,
    kinds: Array,
    wanted: int,
    bins: tuple[Array, Array, Array, Array, Array],
    cutoff: float,
    ranges: Array,
    found: Array,
) -> int:
    """Write the nearest neighbours of point i of the kind `wanted` into `found` (k + 1, 5); return how many (≤ k).

    The rows of `found` are (r², x, y, z, number of the point).
    """
    order, start, low, width, count = bins
    k = found.shape[0] - 1
    n = 0
    for r in range(adjacent_ranges(points[i], start, low, width, count, ranges)):
        for s in range(ranges[r, 0], ranges[r, 1]):
            j = order[s]
            if wanted != ALL and kinds[j] != wanted:
                continue
            dx = points[j, 0] - points[i, 0]
            dy = points[j, 1] - points[i, 1]
            dz = points[j, 2] - points[i, 2]
            r2 = dx * dx + dy * dy + dz * dz
            if r2 >= cutoff * cutoff or j == i or (n == k and r2 > found[k - 1, 0] + TIE_R2):
                continue
            # Insert it into the sorted list. Row k is scratch for the neighbour that falls off the end.
            slot = n
            found[slot, 0], found[slot, 1], found[slot, 2], found[slot, 3] = r2, dx, dy, dz
            found[slot, 4] = j
            while slot > 0 and _comes_before(found[slot], found[slot - 1]):
                for c in range(5):
                    found[slot, c], found[slot - 1, c] = found[slot - 1, c], found[slot, c]
                slot -= 1
            n = min(n + 1, k)
    return n


@kernel
def _describe(found: Array, n: int, cutoff: float, row: Array, out: Array) -> None:
    """Write [x1, x2] of an environment of n neighbours into `out` (2k - 1,); `row` (k,) is scratch."""
    k = found.shape[0] - 1
    out[:] = 0.0
    for j in range(n):
        u = 1.0 - found[j, 0] / (cutoff * cutoff)
        out[j] = u * u / np.sqrt(found[j, 0])
    for j in range(n):
        u_j = 1.0 - found[j, 0] / (cutoff * cutoff)
        m = 0
        for i in range(n):
            if i == j:
                continue
            dx = found[j, 1] - found[i, 1]
            dy = found[j, 2] - found[i, 2]
            dz = found[j, 3] - found[i, 3]
            # sqrt(w_j w_l) = u_j u_l, because w = u².
            value = u_j * (1.0 - found[i, 0] / (cutoff * cutoff)) / np.sqrt(dx * dx + dy * dy + dz * dz)
            slot = m
            while slot > 0 and row[slot - 1] < value:
                row[slot] = row[slot - 1]
                slot -= 1
            row[slot] = value
            m += 1
        for s in range(m):
            out[k + s] += row[s]
    for s in range(k - 1):
        out[k + s] /= k


@kernel
def describe(
    points: Array,
    kinds: Array,
    wanted: Array,
    centres: Array,
    bins: tuple[Array, Array, Array, Array, Array],
    k: int,
    cutoff: float,
    column: int,
    first: int,
    last: int,
    out: Array,
) -> None:
    """Write the blocks of ``centres[first:last]`` into the same rows of `out`, from `column` on.

    `kinds` (m,) are the kinds of the points.
    """
    ranges = np.empty((9, 2), np.int64)
    found = np.empty((k + 1, 5))
    row = np.empty(k)
    for c in range(first, last):
        kind = kinds[centres[c]]
        for b in range(wanted.shape[1]):
            n = 0
            if wanted[kind, b] != NONE:
                n = nearest_neighbors(centres[c], points, kinds, wanted[kind, b], bins, cutoff, ranges, found)
            begin = column + b * (2 * k - 1)
            _describe(found, n, cutoff, row, out[c, begin : begin + 2 * k - 1])
