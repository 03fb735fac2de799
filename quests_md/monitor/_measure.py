"""Measure a frame: dH of every atom, exact or bounded, and the vector that the ranks exchange."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, Environments
from ..elements import check_elements
from ..errors import MonitorError
from ..frame import Frame
from ..index import Reference
from ..information import Precision

__all__ = [
    "CHUNK",
    "Evaluation",
    "Flagged",
    "RankState",
    "Summary",
    "combine",
    "compute_in_single",
    "count_only",
    "is_sampled",
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

    Attributes
    ----------
    ids, numbers
        (n,) ids and atomic numbers of the environments' atoms.
    dH
        (n,) in nats: exact, an upper bound, or nan where nothing is known.
    is_exact
        (n,) bool: where dH is exact, in double precision.
    is_crowded
        Whether any environment whose row has been computed has a neighbour nearer than `screen`.
    present
        The elements of the frame, as bytes.
    """

    def __init__(
        self, index: Reference, frame: Frame, threads: int | None, screen: float = 0.0, known: bytes = b""
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
        self.environments = Environments(index.spec, frame)
        self.ids = frame.ids[self.environments.centres].astype(np.int64, copy=False)
        self.numbers = frame.numbers[self.environments.centres].astype(np.uint8)  # at most 118
        self.is_crowded, self._screen = False, screen
        self.dH = np.full(len(self.ids), np.nan)
        self.is_exact = np.zeros(len(self.ids), dtype=bool)
        self._n_local = frame.n_local

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the descriptors of environments."""
        rows = self.environments.compute(which, self.threads)
        if self._screen and not self.is_crowded:
            self.is_crowded = bool(self.environments.is_nearer(rows, self._screen).any())
        return rows

    def put(self, which: NDArray[np.int64], rows: NDArray[np.float64], precision: Precision = "double") -> None:
        """Compute dH of environments from their `rows`."""
        dH = -self.index.log_kernel_sum(rows, self.threads, precision=precision)
        if np.isnan(dH).any():
            raise MonitorError("the reference gave a dH that is not a number")
        self.dH[which] = dH
        self.is_exact[which] = precision == "double"

    def compute(self, which: NDArray[np.int64], precision: Precision = "double") -> None:
        """Compute dH of environments, in chunks. A value does not depend on the other environments of its chunk."""
        for first in range(0, len(which), CHUNK):
            part = which[first : first + CHUNK]
            self.put(part, self.rows(part), precision)

    def complete(self) -> None:
        """Compute every dH that is not exact yet."""
        self.compute(np.flatnonzero(~self.is_exact))

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of environments (n,) as values of this rank's atoms (n_local,), nan where none is watched."""
        spread = np.full(self._n_local, np.nan)
        spread[self.environments.centres] = values
        return spread


def compute_in_single(evaluation: Evaluation, thresholds: Sequence[NDArray[np.float64] | float]) -> None:
    """Compute dH in single precision, and again in double near the thresholds and where it may be the maximum.

    Each of `thresholds` is an array (n,), or one number for all environments.
    """
    evaluation.compute(np.arange(len(evaluation)), "single")
    dH = evaluation.dH
    error = np.maximum(_ABSOLUTE, _RELATIVE * np.abs(dH))
    error[~np.isfinite(dH)] = 0.0
    again = dH + error >= np.max(dH - error, initial=-np.inf)
    for threshold in thresholds:
        if np.isfinite(threshold).any():
            distance = np.where(np.isfinite(dH), dH, np.inf) - threshold
            np.abs(distance, out=distance)
            distance -= error
            again |= distance <= _NEAR
    evaluation.compute(np.flatnonzero(again))


# -- the vector that the ranks exchange --------------------------------------------------------------------------------

# Bins of equal width in asinh(dH): fine near zero, a constant share of dH far away.
_EDGES = np.sinh(np.linspace(-4.0, 12.0, 257))
_LOW = (1 << 32) - 1
# The scalars of a vector; the id of the maximum comes in two halves. A histogram follows them.
_HEAD = (
    "state", "stop", "n_rank", "n_expected", "n", "maximum", "high", "low", "n_select", "n_halt", "force_error",
    "n_chosen", "sum", "mark", "mark_too",
)  # fmt: skip
_SCALARS = len(_HEAD)
_AT = {name: i for i, name in enumerate(_HEAD)}
_COUNTED, _MARK = slice(_AT["n"], _AT["mark"]), slice(_AT["mark"], _AT["mark_too"] + 1)
_NOTHING = np.zeros(_SCALARS + len(_EDGES) - 1)
_NOTHING[:_SCALARS] = 0, 0, 0, -1, 0, -np.inf, 0, -1, 0, 0, -np.inf, 0, 0, np.nan, np.nan


class RankState(enum.IntEnum):
    """How measuring went on a rank."""

    DONE = 0
    FAILED = 1
    IMPLAUSIBLE = 2


@dataclass(frozen=True)
class Summary:
    """What all ranks know about one frame.

    `failed`, `implausible` and `stopping` are numbers of ranks. `mark` lacks the part of the cell.
    """

    failed: tuple[int, ...]
    implausible: tuple[int, ...]
    stopping: tuple[int, ...]
    n_frame: int
    n_expected: int
    force_error: float
    n: int
    maximum: float
    max_id: int
    mean: float
    q50: float
    q99: float
    n_select: int
    n_halt: int
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
    select: NDArray[np.float64] | float,
    halt: NDArray[np.float64] | float,
    *,
    stop: bool = False,
    n_rank: int = 0,
    n_expected: int | None = None,
    force_error: float = float("nan"),
    sample: NDArray[np.bool_] | None = None,
    mark: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return this rank's vector. Mean and quantiles are over the environments of `sample`, by default over all.

    `n_rank` is the number of this rank's atoms, and `n_expected` the number that the host expects in the whole frame.
    """
    vector = summarise_nothing(RankState.DONE, stop, mark)
    vector[_AT["n_rank"]], vector[_AT["n_expected"]] = n_rank, -1 if n_expected is None else n_expected
    if len(dH):
        # The smallest id of equal maxima, so that the order of the atoms does not matter.
        worst = dH.max()
        max_id = int(ids[dH == worst].min())
        chosen = dH if sample is None else dH[sample]
        vector[_COUNTED] = (
            len(dH), worst,
            max_id >> 32, max_id & _LOW,  # an id has 64 bits, and a float only holds 53
            np.count_nonzero(dH > select), np.count_nonzero(dH > halt),
            force_error, len(chosen), chosen.sum(),
        )  # fmt: skip
        bins = np.searchsorted(_EDGES[1:-1], chosen, side="right")
        vector[_SCALARS:] = np.bincount(bins, minlength=len(_EDGES) - 1)
    return vector


def combine(vectors: NDArray[np.float64]) -> Summary:
    """Return the summary of all ranks' vectors (size, n); it is the same on every rank."""
    with np.errstate(invalid="ignore"):  # sums of infinite maxima mean nothing, and are not used
        total = vectors.sum(axis=0)
    n, n_select, n_halt, n_chosen = (int(total[_AT[name]]) for name in ("n", "n_select", "n_halt", "n_chosen"))
    maxima, counts, states = vectors[:, _AT["maximum"]], vectors[:, _AT["n"]], vectors[:, _AT["state"]]
    maximum = float(maxima.max())
    # A rank without atoms has −inf for its maximum; but a rank with atoms may have it, too.
    worst = vectors[(maxima == maximum) & (counts > 0), _AT["high"] : _AT["low"] + 1].tolist()
    q50, q99 = _find_quantiles(total[_SCALARS:], (0.5, 0.99), maximum)
    measured = vectors[counts > 0, _AT["force_error"]]
    return Summary(
        failed=tuple(np.flatnonzero(states == RankState.FAILED).tolist()),
        implausible=tuple(np.flatnonzero(states == RankState.IMPLAUSIBLE).tolist()),
        stopping=tuple(np.flatnonzero(vectors[:, _AT["stop"]]).tolist()),
        n_frame=int(total[_AT["n_rank"]]),
        n_expected=int(vectors[:, _AT["n_expected"]].max()),
        force_error=float(measured.max()) if len(measured) else float("nan"),
        n=n,
        maximum=maximum,
        max_id=min([int(high) << 32 | int(low) for high, low in worst], default=-1),
        mean=float(total[_AT["sum"]]) / n_chosen if n_chosen else float("nan"),
        q50=q50,
        q99=q99,
        n_select=n_select,
        n_halt=n_halt,
        mark=(float(total[_AT["mark"]]), float(total[_AT["mark_too"]])),
    )


def _find_quantiles(counts: NDArray[np.float64], shares: tuple[float, ...], maximum: float) -> list[float]:
    """Return quantiles of a histogram: linear within a bin, and never above the maximum."""
    below = np.zeros(len(counts) + 1)
    np.cumsum(counts, out=below[1:])
    if below[-1] == 0:
        return [float("nan")] * len(shares)
    quantiles = []
    for q in shares:
        b = int(np.searchsorted(below[1:], q * below[-1]))
        share = (q * below[-1] - below[b]) / counts[b]
        quantiles.append(float(min(maximum, _EDGES[b] + share * (_EDGES[b + 1] - _EDGES[b]))))
    return quantiles


# -- flagged values ----------------------------------------------------------------------------------------------------

_SAMPLE = 128  # atoms of the whole frame in the sample, about
_SUSPECTS = 16  # atoms with the largest dH that a rank remembers
# A bound and an exact sum may round differently (they agree to 1e-10), and all atoms as high as the maximum must be
# found. So a bounded atom stays below the threshold by at least this times max(1, |dH|).
_MARGIN = 1e-9
# The table of hints gets a slot for each id if that makes it at most this many times larger than the rank's atoms.
_SPARSE = 16


class Flagged:
    """Decides which dH of a frame are computed, and which only bounded. Ranks have only the sample's share in common.

    Attributes
    ----------
    share
        Share of the atoms that are in the sample; None before the first evaluation with atoms.
    hints
        The reference that certified an atom last, in the slot ``id & (size - 1)``. Atoms may share a slot: a wrong hint
        only costs time.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self.hints = np.full(1, -1, np.int32)
        self._suspects = np.empty(0, np.int64)  # ids of the largest dH of the last evaluation
        self._is_crowded = False  # most atoms could not be bounded then: a hot melt, or a perfect crystal

    def choose_share(self, n: int) -> None:
        """Choose the share for a frame of n atoms, the same on all ranks; it does not change later."""
        self.share = min(1.0, _SAMPLE / n)

    def compute(self, evaluation: Evaluation, select: float) -> NDArray[np.bool_]:
        """Compute what must be exact and bound the rest; return which environments (n,) are in the sample."""
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
        slots = self._find_slots(evaluation.ids[rest])
        waiting: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        maximum = _find_maximum(evaluation)
        for first in range(0, len(rest), CHUNK):
            part, slot = rest[first : first + CHUNK], slots[first : first + CHUNK]
            threshold = _step_below(min(maximum, select))
            rows, memory = evaluation.rows(part), self.hints[slot]
            bounds = evaluation.index.upper_bound(rows, threshold, memory, evaluation.threads)
            self.hints[slot] = memory
            evaluation.dH[part] = bounds
            above = ~(bounds <= threshold)
            # Kernel sums are cheapest for many queries at a time, so rows wait until there is a chunk of them.
            if above.any():
                waiting.append((part[above], rows[above]))
            if sum(len(which) for which, _ in waiting) >= CHUNK:
                _compute(evaluation, waiting)
                maximum = _find_maximum(evaluation)
        _compute(evaluation, waiting)

    def _find_slots(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of atoms in the table of hints, and enlarge the table if needed."""
        if len(ids):
            wanted = max(2 * len(ids), min(int(ids.max()) + 1, _SPARSE * len(ids)))
            while len(self.hints) < wanted:
                self.hints = np.tile(self.hints, 2)  # every atom finds its hint in the new slot
        slots: NDArray[np.int64] = ids & (len(self.hints) - 1)
        return slots

    def _remember(self, evaluation: Evaluation, select: float) -> None:
        """Remember, for the next evaluation, the atoms with the largest dH, and whether bounds fail for most atoms."""
        known = np.flatnonzero(evaluation.is_exact)
        if len(known) > _SUSPECTS:
            known = known[np.argpartition(evaluation.dH[known], -_SUSPECTS)[-_SUSPECTS:]]
        self._suspects = evaluation.ids[known]
        threshold = _step_below(min(_find_maximum(evaluation), select))
        self._is_crowded = bool(2 * np.count_nonzero(evaluation.dH > threshold) > len(evaluation))


def is_sampled(ids: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Return which atoms are in the sample. A hash of the id decides, so order and rank do not matter."""
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


def _find_maximum(evaluation: Evaluation) -> float:
    return float(np.max(evaluation.dH, where=evaluation.is_exact, initial=-np.inf))


def _step_below(value: float) -> float:
    """Return a number that is below `value`, even if `value` was rounded in another way."""
    if math.isinf(value):
        return float(np.nextafter(value, 0.0)) if value > 0 else value
    return value - _MARGIN * max(1.0, abs(value))
