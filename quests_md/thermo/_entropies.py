"""Entropies of states and of windows of a trajectory, with an error from blocks of frames; and the units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.constants import physical_constants

from ..errors import InputError
from ..information import DEFAULT_BANDWIDTH, log_kernel_sum

__all__ = ["Entropies", "EntropyDifference", "Windows", "entropy_difference", "state_entropies", "window_entropies"]

K_B: float = physical_constants["Boltzmann constant in eV/K"][0]
EV_PER_GPA = 6.241509074e-3  # eV/Å³ of a GPa


def columns(given: Mapping[str, ArrayLike], positive: tuple[str, ...] = ()) -> dict[str, NDArray[np.float64]]:
    """Return columns of a table as arrays: of one length, finite, and `positive` ones above zero.

    Raises
    ------
    InputError
        They are not; the message names the column, and the row that it begins to be wrong at.
    """
    found = {name: _column(name, values) for name, values in given.items()}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the columns of a table must be of one length: {lengths}")
    for name, values in found.items():
        bad = ~np.isfinite(values) | ((values <= 0) if name in positive else False)
        if bad.any():
            row, what = int(bad.argmax()), "positive numbers" if name in positive else "numbers"
            raise InputError(f"{name} must hold {what}, and row {row} (from 0) is {values[row]}")
    return found


def errors_of(name: str, error: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return standard errors (n,): zero where none are given.

    Raises
    ------
    InputError
        There are not n of them, or one is negative or not finite.
    """
    if error is None:
        return np.zeros(n)
    values = np.broadcast_to(_numbers(name, error), (n,)) if np.ndim(error) == 0 else _column(name, error)
    if len(values) != n or not (np.isfinite(values) & (values >= 0)).all():
        raise InputError(f"{name} must hold {n} standard errors, none of them negative")
    return np.array(values)


def _column(name: str, values: ArrayLike) -> NDArray[np.float64]:
    column = _numbers(name, values)
    if column.ndim != 1:
        raise InputError(f"{name} must be a column (n,), not of shape {column.shape}")
    return column


