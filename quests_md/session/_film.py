"""The evaluated frames that are held in memory: the last one, and the way into an event."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..frame import Frame
from ..monitor import Band, Decision, History, Moment
from ._resume import Past
from ._writer import Writer

__all__ = ["Film"]


class Film:
    """Holds frames, and writes history.extxyz and last.extxyz.

    Parameters
    ----------
    history, after
        Evaluated frames before the beginning of an event, and after it, that are written.
    writer
        What writes them.
    """

    def __init__(self, history: int, after: int, writer: Writer) -> None:
        if isinstance(after, bool) or not isinstance(after, int) or after < 0:
            raise InputError(f"after must be a whole number of at least 0, not {after!r}")
        self._history = History(history)
        self._length, self._after, self._writer = history, after, writer
        self._to_come = self._event = 0  # frames that are still to be written, and the event they belong to
        self._is_pending = False  # evaluated since last.extxyz was written

    def push(self, frame: Frame, decision: Decision, info: dict[str, Any], written: bool) -> Moment:
        """Copy what this rank owns of a frame; `written`: history.extxyz holds it already."""
        errors = decision.force_errors
        columns = {} if errors is None else {"force_error": errors}
        moment = self._history.push(frame, decision.dH, info, columns, decision.band is not Band.IMPLAUSIBLE)
        moment.written, self._is_pending = written, True
        return moment

    def last_plausible(self) -> Moment | None:
        """Return the newest plausible frame, or None."""
        return self._history.last_plausible()

    def follow(self, moment: Moment, decision: Decision) -> None:
        """Write the way into an event when one begins, and some frames after that. Collective."""
        if decision.begins and (self._length or self._after):
            due, self._to_come = self._history.moments[-1 - self._length :], self._after
            self._event = decision.event
        elif self._to_come:
            due, self._to_come = [moment], self._to_come - 1
        else:
            return
        for each in due:
            if not each.written:
                self._writer.append(self._writer.files.history, each, event=self._event)
                each.written = True

    def write_last(self) -> None:
        """Make the last evaluated frame the content of last.extxyz. Collective."""
        last = self._history.last
        if self._is_pending and last is not None:
            self._is_pending = False
            self._writer.replace(self._writer.files.last, last)

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs beside the files: JSON can hold it."""
        return {"to_come": self._to_come, "recorded": self._event}

    def resume(self, past: Past) -> None:
        """Go on with an event that was being written."""
        self._to_come, self._event = past.to_come, int(past.state.get("recorded", 0))
