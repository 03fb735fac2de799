"""How often a run keeps a frame: at once what is new, and of copies fewer and fewer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

_TIMES = 4  # how many times as much as any frame before makes a frame new
_LEAST = 1.0  # nats above select: excesses below it are not told apart


@dataclass
class Pace:
    """The rule, and what it remembers: numbers, so that a run can be resumed.

    Frames count by the square of the number of their novel environments: one frame of a melt counts more than many of
    a crystal with an atom or two out of the ordinary, and a frame that is half covered counts a quarter.

    Attributes
    ----------
    most
        The largest number of novel environments that a frame of this run had.
    excess
        The largest of all novelties less `select`, in nats.
    seen, largest, passed
        Of the frames since the last one kept: their squares together, the largest of them, and how many frames.
    """

    most: int = 0
    excess: float = _LEAST
    seen: int = 0
    largest: int = 0
    passed: int = 0

    def look(self, n_novel: int, excess: float, kept: int, spare: int) -> str:
        """Take a frame with `n_novel` novel environments into account; return why to keep it, or "".

        `excess` is that of its worst environment, in nats. `kept` is how many frames the run kept until now: as many
        like the largest have to pass, and at least `spare`. So of frames that are all alike about the square root of
        twice their number is kept.
        """
        if not n_novel:
            return ""
        new, weight = n_novel > _TIMES * self.most or excess > _TIMES * self.excess, n_novel**2
        self.most, self.excess = max(self.most, n_novel), max(self.excess, excess)
        self.seen += weight
        self.largest = max(self.largest, weight)
        self.passed += 1
        if new:
            return "new"
        enough = self.seen >= max(spare, kept) * self.largest
        return "novel" if enough and weight * self.passed >= self.seen else ""

    def kept(self) -> None:
        """Start anew after a frame that is kept."""
        self.seen = self.largest = self.passed = 0
