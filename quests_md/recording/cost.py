"""What watching costs a run."""

from __future__ import annotations

import math
import time

__all__ = ["Cost"]


class Cost:
    """The time that a session takes on this rank, from when it began.

    Attributes
    ----------
    seconds
        Time taken.
    n
        Evaluations.
    """

    def __init__(self) -> None:
        self.seconds, self.n = 0.0, 0
        self._atoms = 0
        self._clock: tuple[float, float] | None = None  # start of the first evaluation, end of the last

    def add(self, started: float, n_atoms: int) -> None:
        """Count an evaluation of this rank's `n_atoms`, which ends now."""
        first = started if self._clock is None else self._clock[0]
        self._clock = (first, time.perf_counter())
        self.seconds += self._clock[1] - started
        self._atoms += n_atoms

    @property
    def share(self) -> float:
        """Share of the wall time, from the first evaluation to the last; nan before the second."""
        if self._clock is None or self.n < 2:
            return float("nan")
        return self.seconds / (self._clock[1] - self._clock[0])

    def in_words(self) -> str:
        """Return the cost as the end of a sentence; empty where there is none."""
        text = f"; {1e6 * self.seconds / self._atoms:.1f} µs per atom and evaluation" if self._atoms else ""
        return text if math.isnan(self.share) else f"{text}, {100 * self.share:.2f} % of the run"
