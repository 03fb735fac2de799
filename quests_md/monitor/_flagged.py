"""``values="flagged"``: exact dH of the atoms that matter, certified upper bounds for the others.

An atom matters if it lies above `select`, if it may be the maximum, or if it belongs to the sample that mean and
quantiles come from. Of the others only a bound is known, and a bound decides nothing: none is above `select`, and none
reaches the maximum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ._measure import CHUNK, Evaluation

__all__ = ["Flagged", "is_sampled"]

_SAMPLE = 128  # atoms of the whole frame, about
_SUSPECTS = 16  # atoms of a rank that are remembered as its largest
# The bound and the exact sum may round differently, and atoms as high as the maximum must all be seen: what is bounded
# stays this much below, times max(1, |dH|). Agreement is to 1e-10.
_MARGIN = 1e-9
# A table of hints that has a slot for each id needs no luck; it may be this many times larger than the rank's atoms.
_SPARSE = 16


class Flagged:
    """Decides which dH of a frame are computed; on each rank by itself, but for the share that is sampled.

    Attributes
    ----------
    share
        Share of the atoms that are the sample; None before the first evaluation that has atoms.
    hints
        What certified an atom last, in the slot ``id & (size - 1)``. Atoms may share a slot: a wrong hint costs time.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self.hints = np.full(1, -1, np.int32)
        self._suspects = np.empty(0, np.int64)  # ids of the largest dH of the last evaluation
        self._is_crowded = False  # most atoms could not be bounded then: a hot melt, or a perfect crystal

    def choose_share(self, n: int) -> None:
        """Choose the share for a frame of n atoms, on all ranks; it never changes after."""
        self.share = min(1.0, _SAMPLE / n)

    def compute(self, evaluation: Evaluation, select: float) -> NDArray[np.bool_]:
        """Compute what must be exact and bound the rest; return which environments are the sample."""
        ids = evaluation.ids
        sample = is_sampled(ids, 1.0 if self.share is None else self.share)
        if self._is_crowded or select == -math.inf:
            evaluation.complete()
        else:
            first = np.flatnonzero(sample | np.isin(ids, self._suspects))
            if not len(first):
                first = np.arange(0, len(ids), max(1, len(ids) // _SUSPECTS))
            evaluation.compute(first)
            self._bound(evaluation, np.flatnonzero(~evaluation.is_exact), select)
        self._remember(evaluation, select)
        return sample

    def _bound(self, evaluation: Evaluation, rest: NDArray[np.int64], select: float) -> None:
        """Bound dH of the environments `rest` below both `select` and the maximum; compute it where that fails."""
        slots = self._slots(evaluation.ids[rest])
        waiting: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        maximum = _maximum(evaluation)
        for first in range(0, len(rest), CHUNK):
            part, slot = rest[first : first + CHUNK], slots[first : first + CHUNK]
            threshold = _below(min(maximum, select))
            rows, memory = evaluation.rows(part), self.hints[slot]
            bounds = evaluation.index.upper_bound(rows, threshold, memory, evaluation.threads)
            self.hints[slot] = memory
            evaluation.dH[part] = bounds
            above = ~(bounds <= threshold)
            # Sums are cheapest for many queries at a time, so rows wait for each other; but not all of a frame's.
            if above.any():
                waiting.append((part[above], rows[above]))
            if sum(len(which) for which, _ in waiting) >= CHUNK:
                _compute(evaluation, waiting)
                maximum = _maximum(evaluation)
        _compute(evaluation, waiting)

    def _slots(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of atoms in the table of hints, which grows when it must."""
        if len(ids):
            wanted = max(2 * len(ids), min(int(ids.max()) + 1, _SPARSE * len(ids)))
            while len(self.hints) < wanted:
                self.hints = np.tile(self.hints, 2)  # every atom finds its hint in the new slot
        slots: NDArray[np.int64] = ids & (len(self.hints) - 1)
        return slots

    def _remember(self, evaluation: Evaluation, select: float) -> None:
        """Remember for the next evaluation which atoms are the largest, and whether most are too large to bound."""
        known = np.flatnonzero(evaluation.is_exact)
        if len(known) > _SUSPECTS:
            known = known[np.argpartition(evaluation.dH[known], -_SUSPECTS)[-_SUSPECTS:]]
        self._suspects = evaluation.ids[known]
        threshold = _below(min(_maximum(evaluation), select))
        self._is_crowded = bool(2 * np.count_nonzero(evaluation.dH > threshold) > len(evaluation))


def is_sampled(ids: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Return which atoms are the sample: by a hash of the id, whatever their order and their rank."""
    if share >= 1.0:
        return np.ones(len(ids), dtype=bool)
    mixed = ids.astype(np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(32)) < np.uint64(share * 2**32)


def _compute(evaluation: Evaluation, waiting: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> None:
    """Compute dH of the environments whose rows are waiting, and empty the list."""
    if waiting:
        which, rows = (np.concatenate(column) for column in zip(*waiting, strict=True))
        evaluation.put(which, rows)
        waiting.clear()


def _maximum(evaluation: Evaluation) -> float:
    return float(np.max(evaluation.dH, where=evaluation.is_exact, initial=-np.inf))


def _below(value: float) -> float:
    """Return a number that is surely below `value`, also where that was rounded in another way."""
    if math.isinf(value):
        return float(np.nextafter(value, 0.0)) if value > 0 else value
    return value - _MARGIN * max(1.0, abs(value))
