"""Which frames of a reference say the same, and kernel sums over the references of all other groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ..information import log_kernel_sum, pack
from ._data import laid_out

__all__ = ["INDEPENDENT", "SAME", "Partition", "Rows", "integrated_time", "left_out_log_sums", "partition"]

SAME = 0.05  # of h: rows nearer than this are the same environment
INDEPENDENT = 0.2  # frames are independent where the rows of an atom in both are correlated by less
BLOCK = 4  # independent frames in a block
FEWEST_GROUPS = 10  # blocks are shorter rather than fewer than this
_ATOMS = 5000  # in the pairs of frames that the correlation at one lag is taken from, and at least 16 pairs
_CHUNK = 512


class Rows:
    """The rows of an index by frame, atoms in order; the index has them in the order of its tree."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        numbers: NDArray[np.int16],
        order: NDArray[np.int32],
        offsets: NDArray[np.int64],
    ) -> None:
        self.rows, self.numbers, self.offsets = rows, numbers, offsets
        self.places = np.empty(len(order), np.int64)  # of every environment among the rows
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
    """What `partition` found: the frames that count, and who is left out with whom.

    Attributes
    ----------
    frames
        (m,) frames that count, ascending: one of every set of copies, one per correlation length.
    groups
        (m,) number of the group of each, from 0.
    copies
        Number of frames that are copies of others.
    correlation
        The longest correlation length, in frames of the reference without copies; 1 where all are independent.
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
        (n_frames,) the name of each frame's source; empty: contiguous blocks are the groups.
    bandwidth
        h, in 1/Å.
    """
    first = _first_of_copies(rows, SAME * bandwidth)
    unique = np.flatnonzero(first == np.arange(len(rows)))
    kept: list[list[int]] = []
    longest = 1.0
    for run in _runs(rows, unique, labels):
        length = correlation_length(rows, run)
        longest = max(longest, length)
        # Not every ceil(length)-th: from 1 to 2 that would drop half of them at once.
        kept.append([run[place] for place in np.arange(0.0, len(run) - 1e-9, length).astype(int).tolist()])
    frames = np.array(sorted(itertools.chain(*kept)), np.int64)
    if labels:
        groups = _joined(np.unique(np.asarray(labels), return_inverse=True)[1], first)[frames]
    else:
        # The order of the frames is that of the file: a block may run over what follows it there.
        groups = np.arange(len(frames)) // int(np.clip(len(frames) // FEWEST_GROUPS, 1, BLOCK))
    groups = np.unique(groups, return_inverse=True)[1]
    return Partition(frames, groups, len(rows) - len(unique), longest)


def _first_of_copies(rows: Rows, tolerance: float) -> NDArray[np.int64]:
    """Return for every frame the first that is the same: each row of one has a row of the other within `tolerance`."""
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
    # With the element as one more column, rows of different elements are far from each other.
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


