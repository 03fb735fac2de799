"""Calibrating local residuals: which force errors they mean, by element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ..frame import Frame
from ._conformal import (
    check_coverage,
    draw_medians,
    estimate_interval,
    find_median,
    find_quantile,
    judge_held_out,
    refuse_too_few,
)
from ._data import IndexData, fingerprint_index
from ._force_error import read_environments
from ._local import group_frames, measure_left_out
from ._local_bound import ADDED, HELD_OUT, LEFT_OUT, FrameFactors, LocalBound, LocalFactors
from ._residuals import LARGEST, Residuals, fingerprint_residuals

__all__ = ["fit_local_bound"]

_MOST = 20_000  # references that are left out
_FEWEST_FRAMES = 100  # if so many frames hold fewer references, whole frames are left out


def fit_local_bound(
    index: IndexData,
    labelled: Iterable[tuple[Frame, NDArray[np.float64]]] | None = None,
    *,
    potential: str | None = None,
    coverage: float = 0.9,
    threads: int | None = None,
) -> LocalBound:
    """Fit which force errors local residuals mean: their median, and a bound of them.

    Errors e are compared with s + 0.005 eV/Å, by element. The bound is conformal prediction for data in groups (Lee,
    Barber and Willett, arXiv:2306.06342), as in `fit_error_bound`: each of the K structures has the weight 1/(K + 1),
    which its atoms share evenly, and one unseen structure with infinite errors has the rest. The factor of the bound is
    the quantile of e/(s + 0.005 eV/Å) at `coverage`.

    Without `labelled` the errors are the residuals of the references themselves, or of an even sample of about 20,000.
    Each is compared with the reference without its own frame, or without the group of this frame. These errors are too
    small for a potential that was fitted too closely to the reference: then give labelled frames.

    Parameters
    ----------
    index
        The index, with residuals; it does not change.
    labelled
        Frames that are not in the reference, each with the force errors (eV/Å) of its environments. Frames with the
        same `group` count as one structure; a frame without a group is a structure of its own.
    potential
        The name of the potential, as in `Index.residuals_of`.
    coverage
        The share of errors that must lie below the bound.
    threads
        Threads to use; None takes all cores.

    Raises
    ------
    CalibrationError
        A labelled frame is in the reference, the structures are too few, or no reference that matters has a residual.
    InputError
        The coverage is not between 0 and 1, an error is not one, or the index has no such residuals.
    """
    check_coverage(coverage)
    residuals = index.residuals_of(potential)
    remedy, given = "give more frames residuals", None
    if labelled is not None:
        remedy, given = "label more", _measure_labelled(index, residuals, labelled, threads)
    left_out = _measure_references(index, residuals, threads)
    used = left_out if given is None else given
    if not len(used.errors):
        raise CalibrationError(
            f"no environment has a local residual of {residuals.name}: the references near them have no residuals"
        )
    covered, elements = np.ones(len(used.errors), bool), {}
    for z in np.unique(used.numbers).tolist():
        mine = used.of(used.numbers == z)
        refuse_too_few(mine.structures, coverage, SYMBOLS[z], remedy)
        held_out = _judge_held_out(mine, coverage)
        covered[used.numbers == z] = held_out
        elements[SYMBOLS[z]] = _fit_element(mine, coverage, held_out)
    excess = (1.0, 1.0, 1.0) if given is None else _estimate_excess(given, left_out)
    return LocalBound(
        elements,
        coverage,
        *estimate_interval(covered, used.structures),
        structures=len(np.unique(used.structures)),
        environments=len(covered),
        potential=residuals.name,
        fingerprint=residuals.fingerprint,
        errors=LEFT_OUT if given is None else HELD_OUT,
        excess=excess[0],
        excess_low=excess[1],
        excess_high=excess[2],
        reference=fingerprint_residuals(fingerprint_index(index), residuals),
        frames=_fit_frames(used),
    )


class _Sample(NamedTuple):
    """Environments (n,) with a local residual: dH (nats), scale s + 0.005 eV/Å, error/scale, numbers, structures."""

    dH: NDArray[np.float64]
    scale: NDArray[np.float64]
    errors: NDArray[np.float64]
    numbers: NDArray[np.int64]
    structures: NDArray[np.int64]

    def of(self, which: NDArray[np.bool_]) -> _Sample:
        dH, scale, errors = self.dH[which], self.scale[which], self.errors[which]
        return _Sample(dH, scale, errors, self.numbers[which], self.structures[which])


def _measure_labelled(
    index: IndexData,
    residuals: Residuals,
    labelled: Iterable[tuple[Frame, NDArray[np.float64]]],
    threads: int | None,
) -> _Sample:
    def measure(frame: Frame) -> NDArray[np.float64]:
        return np.column_stack(index.local_residuals(frame, threads, potential=residuals.name))

    measured, numbers, errors, structures = read_environments(index, labelled, threads, measure)
    if errors.min(initial=0.0) < 0.0 or errors.max(initial=0.0) > LARGEST:
        raise InputError(f"the labelled frames hold values that are no force errors (0 to {LARGEST:g} eV/Å)")
    dH, s = measured.T
    return _Sample(dH, s + ADDED, errors / (s + ADDED), numbers.astype(np.int64), structures).of(~np.isnan(s))


def _measure_references(index: IndexData, residuals: Residuals, threads: int | None) -> _Sample:
    """Compare residuals of the references with local residuals, each without its own frame or group."""
    with index.reading():
        owner, group_of_frame = group_frames(index)
    asked = _choose_references(owner, ~np.isnan(residuals.values))
    dH, s = measure_left_out(index, residuals, asked, threads)
    scale, numbers = s + ADDED, index.numbers[asked].astype(np.int64)
    errors = residuals.values[asked].astype(np.float64) / scale
    return _Sample(dH, scale, errors, numbers, group_of_frame[owner[asked]]).of(~np.isnan(s))


def _choose_references(owner: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return rows with a residual: all, an even sample of whole frames or, if frames are large, of rows.

    Parameters
    ----------
    owner
        (n,) the frame of every row.
    known
        (n,) whether it has a residual.
    """
    rows = np.flatnonzero(known)
    if len(rows) <= _MOST:
        return rows
    frames = np.unique(owner[rows])
    n = len(frames) * _MOST // len(rows)
    if n >= _FEWEST_FRAMES:
        return rows[np.isin(owner[rows], frames[np.linspace(0, len(frames) - 1, n).astype(np.int64)])]
    by_frame = rows[np.argsort(owner[rows], kind="stable")]
    return np.sort(by_frame[np.linspace(0, len(rows) - 1, _MOST).astype(np.int64)])


