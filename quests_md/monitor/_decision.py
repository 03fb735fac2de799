"""Which evaluation a frame is, and what the monitor decides about it."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame
from ..index import Lesson
from ..kernels.tally import add_mark
from ._measure import Evaluation, Part

__all__ = ["Above", "Band", "Decision", "Evaluations", "Key", "Visits", "compute_cell_mark", "compute_mark", "is_same"]

Mark = tuple[float, float]

_FREE = 10.0  # Å; the unit along directions that are not periodic
# Two marks belong to the same configuration if they differ by at most this times the square root of the number of
# atoms. Rounding (of sums, and of atoms that were wrapped into the cell) changes a mark by less. One atom that moves by
# 1e-6 of the cell changes it by more.
_TOLERANCE = 1e-10
_NEAR = 0.01  # two frames may be the same if their largest dH differ by at most this times (1 + |dH|), in nats

# -- which evaluation it is --------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """The name of an evaluation.

    Attributes
    ----------
    run
        1, and one more each time the steps go backwards.
    step
        Step of the host.
    repeat
        0 for the first configuration that was evaluated at this step, 1 for the second, and so on.
    """

    run: int
    step: int
    repeat: int = 0

    def __str__(self) -> str:
        return f"{self.run}:{self.step}:{self.repeat}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Return the key that a text ``run:step:repeat`` stands for; `ValueError` if it stands for none."""
        run, step, repeat = map(int, text.split(":"))
        return cls(run, step, repeat)


def compute_mark(frame: Frame) -> NDArray[np.float64]:
    """Return this rank's part (2,) of the mark of a configuration. The frame is not copied, and no rank is asked.

    The mark is the sum of these parts over all ranks, plus `compute_cell_mark`. It is the same for the same elements,
    ids and positions in the same cell: in any order of atoms, on any number of ranks, and after atoms were moved by
    whole cell vectors.
    """
    n, mark = frame.n_local, np.zeros(2)
    assert frame.ids is not None
    assert frame.cell is not None
    inverse, pbc = _find_axes(frame.cell.tobytes(), np.asarray(frame.pbc).tobytes())
    if n:
        numbers, ids = (_make_plain(each[:n].astype(np.int64, copy=False)) for each in (frame.numbers, frame.ids))
        add_mark(_make_plain(frame.positions[:n]), numbers, ids, inverse, pbc, mark)
    return mark


def _make_plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the layout that kernels are compiled for: any other would compile while the run waits."""
    return array if array.flags.carray else np.require(array, requirements=["C", "A", "W"])


def compute_cell_mark(frame: Frame) -> float:
    """Return the part of the cell in a mark; it is the same on every rank."""
    assert frame.cell is not None
    cell, total = frame.cell.tolist(), 0.0
    # Only periodic directions count: along the others the host may redraw the cell around the atoms.
    for row, is_periodic in enumerate(np.asarray(frame.pbc)):
        if is_periodic:
            x, y, z = cell[row]
            total += (row + 1.0) * (0.7 * x + 0.9 * y + 1.1 * z)
    return total


@functools.lru_cache(maxsize=4)
def _find_axes(cell_bytes: bytes, pbc_bytes: bytes) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the matrix (3, 3) from positions to coordinates along the cell, and the periodic directions (3,)."""
    pbc = np.frombuffer(pbc_bytes, bool).copy()
    return _make_plain(_invert(np.frombuffer(cell_bytes).reshape(3, 3).copy(), pbc)), pbc


