"""A trajectory as a host: its frames are observed in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import InputError
from ..frame import Frame
from ..monitor import Decision
from ..recording import Session
from ._opening import check_steering

__all__ = ["replay"]


def replay(session: Session, frames: Iterable[Frame]) -> Iterator[Decision]:
    """Observe frames one after the other, and stop where a live run would have stopped.

    Nothing happens before the result is iterated over. The caller closes the session.

    Parameters
    ----------
    session
        The watched run.
    frames
        Frames in order of time, with their own `step` and `time`, such as ``sources.read_frames`` yields.

    Yields
    ------
    Decision
        One for each frame; ``evaluated`` is False if the step is not due. A decision to `stop` is the last one.

    Raises
    ------
    InputError
        An item is not a `Frame`, but for instance an ``ase.Atoms``, which has no step; or the session has a bias, whose
        forces a replay cannot add.
    MonitorError, OutputError
        `Session.observe` raises them.
    """
    check_steering(session.steering is not None, steers=False)
    for frame in frames:
        if not isinstance(frame, Frame):
            raise InputError(f"replay takes Frames, which have a step, not {type(frame).__name__}")
        decision = session.observe(frame)
        yield decision
        if decision.stop:
            return
