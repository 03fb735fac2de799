"""Entropies of states and of windows of a trajectory, with errors from blocks of frames; units and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..information import DEFAULT_BANDWIDTH, log_kernel_sum
from ..notebook import Shown, Table, make_dataframe

__all__ = [
    "EV_PER_GPA",
    "K_B",
    "Entropies",
    "EntropyDifference",
    "Windows",
    "check_columns",
    "check_errors",
    "entropy_difference",
    "state_entropies",
    "window_entropies",
]

# -- units and tables --------------------------------------------------------------------------------------------------

K_B: float = 1.380649e-23 / 1.602176634e-19  # in eV/K; both are exact
EV_PER_GPA = 6.241509074e-3  # a GPa in eV/Å³


def check_columns(given: Mapping[str, ArrayLike], positive: tuple[str, ...] = ()) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a table as arrays (n,). All must be finite, and those in `positive` above zero.

    Raises
    ------
    InputError
        The columns differ in length, or a value is out of range. The message names the column and the first bad row.
    """
    found = {name: _to_column(name, values) for name, values in given.items()}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the columns of a table must be of one length: {lengths}")
    for name, values in found.items():
        bad = ~np.isfinite(values) | ((values <= 0) if name in positive else False)
        if bad.any():
            row, what = int(bad.argmax()), "positive numbers" if name in positive else "numbers"
            raise InputError(f"{name} must hold {what}, and row {row} (from 0) is {values[row]}")
    return found


def check_errors(name: str, error: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return standard errors (n,). A single number stands for all; without any, they are zero.

    Raises
    ------
    InputError
        There are not n of them, or one is negative or not finite.
    """
    if error is None:
        return np.zeros(n)
    values = np.broadcast_to(_to_numbers(name, error), (n,)) if np.ndim(error) == 0 else _to_column(name, error)
    if len(values) != n or not (np.isfinite(values) & (values >= 0)).all():
        raise InputError(f"{name} must hold {n} standard errors, none of them negative")
    return np.array(values)


def _to_column(name: str, values: ArrayLike) -> NDArray[np.float64]:
    column = _to_numbers(name, values)
    if column.ndim != 1:
        raise InputError(f"{name} must be a column (n,), not of shape {column.shape}")
    return column


def _to_numbers(name: str, values: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold numbers") from None


# -- the results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Entropies(Table):
    """Entropies of states, computed from equally many environments of each.

    Attributes
    ----------
    entropy
        (n_states,) in nats; the mean over `runs` samples.
    error
        (n_states,) standard errors, in nats; nan for a state of one frame.
    blocks
        (n_states,) number of blocks of frames that the error comes from.
    size
        Number of environments in a sample.
    runs
        Number of samples. No environment is in two of them.
    bandwidth
        In 1/Å.
    """

    _COLUMNS = ("entropy", "error", "blocks")

    entropy: NDArray[np.float64]
    error: NDArray[np.float64]
    blocks: NDArray[np.int64]
    size: int
    runs: int
    bandwidth: float

    @property
    def ceiling(self) -> float:
        """The largest possible entropy, ln `size`, in nats. Near it, an entropy cannot tell states apart."""
        return math.log(self.size)


@dataclass(frozen=True, repr=False)
class EntropyDifference(Shown):
    """The entropy of a second state minus that of a first one.

    Attributes
    ----------
    difference
        In nats.
    error
        Standard error, in nats, of independent states; nan if one of them has only one frame.
    entropies
        The entropies of the first and of the second state.
    """

    difference: float
    error: float
    entropies: Entropies


@dataclass(frozen=True, repr=False)
class Windows(Table):
    """Entropies along a trajectory.

    Attributes
    ----------
    first
        (n_windows,) the first frame of each window, counted from 0.
    last
        (n_windows,) the last frame of each window; it belongs to the window.
    entropies
        The entropies of the windows.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    entropies: Entropies

    def to_dataframe(self) -> Any:
        """Return a row for each window as a ``pandas.DataFrame``."""
        found = self.entropies
        return make_dataframe({"first": self.first, "last": self.last, "entropy": found.entropy, "error": found.error})


# -- entropies ---------------------------------------------------------------------------------------------------------

State = tuple[ArrayLike, ArrayLike]  # x (n_env, d) and frame_offsets (n_frames + 1,)


def state_entropies(
    states: Sequence[State],
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    size: int | None = None,
    runs: int = 1,
    blocks: int = 10,
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[float], object] | None = None,
) -> Entropies:
    """Compute the entropy H of each state, from equally many environments of each.

    H grows with the number of environments until they are dense at the bandwidth. So compare only entropies of equally
    many environments.

    Parameters
    ----------
    states
        For each state, descriptors (n_env, d) in 1/Å, and `frame_offsets` (n_frames + 1,): the rows of frame f are
        ``x[frame_offsets[f]:frame_offsets[f + 1]]``. Frames are in the order of time.
    bandwidth
        h, in 1/Å.
    size
        Number of environments in a sample, drawn evenly from all parts of the state. Default: the number of
        environments of the smallest state.
    runs
        Number of samples, without a common environment. H is their mean.
    blocks
        Number of blocks of consecutive frames that the error comes from. It is at most the number of frames.
    seed
        Seed of the draws.
    threads
        Number of threads. None takes all cores.
    report
        Called with the share of the states that is done.

    Raises
    ------
    InputError
        There are no states, a state has too few environments, the offsets do not fit the rows, or as
        `quests_md.information.log_kernel_sum`.
    """
    checked = [_check_state(f"state {i}", *state) for i, state in enumerate(states)]
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
        found.append(_compute_entropy(x, offsets, bandwidth, size, runs, blocks, seed, threads))
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
    blocks: int = 10,
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
        Number of frames in a window. Frames at the end that do not fill a window are left out.
    step
        Number of frames from the start of a window to the start of the next. Default: `width`.
    bandwidth, blocks, seed, threads, report
        As in `state_entropies`.

    Raises
    ------
    InputError
        The trajectory is shorter than a window; or as `state_entropies`.
    """
    rows, offsets = _check_state("the trajectory", x, frame_offsets)
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
    entropies = state_entropies(states, bandwidth, blocks=blocks, seed=seed, threads=threads, report=report)
    return Windows(first, first + width - 1, entropies)


def entropy_difference(
    first: State, second: State, bandwidth: float = DEFAULT_BANDWIDTH, **settings: Any
) -> EntropyDifference:
    """Compute the entropy of the second state minus that of the first, from equally many environments of both.

    Parameters
    ----------
    first, second
        States as in `state_entropies`, from independent runs.
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


