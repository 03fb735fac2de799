"""A periodic cut-out: a smaller cell with edges along those of the parent's, and boundaries that fit."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._cutout_parent import TOLERANCE, Parent, Piece, Points

__all__ = ["OVERLAP", "cell"]

OVERLAP = 0.9  # times the smallest distance known of a pair: nearer atoms overlap
_STRETCH = 1.25  # an edge is at most this much longer than it must be, to meet a period of the structure
_FITS = 0.5  # a longer edge is taken where it lowers the mismatch to this share
_LAYER = 3.0  # Å; thickness of what is compared across a boundary
_MISMATCH = 2.0  # Å; a partner farther than this is none
_COARSE, _FINE = 0.1, 0.01  # Å; steps of the search for an edge


class _Box(NamedTuple):
    """Around atom `centre`: what is kept whole, what is cut, and how far faces must be from each other, in Å."""

    centre: int
    reach: float
    whole: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    least: float


def cell(
    parent: Parent, centre: int, radius: float, margin: float, vacuum: float, closest: NDArray[np.float64]
) -> Piece:
    """Cut a cell that holds all atoms within radius + margin of an atom.

    A direction is kept whole, with its periodicity, where the parent is hardly longer than the cut-out must be. Along
    directions that are not periodic `vacuum` (Å) is left between images. `closest` (119, 119) holds the smallest
    distance of each pair of elements.
    """
    kinds = parent.frame.distinct_numbers
    # Faces this much farther apart keep the atoms within reach from overlapping one another: these cannot be removed.
    slack = OVERLAP * float(closest[np.ix_(kinds, kinds)].max())
    least = 2.0 * (radius + margin) + slack
    whole = parent.pbc & (parent.heights <= _STRETCH * least)
    box = _Box(centre, radius + margin, whole, parent.pbc & ~whole, least)
    edges = np.array([_edge(parent, box, i) if box.cut[i] else np.inf for i in range(3)])
    # An atom is taken from beyond a face only where its image stays beyond the reach, too.
    beyond = np.minimum(edges / 2.0 - box.reach - 1e-6, slack)
    points = parent.around(centre, np.where(parent.pbc, edges / 2.0 + beyond, box.reach), once=whole)
    outside = (np.abs(points.offsets @ parent.normals) - edges / 2.0).max(axis=1)
    distances = _nearest(parent, box, points)
    vectors = np.where(box.cut, edges / parent.heights, 1.0)[:, None] * parent.cell
    kept = _that_fit(parent, box, points, vectors, outside, distances, closest)
    everything = not box.cut.any() and len(points.rows) == len(parent.rows)
    vectors, positions = _placed(parent, points.offsets[kept], vectors, vacuum)
    return Piece(
        rows=points.rows[kept],
        positions=positions,
        cell=vectors,
        pbc=parent.pbc,
        distances=distances[kept],
        core=(distances[kept] <= radius + TOLERANCE) | everything,
        whole=everything,
        removed=int(np.count_nonzero(~kept & (outside <= 0.0))),
        filled=int(np.count_nonzero(kept & (outside > 0.0))),
    )


def _edge(parent: Parent, box: _Box, i: int) -> float:
    """Return how far apart (Å) the faces across direction i shall be: where the structure nearly repeats itself.

    The layer at one face is moved along the edge; its mismatch is the mean distance to the nearest atoms of the same
    element there. Without a period in range (a melt, another orientation) the edge is as short as it may be.
    """
    from scipy.spatial import cKDTree

    longest = _STRETCH * box.least
    reach = np.where(box.cut, box.least / 2.0, parent.heights / 2.0) + _MISMATCH
    reach[i] = longest - box.least / 2.0 + _LAYER + _MISMATCH
    points = parent.around(box.centre, np.where(parent.pbc, reach, box.reach))
    planes = points.offsets @ parent.normals
    layer = (np.abs(planes) <= np.where(parent.pbc, reach - _MISMATCH, box.reach)).all(axis=1)
    layer &= np.abs(planes[:, i] + box.least / 2.0) <= _LAYER / 2.0
    if not layer.any():
        return box.least
    numbers = parent.frame.numbers[points.rows]
    trees = [(cKDTree(points.offsets[numbers == z]), points.offsets[layer & (numbers == z)]) for z in set(numbers)]
    direction = parent.cell[i] / parent.heights[i]

    def mismatch(edge: float) -> float:
        found = [tree.query(part + edge * direction, distance_upper_bound=_MISMATCH)[0] for tree, part in trees]
        return float(np.minimum(np.concatenate(found), _MISMATCH).mean())

    best = min(np.arange(box.least, longest, _COARSE), key=mismatch)
    around = np.arange(best - _COARSE, best + _COARSE, _FINE)
    best = min(around[(around >= box.least) & (around <= longest)], key=mismatch, default=best)
    return float(best) if mismatch(best) <= _FITS * mismatch(box.least) else box.least


def _nearest(parent: Parent, box: _Box, points: Points) -> NDArray[np.float64]:
    """Return the distances from the centre, of the nearest of all images along directions that are kept whole."""
    distances = points.distances
    if not box.whole.any():
        return distances
    place = {key: p for p, key in enumerate(map(tuple, np.column_stack([points.rows, points.shifts]).tolist()))}
    shift_of_row = dict(zip(points.rows.tolist(), points.shifts.tolist(), strict=True))
    sphere = parent.sphere(box.centre, box.reach)
    for row, shift, distance in zip(sphere.rows.tolist(), sphere.shifts.tolist(), sphere.distances, strict=True):
        home = [shift_of_row[row][i] if box.whole[i] else shift[i] for i in range(3)]
        p = place[(row, *home)]
        distances[p] = min(distances[p], distance)
    return distances


def _that_fit(
    parent: Parent,
    box: _Box,
    points: Points,
    vectors: NDArray[np.float64],
    outside: NDArray[np.float64],
    distances: NDArray[np.float64],
    closest: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Choose the points that do not overlap images across the new boundaries, the innermost first.

    All within reach are kept. Atoms from beyond the faces close gaps there: such a one must be as far from images as it
    was from its neighbours.
    """
    kept = distances <= box.reach + TOLERANCE
    if not box.cut.any():
        return np.ones(len(kept), dtype=bool)
    assert parent.frame.ids is not None
    numbers, ids = parent.frame.numbers[points.rows], parent.frame.ids[points.rows]
    kinds = np.unique(numbers)
    own = _neighbour_distances(parent, box, points)
    own = np.where((outside > 0.0) & np.isfinite(own), OVERLAP * own, 0.0)
    most = max(OVERLAP * float(closest[np.ix_(kinds, kinds)].max()), float(own.max()))
    first, second, lengths = _across(parent, box, points.offsets, vectors, most)
    limits = np.maximum(OVERLAP * closest[numbers[first], numbers[second]], own[first])
    order = np.argsort(first[lengths < limits], kind="stable")
    first, second = first[lengths < limits][order], second[lengths < limits][order]
    start = np.searchsorted(first, np.arange(len(kept) + 1))
    for p in np.lexsort((ids, outside.round(6))):
        kept[p] = kept[p] or not kept[second[start[p] : start[p + 1]]].any()
    return kept


