"""Where two phases have the same free energy, from tables of their energies, volumes and entropies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from ..errors import InputError
from ._entropies import EV_PER_GPA, K_B, columns, errors_of

__all__ = ["Boundary", "Phase", "phase_boundary"]

_SAME = 1e-6  # relative: temperatures and pressures of two tables that are one
_EDGE = 1e-9  # relative: a crossing at the lowest or highest temperature is one
_CELLS = 256  # between these, where a change of sign is looked for


@dataclass(frozen=True, eq=False)
class Phase:
    """State points of a phase: n rows, each at a temperature and a pressure.

    The free energy per atom is G = U + P V − T k_B (H + offset): the entropy of descriptors takes the place of S/k_B.

    Parameters
    ----------
    temperature, pressure
        (n,) in K and GPa.
    energy, volume
        (n,) in eV and Å³ per atom; the energy with its kinetic part, or without in both phases.
    entropy
        (n,) H in nats, of as many environments at every state point of both phases.
    energy_error, volume_error, entropy_error
        Standard errors, (n,) or one for all, independent of each other. Default: none.
    offset
        What is added to every entropy, in nats: an entropy of descriptors lacks a constant, another one for each phase.

    Raises
    ------
    InputError
        Columns differ in length, hold what is not finite, or a temperature or volume is not positive.
    """

    temperature: ArrayLike
    pressure: ArrayLike
    energy: ArrayLike
    volume: ArrayLike
    entropy: ArrayLike
    energy_error: ArrayLike | None = None
    volume_error: ArrayLike | None = None
    entropy_error: ArrayLike | None = None
    offset: float = 0.0

    def __post_init__(self) -> None:
        names = ("temperature", "pressure", "energy", "volume", "entropy")
        table = columns({name: getattr(self, name) for name in names}, positive=("temperature", "volume"))
        columns({"offset": [self.offset]})
        for name in ("energy_error", "volume_error", "entropy_error"):
            table[name] = errors_of(name, getattr(self, name), len(table["temperature"]))
        for name, values in table.items():
            object.__setattr__(self, name, values)

    @property
    def free_energy(self) -> NDArray[np.float64]:
        """G of each row (n,), in eV per atom."""
        T, P, U, V, H = (
            np.asarray(c) for c in (self.temperature, self.pressure, self.energy, self.volume, self.entropy)
        )
        return np.asarray(U + P * V * EV_PER_GPA - K_B * T * (H + self.offset), dtype=np.float64)

    @property
    def free_energy_error(self) -> NDArray[np.float64]:
        """Standard error of G of each row (n,), in eV per atom."""
        volume = np.asarray(self.pressure) * np.asarray(self.volume_error) * EV_PER_GPA
        entropy = K_B * np.asarray(self.temperature) * np.asarray(self.entropy_error)
        return np.asarray(np.sqrt(np.asarray(self.energy_error) ** 2 + volume**2 + entropy**2), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Boundary:
    """Where the free energies of two phases cross: m rows, one or more for each pressure that both tables have.

    Attributes
    ----------
    pressure
        (m,) in GPa, ascending.
    temperature
        (m,) in K; nan where the phases do not cross between the lowest and the highest common temperature.
    error
        (m,) standard error, in K, from the errors of the tables, by draws; 0 where these have none.
    found
        (m,) share of the draws with a crossing. Well below 1, the crossing is uncertain and the error too small.
    stable_below
        (m,) which phase has the lower free energy just below the crossing: 0 the first, 1 the second.
    stable_above
        (m,) the same, above; where there is no crossing, the same phase as below.
    entropy_difference
        (m,) H of the second less that of the first phase at the crossing, with the offsets, in nats.
    entropy_by_slope
        (m,) −dΔG/dT by k_B at the crossing: the same as `entropy_difference` if H is the entropy of thermodynamics.
    clapeyron
        (m,) ΔV/(k_B ΔH), in K/GPa: the slope that the boundary has if H is the entropy of thermodynamics.
    offset
        Of the second phase less that of the first, in nats: as given, or found from the anchor.
    """

    pressure: NDArray[np.float64]
    temperature: NDArray[np.float64]
    error: NDArray[np.float64]
    found: NDArray[np.float64]
    stable_below: NDArray[np.int64]
    stable_above: NDArray[np.int64]
    entropy_difference: NDArray[np.float64]
    entropy_by_slope: NDArray[np.float64]
    clapeyron: NDArray[np.float64]
    offset: float


class _Level(NamedTuple):
    """What both phases have at one pressure, second less first; k temperatures."""

    pressure: float
    temperature: NDArray[np.float64]
    free_energy: NDArray[np.float64]  # without offsets
    error: NDArray[np.float64]
    entropy: NDArray[np.float64]
    volume: NDArray[np.float64]


def phase_boundary(
    first: Phase,
    second: Phase,
    *,
    degree: int = 2,
    anchor: tuple[float, float] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> Boundary:
    """Find the temperatures at which two phases have the same free energy, for each pressure in both tables.

    At each pressure a polynomial in T is fitted to the difference of G at the common temperatures, weighted by the
    errors (if none is 0), and its roots between these temperatures are the crossings. Standard errors come from draws
    of normal errors of G, each fitted anew.

    Parameters
    ----------
    first, second
        The phases. Pressures with fewer than two common temperatures are left out.
    degree
        Of the polynomial; less where there are no more temperatures than that.
    anchor
        A point (T in K, P in GPa) of the boundary that is known: the offset of the second phase is made such that the
        phases cross there. P must be one of the common pressures and T lie between its temperatures. Default: none.
    draws
        For the errors.
    seed
        Of the draws.

    Raises
    ------
    InputError
        No pressure has two common temperatures, a state point is there twice, or the anchor is outside the tables.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise InputError(f"the degree must be a whole number of at least 1, not {degree!r}")
    levels = list(_levels(first, second))
    if not levels:
        raise InputError("the tables have no pressure with two temperatures in both: nothing to compare")
    given = second.offset - first.offset
    exact = _fits([level.free_energy for level in levels], levels, degree)
    offset = given if anchor is None else _offset(exact, levels, anchor)
    rng = np.random.default_rng(seed)
    noisy = any(level.error.any() for level in levels)
    drawn: list[list[list[float]]] = [[] for _ in levels]
    for _ in range(draws if noisy else 0):
        fits = _fits([rng.normal(level.free_energy, level.error) for level in levels], levels, degree)
        shift = given if anchor is None else _offset(fits, levels, anchor)
        for places, fit, level in zip(drawn, fits, levels, strict=True):
            places.append(_roots(fit, level, shift))
    rows = [row for fit, level, places in zip(exact, levels, drawn, strict=True)
            for row in _rows(fit, level, places, offset)]  # fmt: skip
    P, T, error, found, below, above, entropy, slope, clapeyron = map(np.array, zip(*rows, strict=True))
    return Boundary(P, T, error, found, below, above, entropy, slope, clapeyron, float(offset))