def _check_state(name: str, x: ArrayLike, frame_offsets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows, offsets = np.asarray(x, dtype=np.float64), np.asarray(frame_offsets)
    if rows.ndim != 2:
        raise InputError(f"{name}: its descriptors must have shape (n, d), not {rows.shape}")
    whole = offsets.ndim == 1 and len(offsets) > 1 and np.issubdtype(offsets.dtype, np.integer)
    if not whole or offsets[0] != 0 or offsets[-1] != len(rows) or (np.diff(offsets) < 0).any():
        raise InputError(f"{name}: frame_offsets must be whole numbers that rise from 0 to the {len(rows)} rows")
    return rows, offsets.astype(np.int64)


def _compute_entropy(
    x: NDArray[np.float64],
    offsets: NDArray[np.int64],
    bandwidth: float,
    size: int,
    runs: int,
    blocks: int,
    seed: int,
    threads: int | None,
) -> tuple[float, float, int]:
    """Return the mean entropy of the samples, its error by the jackknife, and the number of blocks."""
    n_frames = len(offsets) - 1
    blocks = min(blocks, n_frames, size)
    block_of = np.repeat(np.arange(n_frames) * blocks // n_frames, np.diff(offsets))
    found = []
    for rows in _draw_samples(block_of, size, runs, seed):
        found.append(_leave_out_blocks(x[rows], block_of[rows], blocks, bandwidth, threads))
    whole = float(np.mean([entropy for entropy, _ in found]))
    if blocks < 2:
        return whole, math.nan, blocks
    without = np.mean([rest for _, rest in found], axis=0)
    return whole, float(np.sqrt((blocks - 1) / blocks * np.sum((without - without.mean()) ** 2))), blocks


def _draw_samples(block_of: NDArray[np.int64], size: int, runs: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the sorted rows of each sample. Every sample has its share of every block."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(block_of))
    shuffled = shuffled[np.argsort(block_of[shuffled], kind="stable")]  # by block, in random order within a block
    sizes = np.bincount(block_of)
    within = np.arange(len(block_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = (within + rng.random(len(within))) / np.repeat(sizes, sizes)
    even = shuffled[np.argsort(places, kind="stable")]
    return [np.sort(even[run * size : (run + 1) * size]) for run in range(runs)]


def _leave_out_blocks(
    x: NDArray[np.float64], block_of: NDArray[np.int64], blocks: int, bandwidth: float, threads: int | None
) -> tuple[float, NDArray[np.float64]]:
    """Return H, and H without each of the blocks. The kernel sums over each block are computed only once."""
    sums = np.array([log_kernel_sum(x, x[block_of == b], bandwidth, threads=threads) for b in range(blocks)])
    without = np.full(blocks, math.nan)
    for b in range(blocks):
        rest = block_of != b
        if rest.any():
            with np.errstate(divide="ignore"):
                others = np.logaddexp.reduce(np.delete(sums[:, rest], b, axis=0), axis=0)
            without[b] = math.log(rest.sum()) - others.mean()
    return math.log(len(x)) - float(np.logaddexp.reduce(sums, axis=0).mean()), without
