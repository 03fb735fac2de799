"""torch-sim as host: a reporter that watches every system of a batch in a session of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import Halted, InputError, MissingExtraError, MonitorError
from ..frame import Frame
from ..recording import Session
from ._opening import Opening, check_steering

_Base: Any = object
with contextlib.suppress(ImportError):
    from torch_sim import trajectory

    _Base = trajectory.TrajectoryReporter  # torch-sim takes no other reporter

__all__ = ["SessionReporter"]

_OPTIONAL = ("forces", "velocities")


class SessionReporter(_Base):  # type: ignore[misc]
    """Watch the systems of a batch: ``integrate(..., trajectory_reporter=SessionReporter(...))``.

    A system above `halt` is halted alone: from then on it is held where it is, and the others go on. When all are
    halted, the run ends with `Halted`.

    Parameters
    ----------
    sessions
        A session for each system, in the order of the batch. Or their configuration: a `RunConfig`, the path of a
        quests.toml or a mapping of its keys, with {n} in `output`; then sessions are opened at the first report, and
        `close` ends them.
    filenames, **trajectory
        As for ``TrajectoryReporter``: it writes trajectories, too, if it gets files.

    Attributes
    ----------
    sessions
        The sessions, in the order of the systems.
    halted
        The numbers of the systems that are halted.

    Raises
    ------
    InputError
        The configuration has no {n} in `output`.
    ConfigError
        The configuration is wrong.
    MissingExtraError
        torch-sim is not installed.
    """

    def __init__(self, sessions: Any, filenames: Any = None, **trajectory: Any) -> None:
        if _Base is object:
            raise MissingExtraError("torch-sim is not installed: pip install torch-sim-atomistic")
        super().__init__(filenames, **trajectory)
        self.sessions: list[Session] = []
        self.halted: list[int] = []
        self._given: Any = None
        self._openings: list[Opening] = []
        self._held: dict[int, Any] = {}  # positions of the systems that are halted
        if isinstance(sessions, Sequence) and not isinstance(sessions, str):
            self.sessions = list(sessions)
            for session in self.sessions:
                check_steering(session.steering is not None, steers=False)
        else:
            opening = Opening(sessions, "torch-sim", joins=False)
            if opening.config is None:
                self.sessions = [sessions]
            elif "{n}" not in opening.config.output:
                raise InputError(f'output = {opening.config.output!r}: put {{n}} into it, as in "uq-{{n}}"')
            self._given = opening.config

    def report(self, state: Any, step: int, model: Any = None) -> list[dict[str, Any]]:
        """Watch every system that is due, then do what a ``TrajectoryReporter`` does.

        Raises
        ------
        Halted
            All systems are halted.
        InputError
            The batch has another number of systems than there are sessions.
        MonitorError
            A system cannot be measured.
        """
        self._open(state.n_systems)
        owner = state.system_idx.detach().cpu().numpy()
        for number, session in enumerate(self.sessions):
            atoms = np.flatnonzero(owner == number)
            if number in self._held:
                self._hold(state, atoms, self._held[number])
            elif session.due(step) and session.observe(_make_frame(state, number, atoms, step)).stop:
                self.halted.append(number)
                self._held[number] = state.positions[atoms].clone()
        properties: list[dict[str, Any]] = super().report(state, step, model=model)
        if len(self.halted) == len(self.sessions):
            raise Halted("all systems are halted: " + "; ".join(session.reason for session in self.sessions))
        return properties

    def close(self) -> None:
        """Close the trajectories, and the sessions that this reporter has opened."""
        super().close()
        for opening in self._openings:
            opening.close(self)

    def load_new_trajectories(self, filenames: Any) -> None:
        """Refuse the next batch of an autobatcher: its systems are others than those of the sessions."""
        if getattr(self, "sessions", None):
            raise MonitorError("a SessionReporter watches one batch: run without autobatcher")
        super().load_new_trajectories(filenames)

    def _open(self, n: int) -> None:
        if self._given is not None and not self.sessions:
            self._openings = [Opening(self._given, "torch-sim", joins=False) for _ in range(n)]
            with contextlib.ExitStack() as stack:
                self.sessions = [stack.enter_context(opening.watching(self)) for opening in self._openings]
        if len(self.sessions) != n:
            raise InputError(f"the batch has {n} systems, and there are {len(self.sessions)} sessions: one for each")

    @staticmethod
    def _hold(state: Any, atoms: Any, positions: Any) -> None:
        """Put a halted system back to where it was halted, at rest."""
        state.positions[atoms] = positions
        for name in ("momenta", "velocities"):
            with contextlib.suppress(AttributeError, TypeError):  # velocities may be computed from momenta
                getattr(state, name)[atoms] = 0.0


def _make_frame(state: Any, number: int, atoms: Any, step: int) -> Frame:
    """Return a system of a batch as a frame; torch-sim's units are those of ASE."""

    def take(values: Any) -> Any:
        return values.detach().cpu().numpy().astype(np.float64)

    of_atoms = {name: take(getattr(state, name)[atoms]) for name in _OPTIONAL if getattr(state, name, None) is not None}
    energy = getattr(state, "energy", None)
    return Frame(
        take(state.positions[atoms]),
        state.atomic_numbers.detach().cpu().numpy()[atoms].astype(np.int64),
        take(state.row_vector_cell[number]),
        np.broadcast_to(np.asarray(getattr(state.pbc, "cpu", lambda: state.pbc)()), (3,)),
        step=step,
        energy=None if energy is None else float(energy.reshape(-1)[number]),
        **of_atoms,
    )
