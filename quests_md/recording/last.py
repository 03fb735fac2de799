"""Files of one frame and of broken ones: last.extxyz, last_covered.extxyz, implausible.extxyz."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..files.extxyz import format_parts
from ..monitor import Band
from .past import Past
from .recorder import FrameFile, Moment, Place, Recorder

__all__ = ["IMPLAUSIBLE", "LAST", "LAST_COVERED", "Implausible", "Last", "LastCovered", "write_only_frame"]

LAST = "last.extxyz"


class Last(Recorder):
    """Write the last evaluated frame when the run ends, or is told to stop.

    Attributes
    ----------
    moment
        The last one, if it has not been written yet.
    """

    files = (LAST,)

    def __init__(self, place: Place) -> None:
        self._place = place
        self.moment: Moment | None = None

    def close(self) -> None:
        """Make the last evaluated frame the content of the file, if it is not yet."""
        if self.moment is not None:
            moment, self.moment = self.moment, None
            write_only_frame(self._place, LAST, moment)


def write_only_frame(place: Place, name: str, moment: Moment) -> None:
    """Make a frame the only one of a file, atomically. Collective."""
    whole = moment.whole(place.comm)

    def act() -> None:
        assert whole is not None
        place.folder.replace(name, format_parts(whole.frame, whole.dH, moment.info(), whole.columns))

    place.on_root(act)


IMPLAUSIBLE = "implausible.extxyz"


class Implausible(Recorder):
    """Write broken frames; of those that follow each other the first."""

    files = (IMPLAUSIBLE,)
    bands = frozenset({Band.IMPLAUSIBLE})

    def __init__(self, place: Place) -> None:
        self._place = place
        self._file = FrameFile(place.folder, IMPLAUSIBLE)

    def see(self, moment: Moment) -> None:
        """Write a broken frame, with its reason."""
        if moment.follows_broken:
            return
        whole, reason = moment.whole(self._place.comm), moment.decision.reasons[0]

        def act() -> None:
            assert whole is not None
            self._file.append(moment.key, whole, {**moment.info(), "reason": reason})

        self._place.on_root(act)

    def resume(self, past: Past) -> None:
        """Take back frames of evaluations without a row."""

        def mend() -> None:
            self._file.scan()
            self._file.mend([place for place, key in enumerate(self._file.keys) if past.has_row(key)])

        self._place.on_root(mend)


LAST_COVERED = "last_covered.extxyz"
_REST = 20.0  # the file is written anew after so many times the time that writing it took: a crash finds it there


class LastCovered(Recorder):
    """Keep the last covered frame before the first candidate.

    Parameters
    ----------
    velocities
        Returns the velocities of this rank's atoms at the present step, in ASE's units, where the host's frames have
        none.
    """

    files = (LAST_COVERED,)
    sees_calm = True

    def __init__(self, place: Place, velocities: Callable[[], NDArray[np.float64]] | None = None) -> None:
        self._place, self._velocities = place, velocities
        self._covered: Moment | None = None
        self._is_over = self._is_written = False
        self._due = 0.0

    def see(self, moment: Moment) -> None:
        """Take a covered frame for the last one; the first one that is not ends that."""
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
        """Bring the file up to date."""
        if self._covered is not None and not self._is_written:
            started = time.perf_counter()
            write_only_frame(self._place, LAST_COVERED, self._covered)
            now = time.perf_counter()
            self._is_written, self._due = True, now + _REST * (now - started)
