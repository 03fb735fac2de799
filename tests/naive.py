"""Slow, obvious twins of the kernels: plain numpy, brute force, the formulas as written in docs/method.md.

Twins of inner loops add up in long double, so that what tests measure is the rounding of the kernel.
"""

from __future__ import annotations

import math
import statistics
from itertools import product

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

WIDE = np.longdouble


def images(positions, cell, pbc, cutoff):
    """Return the atoms and every periodic image that can lie within `cutoff` of one, and the atom of each.

    The first rows are the atoms where they are. Nothing is wrapped.
    """
    vectors = np.asarray(cell, float).reshape(3, 3)[np.asarray(pbc, bool)]
    extent = cdist(positions, positions).max()
    # A lattice vector n·A has |n_i| ≤ |n·A| ‖pinv(A)_i‖; none that counts is longer than cutoff + extent.
    most = np.ceil((cutoff + extent) * np.linalg.norm(np.linalg.pinv(vectors), axis=0)).astype(int)
    shifts = sorted(product(*(range(-m, m + 1) for m in most)), key=lambda n: np.any(n))
    points = np.concatenate([positions + np.asarray(n, float) @ vectors for n in shifts])
    return points, np.tile(np.arange(len(positions)), len(shifts))


def neighbours(points, i, cutoff):
    """Return the vectors from point i to all others within `cutoff`, nearest first."""
    vectors = np.delete(points - points[i], i, axis=0)
    r = np.linalg.norm(vectors, axis=1)
    order = np.argsort(r, kind="stable")
    return vectors[order][r[order] < cutoff]


def describe(vectors, k, cutoff):
    """Return [x1, x2] of an environment, given the vectors to its neighbours, nearest first."""
    vectors = vectors[:k]
    n = len(vectors)
    r = np.linalg.norm(vectors, axis=1)
    w = (1 - (r / cutoff) ** 2) ** 2
    x1 = np.zeros(k)
    x1[:n] = w / r
    matrix = np.zeros((k, k))
    for j in range(n):
        for m in range(n):
            if j != m:
                matrix[j, m] = np.sqrt(w[j] * w[m]) / np.linalg.norm(vectors[j] - vectors[m])
    x2 = np.sort(matrix, axis=1)[:, 1:].mean(axis=0)[::-1]
    return np.concatenate([x1, x2])


def sorted_sums(near, n, size):
    """Return the sums over the columns of A_jl = u_j u_l / r_jl, each sorted, largest first; near is (x, y, z, u)."""
    matrix, near = np.zeros((size, size), WIDE), np.asarray(near, WIDE)
    for j in range(n):
        for m in range(n):
            if j != m:
                distance = np.sqrt(((near[:3, j] - near[:3, m]) ** 2).sum())
                matrix[j, m] = near[3, j] * near[3, m] / distance
    return np.sort(matrix, axis=0)[::-1].sum(axis=1)


def near(vectors, r2, cutoff):
    """Return (x, y, z, u) of neighbours, then empty places; and x1. `vectors` are (3, n), `r2` their squares."""
    n = len(r2)
    made = np.zeros((4, 32), WIDE)
    made[0] = cutoff * (2 + np.arange(32))
    made[:3, :n], made[3, :n] = vectors, 1 - np.asarray(r2, WIDE) / cutoff**2
    return made, made[3, :n] ** 2 / np.sqrt(np.asarray(r2, WIDE))


def inside(points, first, last, centre, limit):
    """Return the columns first..last of points (3, m), less `centre`, whose r² from it is below `limit`."""
    r2 = ((points.T - points[:, centre]) ** 2).sum(axis=1)
    return [s for s in range(first, last) if s != centre and r2[s] < limit]


def ranks(values):
    """Return how many values are less than each."""
    return np.array([np.sum(values < value) for value in values], dtype=int)


def descriptors(positions, cell, pbc, k, cutoff):
    """Return the descriptors of all atoms."""
    points, _ = images(positions, cell, pbc, cutoff)
    rows = [describe(neighbours(points, i, cutoff), k, cutoff) for i in range(len(positions))]
    return np.array(rows).reshape(len(positions), 2 * k - 1)


