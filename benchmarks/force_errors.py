"""Coverage of the bound of the force error: SNAP potentials of Zuo et al. (2020), their training and test sets.

python -m benchmarks force_errors FOLDER, which holds Si_training.extxyz, Si_test.extxyz, and the same of Ge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from numpy.typing import NDArray

from quests_md import Frame, Index
from quests_md.errors import CalibrationError
from quests_md.index import find_known, fit_error_bound, fit_local_bound, match_residuals

from .errors_models import wheel_errors
from .errors_shift import measure_coverage
from .peer import BANDWIDTH
from .pictures import run_on_zuo

COVERAGES = (0.5, 0.8, 0.9)
SPLITS = 100
_BLUE, _ORANGE = "#0072B2", "#E69F00"

Labelled = list[tuple[Frame, NDArray[np.float64]]]


def main() -> None:
    """Measure and print; with --plot draw."""
    text = (
        "SNAP of Zuo et al. (2020), its training set as the reference, h = 0.015; the bound is fitted to one half of\n"
        f"the structures of its test set and judged on the other: {SPLITS} random halves. The share of the\n"
        "environments below the bound is a mean over structures; 95 % intervals by bootstrap over structures"
    )
    run_on_zuo(__doc__, "Coverage of the bound of the force error against DFT", text, _element, draw)


def _element(folder: Path, element: str) -> dict[str, Any]:
    """Print the tables of one element; return what the picture needs."""
    training, of_training = _labelled(folder / f"{element}_training.extxyz", element)
    index = Index.build([frame for frame, _ in training], bandwidth=BANDWIDTH, threads=1)
    everything, every_kind = _labelled(folder / f"{element}_test.extxyz", element)
    new = [i for i, (frame, _) in enumerate(everything) if not find_known(index, index.spec.compute(frame), 1).all()]
    labelled, kinds = [everything[i] for i in new], [every_kind[i] for i in new]
    dH = [index.delta_entropy(frame, 1) for frame, _ in labelled]
    errors = [error for _, error in labelled]
    together = np.concatenate(errors)
    print(
        f"\n{element}: {len(index)} references; {len(everything)} structures in the test set, of which "
        f"{len(everything) - len(labelled)} are in the training set up to symmetry and left out; {len(together)} "
        f"environments;\nforce error: median {np.median(together):.3f}, 90 % below {np.quantile(together, 0.9):.3f}, "
        f"largest {together.max():.3f} eV/Å"
    )
    print("  asked   covered   95 % interval    bound (median of the finite, eV/Å)   beyond the largest dH")
    for coverage in COVERAGES:
        print("  " + _halves(index, labelled, dH, coverage), flush=True)
    print("  shift: fitted to all other kinds of structures, judged on one; asked 0.8")
    for kind in sorted(set(kinds)):
        print("  " + _shifted(index, labelled, dH, [k == kind for k in kinds], kind), flush=True)
    print("  from local residuals of the training set, each frame without itself; asked 0.9")
    print("  " + _local(index, training, labelled), flush=True)
    print("  shift: the same without one kind of structures, judged on all of that kind; the potential knows it")
    for kind in sorted(set(kinds)):
        rest = [one for one, k in zip(training, of_training, strict=True) if k != kind]
        mine = [one for one, k in zip(training + labelled, of_training + kinds, strict=True) if k == kind]
        less = Index.build([frame for frame, _ in rest], bandwidth=BANDWIDTH, threads=1)
        print(f"    {kind:<10}" + _local(less, rest, mine), flush=True)
    whole = fit_error_bound(index, labelled, coverage=0.8, potential=f"{element}_Zuo_JPCA2020", threads=1)
    steps = [(b.upper, b.bound) for b in whole.bins[element]]
    return {"dH": np.concatenate(dH).round(3).tolist(), "errors": together.round(4).tolist(), "steps": steps}


def _labelled(path: Path, element: str) -> tuple[Labelled, list[str]]:
    """Return frames with force errors, and the kind of each structure."""
    structures = ase.io.read(path, ":")
    labelled = [(Frame.from_atoms(atoms), wheel_errors(atoms, element)) for atoms in structures]
    return labelled, [str(atoms.info["group"]) for atoms in structures]


def _local(index: Index, training: Labelled, judged: Labelled) -> str:
    """Return what a bound that is fitted to the residuals of a training set covers of other structures."""
    residuals = match_residuals(index, training, name="SNAP", fingerprint="0" * 64, threads=1)
    index = index.with_residuals(residuals)
    fitted = fit_local_bound(index, coverage=0.9, threads=1)
    bounds = [fitted.bound(*index.local_residuals(frame, 1), frame.numbers) for frame, _ in judged]
    held = measure_coverage([errors for _, errors in judged], bounds)
    return (
        f"{len(judged):>3} structures: covered {held['covered']:.3f} ({held['low']:.3f} to {held['high']:.3f}), mean "
        f"bound / mean error {held['width']:.2f}, outside {100 * held['outside']:.1f} %"
    )


def _halves(index: Index, labelled: Labelled, dH: list[Any], coverage: float) -> str:
    """Return a row: coverage on halves that the bound was not fitted to."""
    n, rng = len(labelled), np.random.default_rng(5)
    shares: list[list[float]] = [[] for _ in range(n)]
    beyond, bounds = [], []
    for _ in range(SPLITS):
        order = rng.permutation(n)
        fitted = fit_error_bound(index, [labelled[i] for i in order[: n // 2]], coverage=coverage, threads=1)
        for i in order[n // 2 :]:
            bound = fitted.bound(dH[i], labelled[i][0].numbers)
            shares[i].append(float((labelled[i][1] <= bound).mean()))
            beyond.append(float(np.isinf(bound).mean()))
            bounds += bound[np.isfinite(bound)].tolist()
    means = np.array([np.mean(s) for s in shares])
    drawn = means[rng.integers(0, n, (2000, n))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return (
        f"{coverage:<5g}{means.mean():>10.3f}   {low:.3f} to {high:.3f}{np.median(bounds):>22.3f}"
        f"{100 * np.mean(beyond):>29.1f} %"
    )


def _shifted(index: Index, labelled: Labelled, dH: list[Any], is_kind: list[bool], kind: str) -> str:
    """Return a row: coverage on a kind of structures that the bound was not fitted to."""
    rest = [labelled[i] for i, mine in enumerate(is_kind) if not mine]
    judged = [i for i, mine in enumerate(is_kind) if mine]
    try:
        fitted = fit_error_bound(index, rest, coverage=0.8, threads=1)
    except CalibrationError as error:
        return f"  {kind:<10} {error}"
    bounds = [fitted.bound(dH[i], labelled[i][0].numbers) for i in judged]
    share = np.mean([(labelled[i][1] <= b).mean() for i, b in zip(judged, bounds, strict=True)])
    beyond = np.mean([np.isinf(b).mean() for b in bounds])
    return f"  {kind:<10}{len(judged):>3} structures: covered {share:.3f}, beyond the largest dH {100 * beyond:.1f} %"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw force errors against dH, with the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.8), layout="constrained")
    for axes, (element, values) in zip(figure.subplots(1, len(result), sharey=True), result.items(), strict=True):
        dH = np.array(values["dH"])
        axes.plot(dH, values["errors"], ".", ms=2.5, color=_BLUE, alpha=0.5)
        left = dH.min() - 1.0
        for upper, bound in values["steps"]:
            axes.plot([left, upper], [bound, bound], color=_ORANGE, lw=2)
            left = upper
        axes.axvspan(left, left + 0.15 * (left - dH.min()), color="#eeeeee", lw=0)
        axes.text(left, 2.4, " inf", color="#666666")
        axes.set_title(f"{element}, SNAP", fontsize=10)
        axes.set_xlabel("dH (nats)")
        axes.set_yscale("log")
        axes.set_ylim(0.003, 4.0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("force error (eV/Å)")
    figure.savefig(path, dpi=160)
