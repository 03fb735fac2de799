"""The frames that an exploration keeps beside those of its session: where the next generation goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame, merge
from ..monitor import Band, Decision
from ..session import Session
from ..sinks import ExtxyzSink

__all__ = ["LAST_COVERED", "Keeper"]

LAST_COVERED = "last_covered.extxyz"
_REST = 20.0  # the file is written anew after so many times the time that writing it took: a crash finds it there

_Kept = tuple[Frame, NDArray[np.float64], dict[str, Any]]


class Keeper:
    """Keep the last covered frame before the first candidate, and the newest plausible one.

    Parameters
    ----------
    session
        The watched run.
    folder
        Of its files.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._file = ExtxyzSink(folder / LAST_COVERED)
        self._candidates = ExtxyzSink(folder / "candidates.extxyz")
        self._covered: _Kept | None = None
        self._newest: _Kept | None = None
        self._is_over = self._is_written = False
        self._seen, self._due = -1, 0.0

    def look(self, make: Callable[[], Frame]) -> None:
        """Look at the decision on the present step, where there is one; `make` returns the frame, with velocities.

        Its arrays are copied, atoms by id.
        """
        decision = self._session.decision
        if decision is None or decision.step == self._seen:
            return
        self._seen = decision.step
        if decision.band is Band.IMPLAUSIBLE:
            self._end()
            return
        self._newest = _kept(make(), decision)
        if decision.event or decision.save or decision.band is Band.HALT:
            self._end()
        elif decision.band is Band.COVERED and not self._is_over:
            self._covered, self._is_written = self._newest, False
            if time.perf_counter() > self._due:
                self.write()

    def _end(self) -> None:
        self._is_over = True
        self.write()

    def write(self) -> None:
        """Bring last_covered.extxyz up to date."""
        if self._covered is not None and not self._is_written:
            started = time.perf_counter()
            self._file.replace(*self._covered)
            now = time.perf_counter()
            self._is_written, self._due = True, now + _REST * (now - started)

    def propose(self, reason: str) -> None:
        """Make the newest plausible frame a candidate, unless it is one: the host has crashed after it."""
        if self._newest is None:
            return
        _, keys = self._candidates.resume()
        frame, dH, info = self._newest
        if (info["run"], info["step"]) not in keys:
            self._candidates.append(frame, dH, {**info, "reason": f"the last before {reason}"})


def _kept(frame: Frame, decision: Decision) -> _Kept:
    whole, order = merge([frame.local()])
    info = {
        "run": 1,
        "step": frame.step,
        "time": frame.time,
        "dH_max": decision.maximum,
        "band": str(decision.band),
        "values": decision.values,
    }
    return whole, decision.dH[order], info
