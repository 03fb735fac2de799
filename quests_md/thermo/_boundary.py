"""The boundary of two phases: where their free energies are equal, from tables of energies, volumes and entropies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..notebook import Table
from ._entropies import EV_PER_GPA, K_B, check_columns, check_errors

__all__ = ["Boundary", "Phase", "phase_boundary"]

_SAME = 1e-6  # relative difference below which temperatures or pressures of two tables are equal
_EDGE = 1e-9  # relative: how far outside the table a crossing may lie
_CELLS = 256  # intervals of temperature, each searched for a change of sign


@dataclass(frozen=True, eq=False)
class Phase:
    """The state points of a phase: n rows, each at a temperature and a pressure.

    The free energy per atom is G = U + P V − T k_B (H + offset). The entropy of descriptors takes the place of S/k_B.

    Parameters
    ----------
    temperature, pressure
        (n,) in K and GPa.
    energy, volume
        (n,) in eV and Å³ per atom. Give the energy of both phases with its kinetic part, or of both without.
    entropy
        (n,) H in nats, from equally many environments at every state point of both phases.
    energy_error, volume_error, entropy_error
        Standard errors, (n,) or one for all, independent of each other. Default: 0.
    offset
        A constant, in nats, that is added to every entropy. H is known only up to such a constant, one for each phase.

    Raises
    ------
    InputError
        Columns differ in length, a value is not finite, or a temperature or volume is not positive.
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
        table = check_columns({name: getattr(self, name) for name in names}, positive=("temperature", "volume"))
        check_columns({"offset": [self.offset]})
        for name in ("energy_error", "volume_error", "entropy_error"):
            table[name] = check_errors(name, getattr(self, name), len(table["temperature"]))
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


@dataclass(frozen=True, eq=False, repr=False)
class Boundary(Table):
    """The crossings of the free energies of two phases: m rows, at least one for each pressure in both tables.

    Attributes
    ----------
    pressure
        (m,) in GPa, ascending.
    temperature
        (m,) in K; nan if the phases do not cross between the lowest and the highest common temperature.
    error
        (m,) standard error, in K, from random draws of the errors of the tables; 0 if the tables have no errors.
    found
        (m,) share of the draws with a crossing. If it is well below 1, the crossing is uncertain and `error` too small.
    stable_below
        (m,) the phase with the lower free energy just below the crossing: 0 is the first, 1 the second.
    stable_above
        (m,) the same just above the crossing. Without a crossing, it is the phase of `stable_below`.
    entropy_difference
        (m,) H of the second phase minus H of the first at the crossing, with the offsets, in nats.
    entropy_by_slope
        (m,) −(dΔG/dT)/k_B at the crossing. It equals `entropy_difference` if H is the entropy of thermodynamics.
    clapeyron
        (m,) ΔV/(k_B ΔH), in K/GPa. It is the slope of the boundary if H is the entropy of thermodynamics.
    offset
        Offset of the second phase minus that of the first, in nats: as given, or found from the anchor.
    """

    _COLUMNS = (
        "pressure", "temperature", "error", "found", "stable_below", "stable_above", "entropy_difference",
        "entropy_by_slope", "clapeyron",
    )  # fmt: skip

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
    """Differences of the phases at one pressure, second minus first, at all common temperatures (n,)."""

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

    At each pressure, a polynomial in T is fitted to the difference of G at the common temperatures. The weights of the
    fit are the inverse errors, if no error is 0. The crossings are the roots of the polynomial between these
    temperatures. For the standard errors, normal errors of G are drawn at random and the fit is repeated.

    Parameters
    ----------
    first, second
        The phases. Pressures with fewer than two common temperatures are left out.
    degree
        Degree of the polynomial. It is lower where there are too few temperatures.
    anchor
        A known point (T in K, P in GPa) of the boundary. The offset of the second phase is then chosen so that the
        phases cross there. P must be one of the common pressures, and T between its temperatures. Default: none.
    draws
        Number of draws for the errors.
    seed
        Seed of the draws.

    Raises
    ------
    InputError
        No pressure has two common temperatures, a table has a state point twice, or the anchor is outside the tables.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise InputError(f"the degree must be a whole number of at least 1, not {degree!r}")
    levels = list(_match_levels(first, second))
    if not levels:
        raise InputError("the tables have no pressure with two temperatures in both: nothing to compare")
    given = second.offset - first.offset
    exact = _fit_levels([level.free_energy for level in levels], levels, degree)
    offset = given if anchor is None else _find_offset(exact, levels, anchor)
    rng = np.random.default_rng(seed)
    noisy = any(level.error.any() for level in levels)
    drawn: list[list[list[float]]] = [[] for _ in levels]
    for _ in range(draws if noisy else 0):
        fits = _fit_levels([rng.normal(level.free_energy, level.error) for level in levels], levels, degree)
        shift = given if anchor is None else _find_offset(fits, levels, anchor)
        for places, fit, level in zip(drawn, fits, levels, strict=True):
            places.append(_find_roots(fit, level, shift))
    rows = [row for fit, level, places in zip(exact, levels, drawn, strict=True)
            for row in _make_rows(fit, level, places, offset)]  # fmt: skip
    P, T, error, found, below, above, entropy, slope, clapeyron = map(np.array, zip(*rows, strict=True))
    return Boundary(P, T, error, found, below, above, entropy, slope, clapeyron, float(offset))


