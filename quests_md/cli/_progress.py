"""A counter on stderr, on a terminal only: nothing of it gets into a log file or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..frame import Frame

__all__ = ["Counter", "counter"]


class Counter:
    """What `counter` gives: says what goes on, and counts frames that pass."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("reading:", total=None)

    def say(self, text: str) -> None:
        """Show another text."""
        self._progress.update(self._task, description=text)

    def count(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Pass frames through and count them."""
        for frame in frames:
            self._progress.advance(self._task)
            yield frame


@contextmanager
def counter() -> Iterator[Counter]:
    """Show a counter while the block runs."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:g} frames"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Counter(progress)
