"""The ways to choose: each yields frames in the order of its choice."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from ..information import log_kernel_sum
from ..kernels import choice
from ..kernels._jit import over_rows
from ..kernels._simd_sum import ROWS
from ._prefixes import Prefixes, factor_of

__all__ = ["Frames", "farthest", "first_largest", "kmeans", "mean_farthest", "msc", "random"]

_SEQUENCES = 1 << 24  # entries of the sequences in which frames look at chosen ones: 128 MB


class Frames:
    """The frames of a dataset: rows, and which of them are whose.

    Parameters
    ----------
    x, frame_offsets
        As of `compress`, checked.
    bandwidth
        h, in 1/Å.
    """

    def __init__(
        self, x: NDArray[np.floating], frame_offsets: NDArray[np.int64], bandwidth: float, threads: int | None
    ) -> None:
        self.x, self.offsets, self.bandwidth, self.threads = x, frame_offsets, bandwidth, threads
        self.counts = np.diff(frame_offsets)
        self.filled = np.flatnonzero(self.counts)

    def rows(self, frame: int) -> NDArray[np.floating]:
        return self.x[self.offsets[frame] : self.offsets[frame + 1]]

    def entropies(self) -> NDArray[np.float64]:
        """Compute the entropy of every frame against itself; −inf where it has no environments."""
        out, factor = np.empty(len(self.counts)), factor_of(self.bandwidth)

        def task(first: int, last: int) -> None:
            choice.frame_entropies(self.x, self.offsets, factor, choice.PLAIN, first, last, out)

        over_rows(task, len(out), self.threads, 8)
        return np.where(self.counts > 0, out, -np.inf)

    def means(self) -> NDArray[np.float64]:
        """Return the mean row of every frame; zeros where it has no rows."""
        out = np.zeros((len(self.counts), self.x.shape[1]))
        for frame in self.filled.tolist():
            out[frame] = self.rows(frame).mean(axis=0, dtype=np.float64)
        return out


def first_largest(scores: NDArray[np.float64]) -> int:
    """Return the place of the largest score; of those equal to it but for rounding, the first."""
    largest = float(scores.max())
    return int(np.argmax(scores >= largest - choice.TIE * max(1.0, abs(largest))))


def msc(frames: Frames, prefixes: Prefixes, reference: NDArray[np.floating] | None) -> Iterator[int]:
    """Yield frames by the minimum set cover of QUESTS: the largest sum of the frame's H and its largest dH.

    dH is against the reference and all chosen frames, which `prefixes` must hold by the time of the next choice.
    Without a reference the first frame is that of the largest H.
    """
    entropies, sums = frames.entropies(), np.tile([-np.inf, 0.0], (len(frames.x), 1))
    ends = frames.offsets.tolist()
    first = np.concatenate([np.arange(ends[f], ends[f + 1], ROWS) for f in frames.filled.tolist()])
    frame = np.searchsorted(frames.offsets, first, side="right") - 1
    bound = np.full(len(first), np.inf)
    if reference is not None:
        logs = log_kernel_sum(frames.x, reference, frames.bandwidth, threads=frames.threads)
        sums[:, 0], sums[:, 1] = logs / math.log(2.0), 1.0
        bound = entropies[frame] - np.minimum.reduceat(logs, first)
    items = _items(frames, choice.NOVELTY, frame, first, bound, entropies, sums)
    if reference is None:
        start = first_largest(entropies)
        items.taken[start] = True
        yield start
    yield from _greedy(items, prefixes)


def farthest(frames: Frames, prefixes: Prefixes) -> Iterator[int]:
    """Yield frames by farthest-point selection: the largest mean distance to the nearest chosen frame.

    The first frame is that of the largest H, as QUESTS has it.
    """
    entropies, filled = frames.entropies(), frames.filled
    bound = np.full(len(filled), np.inf)
    items = _items(frames, choice.DISTANCE, filled, frames.offsets[filled], bound, entropies, np.empty((0, 2)))
    start = first_largest(entropies)
    items.taken[start] = True
    yield start
    yield from _greedy(items, prefixes)


def _items(
    frames: Frames,
    kind: int,
    frame: NDArray[np.int64],
    first: NDArray[np.int64],
    bound: NDArray[np.float64],
    bonus: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> choice.Items:
    n, n_frames = len(frame), len(frames.counts)
    most = min(n_frames, max(16, _SEQUENCES // n_frames))
    return choice.Items(
        rows=frames.x,
        offsets=frames.offsets,
        means=frames.means(),
        kind=kind,
        frame=frame,
        first=first,
        bonus=bonus,
        bound=bound,
        sums=sums,
        seen=np.zeros(n, dtype=np.int64),
        sequence=np.empty((n_frames, most), dtype=np.int32),
        nearness=np.empty((n_frames, most), dtype=np.float32),
        known=np.zeros(n_frames, dtype=np.int64),
        furthest=np.zeros(n_frames, dtype=np.int64),
        taken=np.zeros(n_frames, dtype=np.bool_),
        heap=np.argsort(-bound, kind="stable"),
        size=np.array([n], dtype=np.int64),
        tied=np.empty(n, dtype=np.int64),
    )


def _greedy(items: choice.Items, prefixes: Prefixes) -> Iterator[int]:
    while (frame := int(choice.pick(items, prefixes.chosen, prefixes.n_frames, choice.PLAIN))) >= 0:
        yield frame


def mean_farthest(frames: Frames, rng: np.random.Generator) -> Iterator[int]:
    """Yield frames by farthest-point selection among the mean rows of frames; the first is drawn."""
    means = frames.means()[frames.filled]
    distances = np.full(len(means), np.inf)
    place = int(rng.integers(len(means)))
    for _ in range(len(means)):
        yield int(frames.filled[place])
        distances = np.minimum(distances, np.linalg.norm(means - means[place], axis=1))
        distances[place] = -np.inf
        place = int(np.argmax(distances))


def random(frames: Frames, rng: np.random.Generator) -> Iterator[int]:
    """Yield frames in an order that is drawn."""
    yield from rng.permutation(frames.filled).tolist()


def kmeans(frames: Frames, n: int, rng: np.random.Generator) -> list[int]:
    """Return n frames, in ascending order: of each cluster of mean rows (k-means), the frame nearest to its centre.

    Where k-means leaves clusters empty, the frame that is farthest from its centre makes a cluster of its own.
    """
    means = frames.means()[frames.filled]
    starts = np.searchsorted(frames.filled, list(itertools.islice(mean_farthest(frames, rng), n)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty clusters, which are filled below
        centres, labels = kmeans2(means, means[starts], iter=30, minit="matrix")
    distances = np.linalg.norm(means - centres[labels], axis=1)
    for empty in np.flatnonzero(np.bincount(labels, minlength=n) == 0):
        is_shared = np.bincount(labels, minlength=n)[labels] > 1
        place = int(np.argmax(np.where(is_shared, distances, -np.inf)))
        labels[place], distances[place] = empty, 0.0
    order = np.lexsort((distances, labels))
    nearest = order[np.unique(labels[order], return_index=True)[1]]
    return sorted(frames.filled[nearest].tolist())