def species(atoms, k, cutoff, species, elements):
    """Return the rows of all atoms, as `species` says; `elements` are the atomic numbers of the blocks, in order."""
    points, owner = images(atoms.positions, atoms.cell, atoms.pbc, cutoff)
    numbers = atoms.numbers[owner]
    rows = []
    for i, z in enumerate(atoms.numbers):
        own = [numbers == e if e == z else np.zeros(len(numbers), bool) for e in elements]
        masks = {
            "ignore": [numbers > 0],
            "centre": [numbers > 0],
            "full": [numbers > 0, *own] if len(elements) > 1 else [numbers > 0],
            "neighbours": [numbers == e for e in elements],
        }[species]
        row = [[z]] if species in ("centre", "neighbours") else []
        for mask in masks:  # the centre comes first
            seen = np.concatenate([points[[i]], points[mask & (np.arange(len(points)) != i)]])
            row.append(describe(neighbours(seen, 0, cutoff), k, cutoff))
        rows.append(np.concatenate(row))
    return np.array(rows)


def minimum_distances(positions, cell, pbc, kinds, cutoff):
    """Return the smallest distance up to `cutoff` between atoms of each pair of kinds, inf where none is."""
    points, owner = images(positions, cell, pbc, cutoff)
    out = np.full((max(kinds) + 1, max(kinds) + 1), np.inf)
    for i in range(len(positions)):
        for j, r in enumerate(np.linalg.norm(points - points[i], axis=1)):
            if j != i and r <= cutoff:
                pair = kinds[i], kinds[owner[j]]
                out[pair] = min(out[pair], r)
    return out


def log_kernel_sum(query, reference, bandwidth):
    """Return ln Σ_j exp(-‖q - r_j‖² / 2h²) of every query."""
    if len(reference) == 0:
        return np.full(len(query), -np.inf)
    return logsumexp(-0.5 * cdist(query, reference, "sqeuclidean") / bandwidth**2, axis=1)


def information(x, bandwidth):
    """Return dH of a dataset against itself, its entropy and its diversity."""
    kernel = np.exp(-0.5 * cdist(x, x, "sqeuclidean") / bandwidth**2)
    sums = kernel.sum(axis=1)
    return -np.log(sums), -np.mean(np.log(sums / len(x))), np.log(np.sum(1.0 / sums))


def log_likelihood(x, bandwidth, same):
    """Return the mean log-likelihood of an environment given all others that are farther than `same` from it."""
    varying = x[:, np.ptp(x, axis=0) > same]
    found = []
    for row in varying:
        squared = ((varying - row) ** 2).sum(axis=1)
        others = squared[squared > same**2]
        log_sum = logsumexp(-0.5 * others / bandwidth**2)
        found.append(log_sum - np.log(len(others) * (np.sqrt(2.0 * np.pi) * bandwidth) ** len(row)))
    return np.mean(found)


def novelty(rows, reference, kept, select, bandwidth):
    """Return the novelty of environments above `select` against a reference and kept frames; and how many are novel."""
    rows = rows[-log_kernel_sum(rows, reference, bandwidth) > select]
    if not len(rows):
        return np.empty(0), 0
    values = -log_kernel_sum(rows, np.concatenate([reference, *kept]), bandwidth)
    return values, np.sum(values > select)


def squared_distances(query, rows):
    """Return the squared distances of a query from rows."""
    return ((np.asarray(rows, WIDE) - np.asarray(query, WIDE)) ** 2).sum(axis=1)


def local_residuals(query, reference, residuals, bandwidth, squarings=0):
    """Return s(q) = Σ_j w_j e_j / Σ_j w_j in wide precision; w_j is y¹⁶ + 2⁻¹⁸ y, and y_j a power of the kernel."""
    known = ~np.isnan(residuals)
    reference, errors = np.asarray(reference, WIDE)[known], np.asarray(residuals, WIDE)[known]
    found = []
    for row in np.asarray(query, WIDE):
        y = -(2.0 ** (squarings - 1)) * ((reference - row) ** 2).sum(axis=1) / (2.0 * WIDE(bandwidth) ** 2)
        logs = np.logaddexp(16.0 * y, y - 18.0 * np.log(WIDE(2.0)))
        weights = np.exp(logs - logs.max())
        found.append((weights * errors).sum() / weights.sum())
    return np.array(found)


