"""A cut-out without periodicity: a sphere of atoms in vacuum, its cut bonds closed by hydrogens if asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._cutout_parent import TOLERANCE, Parent, Piece
from ._cutout_radii import COVALENT

__all__ = ["cluster"]

_BOND = 1.25  # times the sum of the covalent radii: nearer atoms are bonded; hot covalent bonds stretch by a fifth
_CLASH = 1.0  # Å; no hydrogen is put nearer than this to another one, or to an atom it is not bonded to
_HYDROGEN = 1


def cluster(parent: Parent, centre: int, radius: float, margin: float, vacuum: float, passivate: bool) -> Piece:
    """Cut the atoms within radius + margin of an atom, into a box with `vacuum` (Å) between images."""
    reach = radius + margin
    bond = 2.0 * _BOND * float(COVALENT[np.unique(parent.frame.numbers)].max()) if passivate else 0.0
    # An atom at reach + bond has hydrogens beyond reach only. A few bonds more: a hydrogen is taken with its partner.
    points = parent.sphere(centre, reach + 4.0 * bond)
    inside = points.distances <= reach + TOLERANCE
    core = points.distances <= radius + TOLERANCE
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
    """Put hydrogens on the bonds from inside to outside; return who is inside, the hydrogens, the bonds left open.

    Where a hydrogen would come within `reach` of the centre the partner itself is taken in, and so is one that is a
    hydrogen or bonded to one: the environments of the core stay as they were.
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
        near |= np.linalg.norm(placed, axis=1) <= reach + TOLERANCE
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
