"""Whether nuclei come and go, or grow: blocks of time, correlation, and a test for a trend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from ..errors import NucleationError
from ._nuclei import NucleiSeries

__all__ = ["blocks_of", "check_stationary", "correlation_time"]

# A trend that is larger than this share of the mean, and than chance would bring so often, is refused.
_CHANGE, _CHANCE = 0.1, 0.003
_LENGTHS = 2.0  # correlation times that a block must hold


def blocks_of(window: NucleiSeries, n: int) -> list[NucleiSeries]:
    """Cut a window into n blocks of equal length; frames that are left over are the first ones, and in none.

    Raises
    ------
    NucleationError
        There are fewer than two frames for each.
    """
    length = len(window) // n
    if length < 2:
        raise NucleationError(f"{len(window)} frames are too few for {n} blocks of time: give at least {2 * n}")
    ends = range(len(window), len(window) - n * length, -length)
    return [window.window(int(window.steps[end - length]), int(window.steps[end - 1])) for end in reversed(ends)]


def correlation_time(values: NDArray[np.float64]) -> float:
    """Return 1 + 2 Σ_t ρ(t) of evenly spaced values; the sum ends at five times its own length (Sokal's rule)."""
    values = values - values.mean()
    n = len(values)
    if n < 2 or not np.any(values):
        return 1.0
    spectrum = np.fft.rfft(values, 2 * n)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:n]
    times = 2.0 * np.cumsum(correlation / correlation[0]) - 1.0
    enough = np.flatnonzero(np.arange(n) >= 5.0 * times)
    return max(1.0, float(times[enough[0] if len(enough) else n - 1]))


def check_stationary(window: NucleiSeries, groups: list[NucleiSeries]) -> float:
    """Return the correlation time, in frames, of the number of environments in nuclei.

    Raises
    ------
    NucleationError
        The means of the blocks rise or fall more than chance would have it, or the blocks are too short to tell.
    """
    measures = {
        "number of environments in nuclei": [part.n_inside for part in groups],
        "number of nuclei": [part.n_nuclei for part in groups],
        "size of the largest nucleus": [part.largest for part in groups],
    }
    where = f"in the window of steps {window.steps[0]} to {window.steps[-1]}"
    for name, values in measures.items():
        means = np.array([part.mean() for part in values])
        change, chance = _trend(means)
        if abs(change) > _CHANGE * means.mean() and chance < _CHANCE / len(measures):
            raise NucleationError(
                f"not stationary: the {name} goes from {means[0]:.4g} to {means[-1]:.4g} {where} (a trend that chance "
                f"brings with probability {chance:.1g}). Leave out the time to equilibrate, and the growth"
            )
    time = correlation_time(window.n_inside.astype(float))
    if len(groups[0]) < _LENGTHS * time:
        raise NucleationError(
            f"too short: {where} nuclei are correlated over {time:.3g} frames, and a block of time has "
            f"{len(groups[0])}, fewer than twice that: take a longer window, or fewer blocks"
        )
    return time


def _trend(means: NDArray[np.float64]) -> tuple[float, float]:
    """Return how far a line through these values rises, and with which probability it is so steep by chance."""
    time = np.arange(len(means)) - (len(means) - 1) / 2.0
    slope = float(time @ means / (time @ time))
    rest = means - means.mean() - slope * time
    free = len(means) - 2
    error = float(np.sqrt(rest @ rest / free / (time @ time)))
    chance = float(2.0 * student.sf(abs(slope) / error, free)) if error > 0 else 0.0
    return slope * (len(means) - 1), chance
