"""The calibration of an index: dH of its own frames against the groups that they do not belong to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, choose_threads, together
from ..elements import SYMBOLS
from ..errors import CalibrationError
from ..information import Report, log_kernel_sum, pack
from ._data import IndexData
from ._parts import limit_layout
from ._thresholds import Calibration

__all__ = [
    "INDEPENDENT", "SAME", "Rows", "calibrate", "compute_integrated_time", "find_first_copies",
    "is_worth_turning", "leave_out", "partition",
]  # fmt: skip

# Pairs of a query and a reference that a calibration may sum. A core that sums 1.6 pairs in a ns takes 16 s for them,
# a slow core under a minute. Rows with more columns than this take longer: then it sums fewer pairs.
MOST_PAIRS = 25_000_000_000
_COLUMNS = 256
_FEW = 2000  # rows whose principal axes are not worth finding


def calibrate(
    index: IndexData, *, threads: int | None = None, comm: Comm | None = None, report: Report | None = None
) -> Calibration:
    """Compute dH of the references against the index without their group.

    The groups are those that the frames were given (`Index.frame_groups`), or contiguous blocks of four independent
    frames (fewer frames if there would be less than ten blocks). First it drops copies, and frames that follow each
    other within the correlation length. So a redundant reference has the thresholds of a thinned one. For a large
    reference it computes dH of an even sample of frames, so that it takes less than a minute.

    Parameters
    ----------
    index
        The index; it does not change.
    threads
        Threads of each rank; None takes all cores, or one thread if there are several ranks.
    comm
        The ranks that share the work; the index must be the same on all of them. Default: this rank alone. The result
        does not depend on it.
    report
        It is called from time to time with the share of the work of this rank that is done.

    Returns
    -------
    Calibration
        It takes over what the index says of force errors: `force_error` and `local_error`.

    Raises
    ------
    CalibrationError
        There is only one group.
    MonitorError
        Another rank failed.
    """
    comm = comm or Serial()
    rows = Rows(index.rows, index.numbers, index.order, index.frame_offsets)
    with index.reading():
        parts = partition(rows, index.frame_groups, index.bandwidth)
    n_groups = len(np.unique(parts.groups))
    if n_groups < 2:
        what = "independent frame" if not index.frame_groups else "group"
        raise CalibrationError(
            f"the reference has one {what}: without it, nothing remains to compare it with; "
            "thresholds from a calibration need more frames, further apart"
        )
    group_of_frame = np.full(len(rows), -1)
    group_of_frame[parts.frames] = parts.groups
    groups = group_of_frame[rows.owner]
    counted = int((groups >= 0).sum())
    most = MOST_PAIRS * min(1.0, _COLUMNS / index.rows.shape[1])
    asked = _sample(parts, np.diff(index.frame_offsets)[parts.frames], counted, most)
    threads, is_asked = choose_threads(comm, threads), np.isin(rows.owner, asked)
    with index.reading():
        dH = _compute_left_out(index, rows, groups, is_asked, threads, comm, report)
    symbols: list[int] = np.unique(index.numbers).tolist()
    sizes = np.zeros((len(asked), len(symbols)), np.int64)
    maxima = np.full(sizes.shape, -np.inf)
    known = np.flatnonzero(~np.isnan(dH))
    at = np.searchsorted(asked, rows.owner[known]), np.searchsorted(symbols, index.numbers[known])
    np.add.at(sizes, at, 1)
    np.maximum.at(maxima, at, dH[known])
    return Calibration(
        symbols=tuple(SYMBOLS[z] for z in symbols),
        sizes=sizes,
        maxima=maxima,
        frames=len(parts.frames),
        groups=n_groups,
        copies=parts.copies,
        correlation=parts.correlation,
        redundancy=math.log(len(index) / counted),
        force_error=index.calibration.force_error if index.calibration else None,
        local_error=index.calibration.local_error if index.calibration else None,
    )


def _sample(parts: Partition, sizes: NDArray[np.int64], counted: int, most: float) -> NDArray[np.int64]:
    """Return the frames whose dH is computed: all that count, or an even sample if these would take too many pairs."""
    share = most / (counted * float(sizes.sum()))
    if share >= 1.0:
        return parts.frames
    n = max(2, int(share * len(parts.frames)))
    return parts.frames[np.unique(np.linspace(0, len(parts.frames) - 1, n).astype(np.int64))]


def _compute_left_out(
    index: IndexData,
    rows: Rows,
    groups: NDArray[np.int64],
    is_asked: NDArray[np.bool_],
    threads: int | None,
    comm: Comm,
    report: Report | None,
) -> NDArray[np.float64]:
    """Return left-out dH (n,) of the rows that are asked about, and nan for the others. Collective."""
    dH, done, total = np.full(len(groups), np.nan), 0, max(1, int((is_asked & (groups >= 0)).sum()))

    def tell(n: int) -> None:
        if report is not None:
            report((done + n) / total)

    for z in np.unique(rows.numbers) if index.descriptor.by_centre else [None]:
        which = np.flatnonzero((groups >= 0) if z is None else (groups >= 0) & (rows.numbers == z))
        asked = np.flatnonzero(is_asked[which])
        if len(asked):
            sums = sum_left_out(rows.rows[which], groups[which], asked, index.bandwidth, threads, comm, tell)
            dH[which[asked]] = -sums
            done += len(asked)
    return dH


# -- frames that count, and their groups -------------------------------------------------------------------------------

SAME = 0.05  # of h: rows that are nearer to each other than this are the same environment
INDEPENDENT = 0.2  # two frames are independent if the correlation between the rows of an atom in them is below this
BLOCK = 4  # independent frames in a block
FEWEST_GROUPS = 10  # blocks become shorter before there are fewer than this
# The correlation at one lag comes from as many pairs of frames as have this many atoms together, at least 16 pairs.
_ATOMS = 5000
_CHUNK = 512


class Rows:
    """The rows of an index by frame, atoms in order. The index itself keeps them in the order of its tree."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        numbers: NDArray[np.int16],
        order: NDArray[np.int32],
        offsets: NDArray[np.int64],
    ) -> None:
        self.rows, self.numbers, self.offsets = rows, numbers, offsets
        self.places = np.empty(len(order), np.int64)  # where the row of every environment is
        self.places[order] = np.arange(len(order))
        self.owner = np.searchsorted(offsets, order, side="right") - 1  # (n,) the frame of every row

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, frame: int) -> NDArray[np.float64]:
        """Return the rows (n, d) of a frame."""
        return self.rows[self._where(frame)].astype(np.float64)

    def elements(self, frame: int) -> NDArray[np.int16]:
        """Return the atomic numbers (n,) of a frame."""
        return self.numbers[self._where(frame)]

    def _where(self, frame: int) -> NDArray[np.int64]:
        return self.places[self.offsets[frame] : self.offsets[frame + 1]]


