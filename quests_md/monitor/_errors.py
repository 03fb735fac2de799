"""Force errors to be expected in a frame: local residuals of its environments, and what a calibration makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..index import ADDED, LocalBound
from ..information import Precision

__all__ = ["Errors", "LocalErrors"]


class Errors(NamedTuple):
    """Force errors of environments.

    Attributes
    ----------
    expected
        (n,) expected errors in eV/Å, nan outside of what is calibrated; None with a bound by dH alone.
    bound
        (n,) bounds in eV/Å, inf outside.
    """

    expected: NDArray[np.float64] | None
    bound: NDArray[np.float64]

    def count_outside(self) -> int:
        """Return how many environments are outside."""
        return int(np.count_nonzero(np.isinf(self.bound)))


class LocalErrors:
    """The local residuals of a frame's environments, as far as they are known.

    Parameters
    ----------
    index
        The reference: an index with residuals.
    bound
        What its calibration says of them.
    n
        Number of environments.

    Attributes
    ----------
    s
        (n,) in eV/Å: exact, an estimate, or nan where nothing is known.
    is_exact
        (n,) bool: where they are exact, in the precision of dH.
    """

    def __init__(self, index: Any, bound: LocalBound, n: int) -> None:
        self._index: Any = index
        self.bound = bound
        self.s = np.full(n, np.nan)
        self.is_exact = np.zeros(n, bool)

    @staticmethod
    def find(index: Any) -> LocalBound | None:
        """Return what the calibration of a reference says of local residuals; None without such a calibration."""
        bound: LocalBound | None = getattr(getattr(index, "calibration", None), "local_error", None)
        return bound

    def put(
        self, which: Any, rows: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute the residuals of environments from their rows; return their dH (nats)."""
        dH, self.s[which] = self._index.local_residuals(
            rows, threads, potential=self.bound.potential, precision=precision
        )
        self.is_exact[which] = True
        return np.asarray(dH, np.float64)

    def estimate(self, which: Any, rows: NDArray[np.float64], threads: int | None) -> None:
        """Estimate the residuals of environments from their rows, where they are not exact."""
        estimates = self._index.estimate_residuals(rows, threads, potential=self.bound.potential)
        self.s[which] = np.where(self.is_exact[which], self.s[which], estimates)

    @property
    def is_quick(self) -> bool:
        """Whether the residuals of few environments cost no more than dH: the index keeps what it lays out."""
        return bool(self._index.keeps_layout)

    def add_up(self) -> float:
        """Return Σ(s + 0.005 eV/Å)² over the environments that have a residual."""
        scale = self.s + ADDED
        return float(np.square(scale[~np.isnan(scale)]).sum())

    def judge(self, dH: NDArray[np.float64], numbers: NDArray[np.uint8]) -> Errors:
        """Return the force errors of all environments."""
        return Errors(self.bound.expected(dH, self.s, numbers), self.bound.bound(dH, self.s, numbers))
