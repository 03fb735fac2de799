"""Nuclei of a frame and of a trajectory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..descriptors import cell_of
from ..errors import FrameError, InputError
from ..frame import Frame
from ..kernels import neighbors as _neighbors

__all__ = ["Nuclei", "NucleiSeries", "Threshold", "linked_mean", "nuclei", "threshold_between"]

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Nuclei:
    """The nuclei of one frame.

    Attributes
    ----------
    numbers
        (n_env,) the nucleus of each environment: 1 is the largest, 0 is none. Of nuclei of one size the one that holds
        the first environment comes first.
    sizes
        (n_nuclei,) number of environments of each nucleus, the largest first.
    """

    numbers: Counts
    sizes: Counts

    @property
    def largest(self) -> int:
        """Size of the largest nucleus; 0 where there is none."""
        return int(self.sizes[0]) if len(self.sizes) else 0


def nuclei(frame: Frame, inside: ArrayLike, link: float) -> Nuclei:
    """Find the nuclei of a frame: environments of one kind that are linked, directly or through others.

    Two environments are linked if an image of one is at most `link` from the other. With an index of the crystal, a low
    dH and a `link` between the first and the second shell of neighbours, nuclei are crystallites:
    ``nuclei(frame, ~index.exceeds(frame, threshold), link)``. Without the ``~`` they are what the index does not know.

    Parameters
    ----------
    frame
        A whole frame, without ghosts. Its periodic images are made, in any cell, also one smaller than `link`.
    inside
        (n_env,) bool: which of the frame's environments (``frame.centres``) can belong to nuclei.
    link
        Largest distance of two linked environments, in Å.

    Raises
    ------
    InputError
        `inside` is no such array, or `link` no such length.
    FrameError
        The frame has ghosts, or its positions or its cell cannot be used.
    """
    inside, centres = np.asarray(inside), _centres(frame, link)
    if inside.dtype != bool or inside.shape != centres.shape:
        raise InputError(
            f"step {frame.step}: inside must be one truth value for each of the {len(centres)} environments (such as "
            f"dH <= threshold), not {inside.dtype} of shape {inside.shape}"
        )
    chosen = np.flatnonzero(inside)
    linked = _linked(frame, centres[chosen], link)
    # Largest first; and np.unique has the first environment of every nucleus.
    _, first, size = np.unique(linked, return_index=True, return_counts=True)
    order = np.lexsort((first, -size))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    numbers = np.zeros(len(centres), np.int64)
    numbers[chosen] = rank[linked]
    return Nuclei(numbers, size[order].astype(np.int64))


def linked_mean(frame: Frame, dH: ArrayLike, link: float) -> NDArray[np.float64]:
    """Average dH over every environment and those that are linked to it.

    Heat blurs dH of one environment more than that of a neighbourhood: where a crystal is hot, the mean tells it from
    the melt when dH itself does not. It takes a shell of atoms from the surface of a nucleus.

    Parameters
    ----------
    frame, link
        As in `nuclei`. An image counts as a neighbour as much as an atom does.
    dH
        (n_env,) in nats.

    Returns
    -------
    ndarray
        (n_env,) in nats.

    Raises
    ------
    InputError, FrameError
        As in `nuclei`.
    """
    dH, centres = np.asarray(dH, dtype=np.float64), _centres(frame, link)
    if dH.shape != centres.shape:
        raise InputError(f"step {frame.step}: dH has shape {dH.shape}, but the frame has {len(centres)} environments")
    i, j = _pairs(frame, centres, link).T
    # Both ends of a pair have the other as a neighbour; an image of an atom itself comes twice already.
    back = i != j
    i, j = np.concatenate([i, j[back]]), np.concatenate([j, i[back]])
    n = len(centres)
    mean: NDArray[np.float64] = (dH + np.bincount(i, dH[j], n)) / (1.0 + np.bincount(i, minlength=n))
    return mean


def _centres(frame: Frame, link: float) -> Counts:
    """Return the rows that are environments, of a frame that can have nuclei."""
    if frame.has_ghosts:
        raise FrameError(
            f"step {frame.step}: nuclei are those of a whole frame, and this one has ghosts: merge its parts"
        )
    if not (math.isfinite(link) and link > 0):
        raise InputError(f"link must be a positive length in Å, not {link!r}")
    return frame.centres


def _linked(frame: Frame, rows: Counts, link: float) -> Counts:
    """Return the number of the connected component of each of these rows of the frame, in no special order."""
    pairs, n = _pairs(frame, rows, link), len(rows)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _pairs(frame: Frame, rows: Counts, link: float) -> Counts:
    """Return (m, 2) the places i ≤ j among `rows` of linked environments, once for each image."""
    positions, n = np.ascontiguousarray(frame.positions[rows]), len(rows)
    if not np.isfinite(positions).all():
        raise FrameError(f"step {frame.step}: positions are not finite numbers; the simulation has broken down")
    points, owner = positions, np.arange(n)
    if np.any(frame.pbc):
        points, owner = _neighbors.pad_images(positions, *cell_of(frame, link), link)
    pairs: Counts = _neighbors.linked_pairs(points, owner, n, _neighbors.bin_points(points, link), link)
    return pairs


@dataclass(frozen=True, eq=False)
class NucleiSeries:
    """The nuclei along a trajectory: their sizes, without the environments.

    Parameters
    ----------
    steps
        (n_frames,) in ascending order.
    times
        (n_frames,) in ps, nan where unknown.
    n_env
        (n_frames,) number of environments.
    sizes
        For each frame the sizes of its nuclei, in any order.

    Raises
    ------
    InputError
        The lengths differ, or the steps do not ascend.
    """

    steps: Counts
    times: NDArray[np.float64]
    n_env: Counts
    sizes: tuple[Counts, ...]

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.times) == len(self.n_env) == len(self.sizes):
            raise InputError("steps, times, n_env and sizes of a series of nuclei must have one length")
        back = np.flatnonzero(np.diff(self.steps) <= 0)
        if len(back):
            i = int(back[0])
            raise InputError(f"the steps of a series must ascend, but after {self.steps[i]} comes {self.steps[i + 1]}")

    @classmethod
    def of(cls, found: Iterable[tuple[Frame, Nuclei]]) -> NucleiSeries:
        """Make a series of frames and their nuclei, in the order of time; neither is kept."""
        rows = [(frame.step, frame.time, len(one.numbers), one.sizes) for frame, one in found]
        steps, times, n_env = (np.array([row[c] for row in rows]) for c in range(3))
        return cls(steps.astype(np.int64), times.astype(float), n_env.astype(np.int64), tuple(row[3] for row in rows))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def largest(self) -> Counts:
        """(n_frames,) size of the largest nucleus."""
        return np.array([sizes.max(initial=0) for sizes in self.sizes], dtype=np.int64)

    @property
    def n_nuclei(self) -> Counts:
        """(n_frames,) number of nuclei."""
        return np.array([len(sizes) for sizes in self.sizes], dtype=np.int64)

    @property
    def n_inside(self) -> Counts:
        """(n_frames,) number of environments that belong to nuclei."""
        return np.array([sizes.sum() for sizes in self.sizes], dtype=np.int64)

    def window(self, first: int | None = None, last: int | None = None) -> NucleiSeries:
        """Return the frames of the steps `first` to `last`, both included."""
        low = 0 if first is None else int(np.searchsorted(self.steps, first))
        high = len(self) if last is None else int(np.searchsorted(self.steps, last, side="right"))
        return NucleiSeries(self.steps[low:high], self.times[low:high], self.n_env[low:high], self.sizes[low:high])

    def distribution(self) -> tuple[Counts, NDArray[np.float64]]:
        """Return the sizes that occur, ascending, and the mean number of nuclei of each in a frame."""
        every = np.concatenate([*self.sizes, np.empty(0, np.int64)])
        sizes, counts = np.unique(every, return_counts=True)
        return sizes, counts / max(1, len(self))


@dataclass(frozen=True)
class Threshold:
    """What tells two kinds of environments apart, and how well.

    Attributes
    ----------
    value
        dH, in nats.
    missed
        Share of the environments of the first kind that are above it.
    mistaken
        Share of those of the second kind that are not.
    """

    value: float
    missed: float
    mistaken: float


def threshold_between(low: ArrayLike, high: ArrayLike) -> Threshold:
    """Find the threshold of dH that tells two samples of environments apart with the fewest mistakes.

    The sum of the two shares of mistakes is smallest (Youden's rule). Of several such thresholds the middle of the
    widest gap is taken.

    Parameters
    ----------
    low, high
        (n,) and (m,) dH in nats: of environments that should be at or below the threshold (the crystal that the index
        is of, at the temperature of the run and not among the references), and above it (the melt).

    Raises
    ------
    InputError
        A sample is empty or holds values that are not finite.
    """
    samples: list[Any] = [np.sort(np.asarray(values, dtype=np.float64).ravel()) for values in (low, high)]
    for name, values in zip(("low", "high"), samples, strict=True):
        if not len(values) or not np.isfinite(values).all():
            raise InputError(f"{name} must hold finite values of dH, and at least one")
    values = np.unique(np.concatenate(samples))
    ends = np.append(values[1:], values[-1])
    missed = 1.0 - np.searchsorted(samples[0], values, side="right") / len(samples[0])
    mistaken = np.searchsorted(samples[1], values, side="right") / len(samples[1])
    total = missed + mistaken
    best = np.flatnonzero(total <= total.min() + 1e-12)
    i = int(best[np.argmax((ends - values)[best])])
    return Threshold(float(0.5 * (values[i] + ends[i])), float(missed[i]), float(mistaken[i]))
