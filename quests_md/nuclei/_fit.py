"""The fit of classical nucleation theory: a test for a stationary window, the likelihood of sizes, the barrier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, NucleationError
from ._nuclei import Counts, NucleiSeries

__all__ = ["SPHERE", "Nucleation", "estimate_correlation_time", "maximise", "nucleation"]

SPHERE = (36.0 * math.pi) ** (1.0 / 3.0)  # surface of a sphere of volume 1
K_B: float = 1.380649e-23 / 1.602176634e-19  # in eV/K; both are exact
_SURFACE = 16021.766  # an eV/Å² in mJ/m²

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Nucleation:
    """A fit of classical nucleation theory. Errors are standard errors, from blocks of time drawn at random.

    Attributes
    ----------
    first, last
        Steps of the window.
    n_frames, block
        Number of frames in the window and in a block.
    correlation
        Integrated correlation time, in frames, of the number of environments in nuclei; 1 means no correlation.
    sizes, number, counts
        Sizes n that were seen; N_n, the mean number of nuclei of size n in a frame; their number in all frames.
    free_energy, free_energy_error
        ΔG(n)/k_BT = −ln(N_n/N_1) of each of `sizes`. The error is nan if only one block has nuclei of the size.
    fitted
        The fitted ΔG(n)/k_BT at `sizes`, on the scale of `free_energy`.
    misfit
        Root mean square of (`free_energy` − `fitted`) / error from size `smallest` on; near 1 where the theory fits.
    temperature, density, shape_factor, smallest, driving_force_given
        As given: K, atoms per Å³, s, the smallest fitted size; and whether Δμ was given.
    driving_force, driving_force_error
        Δμ in eV per atom. The error is 0 if Δμ was given.
    gamma, gamma_error, gamma_interval
        Surface tension γ in mJ/m², its error, and its 95 % interval.
    gamma_slope, correlation_of_gamma
        If Δμ was fitted: the rise of γ with Δμ along the ridge of the likelihood, in mJ/m² per eV, and the correlation
        of their errors. Otherwise nan.
    critical_size, critical_size_error
        n* = (2 γ s ρ^{−2/3} / 3 Δμ)³; inf if the fitted Δμ is not positive.
    barrier, barrier_error
        ΔG(n*) of the theory in eV, from n = 0.
    gamma_by_smallest
        γ in mJ/m² of the same fit with other smallest sizes. It shows how far γ depends on that choice.
    """

    first: int
    last: int
    n_frames: int
    block: int
    correlation: float
    sizes: Counts
    number: Array
    counts: Counts
    free_energy: Array
    free_energy_error: Array
    fitted: Array
    misfit: float
    temperature: float
    density: float
    shape_factor: float
    smallest: int
    driving_force_given: bool
    driving_force: float
    driving_force_error: float
    gamma: float
    gamma_error: float
    gamma_interval: tuple[float, float]
    gamma_slope: float
    correlation_of_gamma: float
    critical_size: float
    critical_size_error: float
    barrier: float
    barrier_error: float
    gamma_by_smallest: dict[int, float]

    @property
    def kT(self) -> float:
        """k_BT in eV. ΔG in eV is `free_energy` times k_BT."""
        return K_B * self.temperature

    def describe(self) -> dict[str, Any]:
        """Return all attributes as numbers, texts and lists, for a JSON file. Energies are also in eV."""
        values = dict(vars(self))
        for name in ("free_energy", "free_energy_error", "fitted"):
            values[f"{name}_eV"] = values[name] * self.kT
        values["barrier_kT"] = self.barrier / self.kT
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def nucleation(
    series: NucleiSeries,
    *,
    temperature: float,
    density: float,
    driving_force: float | None = None,
    shape_factor: float = SPHERE,
    first: int | None = None,
    last: int | None = None,
    smallest: int = 5,
    blocks: int = 10,
    replicates: int = 400,
    seed: int = 0,
) -> Nucleation:
    """Fit classical nucleation theory to the sizes of nuclei in a quasi-stationary, pre-critical window.

    Parameters
    ----------
    series
        The nuclei of frames at even distances in time.
    temperature
        In K.
    density
        Number density of the nuclei, in atoms per Å³.
    driving_force
        Δμ > 0, the chemical potential of the mother phase minus that of the nuclei, in eV per atom. Without it, both γ
        and Δμ are fitted. Small nuclei hardly tell the two apart: `correlation_of_gamma` of the result shows this.
    shape_factor
        s = A/V^{2/3} of a nucleus. The smallest possible is that of a sphere; that of a cube is 6.
    first, last
        Steps of the window, both included. Default: all frames.
    smallest
        The smallest size that is fitted. The theory does not hold for nuclei of a few atoms.
    blocks
        Number of blocks of time, at least 5, for the test whether the window is stationary and for the errors.
    replicates
        How many times the blocks are drawn at random.
    seed
        Seed of these draws.

    Raises
    ------
    NucleationError
        The theory cannot be fitted: the window is too short or not stationary, a nucleus is larger than the critical
        one, there are too few nuclei, or their numbers do not give a positive surface tension.
    InputError
        An argument is out of range.
    """
    _check_arguments(temperature, density, driving_force, shape_factor, smallest, blocks, replicates)
    window = series.window(first, last)
    if not len(window):
        raise NucleationError(f"no frame has a step from {first} to {last}: the nuclei are of {_describe(series)}")
    groups = _cut_blocks(window, blocks)
    tables = [_count_sizes(part) for part in groups]
    most = max(len(table) for table in tables)
    counts = np.array([np.pad(table, (0, most - len(table))) for table in tables])
    kT = K_B * temperature
    surface = shape_factor * density ** (-2.0 / 3.0)  # Å² of a nucleus of one atom
    slope = None if driving_force is None else driving_force / kT
    fit, largest = _fit_theory(window, counts, smallest, slope)
    # After the fit: if a nucleus has grown in the window, the error of the fit says when.
    correlation = _check_stationary(window, groups)
    drawn = _refit_draws(counts, smallest, largest, slope, fit, replicates, seed)
    return _make_result(window, groups, counts, fit, drawn, slope is not None, {
        "correlation": correlation, "temperature": temperature, "density": density, "shape_factor": shape_factor,
        "smallest": smallest, "gamma_by_smallest": {
            n: kT * one.b / surface * _SURFACE for n, one in _fit_by_smallest(counts.sum(axis=0), largest, slope)
        },
    })  # fmt: skip


def _check_arguments(
    temperature: float, density: float, driving_force: float | None, shape: float, smallest: int, blocks: int, n: int
) -> None:
    positive = {"temperature": temperature, "density": density, "shape_factor": shape}
    if driving_force is not None:
        positive["driving_force"] = driving_force
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value!r}")
    if shape < SPHERE * (1 - 1e-9):
        raise InputError(f"shape_factor must be at least that of a sphere, {SPHERE:.4f}, not {shape!r}")
    for name, number, least in (("smallest", smallest, 1), ("blocks", blocks, 5), ("replicates", n, 50)):
        if number < least:
            raise InputError(f"{name} must be at least {least}, not {number}")


# -- the window: long enough, and stationary ---------------------------------------------------------------------------

# A trend is refused if it is larger than `_CHANGE` times the mean, and its probability by chance is below `_CHANCE`.
_CHANGE, _CHANCE = 0.1, 0.003
_LENGTHS = 2.0  # correlation times that a block must hold


def _cut_blocks(window: NucleiSeries, n: int) -> list[NucleiSeries]:
    """Cut a window into n blocks of equal length. Left-over frames, at the beginning, are in no block."""
    length = len(window) // n
    if length < 2:
        raise NucleationError(f"{len(window)} frames are too few for {n} blocks of time: give at least {2 * n}")
    ends = range(len(window), len(window) - n * length, -length)
    return [window.window(int(window.steps[end - length]), int(window.steps[end - 1])) for end in reversed(ends)]


def estimate_correlation_time(values: Array) -> float:
    """Return 1 + 2 Σ_t ρ(t) of evenly spaced values. The sum ends at five times its own value (Sokal's rule)."""
    values = values - values.mean()
    n = len(values)
    if n < 2 or not np.any(values):
        return 1.0
    spectrum = np.fft.rfft(values, 2 * n)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:n]
    times = 2.0 * np.cumsum(correlation / correlation[0]) - 1.0
    enough = np.flatnonzero(np.arange(n) >= 5.0 * times)
    return max(1.0, float(times[enough[0] if len(enough) else n - 1]))


