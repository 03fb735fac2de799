"""Entropies of thermodynamics, from heat or from a coupling, and their comparison with entropies of descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..notebook import Table
from ._entropies import K_B, check_columns, check_errors

__all__ = ["Comparison", "CouplingEntropy", "HeatEntropy", "compare", "coupling_entropy", "heat_entropy"]


# -- from heat ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class HeatEntropy(Table):
    """∫ C_p/T dT from the first of n temperatures to each of them.

    Attributes
    ----------
    temperature
        (n,) K, ascending.
    entropy
        (n,) in k_B per atom; 0 at the first temperature.
    covariance
        (n, n) covariance of the entropies, in k_B²: the error of one enthalpy enters several entropies.
    heat_capacity
        (n,) C_p of the fit, in k_B per atom. Without a fit (n − 1,), between the temperatures.
    residual
        (n,) enthalpy minus the fit, in eV per atom; 0 without a fit.
    degree
        Degree of the polynomial; None without a fit.
    """

    _COLUMNS = ("temperature", "entropy", "error", "configurational")

    temperature: NDArray[np.float64]
    entropy: NDArray[np.float64]
    covariance: NDArray[np.float64]
    heat_capacity: NDArray[np.float64]
    residual: NDArray[np.float64]
    degree: int | None

    @property
    def error(self) -> NDArray[np.float64]:
        """Standard errors of the entropies (n,), in k_B per atom."""
        errors: NDArray[np.float64] = np.sqrt(np.diag(self.covariance))
        return errors

    @property
    def configurational(self) -> NDArray[np.float64]:
        """The entropies (n,) without the part of the momenta, 3/2 ln(T/T_0) for classical atoms, in k_B per atom."""
        rest: NDArray[np.float64] = self.entropy - 1.5 * np.log(self.temperature / self.temperature[0])
        return rest


def heat_entropy(
    temperature: ArrayLike, enthalpy: ArrayLike, error: ArrayLike | None = None, *, degree: int | None = 3
) -> HeatEntropy:
    """Integrate C_p/T over T. C_p is the derivative of enthalpies at one pressure, or of energies at one volume.

    Entropies are linear in the enthalpies, so their covariance follows exactly from the errors of the enthalpies.

    Parameters
    ----------
    temperature
        (n,) in K, at least two, all different.
    enthalpy
        (n,) in eV per atom: U + P V.
    error
        Independent standard errors of the enthalpies, (n,) or one for all, in eV per atom. Default: 0. Their inverse
        is the weight in the fit, unless one of them is 0.
    degree
        Degree of the polynomial that is fitted to the enthalpies; 1 means a constant C_p. With None, nothing is fitted
        and C_p is constant between neighbouring temperatures.

    Raises
    ------
    InputError
        A value is out of range, a temperature occurs twice, or the degree is not below the number of temperatures.
    """
    table = check_columns({"temperature": temperature, "enthalpy": enthalpy}, positive=("temperature",))
    order = np.argsort(table["temperature"])
    T, energy = table["temperature"][order], table["enthalpy"][order]
    sigma = check_errors("error", error, len(T))[order]
    if len(T) < 2 or (np.diff(T) <= 0).any():
        raise InputError("an integral needs two temperatures at least, and each of them once")
    if degree is None:
        coefficients = _integrate_differences(T)
        capacity, residual = np.diff(energy) / np.diff(T) / K_B, np.zeros(len(T))
    else:
        if isinstance(degree, bool) or not isinstance(degree, int) or not 1 <= degree < len(T):
            raise InputError(f"the degree must be from 1 to {len(T) - 1} for {len(T)} temperatures, not {degree!r}")
        weights = 1 / sigma if (sigma > 0).all() else np.ones(len(T))
        powers, t = np.arange(1, degree + 1), T / T[-1]
        basis = np.vander(t, degree + 1, increasing=True)
        fit = np.linalg.pinv(basis * weights[:, None]) * weights  # enthalpies to coefficients
        capacity = (t[:, None] ** (powers - 1) * powers) @ (fit @ energy)[1:] / T[-1] / K_B
        integrals = np.column_stack([np.log(t / t[0]), *(m / (m - 1) * (t ** (m - 1) - t[0] ** (m - 1))
                                                         for m in powers[1:])])  # fmt: skip
        coefficients = integrals @ fit[1:] / T[-1] / K_B
        residual = energy - basis @ (fit @ energy)
    covariance = (coefficients * sigma**2) @ coefficients.T
    # The first enthalpy is subtracted: it changes no entropy, and fewer digits are lost.
    return HeatEntropy(T, coefficients @ (energy - energy[0]), covariance, capacity, residual, degree)


def _integrate_differences(T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix (n, n) from enthalpies to entropies, C_p constant between neighbouring temperatures."""
    steps = np.diff(np.eye(len(T)), axis=0) * (np.log(T[1:] / T[:-1]) / np.diff(T) / K_B)[:, None]
    return np.vstack([np.zeros(len(T)), np.cumsum(steps, axis=0)])


