"""A trajectory as a host: frames that are there already, observed in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import InputError
from ..frame import Frame
from ..monitor import Decision
from ..recording import Session

__all__ = ["replay"]


def replay(session: Session, frames: Iterable[Frame]) -> Iterator[Decision]:
    """Observe frames one after the other, and stop where a live run would have stopped.

    Nothing happens until the result is iterated over. Closing the session is left to the caller.

    Parameters
    ----------
    session
        The watched run.
    frames
        Frames in order of time, with their own `step` and `time`: ``sources.read_frames`` gives a file's.

    Yields
    ------
    Decision
        One per frame; ``evaluated`` is False where the step is not due. One that says `stop` is the last.

    Raises
    ------
    InputError
        An item is not a `Frame`: an ``ase.Atoms``, say, has no step.
    MonitorError, OutputError
        As `Session.observe`.
    """
    for frame in frames:
        if not isinstance(frame, Frame):
            raise InputError(f"replay takes Frames, which have a step, not {type(frame).__name__}")
        decision = session.observe(frame)
        yield decision
        if decision.stop:
            return