def _check_stationary(window: NucleiSeries, groups: list[NucleiSeries]) -> float:
    """Return the correlation time, in frames, of the number of environments in nuclei.

    Raise `NucleationError` if the means of the blocks have a trend that is not chance, or if the blocks are too short.
    """
    measures = {
        "number of environments in nuclei": [part.n_inside for part in groups],
        "number of nuclei": [part.n_nuclei for part in groups],
        "size of the largest nucleus": [part.largest for part in groups],
    }
    where = f"in the window of steps {window.steps[0]} to {window.steps[-1]}"
    for name, values in measures.items():
        means = np.array([part.mean() for part in values])
        change, chance = _fit_trend(means)
        if abs(change) > _CHANGE * means.mean() and chance < _CHANCE / len(measures):
            raise NucleationError(
                f"not stationary: the {name} goes from {means[0]:.4g} to {means[-1]:.4g} {where} (a trend that chance "
                f"brings with probability {chance:.1g}). Leave out the time to equilibrate, and the growth"
            )
    time = estimate_correlation_time(window.n_inside.astype(float))
    if len(groups[0]) < _LENGTHS * time:
        raise NucleationError(
            f"too short: {where} nuclei are correlated over {time:.3g} frames, and a block of time has "
            f"{len(groups[0])}, fewer than twice that: take a longer window, or fewer blocks"
        )
    return time