def add_panels(queries, numbers, tile, first):
    """Return the terms of six queries with the references of panels, (6, panels·width), as `add_panels` adds them up.

    A term is 0 if its exponent is too small. A panel whose exponents are too small in the first coordinates alone, for
    all six, has no others, because those of all coordinates are smaller.
    """
    queries, numbers, tile = (np.asarray(array, np.longdouble) for array in (queries, numbers, tile))
    a, terms = queries.reshape(-1, 6).T, []
    for panel in tile:
        near = a[:, :first] @ panel[2 : 2 + first] + panel[0] - numbers[0][:, None]
        exponents = near + a[:, first:] @ panel[2 + first :] + panel[1] - numbers[1][:, None]
        assert np.all(exponents <= near + 1e-6)
        terms.append(np.where(exponents > numbers[2][:, None], np.exp2(exponents), 0.0))
    return np.hstack(terms)


def squares(rows, tile):
    """Return the squared distances of six rows, coordinate by coordinate, from the columns of a tile but the last."""
    columns = np.concatenate(list(np.asarray(tile, WIDE)), axis=1)[:-1]
    rows = np.asarray(rows, WIDE).reshape(-1, 6).T[:, :-1]
    return ((rows[:, :, None] - columns) ** 2).sum(axis=1)


def powers(x, shifts):
    """Return 2^(x_rj + shift_r)."""
    return np.exp2(np.asarray(x, WIDE) + np.asarray(shifts, WIDE)[:, None])


def sums_exp2(x, shifts):
    """Return Σ_j 2^(x_j + shift) over every row of x, each with its shift."""
    return powers(x, shifts).sum(axis=1)


def with_ghosts(atoms, mine, cutoff):
    """Return the positions and rows of `atoms` on a rank that owns the rows `mine`: those, then ghosts.

    Ghosts are all atoms of other ranks and all periodic images within `cutoff` of one of its atoms.
    """
    points, owner = images(atoms.positions, atoms.cell, atoms.pbc, cutoff)
    others = np.delete(np.arange(len(points)), mine)
    if len(mine):
        others = others[(cdist(points[others], points[mine]) <= cutoff).any(axis=1)]
    rows = np.concatenate([mine, others]).astype(int)
    return points[rows], owner[rows]


def order_of(rows, places=None):
    """Return the places of rows, bisected across their longest axis into aligned parts of 32·2^j, down to 32 rows."""
    places = np.arange(len(rows)) if places is None else places
    if len(places) <= 32:
        return places
    left = max(32 * 2**j for j in range(40) if 32 * 2**j < len(places))
    centred = rows[places] - rows[places].mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    places = places[np.argsort(along)]
    return np.concatenate([order_of(rows, places[:left]), order_of(rows, places[left:])])


def sum_left_out(rows, groups, bandwidth):
    """Return ln K of every row over the rows of other groups, one pair at a time."""
    out = []
    for q, group in zip(rows, groups, strict=True):
        squared = np.array([((q - r) ** 2).sum() for r in rows[groups != group]])
        out.append(logsumexp(-squared / (2 * bandwidth**2)) if len(squared) else -np.inf)
    return np.array(out)


def compressed(frames, size, bandwidth, reference=None, method="msc"):
    """Return the frames (rows of each) that the greedy rule takes, every score computed anew for every choice."""
    chosen = []
    own = [-np.inf] * len(frames)
    for f, rows in enumerate(frames):
        if len(rows):
            own[f] = np.log(len(rows)) - log_kernel_sum(rows, rows, bandwidth).mean()
    while len(chosen) < min(size, sum(len(rows) > 0 for rows in frames)):
        scores = np.full(len(frames), -np.inf)
        known = [frames[f] for f in chosen] + ([] if reference is None else [reference])
        for f, rows in enumerate(frames):
            if f in chosen or not len(rows):
                continue
            if not known:
                scores[f] = own[f]
            elif method == "msc":
                scores[f] = own[f] - log_kernel_sum(rows, np.concatenate(known), bandwidth).min()
            else:
                scores[f] = min(cdist(rows, other).mean() for other in known)
        chosen.append(int(np.flatnonzero(scores >= scores.max() - 1e-10 * max(1.0, abs(scores.max())))[0]))
    return chosen


