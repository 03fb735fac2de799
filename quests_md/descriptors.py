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
from .kernels import descriptor_gradient as _gradient
from .kernels import descriptor_vector as _vector
from .kernels import neighbors as _neighbors
from .kernels.threads import over_rows

__all__ = ["DescriptorSpec", "Environments", "OwnDescriptors", "cell_of", "check_positions", "minimum_distances"]

_LONGEST_NAME = 200
_MOST_COLUMNS = 1 << 24


@dataclass(frozen=True)
class OwnDescriptors:
    """Name and width of own descriptors. It stands in the place of a `DescriptorSpec`, but computes nothing.

    Parameters
    ----------
    name
        What they are, for people: "SOAP, r_cut 5 Å, n_max 6, l_max 4".
    width
        Number of columns of a row.

    Raises
    ------
    InputError
        The name is not a line of text, or the width is not a positive whole number.
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
        """False: every query is compared with all rows."""
        return False


_BLOCK = 64  # environments that a thread takes at a time
_SPECIES = (None, "ignore", "full", "centre", "neighbours")
_BY_ELEMENT = ("full", "neighbours")  # these have blocks of single elements, whose order must be fixed
_MOST_IMAGES = 1_000_000  # of one atom within the cutoff; a cell that needs more has collapsed


@dataclass(frozen=True)
class DescriptorSpec:
    """The definition of a descriptor.

    Parameters
    ----------
    k
        Number of nearest neighbours, at least 2.
    cutoff
        Radius inside which atoms are neighbours, in Å.
    species
        How elements enter. Frames of two or more elements need it; for one element None will do.

        - "ignore": not at all, as in ``quests.get_descriptors``. There is one block, of all neighbours.
        - "full": the block of all neighbours, then a block for each element, as in
          ``quests.get_descriptors_multicomponent``. If the centre is of element A, the block of A describes the
          neighbours that are of A, too; the blocks of all other elements are zero. With one element there is only the
          block of all neighbours.
        - "centre": the block of all neighbours. Environments are compared only with those whose centre is of the same
          element.
        - "neighbours": for each element a block of the neighbours of that element. Environments are compared as with
          "centre".
    elements
        Chemical symbols of the blocks of "full" and "neighbours", in the order of their atomic numbers. `Index.build`
        fills in those of the reference.

    Raises
    ------
    InputError
        A value is out of range, `elements` are not chemical symbols, or this `species` does not use them.
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
            object.__setattr__(self, "elements", self._sort(self.elements))

    def _sort(self, elements: Any) -> tuple[str, ...]:
        if self.species not in _BY_ELEMENT:
            raise InputError(f"elements are the blocks of {' and '.join(_BY_ELEMENT)}; species is {self.species!r}")
        known = isinstance(elements, (list, tuple)) and all(e in SYMBOLS[1:] for e in elements)
        if not known or not elements or len(set(elements)) != len(elements):
            raise InputError(f"elements must be a list of different chemical symbols, not {elements!r}")
        return tuple(sorted(elements, key=SYMBOLS.index))

    # Every evaluation asks for these properties, so each is worked out once.

    @cached_property
    def by_centre(self) -> bool:
        """Whether environments are compared only with those whose centre is of the same element.

        The first column of a row is then the atomic number of its centre.
        """
        return self.species in ("centre", "neighbours")

    @cached_property
    def n_blocks(self) -> int:
        """Number of blocks of 2k − 1 columns.

        Raises
        ------
        InputError
            It is not known because `elements` are missing.
        """
        return int(self._wanted.shape[1])

    @cached_property
    def width(self) -> int:
        """Number of columns of a row. It is 2k − 1 for each block, and one more with `by_centre`."""
        return int(self.by_centre) + self.n_blocks * (2 * self.k - 1)

    @cached_property
    def _wanted(self) -> NDArray[np.int64]:
        """Which neighbours are in which block, for each kind of centre (`kernels.descriptor` explains it)."""
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
        """Return the spec for frames of these atomic numbers: it gets `elements` if it needs them and has none."""
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
            (n_env, `width`), in 1/Å, frames and atoms in order. With `by_centre` the first column is the atomic number
            of each centre.

        Raises
        ------
        FrameError
            Positions or cell are not finite, the cell is singular, or two atoms are at the same place.
        InputError
            There are two or more elements and no `species`; or the `species` needs `elements`, and there are none.
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
        """Check that the spec can describe atoms of these atomic numbers.

        Raises
        ------
        InputError
            There are two or more elements and no `species`.
        ElementError
            One is not among `elements`.
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
        """The kind of every atomic number: its place among `elements` or −1; without `elements` all are 0."""
        if self.elements is None:
            return np.zeros(len(SYMBOLS), np.int8)
        kinds = np.full(len(SYMBOLS), -1, np.int8)
        kinds[[SYMBOLS.index(symbol) for symbol in self.elements]] = np.arange(len(self.elements))
        return kinds

    def environments(self, frame: Frame) -> Environments:
        """Return the environments of a frame."""
        return Environments(self, frame)

    def _compute_one(self, frame: Frame, threads: int | None, inside: type = np.float64) -> NDArray[np.float64]:
        """Compute one frame; `inside` is the precision of the matrix behind x2. Single errs by less than 1e-7 1/Å."""
        return Environments(self, frame).compute(slice(None), threads, inside)


class Environments:
    """The environments of one frame. It sorts the atoms once, and computes the descriptors that are asked for.

    Parameters
    ----------
    spec
        The descriptor. Whether its `species` may be left out is not checked here.
    frame
        The frame. Its arrays must stay until the last call of `compute`.

    Attributes
    ----------
    centres
        The atoms (rows of the frame) whose environments these are, in order.

    Raises
    ------
    FrameError
        Positions or cell are not finite, or the cell is singular.
    InputError
        The spec needs elements and has none; or, as `ElementError`, the frame holds others.
    """

    def __init__(self, spec: DescriptorSpec, frame: Frame) -> None:
        self.centres = frame.centres
        self._spec, self._frame = spec, frame
        points, owner, places = _collect_points(frame, self.centres, spec.cutoff)
        if spec.elements is None:
            kinds = np.zeros(len(points), np.int8)
        else:
            kinds = spec._kinds[frame.numbers][owner]
            if kinds.min(initial=0) < 0:
                spec.check_elements(set(frame.distinct_numbers.tolist()))
        self._wanted = spec._wanted
        self._bins = _neighbors.bin_points(points, spec.cutoff)
        self._has_vectors = _vector.available(spec.k)
        if self._has_vectors:
            points, kinds, sorted_places = _vector.sort_points(points, kinds, self._bins[0])
            places = sorted_places[places]
        # The points: with vectors, coordinates (3, m) in the order of the bins; otherwise (m, 3), in their own order.
        # The kinds are those of the points. The places say which points are the centres.
        self._points, self._kinds, self._places = points, kinds, places

    def __len__(self) -> int:
        return len(self.centres)

    def compute(
        self,
        which: slice | NDArray[np.int64],
        threads: int | None = None,
        inside: type = np.float64,
        found: list[tuple[float, float]] | None = None,
    ) -> NDArray[np.float64]:
        """Compute the descriptors (n, d) of the environments `which`. No row depends on another.

        `found` gets what `compute_in_single` needs of every call of the kernel; nothing on the path without vectors.

        Raises
        ------
        FrameError
            Two atoms are at the same place.
        """
        spec, places, found = self._spec, self._places[which], [] if found is None else found
        out, column = np.empty((len(places), spec.width)), int(spec.by_centre)
        if column:
            out[:, 0] = self._frame.numbers[self.centres[which]]
        points, how = (self._points, self._kinds, self._wanted), (self._bins, spec.k, spec.cutoff, column)
        if not self._has_vectors:
            task = partial(_descriptor.describe, *points, places, *how, out=out)
            over_rows(task, len(places), threads, _BLOCK)
        elif threads == 1:  # as in a run: call the kernel directly
            found.append(_vector.describe(*points, places, *how, np.empty(_vector.SCRATCH, inside), out))
        else:

            def describe(first: int, last: int) -> None:
                part, rows = places[first:last], out[first:last]
                found.append(_vector.describe(*points, part, *how, np.empty(_vector.SCRATCH, inside), rows))

            over_rows(describe, len(places), threads, _BLOCK)
        # A finite sum needs finite rows. This takes one pass and no temporary array.
        if not math.isfinite(float(out.sum())):
            bad = self.centres[which][~np.isfinite(out).all(axis=1)]
            raise FrameError(_explain_shared_place(self._frame, bad))
        return out

    def compute_in_single(
        self, which: slice | NDArray[np.int64], threads: int | None = None
    ) -> tuple[NDArray[np.float64], float]:
        """Compute descriptors as `compute` does, but with x2 in single precision inside, which is faster.

        Returns
        -------
        rows
            (n, d), in 1/Å.
        error
            What the distance (1/Å) of a row from that of `compute` is at most. This is proven, and no estimate.

        Raises
        ------
        FrameError
            Two atoms are at the same place.
        """
        found: list[tuple[float, float]] = []
        try:
            rows = self.compute(which, threads, np.float32, found)
        except FrameError:
            rows = None  # single precision may not tell two atoms apart that are at different places
        error = 0.0
        if found:  # of all calls together: so it does not depend on the number of threads
            smallest, largest = zip(*found, strict=True)
            error = _vector.error_in_single(min(smallest), max(largest), self._spec.cutoff)
        if rows is None or math.isinf(error):
            return self.compute(which, threads), 0.0
        return rows, error

    def pull_back(
        self, which: NDArray[np.int64], along: NDArray[np.float64], threads: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Turn derivatives by descriptors into derivatives by positions and strain.

        Parameters
        ----------
        which
            (n,) environments, as for `compute`.
        along
            (n, d) derivatives of something by their rows.
        threads
            Threads to use; None takes all cores. The result does not depend on it.

        Returns
        -------
        tuple
            The derivatives by the positions of all rows of the frame (n_rows, 3), ghosts included, 1/Å; and those by a
            strain ε (3, 3) that moves x to (1 + ε)·x. The descriptor has a kink where the k-th neighbour changes: there
            the derivative is that of one side.
        """
        spec, n, column = self._spec, len(which), int(self._spec.by_centre)
        # Collected again, and not kept: at every evaluation they would take room, and only derivatives use them.
        points, owner, places = _collect_points(self._frame, self.centres, spec.cutoff)
        kinds = spec._kinds[self._frame.numbers][owner]
        slots = self._wanted.shape[1] * spec.k
        who, out, strain = np.empty((n, slots), np.int64), np.empty((n, slots, 3)), np.empty((n, 3, 3))
        how = (self._wanted, places[which], self._bins, spec.k, spec.cutoff, column, np.ascontiguousarray(along))
        task = partial(_gradient.pull_back, points, kinds, *how, who=who, out=out, strain=strain)
        over_rows(task, n, threads, _BLOCK)
        total = np.zeros((len(self._frame.positions), 3))
        _gradient.add_up(self.centres[which], who, out, owner, total)
        return total, strain.sum(axis=0)

    def is_nearer(self, rows: NDArray[np.float64], r: float) -> NDArray[np.bool_]:
        """Return for descriptors (n, d) from `compute` whether the nearest neighbour is nearer than r (Å).

        The first column of x1 tells: it is w(r)/r, which falls with the distance.

        Raises
        ------
        InputError
            r is not above 0, or is above the cutoff.
        """
        if not 0.0 < r <= self._spec.cutoff:
            raise InputError(f"a distance up to the cutoff of {self._spec.cutoff} Å can be told, not {r!r}")
        firsts = rows[:, int(self._spec.by_centre) :: 2 * self._spec.k - 1]
        nearer: NDArray[np.bool_] = np.any(firsts > (1.0 - (r / self._spec.cutoff) ** 2) ** 2 / r, axis=1)
        return nearer