def _levels(first: Phase, second: Phase) -> Iterator[_Level]:
    """Yield the pressures with two or more temperatures in both tables, ascending."""
    T1, T2, P1, P2 = (np.asarray(c) for c in (first.temperature, second.temperature, first.pressure, second.pressure))
    same = np.isclose(T1[:, None], T2, rtol=_SAME, atol=0) & np.isclose(P1[:, None], P2, rtol=_SAME, atol=1e-9)
    if (same.sum(axis=0) > 1).any() or (same.sum(axis=1) > 1).any():
        raise InputError("a state point (T, P) is there twice in a table")
    one, two = np.nonzero(same)
    order = np.lexsort((T1[one], P1[one]))
    one, two = one[order], two[order]
    starts = np.flatnonzero(~np.isclose(P1[one][1:], P1[one][:-1], rtol=_SAME, atol=1e-9)) + 1
    plain = [p.free_energy + K_B * np.asarray(p.temperature) * p.offset for p in (first, second)]
    H1, H2, V1, V2 = (np.asarray(c) for c in (first.entropy, second.entropy, first.volume, second.volume))
    for i, j in zip(np.split(one, starts), np.split(two, starts), strict=True):
        if len(i) > 1:
            by_temperature = np.argsort(T1[i])  # pressures that are one to rounding came in their own order
            i, j = i[by_temperature], j[by_temperature]
            error = np.hypot(first.free_energy_error[i], second.free_energy_error[j])
            yield _Level(float(P1[i[0]]), T1[i], plain[1][j] - plain[0][i], error, H2[j] - H1[i], V2[j] - V1[i])


