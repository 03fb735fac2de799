"""The likelihood of sizes of nuclei: p(n) ∝ exp(a n − b n^{2/3}) over a range of sizes, an exponential family."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import NucleationError

__all__ = ["Fit", "maximise"]

_STEPS = 300
_STRIDE = 10.0  # largest change of an exponent in a step


@dataclass(frozen=True)
class Fit:
    """The maximum: a = Δμ/k_BT and b = γ s ρ^{−2/3}/k_BT, and ln of what multiplies exp(a n − b n^{2/3}).

    `ridge` is ∂b/∂a of the largest likelihood at a given a.
    """

    a: float
    b: float
    log_factor: float
    ridge: float

    @property
    def critical_size(self) -> float:
        """Where a n − b n^{2/3} is smallest; inf if it falls for ever."""
        return (2.0 * self.b / (3.0 * self.a)) ** 3 if self.a > 0 else math.inf

    @property
    def width(self) -> float:
        """How far beyond the critical size a n − b n^{2/3} has risen by 1 from there: Zeldovich's width."""
        return 3.0 * self.critical_size ** (2.0 / 3.0) / math.sqrt(self.b) if self.a > 0 else math.inf

    @property
    def barrier(self) -> float:
        """b n^{2/3} − a n at the critical size, in k_BT; inf if there is none."""
        return 4.0 * self.b**3 / (27.0 * self.a**2) if self.a > 0 else math.inf

    def log_expected(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ln of the expected count of each size."""
        return self.log_factor + self.a * sizes - self.b * sizes ** (2.0 / 3.0)


def maximise(
    counts: NDArray[np.int64], smallest: int, largest: int, slope: float | None, start: Fit | None = None
) -> Fit:
    """Maximise the likelihood of `counts` of nuclei, of sizes from `smallest` on, none of which exceeds `largest`.

    The sizes up to `largest` that were not seen count too. With `slope`, a is that; else it is fitted. The logarithm of
    the likelihood is concave, so Newton's steps, halved where they overshoot, end at its maximum.
    """
    sizes = np.arange(smallest, largest + 1, dtype=np.float64)
    features = np.stack([sizes, -(sizes ** (2.0 / 3.0))])
    total = float(counts.sum())
    seen = features[:, : len(counts)] @ counts / total
    free = [1] if slope is not None else [0, 1]
    if start is not None:
        theta = np.array([start.a, start.b])
    else:  # falling up to the largest size
        theta = np.array([slope or 0.0, 1.5 * (slope or 0.0) * largest ** (1.0 / 3.0) + 1.0])
    value, probability = _log_likelihood(theta, seen, features)
    for _ in range(_STEPS):
        mean, covariance = _moments(features, probability)
        step = np.zeros(2)
        try:
            step[free] = np.linalg.solve(covariance[np.ix_(free, free)], (seen - mean)[free])
        except np.linalg.LinAlgError:
            break
        size = float(np.ptp(step @ features))
        scale = min(1.0, _STRIDE / size) if size > 0 else 1.0
        new, there = _log_likelihood(theta + scale * step, seen, features)
        while new < value and scale > 1e-9:
            scale *= 0.5
            new, there = _log_likelihood(theta + scale * step, seen, features)
        if new >= value:
            theta, value, probability = theta + scale * step, new, there
        if size < 1e-6 or scale <= 1e-9:  # the last steps change the likelihood by less than a digit
            _, covariance = _moments(features, probability)
            log_factor = math.log(total) - _log_sum(theta @ features)
            return Fit(float(theta[0]), float(theta[1]), log_factor, float(-covariance[0, 1] / covariance[1, 1]))
    raise NucleationError(
        "the numbers of nuclei do not fix a surface tension: there are too few sizes, or too few of each"
    )


def _moments(
    features: NDArray[np.float64], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of the features."""
    mean = features @ probability
    rest = features - mean[:, None]
    return mean, (rest * probability) @ rest.T


def _log_likelihood(
    theta: NDArray[np.float64], seen: NDArray[np.float64], features: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return ln of the likelihood per nucleus, and the probability of each size."""
    exponents = theta @ features
    log_sum = _log_sum(exponents)
    return float(theta @ seen) - log_sum, np.exp(exponents - log_sum)


def _log_sum(exponents: NDArray[np.float64]) -> float:
    highest = float(exponents.max())
    return highest + math.log(float(np.sum(np.exp(exponents - highest))))
