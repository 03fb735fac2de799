"""The frame that something is cut out of: its atoms and their images around a point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..descriptors import cell_of
from ..errors import InputError
from ..frame import Frame

__all__ = ["TOLERANCE", "Parent", "Piece", "Points"]

TOLERANCE = 1e-9  # Å: an atom at a radius is inside it, whatever is rounded


class Points(NamedTuple):
    """Atoms and images of atoms: the row of the parent, the cells between atom and image, the offset from a point."""

    rows: NDArray[np.int64]
    shifts: NDArray[np.int64]
    offsets: NDArray[np.float64]

    def take(self, which: NDArray[np.generic]) -> Points:
        """Return some of them: a mask, or places."""
        return Points(self.rows[which], self.shifts[which], self.offsets[which])

    @property
    def distances(self) -> NDArray[np.float64]:
        """From the point, in Å."""
        distances: NDArray[np.float64] = np.linalg.norm(self.offsets, axis=1)
        return distances


class Piece(NamedTuple):
    """What was cut out, before it is a frame.

    Parameters
    ----------
    rows
        (n,) rows of the parent; −1 is an added hydrogen.
    positions
        (n, 3), in Å.
    cell, pbc
        Of the piece.
    distances
        (n,) from the centre, in Å: of the nearest image, where a direction was kept whole.
    core
        (n,) bool.
    whole
        Whether all of the parent is in it, with its periodicity: then all is core.
    removed, filled, hydrogens, dangling
        Counts: atoms of the box left out for overlaps, atoms taken from beyond its faces, hydrogens put on cut
        bonds, cut bonds left without one.
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
    """A whole frame with a lattice: missing cell vectors are made up.

    Parameters
    ----------
    frame
        Without ghosts. Sites of number 0 are left out of everything.
    reach
        Largest distance, in Å, that will be asked for.

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
            raise InputError(f"step {frame.step}: positions that are not finite numbers: no cut-out can be made of it")
        self.frame = frame
        self.cell, inverse, self.pbc = cell_of(frame, reach)
        self.heights: NDArray[np.float64] = 1.0 / np.linalg.norm(inverse, axis=0)
        self.normals: NDArray[np.float64] = inverse * self.heights
        self.rows = np.flatnonzero(frame.numbers)
        self._fractional = frame.positions[self.rows] @ inverse

    def around(self, centre: int, reach: NDArray[np.float64], once: NDArray[np.bool_] | None = None) -> Points:
        """Return the atoms and images whose planes lie within `reach` (3,), in Å, of those through an atom.

        `centre` is the row of that atom. Along directions marked in `once` every atom comes once: as the image nearest
        in that coordinate, however far.
        """
        once = np.zeros(3, dtype=bool) if once is None else once
        place = int(np.searchsorted(self.rows, centre))
        relative = self._fractional - self._fractional[place]
        which = np.arange(len(self.rows))
        shifts = np.zeros((len(which), 3), dtype=np.int64)
        for i in range(3):
            x, most = relative[which, i], (reach[i] + TOLERANCE) / self.heights[i]
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

    def sphere(self, centre: int, radius: float) -> Points:
        """Return the atoms and images within `radius` (Å) of an atom."""
        points = self.around(centre, np.full(3, radius))
        return points.take(points.distances <= radius + TOLERANCE)
