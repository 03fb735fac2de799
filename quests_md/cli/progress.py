"""What a verb says on stderr while it works: a line that changes on a terminal, else a line for each stage."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..hosts.mpi import launched_rank

__all__ = ["Counter", "is_off", "show_progress"]

QUIET = 2.0  # seconds that a verb may take before it says something where stderr is no terminal
_SWITCH = "QUESTS_MD_PROGRESS"  # an environment variable
_AGAIN = 30.0  # seconds between two lines of one stage

_Frame = TypeVar("_Frame")


class Counter:
    """What `show_progress` shows: the text of a stage, and a count of frames or a share of the work.

    Parameters
    ----------
    show
        It is called with the text and the count, whenever one of them changes.
    """

    def __init__(self, show: Callable[[str, str], object]) -> None:
        self._show = show
        self._text, self._done, self._frames = "reading:", "", 0
        self._first: tuple[float, float] | None = None  # the first share of a stage, and when it was told

    def say(self, text: str) -> None:
        """Show another text, and go on counting."""
        self._text, self._first = text, None
        self._show(self._text, self._done)

    def begin(self, text: str) -> None:
        """Show another text, and count from 0 again."""
        self._frames, self._done = 0, ""
        self.say(text)

    def count(self, frames: Iterable[_Frame]) -> Iterator[_Frame]:
        """Pass frames through and count them."""
        for frame in frames:
            self._frames += 1
            self.tell(f"{self._frames} frames")
            yield frame

    def share(self, done: float) -> None:
        """Show how much of the work is done, between 0 and 1, and how long the rest will take."""
        now, left = time.monotonic(), ""
        if self._first is None and done > 0.0:
            self._first = done, now  # before it, kernels may have been compiled: that tells nothing of the rest
        elif self._first is not None and self._first[0] < done < 1.0 and now - self._first[1] >= QUIET:
            rest = (now - self._first[1]) * (1.0 - done) / (done - self._first[0])
            left = f", {_format_time(rest)} left"
        self.tell(f"{100 * done:.0f} %{left}")

    def tell(self, done: str) -> None:
        """Show another count."""
        self._done = done
        self._show(self._text, done)


def _format_time(seconds: float) -> str:
    """Format a time that is left, as 12 s, 3 min or 2 h 5 min."""
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def is_off() -> bool:
    """Return whether the user wants to see no progress."""
    return os.environ.get(_SWITCH) == "off"


@contextmanager
def show_progress() -> Iterator[Counter]:
    """Show what the block does: on a terminal in one line that goes away; else in a line for each stage.

    Where stderr is no terminal nothing is said in the first seconds, so that a short verb says nothing; a long stage
    says again how far it is. Of several ranks only the first one speaks, and none with QUESTS_MD_PROGRESS=off.
    """
    console = Console(stderr=True)
    if launched_rank() > 0 or is_off():
        yield Counter(lambda text, done: None)
    elif console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[done]}")
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            task = progress.add_task("reading:", total=None, done="")
            yield Counter(lambda text, done: progress.update(task, description=text, done=done))
    else:
        lines = _Lines()
        try:
            yield Counter(lines.show)
        finally:
            lines.end()


class _Lines:
    """Says each stage once, in a line, and again from time to time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready, self._now, self._said, self._at = QUIET <= 0.0, ("", ""), "", 0.0
        # A stage may begin, and not report for minutes.
        self._timer = threading.Timer(min(QUIET, threading.TIMEOUT_MAX), self._begin)
        self._timer.daemon = True
        if not self._ready:
            self._timer.start()

    def show(self, text: str, done: str) -> None:
        with self._lock:
            self._now = text, done
            if self._ready:
                self._say()

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._ready = False

    def _begin(self) -> None:
        with self._lock:
            self._ready = True
            if self._now[0]:
                self._say()

    def _say(self) -> None:
        text, done = self._now
        if text != self._said or time.monotonic() > self._at + _AGAIN:
            self._said, self._at = text, time.monotonic()
            click.echo(f"quests-md: {f'{text} {done}'.strip()}", err=True)
