"""What watching costs a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass
class Cost:
    """The time that a session takes on this rank, from when it began.

    Attributes
    ----------
    seconds
        Time taken.
    n, atoms
        Evaluations, and this rank's atoms in all of them.
    first, last
        When the first evaluation began, and when the last one ended, by ``time.perf_counter``.
    """

    seconds: float = 0.0
    n: int = 0
    atoms: int = 0
    first: float = math.nan
    last: float = math.nan

    @property
    def share(self) -> float:
        """Share of the wall time, from the first evaluation to the last; nan before the second."""
        return self.seconds / (self.last - self.first) if self.n > 1 else math.nan

    def in_words(self) -> str:
        """Return the cost as the end of a sentence; empty where there is none."""
        text = f"; {1e6 * self.seconds / self.atoms:.1f} µs per atom and evaluation" if self.atoms else ""
        return text if math.isnan(self.share) else f"{text}, {100 * self.share:.2f} % of the run"
