"""What the first frames of a choice hold: entropy, diversity and overlap, frame by frame."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import choice
from ..kernels._jit import over_rows
from ..kernels._simd_sum import ROWS

__all__ = ["Prefixes", "covered_shares"]

OVERLAP_THRESHOLD = 1e-5  # dH below which an environment is covered, as QUESTS has it


class Prefixes:
    """Chosen frames, in their order, and the entropy and diversity of every first few of them.

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
            factor=factor_of(bandwidth),
        )
        self._sums = np.zeros((64, ROWS))  # of every row, over all rows up to the last frame that was measured
        self._is_row = np.zeros((64, ROWS), dtype=np.bool_)  # whether this place of a group has a row

    @property
    def n_env(self) -> NDArray[np.int64]:
        """How many environments the first frames have: (n_frames,)."""
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
        """Compute entropy and diversity up to the last frame."""
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
                fields[name] = _larger(fields[name], missing)
        self.chosen = choice.Chosen(**fields)
        if groups:
            self._sums, self._is_row = _larger(self._sums, groups), _larger(self._is_row, groups)


def _larger(array: NDArray[Any], missing: int) -> NDArray[Any]:
    """Return an array that is longer by what is missing, and at least twice as long."""
    return np.concatenate([array, np.zeros((max(missing, len(array)), *array.shape[1:]), array.dtype)])


def factor_of(bandwidth: float) -> float:
    """Return by what rows are multiplied, so that a kernel is 2^(−‖q − r‖²)."""
    return math.sqrt(0.5 * math.log2(math.e)) / bandwidth


def covered_shares(x: NDArray[np.floating], n: int, prefixes: Prefixes) -> NDArray[np.float64]:
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
