"""The last frames of a run, and broken ones: last.extxyz, last_covered.extxyz, implausible.extxyz."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..files.extxyz import format_parts
from ..monitor import Band
from .past import Past
from .recorder import FrameFile, Moment, Place, Recorder

__all__ = ["LAST_COVERED", "Implausible", "Last", "LastCovered"]

LAST, LAST_COVERED, IMPLAUSIBLE = "last.extxyz", "last_covered.extxyz", "implausible.extxyz"


class Last(Recorder):
    """Write the last evaluated frame when the run ends, or is told to stop.

    Attributes
    ----------
    moment
        The last evaluation, until it is written; then None.
    """

    files = (LAST,)

    def __init__(self, place: Place) -> None:
        self._place = place
        self.moment: Moment | None = None

    def close(self) -> None:
        """Replace the content of the file by the last evaluated frame, unless that is written already."""
        if self.moment is not None:
            moment, self.moment = self.moment, None
            _write_only_frame(self._place, LAST, moment)


class LastCovered(Recorder):
    """Keep the last covered frame before the first candidate.

    Parameters
    ----------
    velocities
        Function that returns the velocities of this rank's atoms at the present step, in ASE's units, for a host whose
        frames have none.
    """

    files = (LAST_COVERED,)
    sees_calm = True
    # The file is written again after this many times the time that writing took. So a crash finds a recent frame in it.
    _REST = 20.0

    def __init__(self, place: Place, velocities: Callable[[], NDArray[np.float64]] | None = None) -> None:
        self._place, self._velocities = place, velocities
        self._covered: Moment | None = None
        self._is_over = self._is_written = False
        self._due = 0.0

    def see(self, moment: Moment) -> None:
        """Take note of a covered frame, until the first frame that belongs to an event, halts or is broken."""
        decision = moment.decision
        if decision.event or decision.save or decision.band in (Band.HALT, Band.IMPLAUSIBLE):
            self._is_over = True
            self.close()
        elif decision.band is Band.COVERED and not self._is_over:
            if self._velocities is not None:
                moment.frame.velocities = self._velocities()
            self._covered, self._is_written = moment, False
            if time.perf_counter() > self._due:
                self.close()

    def close(self) -> None:
        """Write the last covered frame, unless it is written already."""
        if self._covered is not None and not self._is_written:
            started = time.perf_counter()
            _write_only_frame(self._place, LAST_COVERED, self._covered)
            now = time.perf_counter()
            self._is_written, self._due = True, now + self._REST * (now - started)


def _write_only_frame(place: Place, name: str, moment: Moment) -> None:
    """Make a frame the only one of a file, atomically. Collective."""
    whole = moment.whole(place.comm)

    def act() -> None:
        assert whole is not None
        place.folder.replace(name, format_parts(whole.frame, whole.dH, moment.info(), whole.columns))

    place.on_root(act)


class Implausible(Recorder):
    """Write broken frames; if several follow each other, only the first."""

    files = (IMPLAUSIBLE,)
    bands = frozenset({Band.IMPLAUSIBLE})

    def __init__(self, place: Place) -> None:
        self._place = place
        self._file = FrameFile(place.folder, IMPLAUSIBLE)

    def see(self, moment: Moment) -> None:
        """Write a broken frame with its reason."""
        if moment.follows_broken:
            return
        whole, reason = moment.whole(self._place.comm), moment.decision.reasons[0]

        def act() -> None:
            assert whole is not None
            self._file.append(moment.key, whole, {**moment.info(), "reason": reason})

        self._place.on_root(act)

    def resume(self, past: Past) -> None:
        """Remove frames of evaluations without a row."""

        def mend() -> None:
            self._file.scan()
            self._file.mend([place for place, key in enumerate(self._file.keys) if past.has_row(key)])

        self._place.on_root(mend)
