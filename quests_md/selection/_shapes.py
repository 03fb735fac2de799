"""Cut a piece out of a frame: a smaller periodic cell, or a cluster in vacuum."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..descriptors import cell_of, minimum_distances
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame
from ..index import Index

__all__ = ["COVALENT", "Parent", "Piece", "cut_cell", "cut_cluster", "find_smallest_distances", "format_formula"]

# -- distances of elements ---------------------------------------------------------------------------------------------

# Covalent radii in Å, by atomic number: B. Cordero et al., Dalton Trans. 2832 (2008); 2 Å for elements without one.
_RADII = """
0.20 0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02
1.06 2.03 1.76 1.70 1.60 1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20
1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46 1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39
1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92 1.92 1.89 1.90 1.87 1.87
1.75 1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50 2.60 2.21 2.15
2.06 2.00 1.96 1.90 1.87 1.80 1.69
"""
COVALENT: NDArray[np.float64] = np.full(len(SYMBOLS), 2.0)
COVALENT[: len(_RADII.split())] = np.array(_RADII.split(), dtype=np.float64)


def find_smallest_distances(frame: Frame, cutoff: float, index: Index | None) -> NDArray[np.float64]:
    """Return the smallest known distance (Å) of each pair of elements, (119, 119) by atomic number.

    With an index it is the smallest distance in the index, without one the smallest distance in the frame. For a pair
    that does not occur there, it is the sum of the covalent radii.
    """
    out = np.full((len(SYMBOLS), len(SYMBOLS)), np.inf)
    if index is None:
        minimum_distances(frame, cutoff, frame.numbers, out)
        out = np.minimum(out, out.T)
    else:
        known = [SYMBOLS.index(symbol) for symbol in index.elements]
        out[np.ix_(known, known)] = index.pair_distances
    sums = COVALENT[:, None] + COVALENT[None, :]
    return np.where(np.isfinite(out), out, sums)


def format_formula(numbers: NDArray[np.int64]) -> str:
    """Return the number of atoms of each element, in the order of atomic numbers, as ``O64 Si32``."""
    values, counts = np.unique(numbers, return_counts=True)
    return " ".join(f"{SYMBOLS[z]}{n}" for z, n in zip(values, counts, strict=True))


# -- the frame and its pieces ------------------------------------------------------------------------------------------

_TOLERANCE = 1e-9  # Å: an atom exactly at a radius is inside, in spite of rounding


class Points(NamedTuple):
    """Atoms and images: rows in the parent (n,), cells between atom and image (n, 3), offsets (n, 3) in Å."""

    rows: NDArray[np.int64]
    shifts: NDArray[np.int64]
    offsets: NDArray[np.float64]

    def take(self, which: NDArray[np.generic]) -> Points:
        """Return some of them, given a mask or places."""
        return Points(self.rows[which], self.shifts[which], self.offsets[which])

    @property
    def distances(self) -> NDArray[np.float64]:
        """Distances (n,) from the point, in Å."""
        distances: NDArray[np.float64] = np.linalg.norm(self.offsets, axis=1)
        return distances


class Piece(NamedTuple):
    """What was cut out, before it becomes a frame.

    Parameters
    ----------
    rows
        (n,) rows in the parent; −1 for an added hydrogen.
    positions
        (n, 3), in Å.
    cell, pbc
        Cell (3, 3) in Å and periodicity (3,) of the piece.
    distances
        (n,) distances from the centre, in Å; in directions that were kept whole, those of the nearest image.
    core
        (n,) bool: which atoms are the core.
    whole
        Whether the piece is the whole parent with its periodicity. Then all atoms are core.
    removed, filled, hydrogens, dangling
        Four numbers: atoms in the box that were left out because they overlap; atoms that were added from outside the
        box; hydrogens on cut bonds; cut bonds without a hydrogen.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    distances: NDArray[np.float64]
    core: NDArray[np.bool_]
    whole: bool
    removed: int = 0
    filled: int = 0
    hydrogens: int = 0
    dangling: int = 0