def _joined(groups: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return groups (n_frames,) such that copies are in one, whatever they were named."""
    groups = groups.astype(np.int64)
    for frame in np.flatnonzero(first != np.arange(len(first))):
        groups[groups == groups[frame]] = groups[first[frame]]
    return groups


def _runs(rows: Rows, frames: NDArray[np.int64], labels: Sequence[str]) -> list[list[int]]:
    """Return runs of frames of one label and of the same atoms, in the order of the file."""
    runs: list[list[int]] = []
    of_label: dict[str, list[int]] = {}
    for frame in frames.tolist():
        of_label.setdefault(labels[frame] if labels else "", []).append(frame)
    for some in of_label.values():
        runs += [list(run) for _, run in itertools.groupby(some, lambda f: rows.elements(f).tobytes())]
    return runs


def correlation_length(rows: Rows, run: Sequence[int]) -> float:
    """Return how many frames of a run are as many as one independent one; 1: each is independent of the next.

    The correlation at a lag is 1 − S/R. S is the mean square distance between the rows of the same atom in two
    frames at this lag; R, what it would be without memory: that between rows of two atoms of one element in these
    two frames, or that of the same atom at three quarters of the run's length, whichever is less. The first knows
    nothing of a trend of all atoms, the second nothing of atoms whose places differ.
    """
    n = len(run)
    if n == 1:
        return 1.0
    without = _squares(rows, run, 3 * n // 4)[0] if n >= 4 else np.inf
    before, correlated = 0, 1.0
    for lag in _lags(n):
        same, other = _squares(rows, run, lag)
        known = min(other, without)
        correlation = 1.0 - same / known if known > 0.0 else 0.0
        if correlation <= INDEPENDENT:  # between this lag and the one before
            share = (correlated - INDEPENDENT) / (correlated - correlation)
            return max(1.0, before + share * (lag - before))
        before, correlated = lag, correlation
    return float(n)


def _lags(n: int) -> list[int]:
    """Return lags to try, a fifth apart."""
    most = max(1, n // 2)
    return sorted({round(lag) for lag in 1.2 ** np.arange(np.log(most) / np.log(1.2) + 1.0) if round(lag) <= most})


def _squares(rows: Rows, run: Sequence[int], lag: int) -> tuple[float, float]:
    """Return square distances at a lag, mean over frames: between rows of the same atom, and of different ones."""
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
            # As many as the terms of `same`; an atom that is the only one of its element has no other.
            other += (every - equal) / (len(x) - 1) if len(x) > 1 else np.inf
    return float(same) / len(starts), float(other) / len(starts)


def integrated_time(series: NDArray[np.float64]) -> float:
    """Return the integrated autocorrelation time 1/2 + Σ C(lag) of a series (n, d), in its own steps.

    The sum ends at the first lag whose correlation is not positive: beyond it there is noise (C. J. Geyer, Statist.
    Sci. 7, 473, 1992, for what justifies such a window). A series that never changes has no end of it: n.
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


def left_out_log_sums(
    rows: NDArray[np.float32],
    groups: NDArray[np.int64],
    asked: NDArray[np.int64],
    bandwidth: float,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute ln K of the rows `asked` over all rows of other groups.

    Nothing is subtracted: where the own group makes up nearly all of a sum, the difference would have no digits.
    Groups are put into folds; the sum is that over the other folds, laid out once for all of a fold, and that over
    the other groups of the own fold.

    Parameters
    ----------
    rows
        (n, d) in the order of a search tree.
    groups
        (n,) the group of every row.
    asked
        (m,) which rows.
    bandwidth
        h, in 1/Å.

    Returns
    -------
    ndarray
        (m,), to what single precision allows (max(1e-4, 1e-6·|ln K|)); −inf where there is no other group.
    """
    _, groups = np.unique(groups, return_inverse=True)
    n_groups = int(groups.max()) + 1
    # As many folds as make laying out the rest of each, and the rest of the own fold for each group, cost the same.
    folds = groups % min(n_groups, max(2, math.isqrt(len(np.unique(groups[asked])))))
    out = np.full(len(asked), -np.inf)
    for fold in np.unique(folds[asked]):
        mine = np.flatnonzero(folds[asked] == fold)
        out[mine] = _sums(rows[asked[mine]], rows[folds != fold], bandwidth, threads)
        inside = np.flatnonzero(folds == fold)
        for group in np.unique(groups[asked[mine]]):
            some = mine[groups[asked[mine]] == group]
            others = rows[inside[groups[inside] != group]]
            out[some] = np.logaddexp(out[some], _sums(rows[asked[some]], others, bandwidth, threads))
    return out


def _sums(query: NDArray[Any], rows: NDArray[np.float32], bandwidth: float, threads: int | None) -> NDArray[np.float64]:
    total = np.full(len(query), -np.inf)
    step = laid_out(rows.shape[1])
    for first in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[first : first + step])
        blocks = pack(part, bandwidth, "single", order=np.arange(len(part)), threads=threads)
        sums = log_kernel_sum(query, part, bandwidth, checked=True, blocks=blocks, precision="single", threads=threads)
        total = np.logaddexp(total, sums)
    return total
