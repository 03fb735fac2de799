"""Flagged values: which dH of a frame are computed, and which only bounded."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..kernels import tally
from ._measure import CHUNK, POOLED, Evaluation, Window

__all__ = ["Flagged"]

_SUSPECTS = 2  # atoms with the largest dH that a rank remembers
# Exact sums of so many atoms cost what one does: kernels take six rows at a time, and read all references for them.
_AT_ONCE = 6
# A bound and an exact sum may round differently (they agree to 1e-10), and all atoms as high as the maximum must be
# found. So a bounded atom stays below the threshold by at least this times max(1, |dH|).
_MARGIN = 1e-9
# The table of hints gets a slot for each id if that makes it at most this many times larger than the rank's atoms.
_SPARSE = 16


class Flagged:
    """Decides which dH of a frame are computed, and which only bounded. Ranks have share and count in common.

    Attributes
    ----------
    share
        `POOLED` over the number of atoms; None before the first evaluation with atoms.
    count
        Number of evaluations that have a row: the sample goes round with it.
    hints
        The reference that certified an atom last, in the slot ``id & (size - 1)``. Atoms may share a slot: a wrong hint
        only costs time.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self.count = 0
        self.hints = np.full(1, -1, np.int32)
        self._suspects = np.empty(0, np.int64)  # ids of the largest dH of the last evaluation
        self._is_crowded = False  # most atoms could not be bounded then: a hot melt, or a perfect crystal

    def choose_share(self, n: int) -> None:
        """Choose the share for a frame of n atoms, the same on all ranks; it does not change later."""
        self.share = POOLED / n

    def compute(self, evaluation: Evaluation, select: float, is_first: bool) -> NDArray[np.bool_]:
        """Compute what must be exact and bound the rest; return which environments (n,) are in the sample.

        If it `is_first`, because nothing is pooled yet, the sample is as large as the pool.
        """
        ids, evaluation.spares = evaluation.ids, True
        sample = Window.at(1.0 if self.share is None else self.share, self.count, is_first).mark(ids)
        if self._is_crowded or select == -math.inf:
            evaluation.complete()
        elif len(ids):
            first = np.empty(len(ids), np.int64)
            n, largest = tally.choose(ids, sample, self._suspects, first)
            if n == 0:
                first = np.arange(0, len(ids), max(1, len(ids) // _AT_ONCE))
                n = min(_AT_ONCE, len(first))
            self._make_room(len(ids), largest)
            self._bound(evaluation, first[:n].copy(), select)
        self._remember(evaluation, select)
        return sample

    def _bound(self, evaluation: Evaluation, first: NDArray[np.int64], select: float) -> None:
        """Compute dH of the environments `first`; bound the rest below `select` and the maximum, or compute it."""
        n = len(evaluation)
        rows = evaluation.rows(slice(0, n)) if n <= CHUNK else None  # all at once, if they are few
        evaluation.put(first, evaluation.rows(first) if rows is None else rows[first])
        search, waiting = _Search(evaluation, select), _Waiting()
        for begin in range(0, n, CHUNK):
            chunk = slice(begin, begin + CHUNK)
            if rows is None:
                rows = evaluation.rows(chunk)
            evaluation.estimate(chunk, rows)
            ids, memory, above = evaluation.ids[chunk], np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
            tally.recall(ids, self.hints, memory)
            bounds, guesses = search.ask(rows, memory)
            known, dH = evaluation.is_exact[chunk], evaluation.dH[chunk]
            count = tally.settle(bounds, search.threshold, ids, memory, self.hints, known, dH, above)
            if count:
                above = above[:count]
                waiting.add(begin + above, rows[above], guesses[above])
                search.raise_maximum(waiting)
                # Kernel sums are cheapest for many queries at a time, so rows wait until there is a chunk of them.
                if len(waiting) >= CHUNK:
                    waiting.compute(evaluation)
            rows = None  # before the next ones are made
        waiting.compute(evaluation)

    def _make_room(self, n: int, largest: int) -> None:
        """Enlarge the table of hints if n atoms with ids up to `largest` need it."""
        wanted = max(2 * n, min(largest + 1, _SPARSE * n))
        while len(self.hints) < wanted:
            self.hints = np.tile(self.hints, 2)  # every atom finds its hint in the new slot

    def _remember(self, evaluation: Evaluation, select: float) -> None:
        """Remember, for the next evaluation, the atoms with the largest dH, and whether bounds fail for most atoms."""
        threshold, suspects = step_below(min(evaluation.maximum, select)), np.empty(_SUSPECTS, np.int64)
        n, n_above = tally.find_largest(evaluation.dH, evaluation.is_exact, evaluation.ids, threshold, suspects)
        self._suspects, self._is_crowded = suspects[:n], 2 * n_above > len(evaluation)


class _Waiting:
    """Environments that are not bounded: their places, rows, and guesses of their dH."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []

    def __len__(self) -> int:
        return sum(len(which) for which, _, _ in self._parts)

    def add(self, which: NDArray[np.int64], rows: NDArray[np.float64], guesses: NDArray[np.float64]) -> None:
        """Let environments wait."""
        self._parts.append((which, rows, guesses))

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return all of them, and keep none."""
        parts, self._parts = self._parts, []
        if len(parts) == 1:
            return parts[0]
        which, rows, guesses = (np.concatenate(column) for column in zip(*parts, strict=True))
        return which, rows, guesses

    def compute(self, evaluation: Evaluation) -> None:
        """Compute dH of all of them."""
        if self._parts:
            which, rows, _ = self.take()
            evaluation.put(which, rows)


class _Search:
    """Bounds dH of one evaluation below `select` and the largest exact dH so far.

    Attributes
    ----------
    threshold
        What the last question asked about.
    """

    def __init__(self, evaluation: Evaluation, select: float) -> None:
        self._evaluation, self._select, self.threshold = evaluation, select, select
        # A reference of somebody else may know only `upper_bound`, which leaves nothing open.
        self._search = getattr(evaluation.index, "search", None)

    def ask(
        self, rows: NDArray[np.float64], memory: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bounds and guesses of dH of `rows`; a bound that is not at most the threshold says nothing else."""
        evaluation = self._evaluation
        self.threshold = threshold = self._find_threshold()
        if self._search is None:
            bounds = evaluation.index.upper_bound(rows, threshold, memory, evaluation.threads)
            return bounds, bounds
        bounds, guesses = self._search(rows, threshold, memory, evaluation.threads)
        return bounds, guesses

    def _find_threshold(self) -> float:
        return step_below(min(self._evaluation.maximum, self._select))

    def raise_maximum(self, waiting: _Waiting) -> None:
        """Compute those of many that have the largest dH, probably, and bound the rest below what comes out.

        The first maximum is that of a few atoms. If many are above it, most of these are below the true one.
        """
        evaluation = self._evaluation
        while len(waiting) > _AT_ONCE and evaluation.maximum < self._select:
            which, rows, guesses = waiting.take()
            order = np.argpartition(guesses, -_AT_ONCE)
            rest, top = order[:-_AT_ONCE], order[-_AT_ONCE:]
            evaluation.put(which[top], rows[top])
            which, rows, guesses = which[rest], rows[rest], guesses[rest]
            if self._find_threshold() <= self.threshold + _MARGIN * max(1.0, abs(self.threshold)):
                waiting.add(which, rows, guesses)
                return
            bounds, guesses = self.ask(rows, np.full(len(rows), -1, np.int32))
            evaluation.dH[which] = bounds
            above = np.flatnonzero(~(bounds <= self.threshold))
            waiting.add(which[above], rows[above], guesses[above])


def step_below(value: float) -> float:
    """Return a number that is below `value`, even if `value` was rounded in another way."""
    if math.isinf(value):
        return float(np.nextafter(value, 0.0)) if value > 0 else value
    return value - _MARGIN * max(1.0, abs(value))