@dataclass(frozen=True)
class Partition:
    """The frames that count, and their groups, as `partition` finds them.

    Attributes
    ----------
    frames
        (m,) frames that count, ascending: one of each set of copies, and one per correlation length.
    groups
        (m,) number of the group of each of these frames, from 0.
    copies
        Number of frames that are copies of others.
    correlation
        The longest correlation length, in frames of the reference without copies; 1 if all frames are independent.
    """

    frames: NDArray[np.int64]
    groups: NDArray[np.int64]
    copies: int
    correlation: float


def partition(rows: Rows, labels: Sequence[str], bandwidth: float) -> Partition:
    """Find the frames that count and their groups.

    Parameters
    ----------
    rows
        The reference.
    labels
        (n_frames,) the group of each frame. If there are none, contiguous blocks are the groups.
    bandwidth
        h, in 1/Å.
    """
    first = find_first_copies(rows, SAME * bandwidth)
    unique = np.flatnonzero(first == np.arange(len(rows)))
    kept: list[list[int]] = []
    longest = 1.0
    for run in _split_runs(rows, unique, labels):
        length = correlation_length(rows, run)
        longest = max(longest, length)
        # Not every ceil(length)-th frame: for a length just above 1 this would drop half of them.
        kept.append([run[place] for place in np.arange(0.0, len(run) - 1e-9, length).astype(int).tolist()])
    frames = np.array(sorted(itertools.chain(*kept)), np.int64)
    if labels:
        groups = _join_copies(np.unique(np.asarray(labels), return_inverse=True)[1], first)[frames]
    else:
        # The frames are in the order of the file: a block may go from one trajectory to the next.
        groups = np.arange(len(frames)) // int(np.clip(len(frames) // FEWEST_GROUPS, 1, BLOCK))
    groups = np.unique(groups, return_inverse=True)[1]
    return Partition(frames, groups, len(rows) - len(unique), longest)


