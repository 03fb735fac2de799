"""An entropy of descriptors against one of thermodynamics: a line, and what is off it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ._units import columns, errors_of

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """The line of least squares through n points: entropy = intercept + slope · reference.

    Attributes
    ----------
    slope
        In nats per k_B.
    slope_error
        Standard error from the errors of the points, by draws; nan if none were given.
    slope_scatter
        Standard error from how far the points are off the line; nan for two points.
    intercept
        In nats.
    correlation
        Pearson's r.
    correlation_error
        Standard error from the errors of the points, by draws; nan if none were given.
    reference
        (n,) in k_B per atom.
    entropy
        (n,) in nats.
    """

    slope: float
    slope_error: float
    slope_scatter: float
    intercept: float
    correlation: float
    correlation_error: float
    reference: NDArray[np.float64]
    entropy: NDArray[np.float64]

    @property
    def residual(self) -> NDArray[np.float64]:
        """How far each point lies above the line, (n,) in nats."""
        return self.entropy - self.intercept - self.slope * self.reference


def compare(
    reference: ArrayLike,
    entropy: ArrayLike,
    *,
    error: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Fit a line to the entropies of states against a reference, all points alike.

    Two quantities that only grow correlate, whatever they are: r close to 1 says that they grow together, and no more.
    The residuals tell whether one is a measure of the other.

    Parameters
    ----------
    reference
        (n,) in k_B per atom, as `HeatEntropy.entropy`; a constant in it changes the intercept only.
    entropy
        (n,) in nats, as `Entropies.entropy`.
    error
        (n,) standard errors of `entropy`, or one for all. Default: none.
    covariance
        (n, n) of `reference`, as `HeatEntropy.covariance`. Default: none.
    draws
        Of normal errors, for the errors of slope and r.
    seed
        Of the draws.

    Raises
    ------
    InputError
        There are fewer than two states, all have one reference, or a value is not finite.
    """
    table = columns({"reference": reference, "entropy": entropy})
    x, y = table["reference"], table["entropy"]
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("a line needs two states at least, which differ in both entropies")
    slope, r = _line(x, y)
    residual = y - y.mean() - slope * (x - x.mean())
    scatter = float(np.sqrt(residual @ residual / (n - 2)) / np.linalg.norm(x - x.mean())) if n > 2 else np.nan
    slope_error = r_error = np.nan
    if error is not None or covariance is not None:
        rng = np.random.default_rng(seed)
        drawn = rng.normal(y, errors_of("error", error, n), (draws, n))
        drawn_reference = x + rng.normal(size=(draws, n)) @ _root(covariance, n).T
        found = np.array([_line(*points) for points in zip(drawn_reference, drawn, strict=True)])
        slope_error, r_error = found.std(axis=0, ddof=1)
    return Comparison(slope, float(slope_error), scatter, float(y.mean() - slope * x.mean()), r, float(r_error), x, y)


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return the slope of y against x, and Pearson's r."""
    a, b = x - x.mean(), y - y.mean()
    return float(a @ b / (a @ a)), float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _root(covariance: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return a matrix (n, n) whose product with its transpose is the covariance."""
    if covariance is None:
        return np.zeros((n, n))
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.shape != (n, n) or not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise InputError(f"the covariance must be a symmetric matrix ({n}, {n}), not of shape {matrix.shape}")
    values, vectors = np.linalg.eigh(matrix)  # it may have no Cholesky factor: the first entropy has no error
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=np.float64)
