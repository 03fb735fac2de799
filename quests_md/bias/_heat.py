"""Is there a thermostat? A bias does work on the atoms, and something must take up the heat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Heat"]

_STEPS = 100  # over which velocities are averaged
_RISE = 1.5


class Heat:
    """Follow the mean square velocity of this rank's atoms since the bias began.

    Attributes
    ----------
    warning
        What to tell the user, once; empty as long as nothing is wrong.
    """

    def __init__(self) -> None:
        self.warning = ""
        self._n, self._first, self._now = 0, 0.0, 0.0

    def see(self, velocities: NDArray[np.float64] | None) -> None:
        """Take note of the velocities at a step that is pushed."""
        if velocities is None or not len(velocities):
            return
        square = float(np.einsum("ij,ij->", velocities, velocities)) / len(velocities)
        self._n += 1
        if self._n <= _STEPS:
            self._first += (square - self._first) / self._n
            self._now = self._first
            return
        self._now += (square - self._now) / _STEPS
        if self._now > _RISE * self._first > 0.0 and not self.warning:
            self.warning = (
                f"the temperature is {self._now / self._first:.1f} times what it was when the bias began: the bias "
                "does work on the atoms, and a thermostat (Langevin, NVT) must take up the heat"
            )