def left_out_entropies(x, block_of, bandwidth):
    """Return the entropy of x without each block of rows, computed anew for each."""
    found = []
    for block in np.unique(block_of):
        rest = x[block_of != block]
        found.append(np.log(len(rest)) - log_kernel_sum(rest, rest, bandwidth).mean())
    return np.array(found)


def nuclei(positions, cell, pbc, inside, link):
    """Return the nucleus of each atom, 1 for the largest and 0 for none, and the sizes: breadth first, all images."""
    rows = np.flatnonzero(inside)
    found, seen = [], set()
    if len(rows):
        points, owner = images(positions[rows], cell, pbc, link)
    for start in range(len(rows)):
        if start in seen:
            continue
        members = [start]
        seen.add(start)
        for i in members:  # grows while it is read
            near = owner[np.linalg.norm(points - positions[rows[i]], axis=1) <= link]
            for j in dict.fromkeys(near.tolist()):
                if j not in seen:
                    seen.add(j)
                    members.append(j)
        found.append(members)
    found.sort(key=lambda members: (-len(members), min(members)))
    numbers = np.zeros(len(positions), int)
    for number, members in enumerate(found, start=1):
        numbers[rows[members]] = number
    return numbers, [len(members) for members in found]


def linked_mean(positions, cell, pbc, values, link):
    """Return the mean of the values of each atom and of all images of atoms within `link` of it."""
    points, owner = images(positions, cell, pbc, link)
    near = np.linalg.norm(points - positions[:, None], axis=-1) <= link  # the atom itself too
    return np.array([values[owner[row]].mean() for row in near])


def count(dH, ids, numbers, select, halt, sample, edges):
    """Return what `kernels.tally.count` returns, and the histogram."""
    dH, chosen = np.asarray(dH), np.asarray(dH)[sample]
    worst = max(zip(dH.tolist(), [-i for i in ids.tolist()], strict=True), default=(-np.inf, 1))
    counts = [int(np.sum(dH > limits[numbers])) for limits in (select, halt)]
    bins = np.clip(np.searchsorted(edges, chosen, side="right") - 1, 0, len(edges) - 2)
    histogram = np.bincount(bins, minlength=len(edges) - 1)
    return (worst[0], -worst[1], *counts, len(chosen), chosen.sum()), histogram


def in_window(number, low, width):
    """Return whether the hash of a whole number, in 64 bits as the processor does it, lies in a window."""
    mixed = number * 0x9E3779B97F4A7C15 % 2**64
    mixed ^= mixed >> 32
    mixed = mixed * 0xD6E8FEB86659FD93 % 2**64
    return ((mixed >> 32) - low) % 2**32 < width


def nearest_group(query, rows, size, errors):
    """Return the mean of the known errors of the group of `size` rows whose mean is nearest to each query."""
    groups = [slice(first, first + size) for first in range(0, len(rows), size)]
    groups = [group for group in groups if not np.isnan(errors[group]).all()]
    means = np.array([np.asarray(rows[group], WIDE).mean(axis=0) for group in groups])
    nearest = [int(squared_distances(row, means).argmin()) for row in query]
    return np.array([np.nanmean(errors[groups[i]]) for i in nearest])


def delta_entropy_gradient(query, reference, bandwidth):
    """Return the derivative of dH of one query by its descriptor: Σ p_j (q − r_j) / h², with p_j = K_j / Σ K."""
    away = query - reference
    exponents = -0.5 * (away**2).sum(axis=1) / bandwidth**2
    weights = np.exp(exponents - exponents.max())
    return (weights / weights.sum()) @ away / bandwidth**2


def suggested_bandwidth(rows, frames, numbers):
    """Return the median over all rows of the distance to the nearest row of its element in a frame that is not near."""
    apart, nearest = max(1, math.ceil((max(frames) + 1) / 20)), []
    for i, row in enumerate(rows):
        far = [
            math.dist(row, other)
            for j, other in enumerate(rows)
            if abs(frames[i] - frames[j]) >= apart and numbers[i] == numbers[j]
        ]
        nearest += [min(far)] if far else []
    return statistics.median(nearest)
