"""One configuration at one step, as numpy arrays: what every host hands to the monitor."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import FrameError

__all__ = ["AppliedBias", "Frame", "as_frames", "merge", "step_of"]

_OF_ATOMS = ("positions", "numbers", "ids", "watched", "velocities", "forces")  # one row for each atom
_OF_FRAME = ("cell", "pbc", "origin")


class AppliedBias(NamedTuple):
    """What a bias added to the potential at a frame, over all ranks."""

    energy: float  # in eV
    largest: float  # the largest force on an atom, in eV/Å
    tau: float  # eV per nat


@dataclass
class Frame:
    """One configuration at one step.

    Units are ASE's: Å, eV, and Å per (Å·sqrt(u/eV)) for velocities; `time` is in ps. Arrays may view the memory of the
    host. They are then valid only until its callback returns: `copy` a frame that must live longer.

    Parameters
    ----------
    positions
        (n, 3), in Å. Rows from `n_local` on are ghosts: copies of atoms of other ranks or of periodic images.
    numbers
        (n,) atomic numbers. 0 marks a site that is neither centre nor neighbour (a wall, a virtual site).
    cell
        (3, 3), one cell vector per row, in Å; zeros where there is none.
    pbc
        Periodic or not, for each cell vector.
    ids
        (n,) integers that name the atoms, as the host does. Default 0, 1, 2, ...
    step, time
        Step, and time in ps (nan: unknown).
    n_local
        Number of leading rows that are this rank's own atoms. By default all are, and periodic images are made when
        they are needed. With an explicit value the frame holds all ghosts, and no images are made.
    origin
        (3,) corner of the cell, in Å.
    watched
        (n_local,) bool: which atoms are centres. All atoms are neighbours.
    velocities, forces
        (n_local, 3), if the host has them. Forces are the running model's, in eV/Å.
    energy
        Potential energy of the running model, in eV, if the host has it.
    bias
        What a bias added to the forces and the energy of the model, which are without it; None if there is none.
    n_expected
        Number of atoms that the host expects in the whole frame, over all ranks; None: it does not know. If there are
        fewer rows, atoms were lost.
    group
        Name of the origin of the frame (a trajectory, a kind of structure), if it is known. A calibration leaves out
        whole groups.

    Raises
    ------
    FrameError
        An array has the wrong shape, or `numbers` are not atomic numbers.
    """

    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    cell: NDArray[np.float64] | None = None
    pbc: ArrayLike = (False, False, False)
    ids: NDArray[np.int64] | None = None
    step: int = 0
    time: float = float("nan")
    n_local: int | None = None
    origin: NDArray[np.float64] | None = None
    watched: NDArray[np.bool_] | None = None
    velocities: NDArray[np.float64] | None = None
    forces: NDArray[np.float64] | None = None
    energy: float | None = None
    bias: AppliedBias | None = None
    n_expected: int | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        self.positions = np.asarray(self.positions, dtype=np.float64)
        if self.positions.ndim != 2 or self.positions.shape[1] != 3:
            raise FrameError(f"positions must have shape (n, 3), not {self.positions.shape}")
        n = len(self.positions)
        self.has_ghosts = self.n_local is not None
        self.n_local = n if self.n_local is None else int(self.n_local)
        if not 0 <= self.n_local <= n:
            raise FrameError(f"n_local = {self.n_local} is not between 0 and the {n} rows of positions")
        self.numbers = np.asarray(self.numbers)
        self.cell = np.zeros((3, 3)) if self.cell is None else np.asarray(self.cell, dtype=np.float64)
        pbc = np.asarray(self.pbc, dtype=bool)
        self.pbc = pbc if pbc.shape == (3,) else np.broadcast_to(pbc, (3,))
        self.origin = np.zeros(3) if self.origin is None else np.asarray(self.origin, dtype=np.float64)
        self.ids = np.arange(n) if self.ids is None else np.asarray(self.ids)
        if self.watched is None:
            self.watched = np.ones(self.n_local, dtype=bool)
        self.watched = np.asarray(self.watched, dtype=bool)
        self._check_shapes(n, self.n_local)
        z = self.numbers
        if n and not (z.dtype.kind in "iu" and z.min() >= 0 and z.max() <= 118):
            raise FrameError("numbers must be atomic numbers, 0 to 118")

    def _check_shapes(self, n: int, n_local: int) -> None:
        expected = {
            "numbers": (n,),
            "ids": (n,),
            "cell": (3, 3),
            "origin": (3,),
            "watched": (n_local,),
            "velocities": (n_local, 3),
            "forces": (n_local, 3),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise FrameError(f"{name} must have shape {shape}, not {value.shape}")

    @classmethod
    def from_atoms(cls, atoms: Any, step: int = 0, time: float = float("nan"), **more: Any) -> Frame:
        """Make a frame that views an ``ase.Atoms``, without importing ase.

        It takes positions, numbers, cell, pbc and, if they are set, velocities; no calculator is called.
        """
        if "velocities" not in more and "momenta" in atoms.arrays:
            more["velocities"] = atoms.get_velocities()
        cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
        return cls(atoms.positions, atoms.numbers, cell, pbc, step=step, time=time, **more)

    @property
    def centres(self) -> NDArray[np.int64]:
        """Rows of the watched atoms, which are the centres of the frame's environments, in order."""
        assert self.watched is not None
        return np.flatnonzero(self.watched & (self.numbers[: self.n_local] != 0))

    @property
    def distinct_numbers(self) -> NDArray[np.int64]:
        """Atomic numbers in the frame, ghosts included, in ascending order; 0 is left out."""
        # Needed at every evaluation; counting is several times faster than sorting.
        return np.flatnonzero(np.bincount(self.numbers.astype(np.int64, copy=False), minlength=1)[1:]) + 1

    def copy(self) -> Frame:
        """Return a frame that shares no memory with this one."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.has_ghosts:
            values["n_local"] = None
        values = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in values.items()}
        return Frame(**values)

    def bare(self) -> Frame:
        """Return a copy of this rank's atoms, without ghosts, velocities, forces, energy and bias."""
        twin = copy.copy(self)
        twin.velocities = twin.forces = twin.energy = twin.bias = None
        return twin.local()

    def local(self, into: Frame | None = None) -> Frame:
        """Return a copy of this rank's atoms, without ghosts.

        It reuses the memory of `into`, an earlier copy that is no longer needed, for arrays of the same size.
        """
        twin = copy.copy(self)  # without the checks, which `self` has passed
        for name in _OF_ATOMS + _OF_FRAME:
            value = getattr(self, name)
            if value is None:
                continue
            value = value[: self.n_local] if name in _OF_ATOMS else value
            there = getattr(into, name, None)
            if there is None or there.shape != value.shape or there.dtype != value.dtype:
                there = np.empty_like(value)
            np.copyto(there, value)
            setattr(twin, name, there)
        twin.has_ghosts = False
        return twin


