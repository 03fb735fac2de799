"""Which candidates of a generation are labelled: by dH, by the force error to be expected, or by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..descriptors import Environments
from ..elements import SYMBOLS
from ..frame import Frame
from ..index import Index, LocalBound
from ..monitor import Above
from ..selection import Selection
from ._settings import SelectBy

__all__ = ["Candidate", "Chosen", "ErrorMeasure", "select"]

# Decimals of expected errors (eV/Å) that decide. Further ones differ between machines: such frames are ties.
_DIGITS = 6


@dataclass(frozen=True)
class Candidate:
    """A candidate: the frame, and the name of the exploration that proposes it."""

    name: str
    frame: Frame


class Chosen(NamedTuple):
    """A candidate that is labelled.

    Attributes
    ----------
    place
        Its place among the candidates.
    dH
        (n_env,) of its environments, in nats.
    errors
        (n_env,) what `ErrorMeasure` expects of them, in eV/Å, nan outside; None if dH alone decides.
    """

    place: int
    dH: NDArray[np.float64]
    errors: NDArray[np.float64] | None


@dataclass(frozen=True)
class ErrorMeasure:
    """What an index says of force errors: expected errors, or local residuals if these are not calibrated.

    Attributes
    ----------
    potential
        Name of the potential.
    bound
        What its local residuals are calibrated to; None: they are not.
    """

    potential: str
    bound: LocalBound | None

    @classmethod
    def of(cls, index: Index) -> ErrorMeasure:
        """Return that of an index; `InputError` if it has no residuals, or residuals of several potentials."""
        bound = index.calibration.local_error if index.calibration else None
        return cls(index.residuals_of(bound.potential if bound else None).name, bound)

    @property
    def name(self) -> str:
        """What it is called in records."""
        return "local residual" if self.bound is None else "expected error"

    def measure(
        self, index: Index, rows: NDArray[np.float64], numbers: NDArray[np.int64], threads: int | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return dH (n_env,) in nats, and the errors to be expected (n_env,) in eV/Å, nan outside, of environments."""
        dH, s = index.local_residuals(rows, threads, potential=self.potential)
        return dH, (s if self.bound is None else self.bound.expected(dH, s, numbers)).round(_DIGITS)


def select(
    index: Index,
    candidates: Sequence[Candidate],
    thresholds: Mapping[str, float],
    budget: int,
    threads: int | None = None,
    *,
    by: SelectBy = "dH",
) -> list[Chosen]:
    """Select the candidates to label.

    A frame is kept if any of its environments is novel against the index and the kept frames. So what two explorations
    propose alike is labelled once, whatever `by` says.

    By dH, they pass through the selection of a watched run in the order of their steps, as if one run had made them
    all. When the budget is full, a frame with more novel environments replaces the one with the fewest. Otherwise
    they are ranked once, and kept in this order until the budget is full.

    Parameters
    ----------
    index
        Index of this generation; with residuals, unless `by` is "dH".
    candidates
        Candidates of all explorations.
    thresholds
        `select` of every element, in nats.
    budget
        Largest number of frames.
    threads
        Number of threads; None: all cores.
    by
        "dH": as above. "error": the frames whose worst environment has the largest expected error come first. "both":
        the largest sum of the expected errors of the environments above `select`.

    Returns
    -------
    list of Chosen
        In the order in which they were kept.

    Raises
    ------
    InputError
        The index lacks the residuals that `by` needs.
    """
    order = sorted(range(len(candidates)), key=lambda i: (candidates[i].frame.step, candidates[i].name))
    measure = None if by == "dH" else ErrorMeasure.of(index)
    if measure is not None:
        order = _rank(index, candidates, order, thresholds, by, threads)
    selection = Selection(index, budget=budget if measure is None else None, threads=threads)
    kept = dict[int, Chosen]()
    for place in order:
        if measure is not None and len(kept) == budget:
            break
        judged = _judge(candidates[place].frame, index, thresholds, measure, threads)
        verdict = selection.consider(judged.above, first=True)
        if verdict.drop is not None:
            del kept[verdict.drop]
        if verdict.ordinal is not None:
            kept[verdict.ordinal] = Chosen(place, judged.dH, judged.errors)
    return list(kept.values())


class _Judged(NamedTuple):
    """A candidate as the index sees it: what is above `select`, as a proposal and as places; dH and errors (n_env,)."""

    above: Above
    places: NDArray[np.int64]
    dH: NDArray[np.float64]
    errors: NDArray[np.float64] | None


def _judge(
    frame: Frame,
    index: Index,
    select: Mapping[str, float],
    measure: ErrorMeasure | None,
    threads: int | None,
) -> _Judged:
    environments = Environments(index.spec, frame)
    centres, ids, errors = environments.centres, frame.ids, None
    rows, numbers = environments.compute(np.arange(len(centres)), threads), frame.numbers[centres].astype(np.int64)
    if measure is None:
        dH = index.delta_entropy(rows, threads)
    else:
        dH, errors = measure.measure(index, rows, numbers, threads)
    thresholds = np.array([select[SYMBOLS[z]] for z in numbers.tolist()])
    above = np.flatnonzero(dH > thresholds)
    assert ids is not None

    def compute(which: NDArray[np.int64]) -> NDArray[np.float64]:
        return environments.compute(above[which], threads)

    proposal = Above(frame.step, np.asarray(ids)[centres[above]], dH[above], thresholds[above], compute)
    return _Judged(proposal, above, dH, errors)


def _rank(
    index: Index,
    candidates: Sequence[Candidate],
    order: Sequence[int],
    thresholds: Mapping[str, float],
    by: SelectBy,
    threads: int | None,
) -> list[int]:
    """Return the places of the candidates, the most wrong first; of equal ones, those that `order` has first.

    What is outside of the calibration has no expected error, and counts as the most wrong.
    """
    measure, scores = ErrorMeasure.of(index), list[_Score]()
    for place in order:
        judged = _judge(candidates[place].frame, index, thresholds, measure, threads)
        assert judged.errors is not None
        errors = judged.errors if by == "error" else judged.errors[judged.places]
        known = errors[np.isfinite(errors)]
        scores.append(_Score(place, len(errors) - len(known), float(known.max(initial=0.0)), float(known.sum())))
    if by == "error":
        # One environment outside comes before all errors; then the more of them, the sooner.
        scores.sort(key=lambda score: (-score.outside, -score.largest))
    else:
        largest = max((score.largest for score in scores), default=0.0) or 1.0
        scores.sort(key=lambda score: -round(score.sum + score.outside * largest, _DIGITS))
    return [score.place for score in scores]


class _Score(NamedTuple):
    """Of the environments of a candidate that count: how many are outside; of the others the largest error, and sum."""

    place: int
    outside: int
    largest: float
    sum: float