class Parent:
    """A whole frame with a complete lattice: missing cell vectors are added.

    Parameters
    ----------
    frame
        The frame, without ghosts. Sites of atomic number 0 are left out of everything.
    reach
        Largest distance, in Å, that will be needed.

    Attributes
    ----------
    heights
        (3,) distance between opposite faces of the cell, in Å.
    normals
        (3, 3) unit vectors across the faces, in columns: ``offsets @ normals`` are distances along them.

    Raises
    ------
    FrameError
        The cell is singular or not finite.
    InputError
        The frame has ghosts, or positions that are not finite.
    """

    def __init__(self, frame: Frame, reach: float) -> None:
        if frame.has_ghosts:
            raise InputError("cut-outs are made of whole frames, not of one rank's atoms and ghosts: gather them first")
        if not np.isfinite(frame.positions).all():
            raise InputError(f"step {frame.step}: some positions are not finite numbers: no cut-out can be made of it")
        self.frame = frame
        self.cell, inverse, self.pbc = cell_of(frame, reach)
        self.heights: NDArray[np.float64] = 1.0 / np.linalg.norm(inverse, axis=0)
        self.normals: NDArray[np.float64] = inverse * self.heights
        self.rows = np.flatnonzero(frame.numbers)
        self._fractional = frame.positions[self.rows] @ inverse

    def find_around(self, centre: int, reach: NDArray[np.float64], once: NDArray[np.bool_] | None = None) -> Points:
        """Return the atoms and images in a box around an atom.

        `centre` is the row of the atom. `reach` (3,) is the distance (Å) from the atom to each pair of faces of the
        box. Along directions marked in `once`, every atom is returned once, as the image nearest in that coordinate.
        """
        once = np.zeros(3, dtype=bool) if once is None else once
        place = int(np.searchsorted(self.rows, centre))
        relative = self._fractional - self._fractional[place]
        which = np.arange(len(self.rows))
        shifts = np.zeros((len(which), 3), dtype=np.int64)
        for i in range(3):
            x, most = relative[which, i], (reach[i] + _TOLERANCE) / self.heights[i]
            if not self.pbc[i]:
                keep = np.flatnonzero(np.abs(x) <= most)
                which, shifts = which[keep], shifts[keep]
                continue
            home = -np.floor(x + 0.5).astype(np.int64)
            if once[i]:
                shifts[:, i] = home
                continue
            far = int(most + 0.5)
            cells = home[:, None] + np.arange(-far, far + 1)
            a, b = np.nonzero(np.abs(x[:, None] + cells) <= most)
            which, shifts = which[a], shifts[a]
            shifts[:, i] = cells[a, b]
        rows = self.rows[which]
        positions = self.frame.positions
        return Points(rows, shifts, positions[rows] - positions[centre] + shifts @ self.cell)

    def find_within(self, centre: int, radius: float) -> Points:
        """Return the atoms and images within `radius` (Å) of an atom."""
        points = self.find_around(centre, np.full(3, radius))
        return points.take(points.distances <= radius + _TOLERANCE)


# -- a periodic cell ---------------------------------------------------------------------------------------------------

_OVERLAP = 0.9  # times the smallest known distance of a pair: nearer atoms overlap
_STRETCH = 1.25  # an edge may be this many times longer than needed, to match a period of the structure
_FITS = 0.5  # a longer edge is taken if it lowers the mismatch to this share
_LAYER = 3.0  # Å; thickness of the layer that is compared across a boundary
_MISMATCH = 2.0  # Å; an atom has no partner that is farther than this
_COARSE, _FINE = 0.1, 0.01  # Å; steps of the search for an edge


class _Box(NamedTuple):
    """The box around atom `centre` that is cut.

    All atoms within `reach` (Å) are kept. The directions `whole` (3,) are kept as they are, the directions `cut` (3,)
    are shortened, to at least `least` (Å) between faces.
    """

    centre: int
    reach: float
    whole: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    least: float


def cut_cell(
    parent: Parent, centre: int, radius: float, margin: float, vacuum: float, closest: NDArray[np.float64]
) -> Piece:
    """Cut a periodic cell that holds all atoms within radius + margin of an atom.

    A direction is kept whole, with its periodicity, if the parent is hardly longer there than the cut-out must be.
    Along directions that are not periodic, `vacuum` (Å) is left between images. `closest` (119, 119) holds the smallest
    distance of each pair of elements.
    """
    kinds = parent.frame.distinct_numbers
    # With faces this much farther apart, atoms within reach, which cannot be removed, do not overlap each other.
    slack = _OVERLAP * float(closest[np.ix_(kinds, kinds)].max())
    least = 2.0 * (radius + margin) + slack
    whole = parent.pbc & (parent.heights <= _STRETCH * least)
    box = _Box(centre, radius + margin, whole, parent.pbc & ~whole, least)
    edges = np.array([_find_edge(parent, box, i) if box.cut[i] else np.inf for i in range(3)])
    # An atom outside the box is taken only if its image stays out of reach, too.
    beyond = np.minimum(edges / 2.0 - box.reach - 1e-6, slack)
    points = parent.find_around(centre, np.where(parent.pbc, edges / 2.0 + beyond, box.reach), once=whole)
    outside = (np.abs(points.offsets @ parent.normals) - edges / 2.0).max(axis=1)
    distances = _find_nearest(parent, box, points)
    vectors = np.where(box.cut, edges / parent.heights, 1.0)[:, None] * parent.cell
    kept = _choose_fitting(parent, box, points, vectors, outside, distances, closest)
    everything = not box.cut.any() and len(points.rows) == len(parent.rows)
    vectors, positions = _place(parent, points.offsets[kept], vectors, vacuum)
    return Piece(
        rows=points.rows[kept],
        positions=positions,
        cell=vectors,
        pbc=parent.pbc,
        distances=distances[kept],
        core=(distances[kept] <= radius + _TOLERANCE) | everything,
        whole=everything,
        removed=int(np.count_nonzero(~kept & (outside <= 0.0))),
        filled=int(np.count_nonzero(kept & (outside > 0.0))),
    )