def minimum_distances(frame: Frame, cutoff: float, kinds: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Lower ``out[a, b]`` to the smallest distance (Å) up to `cutoff` between atoms of kinds a and b.

    `kinds` (n,) is the kind of every row of the frame. These distances judge the plausibility of later frames.
    """
    points, owner, centres = _collect_points(frame, frame.centres, cutoff)
    bins = _neighbors.bin_points(points, cutoff)
    _neighbors.minimum_distances(points, kinds[owner], centres, bins, cutoff, out)


def _collect_points(
    frame: Frame, centres: NDArray[np.int64], cutoff: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all points that can be neighbours, the frame's row of each, and which points the `centres` are.

    The points may be the frame's own positions: do not write to them.
    """
    # A finite sum needs finite positions, and takes no temporary array. A sum that is not finite may have overflowed.
    points = frame.positions
    if not points.flags.carray:  # kernels were compiled for arrays in the order of C that may be written to
        points = np.require(points, requirements=["C", "A", "W"])
    if not math.isfinite(_neighbors.total(points)):
        check_positions(frame)
    owner = None
    if not frame.numbers.all():
        owner = np.flatnonzero(frame.numbers)
        points, centres = points[owner], np.searchsorted(owner, centres)
    if not frame.has_ghosts and np.count_nonzero(frame.pbc):
        points, atoms = _neighbors.pad_images(points, *cell_of(frame, cutoff), cutoff)
        owner = atoms if owner is None else owner[atoms]
    return points, np.arange(len(points)) if owner is None else owner, centres


def check_positions(frame: Frame) -> None:
    """Raise `FrameError` if positions are not finite."""
    bad = np.flatnonzero(~np.isfinite(frame.positions).all(axis=1))
    if len(bad):
        assert frame.ids is not None
        raise FrameError(
            f"step {frame.step}: {len(bad)} atoms have positions that are not finite numbers "
            f"(the first is id {frame.ids[bad[0]]}); the simulation has broken down"
        )


def cell_of(frame: Frame, cutoff: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return cell, inverse and pbc. Missing vectors of directions that are not periodic are filled in."""
    cell, pbc = np.array(frame.cell, dtype=np.float64), np.array(frame.pbc, dtype=bool)
    # Every evaluation of a frame of few atoms waits for this: numbers of Python are faster than arrays as short.
    a, b, c = cell.tolist()
    lengths = [math.hypot(*vector) for vector in (a, b, c)]
    if not math.isfinite(sum(lengths)):
        raise FrameError(f"step {frame.step}: the cell is not finite: {cell.tolist()}")
    missing = [length == 0.0 and not periodic for length, periodic in zip(lengths, pbc.tolist(), strict=True)]
    if any(missing):
        # Any vectors that complete the basis will do: these are orthonormal to the others.
        _, _, basis = np.linalg.svd(cell[np.logical_not(missing)], full_matrices=True)
        cell[missing] = basis[3 - sum(missing) :]
        a, b, c = cell.tolist()
        lengths = [math.hypot(*vector) for vector in (a, b, c)]
    columns = _cross(b, c), _cross(c, a), _cross(a, b)
    volume = sum(x * y for x, y in zip(a, columns[0], strict=True))
    if 0.0 in lengths or not abs(volume) / math.prod(lengths) >= 1e-6:
        raise FrameError(f"step {frame.step}: the cell is singular, yet pbc is {pbc.tolist()}: {cell.tolist()}")
    inverse = np.array(columns).T / volume
    images = 1.0
    for column, periodic in zip(columns, pbc.tolist(), strict=True):
        images *= 2.0 * math.ceil(cutoff * math.hypot(*column) / abs(volume)) + 1.0 if periodic else 1.0
    if images > _MOST_IMAGES:
        raise FrameError(f"step {frame.step}: the cell has collapsed: {cell.tolist()}")
    return cell, np.ascontiguousarray(inverse), pbc


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _explain_shared_place(frame: Frame, bad: NDArray[np.int64]) -> str:
    assert frame.ids is not None
    return (
        f"step {frame.step}: two atoms share a place in {len(bad)} environments "
        f"(the first is of the atom with id {frame.ids[bad[0]]})"
    )
