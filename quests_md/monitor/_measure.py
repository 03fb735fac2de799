"""Measure a frame: dH of every atom, the vector that the ranks exchange, and the statistics of a sample."""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, Environments
from ..elements import check_elements
from ..errors import FrameError, MonitorError
from ..frame import Frame
from ..index import LocalBound, Reference
from ..information import Precision
from ..kernels import tally
from ..own_function import OwnEnvironments, OwnFunction
from ._errors import Errors, LocalErrors
from ._rules import Thresholds

__all__ = [
    "ALL",
    "CHUNK",
    "NO_ERRORS",
    "POOLED",
    "Evaluation",
    "Part",
    "Pool",
    "RankState",
    "Summary",
    "Window",
    "combine",
    "compute_in_single",
    "count_only",
    "summarise",
    "summarise_nothing",
]

# -- dH of the environments --------------------------------------------------------------------------------------------

# Environments whose rows are held at a time: few enough that half a megabyte of rows stays in the cache, many enough
# that the kernel sums have whole blocks of queries.
CHUNK = 960

# Single precision errs by at most the larger of _ABSOLUTE and _RELATIVE·|dH|. Bands are those of double precision: dH
# within _NEAR of a threshold is computed again.
_ABSOLUTE, _RELATIVE, _NEAR = 1e-4, 1e-6, 1e-3
_CLOSE = 0.01  # the same for bounds of the force error, as a share of their size