def find_first_copies(rows: Rows, tolerance: float) -> NDArray[np.int64]:
    """Return for every frame the first frame that is a copy of it, or the frame itself.

    Frames are copies if each row of one has a row of the other within `tolerance`.
    """
    n = len(rows)
    means = np.array([rows.of(frame).mean(axis=0) for frame in range(n)])
    key = means[:, np.argmax(means.var(axis=0))]
    order = np.argsort(key, kind="stable")
    ascending = key[order]
    first = np.arange(n)
    for frame in range(n):
        if first[frame] != frame:
            continue
        window = np.searchsorted(ascending, [key[frame] - tolerance, key[frame] + tolerance])
        near = order[window[0] : window[1]]
        near = near[(near > frame) & (first[near] == near)]
        near = near[np.linalg.norm(means[near] - means[frame], axis=1) <= tolerance]
        for other in near.tolist():
            if _are_copies(rows, frame, other, tolerance):
                first[other] = frame
    return first


def _are_copies(rows: Rows, a: int, b: int, tolerance: float) -> bool:
    from scipy.spatial.distance import cdist  # not above: runs start without scipy

    # The element is one more column: so rows of different elements are far from each other.
    x, y = (np.column_stack([rows.of(f), rows.elements(f)]) for f in (a, b))
    if x.shape == y.shape and np.linalg.norm(x - y, axis=1).max() <= tolerance:
        return True
    nearest = np.full(len(y), np.inf)
    for start in range(0, len(x), _CHUNK):
        distances = cdist(x[start : start + _CHUNK], y)
        if distances.min(axis=1).max() > tolerance:
            return False
        np.minimum(nearest, distances.min(axis=0), out=nearest)
    return bool(nearest.max() <= tolerance)