def _find_edge(parent: Parent, box: _Box, i: int) -> float:
    """Return the distance (Å) between the faces in direction i: one at which the structure nearly repeats itself.

    The layer of atoms at one face is moved along the edge. Its mismatch is the mean distance to the nearest atoms of
    the same element there. If there is no period in range (a melt, another orientation), the edge is as short as
    possible.
    """
    from scipy.spatial import cKDTree

    longest = _STRETCH * box.least
    reach = np.where(box.cut, box.least / 2.0, parent.heights / 2.0) + _MISMATCH
    reach[i] = longest - box.least / 2.0 + _LAYER + _MISMATCH
    points = parent.find_around(box.centre, np.where(parent.pbc, reach, box.reach))
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


def _find_nearest(parent: Parent, box: _Box, points: Points) -> NDArray[np.float64]:
    """Return the distances (Å) from the centre; in directions that are kept whole, those of the nearest image."""
    distances = points.distances
    if not box.whole.any():
        return distances
    place = {key: p for p, key in enumerate(map(tuple, np.column_stack([points.rows, points.shifts]).tolist()))}
    shift_of_row = dict(zip(points.rows.tolist(), points.shifts.tolist(), strict=True))
    sphere = parent.find_within(box.centre, box.reach)
    for row, shift, distance in zip(sphere.rows.tolist(), sphere.shifts.tolist(), sphere.distances, strict=True):
        home = [shift_of_row[row][i] if box.whole[i] else shift[i] for i in range(3)]
        p = place[(row, *home)]
        distances[p] = min(distances[p], distance)
    return distances


