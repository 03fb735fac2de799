"""Cell lists: which points lie near a point. Periodic images are points of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel

Array = NDArray[Any]

# Bins along z are contiguous. So thinner bins along z give fewer points in the same number of ranges.
_Z_BINS = 3


@kernel
def total(positions: Array) -> float:
    """Return the sum of all coordinates, which is a finite number only if all are."""
    added = 0.0
    for a in range(positions.shape[0]):
        added += positions[a, 0] + positions[a, 1] + positions[a, 2]
    return added


@kernel
def pad_images(positions: Array, cell: Array, inverse: Array, pbc: Array, cutoff: float) -> tuple[Array, Array]:
    """Wrap atoms into the cell and add every periodic image within `cutoff` of it.

    It returns the points (m, 3), first the n wrapped atoms, and for each point the row of its atom (m,). `inverse` is
    the inverse of `cell`. Nothing is wrapped or repeated along directions that are not periodic.
    """
    # Loops, because numba takes seconds to compile products, slices and reductions of arrays.
    n, total = positions.shape[0], 0
    wrapped, first, last = np.empty((n, 3)), np.zeros((n, 3), np.int64), np.zeros((n, 3), np.int64)
    reach = np.empty(3)
    for i in range(3):
        # |∇f_i| is the norm of column i: the f_i of a point within `cutoff` differs by at most cutoff·|∇f_i|.
        reach[i] = cutoff * np.sqrt(inverse[0, i] ** 2 + inverse[1, i] ** 2 + inverse[2, i] ** 2) + 1e-9
    for a in range(n):
        x, y, z, images = positions[a, 0], positions[a, 1], positions[a, 2], 1
        for i in range(3):
            if pbc[i]:
                fraction = positions[a, 0] * inverse[0, i] + positions[a, 1] * inverse[1, i]
                fraction += positions[a, 2] * inverse[2, i]
                whole = np.floor(fraction)
                fraction -= whole
                if not 0.0 <= fraction <= 1.0:  # so far away that the fraction is no number
                    continue
                x, y, z = x - whole * cell[i, 0], y - whole * cell[i, 1], z - whole * cell[i, 2]
                first[a, i] = int(np.ceil(-reach[i] - fraction))
                last[a, i] = int(np.floor(1.0 + reach[i] - fraction))
                images *= last[a, i] - first[a, i] + 1
        wrapped[a, 0], wrapped[a, 1], wrapped[a, 2] = x, y, z
        total += images
    points, owner = _repeat(wrapped, cell, first, last, total)
    return points, owner


@kernel
def _repeat(wrapped: Array, cell: Array, first: Array, last: Array, total: int) -> tuple[Array, Array]:
    """Return the atoms, then all images of each: those from `first` to `last` along the three directions."""
    n = m = wrapped.shape[0]
    points, owner = np.empty((total, 3)), np.empty(total, np.int64)
    for a in range(n):
        owner[a] = a
        for c in range(3):
            points[a, c] = wrapped[a, c]
        for i in range(first[a, 0], last[a, 0] + 1):
            for j in range(first[a, 1], last[a, 1] + 1):
                x, y, z = (
                    wrapped[a, 0] + i * cell[0, 0] + j * cell[1, 0],
                    wrapped[a, 1] + i * cell[0, 1] + j * cell[1, 1],
                    wrapped[a, 2] + i * cell[0, 2] + j * cell[1, 2],
                )
                for k in range(first[a, 2], last[a, 2] + 1):
                    if i != 0 or j != 0 or k != 0:
                        owner[m] = a
                        points[m, 0], points[m, 1] = x + k * cell[2, 0], y + k * cell[2, 1]
                        points[m, 2] = z + k * cell[2, 2]
                        m += 1
    return points, owner


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
            lowest, highest = points[0, c], points[0, c]
            for p in range(m):
                lowest, highest = min(lowest, points[p, c]), max(highest, points[p, c])
            low[c], span = lowest, highest - lowest
            # Not many more bins than points: a gas in a wide box would waste memory.
            most = max(1, int(np.cbrt(4.0 * m)))
            count[c] = min(most, max(1, int(span / width[c])))
            width[c] = max(width[c], span / count[c] * (1.0 + 1e-12))
    bins = np.empty(m, np.int64)
    start = np.zeros(count[0] * count[1] * count[2] + 1, np.int64)
    # In variables, since the compiler cannot know that what is written below leaves the arrays as they are.
    a, b, c = count[0], count[1], count[2]
    low_x, low_y, low_z = low[0], low[1], low[2]
    per_x, per_y, per_z = 1.0 / width[0], 1.0 / width[1], 1.0 / width[2]
    for p in range(m):
        x = min(a - 1, int((points[p, 0] - low_x) * per_x))
        y = min(b - 1, int((points[p, 1] - low_y) * per_y))
        z = min(c - 1, int((points[p, 2] - low_z) * per_z))
        bins[p] = (x * b + y) * c + z
        start[bins[p] + 1] += 1
    for b in range(start.shape[0] - 1):
        start[b + 1] += start[b]
    order = np.empty(m, np.int64)
    position = start.copy()
    for p in range(m):
        order[position[bins[p]]] = p
        position[bins[p]] += 1
    return order, start, low, width, count


@inlined
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
