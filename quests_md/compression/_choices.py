"""The ways to choose: each yields frames in the order of its choice."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from ..information import log_kernel_sum
from ..kernels import choice
from ..kernels._jit import over_rows
from ._prefixes import Prefixes, padded

__all__ = ["Frames", "farthest", "first_largest", "kmeans", "mean_farthest", "msc", "random"]


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
        out, width = np.empty(len(self.counts)), padded(self.x.shape[1])
        over_rows(
            lambda first, last: choice.frame_entropies(
                self.x, self.offsets, 0.5 / self.bandwidth**2, width, first, last, out
            ),
            len(out), self.threads, 8,
        )  # fmt: skip
        return np.where(self.counts > 0, out, -np.inf)

    def means(self) -> NDArray[np.float64]:
        """Return the mean row of every frame that has rows: (n_filled, d)."""
        return np.stack([self.rows(f).mean(axis=0, dtype=np.float64) for f in self.filled.tolist()])


def first_largest(values: NDArray[np.float64], tie: float = choice.TIE) -> int:
    """Return the place of the largest value; of those that differ by less than `tie`, the first."""
    return int(np.flatnonzero(values >= values.max() - tie)[0])


def msc(frames: Frames, prefixes: Prefixes, reference: NDArray[np.floating] | None) -> Iterator[int]:
    """Yield frames by the minimum-set-cover rule of QUESTS: the largest H of the frame + largest dH of its environments.

    dH is against the reference and all chosen frames, which `prefixes` must hold by the time of the next choice.
    Without a reference the first frame is that of the largest H.
    """
    entropies, first = frames.entropies(), -1
    if reference is None:
        first = first_largest(entropies)
        yield first
        reference = frames.rows(first)
    logs = log_kernel_sum(frames.x, reference, frames.bandwidth, threads=frames.threads)
    frame = np.repeat(np.arange(len(frames.counts)), frames.counts)
    items = _items(frames, choice.NOVELTY, frame, entropies, entropies[frame] - logs, first)
    items.sums[:, 0], items.sums[:, 1] = logs, 1.0
    yield from _greedy(items, prefixes)


def farthest(frames: Frames, prefixes: Prefixes) -> Iterator[int]:
    """Yield frames by farthest-point selection: the largest mean distance to the nearest chosen frame.

    The first frame is that of the largest H, as QUESTS has it.
    """
    first = first_largest(frames.entropies())
    yield first
    bounds = np.full(len(frames.filled), np.inf)
    yield from _greedy(_items(frames, choice.DISTANCE, frames.filled, np.zeros(0), bounds, first), prefixes)


def _items(
    frames: Frames,
    kind: int,
    frame: NDArray[np.int64],
    bonus: NDArray[np.float64],
    bound: NDArray[np.float64],
    first: int,
) -> choice.Items:
    """Lay out items with their first bounds; those of NOVELTY have seen the frame `first`, which is chosen."""
    taken = np.zeros(len(frames.counts), dtype=np.bool_)
    if first >= 0:
        taken[first] = True
    return choice.Items(
        rows=frames.x,
        offsets=frames.offsets,
        kind=kind,
        frame=frame,
        bonus=bonus,
        bound=bound,
        sums=np.empty((len(frame) if kind == choice.NOVELTY else 0, 2)),
        seen=np.full(len(frame), int(kind == choice.NOVELTY and first >= 0)),
        taken=taken,
        heap=np.argsort(-bound, kind="stable"),
        size=np.array([len(frame)]),
        tied=np.empty(len(frame), dtype=np.int64),
        room=np.zeros(choice.CHUNK + padded(frames.x.shape[1])),
    )


def _greedy(items: choice.Items, prefixes: Prefixes) -> Iterator[int]:
    while (frame := int(choice.pick(items, prefixes.chosen, prefixes.n_frames))) >= 0:
        yield frame


def mean_farthest(frames: Frames, rng: np.random.Generator) -> Iterator[int]:
    """Yield frames by farthest-point selection among the mean rows of frames; the first is drawn."""
    means = frames.means()
    distances = np.full(len(means), np.inf)
    place = int(rng.integers(len(means)))
    for _ in range(len(means)):
        yield int(frames.filled[place])
        distances = np.minimum(distances, np.linalg.norm(means - means[place], axis=1))
        distances[place] = -np.inf
        place = first_largest(distances, tie=0.0) if np.isfinite(distances).any() else -1


def random(frames: Frames, rng: np.random.Generator) -> Iterator[int]:
    """Yield frames in an order that is drawn."""
    yield from rng.permutation(frames.filled).tolist()


def kmeans(frames: Frames, n: int, rng: np.random.Generator) -> list[int]:
    """Return n frames, in ascending order: of each cluster of mean rows (k-means), the frame nearest to its centre.

    Where k-means leaves clusters empty, the frame that is farthest from its centre makes a cluster of its own.
    """
    means = frames.means()
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
    return np.sort(frames.filled[nearest]).tolist()