def _join_copies(groups: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the groups (n_frames,), after groups that hold copies of the same frame have become one group."""
    groups = groups.astype(np.int64)
    for frame in np.flatnonzero(first != np.arange(len(first))):
        groups[groups == groups[frame]] = groups[first[frame]]
    return groups


def _split_runs(rows: Rows, frames: NDArray[np.int64], labels: Sequence[str]) -> list[list[int]]:
    """Return runs of frames with the same label and the same atoms, in the order of the file."""
    runs: list[list[int]] = []
    of_label: dict[str, list[int]] = {}
    for frame in frames.tolist():
        of_label.setdefault(labels[frame] if labels else "", []).append(frame)
    for some in of_label.values():
        runs += [list(run) for _, run in itertools.groupby(some, lambda f: rows.elements(f).tobytes())]
    return runs


# -- correlation in time -----------------------------------------------------------------------------------------------


def correlation_length(rows: Rows, run: Sequence[int]) -> float:
    """Return how many frames of a run are worth one independent frame; 1 if each is independent of the next.

    The correlation at a lag is 1 − S/R. S is the mean square distance between the rows of the same atom in two frames
    at this lag. R is the value that S would have without memory. Two estimates of R are made, and the smaller one is
    taken. The first is the mean square distance between rows of two different atoms of one element in these two frames:
    it does not show a trend that all atoms share. The second is S at a lag of three quarters of the run: it does not
    show that the sites of the atoms differ.
    """
    n = len(run)
    if n == 1:
        return 1.0
    without = _compare_at_lag(rows, run, 3 * n // 4)[0] if n >= 4 else np.inf
    before, correlated = 0, 1.0
    for lag in _choose_lags(n):
        same, other = _compare_at_lag(rows, run, lag)
        known = min(other, without)
        correlation = 1.0 - same / known if known > 0.0 else 0.0
        if correlation <= INDEPENDENT:  # the length is between this lag and the one before
            share = (correlated - INDEPENDENT) / (correlated - correlation)
            return max(1.0, before + share * (lag - before))
        before, correlated = lag, correlation
    return float(n)


def _choose_lags(n: int) -> list[int]:
    """Return the lags to try; each is a fifth larger than the one before."""
    most = max(1, n // 2)
    return sorted({round(lag) for lag in 1.2 ** np.arange(np.log(most) / np.log(1.2) + 1.0) if round(lag) <= most})


def _compare_at_lag(rows: Rows, run: Sequence[int], lag: int) -> tuple[float, float]:
    """Return square distances at a lag, means over frames: between rows of the same atom, and of different atoms."""
    same = other = 0.0
    pairs = max(16, _ATOMS // len(rows.elements(run[0])))
    starts = np.unique(np.linspace(0, len(run) - 1 - lag, pairs).astype(int)).tolist()
    for start in starts:
        numbers = rows.elements(run[start])
        a, b = rows.of(run[start]), rows.of(run[start + lag])
        for z in np.unique(numbers):
            x, y = a[numbers == z], b[numbers == z]
            equal = ((x - y) ** 2).sum()
            every = len(x) * ((x**2).sum() + (y**2).sum()) - 2.0 * x.sum(axis=0) @ y.sum(axis=0)
            same += equal
            # Divided, to weigh as many terms as `same` has. Infinite if the atom is the only one of its element.
            other += (every - equal) / (len(x) - 1) if len(x) > 1 else np.inf
    return float(same) / len(starts), float(other) / len(starts)


def compute_integrated_time(series: NDArray[np.float64]) -> float:
    """Return the integrated autocorrelation time 1/2 + Σ C(lag) of a series (n, d), in its own steps.

    The sum ends before the first lag whose correlation is not positive, because noise follows (C. J. Geyer, Statist.
    Sci. 7, 473, 1992, justifies such a window). For a series that never changes it is n.
    """
    n = len(series)
    series = series - series.mean(axis=0)
    variance = float((series**2).sum()) / n
    if variance <= 0.0:
        return float(n)
    total = 0.5
    for lag in range(1, n):
        correlation = float((series[:-lag] * series[lag:]).sum()) / (n * variance)
        if correlation <= 0.0:
            break
        total += correlation
    return total


# -- sums over the other groups ----------------------------------------------------------------------------------------


def sum_left_out(
    rows: NDArray[np.float32],
    groups: NDArray[np.int64],
    asked: NDArray[np.int64],
    bandwidth: float,
    threads: int | None = None,
    comm: Comm | None = None,
    tell: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Compute ln K of the rows `asked` over all rows of other groups. Collective.

    This does not subtract the sum over the own group from the sum over all rows: if the two are nearly equal, their
    difference has no correct digits. Instead it adds up the sums over the rows of `leave_out`.

    Parameters
    ----------
    rows
        (n, d) in the order of a search tree.
    groups
        (n,) the group of every row.
    asked
        (m,) the rows whose sums are computed.
    bandwidth
        h, in 1/Å.
    comm
        The ranks, each of which takes some of the folds; all return all sums.
    tell
        It is called with the number of sums that are nearly complete, on all ranks together if they are equally fast.

    Returns
    -------
    ndarray
        (m,), as exact as single precision allows (max(1e-4, 1e-6·|ln K|)); −inf if there is no other group.
    """
    out, comm, pairs = np.full(len(asked), -np.inf), comm or Serial(), 0

    def work() -> None:
        nonlocal pairs
        for some, others in leave_out(groups, asked, comm.rank, comm.size):
            out[some] = np.logaddexp(out[some], _sum_over(rows[asked[some]], rows[others], bandwidth, threads))
            pairs += len(some) * len(others)
            if tell is not None:
                tell(min(len(asked), comm.size * pairs // len(rows)))

    together(comm, work)
    return np.asarray(comm.allgather(out).max(axis=0))  # the sums of other ranks are −inf here


def leave_out(
    groups: NDArray[np.int64], asked: NDArray[np.int64], rank: int = 0, size: int = 1
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield places in `asked`, and rows of other groups: each row that is asked about meets each of these once.

    The groups are put into folds: first come the rows of other folds, which are the same for all groups of a fold, then
    those of other groups of its own fold. A rank gets the rows that are asked about of some of the folds.
    """
    _, groups = np.unique(groups, return_inverse=True)
    n_groups = int(groups.max()) + 1
    # With this number of folds, laying out the other folds takes as long as laying out the groups within the folds.
    folds = groups % min(n_groups, max(2, math.isqrt(len(np.unique(groups[asked])))))
    for fold in np.unique(folds[asked])[rank::size]:
        mine = np.flatnonzero(folds[asked] == fold)
        yield mine, np.flatnonzero(folds != fold)
        inside = np.flatnonzero(folds == fold)
        for group in np.unique(groups[asked[mine]]):
            yield mine[groups[asked[mine]] == group], inside[groups[inside] != group]


def is_worth_turning(n: int) -> bool:
    """Return whether finding the principal axes of n rows takes less time than a sum over them saves."""
    return n > _FEW


def _sum_over(
    query: NDArray[Any], rows: NDArray[np.float32], bandwidth: float, threads: int | None
) -> NDArray[np.float64]:
    total = np.full(len(query), -np.inf)
    step = limit_layout(rows.shape[1])
    for first in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[first : first + step])
        order, turned = np.arange(len(part)), is_worth_turning(len(part))
        blocks = pack(part, bandwidth, "single", sort=turned, order=order, threads=threads)
        sums = log_kernel_sum(query, part, bandwidth, checked=True, blocks=blocks, precision="single", threads=threads)
        total = np.logaddexp(total, sums)
    return total
