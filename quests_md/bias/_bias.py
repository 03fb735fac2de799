"""A bias: the energy −τ Σ f(dH) of a frame, its forces, and when it is off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, raise_together
from ..descriptors import Environments
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame
from ..index import Index
from ._bias_settings import BiasSettings
from ._heat import Heat
from ._returning import collect_forces
from ._shape import Shape
from ._tau import Strength

__all__ = ["Bias", "Push"]

_SAMPLE = 512  # rows of the reference whose dH tells the floor


class Push(NamedTuple):
    """What a bias does to a frame."""

    energy: float  # in eV, of the whole frame
    forces: NDArray[np.float64]  # (n_local, 3) in eV/Å
    virial: NDArray[np.float64]  # (3, 3) in eV, Σ x ⊗ F over all ranks: minus the derivative by a strain
    largest: float  # the largest force on an atom, over all ranks
    tau: float  # eV per nat, before forces that would be too large are scaled down
    off: str  # why the bias is off at this frame; empty if it is on


class _Found(NamedTuple):
    """What a rank knows of a frame, before the ranks talk."""

    total: float
    along: NDArray[np.float64]  # derivatives of the total by dH (n,)
    gradient: NDArray[np.float64]  # of dH by descriptors (n, d)
    which: NDArray[np.int64]
    maximum: float
    is_crowded: bool


class Bias:
    """Push the atoms of a run towards a larger dH.

    Parameters
    ----------
    index
        The reference. It must be of frames: own descriptors have no derivatives.
    settings
        `BiasSettings`, or a mapping of their names.
    comm
        The ranks that have parts of a frame.
    threads
        Threads of each rank.
    min_distance
        The share of the smallest distances in the reference at which two atoms overlap, as for `Monitor`. Half-way
        there the bias is off.

    Attributes
    ----------
    settings
        The settings.
    floor
        dH in nats below which atoms are not pushed.

    Raises
    ------
    InputError
        The settings are wrong, or the index holds own descriptors or is no index of a file.
    """

    def __init__(
        self,
        index: Any,
        settings: BiasSettings | Mapping[str, Any],
        *,
        comm: Comm | None = None,
        threads: int | None = 1,
        min_distance: float = 0.5,
    ) -> None:
        self.settings = BiasSettings.make(settings)
        if not isinstance(index, Index):
            raise InputError(
                "a bias needs an index of frames: a live reference changes while it is learned, and own descriptors "
                "have no derivatives here"
            )
        spec = index.spec  # an index of own descriptors raises here
        self._index, self._spec, self._threads = index, spec, threads
        self._comm = Serial() if comm is None else comm
        self._strength = Strength(self.settings)
        self._heat = Heat()
        self._memory = np.empty(0, np.int32)  # what tells at once that an atom is below the floor
        known = index.pair_distances[np.isfinite(index.pair_distances) & (index.pair_distances > 0)]
        nearest = 0.5 * (1.0 + min_distance) * float(known.min(initial=spec.cutoff))
        self._nearest = min(nearest, spec.cutoff)
        self.floor = find_floor(index, threads) if self.settings.floor is None else float(self.settings.floor)

        self._ask_all()

    def _ask_all(self) -> None:
        """Call every kernel once: what has to be compiled is compiled before the run, and not at a step of one rank."""
        known = SYMBOLS.index(self._index.centre_elements[0])
        two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([known] * 2), np.eye(3) * 9.0, True)
        environments, which = Environments(self._spec, two), np.arange(2)
        rows = environments.compute(which, 1)
        self._index.upper_bound(rows, 0.0, np.full(2, -1, np.int32), 1)
        _, gradient = self._index.differentiate(rows, 1)
        environments.pull_back(which, gradient, 1)

    @property
    def tau(self) -> float:
        """τ now, in eV per nat; 0 before the first step of a warm-up."""
        return self._strength.tau

    @property
    def warning(self) -> str:
        """What the user should hear: that no thermostat takes up the heat; else empty."""
        return self._heat.warning

    def resume(self, tau: float) -> None:
        """Go on with the τ (eV per nat) of an earlier part of the run."""
        self._strength.resume(tau)

    def push(
        self, frame: Frame | None, halt: float = math.inf, paused: str = "", error: Exception | None = None
    ) -> Push:
        """Compute the bias of a frame. Collective.

        Parameters
        ----------
        frame
            The frame, with the forces of the potential if the strength is a share of them. None only with an `error`.
        halt
            The halt threshold in nats. If the largest dH lies above it, the bias is off; without a `ceiling` among the
            settings it is the ceiling.
        paused
            Why the bias shall be off at this frame; empty if it shall not.
        error
            Why this rank has no frame. All ranks raise it.

        Raises
        ------
        QuestsError
            The frame cannot be measured, on any rank: on all ranks.
        """
        ceiling = halt if self.settings.ceiling is None else min(self.settings.ceiling, halt)
        if not paused and not math.isfinite(ceiling):
            paused = "no halt threshold is known yet"
        if paused:
            raise_together(self._comm, error)
            return self._rest(frame, paused)
        shape, found = Shape(self.floor, ceiling, self.settings.focus), None
        try:
            if error is not None or frame is None:
                raise error or InputError("there is no frame")
            if self.settings.strength is not None and not self._strength.is_fixed and frame.forces is None:
                raise InputError("bias: strength needs the forces of the potential, which this host has not: give tau")
            environments = Environments(self._spec, frame)
            found = self._measure(frame, environments, shape)
        except Exception as caught:  # noqa: BLE001 - the other ranks must hear of any error
            error = caught
        raise_together(self._comm, error)
        assert found is not None
        assert frame is not None
        total, maximum, crowded = self._add_up(found)
        if maximum > halt:
            return self._rest(frame, "the largest dH lies above halt")
        if crowded:
            return self._rest(frame, "two atoms are nearly too near to each other")
        energy, factor = shape.finish(total)
        self._heat.see(frame.velocities)
        along = found.gradient * (factor * found.along)[:, None]
        slopes, strain = environments.pull_back(found.which, along, self._threads)
        return self._scale(frame, energy, collect_forces(frame, slopes, self._comm), strain)

    def _measure(self, frame: Frame, environments: Environments, shape: Shape) -> _Found:
        """Find the atoms above the floor, and the derivatives of their dH."""
        index, threads = self._index, self._threads
        index.check_elements(frame.numbers)
        every = np.arange(len(environments))
        rows = environments.compute(every, threads)
        crowded = bool(len(rows)) and bool(environments.is_nearer(rows, self._nearest).any())
        if len(self._memory) != len(rows):
            self._memory = np.full(len(rows), -1, np.int32)
        which = np.flatnonzero(index.upper_bound(rows, shape.floor, self._memory, threads) > shape.floor)
        dH, gradient = index.differentiate(rows[which], threads) if len(which) else (np.empty(0), rows[which])
        f, slope = shape.compute(dH)
        total, along = shape.weigh(f, slope)
        maximum = float(dH.max(initial=-math.inf))
        wanted = slope > 0.0
        return _Found(total, along[wanted], gradient[wanted], which[wanted], maximum, crowded)

    def _add_up(self, found: _Found) -> tuple[float, float, bool]:
        """Return the total of all ranks, the largest dH, and whether atoms are too near anywhere. Collective."""
        mine = np.array([found.total, found.maximum, float(found.is_crowded)])
        every = self._comm.allgather(mine)
        return float(every[:, 0].sum()), float(every[:, 1].max()), bool(every[:, 2].any())

    def _scale(self, frame: Frame, energy: float, slopes: NDArray[np.float64], strain: NDArray[np.float64]) -> Push:
        """Return the push, of the energy at τ = −1 and its derivatives. Collective."""
        sizes = np.sqrt(np.einsum("ij,ij->i", slopes, slopes))
        of_model = 0.0
        if frame.forces is not None and not self._strength.is_fixed:
            of_model = float(np.sqrt(np.einsum("ij,ij->i", frame.forces, frame.forces)).sum())
        mine = np.array([sizes.sum(), of_model, float(len(sizes)), sizes.max(initial=0.0), *strain.ravel()])
        every = self._comm.allgather(mine)
        of_bias, of_model, n = (float(every[:, i].sum()) for i in range(3))
        largest, strain = float(every[:, 3].max()), every[:, 4:].sum(axis=0).reshape(3, 3)
        self._strength.see(of_model / max(n, 1.0), of_bias / max(n, 1.0))
        tau = known = self._strength.tau
        if tau * largest > self.settings.largest_force:
            tau = self.settings.largest_force / largest
        return Push(-tau * energy, tau * slopes, tau * strain, tau * largest, known, "")

    def _rest(self, frame: Frame | None, why: str) -> Push:
        n = 0 if frame is None else frame.n_local or 0
        return Push(0.0, np.zeros((n, 3)), np.zeros((3, 3)), 0.0, self.tau, why)


def find_floor(index: Index, threads: int | None) -> float:
    """Return the median dH (nats) of the reference's own environments, of which an even sample is taken."""
    n = len(index)
    rows = index.rows[:: max(1, n // _SAMPLE)].astype(np.float64) + index.centre
    if index.spec.by_centre:
        rows = np.column_stack([index.numbers[:: max(1, n // _SAMPLE)].astype(np.float64), rows])
    return float(np.median(index.delta_entropy(rows, threads)))
