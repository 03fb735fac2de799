"""Events: consecutive evaluated frames outside the covered band."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["Event", "Events"]


@dataclass
class Event:
    """One event: when it began and ended, how bad it was, and whom it concerned.

    Attributes
    ----------
    number
        1, 2, ... in the order of the run; 0 as long as too few frames have lain above `select`.
    start, start_time
        Step and time (ps) of the first frame above `select`.
    end, end_time
        Of the last one so far.
    worst, maximum, max_id
        Step of the largest dH (nats) of the event, that dH, and the id of its atom.
    n_frames
        Evaluated frames above `select`.
    atoms
        Ids of the atoms that were above `select`, in order: of this rank's, while the event goes on.
    over
        Whether it has ended.
    """

    start: int
    start_time: float
    number: int = 0
    end: int = 0
    end_time: float = float("nan")
    worst: int = 0
    maximum: float = -float("inf")
    max_id: int = -1
    n_frames: int = 0
    atoms: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    over: bool = False

    def see(self, step: int, time: float, maximum: float, max_id: int, atoms: NDArray[np.int64]) -> None:
        """Count a frame above `select`."""
        self.end, self.end_time = step, time
        self.n_frames += 1
        if maximum > self.maximum:
            self.worst, self.maximum, self.max_id = step, maximum, max_id
        self.atoms = np.union1d(self.atoms, atoms)


class Events:
    """Follow the events of a run; every rank follows the same ones.

    Parameters
    ----------
    consecutive
        So many evaluated frames in a row begin an event, and so many end it. A frame that halts begins one at once.
    release
        dH (nats) to which the largest one must have fallen for an event to end; None: `select` itself.

    Attributes
    ----------
    count
        Events that have begun.
    current, ended
        The one that goes on, and the last one that ended; or None.
    coming
        Frames above `select` that are too few to be an event yet, as one without a number; or None.
    """

    def __init__(self, consecutive: int, release: float | None) -> None:
        if isinstance(consecutive, bool) or not isinstance(consecutive, int) or consecutive < 1:
            raise InputError(f"consecutive must be a whole number of at least 1, not {consecutive!r}")
        if release is not None and (isinstance(release, bool) or not isinstance(release, (int, float))):
            raise InputError(f"release must be a number of nats, not {release!r}")
        self.consecutive, self.release = consecutive, release
        self.count = 0
        self.current: Event | None = None
        self.ended: Event | None = None
        self.coming: Event | None = None
        self._calm = 0  # evaluated frames in a row that may end the current one

    @property
    def open(self) -> Event | None:
        """The event that goes on, or may become one."""
        return self.current or self.coming

    def above(
        self, step: int, time: float, maximum: float, max_id: int, atoms: NDArray[np.int64], at_once: bool
    ) -> bool:
        """Take in a frame above `select`; return whether an event begins with it."""
        self._calm = 0
        event = self.current or self.coming
        if event is None:
            event = self.coming = Event(step, time)
        event.see(step, time, maximum, max_id, atoms)
        if self.current is not None or not (at_once or event.n_frames >= self.consecutive):
            return False
        self.count += 1
        event.number = self.count
        self.current, self.coming = event, None
        return True

    def below(self, maximum: float) -> bool:
        """Take in a frame that is not above `select`; return whether the current event ends with it."""
        self.coming = None
        if self.current is None:
            return False
        self._calm = self._calm + 1 if self.release is None or maximum <= self.release else 0
        if self._calm < self.consecutive:
            return False
        self.ended, self.current, self._calm = self.current, None, 0
        self.ended.over = True
        return True