def _invert(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the inverse of the cell, with vectors of a fixed length along directions that are not periodic."""
    if not pbc.any():
        return np.eye(3) / _FREE
    if not np.isfinite(cell).all():  # a broken cell
        return np.full((3, 3), np.nan)
    # An orthonormal basis of the directions that the periodic vectors leave free. It depends on these vectors alone.
    cell[~pbc] = _FREE * np.linalg.svd(cell[pbc])[2][np.count_nonzero(pbc) :]
    try:
        return np.asarray(np.linalg.inv(cell), np.float64)
    except np.linalg.LinAlgError:
        return np.full((3, 3), np.nan)


def is_same(one: Mark, other: Mark, n: int) -> bool:
    """Return whether two marks belong to the same configuration of n atoms."""
    tolerance = _TOLERANCE * math.sqrt(max(n, 1))
    near = (abs(one[0] - other[0]) <= tolerance, abs(one[1] - other[1]) <= tolerance)
    return near == (True, True) or (one[0] != one[0] and other[0] != other[0])  # all broken frames are the same


@dataclass
class Visits:
    """Give every evaluation its key, and recognise those that were made before. The same on every rank.

    The same configuration at the same step is the same evaluation, for example in the set-up of the next ``run`` or
    after a restart. A different configuration at that step is a new evaluation. In a resumed run, the mark tells which
    row of the file belongs to a configuration. But a restarted dynamics does not reach the same positions to the last
    digit. So if a step has only one row, any configuration at that step counts as the one of this row. There is one
    exception: a frame that is not covered, and has another largest dH than the row, is a new evaluation.

    Attributes
    ----------
    run
        Number of the present run.
    """

    run: int = 1
    _step: int | None = None
    _marks: list[tuple[Mark, int]] = field(default_factory=list)  # mark and repeat of each evaluation of this step
    _buckets: dict[int, list[int]] = field(default_factory=dict)  # places in _marks, by the first number of the mark
    _blind: list[int] = field(default_factory=list)  # places of rows that are recognised without a mark, in order
    _maxima: list[float] = field(default_factory=list)  # the largest dH of each row of this step
    _past: Evaluations | None = None

    def visit(
        self, step: int, mark: Mark, n: int, maximum: float = -math.inf, is_covered: bool = True
    ) -> tuple[Key, bool]:
        """Return the key of the configuration with this mark and n atoms, and whether it was evaluated before.

        `maximum` is its largest dH (nats), and `is_covered` tells whether the frame is covered.
        """
        if self._step is None and self._past is not None:
            self.run = self._past.find_run(step, mark, n)
        elif self._step is not None and step < self._step:
            self.run += 1
            self._step = None
        if step != self._step:
            self._enter(step, n)
        place = self._find(mark, n)
        is_known = place is not None
        if place is None and self._blind and (is_covered or _is_near(maximum, self._maxima[self._blind[0]])):
            place, is_known = self._blind[0], True
            self._marks[place] = mark, self._marks[place][1]
            self._remember(mark, place, n)
        if place is None:
            place = len(self._marks)
            self._marks.append((mark, self._marks[-1][1] + 1 if self._marks else 0))
            self._remember(mark, place, n)
        if place in self._blind:
            self._blind.remove(place)
        return Key(self.run, step, self._marks[place][1]), is_known

    def resume(self, past: Evaluations) -> None:
        """Go on after the evaluations of an earlier part of the run."""
        self._past, self.run = past, past.last_run

    def _enter(self, step: int, n: int) -> None:
        """Begin with the evaluations of another step."""
        self._step = step
        self._marks.clear()
        self._buckets.clear()
        self._blind = []
        if self._past is None:
            return
        self._marks, self._maxima = self._past.find(self.run, step), self._past.find_maxima(self.run, step)
        for place, (mark, _) in enumerate(self._marks):
            if mark[0] == mark[0]:
                self._remember(mark, place, n)
        self._blind = [p for p, (mark, _) in enumerate(self._marks) if len(self._marks) == 1 or mark[0] != mark[0]]

    def _remember(self, mark: Mark, place: int, n: int) -> None:
        self._buckets.setdefault(_find_bucket(mark, n), []).append(place)

    def _find(self, mark: Mark, n: int) -> int | None:
        """Return the place of the evaluation with this mark."""
        if not self._marks:
            return None
        bucket = _find_bucket(mark, n)
        for near in (bucket, bucket - 1, bucket + 1):
            for place in self._buckets.get(near, ()):
                if is_same(self._marks[place][0], mark, n):
                    return place
        return None


class Evaluations:
    """The evaluations of an earlier part of a run, by run and step.

    Parameters
    ----------
    run, step, repeat
        (n,) parts of the keys, in the order of the file.
    marks
        (n, 2) marks; nan where they are not known.
    maxima
        (n,) largest dH of each evaluation, in nats.
    """

    def __init__(
        self,
        run: NDArray[np.int64],
        step: NDArray[np.int64],
        repeat: NDArray[np.int64],
        marks: NDArray[np.float64],
        maxima: NDArray[np.float64],
    ) -> None:
        order = np.lexsort((repeat, step, run))
        self._run, self._step, self._repeat, self._marks = run[order], step[order], repeat[order], marks[order]
        self._maxima = maxima[order]
        self.last_run = int(self._run[-1]) if len(order) else 1

    def join(self, keys: Sequence[Key], marks: Sequence[NDArray[np.float64]]) -> Evaluations:
        """Return these evaluations together with those that a live reference learned from, which have no row."""
        if not keys:
            return self
        run, step, repeat = (np.array(column, np.int64) for column in zip(*keys, strict=True))
        return Evaluations(
            np.append(self._run, run),
            np.append(self._step, step),
            np.append(self._repeat, repeat),
            np.vstack([self._marks, *marks]),
            np.append(self._maxima, np.full(len(keys), -np.inf)),
        )

    def find_last(self, n: int) -> list[Key]:
        """Return the keys of the last n evaluations, in order."""
        columns = (column[max(0, len(column) - n) :].tolist() for column in (self._run, self._step, self._repeat))
        return [Key(*key) for key in zip(*columns, strict=True)]

    def find(self, run: int, step: int) -> list[tuple[Mark, int]]:
        """Return mark and repeat of each evaluation at a step of a run."""
        first, last = self._range(run, step)
        return [
            ((mark[0], mark[1]), repeat)
            for mark, repeat in zip(self._marks[first:last].tolist(), self._repeat[first:last].tolist(), strict=True)
        ]

    def find_maxima(self, run: int, step: int) -> list[float]:
        """Return the largest dH of each evaluation at a step of a run."""
        first, last = self._range(run, step)
        maxima: list[float] = self._maxima[first:last].tolist()
        return maxima

    def _range(self, run: int, step: int) -> tuple[int, int]:
        first, last = np.searchsorted(self._run, (run, run + 1)).tolist()
        begin, end = np.searchsorted(self._step[first:last], (step, step + 1)).tolist()
        return first + begin, first + end

    def holds(self, key: Key) -> bool:
        """Return whether the evaluation with this key is among them."""
        return any(repeat == key.repeat for _, repeat in self.find(key.run, key.step))

    def find_run(self, step: int, mark: Mark, n: int) -> int:
        """Return the run that this configuration belongs to: the last one that has it, else the last run.

        A script that is started again from its beginning goes through its earlier runs once more.
        """
        for run in range(self.last_run, 0, -1):
            if any(is_same(known, mark, n) for known, _ in self.find(run, step)):
                return run
        return self.last_run


def _is_near(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= _NEAR * (1.0 + abs(other))


def _find_bucket(mark: Mark, n: int) -> int:
    wide = 2.0 * _TOLERANCE * math.sqrt(max(n, 1))
    return math.floor(mark[0] / wide) if math.isfinite(mark[0]) else 0


# -- what is decided ---------------------------------------------------------------------------------------------------


class Band(str, enum.Enum):
    """Where a dH lies between the thresholds. The band of a frame is that of its worst atom."""

    COVERED = "covered"  # dH ≤ select
    CANDIDATE = "candidate"  # select < dH ≤ halt
    HALT = "halt"  # dH > halt
    IMPLAUSIBLE = "implausible"  # a broken frame: its dH means nothing

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Decision:
    """What the monitor decides about one frame. Everything but the arrays is the same on every rank.

    Attributes
    ----------
    step
        Step of the frame.
    evaluated
        False if the frame was not due; then nothing below was computed.
    run, repeat
        Together with the step, the key of the evaluation. `run` is 1, and one more each time the steps go backwards;
        `repeat` counts the configurations of this step, from 0.
    again
        Whether this configuration was evaluated at this step before. It is published, but neither saved nor counted.
    band
        Band of the frame: the highest one that enough atoms reach. By default one atom is enough.
    reasons
        Why the frame is saved or kept apart, or why the run stops, in words.
    save, stop
        Whether the frame is worth keeping, and whether the host must stop. In the answer of a `Session`, `save` tells
        whether the frame was saved: it is not if it adds nothing.
    verdict
        Why a session saved the frame ("new", "novel", "must") or did not ("copy", "budget", or "skipped": many are
        alike, and this one was not judged); empty if novelty was not asked for.
    drops
        Ordinal of the kept frame that loses its place to this one, because the budget is full; else None.
    event
        Number of the event that the frame belongs to; 0: none.
    begins, ends
        Whether that event begins or ends with this frame.
    novelty, n_novel, excess
        Largest novelty (nats) of the frame, which is dH against the index *and* the frames that the run has kept; the
        number of novel environments; and the largest difference (nats) between novelty and `select`. nan, 0 and nan if
        novelty was not computed; nan, −1 and nan if the frame was skipped.
    force_error
        Largest bound of the force error (eV/Å), if the index is calibrated for one; else nan.
    expected_error
        Largest expected force error (eV/Å) of the atoms that are not outside, if the index is calibrated for local
        residuals; else nan.
    n_outside
        Number of watched atoms of which no force error can be expected: their dH is beyond what was calibrated.
    force_rmse
        Expected root mean square force error of the frame (eV/Å); nan if an atom is outside, or without such a
        calibration.
    maximum, max_id
        Largest dH (nats) and the id of its atom. −inf and −1 if no atom is watched, inf and −1 if the frame is
        implausible.
    mean, q50, q99
        Mean, median and 99 % quantile of dH over all watched atoms, or with ``Monitor(values="flagged")`` over a sample
        that the last evaluations have made together; nan if there are none. The quantiles come from a histogram that
        ends at 8e4 nats: they are within 0.07·(1 + |dH|) nats of the exact ones.
    n_sample, sample_age
        Number of values that mean and quantiles are made of, and the age of the oldest of them, in steps. Without a
        sample they are `n` and 0.
    sample
        What this evaluation adds to the sample, for the row; None if mean and quantiles are over all atoms.
    n, n_select, n_halt
        Number of watched atoms, and how many of them lie above each threshold.
    dH
        (n_local,) dH of this rank's atoms; nan for atoms that are not watched, inf for all atoms of an implausible
        frame.
    force_errors
        (n_local,) bound of each atom's force error (eV/Å), inf outside; None without such a calibration.
    expected_errors
        (n_local,) expected force error of each atom (eV/Å), nan outside; None without a calibration of local residuals.
    values
        What `dH` holds. "exact": exact values only. "flagged": the values above `select` and the frame's maximum are
        exact; the others are certified upper bounds, none above `select` and none above the maximum. Force errors by
        local residuals are exact for the same atoms, and estimates for the others.
    seconds
        Time that the evaluation took on this rank.
    mark
        Two numbers that tell configurations apart.
    evaluation
        What was measured on this rank, for `Monitor.propose` and `complete`. Valid until the host's callback returns.
    lesson
        What a live reference has learned from the frame, while it learns.
    """

    step: int
    evaluated: bool
    run: int = 1
    repeat: int = 0
    again: bool = False
    band: Band = Band.COVERED
    reasons: tuple[str, ...] = ()
    save: bool = False
    stop: bool = False
    event: int = 0
    begins: bool = False
    ends: bool = False
    verdict: str = ""
    drops: int | None = None
    novelty: float = float("nan")
    n_novel: int = 0
    excess: float = float("nan")
    force_error: float = float("nan")
    expected_error: float = float("nan")
    n_outside: int = 0
    force_rmse: float = float("nan")
    maximum: float = float("-inf")
    max_id: int = -1
    mean: float = float("nan")
    q50: float = float("nan")
    q99: float = float("nan")
    n_sample: int = 0
    sample_age: int = 0
    sample: Part | None = field(default=None, repr=False, compare=False)
    n: int = 0
    n_select: int = 0
    n_halt: int = 0
    dH: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)
    force_errors: NDArray[np.float64] | None = field(default=None, repr=False)
    expected_errors: NDArray[np.float64] | None = field(default=None, repr=False)
    values: str = "exact"
    seconds: float = 0.0
    mark: Mark = (float("nan"), float("nan"))
    evaluation: Evaluation | None = field(default=None, repr=False, compare=False)
    lesson: Lesson | None = field(default=None, repr=False, compare=False)

    @classmethod
    def unwatched(cls, step: int, frame: Frame | None) -> Decision:
        """Return the decision on a frame of a run that is no longer watched. dH is inf: hosts would not stop at nan."""
        n = 0 if frame is None else frame.n_local or 0
        return cls(step, evaluated=False, maximum=math.inf, mean=math.inf, dH=np.full(n, math.inf))

    @property
    def key(self) -> Key:
        """The key of the evaluation."""
        return Key(self.run, self.step, self.repeat)


@dataclass(frozen=True)
class Above:
    """This rank's environments of a frame that lie above `select`: a `quests_md.selection.Proposal`.

    Attributes
    ----------
    step
        Step of the frame.
    ids, dH, select
        (m,) of each environment: id of the atom, exact dH (nats), and threshold (nats).
    rows
        Function that returns the descriptors (len(which), d) of the environments ``ids[which]``.
    must
        Whether the frame is saved in any case, because it halts the run.
    """

    step: int
    ids: NDArray[np.int64]
    dH: NDArray[np.float64]
    select: NDArray[np.float64]
    rows: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    must: bool = False