def _numbers(name: str, values: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold numbers") from None


BLOCKS = 10

State = tuple[ArrayLike, ArrayLike]  # x (n_env, d) and frame_offsets (n_frames + 1,)


@dataclass(frozen=True)
class Entropies:
    """Entropies of states, all of samples of as many environments.

    Attributes
    ----------
    entropy
        (n_states,) in nats; the mean over `runs` samples.
    error
        (n_states,) standard errors, in nats; nan for a state of one frame.
    blocks
        (n_states,) blocks of frames that the error comes from.
    size
        Environments in a sample.
    runs
        Samples, which have no environment in common.
    bandwidth
        In 1/Å.
    """

    entropy: NDArray[np.float64]
    error: NDArray[np.float64]
    blocks: NDArray[np.int64]
    size: int
    runs: int
    bandwidth: float

    @property
    def ceiling(self) -> float:
        """The most that an entropy can be, in nats: ln `size`. Near it, no entropy can tell states apart."""
        return math.log(self.size)


@dataclass(frozen=True)
class EntropyDifference:
    """How much larger the entropy of the second state is.

    Attributes
    ----------
    difference
        In nats.
    error
        Standard error, in nats, as the two are independent; nan if one of them has one frame.
    entropies
        Those of the first and the second.
    """

    difference: float
    error: float
    entropies: Entropies


@dataclass(frozen=True)
class Windows:
    """Entropies along a trajectory.

    Attributes
    ----------
    first
        (n_windows,) the first frame of each, from 0.
    last
        (n_windows,) the last frame of each, which is in it.
    entropies
        One for each window.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    entropies: Entropies


def state_entropies(
    states: Sequence[State],
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    size: int | None = None,
    runs: int = 1,
    blocks: int = BLOCKS,
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[float], object] | None = None,
) -> Entropies:
    """Compute the entropy H of each state, from as many environments of each.

    H grows with the number of environments until they are dense at the bandwidth: what is compared must have as many.

    Parameters
    ----------
    states
        For each, descriptors (n_env, d) in 1/Å, and `frame_offsets` (n_frames + 1,): the rows of frame f are
        ``x[frame_offsets[f]:frame_offsets[f + 1]]``, frames in the order of time.
    bandwidth
        h, in 1/Å.
    size
        Environments in a sample, drawn from all parts of the state alike. Default: all of the smallest state, as many
        of the others.
    runs
        Samples, without a common environment; H is their mean.
    blocks
        Blocks of consecutive frames that the error comes from; as many as there are frames if these are fewer.
    seed
        Of the draws.
    threads
        Threads to use; None takes all cores.
    report
        Called with the share of the states that is done.

    Raises
    ------
    InputError
        There are no states, a state has too few environments, the offsets do not fit the rows, or as
        `quests_md.information.log_kernel_sum`.
    """
    checked = [_check(f"state {i}", *state) for i, state in enumerate(states)]
    if not checked:
        raise InputError("no states to compute an entropy of")
    for name, value, least in (("runs", runs, 1), ("blocks", blocks, 2), ("size", 2 if size is None else size, 2)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    fewest = min(len(x) for x, _ in checked)
    size = fewest // runs if size is None else int(size)
    if size * runs > fewest or size < 1:
        raise InputError(f"{runs} samples of {size} environments: a state has {fewest}; ask for fewer, or smaller ones")
    found = []
    for done, (x, offsets) in enumerate(checked, 1):
        found.append(_entropy(x, offsets, bandwidth, size, runs, blocks, seed, threads))
        if report is not None:
            report(done / len(checked))
    values, errors, counts = zip(*found, strict=True)
    return Entropies(np.array(values), np.array(errors), np.array(counts, np.int64), size, runs, float(bandwidth))


def window_entropies(
    x: ArrayLike,
    frame_offsets: ArrayLike,
    width: int,
    step: int | None = None,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    blocks: int = BLOCKS,
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[float], object] | None = None,
) -> Windows:
    """Compute the entropy of windows of consecutive frames of a trajectory.

    Parameters
    ----------
    x, frame_offsets
        Descriptors (n_env, d) in 1/Å, and the offsets (n_frames + 1,) of frames in them.
    width
        Frames of a window. Frames at the end that fill no window are in none.
    step
        Frames from the beginning of a window to that of the next. Default: `width`.
    bandwidth, blocks, seed, threads, report
        As in `state_entropies`.

    Raises
    ------
    InputError
        The trajectory is shorter than a window; or as `state_entropies`.
    """
    rows, offsets = _check("the trajectory", x, frame_offsets)
    step = width if step is None else step
    for name, value in (("width", width), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name} must be a whole number of frames, at least 1, not {value!r}")
    n_frames = len(offsets) - 1
    if width > n_frames:
        raise InputError(f"a window of {width} frames does not fit into the trajectory, which has {n_frames}")
    first = np.arange(0, n_frames - width + 1, step)
    parts = [offsets[f : f + width + 1] for f in first]
    states = [(rows[part[0] : part[-1]], part - part[0]) for part in parts]
    return Windows(
        first,
        first + width - 1,
        state_entropies(states, bandwidth, blocks=blocks, seed=seed, threads=threads, report=report),
    )


def entropy_difference(
    first: State, second: State, bandwidth: float = DEFAULT_BANDWIDTH, **settings: Any
) -> EntropyDifference:
    """Compute how much larger the entropy of the second state is, from as many environments of both.

    Parameters
    ----------
    first, second
        As the states of `state_entropies`, of runs that are independent.
    bandwidth, settings
        As in `state_entropies`: size, runs, blocks, seed, threads, report.

    Raises
    ------
    InputError
        As `state_entropies`.
    """
    found = state_entropies([first, second], bandwidth, **settings)
    difference = float(found.entropy[1] - found.entropy[0])
    return EntropyDifference(difference, float(np.hypot(*found.error)), found)


def _check(name: str, x: ArrayLike, frame_offsets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows, offsets = np.asarray(x, dtype=np.float64), np.asarray(frame_offsets)
    if rows.ndim != 2:
        raise InputError(f"{name}: its descriptors must have shape (n, d), not {rows.shape}")
    whole = offsets.ndim == 1 and len(offsets) > 1 and np.issubdtype(offsets.dtype, np.integer)
    if not whole or offsets[0] != 0 or offsets[-1] != len(rows) or (np.diff(offsets) < 0).any():
        raise InputError(f"{name}: frame_offsets must be whole numbers that rise from 0 to the {len(rows)} rows")
    return rows, offsets.astype(np.int64)


def _entropy(
    x: NDArray[np.float64],
    offsets: NDArray[np.int64],
    bandwidth: float,
    size: int,
    runs: int,
    blocks: int,
    seed: int,
    threads: int | None,
) -> tuple[float, float, int]:
    """Return the mean entropy of the samples, its error, and the number of blocks that it comes from."""
    n_frames = len(offsets) - 1
    blocks = min(blocks, n_frames, size)
    block_of = np.repeat(np.arange(n_frames) * blocks // n_frames, np.diff(offsets))
    found = []
    for rows in _deal(block_of, size, runs, seed):
        found.append(_left_out(x[rows], block_of[rows], blocks, bandwidth, threads))
    whole = float(np.mean([entropy for entropy, _ in found]))
    if blocks < 2:
        return whole, math.nan, blocks
    without = np.mean([rest for _, rest in found], axis=0)
    return whole, float(np.sqrt((blocks - 1) / blocks * np.sum((without - without.mean()) ** 2))), blocks


def _deal(block_of: NDArray[np.int64], size: int, runs: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of each sample, in order; every sample has its share of every block."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(block_of))
    shuffled = shuffled[np.argsort(block_of[shuffled], kind="stable")]  # block after block, any order within
    sizes = np.bincount(block_of)
    within = np.arange(len(block_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = (within + rng.random(len(within))) / np.repeat(sizes, sizes)
    even = shuffled[np.argsort(places, kind="stable")]
    return [np.sort(even[run * size : (run + 1) * size]) for run in range(runs)]


def _left_out(
    x: NDArray[np.float64], block_of: NDArray[np.int64], blocks: int, bandwidth: float, threads: int | None
) -> tuple[float, NDArray[np.float64]]:
    """Return H, and H without each of the blocks; all from the kernel sums over the blocks, which are computed once."""
    sums = np.array([log_kernel_sum(x, x[block_of == b], bandwidth, threads=threads) for b in range(blocks)])
    without = np.full(blocks, math.nan)
    for b in range(blocks):
        rest = block_of != b
        if rest.any():
            with np.errstate(divide="ignore"):
                others = np.logaddexp.reduce(np.delete(sums[:, rest], b, axis=0), axis=0)
            without[b] = math.log(rest.sum()) - others.mean()
    return math.log(len(x)) - float(np.logaddexp.reduce(sums, axis=0).mean()), without
