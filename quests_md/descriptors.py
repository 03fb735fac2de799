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

__all__ = ["DescriptorSpec", "cell_of", "minimum_distances"]

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
            numbers.update(frame.distinct_numbers.tolist())
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
        return Environments(self, frame).compute(slice(None), threads, inside)


class Environments:
    """The environments of one frame: its atoms are sorted once, and descriptors computed where they are asked for.

    Parameters
    ----------
    spec
        What fixes the descriptor. Whether it may be left open how elements enter is not checked here.
    frame
        The frame; its arrays are needed until the last call of `compute`.

    Attributes
    ----------
    centres
        Rows of the frame that are its environments, in order.

    Raises
    ------
    FrameError
        Positions or cell are not finite, or the cell is singular.
    """

    def __init__(self, spec: DescriptorSpec, frame: Frame) -> None:
        self.centres = frame.centres
        self._spec, self._frame = spec, frame
        points, _, places = _points_of(frame, self.centres, spec.cutoff)
        self._bins = _neighbors.bin_points(points, spec.cutoff)
        self._has_vectors = _vector.available(spec.k)
        if self._has_vectors:
            points, sorted_places = _vector.sort_points(points, self._bins[0])
            places = sorted_places[places]
        # Coordinates (3, m) in the order of the bins with vectors, else points (m, 3) in their own; and where the
        # centres are in them.
        self._points, self._places = points, places

    def __len__(self) -> int:
        return len(self.centres)

    def compute(
        self, which: slice | NDArray[np.int64], threads: int | None = None, inside: type = np.float64
    ) -> NDArray[np.float64]:
        """Compute the descriptors (n, d) of the environments `which`; a row depends on no other.

        Raises
        ------
        FrameError
            Two atoms share a place.
        """
        places, k, cutoff = self._places[which], self._spec.k, self._spec.cutoff
        out = np.empty((len(places), self._spec.width))
        if self._has_vectors:

            def task(first: int, last: int) -> None:
                near = _vector.scratch(inside)
                _vector.describe(self._points, places[first:last], self._bins, k, cutoff, near, out[first:last])
        else:

            def task(first: int, last: int) -> None:
                _descriptor.describe(self._points, places, self._bins, k, cutoff, first, last, out)

        over_rows(task, len(places), threads, _BLOCK)
        # A finite sum needs finite rows: one pass without a temporary of the size of `out`.
        if not math.isfinite(float(np.sum(out))):
            bad = self.centres[which][~np.isfinite(out).all(axis=1)]
            raise FrameError(_shared_place(self._frame, bad))
        return out

    def is_nearer(self, rows: NDArray[np.float64], r: float) -> NDArray[np.bool_]:
        """Return for each of `rows`, which `compute` gave, whether its nearest neighbour is nearer than `r` Å."""
        # The first column is w(r)/r of the nearest neighbour, which falls with r.
        nearest: NDArray[np.bool_] = rows[:, 0] > (1.0 - (r / self._spec.cutoff) ** 2) ** 2 / r
        return nearest


def minimum_distances(frame: Frame, cutoff: float, kinds: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Lower ``out[a, b]`` to the smallest distance (Å) up to `cutoff` between atoms of kinds a and b.

    `kinds` (n,) is the kind of every row of the frame. The plausibility of later frames is judged by it.
    """
    points, owner, centres = _points_of(frame, frame.centres, cutoff)
    bins = _neighbors.bin_points(points, cutoff)
    _neighbors.minimum_distances(points, kinds[owner], centres, bins, cutoff, out)


def _points_of(
    frame: Frame, centres: NDArray[np.int64], cutoff: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all points that can be neighbours, the frame's row of each, and which points the rows `centres` are.

    The points may be the frame's own positions: they are not to be written to.
    """
    # A finite sum needs finite positions, and takes no temporary; a sum that is not may be one that overflows.
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(np.sum(frame.positions))
    if not math.isfinite(total):
        _check_positions(frame)
    points = np.require(frame.positions, requirements=["C", "A", "W"])  # what kernels were compiled for
    if frame.numbers.all():
        owner = np.arange(len(points))
    else:
        owner = np.flatnonzero(frame.numbers)
        points, centres = points[owner], np.searchsorted(owner, centres)
    if not frame.has_ghosts and np.any(frame.pbc):
        points, atoms = _neighbors.pad_images(points, *cell_of(frame, cutoff), cutoff)
        owner = owner[atoms]
    return points, owner, centres


def _check_positions(frame: Frame) -> None:
    bad = np.flatnonzero(~np.isfinite(frame.positions).all(axis=1))
    if len(bad):
        assert frame.ids is not None
        raise FrameError(
            f"step {frame.step}: {len(bad)} atoms have positions that are not finite numbers "
            f"(the first is id {frame.ids[bad[0]]}); the simulation has broken down"
        )


def cell_of(frame: Frame, cutoff: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return cell, inverse and pbc; missing vectors of directions that are not periodic are made up."""
    cell, pbc = np.array(frame.cell, dtype=np.float64), np.array(frame.pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise FrameError(f"step {frame.step}: the cell is not finite: {cell.tolist()}")
    lengths = np.linalg.norm(cell, axis=1)
    missing = (lengths == 0.0) & ~pbc
    if missing.any():
        # Any vectors that complete a basis do: orthonormal ones to those that are there.
        _, _, basis = np.linalg.svd(cell[~missing], full_matrices=True)
        cell[missing], lengths[missing] = basis[3 - missing.sum() :], 1.0
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
