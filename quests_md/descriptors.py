"""The QUESTS descriptor of environments, and what stands in its place for own descriptors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .elements import SYMBOLS, numbers_of
from .errors import ElementError, FrameError, InputError
from .frame import Frame, as_frames
from .kernels import descriptor as _descriptor
from .kernels import descriptor_vector as _vector
from .kernels import neighbors as _neighbors
from .kernels._jit import over_rows

__all__ = ["DescriptorSpec", "OwnDescriptors", "cell_of", "minimum_distances"]

_LONGEST_NAME = 200
_MOST_COLUMNS = 1 << 24


@dataclass(frozen=True)
class OwnDescriptors:
    """What is known of own descriptors: it stands where a `DescriptorSpec` stands, and computes nothing.

    Parameters
    ----------
    name
        What they are, for people: "SOAP, r_cut 5 Å, n_max 6, l_max 4".
    width
        Number of columns of a row.

    Raises
    ------
    InputError
        The name is no line of text, or the width no positive whole number.
    """

    name: str
    width: int

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isprintable() and 0 < len(self.name) <= _LONGEST_NAME):
            raise InputError(f"the name of own descriptors must be one line of text, not {self.name!r}")
        if isinstance(self.width, bool) or not isinstance(self.width, int) or not 0 < self.width <= _MOST_COLUMNS:
            raise InputError(f"the width of own descriptors must be a number of columns, not {self.width!r}")

    @property
    def by_centre(self) -> bool:
        """False: every query is compared with all rows, whatever the elements of their centres."""
        return False


_BLOCK = 64  # environments a thread takes at a time
_SPECIES = (None, "ignore", "full", "centre", "neighbours")
_BY_ELEMENT = ("full", "neighbours")  # with blocks of one element, so that their order must be fixed
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
        How elements enter. Must be given for frames of two or more elements; None serves one.

        - "ignore": not at all, as ``quests.get_descriptors``. One block, of all neighbours.
        - "full": the block of all neighbours, and for each element one of the neighbours of that element around centres
          of that element, zero for other centres; as ``quests.get_descriptors_multicomponent``. With one element the
          block of all neighbours alone.
        - "centre": the block of all neighbours, and environments are compared within the element of their centre.
        - "neighbours": for each element a block of the neighbours of that element, and environments are compared within
          the element of their centre.
    elements
        Chemical symbols: the blocks of "full" and "neighbours", in the order of their atomic numbers. `Index.build`
        fills in those of the reference.

    Raises
    ------
    InputError
        A value is out of range, `elements` are not chemical symbols, or this `species` has no use for them.
    """

    k: int = 32
    cutoff: float = 5.0
    species: str | None = None
    elements: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 2:
            raise InputError(f"k must be a whole number of at least 2, not {self.k!r}")
        number = isinstance(self.cutoff, (int, float)) and not isinstance(self.cutoff, bool)
        if not (number and math.isfinite(self.cutoff) and self.cutoff > 0):
            raise InputError(f"cutoff must be a positive length in Å, not {self.cutoff!r}")
        object.__setattr__(self, "cutoff", float(self.cutoff))
        if self.species not in _SPECIES:
            choices = ", ".join(f'"{name}"' for name in _SPECIES[1:])
            raise InputError(f"species must be one of {choices} (or left out for one element), not {self.species!r}")
        if self.elements is not None:
            object.__setattr__(self, "elements", self._ordered(self.elements))

    def _ordered(self, elements: Any) -> tuple[str, ...]:
        if self.species not in _BY_ELEMENT:
            raise InputError(f"elements are the blocks of {' and '.join(_BY_ELEMENT)}; species is {self.species!r}")
        known = isinstance(elements, (list, tuple)) and all(e in SYMBOLS[1:] for e in elements)
        if not known or not elements or len(set(elements)) != len(elements):
            raise InputError(f"elements must be a list of different chemical symbols, not {elements!r}")
        return tuple(sorted(elements, key=SYMBOLS.index))

    # What follows from the fields is asked for at every evaluation, so it is worked out once.

    @cached_property
    def by_centre(self) -> bool:
        """Whether environments are compared within the element of their centre only.

        The first column of a row is then the atomic number of its centre.
        """
        return self.species in ("centre", "neighbours")

    @cached_property
    def n_blocks(self) -> int:
        """Number of blocks of 2k − 1 columns.

        Raises
        ------
        InputError
            It is not known, for `elements` are missing.
        """
        return int(self._wanted.shape[1])

    @cached_property
    def width(self) -> int:
        """Number of columns of a row: 2k − 1 for each block, and one more if `by_centre`."""
        return int(self.by_centre) + self.n_blocks * (2 * self.k - 1)

    @cached_property
    def _wanted(self) -> NDArray[np.int64]:
        """Return which neighbours are in which block, for each kind of centre (`kernels.descriptor` explains it)."""
        if self.species not in _BY_ELEMENT:
            return np.full((1, 1), _descriptor.ALL)
        if self.elements is None:
            raise InputError(
                f'species="{self.species}" needs the elements that fix the order of its blocks: '
                f'DescriptorSpec(..., species="{self.species}", elements=["Na", "Cl"]), or the spec of an index'
            )
        n = len(self.elements)
        if n == 1:
            return np.full((1, 1), _descriptor.ALL)
        if self.species == "neighbours":
            return np.tile(np.arange(n), (n, 1))
        own = np.where(np.eye(n, dtype=bool), np.arange(n), _descriptor.NONE)
        return np.hstack([np.full((n, 1), _descriptor.ALL), own])

    def for_elements(self, numbers: Iterable[int]) -> DescriptorSpec:
        """Return the spec for frames of these atomic numbers: with `elements`, if it needs them and has none."""
        if self.species not in _BY_ELEMENT or self.elements is not None:
            return self
        return replace(self, elements=tuple(SYMBOLS[z] for z in sorted(set(numbers) - {0})))

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
            (n_env, `width`), in 1/Å; frames in their order, atoms in theirs. If `by_centre`, the first column is the
            atomic number of each centre, without a unit.

        Raises
        ------
        FrameError
            Positions or cell are not finite, the cell is singular, or two atoms share a place.
        InputError
            Two or more elements, and `species` was not given; or it needs `elements`, and they were not.
        ElementError
            A frame holds an element that is not among `elements`.
        """
        rows, numbers = [np.empty((0, self.width))], set[int]()
        for frame in as_frames(frames):
            numbers.update(frame.distinct_numbers.tolist())
            self.check_elements(numbers)
            rows.append(self._compute_one(frame, threads))
        return rows[1] if len(rows) == 2 else np.concatenate(rows)

    def check_elements(self, numbers: set[int]) -> None:
        """Raise `InputError` if these atomic numbers need a choice of `species` that was not made.

        Or `ElementError`, if one is not among `elements`.
        """
        if self.species is None and len(numbers - {0}) > 1:
            raise InputError(
                f"{len(numbers - {0})} elements, and species was not given: "
                'species="neighbours" tells them apart, "ignore" describes geometry only (the manual compares them)'
            )
        if self.elements is not None and not numbers <= numbers_of(self.elements):
            unknown = [SYMBOLS[z] for z in sorted(numbers - numbers_of(self.elements))]
            raise ElementError(
                f"{', '.join(unknown)} is not among the elements of the descriptor, {', '.join(self.elements)}: "
                "name it there, or build the index of a reference that holds it"
            )

    @cached_property
    def _kinds(self) -> NDArray[np.int8]:
        """The kind of every atomic number: its place among `elements`, −1 if it has none; or 0 for all."""
        if self.elements is None:
            return np.zeros(len(SYMBOLS), np.int8)
        kinds = np.full(len(SYMBOLS), -1, np.int8)
        kinds[[SYMBOLS.index(symbol) for symbol in self.elements]] = np.arange(len(self.elements))
        return kinds

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
    InputError
        The spec needs elements and has none; an `ElementError` if the frame holds others.
    """

    def __init__(self, spec: DescriptorSpec, frame: Frame) -> None:
        self.centres = frame.centres
        self._spec, self._frame = spec, frame
        points, owner, places = _points_of(frame, self.centres, spec.cutoff)
        kinds = spec._kinds[frame.numbers][owner]
        if kinds.min(initial=0) < 0:
            spec.check_elements(set(frame.distinct_numbers.tolist()))
        self._wanted = spec._wanted
        self._bins = _neighbors.bin_points(points, spec.cutoff)
        self._has_vectors = _vector.available(spec.k)
        if self._has_vectors:
            points, kinds, sorted_places = _vector.sort_points(points, kinds, self._bins[0])
            places = sorted_places[places]
        # Coordinates (3, m) in the order of the bins with vectors, else points (m, 3) in their own; their kinds; and
        # where the centres are in them.
        self._points, self._kinds, self._places = points, kinds, places

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
        spec, places = self._spec, self._places[which]
        out, column = np.empty((len(places), spec.width)), int(spec.by_centre)
        if column:
            out[:, 0] = self._frame.numbers[self.centres[which]]
        points, how = (self._points, self._kinds, self._wanted), (self._bins, spec.k, spec.cutoff, column)
        if not self._has_vectors:
            task = partial(_descriptor.describe, *points, places, *how, out=out)
            over_rows(task, len(places), threads, _BLOCK)
        elif threads == 1:  # as in a run: straight to the kernel
            _vector.describe(*points, places, *how, _vector.scratch(inside), out)
        else:

            def describe(first: int, last: int) -> None:
                _vector.describe(*points, places[first:last], *how, _vector.scratch(inside), out[first:last])

            over_rows(describe, len(places), threads, _BLOCK)
        # A finite sum needs finite rows: one pass without a temporary of the size of `out`.
        if not math.isfinite(float(out.sum())):
            bad = self.centres[which][~np.isfinite(out).all(axis=1)]
            raise FrameError(_shared_place(self._frame, bad))
        return out

    def is_nearer(self, rows: NDArray[np.float64], r: float) -> NDArray[np.bool_]:
        """Return of descriptors (n, d), as `compute` gives them, whether the nearest neighbour is nearer than r (Å).

        By the first column of x1, w(r)/r, which falls with the distance.

        Raises
        ------
        InputError
            r is not above 0 and at most the cutoff.
        """
        if not 0.0 < r <= self._spec.cutoff:
            raise InputError(f"a distance up to the cutoff of {self._spec.cutoff} Å can be told, not {r!r}")
        firsts = rows[:, int(self._spec.by_centre) :: 2 * self._spec.k - 1]
        nearer: NDArray[np.bool_] = np.any(firsts > (1.0 - (r / self._spec.cutoff) ** 2) ** 2 / r, axis=1)
        return nearer


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
