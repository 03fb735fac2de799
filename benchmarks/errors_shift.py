"""The second table of `errors`: ranking and coverage on structures of a kind that no reference has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame, Index
from quests_md.index import LocalBound, Residuals, fit_local_bound
from quests_md.index._local import choose_squarings

from .errors_models import Fitted, Model
from .peer import BANDWIDTH

__all__ = ["ASKED", "DRAWN", "Local", "judge_local", "measure_coverage", "measure_residuals", "print_shift"]

ASKED = 0.9
RESAMPLED = 2000
DRAWN = ("", "Surface")

Values = NDArray[np.float64]


class Local(NamedTuple):
    """What an index with residuals says of structures, one array (n_env,) for each: nats and eV/Å."""

    dH: list[Values]
    s: list[Values]
    expected: list[Values]
    bound: list[Values]


def measure_residuals(index: Index, errors: Values, origin: str) -> Residuals:
    """Return the residuals of a training set, in the order of its frames, with the kernel that ranks them best."""
    made = Residuals("model", "0" * 64, origin, errors[index.order].astype(np.float32))
    return choose_squarings(index, made, 1)


def judge_local(index: Index, fitted: Fitted, judged: Sequence[Any], origin: str) -> Local:
    """Return what the residuals of a potential say of structures; the bound is fitted to the residuals alone."""
    index = index.with_residuals(measure_residuals(index, np.concatenate(fitted.residuals), origin))
    bound: LocalBound = fit_local_bound(index, coverage=ASKED, threads=1)
    found = Local([], [], [], [])
    for structure in judged:
        numbers = structure.atoms.numbers
        dH, s = index.local_residuals(Frame.from_atoms(structure.atoms), 1)
        for values, of in zip(
            (dH, s, bound.expected(dH, s, numbers), bound.bound(dH, s, numbers)), found, strict=False
        ):
            of.append(values)
    return found


def measure_coverage(errors: Sequence[Values], bounds: Sequence[Values]) -> dict[str, float]:
    """Return the share below the bound (mean over structures) and its 95 % interval; its width; what is outside."""
    shares = np.array([float((e <= b).mean()) for e, b in zip(errors, bounds, strict=True)])
    drawn = shares[np.random.default_rng(5).integers(0, len(shares), (RESAMPLED, len(shares)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    every, limits = np.concatenate(errors), np.concatenate(bounds)
    inside = np.isfinite(limits)
    return {
        "covered": float(shares.mean()),
        "low": low,
        "high": high,
        "width": float(limits[inside].sum() / every[inside].sum()),
        "outside": float(1.0 - inside.mean()),
    }


def print_shift(
    models: Sequence[Model],
    training: Sequence[Any],
    test: Sequence[Any],
    kinds: Sequence[str],
    ranks: Callable[[Values, Values], tuple[float, float]],
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Print, for each potential, what holds of the test set, and of each kind of structures if that is left out.

    Parameters
    ----------
    models
        The potentials.
    training, test
        All structures.
    kinds
        Those that are left out of training and residuals, one after the other, and judged.
    ranks
        Return AUROC of the worst tenth, and Spearman, of a measure and the errors.

    Returns
    -------
    tuple
        For the picture: expected errors, bounds and errors of the first potential, by what was left out (`DRAWN`). And
        what `measure_coverage` says of the test set, by potential.
    """
    print(f"\n  shift: a kind of structures is left out of reference, residuals and training; bound at {ASKED:g}")
    print(
        f"  {'potential':<30}{'left out, judged':<18}{'n':>4}  {'AUROC dH, s':<14}{'Spearman dH, s':<17}"
        f"{'covered':<24}{'bound/error':>11}{'outside':>9}"
    )
    cases = [("", list(training), list(test))]
    for kind in kinds:
        rest = [s for s in training if s.group != kind]
        cases.append((kind, rest, [s for s in [*training, *test] if s.group == kind]))
    indexes = [Index.build([s.atoms for s in rest], bandwidth=BANDWIDTH, threads=1) for _, rest, _ in cases]
    points: dict[str, Any] = {}
    tests: dict[str, dict[str, float]] = {}
    for model in models:
        for (kind, rest, judged), index in zip(cases, indexes, strict=True):
            fitted = model.fit(rest, judged)
            local = judge_local(index, fitted, judged, model.origin)
            errors = np.concatenate(fitted.errors).round(6)
            by_dH, by_s = (ranks(np.concatenate(of).round(6), errors) for of in (local.dH, local.s))
            held = measure_coverage(fitted.errors, local.bound)
            covered = f"{held['covered']:.3f} ({held['low']:.3f} to {held['high']:.3f})"
            print(
                f"  {model.name:<30}{kind or 'nothing, test set':<18}{len(judged):>4}  "
                f"{f'{by_dH[0]:.2f}, {by_s[0]:.2f}':<14}{f'{by_dH[1]:.2f}, {by_s[1]:.2f}':<17}{covered:<24}"
                f"{held['width']:>11.2f}{100 * held['outside']:>7.1f} %",
                flush=True,
            )
            if not kind:
                tests[model.name] = held
            if model is models[0] and kind in DRAWN:
                told = {"expected": local.expected, "bound": local.bound, "errors": fitted.errors}
                points[kind] = {name: _to_list(of) for name, of in told.items()} | {"covered": held["covered"]}
    return points, tests


def _to_list(values: Sequence[Values]) -> list[float | None]:
    """Return numbers for JSON, which has neither nan nor inf."""
    return [float(v) if np.isfinite(v) else None for v in np.concatenate(values).round(5)]