def _fit_element(sample: _Sample, coverage: float, covered: NDArray[np.bool_]) -> LocalFactors:
    return LocalFactors(
        find_median(sample.errors, sample.structures),
        find_quantile(sample.errors, sample.structures, coverage),
        float(sample.dH.max()),
        len(np.unique(sample.structures)),
        len(sample.errors),
        *estimate_interval(covered, sample.structures),
    )


def _fit_frames(sample: _Sample) -> FrameFactors:
    """Compare the root mean square errors of structures with those of s + 0.005 eV/Å."""
    _, kind = np.unique(sample.structures, return_inverse=True)
    squares = np.bincount(kind, (sample.errors * sample.scale) ** 2), np.bincount(kind, sample.scale**2)
    ratios = np.sqrt(squares[0] / squares[1])
    low, median, high = np.quantile(ratios, [0.05, 0.5, 0.95]).tolist()
    return FrameFactors(median, low, high, len(ratios))


def _judge_held_out(sample: _Sample, coverage: float) -> NDArray[np.bool_]:
    """Return for each environment whether its error is below the bound that was fitted without its structure."""

    def fit(rest: NDArray[np.bool_]) -> NDArray[np.bool_]:
        factor = find_quantile(sample.errors[rest], sample.structures[rest], coverage)
        outside = sample.dH[~rest] > sample.dH[rest].max()
        return np.asarray((sample.errors[~rest] <= factor) | outside)

    return judge_held_out(sample.structures, fit)


def _estimate_excess(given: _Sample, left_out: _Sample) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return by which factor labelled errors exceed those of the references, and its 95 % interval.

    Both are compared with local residuals; the median of the references is 1 for each element. The factor is the ratio
    of the medians over all elements.
    """
    medians = np.zeros(len(SYMBOLS))
    for z in np.unique(left_out.numbers).tolist():
        mine = left_out.of(left_out.numbers == z)
        medians[z] = find_median(mine.errors, mine.structures)
    both = np.intersect1d(np.flatnonzero(medians > 0.0), given.numbers)
    samples = [one.of(np.isin(one.numbers, both)) for one in (given, left_out)]
    if not len(both):
        return None, None, None
    scaled = [(one.errors / medians[one.numbers], one.structures) for one in samples]
    ratio = find_median(*scaled[0]) / find_median(*scaled[1])
    above, below = (np.fromiter(draw_medians(*one, seed), np.float64) for seed, one in enumerate(scaled))
    if not below.all():
        return None, None, None
    low, high = np.quantile(above / below, [0.025, 0.975]).tolist()
    return ratio, min(low, ratio), max(high, ratio)
