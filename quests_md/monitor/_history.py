"""The last evaluated frames, held in memory: the way into an event."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..frame import Frame

__all__ = ["History", "Moment"]


@dataclass
class Moment:
    """One evaluated frame on one rank: what the rank owns of it, dH of these atoms, and what else it is saved with."""

    frame: Frame
    dH: NDArray[np.float64]
    info: dict[str, Any]
    columns: dict[str, NDArray[Any]]
    plausible: bool = True
    written: bool = False


class History:
    """The present evaluated frame, and the last `length` before it: one at least, should the present one be broken.

    Memory is taken once: a frame that falls out gives its arrays to the one that comes in.
    """

    def __init__(self, length: int) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise InputError(f"history must be a whole number of at least 0, not {length!r}")
        self._moments: deque[Moment] = deque()
        self._length = max(length, 1) + 1

    def push(
        self,
        frame: Frame,
        dH: NDArray[np.float64],
        info: dict[str, Any],
        columns: dict[str, NDArray[Any]],
        plausible: bool,
    ) -> Moment:
        """Copy what this rank owns of a frame, and return the copy."""
        used = self._moments.popleft() if len(self._moments) == self._length else None
        moment = Moment(frame.local(None if used is None else used.frame), dH, info, columns, plausible)
        self._moments.append(moment)
        return moment

    @property
    def moments(self) -> list[Moment]:
        """All of them, the present one last."""
        return list(self._moments)

    @property
    def last(self) -> Moment | None:
        """The present one, or None before the first."""
        return self._moments[-1] if self._moments else None

    def last_plausible(self) -> Moment | None:
        """Return the newest plausible one, or None."""
        return next((moment for moment in reversed(self._moments) if moment.plausible), None)