def _fit_trend(means: Array) -> tuple[float, float]:
    """Return the rise of a line through these values, and the probability of such a rise by chance."""
    from scipy.stats import t as student  # not above: verbs start without scipy

    time = np.arange(len(means)) - (len(means) - 1) / 2.0
    slope = float(time @ means / (time @ time))
    rest = means - means.mean() - slope * time
    free = len(means) - 2
    error = float(np.sqrt(rest @ rest / free / (time @ time)))
    chance = float(2.0 * student.sf(abs(slope) / error, free)) if error > 0 else 0.0
    return slope * (len(means) - 1), chance


# -- the fit, and what it needs ----------------------------------------------------------------------------------------

_SEEN, _DISTINCT = 10, 4  # a fit needs this many sizes, each seen so many times
_SMALLEST = (1, 2, 3, 5, 7, 10, 14, 20)


def _count_sizes(window: NucleiSeries) -> Counts:
    """Return the number of nuclei of each size, from 1 on, in all frames."""
    return np.bincount(np.concatenate([*window.sizes, np.empty(0, np.int64)]))[1:]


def _fit_theory(window: NucleiSeries, counts: Counts, smallest: int, slope: float | None) -> tuple[Fit, int]:
    """Return the fit and the largest size in it. That is the critical size, or a size far beyond the largest seen.

    The first fit ends below the first missing size. So a nucleus that has already grown has no influence on it.
    """
    total = counts.sum(axis=0)
    seen = len(total)
    gaps = np.flatnonzero(total[smallest - 1 :] == 0)
    largest = smallest - 1 + int(gaps[0]) if len(gaps) else seen
    for _ in range(50):
        _check_enough(total[:largest], smallest, window)
        fit = maximise(total[smallest - 1 : largest], smallest, largest, slope)
        if not fit.b > 0:
            raise NucleationError(
                f"the numbers of nuclei in {_describe(window)} do not give a positive surface tension: large nuclei "
                "are not rarer than the driving force alone makes them. Is the driving force right, in eV per atom?"
            )
        before, largest = largest, int(min(fit.critical_size, 10 * seen + 100))
        if largest == before:
            break
    if fit.critical_size + fit.width < seen:
        raise NucleationError(_post_critical(window, fit))
    return fit, largest


def _post_critical(window: NucleiSeries, fit: Fit) -> str:
    beyond = int(np.argmax(window.largest > fit.critical_size + fit.width))
    advice = f"end the window before step {window.steps[beyond]}" if beyond else "there is nothing before that"
    return (
        f"post-critical: at step {window.steps[beyond]} a nucleus has {window.largest[beyond]} environments; the "
        f"critical one of this fit has {fit.critical_size:.1f}, and beyond {fit.critical_size + fit.width:.1f} they "
        f"grow. The theory holds before that: {advice}"
    )


