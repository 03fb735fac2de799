"""The provisional reference: the environments that a run added, so that it does not keep them a second time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..information import Blocks, log_kernel_sum, log_kernel_sum_of_few, pack

__all__ = ["Provisional"]

# Rows are laid out for kernel sums when the others are more than this, and more than a quarter of those laid out: so
# what laying out costs in a run is some times the cost of the rows, and most sums are fast ones.
_LOOSE = 1024
_NEAR = 0.01  # bandwidths between an environment and a copy of it


class Provisional:
    """Rows of kept frames, by ordinal; they come and go."""

    def __init__(self, width: int, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._nothing = np.zeros(width)  # what is subtracted from the rows
        self._owners = np.empty(0, np.int64)  # ordinal of the frame of every row
        self._buffer = np.empty((0, width))  # the rows, and room for more
        self._blocks: Blocks | None = None  # of the first `_laid_out` rows
        self._laid_out = 0

    @classmethod
    def warm_up(cls, width: int, bandwidth: float) -> None:
        """Compile what is needed later, by asking every question once."""
        rows, trial = np.zeros((2, width)), cls(width, bandwidth)
        trial.add(0, rows, 1)
        trial.log_kernel_sum(rows, 1)
        trial.copies(rows, 1)
        trial._lay_out(1)
        trial.log_kernel_sum(rows, 1)

    def __len__(self) -> int:
        return len(self._owners)

    def log_kernel_sum(self, query: NDArray[np.float64], threads: int | None) -> NDArray[np.float64]:
        """Return ln K(q) against the rows, to 1e-10·max(1, |ln K|); −inf where there are none."""
        total = np.full(len(query), -np.inf)
        if not len(query):
            return total
        laid_out, loose = self._buffer[: self._laid_out], self._buffer[self._laid_out : len(self)]
        if self._blocks is not None:
            total = log_kernel_sum(query, laid_out, self._bandwidth, checked=True, blocks=self._blocks, threads=threads)
        if len(loose):
            few = log_kernel_sum_of_few(query, loose, self._bandwidth, centre=self._nothing, threads=threads)
            total = np.logaddexp(total, few)
        return total

    def copies(self, query: NDArray[np.float64], threads: int | None) -> NDArray[np.bool_]:
        """Return whether a row lies within h/100 of each query."""
        rows, narrow = self._buffer[: len(self)], _NEAR * self._bandwidth
        sums = log_kernel_sum_of_few(query, rows, narrow, centre=self._nothing, threads=threads)
        return np.asarray(sums > -0.5)

    def add(self, ordinal: int, rows: NDArray[np.float64], threads: int | None) -> None:
        """Add the rows of a kept frame."""
        n = len(self) + len(rows)
        if n > len(self._buffer):
            grown = np.empty((max(n, len(self._buffer) * 3 // 2), self._buffer.shape[1]))
            grown[: len(self)] = self._buffer[: len(self)]
            self._buffer = grown
            # The layout holds a view of the rows that it was made of: they live on until it is made anew.
        self._buffer[len(self) : n] = rows
        self._owners = np.append(self._owners, np.full(len(rows), ordinal))
        if n - self._laid_out > max(_LOOSE, self._laid_out // 4):
            self._lay_out(threads)

    def drop(self, ordinal: int, threads: int | None) -> None:
        """Take out the rows of a frame that is kept no longer."""
        stay = self._owners != ordinal
        self._buffer = self._buffer[: len(self)][stay]
        self._owners = self._owners[stay]
        self._blocks, self._laid_out = None, 0
        if len(self) > _LOOSE:
            self._lay_out(threads)

    def _lay_out(self, threads: int | None) -> None:
        self._laid_out = len(self)
        self._blocks = pack(self._buffer[: self._laid_out], self._bandwidth, threads=threads)
