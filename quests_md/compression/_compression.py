"""Choosing few frames of a dataset that keep its information."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..information import DEFAULT_BANDWIDTH, check_bandwidth, check_reach, information
from . import _choices
from ._prefixes import Prefixes, covered_shares

__all__ = ["METHODS", "Compression", "Growth", "compress"]

Method = Literal["msc", "farthest", "mean_farthest", "kmeans", "random"]
METHODS: tuple[str, ...] = get_args(Method)
"""The ways to choose."""

_ROUNDING = 1e-9  # nats: the entropy of all frames is reached by all frames, in whichever order it was summed


@dataclass(frozen=True)
class Growth:
    """What the first 1, 2, ... frames of a choice hold.

    Attributes
    ----------
    n_env
        (m,) number of environments of the first frames.
    entropy, diversity
        (m,) of the first frames against themselves, in nats.
    overlap
        (m,) the fraction of all environments of the dataset with dH below 1e-5 against the first frames.
    """

    n_env: NDArray[np.int64]
    entropy: NDArray[np.float64]
    diversity: NDArray[np.float64]
    overlap: NDArray[np.float64]


@dataclass(frozen=True)
class Compression:
    """Frames in the order they were chosen, and what they hold.

    Attributes
    ----------
    method
        How they were chosen.
    bandwidth
        h, in 1/Å.
    selected
        (m,) numbers of the frames, in the order of the choice; ascending for "kmeans", which has no order.
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
        """Compute what the first 1, 2, ... frames hold: takes longer than the choice."""
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

    ``"msc"`` is the minimum set cover of QUESTS (arXiv:2404.12367): first the frame whose own environments have the
    largest entropy H, then always the one with the largest H + max dH, dH of its environments against all chosen
    frames. ``"farthest"`` takes the frame with the largest mean distance of environments to the nearest chosen frame,
    ``"mean_farthest"`` the farthest of the mean descriptors of frames, ``"kmeans"`` a frame of each of as many
    clusters of them, ``"random"`` any. Of equal scores, to 1e-10·max(1, |score|), the first frame wins.

    Parameters
    ----------
    x
        (n_env, d) descriptors, in 1/Å.
    frame_offsets
        (n_frames + 1,) first row of every frame, and the number of rows. Frames without rows are never chosen.
    size
        A number of frames, or a share of them as a float in (0, 1], rounded, at least one. All frames where there are
        no more.
    method
        One of `METHODS`.
    entropy
        In place of `size`: choose until the chosen frames have this entropy, in nats (to 1e-9).
    bandwidth
        h, in 1/Å.
    reference
        (n_reference, d) rows that are known already, for "msc": dH is against these and the chosen frames, also for
        the first choice.
    seed
        Of what "random", "mean_farthest" and "kmeans" draw.
    threads
        Threads to use; None takes all cores. The result does not depend on it.
    report
        Called with the number of chosen frames, after each.

    Raises
    ------
    InputError
        Arrays, size, method or bandwidth cannot be used, they do not go together, or not even all frames reach
        `entropy`.
    """
    check_bandwidth(bandwidth)
    frames = _choices.Frames(*_checked(x, frame_offsets), float(bandwidth), threads)
    check_reach("x", frames.x, bandwidth)
    n = len(frames.filled)
    wanted = _number(size, entropy, n)
    prefixes = Prefixes(frames.x.shape[1], float(bandwidth), threads)
    selected: list[int] = []
    for frame in _order(frames, prefixes, method, wanted, entropy, reference, seed):
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
    whole, overlaps = information(rows, bandwidth, threads=threads), covered_shares(frames.x, len(selected), prefixes)
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


def _order(
    frames: _choices.Frames,
    prefixes: Prefixes,
    method: str,
    wanted: int,
    entropy: float | None,
    reference: ArrayLike | None,
    seed: int,
) -> Iterator[int]:
    """Return the frames in the order of the choice; for "kmeans", `wanted` of them."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if reference is not None and method != "msc":
        raise InputError(f'a reference is for "msc": "{method}" does not look at one')
    if entropy is not None and method == "kmeans":
        raise InputError('"kmeans" chooses all frames at once, so it cannot choose until an entropy is reached')
    if method == "msc":
        return _choices.msc(frames, prefixes, _reference(reference, frames.x.shape[1]))
    if method == "farthest":
        return _choices.farthest(frames, prefixes)
    rng = np.random.default_rng(seed)
    if method == "mean_farthest":
        return _choices.mean_farthest(frames, rng)
    if method == "kmeans":
        return iter(_choices.kmeans(frames, wanted, rng))
    return _choices.random(frames, rng)


def _number(size: Any, entropy: Any, n: int) -> int:
    """Return how many of n frames are asked for: all of them if an entropy is."""
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


def _checked(x: ArrayLike, frame_offsets: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    rows = _rows("x", x)
    offsets = np.asarray(frame_offsets)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise InputError(f"frame_offsets must be whole numbers (n_frames + 1,), not {offsets.dtype} {offsets.shape}")
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(rows) or (np.diff(offsets) < 0).any():
        raise InputError(f"frame_offsets must ascend from 0 to the number of rows, {len(rows)}")
    if not len(rows):
        raise InputError("x has no rows: there is no frame to choose")
    return rows, offsets


def _reference(reference: ArrayLike | None, width: int) -> NDArray[Any] | None:
    if reference is None:
        return None
    rows = _rows("reference", reference)
    if rows.shape[1] != width:
        raise InputError(f"reference has {rows.shape[1]} columns, x has {width}: other descriptors")
    return rows if len(rows) else None


def _rows(name: str, values: ArrayLike) -> NDArray[Any]:
    rows = np.require(values, np.float64, ["C", "W"])  # one kind of array: kernels are compiled for each kind
    if rows.ndim != 2:
        raise InputError(f"{name} must have shape (n, d), not {rows.shape}")
    if not np.isfinite(rows).all():
        raise InputError(f"{name} holds values that are not finite")
    return rows