def _check_enough(counts: Counts, smallest: int, window: NucleiSeries) -> None:
    if not len(counts) or counts[0] == 0:
        raise NucleationError(
            f"no nucleus of one environment in {_describe(window)}: ΔG(n) = −k_BT ln(N_n/N_1) needs N_1"
        )
    seen = int(np.sum(counts[smallest - 1 :] >= _SEEN))
    if seen < _DISTINCT:
        raise NucleationError(
            f"too few nuclei: {seen} sizes from {smallest} on have {_SEEN} nuclei or more in {_describe(window)}, and "
            f"a fit needs {_DISTINCT} such sizes: give more frames, a larger frame, or a lower smallest size"
        )


def _describe(window: NucleiSeries) -> str:
    if not len(window):
        return "no frames"
    return f"{len(window)} frames, steps {window.steps[0]} to {window.steps[-1]}"


def _fit_by_smallest(total: Counts, largest: int, slope: float | None) -> list[tuple[int, Fit]]:
    usable = [n for n in _SMALLEST if np.sum(total[n - 1 : largest] >= _SEEN) >= _DISTINCT]
    return [(n, maximise(total[n - 1 : largest], n, largest, slope)) for n in usable]


def _refit_draws(
    counts: Counts, smallest: int, largest: int, slope: float | None, fit: Fit, n: int, seed: int
) -> tuple[list[Fit], Array]:
    """Return fits of blocks drawn with replacement, and −ln(N_n/N_1) of each draw; nan for sizes without nuclei."""
    rng = np.random.default_rng(seed)
    fits, energies = [], []
    for _ in range(n):
        total = counts[rng.integers(len(counts), size=len(counts))].sum(axis=0)
        try:
            fits.append(maximise(total[smallest - 1 : largest], smallest, largest, slope, start=fit))
        except NucleationError:
            continue  # this draw lacks the few frames with large nuclei
        with np.errstate(divide="ignore"):
            energy = -np.log(total / total[0])
        energies.append(np.where(np.isfinite(energy), energy, np.nan))
    if len(fits) < 0.9 * n:
        raise NucleationError(
            "too few nuclei: without some of the blocks of time nothing can be fitted: give more frames"
        )
    return fits, np.array(energies)


def _make_result(
    window: NucleiSeries,
    groups: list[NucleiSeries],
    counts: Counts,
    fit: Fit,
    drawn: tuple[list[Fit], Array],
    given: bool,
    asked: dict[str, Any],
) -> Nucleation:
    total = counts.sum(axis=0)
    sizes = np.flatnonzero(total) + 1
    energy = -np.log(total[sizes - 1] / total[0])
    few = math.sqrt(len(groups) / (len(groups) - 1))  # draws of n blocks have (n − 1)/n of the true variance
    spread = few * _deviation(drawn[1][:, sizes - 1], np.count_nonzero(counts[:, sizes - 1], axis=0) > 1)
    fitted = math.log(total[0]) - fit.log_expected(sizes)
    kT = K_B * asked["temperature"]
    to_gamma = kT / (asked["shape_factor"] * asked["density"] ** (-2.0 / 3.0)) * _SURFACE
    a, b = np.array([[one.a, one.b] for one in drawn[0]]).T
    fits = [one for one in drawn[0] if one.a > 0 and one.b > 0]
    critical = np.array([one.critical_size for one in fits])
    barrier = kT * np.array([one.barrier for one in fits])
    return Nucleation(
        first=int(window.steps[0]), last=int(window.steps[-1]), n_frames=len(window), block=len(groups[0]),
        sizes=sizes, number=total[sizes - 1] / len(window), counts=total[sizes - 1], free_energy=energy,
        free_energy_error=spread, fitted=fitted, misfit=_misfit(energy - fitted, spread, sizes >= asked["smallest"]),
        driving_force_given=given, driving_force=kT * fit.a,
        driving_force_error=0.0 if given else few * kT * float(a.std()),
        gamma=to_gamma * fit.b, gamma_error=few * to_gamma * float(b.std()),
        gamma_interval=(to_gamma * float(np.quantile(b, 0.025)), to_gamma * float(np.quantile(b, 0.975))),
        gamma_slope=math.nan if given else to_gamma / kT * fit.ridge,
        correlation_of_gamma=math.nan if given else float(np.corrcoef(a, b)[0, 1]),
        critical_size=fit.critical_size, critical_size_error=few * float(critical.std()) if len(fits) > 1 else math.inf,
        barrier=kT * fit.barrier, barrier_error=few * float(barrier.std()) if len(fits) > 1 else math.inf, **asked,
    )  # fmt: skip


