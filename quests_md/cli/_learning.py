"""How far a loop is: a line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["COLUMNS", "Bar", "Lines", "terminal"]

# What is shown of a row: heading, column of learning.csv, format.
_SHOWN = (
    ("generation", "generation", "d"), ("frames", "training_frames", "d"), ("labels", "labels", "d"),
    ("failed", "failed", "d"), ("force error", "force_rmse", ".4f"), ("covered", "covered_share", ".4f"),
    ("first halt/ps", "first_halt_ps", ".3f"),
)  # fmt: skip
COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left:"),
    TimeRemainingColumn(),
)  # fmt: skip
# What a stage counts, if not frames.
_THINGS = {"explore": "explorations", "confirm": "explorations", "select": "candidates"}


class Lines:
    """A reporter that prints a line for each stage, and a table of the generations.

    Parameters
    ----------
    echo
        What prints a line.
    most
        The limit of generations.
    then
        What is called with each row.
    """

    def __init__(self, echo: Callable[[str], object], most: int, then: Callable[[dict[str, Any]], object]) -> None:
        self._echo, self._most, self._then = echo, most, then
        self._started = time.perf_counter()
        self._rows = 0

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Print what begins."""
        self._echo(stage_of(generation, name, total))

    def step(self, done: int, text: str = "") -> None:
        """Print what there is to say."""
        if text:
            self._echo(f"  {text}")

    def row(self, row: dict[str, Any]) -> None:
        """Print the row, and how long the limit of generations is away at most."""
        if not self._rows:
            self._echo("  ".join(heading for heading, _, _ in _SHOWN))
        self._rows += 1
        self._echo("  ".join(_cell(row[key], form).rjust(len(heading)) for heading, key, form in _SHOWN))
        left = max(0, self._most - row["generation"] - 1) * (time.perf_counter() - self._started) / self._rows
        if left:
            self._echo(f"  {_hours(left)} to the limit of {self._most} generations, if they take as long")
        self._then(row)


class Bar(Lines):
    """The same with a bar for the stage, and no line for it."""

    def __init__(self, progress: Progress, most: int, then: Callable[[dict[str, Any]], object]) -> None:
        # Reasons of failures hold brackets, which are no markup.
        super().__init__(lambda text: progress.console.print(text, markup=False, highlight=False), most, then)
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Show what begins, with an empty bar."""
        self._progress.reset(self._task, description=stage_of(generation, name, None), total=total)

    def step(self, done: int, text: str = "") -> None:
        """Move the bar."""
        super().step(done, text)
        self._progress.update(self._task, completed=done)


def stage_of(generation: int, name: str, total: int | None) -> str:
    """Return what a stage is called."""
    things = "" if total is None else f": {total} {_THINGS.get(name, 'frames')}"
    return f"generation {generation}: {name}{things}"


@contextmanager
def terminal(most: int, then: Callable[[dict[str, Any]], object]) -> Iterator[Lines]:
    """Give a reporter for the terminal, or for what stands in its place."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(lambda text: click.echo(text, err=True), most, then)
        return
    with Progress(*COLUMNS, console=console, transient=True) as progress:
        yield Bar(progress, most, then)


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
