"""What goes on, on stderr, on a terminal only: nothing of it gets into a log file or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["Counter", "counter"]

_Frame = TypeVar("_Frame")


class Counter:
    """What `counter` gives: says what goes on, counts frames that pass, or shows how much is done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._frames = 0
        self._task = progress.add_task("reading:", total=None, done="")

    def say(self, text: str) -> None:
        """Show another text."""
        self._progress.update(self._task, description=text)

    def begin(self, text: str) -> None:
        """Show another text, and count anew."""
        self._frames = 0
        self._progress.update(self._task, description=text, done="")

    def count(self, frames: Iterable[_Frame]) -> Iterator[_Frame]:
        """Pass frames through and count them."""
        for frame in frames:
            self._frames += 1
            self._progress.update(self._task, done=f"{self._frames} frames")
            yield frame

    def share(self, done: float) -> None:
        """Show how much of what goes on is done, between 0 and 1."""
        self._progress.update(self._task, done=f"{100 * done:.0f} %")


@contextmanager
def counter() -> Iterator[Counter]:
    """Show what goes on while the block runs."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Counter(progress)