def _neighbour_distances(parent: Parent, box: _Box, points: Points) -> NDArray[np.float64]:
    """Return the distance of every point from its nearest neighbour in the parent, in Å; inf if it has none near."""
    from scipy.spatial import cKDTree

    reach = np.abs(points.offsets @ parent.normals).max(axis=0) + box.least - 2.0 * box.reach
    around = parent.around(box.centre, reach)
    distances, _ = cKDTree(around.offsets).query(points.offsets, k=[2])
    return np.asarray(distances)[:, 0]


def _across(
    parent: Parent, box: _Box, offsets: NDArray[np.float64], vectors: NDArray[np.float64], most: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs nearer than `most` that meet across a new boundary, both ways, and their lengths, in Å."""
    from scipy.spatial import cKDTree

    # In directions kept whole, the two can be up to an edge and `most` apart.
    repeats = np.where(box.cut, 1, np.where(box.whole, 1 + np.ceil(most / parent.heights), 0)).astype(int)
    tree = cKDTree(offsets)
    found = []
    for n in itertools.product(*(range(-m, m + 1) for m in repeats)):
        if any(np.array(n)[box.cut]):
            images = cKDTree(offsets + n @ vectors)
            near = tree.sparse_distance_matrix(images, most, output_type="ndarray")
            found.append(near)
    pairs = np.concatenate(found)
    return pairs["i"], pairs["j"], pairs["v"]


def _placed(
    parent: Parent, offsets: NDArray[np.float64], vectors: NDArray[np.float64], vacuum: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cell with vacuum along open directions, and the positions in it: (3, 3) and (n, 3), in Å."""
    planes = offsets @ parent.normals
    low, high = planes.min(axis=0), planes.max(axis=0)
    heights = np.where(parent.pbc, parent.heights, high - low + vacuum)
    vectors = np.where(parent.pbc, 1.0, heights / parent.heights)[:, None] * vectors
    fractional = offsets @ np.linalg.inv(vectors)
    middle = np.where(parent.pbc, 0.0, (low + high) / (2.0 * heights))
    fractional += 0.5 - middle
    fractional -= np.where(parent.pbc, np.floor(fractional), 0.0)
    return vectors, fractional @ vectors
