"""The nuclei of a frame and of a trajectory, and the threshold of dH that tells them from the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..descriptors import cell_of
from ..errors import FrameError, InputError
from ..frame import Frame
from ..kernels.neighbors import bin_points, linked_pairs, pad_images
from ..notebook import Table

__all__ = ["Counts", "Nuclei", "NucleiSeries", "Threshold", "linked_mean", "nuclei", "threshold_between"]

Counts = NDArray[np.int64]

# -- the nuclei of a frame ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Nuclei:
    """The nuclei of one frame.

    Attributes
    ----------
    numbers
        (n_env,) the nucleus of each environment: 1 is the largest nucleus, 0 is none. Nuclei of equal size are in the
        order of their first environments.
    sizes
        (n_nuclei,) number of environments in each nucleus, the largest first.
    """

    numbers: Counts
    sizes: Counts

    @property
    def largest(self) -> int:
        """Size of the largest nucleus; 0 if there is none."""
        return int(self.sizes[0]) if len(self.sizes) else 0


def nuclei(frame: Frame, inside: ArrayLike, link: float) -> Nuclei:
    """Find the nuclei of a frame: environments of one kind that are linked, directly or through others.

    Two environments are linked if the distance of one to an image of the other is at most `link`. With an index of the
    crystal, a low dH and a `link` between the first and the second shell of neighbours, nuclei are crystallites:
    ``nuclei(frame, ~index.exceeds(frame, threshold), link)``. Without the ``~``, they are regions unknown to the index.

    Parameters
    ----------
    frame
        A whole frame, without ghosts. Periodic images are added; the cell may be smaller than `link`.
    inside
        (n_env,) bool: which of the frame's environments (``frame.centres``) can belong to nuclei.
    link
        Largest distance of two linked environments, in Å.

    Raises
    ------
    InputError
        `inside` is not such an array, or `link` is not a positive length.
    FrameError
        The frame has ghosts, or its positions or its cell cannot be used.
    """
    inside, centres = np.asarray(inside), _check_frame(frame, link)
    if inside.dtype != bool or inside.shape != centres.shape:
        raise InputError(
            f"step {frame.step}: inside must be one truth value for each of the {len(centres)} environments (such as "
            f"dH <= threshold), not {inside.dtype} of shape {inside.shape}"
        )
    chosen = np.flatnonzero(inside)
    linked = _find_components(frame, centres[chosen], link)
    # Largest first, then by the first environment.
    _, first, size = np.unique(linked, return_index=True, return_counts=True)
    order = np.lexsort((first, -size))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    numbers = np.zeros(len(centres), np.int64)
    numbers[chosen] = rank[linked]
    return Nuclei(numbers, size[order].astype(np.int64))


def linked_mean(frame: Frame, dH: ArrayLike, link: float) -> NDArray[np.float64]:
    """Average dH over each environment and the environments linked to it.

    Heat blurs dH of one environment more than the mean of a neighbourhood. So the mean tells a hot crystal from the
    melt when dH itself does not. But it removes a shell of atoms from the surface of a nucleus.

    Parameters
    ----------
    frame, link
        As in `nuclei`. Images count as neighbours, like atoms.
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
    dH, centres = np.asarray(dH, dtype=np.float64), _check_frame(frame, link)
    if dH.shape != centres.shape:
        raise InputError(f"step {frame.step}: dH has shape {dH.shape}, but the frame has {len(centres)} environments")
    i, j = _find_pairs(frame, centres, link).T
    # Each end of a pair is a neighbour of the other. A pair of an atom and its own image is there twice already.
    back = i != j
    i, j = np.concatenate([i, j[back]]), np.concatenate([j, i[back]])
    n = len(centres)
    mean: NDArray[np.float64] = (dH + np.bincount(i, dH[j], n)) / (1.0 + np.bincount(i, minlength=n))
    return mean


