"""The energy of a bias as a function of dH: flat, then rising, then flat again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["Shape"]

_ENDS = 0.25  # the share of the way from floor to ceiling in which the slope goes from 0 to 1, and again to 0
_SOFT = 0.5  # nats: atoms whose dH differs by less than this share the push of the worst


@dataclass(frozen=True)
class Shape:
    """f(dH), of which the energy of the bias is −τ Σ f.

    Its slope is 0 up to `floor`, rises smoothly to 1, and falls to 0 at `ceiling`. So forces are continuous, covered
    atoms are left alone, and the bias lets go of an atom before its environment is implausible.

    Parameters
    ----------
    floor, ceiling
        In nats.
    focus
        "all": the sum over atoms. "worst": a soft maximum in place of the sum, `_SOFT`·ln(1 + Σ (e^(f/`_SOFT`) − 1)).

    Raises
    ------
    InputError
        The floor is not below the ceiling.
    """

    floor: float
    ceiling: float
    focus: str = "all"

    def __post_init__(self) -> None:
        if not self.floor < self.ceiling:
            raise InputError(
                f"bias: floor = {self.floor:g} nats must lie below ceiling = {self.ceiling:g} nats (not given, the "
                "floor is the median dH of the reference, and the ceiling the halt threshold)"
            )

    def compute(self, dH: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return f and its slope at dH, both (n,)."""
        width = _ENDS * (self.ceiling - self.floor)
        up = np.clip((dH - self.floor) / width, 0.0, 1.0)
        down = np.clip((dH - (self.ceiling - width)) / width, 0.0, 1.0)
        middle = np.clip(dH, self.floor + width, self.ceiling - width) - (self.floor + width)
        f = width * _integrate(up) + middle + width * (down - _integrate(down))
        slope = _step(up) - _step(down)
        return f, slope

    def weigh(self, f: NDArray[np.float64], slope: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return what atoms add to the energy, and the derivatives of that by dH (n,).

        With the focus "worst" these are terms of the sum inside of the soft maximum: `finish` turns the sum over all
        ranks into the energy.
        """
        if self.focus == "all":
            return float(f.sum()), slope
        # Relative to what f is at the ceiling: so nothing overflows.
        grown = np.exp((f - self._top) / _SOFT)
        return float((grown - np.exp(-self._top / _SOFT)).sum()), slope * grown

    def finish(self, total: float) -> tuple[float, float]:
        """Return the energy in units of −τ, and the factor of the derivatives of `weigh`, of the sum over all atoms."""
        if self.focus == "all":
            return total, 1.0
        whole = max(0.0, total) + float(np.exp(-self._top / _SOFT))
        return self._top + _SOFT * float(np.log(whole)), 1.0 / whole

    @property
    def _top(self) -> float:
        return (1.0 - _ENDS) * (self.ceiling - self.floor)  # what f is at the ceiling


def _step(t: Any) -> Any:
    """Return a smooth step from 0 to 1, of which `_integrate` is the integral."""
    return t * t * (3.0 - 2.0 * t)


def _integrate(t: Any) -> Any:
    return t**3 * (1.0 - 0.5 * t)