class Evaluation:
    """The dH of a frame's environments, as far as it is known. Rows are computed when they are needed, and not kept.

    Parameters
    ----------
    index, threads
        The reference, and how many threads to use.
    frame
        The frame; its arrays must stay valid as long as something is computed.
    screen
        Distance in Å for `is_crowded`.
    known
        `present` of an earlier frame, whose elements need no second check.
    errors
        What the calibration of the reference says of local residuals, which are computed, too; None: they are not.
    own
        The rows (n, d) of the watched atoms, if they are own descriptors that are known already.

    Attributes
    ----------
    ids, numbers
        (n,) ids and atomic numbers of the environments' atoms.
    dH
        (n,) in nats: exact, an upper bound, or nan where nothing is known.
    is_exact
        (n,) bool: where dH is exact, in double precision.
    maximum
        The largest dH that is known exactly; −inf before one is.
    is_crowded
        Whether any environment whose row has been computed has a neighbour nearer than `screen`.
    present
        The elements of the frame, as bytes.
    local
        The local residuals of the environments; None without a calibration of them.
    spares
        Whether estimates of local residuals are enough where exact ones cost more than dH.
    """

    def __init__(
        self,
        index: Reference,
        frame: Frame,
        threads: int | None,
        screen: float = 0.0,
        known: bytes = b"",
        errors: LocalBound | None = None,
        own: NDArray[np.float64] | None = None,
    ) -> None:
        if not index.ready:
            raise MonitorError("the reference is not ready yet")
        present = frame.distinct_numbers
        if present.tobytes() != known:
            check_elements(index.elements, present)
            index.spec.check_elements(set(present.tolist()))
        self.present = present.tobytes()
        assert frame.ids is not None
        assert frame.n_local is not None
        self.index, self.threads = index, threads
        spec = index.spec
        self.environments: Environments | OwnEnvironments
        self.environments = spec.environments(frame, own) if isinstance(spec, OwnFunction) else spec.environments(frame)
        self.ids = frame.ids[self.environments.centres].astype(np.int64, copy=False)
        self.numbers = frame.numbers[self.environments.centres].astype(np.uint8)  # at most 118
        self.is_crowded, self._screen = False, screen
        self.dH = np.full(len(self.ids), np.nan)
        self.is_exact = np.zeros(len(self.ids), dtype=bool)
        self.maximum = -math.inf
        self._n_local = frame.n_local
        self.local = None if errors is None else LocalErrors(index, errors, len(self.ids))
        self.spares = False
        self._errors: Errors | None = None  # until dH changes

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the descriptors of environments."""
        rows = self.environments.compute(which, self.threads)
        if self._screen and not self.is_crowded:
            self.is_crowded = bool(self.environments.is_nearer(rows, self._screen).any())
        return rows

    def put(self, which: NDArray[np.int64], rows: NDArray[np.float64], precision: Precision = "double") -> None:
        """Compute dH of environments from their `rows`."""
        if self.local is not None and (self.local.is_quick or not self.spares):
            dH = self.local.put(which, rows, self.threads, precision)
        else:
            dH = -self.index.log_kernel_sum(rows, self.threads, precision=precision)
            if self.local is not None:
                self.estimate(which, rows)
        largest = float(dH.max(initial=-math.inf))  # nan, if any is
        if largest != largest:
            raise MonitorError("the reference gave a dH that is not a number")
        self.dH[which] = dH
        self._errors = None
        if precision == "double":
            self.is_exact[which] = True
            self.maximum = max(self.maximum, largest)
        else:
            self.is_exact[which] = False

    def compute(self, which: NDArray[np.int64], precision: Precision = "double") -> None:
        """Compute dH of environments, in chunks. A value does not depend on the other environments of its chunk."""
        for first in range(0, len(which), CHUNK):
            part = which[first : first + CHUNK]
            self.put(part, self.rows(part), precision)

    def complete(self) -> None:
        """Compute every dH, and every local residual, that is not exact yet."""
        self.spares = False
        known = self.is_exact if self.local is None else self.is_exact & self.local.is_exact
        self.compute(np.flatnonzero(~known))

    def estimate(self, which: slice | NDArray[np.int64], rows: NDArray[np.float64]) -> None:
        """Estimate the local residuals of environments from their `rows`, if there is a calibration of them."""
        if self.local is not None:
            self.local.estimate(which, rows, self.threads)

    def judge(self) -> Errors | None:
        """Return the force errors (n,) of all environments; None without a calibration of them."""
        if self._errors is None and self.local is not None:
            self._errors = self.local.judge(self.dH, self.numbers)
        elif self._errors is None:
            bound = getattr(getattr(self.index, "calibration", None), "force_error", None)
            self._errors = None if bound is None else Errors(None, bound.bound(self.dH, self.numbers))
        return self._errors

    def sum_up(self, errors: Errors) -> tuple[float, float, int, float]:
        """Return what this rank tells of its force errors, as `summarise` takes it."""
        if not len(self):
            return NO_ERRORS
        largest = float(errors.bound.max())
        if self.local is None or errors.expected is None:
            return largest, -math.inf, errors.count_outside(), 0.0
        expected = float(np.fmax.reduce(errors.expected, initial=-np.inf))
        return largest, expected, errors.count_outside(), self.local.add_up()

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of environments (n,) as values of this rank's atoms (n_local,), nan where none is watched."""
        spread = np.full(self._n_local, np.nan)
        spread[self.environments.centres] = values
        return spread

    def spread_errors(self) -> dict[str, Any]:
        """Return the force errors of this rank's atoms, as a `Decision` has them."""
        errors = self.judge()
        if errors is None:
            return {"force_errors": None, "expected_errors": None}
        expected = None if errors.expected is None else self.spread(errors.expected)
        return {"force_errors": self.spread(errors.bound), "expected_errors": expected}


def compute_in_single(evaluation: Evaluation, thresholds: Thresholds) -> None:
    """Compute dH in single precision, and again in double near the thresholds and where it may be the maximum."""
    evaluation.compute(np.arange(len(evaluation)), "single")
    dH = evaluation.dH
    error = np.maximum(_ABSOLUTE, _RELATIVE * np.abs(dH))
    error[~np.isfinite(dH)] = 0.0
    again = dH + error >= np.max(dH - error, initial=-np.inf)
    for threshold in thresholds.uniform or thresholds.get(evaluation.numbers):
        if np.isfinite(threshold).any():
            distance = np.where(np.isfinite(dH), dH, np.inf) - threshold
            np.abs(distance, out=distance)
            distance -= error
            again |= distance <= _NEAR
    if thresholds.has_limits:
        bound = evaluation.judge()
        for limit in thresholds.limits:
            if bound is not None and limit is not None:
                again |= np.abs(bound.bound - limit) <= _CLOSE * (bound.bound + limit)
    evaluation.compute(np.flatnonzero(again))


