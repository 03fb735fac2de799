"""How a run ends from outside (SIGTERM, the end of its wall time), and what watching it has cost."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from dataclasses import dataclass

from ..monitor import Monitor

__all__ = ["Cost", "Ending"]


@dataclass
class Cost:
    """The time that a session takes on this rank, from when it began.

    Attributes
    ----------
    seconds
        Time taken.
    n, atoms
        Evaluations, and this rank's atoms in all of them.
    first, last
        When the first evaluation began, and when the last one ended, by ``time.perf_counter``.
    """

    seconds: float = 0.0
    n: int = 0
    atoms: int = 0
    first: float = math.nan
    last: float = math.nan

    @property
    def share(self) -> float:
        """Share of the wall time, from the first evaluation to the last; nan before the second."""
        return self.seconds / (self.last - self.first) if self.n > 1 else math.nan

    def in_words(self) -> str:
        """Return the cost as the end of a sentence; empty where there is none."""
        text = f"; {1e6 * self.seconds / self.atoms:.1f} µs per atom and evaluation" if self.atoms else ""
        return text if math.isnan(self.share) else f"{text}, {100 * self.share:.2f} % of the run"


# The sessions that a signal concerns, the oldest first: one handler serves them all.
_listening: list[Ending] = []


class Ending:
    """Lets a run stop at its next evaluation, on all ranks, when it is asked to end or its time is over.

    SIGTERM is listened to where nobody else does, from the main thread. A second one ends the program as if
    nobody listened; so does `close` for one that came when no evaluation was left to stop at.

    Parameters
    ----------
    monitor
        It is told to stop.
    wall_time
        Seconds from now on; None is no limit.
    """

    def __init__(self, monitor: Monitor, wall_time: float | None) -> None:
        self._monitor = monitor
        self._seconds = wall_time
        self._end = None if wall_time is None else time.monotonic() + wall_time
        self._told = False
        is_free = bool(_listening) or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if is_free and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _on_signal)
            _listening.append(self)

    def look(self) -> None:
        """Ask for a stop, once, if the time is over."""
        if self._end is not None and time.monotonic() > self._end:
            self._end = None
            self._monitor.request_stop(f"the wall time of {self._seconds:g} s is over")

    def forget(self) -> None:
        """Take a stop back: somebody wants the run to go on."""
        self._told = False
        self._monitor.request_stop("")

    def close(self, halted: bool) -> None:
        """Listen no more; a signal that nobody acted on has its usual effect."""
        if self not in _listening:
            return
        _listening.remove(self)
        if not _listening:
            if signal.getsignal(signal.SIGTERM) is _on_signal:
                with contextlib.suppress(ValueError):  # another thread closes the session
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._told and not halted:
                os.kill(os.getpid(), signal.SIGTERM)

    def tell(self) -> bool:
        """Ask for a stop because of a signal; return whether that had been done before."""
        before, self._told = self._told, True
        self._monitor.request_stop("SIGTERM")
        return before


def _forget() -> None:
    """Listen no more, in a fork: the runs are those of the parent."""
    if _listening and signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _listening.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _on_signal(number: int, frame: object) -> None:
    if all([ending.tell() for ending in _listening]):  # noqa: C419 - all are told
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
