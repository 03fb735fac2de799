"""Choosing few frames of a dataset that keep its information."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .information import DEFAULT_BANDWIDTH, check_bandwidth, check_reach, information, log_kernel_sum
from .kernels import choice
from .kernels.choice import ROWS
from .kernels.threads import over_rows
from .notebook import Shown, Table

__all__ = ["METHODS", "Compression", "Growth", "compress"]

Method = Literal["msc", "farthest", "mean_farthest", "kmeans", "random"]
METHODS: tuple[str, ...] = get_args(Method)
"""The ways to choose frames."""

# In nats. The order of a sum changes its last digits. With this tolerance, the choice of all frames always reaches the
# entropy of the whole dataset.
_ROUNDING = 1e-9


@dataclass(frozen=True, repr=False)
class Growth(Table):
    """What the first 1, 2, ... chosen frames hold.

    Attributes
    ----------
    n_env
        (m,) number of environments of the first frames.
    entropy, diversity
        (m,) of the first frames against themselves, in nats.
    overlap
        (m,) the fraction of all environments of the dataset with dH below 1e-5 against the first frames.
    """

    _COLUMNS = ("n_env", "entropy", "diversity", "overlap")

    n_env: NDArray[np.int64]
    entropy: NDArray[np.float64]
    diversity: NDArray[np.float64]
    overlap: NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Compression(Shown):
    """The chosen frames in order, and what they hold.

    Attributes
    ----------
    method
        One of `METHODS`.
    bandwidth
        h, in 1/Å.
    selected
        (m,) numbers of the frames in the order in which they were chosen; in ascending order for "kmeans".
    n_env
        Number of environments of the chosen frames.
    entropy, diversity
        Of the chosen frames against themselves, in nats.
    overlap
        The fraction of all environments of the dataset with dH below 1e-5 against the chosen frames.
    """

    method: str
    bandwidth: float
    selected: NDArray[np.int64]
    n_env: int
    entropy: float
    diversity: float
    overlap: float
    _prefixes: Prefixes = field(repr=False, compare=False)
    _overlaps: NDArray[np.float64] = field(repr=False, compare=False)

    def growth(self) -> Growth:
        """Compute what the first 1, 2, ... chosen frames hold. This takes longer than the choice."""
        self._prefixes.measure()
        return Growth(
            n_env=self._prefixes.n_env,
            entropy=np.array(self._prefixes.entropy),
            diversity=np.array(self._prefixes.diversity),
            overlap=self._overlaps,
        )


def compress(
    x: ArrayLike,
    frame_offsets: ArrayLike,
    size: int | float | None = None,
    method: Method = "msc",
    *,
    entropy: float | None = None,
    bandwidth: float = DEFAULT_BANDWIDTH,
    reference: ArrayLike | None = None,
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[int], object] | None = None,
) -> Compression:
    """Choose frames of a dataset.

    ``"msc"`` is the minimum set cover of QUESTS (arXiv:2404.12367). The first frame is the one whose own environments
    have the largest entropy H. Each next frame is the one with the largest H + max dH, where dH is that of its
    environments against all chosen frames. ``"farthest"`` takes the frame with the largest mean distance of its
    environments to the nearest chosen frame. ``"mean_farthest"`` does the same with the mean descriptors of frames.
    ``"kmeans"`` makes clusters of the mean descriptors, and takes one frame of each cluster. ``"random"`` takes any. If
    scores differ by less than 1e-10·max(1, |score|), the first frame wins.

    Parameters
    ----------
    x
        (n_env, d) descriptors, in 1/Å.
    frame_offsets
        (n_frames + 1,) first row of every frame, then the number of rows. Frames without rows are never chosen.
    size
        A number of frames; or a share of them as a float in (0, 1], rounded, at least one frame. If there are fewer
        frames, all are chosen.
    method
        One of `METHODS`.
    entropy
        Instead of `size`: choose until the chosen frames have this entropy, in nats (to 1e-9).
    bandwidth
        h, in 1/Å.
    reference
        (n_reference, d) rows that are known already, only for "msc": dH is against these and the chosen frames, from
        the first choice on.
    seed
        The seed for "random", "mean_farthest" and "kmeans".
    threads
        Threads to use; None takes all cores. The result does not depend on it.
    report
        It is called after each choice with the number of chosen frames.

    Raises
    ------
    InputError
        The arrays, the size, the method or the bandwidth cannot be used or do not go together; or all frames together
        do not reach `entropy`.
    """
    check_bandwidth(bandwidth)
    frames = Frames(*_check_frames(x, frame_offsets), float(bandwidth), threads)
    check_reach("x", frames.x, bandwidth)
    n = len(frames.filled)
    wanted = _count_wanted(size, entropy, n)
    prefixes = Prefixes(frames.x.shape[1], float(bandwidth), threads)
    selected: list[int] = []
    for frame in _choose(frames, prefixes, method, wanted, entropy, reference, seed):
        selected.append(frame)
        prefixes.add(frame, frames.rows(frame))
        if report is not None:
            report(len(selected))
        if entropy is not None:
            prefixes.measure()
        if len(selected) == wanted or (entropy is not None and prefixes.entropy[-1] >= entropy - _ROUNDING):
            break
    if entropy is not None and prefixes.entropy[-1] < entropy - _ROUNDING:
        raise InputError(
            f"an entropy of {entropy:g} nats is not reached: all {n} frames have {prefixes.entropy[-1]:.6g} nats"
        )
    rows = np.concatenate([frames.rows(frame) for frame in selected])
    whole, overlaps = (
        information(rows, bandwidth, threads=threads),
        _compute_overlaps(frames.x, len(selected), prefixes),
    )
    return Compression(
        method=method,
        bandwidth=float(bandwidth),
        selected=np.array(selected, dtype=np.int64),
        n_env=whole.n_env,
        entropy=whole.entropy,
        diversity=whole.diversity,
        overlap=float(overlaps[-1]),
        _prefixes=prefixes,
        _overlaps=overlaps,
    )


def _choose(
    frames: Frames,
    prefixes: Prefixes,
    method: str,
    wanted: int,
    entropy: float | None,
    reference: ArrayLike | None,
    seed: int,
) -> Iterator[int]:
    """Start a method: return the frames in the order in which it chooses them; "kmeans" chooses `wanted` of them."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if reference is not None and method != "msc":
        raise InputError(f'a reference is for "msc": "{method}" does not look at one')
    if entropy is not None and method == "kmeans":
        raise InputError('"kmeans" chooses all frames at once, so it cannot choose until an entropy is reached')
    if method == "msc":
        return _choose_by_msc(frames, prefixes, _check_reference(reference, frames.x.shape[1]))
    if method == "farthest":
        return _choose_by_farthest(frames, prefixes)
    rng = np.random.default_rng(seed)
    if method == "mean_farthest":
        return _choose_by_mean_farthest(frames, rng)
    if method == "kmeans":
        return iter(_choose_by_kmeans(frames, wanted, rng))
    return _choose_at_random(frames, rng)


