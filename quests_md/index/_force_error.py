"""Fitting a conformal bound of a model's force error to dH, by element."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ..frame import Frame
from ._conformal import (
    check_coverage,
    count_needed,
    estimate_interval,
    find_quantile,
    judge_held_out,
    refuse_too_few,
)
from ._data import IndexData, fingerprint_index
from ._matching import find_known
from ._thresholds import ErrorBin, ErrorBound

__all__ = ["fit_error_bound", "read_environments"]

_MOST_BINS = 12


def fit_error_bound(
    index: IndexData,
    labelled: Iterable[tuple[Frame, NDArray[np.float64]]],
    *,
    coverage: float = 0.9,
    potential: str = "",
    threads: int | None = None,
) -> ErrorBound:
    """Fit a bound of the force error against dH to labelled frames.

    The rule is conformal prediction for data in groups (Lee, Barber and Willett, arXiv:2306.06342). Each of the K
    structures with atoms in a bin has the weight 1/(K + 1), which its atoms there share evenly. One unseen structure
    with infinite errors has the rest. The bound is the quantile at `coverage`. The bins are made from the largest dH
    downward. Each has at least 2/(1 − coverage) structures and a twelfth of the environments, and its ends depend on dH
    alone. The bounds never fall with dH: a bound that is lower than the bound of the bin before is raised to it.

    Parameters
    ----------
    index
        The index; it does not change.
    labelled
        Frames, each with the force errors (eV/Å) of its environments. Frames with the same `group` count as one
        structure (a trajectory, for example); a frame without a group is a structure of its own.
    coverage
        The share of errors that must lie below the bound.
    potential
        The name of the model whose errors these are.
    threads
        Threads to use; None takes all cores.

    Raises
    ------
    CalibrationError
        A frame is in the reference, or the structures are too few.
    InputError
        The coverage is not between 0 and 1, or an error is not finite.
    """
    check_coverage(coverage)
    dH, numbers, errors, structures = read_environments(
        index, labelled, threads, lambda frame: index.delta_entropy(frame, threads)
    )
    bins: dict[str, tuple[ErrorBin, ...]] = {}
    covered = np.ones(len(dH), bool)
    for z in np.unique(numbers).tolist():
        mine = np.flatnonzero(numbers == z)
        refuse_too_few(structures[mine], coverage, SYMBOLS[z], "label more")
        fit = _Fit(dH[mine], errors[mine], structures[mine], coverage)
        covered[mine] = _judge_held_out(dH[mine], errors[mine], structures[mine], coverage)
        bins[SYMBOLS[z]] = _make_bins(fit, dH[mine], structures[mine], covered[mine])
    share, low, high = estimate_interval(covered, structures)
    return ErrorBound(
        bins=bins,
        coverage=coverage,
        covered=share,
        low=low,
        high=high,
        structures=len(np.unique(structures)),
        environments=len(dH),
        potential=potential,
        reference=fingerprint_index(index),
    )


def read_environments(
    index: IndexData,
    labelled: Iterable[tuple[Frame, NDArray[np.float64]]],
    threads: int | None,
    measure: Callable[[Frame], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Read labelled frames, and refuse those of the reference.

    Parameters
    ----------
    index, labelled, threads
        As in `fit_error_bound`.
    measure
        What is measured of the environments of a frame: (n,) or (n, columns).

    Returns
    -------
    tuple
        What was measured, atomic numbers, errors and structures (n,) of all environments.
    """
    measured, numbers, errors, structures, known = [], [], [], [], []
    names: dict[object, int] = {}
    for i, (frame, error) in enumerate(labelled):
        if error.shape != (len(frame.centres),) or not np.isfinite(error).all():
            raise InputError(f"frame {i}: the force errors must be {len(frame.centres)} finite numbers")
        if find_known(index, index.spec.compute(frame, threads), threads).all():
            known.append(i)
        measured.append(measure(frame))
        numbers.append(frame.numbers[frame.centres])
        errors.append(error)
        name = names.setdefault(("frame", i) if frame.group is None else frame.group, len(names))
        structures.append(np.full(len(error), name))
    if not measured:
        raise CalibrationError("no labelled frames")
    if known:
        raise CalibrationError(
            f"{len(known)} of {len(measured)} labelled frames are in the reference (the first is frame {known[0]}, "
            "counted from 0): errors on training frames say nothing about errors on other frames; leave these "
            "frames out"
        )
    return tuple(np.concatenate(x) for x in (measured, numbers, errors, structures))  # type: ignore[return-value]


class _Fit:
    """Upper ends of bins, and their bounds."""

    def __init__(
        self, dH: NDArray[np.float64], errors: NDArray[np.float64], structures: NDArray[np.int64], coverage: float
    ) -> None:
        self.upper = _find_bin_ends(dH, structures, coverage)
        place = np.searchsorted(self.upper, dH)
        bounds = [find_quantile(errors[place == b], structures[place == b], coverage) for b in range(len(self.upper))]
        self.bounds = np.maximum.accumulate(bounds)

    def of(self, dH: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bounds at dH; inf beyond the last bin."""
        return np.append(self.bounds, np.inf)[np.searchsorted(self.upper, dH)]


def _find_bin_ends(dH: NDArray[np.float64], structures: NDArray[np.int64], coverage: float) -> NDArray[np.float64]:
    """Return the upper ends of the bins, ascending."""
    fewest, smallest = 2 * count_needed(coverage), len(dH) // _MOST_BINS
    order = np.argsort(-dH, kind="stable")
    ends, start, seen = [float(dH[order[0]])], 0, set[int]()
    for i, at in enumerate(order.tolist()):
        if len(seen) >= fewest and i - start >= smallest and dH[at] < dH[order[i - 1]]:
            ends.append(float(dH[at]))
            start, seen = i, set()
        seen.add(int(structures[at]))
    if len(ends) > 1 and len(seen) < fewest:  # the rest joins the bin above
        ends.pop()
    return np.array(ends[::-1])


def _judge_held_out(
    dH: NDArray[np.float64], errors: NDArray[np.float64], structures: NDArray[np.int64], coverage: float
) -> NDArray[np.bool_]:
    """Return for each environment whether its error is below the bound that was fitted without its structure."""

    def fit(rest: NDArray[np.bool_]) -> NDArray[np.bool_]:
        made = _Fit(dH[rest], errors[rest], structures[rest], coverage)
        return errors[~rest] <= made.of(dH[~rest])

    return judge_held_out(structures, fit)


def _make_bins(
    fit: _Fit, dH: NDArray[np.float64], structures: NDArray[np.int64], covered: NDArray[np.bool_]
) -> tuple[ErrorBin, ...]:
    place, bins = np.searchsorted(fit.upper, dH), []
    for b, (upper, bound) in enumerate(zip(fit.upper.tolist(), fit.bounds.tolist(), strict=True)):
        mine = place == b
        n = len(np.unique(structures[mine]))
        bins.append(ErrorBin(upper, bound, n, int(mine.sum()), *estimate_interval(covered[mine], structures[mine])))
    return tuple(bins)
