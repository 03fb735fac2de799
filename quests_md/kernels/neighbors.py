"""Cell lists: which points lie near a point. Periodic images are points of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import kernel

Array = NDArray[Any]

# Bins along z are contiguous. So thinner bins along z give fewer points in the same number of ranges.
_Z_BINS = 3


@kernel
def pad_images(positions: Array, cell: Array, inverse: Array, pbc: Array, cutoff: float) -> tuple[Array, Array]:
    """Wrap atoms into the cell and add every periodic image within `cutoff` of it.

    It returns the points (m, 3), first the n wrapped atoms, and for each point the row of its atom (m,). `inverse` is
    the inverse of `cell`. Nothing is wrapped or repeated along directions that are not periodic.
    """
    # Loops, because numba takes seconds to compile products, slices and reductions of arrays.
    n = positions.shape[0]
    points, fractional, owner = np.empty((n, 3)), np.empty((n, 3)), np.arange(n)
    for a in range(n):
        for c in range(3):
            points[a, c] = positions[a, c]
            fractional[a, c] = 0.0
            for i in range(3):
                fractional[a, c] += positions[a, i] * inverse[i, c]
    for i in range(3):
        if pbc[i]:
            for a in range(n):
                whole = np.floor(fractional[a, i])
                fractional[a, i] -= whole
                for c in range(3):
                    points[a, c] -= whole * cell[i, c]
    # One direction after the other: the second direction repeats the images of the first.
    for i in range(3):
        if pbc[i]:
            # |∇f_i| is the norm of column i: the f_i of a point within `cutoff` differs by at most cutoff·|∇f_i|.
            reach = cutoff * np.sqrt(inverse[0, i] ** 2 + inverse[1, i] ** 2 + inverse[2, i] ** 2) + 1e-9
            points, fractional, owner = _repeat(i, reach, cell[i], points, fractional, owner)
    return points, owner


@kernel
def _repeat(
    i: int, reach: float, vector: Array, points: Array, fractional: Array, owner: Array
) -> tuple[Array, Array, Array]:
    """Add the images of points along direction i whose coordinate is within `reach` of the cell."""
    m, most = points.shape[0], int(np.ceil(reach))
    total = m
    for p in range(m):
        for u in range(-most, most + 1):
            total += int(u != 0 and -reach <= fractional[p, i] + u <= 1.0 + reach)
    all_points, all_fractional = np.empty((total, 3)), np.empty((total, 3))
    all_owner = np.empty(total, np.int64)
    for p in range(m):
        all_owner[p] = owner[p]
        for c in range(3):
            all_points[p, c], all_fractional[p, c] = points[p, c], fractional[p, c]
    for p in range(points.shape[0]):
        for u in range(-most, most + 1):
            if u != 0 and -reach <= fractional[p, i] + u <= 1.0 + reach:
                for c in range(3):
                    all_points[m, c] = points[p, c] + u * vector[c]
                    all_fractional[m, c] = fractional[p, c]
                all_fractional[m, i] += u
                all_owner[m] = owner[p]
                m += 1
    return all_points, all_fractional, all_owner


@kernel
def bin_points(points: Array, cutoff: float) -> tuple[Array, Array, Array, Array, Array]:
    """Sort points into bins that are at least `cutoff` wide, along z a third of it.

    It returns the permutation `order` (m,) that sorts the points by bin, the first sorted row of every bin `start`
    (bins + 1,), the lower corner (3,), the width (3,) and the number (3,) of bins. Bins along z are contiguous.
    """
    m = points.shape[0]
    low, width, count = np.zeros(3), np.array([cutoff, cutoff, cutoff / _Z_BINS]), np.ones(3, np.int64)
    if m:
        for c in range(3):
            low[c], high = points[0, c], points[0, c]
            for p in range(m):
                low[c], high = min(low[c], points[p, c]), max(high, points[p, c])
            span = high - low[c]
            # Not many more bins than points: a gas in a wide box would waste memory.
            most = max(1, int(np.cbrt(4.0 * m)))
            count[c] = min(most, max(1, int(span / width[c])))
            width[c] = max(width[c], span / count[c] * (1.0 + 1e-12))
    bins = np.empty(m, np.int64)
    start = np.zeros(count[0] * count[1] * count[2] + 1, np.int64)
    for p in range(m):
        b = 0
        for c in range(3):
            b = b * count[c] + min(count[c] - 1, int((points[p, c] - low[c]) / width[c]))
        bins[p] = b
        start[b + 1] += 1
    for b in range(start.shape[0] - 1):
        start[b + 1] += start[b]
    order = np.empty(m, np.int64)
    position = start.copy()
    for p in range(m):
        order[position[bins[p]]] = p
        position[bins[p]] += 1
    return order, start, low, width, count


@kernel
def adjacent_ranges(point: Array, start: Array, low: Array, width: Array, count: Array, ranges: Array) -> int:
    """Write the (first, last) sorted rows of the bins around `point` into `ranges` (9, 2); return how many."""
    x = min(count[0] - 1, int((point[0] - low[0]) / width[0]))
    y = min(count[1] - 1, int((point[1] - low[1]) / width[1]))
    z = min(count[2] - 1, int((point[2] - low[2]) / width[2]))
    n = 0
    for i in range(max(0, x - 1), min(count[0], x + 2)):
        for j in range(max(0, y - 1), min(count[1], y + 2)):
            row = (i * count[1] + j) * count[2]
            ranges[n, 0] = start[row + max(0, z - _Z_BINS)]
            ranges[n, 1] = start[row + min(count[2], z + _Z_BINS + 1)]
            n += 1
    return n


@kernel
def minimum_distances(
    points: Array,
    kinds: Array,
    centres: Array,
    bins: tuple[Array, Array, Array, Array, Array],
    cutoff: float,
    out: Array,
) -> None:
    """Lower ``out[a, b]`` to the smallest distance up to `cutoff` from a centre of kind a to one of kind b."""
    order, start, low, width, count = bins
    ranges = np.empty((9, 2), np.int64)
    for i in centres:
        for r in range(adjacent_ranges(points[i], start, low, width, count, ranges)):
            for s in range(ranges[r, 0], ranges[r, 1]):
                j = order[s]
                if j == i:
                    continue
                dx = points[j, 0] - points[i, 0]
                dy = points[j, 1] - points[i, 1]
                dz = points[j, 2] - points[i, 2]
                distance = np.sqrt(dx * dx + dy * dy + dz * dz)
                if distance <= cutoff and distance < out[kinds[i], kinds[j]]:
                    out[kinds[i], kinds[j]] = distance


@kernel
def linked_pairs(
    points: Array, owner: Array, n: int, bins: tuple[Array, Array, Array, Array, Array], reach: float
) -> Array:
    """Return the pairs (m, 2) of atoms i ≤ j, once for each image of j that lies at most `reach` from i.

    `points` and `owner` are those of `pad_images`; the first n points are the atoms. An atom is not its own image.
    """
    order, start, low, width, count = bins
    ranges = np.empty((9, 2), np.int64)
    pairs = np.empty((max(16, 8 * n), 2), np.int64)
    m = 0
    for i in range(n):
        for r in range(adjacent_ranges(points[i], start, low, width, count, ranges)):
            for s in range(ranges[r, 0], ranges[r, 1]):
                j = order[s]
                if j == i or owner[j] < i:
                    continue
                dx = points[j, 0] - points[i, 0]
                dy = points[j, 1] - points[i, 1]
                dz = points[j, 2] - points[i, 2]
                if dx * dx + dy * dy + dz * dz <= reach * reach:
                    if m == pairs.shape[0]:
                        larger = np.empty((2 * m, 2), np.int64)
                        larger[:m] = pairs
                        pairs = larger
                    pairs[m, 0], pairs[m, 1] = i, owner[j]
                    m += 1
    return pairs[:m]