def _count_wanted(size: Any, entropy: Any, n: int) -> int:
    """Return how many of n frames are wanted; all of them if an entropy is given."""
    if (size is None) == (entropy is None):
        raise InputError("give either a size or an entropy to reach")
    if size is None:
        if not (isinstance(entropy, (int, float, np.floating)) and math.isfinite(entropy)):
            raise InputError(f"the entropy to reach must be a number in nats, not {entropy!r}")
        return n
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1:
        return min(int(size), n)
    if isinstance(size, (float, np.floating)) and 0 < size <= 1:
        return max(1, round(float(size) * n))
    raise InputError(f"size must be a number of frames from 1 on, or a share as a float in (0, 1], not {size!r}")


def _check_frames(x: ArrayLike, frame_offsets: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    rows = _check_rows("x", x)
    offsets = np.asarray(frame_offsets)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise InputError(f"frame_offsets must be whole numbers (n_frames + 1,), not {offsets.dtype} {offsets.shape}")
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(rows) or (np.diff(offsets) < 0).any():
        raise InputError(f"frame_offsets must ascend from 0 to the number of rows, {len(rows)}")
    if not len(rows):
        raise InputError("x has no rows: there is no frame to choose")
    return rows, offsets


def _check_reference(reference: ArrayLike | None, width: int) -> NDArray[Any] | None:
    if reference is None:
        return None
    rows = _check_rows("reference", reference)
    if rows.shape[1] != width:
        raise InputError(f"reference has {rows.shape[1]} columns, x has {width}: other descriptors")
    return rows if len(rows) else None


def _check_rows(name: str, values: ArrayLike) -> NDArray[Any]:
    rows = np.require(values, np.float64, ["C", "W"])  # one kind of array, because kernels are compiled for each kind
    if rows.ndim != 2:
        raise InputError(f"{name} must have shape (n, d), not {rows.shape}")
    if not np.isfinite(rows).all():
        raise InputError(f"{name} holds values that are not finite")
    return rows


# -- the frames --------------------------------------------------------------------------------------------------------

_SEQUENCES = 1 << 24  # entries of the sequences in which each frame looks at the chosen ones: 128 MB


class Frames:
    """The frames of a dataset, and their rows.

    Parameters
    ----------
    x, frame_offsets
        As in `compress`, checked.
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
        """Compute the entropy of every frame against itself; −inf if it has no environments."""
        out, factor = np.empty(len(self.counts)), _scale_factor(self.bandwidth)

        def task(first: int, last: int) -> None:
            choice.frame_entropies(self.x, self.offsets, factor, choice.PLAIN, first, last, out)

        over_rows(task, len(out), self.threads, 8)
        return np.where(self.counts > 0, out, -np.inf)

    def means(self) -> NDArray[np.float64]:
        """Return the mean row of every frame; zeros if it has no rows."""
        out = np.zeros((len(self.counts), self.x.shape[1]))
        for frame in self.filled.tolist():
            out[frame] = self.rows(frame).mean(axis=0, dtype=np.float64)
        return out


def _find_first_largest(scores: NDArray[np.float64]) -> int:
    """Return the place of the largest score. If several scores are equal within rounding, return the first place."""
    largest = float(scores.max())
    return int(np.argmax(scores >= largest - choice.TIE * max(1.0, abs(largest))))


# -- the methods -------------------------------------------------------------------------------------------------------


def _choose_by_msc(frames: Frames, prefixes: Prefixes, reference: NDArray[np.floating] | None) -> Iterator[int]:
    """Yield frames by the minimum set cover of QUESTS: always the one whose H and largest dH have the largest sum.

    dH is against the reference and all chosen frames. `prefixes` must hold a chosen frame before the next choice.
    Without a reference the first frame is the one with the largest H.
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
    items = _make_items(frames, choice.NOVELTY, frame, first, bound, entropies, sums)
    if reference is None:
        start = _find_first_largest(entropies)
        items.taken[start] = True
        yield start
    yield from _pick_in_turn(items, prefixes)


def _choose_by_farthest(frames: Frames, prefixes: Prefixes) -> Iterator[int]:
    """Yield frames by farthest-point selection: always the one with the largest mean distance to the nearest chosen.

    The first frame is the one with the largest H, as in QUESTS.
    """
    entropies, filled = frames.entropies(), frames.filled
    bound = np.full(len(filled), np.inf)
    items = _make_items(frames, choice.DISTANCE, filled, frames.offsets[filled], bound, entropies, np.empty((0, 2)))
    start = _find_first_largest(entropies)
    items.taken[start] = True
    yield start
    yield from _pick_in_turn(items, prefixes)


def _make_items(
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


def _pick_in_turn(items: choice.Items, prefixes: Prefixes) -> Iterator[int]:
    while (frame := int(choice.pick(items, prefixes.chosen, prefixes.n_frames, choice.PLAIN))) >= 0:
        yield frame


def _choose_by_mean_farthest(frames: Frames, rng: np.random.Generator) -> Iterator[int]:
    """Yield frames by farthest-point selection among the mean rows of frames. The first is drawn at random."""
    means = frames.means()[frames.filled]
    distances = np.full(len(means), np.inf)
    place = int(rng.integers(len(means)))
    for _ in range(len(means)):
        yield int(frames.filled[place])
        distances = np.minimum(distances, np.linalg.norm(means - means[place], axis=1))
        distances[place] = -np.inf
        place = int(np.argmax(distances))


def _choose_at_random(frames: Frames, rng: np.random.Generator) -> Iterator[int]:
    """Yield frames in random order."""
    yield from rng.permutation(frames.filled).tolist()


def _choose_by_kmeans(frames: Frames, n: int, rng: np.random.Generator) -> list[int]:
    """Return n frames in ascending order: the frame nearest to the centre of each cluster of mean rows (k-means).

    If k-means leaves a cluster empty, the frame that is farthest from its centre becomes a cluster of its own.
    """
    from scipy.cluster.vq import kmeans2  # not above: runs start without scipy

    means = frames.means()[frames.filled]
    starts = np.searchsorted(frames.filled, list(itertools.islice(_choose_by_mean_farthest(frames, rng), n)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about empty clusters, which are filled below
        centres, labels = kmeans2(means, means[starts], iter=30, minit="matrix")
    distances = np.linalg.norm(means - centres[labels], axis=1)
    for empty in np.flatnonzero(np.bincount(labels, minlength=n) == 0):
        is_shared = np.bincount(labels, minlength=n)[labels] > 1
        place = int(np.argmax(np.where(is_shared, distances, -np.inf)))
        labels[place], distances[place] = empty, 0.0
    order = np.lexsort((distances, labels))
    nearest = order[np.unique(labels[order], return_index=True)[1]]
    return sorted(frames.filled[nearest].tolist())


# -- what the chosen frames hold ---------------------------------------------------------------------------------------

OVERLAP_THRESHOLD = 1e-5  # an environment with dH below this is covered, as in QUESTS


class Prefixes:
    """The chosen frames in order, and the entropy and diversity of the first 1, 2, ... of them.

    Parameters
    ----------
    width
        Columns of a descriptor.
    bandwidth
        h, in 1/Å.
    """

    def __init__(self, width: int, bandwidth: float, threads: int | None) -> None:
        self.threads = threads
        self.n_frames = 0
        self.entropy: list[float] = []
        self.diversity: list[float] = []
        self.chosen = choice.Chosen(
            panels=np.empty((64, width + 1, choice.LANES)),
            groups=np.empty((64, ROWS * (width + 1))),
            starts=np.zeros((65, 2), dtype=np.int64),
            counts=np.zeros(64, dtype=np.int64),
            frames=np.zeros(64, dtype=np.int64),
            factor=_scale_factor(bandwidth),
        )
        self._sums = np.zeros((64, ROWS))  # of every row, over all rows of the measured frames
        self._is_row = np.zeros((64, ROWS), dtype=np.bool_)  # whether this place of a group has a row

    @property
    def n_env(self) -> NDArray[np.int64]:
        """(n_frames,) number of environments of the first frames."""
        return np.cumsum(self.chosen.counts[: self.n_frames])

    def add(self, frame: int, rows: NDArray[np.floating]) -> None:
        """Add a frame."""
        first_panel, first_group = self.chosen.starts[self.n_frames].tolist()
        panel, group = first_panel - (-len(rows) // choice.LANES), first_group - (-len(rows) // ROWS)
        self._make_room(panel, group)
        chosen = self.chosen
        choice.pack(rows, chosen.factor, chosen.panels[first_panel:panel], chosen.groups[first_group:group])
        self._is_row[first_group:group].ravel()[: len(rows)] = True
        chosen.frames[self.n_frames], chosen.counts[self.n_frames] = frame, len(rows)
        self.n_frames += 1
        chosen.starts[self.n_frames] = panel, group

    def measure(self) -> None:
        """Compute entropy and diversity up to the last frame that was added."""
        chosen, sums = self.chosen, self._sums
        while len(self.entropy) < self.n_frames:
            frame = len(self.entropy)
            groups = int(chosen.starts[frame + 1, 1])

            def task(first: int, last: int, frame: int = frame) -> None:
                choice.join(chosen, frame, choice.PLAIN, first, last, sums)

            over_rows(task, groups, self.threads, 16)
            known = sums[:groups][self._is_row[:groups]]
            self.entropy.append(math.log(len(known)) - float(np.mean(np.log(known))))
            self.diversity.append(math.log(float(np.sum(1.0 / known))))

    def _make_room(self, panels: int, groups: int) -> None:
        panels, groups = max(0, panels - len(self.chosen.panels)), max(0, groups - len(self.chosen.groups))
        frames = int(self.n_frames == len(self.chosen.counts))
        fields = self.chosen._asdict()
        for missing, names in ((panels, ["panels"]), (groups, ["groups"]), (frames, ["starts", "counts", "frames"])):
            for name in names if missing else []:
                fields[name] = _enlarge(fields[name], missing)
        self.chosen = choice.Chosen(**fields)
        if groups:
            self._sums, self._is_row = _enlarge(self._sums, groups), _enlarge(self._is_row, groups)


def _enlarge(array: NDArray[Any], missing: int) -> NDArray[Any]:
    """Return a copy of an array with room for what is missing, and at least twice as long."""
    return np.concatenate([array, np.zeros((max(missing, len(array)), *array.shape[1:]), array.dtype)])


def _scale_factor(bandwidth: float) -> float:
    """Return the factor for all rows that makes a kernel 2^(−‖q − r‖²)."""
    return math.sqrt(0.5 * math.log2(math.e)) / bandwidth


def _compute_overlaps(x: NDArray[np.floating], n: int, prefixes: Prefixes) -> NDArray[np.float64]:
    """Compute the overlap of all environments with the first 1, 2, ... n chosen frames.

    Returns
    -------
    ndarray
        (n,) shares of the rows of `x` with dH below 1e-5 against the chosen frames.
    """
    enough, chosen, needed = math.exp(-OVERLAP_THRESHOLD), prefixes.chosen, np.empty(len(x), dtype=np.int64)

    def task(first: int, last: int) -> None:
        choice.covered_by(x, chosen, n, enough, choice.PLAIN, first, last, needed)

    over_rows(task, len(x), prefixes.threads, 96)
    return np.cumsum(np.bincount(needed, minlength=n + 2)[1 : n + 1]) / len(x)