# -- mean and quantiles ------------------------------------------------------------------------------------------------

# An exact dH of every atom is what flagged values spare. So few atoms are summed at an evaluation, other ones each
# time, and the statistics are those of the last evaluations together.

# Bins of equal width in asinh(dH): fine near zero, a constant share of dH far away.
_EDGES = np.sinh(np.linspace(-4.0, 12.0, 257))
_SHARES = np.array([0.5, 0.99])

POOLED = 128  # values that mean and quantiles are made of, about
# Atoms that are summed at an evaluation, about: one in so many, but at least and at most this. An exact sum takes as
# long as an evaluation takes for some tens of atoms. The least number shares a pass over the references with the atoms
# that may be the maximum.
_ONE_IN, _FEWEST, _MOST = 64, 4, 16


class Window(NamedTuple):
    """Which ids are in a sample: those whose hash lies between `low` and `low` + `width`, round a circle.

    Whole numbers, so that all ranks and a resumed run agree to the last atom.
    """

    low: int
    width: int

    @classmethod
    def at(cls, share: float, count: int, is_first: bool = False) -> Window:
        """Return the window of the evaluation number `count`, from 0, in a frame of `POOLED` / `share` atoms.

        Windows follow each other. If it `is_first`, because nothing is pooled yet, it is as wide as a whole pool.
        """
        some = min(_MOST / POOLED * share, max(_FEWEST / POOLED * share, 1.0 / _ONE_IN))
        step = round(min(1.0, some) * tally.WHOLE) if share else 0
        return cls(step * count % tally.WHOLE, round(min(1.0, share) * tally.WHOLE) if is_first else step)

    def mark(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which atoms (n,) are in the sample."""
        sample = np.empty(len(ids), bool)
        tally.mark_sample(ids, self.low, self.width, sample)
        return sample


class Part(NamedTuple):
    """The sample of one evaluation: number and sum of its dH, their histogram, and the largest dH of the frame."""

    n: int
    total: float
    maximum: float
    histogram: NDArray[np.float64]

    def __str__(self) -> str:
        """Return the sum, then each bin that is not empty with its count: a row has it, for a run that is resumed."""
        bins = np.flatnonzero(self.histogram)
        counts = self.histogram[bins].tolist()
        return "/".join([repr(self.total), *[f"{b}*{c:.0f}" for b, c in zip(bins.tolist(), counts, strict=True)]])

    @classmethod
    def parse(cls, text: str, maximum: float) -> Part:
        """Return the sample that a text stands for; `ValueError` if it stands for none."""
        total, *bins = text.split("/")
        histogram = np.zeros(len(_EDGES) - 1)
        for each in bins:
            place, count = map(int, each.split("*"))
            if not (0 <= place < len(histogram) and count > 0):
                raise ValueError(f"no bin: {each}")
            histogram[place] = count
        return cls(int(histogram.sum()), float(total), maximum, histogram)


class Statistics(NamedTuple):
    """Mean and quantiles of `n` values (nats), and the age in steps of the oldest of them; nan if there are none."""

    mean: float
    q50: float
    q99: float
    n: int
    age: int


class Pool:
    """The samples of the last evaluations, with equal weights of all values. The same on every rank.

    Parameters
    ----------
    least
        The oldest sample goes when the others have this many values without it; 0: only the last one counts.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._parts: deque[tuple[int, Part]] = deque()  # step and sample of each
        self._n = 0
        self._histogram = np.zeros(len(_EDGES) - 1)
        self._run = 0

    def __len__(self) -> int:
        """Return the number of values."""
        return self._n

    def add(self, part: Part, run: int, step: int) -> None:
        """Add the sample of an evaluation. A new run begins a new pool, because its steps begin anew."""
        if run != self._run:
            self._run = run
            while self._parts:
                self._forget()
        if not part.n and self._least:
            return
        self._parts.append((step, part))
        self._n += part.n
        self._histogram += part.histogram
        while len(self._parts) > 1 and self._n - self._parts[0][1].n >= self._least:
            self._forget()

    def _forget(self) -> None:
        _, part = self._parts.popleft()
        self._n -= part.n
        self._histogram -= part.histogram

    def describe(self, step: int) -> Statistics:
        """Return the statistics at a step."""
        quantiles = np.empty(len(_SHARES))
        highest = max([part.maximum for _, part in self._parts], default=np.inf)
        tally.quantiles(self._histogram, _EDGES, _SHARES, highest, quantiles)
        q50, q99 = quantiles.tolist()
        mean = sum([part.total for _, part in self._parts]) / self._n if self._n else float("nan")
        age = step - self._parts[0][0] if self._parts else 0
        return Statistics(mean, q50, q99, self._n, age)


# -- the vector that the ranks exchange --------------------------------------------------------------------------------

ALL = np.empty(0, bool)  # as a sample: every environment
NO_ERRORS = (float("nan"), float("-inf"), 0, 0.0)
_LOW = (1 << 32) - 1
# The scalars of a vector; the id of the maximum comes in two halves. A histogram follows them.
_HEAD = (
    "state", "stop", "n_rank", "n_expected", "n", "maximum", "high", "low", "n_select", "n_halt", "force_error",
    "n_chosen", "sum", "expected_error", "n_outside", "squares", "mark", "mark_too",
)  # fmt: skip
_SCALARS = len(_HEAD)
_AT = {name: i for i, name in enumerate(_HEAD)}
_COUNTED, _MARK = slice(_AT["n"], _AT["mark"]), slice(_AT["mark"], _AT["mark_too"] + 1)
_NOTHING = np.zeros(_SCALARS + len(_EDGES) - 1)
_NOTHING[:_SCALARS] = 0, 0, 0, -1, 0, -np.inf, 0, -1, 0, 0, -np.inf, 0, 0, -np.inf, 0, 0, np.nan, np.nan


class RankState(enum.IntEnum):
    """How measuring went on a rank."""

    DONE = 0
    FAILED = 1
    IMPLAUSIBLE = 2

    @classmethod
    def of(cls, error: Exception | None) -> RankState:
        """Return the state of a rank with this error; None if it did not measure, because another one failed."""
        if error is None:
            return cls.DONE
        return cls.IMPLAUSIBLE if isinstance(error, FrameError) else cls.FAILED


@dataclass(frozen=True)
class Summary:
    """What all ranks know about one frame.

    `failed`, `implausible` and `stopping` are numbers of ranks. `part` is the sample of this frame. `mark` lacks the
    part of the cell.
    """

    failed: tuple[int, ...]
    implausible: tuple[int, ...]
    stopping: tuple[int, ...]
    n_frame: int
    n_expected: int
    force_error: float
    expected_error: float
    n_outside: int
    squares: float
    n: int
    maximum: float
    max_id: int
    n_select: int
    n_halt: int
    part: Part
    mark: tuple[float, float]


def summarise_nothing(state: RankState, stop: bool, mark: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the vector of a rank that has measured nothing, except perhaps its part of the configuration's `mark`."""
    vector = _NOTHING.copy()
    vector[0], vector[1] = state, stop
    vector[_MARK] = np.nan if mark is None else mark
    return vector


def count_only(spec: DescriptorSpec, frame: Frame, stop: bool, mark: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return this rank's vector of a frame whose atoms are only counted; `FrameError` if it has no descriptors."""
    spec.check_elements(set(frame.distinct_numbers.tolist()))
    vector = summarise_nothing(RankState.DONE, stop, mark)
    # A spec without elements, because those of the reference are not known yet.
    vector[_AT["n"]] = len(Environments(DescriptorSpec(spec.k, spec.cutoff), frame))
    vector[_AT["n_rank"]] = frame.n_local or 0
    vector[_AT["n_expected"]] = -1 if frame.n_expected is None else frame.n_expected
    return vector


def summarise(
    dH: NDArray[np.float64],
    ids: NDArray[np.int64],
    numbers: NDArray[np.uint8],
    thresholds: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    stop: bool = False,
    n_rank: int = 0,
    n_expected: int | None = None,
    errors: tuple[float, float, int, float] = NO_ERRORS,
    counts: tuple[int, int] | None = None,
    sample: NDArray[np.bool_] = ALL,
    mark: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return this rank's vector. Mean and quantiles are over the environments of `sample`, by default over all.

    `errors` are largest bound, largest expected error, number of environments outside and sum of the squares of s +
    0.005 eV/Å. `counts` are the numbers of environments above `select` and `halt`, if dH alone does not tell them.
    `thresholds` are `select` and `halt` by atomic number, `n_rank` is the number of this rank's atoms, and `n_expected`
    the number that the host expects in the whole frame.
    """
    vector = summarise_nothing(RankState.DONE, stop, mark)
    vector[_AT["n_rank"]], vector[_AT["n_expected"]] = n_rank, -1 if n_expected is None else n_expected
    if len(dH):
        select, halt = thresholds
        maximum, max_id, n_select, n_halt, size, total = tally.count(
            dH, ids, numbers, select, halt, sample, _EDGES, vector[_SCALARS:]
        )
        vector[_COUNTED] = (
            len(dH), maximum,
            max_id >> 32, max_id & _LOW,  # an id has 64 bits, and a float only holds 53
            *(counts or (n_select, n_halt)), errors[0], size, total, *errors[1:],
        )  # fmt: skip
    return vector


def combine(vectors: NDArray[np.float64]) -> Summary:
    """Return the summary of all ranks' vectors (size, n); it is the same on every rank."""
    if len(vectors) == 1:
        total = vectors[0]
    else:
        with np.errstate(invalid="ignore"):  # sums of infinite maxima mean nothing, and are not used
            total = vectors.sum(axis=0)
    head = dict(zip(_HEAD, total[:_SCALARS].tolist(), strict=True))
    counts, errors = vectors[:, _AT["n"]], vectors[:, _AT["force_error"]]
    maximum, max_id = tally.unite(*(vectors[:, _AT[name]] for name in ("n", "maximum", "high", "low")))
    measured = errors[counts > 0] if head["n"] and head["force_error"] == head["force_error"] else counts[:0]
    expected = float(vectors[:, _AT["expected_error"]].max())
    states = vectors[:, _AT["state"]]
    return Summary(
        failed=tuple(np.flatnonzero(states == RankState.FAILED).tolist()) if head["state"] else (),
        implausible=tuple(np.flatnonzero(states == RankState.IMPLAUSIBLE).tolist()) if head["state"] else (),
        stopping=tuple(np.flatnonzero(vectors[:, _AT["stop"]]).tolist()) if head["stop"] else (),
        n_frame=int(head["n_rank"]),
        n_expected=int(vectors[:, _AT["n_expected"]].max()),
        force_error=float(measured.max()) if len(measured) else float("nan"),
        expected_error=expected if expected > -np.inf else float("nan"),
        n_outside=int(head["n_outside"]),
        squares=head["squares"],
        n=int(head["n"]),
        maximum=maximum,
        max_id=max_id,
        n_select=int(head["n_select"]),
        n_halt=int(head["n_halt"]),
        part=Part(int(head["n_chosen"]), head["sum"], maximum, total[_SCALARS:]),
        mark=(head["mark"], head["mark_too"]),
    )