def _check_frame(frame: Frame, link: float) -> Counts:
    """Return the rows that are environments. Refuse a frame with ghosts and an unusable link."""
    if frame.has_ghosts:
        raise FrameError(f"step {frame.step}: nuclei need a whole frame, and this one has ghosts: merge its parts")
    if not (math.isfinite(link) and link > 0):
        raise InputError(f"link must be a positive length in Å, not {link!r}")
    return frame.centres


def _find_components(frame: Frame, rows: Counts, link: float) -> Counts:
    """Return the number of the connected component of each of these rows. Components are in no special order."""
    from scipy.sparse import coo_array  # not above: verbs start without scipy
    from scipy.sparse.csgraph import connected_components

    pairs, n = _find_pairs(frame, rows, link), len(rows)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _find_pairs(frame: Frame, rows: Counts, link: float) -> Counts:
    """Return (m, 2) pairs i ≤ j of linked environments, as places in `rows`, one pair for each image."""
    positions, n = np.ascontiguousarray(frame.positions[rows]), len(rows)
    if not np.isfinite(positions).all():
        raise FrameError(f"step {frame.step}: positions are not finite numbers; the simulation has broken down")
    points, owner = positions, np.arange(n)
    if np.any(frame.pbc):
        points, owner = pad_images(positions, *cell_of(frame, link), link)
    pairs: Counts = linked_pairs(points, owner, n, bin_points(points, link), link)
    return pairs


# -- the nuclei of a trajectory ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class NucleiSeries(Table):
    """The sizes of the nuclei along a trajectory, without their environments.

    Parameters
    ----------
    steps
        (n_frames,) in ascending order.
    times
        (n_frames,) in ps; nan if unknown.
    n_env
        (n_frames,) number of environments.
    sizes
        For each frame, the sizes of its nuclei in any order.

    Raises
    ------
    InputError
        The lengths differ, or the steps do not ascend.
    """

    _COLUMNS = ("steps", "times", "n_env", "n_inside", "n_nuclei", "largest")

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
        """Make a series from pairs of a frame and its nuclei, in the order of time. Only sizes are kept."""
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
        """(n_frames,) number of environments in nuclei."""
        return np.array([sizes.sum() for sizes in self.sizes], dtype=np.int64)

    def window(self, first: int | None = None, last: int | None = None) -> NucleiSeries:
        """Return the part of the series from step `first` to step `last`, both included."""
        low = 0 if first is None else int(np.searchsorted(self.steps, first))
        high = len(self) if last is None else int(np.searchsorted(self.steps, last, side="right"))
        return NucleiSeries(self.steps[low:high], self.times[low:high], self.n_env[low:high], self.sizes[low:high])

    def distribution(self) -> tuple[Counts, NDArray[np.float64]]:
        """Return the sizes that occur, ascending, and the mean number of nuclei of each size in a frame."""
        every = np.concatenate([*self.sizes, np.empty(0, np.int64)])
        sizes, counts = np.unique(every, return_counts=True)
        return sizes, counts / max(1, len(self))


# -- a threshold of dH -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """A threshold of dH between two kinds of environments, and its mistakes.

    Attributes
    ----------
    value
        The threshold, in nats.
    missed
        Share of the environments of the first kind above the threshold.
    mistaken
        Share of the environments of the second kind at or below the threshold.
    """

    value: float
    missed: float
    mistaken: float


def threshold_between(low: ArrayLike, high: ArrayLike) -> Threshold:
    """Find the threshold of dH that tells two samples of environments apart with the fewest mistakes.

    It makes the sum of the two shares of mistakes as small as possible (Youden's rule). If this holds for several gaps
    between values, the threshold is the middle of the widest gap.

    Parameters
    ----------
    low, high
        (n,) and (m,) dH in nats. `low` should be at or below the threshold: the crystal of the index, at the
        temperature of the run, from frames that are not references. `high` should be above it: the melt.

    Raises
    ------
    InputError
        A sample is empty, or a value is not finite.
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