def _fits(values: list[NDArray[np.float64]], levels: list[_Level], degree: int) -> list[np.polynomial.Polynomial]:
    """Return ΔG(T) of each pressure, without offsets."""
    fits = []
    for free_energy, level in zip(values, levels, strict=True):
        weights = 1 / level.error if (level.error > 0).all() else None
        most = min(degree, len(level.temperature) - 1)
        fits.append(np.polynomial.Polynomial.fit(level.temperature, free_energy, most, w=weights))
    return fits


def _offset(fits: list[np.polynomial.Polynomial], levels: list[_Level], anchor: tuple[float, float]) -> float:
    """Return the offset of the second phase with which the phases cross at the anchor."""
    T, P = anchor
    for fit, level in zip(fits, levels, strict=True):
        if np.isclose(P, level.pressure, rtol=_SAME, atol=1e-9) and level.temperature[0] <= T <= level.temperature[-1]:
            return float(fit(T)) / (K_B * T)
    known = "; ".join(
        f"{level.pressure:g} GPa, {level.temperature[0]:g} to {level.temperature[-1]:g} K" for level in levels
    )
    raise InputError(f"the anchor, {T:g} K and {P:g} GPa, is not in what both tables have: {known}")


def _roots(fit: np.polynomial.Polynomial, level: _Level, offset: float) -> list[float]:
    """Return where ΔG, with the offset, changes its sign between the temperatures, ascending."""

    def difference(T: Any) -> Any:
        return fit(T) - K_B * offset * T

    # Not the roots of the polynomial: where the highest coefficient is nothing but rounding, they lose all digits.
    low, high = level.temperature[0], level.temperature[-1]
    T = np.linspace(low * (1 - _EDGE), high * (1 + _EDGE), _CELLS + 1)
    changes = np.flatnonzero(np.diff(np.signbit(difference(T))))
    return [float(brentq(difference, T[i], T[i + 1])) for i in changes]


def _rows(
    fit: np.polynomial.Polynomial, level: _Level, drawn: list[list[float]], offset: float
) -> Iterator[tuple[float, ...]]:
    """Yield the rows of a pressure, in the order of the columns of `Boundary`."""
    roots = _roots(fit, level, offset)
    edges = np.array([level.temperature[0], *roots, level.temperature[-1]])
    middles = (edges[1:] + edges[:-1]) / 2  # between the crossings
    stable = (fit(middles) < K_B * offset * middles).astype(int)
    if not roots:
        yield (level.pressure, np.nan, np.nan, _share(drawn), stable[0], stable[0], np.nan, np.nan, np.nan)
    for i, root in enumerate(roots):
        near = [min(places, key=lambda place: abs(place - root)) for places in drawn if places]
        error = (float(np.std(near, ddof=1)) if len(near) > 1 else np.nan) if drawn else 0.0
        entropy = float(np.interp(root, level.temperature, level.entropy)) + offset
        slope = offset - float(fit.deriv()(root)) / K_B
        volume = float(np.interp(root, level.temperature, level.volume))
        clapeyron = volume * EV_PER_GPA / (K_B * entropy) if entropy else np.nan
        found = _share(drawn) if drawn else 1.0
        yield level.pressure, root, error, found, stable[i], stable[i + 1], entropy, slope, clapeyron


def _share(drawn: list[list[float]]) -> float:
    """Return the share of the draws with a crossing; 0 if there are none."""
    return sum(map(bool, drawn)) / len(drawn) if drawn else 0.0
