"""last_covered.extxyz: the last covered frame of an exploration, where the next generation goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..monitor import Band
from .last import write_only_frame
from .recorder import Moment, Place, Recorder

__all__ = ["LAST_COVERED", "LastCovered"]

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