def _choose_fitting(
    parent: Parent,
    box: _Box,
    points: Points,
    vectors: NDArray[np.float64],
    outside: NDArray[np.float64],
    distances: NDArray[np.float64],
    closest: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which points do not overlap images across the new boundaries; the innermost points are chosen first.

    All points within reach are kept. Atoms outside the box close gaps at its faces: such an atom must be as far from
    images as it was from its neighbours.
    """
    kept = distances <= box.reach + _TOLERANCE
    if not box.cut.any():
        return np.ones(len(kept), dtype=bool)
    assert parent.frame.ids is not None
    numbers, ids = parent.frame.numbers[points.rows], parent.frame.ids[points.rows]
    kinds = np.unique(numbers)
    own = _find_neighbour_distances(parent, box, points)
    own = np.where((outside > 0.0) & np.isfinite(own), _OVERLAP * own, 0.0)
    most = max(_OVERLAP * float(closest[np.ix_(kinds, kinds)].max()), float(own.max()))
    first, second, lengths = _find_pairs_across(parent, box, points.offsets, vectors, most)
    limits = np.maximum(_OVERLAP * closest[numbers[first], numbers[second]], own[first])
    order = np.argsort(first[lengths < limits], kind="stable")
    first, second = first[lengths < limits][order], second[lengths < limits][order]
    start = np.searchsorted(first, np.arange(len(kept) + 1))
    for p in np.lexsort((ids, outside.round(6))):
        kept[p] = kept[p] or not kept[second[start[p] : start[p + 1]]].any()
    return kept


def _find_neighbour_distances(parent: Parent, box: _Box, points: Points) -> NDArray[np.float64]:
    """Return the distance (Å) of every point from its nearest neighbour in the parent; inf if there is none near it."""
    from scipy.spatial import cKDTree

    reach = np.abs(points.offsets @ parent.normals).max(axis=0) + box.least - 2.0 * box.reach
    around = parent.find_around(box.centre, reach)
    distances, _ = cKDTree(around.offsets).query(points.offsets, k=[2])
    return np.asarray(distances)[:, 0]


def _find_pairs_across(
    parent: Parent, box: _Box, offsets: NDArray[np.float64], vectors: NDArray[np.float64], most: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs nearer than `most` (Å) across a new boundary, in both orders, and their lengths (Å)."""
    from scipy.spatial import cKDTree

    # In directions that are kept whole, the two atoms can be an edge plus `most` apart.
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


def _place(
    parent: Parent, offsets: NDArray[np.float64], vectors: NDArray[np.float64], vacuum: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cell (3, 3), with vacuum along open directions, and the positions (n, 3) in it, in Å."""
    planes = offsets @ parent.normals
    low, high = planes.min(axis=0), planes.max(axis=0)
    heights = np.where(parent.pbc, parent.heights, high - low + vacuum)
    vectors = np.where(parent.pbc, 1.0, heights / parent.heights)[:, None] * vectors
    fractional = offsets @ np.linalg.inv(vectors)
    middle = np.where(parent.pbc, 0.0, (low + high) / (2.0 * heights))
    fractional += 0.5 - middle
    fractional -= np.where(parent.pbc, np.floor(fractional), 0.0)
    return vectors, fractional @ vectors


# -- a cluster ---------------------------------------------------------------------------------------------------------

_BOND = 1.25  # times the sum of the covalent radii: nearer atoms are bonded; hot covalent bonds stretch by a fifth
_CLASH = 1.0  # Å; smallest distance of a new hydrogen from another one, and from atoms that it is not bonded to
_HYDROGEN = 1


def cut_cluster(parent: Parent, centre: int, radius: float, margin: float, vacuum: float, passivate: bool) -> Piece:
    """Cut the atoms within radius + margin of an atom, and put them into a box with `vacuum` (Å) between images."""
    reach = radius + margin
    bond = 2.0 * _BOND * float(COVALENT[np.unique(parent.frame.numbers)].max()) if passivate else 0.0
    # A hydrogen on an atom at reach + bond is out of reach. But if one atom of a cut bond is a hydrogen, the other
    # atom is taken in. So atoms that are a few bonds farther away are needed, too.
    points = parent.find_within(centre, reach + 4.0 * bond)
    inside = points.distances <= reach + _TOLERANCE
    core = points.distances <= radius + _TOLERANCE
    hydrogens, dangling = np.empty((0, 3)), 0
    if passivate:
        numbers = parent.frame.numbers[points.rows]
        inside, hydrogens, dangling = _close_bonds(points.offsets, numbers, inside, bond, reach)
    n = len(hydrogens)
    kept = points.take(inside)
    positions = np.concatenate([kept.offsets, hydrogens])
    low, high = positions.min(axis=0), positions.max(axis=0)
    lengths = high - low + vacuum
    whole = not parent.pbc.any() and len(kept.rows) == len(parent.rows)
    return Piece(
        rows=np.concatenate([kept.rows, np.full(n, -1)]),
        positions=positions + (lengths - low - high) / 2.0,
        cell=np.diag(lengths),
        pbc=np.zeros(3, dtype=bool),
        distances=np.linalg.norm(positions, axis=1),
        core=np.concatenate([core[inside] | whole, np.zeros(n, dtype=bool)]),
        whole=whole,
        hydrogens=n,
        dangling=dangling,
    )


def _close_bonds(
    offsets: NDArray[np.float64],
    numbers: NDArray[np.int64],
    inside: NDArray[np.bool_],
    bond: float,
    reach: float,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], int]:
    """Put hydrogens on cut bonds; return who is inside (n,), the hydrogens (m, 3), and the number of open bonds.

    If a hydrogen would come within `reach` of the centre, the partner itself is taken in. So is a partner that is a
    hydrogen or is bonded to one. The environments of the core stay as they were.
    """
    from scipy.spatial import cKDTree

    inside = inside.copy()
    pairs = cKDTree(offsets).query_pairs(bond, output_type="ndarray")
    lengths = np.linalg.norm(offsets[pairs[:, 0]] - offsets[pairs[:, 1]], axis=1)
    pairs = pairs[lengths <= _BOND * COVALENT[numbers[pairs]].sum(axis=1)]
    while True:
        cut = pairs[inside[pairs[:, 0]] != inside[pairs[:, 1]]]
        first = inside[cut[:, 0]]
        a, b = np.where(first, cut[:, 0], cut[:, 1]), np.where(first, cut[:, 1], cut[:, 0])
        bonds = offsets[b] - offsets[a]
        length = COVALENT[numbers[a]] + COVALENT[_HYDROGEN]
        placed = offsets[a] + bonds * (length / np.linalg.norm(bonds, axis=1))[:, None]
        near = (numbers[a] == _HYDROGEN) | (numbers[b] == _HYDROGEN)
        near |= np.linalg.norm(placed, axis=1) <= reach + _TOLERANCE
        if not near.any():
            break
        inside[b[near]] = True
    heavy = cKDTree(offsets[inside])
    own = np.cumsum(inside) - 1
    kept: list[int] = []
    for i in np.lexsort((placed[:, 2], placed[:, 1], placed[:, 0], np.linalg.norm(placed, axis=1).round(6))):
        others = [j for j in heavy.query_ball_point(placed[i], _CLASH) if j != own[a[i]]]
        if not others and not (np.linalg.norm(placed[kept] - placed[i], axis=1) < _CLASH).any():
            kept.append(int(i))
    return inside, placed[kept], len(placed) - len(kept)
