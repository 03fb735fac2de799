"""Conformal prediction for data in groups: quantiles, and the share that they cover.

The rule is that of Lee, Barber and Willett (arXiv:2306.06342). The sample consists of structures, not of atoms, because
atoms of one structure are wrong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError, InputError

__all__ = [
    "check_coverage", "count_needed", "draw_medians", "estimate_interval", "find_median", "find_quantile",
    "judge_held_out", "refuse_too_few",
]  # fmt: skip

_FOLDS = 20
_RESAMPLED = 2000  # samples of the bootstrap


def check_coverage(coverage: float) -> None:
    """Raise `InputError` unless this is a share between 0 and 1."""
    if not (isinstance(coverage, float) and 0.0 < coverage < 1.0):
        raise InputError(f"coverage must be a share between 0 and 1, not {coverage!r}")


def count_needed(coverage: float) -> int:
    """Return how many structures a finite quantile needs, the unseen one included."""
    return math.ceil(1.0 / (1.0 - coverage) - 1e-9)


def refuse_too_few(structures: NDArray[np.int64], coverage: float, symbol: str, remedy: str) -> None:
    """Raise `CalibrationError` if there are too few structures with an element for a finite quantile."""
    n, needed = len(np.unique(structures)), count_needed(coverage) - 1
    if n < needed:
        raise CalibrationError(
            f"a coverage of {coverage:g} needs at least {needed} labelled structures (frames, or "
            f"groups of them) with {symbol}, and there are {n}: {remedy}, or ask for less"
        )


def find_quantile(errors: NDArray[np.float64], structures: NDArray[np.int64], coverage: float) -> float:
    """Return the quantile of the errors. All structures weigh the same; one unseen structure has infinite errors."""
    return _find_share(errors, structures, coverage, 1.0)


def find_median(values: NDArray[np.float64], structures: NDArray[np.int64]) -> float:
    """Return the median of the values; all structures weigh the same. It is inf if there are no values."""
    return _find_share(values, structures, 0.5, 0.0)


def _find_share(values: NDArray[np.float64], structures: NDArray[np.int64], share: float, unseen: float) -> float:
    """Return the smallest value up to which lies this share; `unseen` structures have infinite values."""
    if not len(values):
        return math.inf
    _, kind, sizes = np.unique(structures, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    reached = np.cumsum(1.0 / ((len(sizes) + unseen) * sizes[kind[order]]))
    place = int(np.searchsorted(reached, share - 1e-12))
    return float(values[order[place]]) if place < len(values) else math.inf


def judge_held_out(
    structures: NDArray[np.int64], fit: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Return for each environment whether its error is below the bound that was fitted without its structure.

    Parameters
    ----------
    structures
        (n,) of the environments; they are put into folds.
    fit
        Is given which environments (n,) a bound is fitted to, and returns which of the others it covers.
    """
    covered = np.ones(len(structures), bool)
    folds = np.unique(structures, return_inverse=True)[1] % _FOLDS
    for fold in np.unique(folds):
        rest = folds != fold
        if rest.any():
            covered[~rest] = fit(rest)
    return covered


def estimate_interval(
    covered: NDArray[np.bool_], structures: Sequence[int] | NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return the covered share (mean over structures), and its 95 % interval from a bootstrap over structures."""
    _, kind = np.unique(structures, return_inverse=True)
    shares = np.bincount(kind, covered) / np.bincount(kind)
    drawn = np.random.default_rng(0).integers(len(shares), size=(_RESAMPLED, len(shares)))
    low, high = np.quantile(shares[drawn].mean(axis=1), [0.025, 0.975])
    return float(shares.mean()), float(low), float(min(high, 1.0))


def draw_medians(values: NDArray[np.float64], structures: NDArray[np.int64], seed: int) -> Iterator[float]:
    """Yield medians, as `find_median` does, of bootstrap samples of the structures."""
    _, kind, sizes = np.unique(structures, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    kind, rng = kind[order], np.random.default_rng(seed)
    for _ in range(_RESAMPLED):
        times = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        reached = np.cumsum((times / (len(sizes) * sizes))[kind])
        yield float(values[order[int(np.searchsorted(reached, 0.5 - 1e-12))]])