def merge(parts: Sequence[Frame]) -> tuple[Frame, NDArray[np.int64]]:
    """Join the parts of all ranks, which have no ghosts; return the frame, its atoms sorted by id, and their order."""
    order = np.argsort(np.concatenate([np.asarray(part.ids) for part in parts]), kind="stable")
    columns: dict[str, Any] = {}
    for name in _OF_ATOMS:
        values = [getattr(part, name) for part in parts]
        columns[name] = None if values[0] is None else np.concatenate(values)[order]
    return replace(parts[0], n_local=None, **columns), order


def step_of(frame: Frame | None, step: int | None) -> int:
    """Return the step of a frame, or the one given for a frame that could not be made."""
    if frame is None:
        assert step is not None
        return step
    if not isinstance(frame, Frame):  # ase.Atoms know no step, which a watched run needs
        raise FrameError(
            f"expected a Frame, not {type(frame).__name__}: Frame.from_atoms(atoms, step) makes one of an ase.Atoms"
        )
    return frame.step


def as_frames(frames: Any) -> Iterator[Frame]:
    """Iterate over frames, given one `Frame`, one ``ase.Atoms``, or an iterable of them."""
    if isinstance(frames, Frame) or hasattr(frames, "positions"):
        frames = [frames]
    if isinstance(frames, (str, os.PathLike)):
        raise FrameError(f"expected frames, not the path of a file: ase.io.read({os.fspath(frames)!r}, ':') reads them")
    if not isinstance(frames, Iterable):
        raise FrameError(f"expected a Frame, an ase.Atoms or a list of them, not {type(frames).__name__}")
    for item in frames:
        if isinstance(item, Frame):
            yield item
        elif hasattr(item, "positions") and hasattr(item, "numbers"):
            yield Frame.from_atoms(item)
        else:
            raise FrameError(f"expected a Frame or an ase.Atoms, not {type(item).__name__}")
