"""What a loop tells about how far it is."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Reporter", "Silent"]


class Reporter(Protocol):
    """Who is told what a loop does."""

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """A stage begins; `total` is how many things (frames, explorations) it has to do, None if unknown."""

    def step(self, done: int, text: str = "") -> None:
        """So many things of the stage are done; `text` says what was, where there is something to say."""

    def row(self, row: dict[str, Any]) -> None:
        """A generation has ended: its row of learning.csv, which has just been written."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Say nothing."""

    def step(self, done: int, text: str = "") -> None:
        """Say nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Say nothing."""