# -- from a coupling ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CouplingEntropy:
    """A free energy from thermodynamic integration, and the entropy that follows from it.

    Attributes
    ----------
    free_energy
        In eV per atom.
    free_energy_error
        Standard error, in eV per atom.
    entropy
        In k_B per atom.
    error
        Standard error, in k_B per atom.
    """

    free_energy: float
    free_energy_error: float
    entropy: float
    error: float


def coupling_entropy(
    temperature: float,
    energy: float,
    coupling: ArrayLike,
    slope: ArrayLike,
    reference: float,
    *,
    energy_error: float = 0.0,
    slope_error: ArrayLike | None = None,
) -> CouplingEntropy:
    """Integrate ⟨∂U/∂λ⟩ from a system of known free energy, and return S = (U − F)/T.

    The integral is that of the cubic spline through the points (for two or three points, of the line or parabola).

    Parameters
    ----------
    temperature
        In K.
    energy
        Mean energy U of the system in question (λ = 1), in eV per atom. It has its kinetic part if `reference` has it.
        At constant pressure give the enthalpy; F is then G.
    coupling
        (n,) λ, from 0 to 1, ascending; at least two.
    slope
        (n,) ⟨∂U/∂λ⟩, in eV per atom.
    reference
        Free energy of the known system (λ = 0), in eV per atom.
    energy_error, slope_error
        Independent standard errors, in eV per atom. Default: 0.

    Raises
    ------
    InputError
        A value is out of range, or λ does not go from 0 to 1.
    """
    from scipy.interpolate import CubicSpline  # not above: verbs start without scipy

    table = check_columns({"coupling": coupling, "slope": slope})
    at, slopes = table["coupling"], table["slope"]
    check_columns(
        {"temperature": [temperature], "energy": [energy], "reference": [reference]}, positive=("temperature",)
    )
    own = check_errors("energy_error", [energy_error], 1)[0]
    sigma = check_errors("slope_error", slope_error, len(at))
    if len(at) < 2 or at[0] != 0 or at[-1] != 1 or (np.diff(at) <= 0).any():
        raise InputError("the coupling must go from 0 to 1, both included, and each value be there once")
    weights = CubicSpline(at, np.eye(len(at))).integrate(0.0, 1.0)
    free, free_error = reference + float(weights @ slopes), float(np.linalg.norm(weights * sigma))
    scale = K_B * temperature
    return CouplingEntropy(free, free_error, (energy - free) / scale, float(np.hypot(own, free_error)) / scale)


# -- the comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The least-squares line through n points: entropy = intercept + slope · reference.

    Attributes
    ----------
    slope
        In nats per k_B.
    slope_error
        Standard error of the slope from the errors of the points, by random draws; nan without errors.
    slope_scatter
        Standard error of the slope from the scatter of the points about the line; nan for two points.
    intercept
        In nats.
    correlation
        Pearson's r.
    correlation_error
        Standard error of r from the errors of the points, by random draws; nan without errors.
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
    """Fit a line to the entropies of states against a reference. All points have the same weight.

    Any two quantities that only grow are correlated: r close to 1 says no more than that both grow. The residuals tell
    whether one is a measure of the other.

    Parameters
    ----------
    reference
        (n,) in k_B per atom, such as `HeatEntropy.entropy`. A constant in it changes only the intercept.
    entropy
        (n,) in nats, such as `Entropies.entropy`.
    error
        (n,) standard errors of `entropy`, or one for all. Default: 0.
    covariance
        (n, n) covariance of `reference`, such as `HeatEntropy.covariance`. Default: 0.
    draws
        Number of random draws of normal errors, for the errors of slope and r.
    seed
        Seed of the draws.

    Raises
    ------
    InputError
        There are fewer than two states, all have the same reference or entropy, or a value is not finite.
    """
    table = check_columns({"reference": reference, "entropy": entropy})
    x, y = table["reference"], table["entropy"]
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("a line needs two states at least, which differ in both entropies")
    slope, r = _fit_line(x, y)
    residual = y - y.mean() - slope * (x - x.mean())
    scatter = float(np.sqrt(residual @ residual / (n - 2)) / np.linalg.norm(x - x.mean())) if n > 2 else np.nan
    slope_error = r_error = np.nan
    if error is not None or covariance is not None:
        rng = np.random.default_rng(seed)
        drawn = rng.normal(y, check_errors("error", error, n), (draws, n))
        drawn_reference = x + rng.normal(size=(draws, n)) @ _matrix_root(covariance, n).T
        found = np.array([_fit_line(*points) for points in zip(drawn_reference, drawn, strict=True)])
        slope_error, r_error = found.std(axis=0, ddof=1)
    return Comparison(slope, float(slope_error), scatter, float(y.mean() - slope * x.mean()), r, float(r_error), x, y)


def _fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return the slope of y against x, and Pearson's r."""
    a, b = x - x.mean(), y - y.mean()
    return float(a @ b / (a @ a)), float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _matrix_root(covariance: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return a matrix (n, n) whose product with its transpose is the covariance."""
    if covariance is None:
        return np.zeros((n, n))
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.shape != (n, n) or not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise InputError(f"the covariance must be a symmetric matrix ({n}, {n}), not of shape {matrix.shape}")
    values, vectors = np.linalg.eigh(matrix)  # not Cholesky: the first entropy has no error, so the matrix is singular
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=np.float64)