def _deviation(energies: Array, known: NDArray[np.bool_]) -> Array:
    out = np.full(energies.shape[1], np.nan)
    out[known] = np.nanstd(energies[:, known], axis=0)
    return out


def _misfit(difference: Array, error: Array, fitted: NDArray[np.bool_]) -> float:
    use = fitted & (error > 0)
    return float(np.sqrt(np.mean((difference[use] / error[use]) ** 2))) if use.any() else math.nan


# -- the maximum of the likelihood -------------------------------------------------------------------------------------

_STEPS = 300
_STRIDE = 10.0  # largest change of an exponent in a step


@dataclass(frozen=True)
class Fit:
    """The counts of largest likelihood, exp(log_factor + a n − b n^{2/3}), a = Δμ/k_BT and b = γ s ρ^{−2/3}/k_BT.

    `ridge` is ∂b/∂a, where b is the one of the largest likelihood at a given a.
    """

    a: float
    b: float
    log_factor: float
    ridge: float

    @property
    def critical_size(self) -> float:
        """The size at which a n − b n^{2/3} is smallest; inf if there is no minimum."""
        return (2.0 * self.b / (3.0 * self.a)) ** 3 if self.a > 0 else math.inf

    @property
    def width(self) -> float:
        """Zeldovich's width: the distance from the critical size at which a n − b n^{2/3} has risen by 1."""
        return 3.0 * self.critical_size ** (2.0 / 3.0) / math.sqrt(self.b) if self.a > 0 else math.inf

    @property
    def barrier(self) -> float:
        """b n^{2/3} − a n at the critical size, in k_BT; inf if there is none."""
        return 4.0 * self.b**3 / (27.0 * self.a**2) if self.a > 0 else math.inf

    def log_expected(self, sizes: Counts) -> Array:
        """Return ln of the expected count of each size."""
        return self.log_factor + self.a * sizes - self.b * sizes ** (2.0 / 3.0)


def maximise(counts: Counts, smallest: int, largest: int, slope: float | None, start: Fit | None = None) -> Fit:
    """Maximise the likelihood of the numbers `counts` of nuclei of the sizes from `smallest` to at most `largest`.

    Sizes up to `largest` that were not seen count, too. `slope` fixes the parameter a of `Fit`; with None, a is fitted.
    The logarithm of the likelihood is concave. So Newton's steps end at its maximum; a step that overshoots is halved.
    """
    sizes = np.arange(smallest, largest + 1, dtype=np.float64)
    features = np.stack([sizes, -(sizes ** (2.0 / 3.0))])
    total = float(counts.sum())
    seen = features[:, : len(counts)] @ counts / total
    free = [1] if slope is not None else [0, 1]
    if start is not None:
        theta = np.array([start.a, start.b])
    else:  # an expected number that falls up to the largest size
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
        if size < 1e-6 or scale <= 1e-9:  # further steps do not change the likelihood in its last digit
            _, covariance = _moments(features, probability)
            log_factor = math.log(total) - _log_sum(theta @ features)
            return Fit(float(theta[0]), float(theta[1]), log_factor, float(-covariance[0, 1] / covariance[1, 1]))
    raise NucleationError(
        "the numbers of nuclei do not fix a surface tension: there are too few sizes, or too few of each"
    )


def _moments(features: Array, probability: Array) -> tuple[Array, Array]:
    """Return mean and covariance of the features."""
    mean = features @ probability
    rest = features - mean[:, None]
    return mean, (rest * probability) @ rest.T


def _log_likelihood(theta: Array, seen: Array, features: Array) -> tuple[float, Array]:
    """Return ln of the likelihood per nucleus, and the probability of each size."""
    exponents = theta @ features
    log_sum = _log_sum(exponents)
    return float(theta @ seen) - log_sum, np.exp(exponents - log_sum)


def _log_sum(exponents: Array) -> float:
    highest = float(exponents.max())
    return highest + math.log(float(np.sum(np.exp(exponents - highest))))
