"""How often a run keeps a frame: at once what is new, and of copies fewer and fewer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

_TIMES = 2  # how many times as many novel environments as any frame before make a frame new


@dataclass
class Pace:
    """The rule, and what it remembers: all of it numbers, so that a run can be resumed.

    Attributes
    ----------
    most
        The largest number of novel environments that a frame of this run had.
    seen, largest, passed
        Of the frames since the last one kept: their novel environments together, the most of one, and how many frames.
    """

    most: int = 0
    seen: int = 0
    largest: int = 0
    passed: int = 0

    def look(self, n_novel: int, kept: int, spare: int) -> str:
        """Take a frame with `n_novel` novel environments into account; return why to keep it, or ""."""
        if not n_novel:
            return ""
        first = n_novel > _TIMES * self.most
        self.most = max(self.most, n_novel)
        self.seen += n_novel
        self.largest = max(self.largest, n_novel)
        self.passed += 1
        if first:
            return "new"
        enough = self.seen >= max(spare, kept) * self.largest
        return "novel" if enough and n_novel * self.passed >= self.seen else ""

    def kept(self) -> None:
        """Start anew after a frame that is kept."""
        self.seen = self.largest = self.passed = 0
