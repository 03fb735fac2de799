"""quests-md label: labels for the frames of a queue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import Halted
from ..oracle import EXECUTORS, Labelling, Oracle, Queue, check_labels, label, make_executor
from ..settings import make_settings, read_toml, tomllib
from ..sources import read_labelled
from . import EXIT_CODES

__all__ = ["label_command"]


def _keyword(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE pairs; a value that is no TOML is a text."""
    keywords: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise click.BadParameter(f"NAME=VALUE, not {text!r}")
        try:
            keywords[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            keywords[name] = value
    return keywords


@click.command("label")
@click.argument("queue_address", metavar="QUEUE")
@click.option("--calculator", required=True,
              help="A TOML file of an oracle or of a loop, or the import path of an ASE calculator.")  # fmt: skip
@click.option("--keyword", "keywords", multiple=True, metavar="NAME=VALUE", callback=_keyword,
              help="Of the calculator; VALUE as in TOML, or a text. May be repeated.")  # fmt: skip
@click.option("--wall-time", type=float, help="Seconds that a frame may take.  [default: that of the file, or 3600]")
@click.option("--max-force", type=float, help="In eV/Å; larger is not believed.  [default: that of the file, or 50]")
@click.option("--executor", "kind", default="local", show_default=True, type=click.Choice(EXECUTORS))
@click.option("--workers", type=click.IntRange(1), help="Calculations at once.  [default: 1, or all of a cluster]")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster: tcp://host:8786.")
@click.option("--limit", type=click.IntRange(1), help="Start no more calculations than this.")
@click.option("--check", metavar="LABELLED", help="Labelled frames, of which three are labelled again at the start.  "
              "[default: frames of the queue that this oracle has labelled]")  # fmt: skip
@click.option("--force", is_flag=True, help="Although the queue has labels of another oracle.")
@click.option("--tries", default=3, show_default=True, type=click.IntRange(1), help="Before a frame is given up.")
@click.option("--lease", default=600.0, show_default=True, help="Seconds until the claims of a killed program expire.")
def label_command(
    queue_address: str,
    calculator: str,
    keywords: dict[str, Any],
    kind: str,
    workers: int | None,
    scheduler: str | None,
    limit: int | None,
    check: str | None,
    force: bool,
    tries: int,
    lease: float,
    **options: float | None,
) -> None:
    """Label the frames that wait in QUEUE: energies, forces and stresses by any ASE calculator.

    QUEUE is a database file or an address of ase.db.

    Exit code: 0 nothing waits any more, or the limit is reached; 1 an error, or no frame got a label though some were
    tried; 3 told to stop, by Ctrl-C or SIGTERM.
    """
    oracle = _oracle(calculator, keywords, options)
    queue = Queue(queue_address, tries=tries, lease=lease, create=False)
    with _signals() as stop, _progress() as view:
        try:
            with make_executor(kind, workers, scheduler) as executor:
                _check(oracle, executor, queue, check, stop)
                at_once: int = executor.workers  # type: ignore[attr-defined]  # make_executor promises it
                label(queue, oracle, executor, workers=at_once, limit=limit, force=force, stop=stop, report=view.show)
        except Halted as error:
            view.say(str(error))
            code = EXIT_CODES["halted"]
        else:
            nothing = view.counts.done == 0 < view.counts.ended
            code = EXIT_CODES["failed" if nothing else "finished"]
    click.echo(view.summary(queue))
    raise click.exceptions.Exit(code)


def _oracle(calculator: str, keywords: dict[str, Any], options: dict[str, float | None]) -> Oracle:
    """Return the oracle of its file, the file of a loop or an import path, with what the options say instead."""
    path = Path(calculator)
    values: dict[str, Any]
    values = read_toml(path) if path.suffix == ".toml" or path.is_file() else {"calculator": calculator}
    if isinstance(values.get("oracle"), dict):  # the file of a loop
        from ..learning import LearnConfig  # with its hosts it takes a second

        values = LearnConfig.make(values, calculator).oracle.oracle().model_dump()
    values |= {name: value for name, value in options.items() if value is not None}
    given = values.get("keywords", {})
    if keywords and isinstance(given, dict):
        values["keywords"] = {**given, **keywords}
    return make_settings(Oracle, values, calculator)


def _check(oracle: Oracle, executor: Executor, queue: Queue, file: str | None, stop: Callable[[], bool]) -> None:
    """Label frames of the file, or of the queue where this oracle has labelled some, again."""
    if file is not None:
        frames = list(read_labelled(file))
    else:
        own = [entry.id for entry in queue.entries(["done"]) if entry.record.get("settings") == oracle.settings]
        frames = list(queue.labelled([own[0], own[len(own) // 2], own[-1]] if own else []))
    if frames:
        count = check_labels(oracle, executor, frames, stop=stop)
        click.echo(f"{count} frames that have labels get the same ones again")


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM be a question's answer; the second one acts as ever."""
    told = threading.Event()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        told.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield told.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _View:
    """A line on the terminal that changes, a line for each frame that gets no label, and the summary."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        self._event = (0, "")
        self.counts = Labelling()

    def say(self, text: str) -> None:
        """Print a line above the one that changes."""
        self._progress.console.print(f"quests-md: {text}", markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Labelling) -> None:
        """Show how far it is, and what a frame got instead of labels."""
        self.counts = counts
        event = counts.ended, counts.last  # the same may happen to a frame twice
        if event != self._event and not counts.last.endswith(": done"):
            self.say(counts.last)
        self._event = event
        each, left = counts.seconds_per_frame, counts.seconds_left
        parts = [f"{counts.done} done", f"{counts.failed + counts.quarantined} failed", f"{counts.running} running"]
        parts += [f"{counts.waiting} waiting"]
        if each is not None and left is not None:
            parts += [f"{each:.3g} s per frame", f"{_clock(left)} left"]
        self._progress.update(self._task, description=", ".join(parts))

    def summary(self, queue: Queue) -> str:
        """Return what has been done, and what the queue holds now."""
        counts = self.counts
        each = counts.seconds_per_frame
        speed = "" if each is None else f", {each:.3g} s per frame"
        states = ", ".join(f"{number} {state}" for state, number in queue.counts().items())
        return (
            f"{counts.done} frames labelled, {counts.failed} failed, {counts.quarantined} quarantined, "
            f"{counts.tries} tried in vain, in {_clock(counts.seconds)}{speed}\n{queue.name}: {states}"
        )


@contextmanager
def _progress() -> Iterator[_View]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _View(progress)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
