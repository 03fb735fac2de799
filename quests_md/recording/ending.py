"""The end of a run from outside: SIGTERM, and the end of its wall time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

from ..monitor import Monitor

__all__ = ["Ending"]


# The endings that a signal concerns, the oldest first. One handler serves them all.
_listening: list[Ending] = []


class Ending:
    """Stops a run at its next evaluation, on all ranks, after SIGTERM or when its wall time is over.

    A session of the main thread handles SIGTERM, unless the program has a handler of its own. A second SIGTERM ends the
    program as usual. So does `close`, if a SIGTERM came after the last evaluation.

    Parameters
    ----------
    monitor
        The monitor that is asked for the stop.
    wall_time
        Seconds from now on; None: no limit.
    """

    def __init__(self, monitor: Monitor, wall_time: float | None) -> None:
        self._monitor = monitor
        self._seconds = wall_time
        self._end = None if wall_time is None else time.monotonic() + wall_time
        self._told = False
        is_free = bool(_listening) or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if is_free and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _handle_signal)
            _listening.append(self)

    def look(self) -> None:
        """Ask for a stop, once, if the wall time is over."""
        if self._end is not None and time.monotonic() > self._end:
            self._end = None
            self._monitor.request_stop(f"the wall time of {self._seconds:g} s is over")

    def forget(self) -> None:
        """Take the request back, because the run is to go on."""
        self._told = False
        self._monitor.request_stop("")

    def close(self, halted: bool) -> None:
        """Stop handling SIGTERM. A signal that has not stopped the run ends the program now."""
        if self not in _listening:
            return
        _listening.remove(self)
        if not _listening:
            if signal.getsignal(signal.SIGTERM) is _handle_signal:
                with contextlib.suppress(ValueError):  # another thread closes the session
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._told and not halted:
                os.kill(os.getpid(), signal.SIGTERM)

    def tell(self) -> bool:
        """Ask for a stop because of a signal; return whether this was done before."""
        before, self._told = self._told, True
        self._monitor.request_stop("SIGTERM")
        return before


def _forget() -> None:
    """Stop handling SIGTERM in a fork: the runs belong to the parent."""
    if _listening and signal.getsignal(signal.SIGTERM) is _handle_signal:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _listening.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _handle_signal(number: int, frame: object) -> None:
    if all([ending.tell() for ending in _listening]):  # noqa: C419 - all must be told
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