def _match_levels(first: Phase, second: Phase) -> Iterator[_Level]:
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
            by_temperature = np.argsort(T1[i])  # rounding of the pressures may have changed the order of temperatures
            i, j = i[by_temperature], j[by_temperature]
            error = np.hypot(first.free_energy_error[i], second.free_energy_error[j])
            yield _Level(float(P1[i[0]]), T1[i], plain[1][j] - plain[0][i], error, H2[j] - H1[i], V2[j] - V1[i])


def _fit_levels(values: list[NDArray[np.float64]], levels: list[_Level], degree: int) -> list[Polynomial]:
    """Return ΔG(T) of each pressure, without offsets."""
    fits = []
    for free_energy, level in zip(values, levels, strict=True):
        weights = 1 / level.error if (level.error > 0).all() else None
        most = min(degree, len(level.temperature) - 1)
        fits.append(Polynomial.fit(level.temperature, free_energy, most, w=weights))
    return fits


def _find_offset(fits: list[Polynomial], levels: list[_Level], anchor: tuple[float, float]) -> float:
    """Return the offset of the second phase with which the phases cross at the anchor."""
    T, P = anchor
    for fit, level in zip(fits, levels, strict=True):
        if np.isclose(P, level.pressure, rtol=_SAME, atol=1e-9) and level.temperature[0] <= T <= level.temperature[-1]:
            return float(fit(T)) / (K_B * T)
    known = "; ".join(f"{one.pressure:g} GPa, {one.temperature[0]:g} to {one.temperature[-1]:g} K" for one in levels)
    raise InputError(f"the anchor, {T:g} K and {P:g} GPa, is not in what both tables have: {known}")


def _find_roots(fit: Polynomial, level: _Level, offset: float) -> list[float]:
    """Return the temperatures at which ΔG, with the offset, changes its sign, ascending."""
    from scipy.optimize import brentq  # not above: verbs start without scipy

    def difference(T: Any) -> Any:
        return fit(T) - K_B * offset * T

    # np.roots is not used: if the highest coefficient is only a rounding error, its roots have no right digits.
    low, high = level.temperature[0], level.temperature[-1]
    T = np.linspace(low * (1 - _EDGE), high * (1 + _EDGE), _CELLS + 1)
    changes = np.flatnonzero(np.diff(np.signbit(difference(T))))
    return [float(brentq(difference, T[i], T[i + 1])) for i in changes]


def _make_rows(fit: Polynomial, level: _Level, drawn: list[list[float]], offset: float) -> Iterator[tuple[float, ...]]:
    """Yield the rows of a pressure, in the order of the columns of `Boundary`."""
    roots = _find_roots(fit, level, offset)
    edges = np.array([level.temperature[0], *roots, level.temperature[-1]])
    middles = (edges[1:] + edges[:-1]) / 2  # between the crossings
    stable = (fit(middles) < K_B * offset * middles).astype(int)
    found = sum(map(bool, drawn)) / len(drawn) if drawn else float(len(roots) > 0)
    if not roots:
        yield level.pressure, np.nan, np.nan, found, stable[0], stable[0], np.nan, np.nan, np.nan
    for i, root in enumerate(roots):
        near = [min(places, key=lambda place: abs(place - root)) for places in drawn if places]
        error = (float(np.std(near, ddof=1)) if len(near) > 1 else np.nan) if drawn else 0.0
        entropy = float(np.interp(root, level.temperature, level.entropy)) + offset
        slope = offset - float(fit.deriv()(root)) / K_B
        volume = float(np.interp(root, level.temperature, level.volume))
        clapeyron = volume * EV_PER_GPA / (K_B * entropy) if entropy else np.nan
        yield level.pressure, root, error, found, stable[i], stable[i + 1], entropy, slope, clapeyron
