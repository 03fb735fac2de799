"""What the first frames of a choice hold: entropy, diversity and overlap, frame by frame."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..kernels import choice
from ..kernels._jit import over_rows

__all__ = ["Prefixes", "covered_shares"]

OVERLAP_THRESHOLD = 1e-5  # dH below which an environment is covered, as QUESTS has it


class Prefixes:
    """Chosen frames, in their order, and the entropy and diversity of every first few of them.

    Every pair of environments is looked at once, when the later of their frames is added.

    Parameters
    ----------
    width
        Columns of a descriptor.
    bandwidth
        h, in 1/Å.
    """

    def __init__(self, width: int, bandwidth: float, threads: int | None) -> None:
        self._scale, self.threads = 0.5 / bandwidth**2, threads
        self._rows = np.zeros((1024, padded(width)))
        self._ends = np.zeros(64, dtype=np.int64)
        self._sums = np.zeros(len(self._rows))
        self.n_frames = 0
        self.entropy: list[float] = []
        self.diversity: list[float] = []

    @property
    def chosen(self) -> choice.Chosen:
        """What the kernels take."""
        return choice.Chosen(self._rows, self._ends, self._scale)

    @property
    def n_env(self) -> NDArray[np.int64]:
        """How many environments the first frames have: (n_frames,)."""
        return self._ends[1 : self.n_frames + 1].copy()

    def add(self, rows: NDArray[np.floating]) -> None:
        """Add a frame."""
        begin = int(self._ends[self.n_frames])
        end = begin + len(rows)
        self._make_room(end)
        self._rows[begin:end, : rows.shape[1]] = rows
        self._ends[self.n_frames + 1] = end
        self.n_frames += 1

    def measure(self) -> None:
        """Compute entropy and diversity up to the last frame."""
        chosen, sums = self.chosen, self._sums
        while len(self.entropy) < self.n_frames:
            frame = len(self.entropy)
            begin, end = self._ends[frame : frame + 2].tolist()
            parts = np.empty((-(-end // choice.PART), end - begin))

            def task(first: int, last: int, frame: int = frame, parts: NDArray[np.float64] = parts) -> None:
                choice.join(chosen, frame, first, last, sums, parts)

            over_rows(task, len(parts), self.threads, 4)
            sums[begin:end] += parts.sum(axis=0)
            self.entropy.append(math.log(end) - float(np.mean(np.log(sums[:end]))))
            self.diversity.append(math.log(float(np.sum(1.0 / sums[:end]))))

    def _make_room(self, rows: int) -> None:
        if rows > len(self._rows):
            more = max(rows, 2 * len(self._rows)) - len(self._rows)
            self._rows = np.concatenate([self._rows, np.zeros((more, self._rows.shape[1]))])
            self._sums = np.concatenate([self._sums, np.zeros(more)])
        if self.n_frames + 2 > len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros_like(self._ends)])


def padded(width: int) -> int:
    """Return the width at which rows are whole vectors of double precision."""
    return -(-width // 16) * 16


def covered_shares(
    x: NDArray[np.floating], n: int, prefixes: Prefixes
) -> NDArray[np.float64]:
    """Compute the overlap of all environments with the first 1, 2, ... n chosen frames.

    Returns
    -------
    ndarray
        (n,) shares of the rows of `x` with dH below 1e-5 against the chosen frames.
    """
    enough = math.exp(-OVERLAP_THRESHOLD)
    chosen, needed = prefixes.chosen, np.empty(len(x), dtype=np.int64)
    over_rows(
        lambda first, last: choice.covered_by(x, chosen, n, enough, first, last, needed),
        len(x), prefixes.threads, choice.PART,
    )  # fmt: skip
    return np.cumsum(np.bincount(needed, minlength=n + 2)[1 : n + 1]) / len(x)
