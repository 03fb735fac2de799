"""The QUESTS descriptor of environments: what fixes it, and what computes it.

For atom i and its k nearest neighbours j inside the cutoff r_c, with w(r) = (1 − (r/r_c)²)²:

- x1: the values w(r_ij)/r_ij, nearest first, zero-padded to k;
- x2: sort each row of A_jl = sqrt(w(r_ij) w(r_il))/r_jl (zero on the diagonal), average over the rows, largest first.

Source: D. Schwalbe-Koda et al., arXiv:2404.12367 (Nat. Commun. 16, 4014, 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FrameError, InputError
from .frame import Frame, as_frames
from .kernels import descriptor as _descriptor
from .kernels import descriptor_vector as _vector
from .kernels import neighbors as _neighbors
from .kernels._jit import over_rows

__all__ = ["DescriptorSpec", "minimum_distances"]

_BLOCK = 64  # environments a thread takes at a time
_SPECIES = (None, "ignore")
_MOST_IMAGES = 1_000_000  # of one atom within the cutoff; a cell that needs more is no matter


@dataclass(frozen=True)
class DescriptorSpec:
    """What fixes a descriptor.

    Parameters
    ----------
    k
        Number of nearest neighbours, at least 2.
    cutoff
        Radius inside which atoms are neighbours, in Å.
    species
        How elements enter. "ignore": not at all (as ``quests.get_descriptors``). Must be given for frames of two or
        more elements; None serves one element.

    Raises
    ------
    InputError
        A value is out of range.
    """

    k: int = 32
    cutoff: float = 5.0
    species: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 2:
            raise InputError(f"k must be a whole number of at least 2, not {self.k!r}")
        number = isinstance(self.cutoff, (int, float)) and not isinstance(self.cutoff, bool)
        if not (number and math.isfinite(self.cutoff) and self.cutoff > 0):
            raise InputError(f"cutoff must be a positive length in Å, not {self.cutoff!r}")
        object.__setattr__(self, "cutoff", float(self.cutoff))
        if self.species not in _SPECIES:
            raise InputError(f'species must be "ignore" (or left out for one element), not {self.species!r}')

    @property
    def width(self) -> int:
        """Number of columns, 2k − 1."""
        return 2 * self.k - 1

    def compute(self, frames: Any, threads: int | None = None) -> NDArray[np.float64]:
        """Compute the descriptors of the watched atoms of frames.

        Parameters
        ----------
        frames
            A `Frame`, an ``ase.Atoms``, or an iterable of either.
        threads
            Threads to use; None takes all cores. The result does not depend on it.

        Returns
        -------
        ndarray
            (n_env, 2k − 1), in 1/Å; frames in their order, atoms in theirs.

        Raises
        ------
        FrameError
            Positions or cell are not finite, the cell is singular, or two atoms share a place.
        InputError
            Two or more elements, and `species` was not given.
        """
        rows, numbers = [np.empty((0, self.width))], set[int]()
        for frame in as_frames(frames):
            numbers.update(np.unique(frame.numbers).tolist())
            self.check_elements(numbers)
            rows.append(self._compute_one(frame, threads))
        return rows[1] if len(rows) == 2 else np.concatenate(rows)

    def check_elements(self, numbers: set[int]) -> None:
        """Raise `InputError` if these atomic numbers need a choice of `species` that was not made."""
        if self.species is None and len(numbers - {0}) > 1:
            raise InputError(
                f"{len(numbers - {0})} elements, and species was not given; "
                'species="ignore" describes geometry only and does not see which atom is which'
            )

    def _compute_one(self, frame: Frame, threads: int | None, inside: type = np.float64) -> NDArray[np.float64]:
        """Compute one frame; `inside` is the precision of the matrix behind x2: single errs by less than 1e-7 1/Å."""
        points, _, centres = _points_of(frame, self.cutoff)
        bins = _neighbors.bin_points(points, self.cutoff)
        out = np.empty((len(centres), self.width))
        if _vector.available(self.k):
            coordinates, places = _vector.sort_points(points, bins[0])
            places = places[centres]

            def task(first: int, last: int) -> None:
                near = _vector.scratch(inside)
                _vector.describe(coordinates, places[first:last], bins, self.k, self.cutoff, near, out[first:last])
        else:

            def task(first: int, last: int) -> None:
                _descriptor.describe(points, centres, bins, self.k, self.cutoff, first, last, out)

        over_rows(task, len(centres), threads, _BLOCK)
        # A finite sum needs finite rows: one pass without a temporary of the size of `out`.
        if not math.isfinite(float(np.sum(out))):
            bad = frame.centres[~np.isfinite(out).all(axis=1)]
            raise FrameError(_shared_place(frame, bad))
        return out


def minimum_distances(frame: Frame, cutoff: float, kinds: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Lower ``out[a, b]`` to the smallest distance (Å) up to `cutoff` between atoms of kinds a and b.

    `kinds` (n,) is the kind of every row of the frame. The plausibility of later frames is judged by it.
    """
    points, owner, centres = _points_of(frame, cutoff)
    bins = _neighbors.bin_points(points, cutoff)
    _neighbors.minimum_distances(points, kinds[owner], centres, bins, cutoff, out)


def _points_of(frame: Frame, cutoff: float) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all points that can be neighbours, the frame's row of each, and which points are watched."""
    if not np.isfinite(frame.positions).all():
        bad = np.flatnonzero(~np.isfinite(frame.positions).all(axis=1))
        assert frame.ids is not None
        raise FrameError(
            f"step {frame.step}: {len(bad)} atoms have positions that are not finite numbers "
            f"(the first is id {frame.ids[bad[0]]}); the simulation has broken down"
        )
    owner = np.flatnonzero(frame.numbers != 0)
    centres = np.searchsorted(owner, frame.centres)
    points = np.ascontiguousarray(frame.positions[owner])
    if not frame.has_ghosts and np.any(frame.pbc):
        points, atoms = _neighbors.pad_images(points, *_cell_of(frame, cutoff), cutoff)
        owner = owner[atoms]
    return points, owner, centres


def _cell_of(frame: Frame, cutoff: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return cell, inverse and pbc; missing vectors of directions that are not periodic are made up."""
    cell, pbc = np.array(frame.cell, dtype=np.float64), np.array(frame.pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise FrameError(f"step {frame.step}: the cell is not finite: {cell.tolist()}")
    missing = (np.linalg.norm(cell, axis=1) == 0.0) & ~pbc
    if missing.any():
        # Any vectors that complete a basis do: orthonormal ones to those that are there.
        _, _, basis = np.linalg.svd(cell[~missing], full_matrices=True)
        cell[missing] = basis[3 - missing.sum() :]
    lengths = np.linalg.norm(cell, axis=1)
    if (lengths == 0).any() or abs(np.linalg.det(cell / lengths[:, None])) < 1e-6:
        raise FrameError(f"step {frame.step}: the cell is singular, yet pbc is {pbc.tolist()}: {cell.tolist()}")
    inverse = np.linalg.inv(cell)
    if np.prod(2.0 * np.ceil(cutoff * np.linalg.norm(inverse, axis=0)[pbc]) + 1.0) > _MOST_IMAGES:
        raise FrameError(f"step {frame.step}: the cell has collapsed: {cell.tolist()}")
    return cell, inverse, pbc


def _shared_place(frame: Frame, bad: NDArray[np.int64]) -> str:
    assert frame.ids is not None
    return (
        f"step {frame.step}: two atoms share a place in {len(bad)} environments "
        f"(the first is of the atom with id {frame.ids[bad[0]]})"
    )
