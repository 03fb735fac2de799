"""quests-md label and learn: labels for frames that wait, and the active-learning loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..errors import Halted, MissingExtraError
from ..files import write_atomically
from ..labelling import (
    EXECUTORS,
    Labelling,
    Oracle,
    Queue,
    Trial,
    check_labels,
    label,
    make_executor,
    try_frame,
)
from ..sources import read_labelled
from . import EXIT_CODES
from .calculators import keywords_option, read_oracle
from .datasets import reading_options
from .results import format_facts, format_table

__all__ = ["COLUMNS", "Bar", "Lines", "label_command", "learn_command"]

_GPA = 160.21766208  # GPa in 1 eV/Å³


# -- label -------------------------------------------------------------------------------------------------------------


@click.command("label")
@click.argument("queue_address", metavar="QUEUE")
@click.option("--calculator", required=True,
              help="A TOML file of an oracle or of a loop, or the import path of an ASE calculator.")  # fmt: skip
@keywords_option
@click.option("--wall-time", type=float, help="Seconds that a frame may take.  [default: that of the file, or 3600]")
@click.option("--max-force", type=float, help="In eV/Å; larger is not believed.  [default: that of the file, or 50]")
@click.option("--executor", "kind", default="local", show_default=True, type=click.Choice(EXECUTORS))
@click.option("--workers", type=click.IntRange(1), help="Calculations at once.  [default: 1, or all of a cluster]")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster: tcp://host:8786.")
@click.option("--cluster", metavar="FILE", help="Batch jobs to start, for --executor dask: a TOML file.")
@click.option("--limit", type=click.IntRange(1), help="Start no more calculations than this.")
@click.option("--check", metavar="LABELLED", help="Labelled frames, some of which are labelled again at the start.  "
              "[default: frames of the queue that this oracle has labelled, once a day]")  # fmt: skip
@click.option("--recheck", default=3, show_default=True, type=click.IntRange(0),
              help="How many labelled frames are labelled again at the start; 0: none.")  # fmt: skip
@click.option("--give-up", default=3, show_default=True, type=click.IntRange(0),
              help="Stop if the first frames, as many as this, fail in the same way; 0: go on.")  # fmt: skip
@click.option("--force", is_flag=True, help="Although the queue has labels of another oracle.")
@click.option("--tries", default=3, show_default=True, type=click.IntRange(1), help="Before a frame is given up.")
@click.option("--lease", default=600.0, show_default=True, help="Seconds until the claims of a killed program expire.")
@click.option("--test", is_flag=True, help="Calculate one frame, say what it took, and change nothing.")
@reading_options("energy", "forces", "stress")
def label_command(
    queue_address: str,
    calculator: str,
    keywords: dict[str, Any],
    kind: str,
    workers: int | None,
    scheduler: str | None,
    cluster: str | None,
    limit: int | None,
    check: str | None,
    recheck: int,
    give_up: int,
    force: bool,
    tries: int,
    lease: float,
    test: bool,
    reading: dict[str, Any],
    **options: Any,
) -> None:
    """Label the frames that wait in QUEUE: energies, forces and stresses by any ASE calculator.

    QUEUE is a database file or an address of ase.db.

    With --test one frame is calculated: its labels, mesh, time and memory are printed, and what the queue will take.

    Exit code: 0 nothing waits any more, or the limit is reached; 1 an error, or no frame got a label though some were
    tried; 3 told to stop, by Ctrl-C or SIGTERM.
    """
    keys = {name: reading.pop(name) for name in ("energy_key", "forces_key", "stress_key")}
    oracle = read_oracle(calculator, keywords, options | keys)
    reading |= oracle.label_keys()
    queue = Queue(queue_address, tries=tries, lease=lease, create=False)
    if test:
        with _catch_signals() as stop, make_executor(kind, workers, scheduler, cluster) as executor:
            trial = try_frame(queue, oracle, executor, stop=stop)
            click.echo(_describe_trial(trial, executor.workers))  # type: ignore[attr-defined]
        raise click.exceptions.Exit(EXIT_CODES["finished" if trial.outcome.labels else "failed"])
    with _catch_signals() as stop, _show_view() as view:
        try:
            with make_executor(kind, workers, scheduler, cluster) as executor:
                if recheck:
                    _check(oracle, executor, queue, check, recheck, reading, stop)
                at_once: int = executor.workers  # type: ignore[attr-defined]  # make_executor promises it
                label(
                    queue, oracle, executor, workers=at_once,
                    limit=limit, force=force, give_up=give_up, stop=stop, report=view.show,
                )  # fmt: skip
        except Halted as error:
            view.say(str(error))
            code = EXIT_CODES["halted"]
        else:
            nothing = view.counts.done == 0 < view.counts.ended
            code = EXIT_CODES["failed" if nothing else "finished"]
    click.echo(view.summary(queue))
    raise click.exceptions.Exit(code)


def _describe_trial(trial: Trial, workers: int) -> str:
    """Say what one calculation took, and what the frames that wait will take."""
    outcome, record = trial.outcome, trial.outcome.record
    facts: dict[str, Any] = {"frame": f"{trial.id}, {trial.natoms} atoms"}
    if outcome.labels is None:
        facts["no labels"] = f"{outcome.problem}: {outcome.reason}"
    else:
        labels = outcome.labels
        largest = np.linalg.norm(labels.forces, axis=1).max()
        facts["energy"] = f"{labels.energy:.6f} eV, {labels.energy / trial.natoms:.6f} eV/atom ({record['energy']})"
        facts["largest force"] = f"{largest:.4f} eV/Å"
        stress = "none" if labels.stress is None else " ".join(f"{value * _GPA:.3f}" for value in labels.stress)
        facts["stress"] = stress if labels.stress is None else f"{stress} GPa (xx yy zz yz xz xy)"
    if "mesh" in record:
        facts["k-points"] = f"{' × '.join(map(str, record['mesh']))}, {record['mesh_spacing']:g} 1/Å apart"
    facts |= {"SCF steps": record["scf_steps"]} if "scf_steps" in record else {}
    facts |= {"memory": f"{record['memory_MB']} MB, of the largest process"} if "memory_MB" in record else {}
    facts["time"] = f"{outcome.seconds:.3g} s"
    shortest, longest = (_format_time(seconds / workers) for seconds in (trial.shortest, trial.longest))
    span = shortest if shortest == longest else f"{shortest} to {longest}"
    facts["queue"] = f"{trial.waiting} frames wait: {span} with {workers} at once"
    return format_facts(facts)


def _check(
    oracle: Oracle,
    executor: Executor,
    queue: Queue,
    file: str | None,
    most: int,
    reading: dict[str, Any],
    stop: Callable[[], bool],
) -> None:
    """Label some frames again: those of the file; or, once a day, frames of the queue that this oracle has labelled."""
    if file is not None:
        frames = list(read_labelled(file, **reading))
    elif queue.is_checked(oracle):
        return
    else:
        own = [entry.id for entry in queue.entries(["done"]) if entry.record.get("settings") == oracle.settings]
        chosen = {own[i * (len(own) - 1) // max(most - 1, 1)] for i in range(most)} if own else ()
        frames = list(queue.labelled(chosen))
    if frames:
        count = check_labels(oracle, executor, frames, most, stop=stop)
        click.echo(f"{count} frames that have labels get the same ones again")
        if file is None:
            queue.mark_checked(oracle)


@contextmanager
def _catch_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C or SIGTERM has come. A second signal acts as usual."""
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
        self._notes = 0
        self.counts = Labelling()

    def say(self, text: str) -> None:
        """Print a line above the one that changes."""
        self._progress.console.print(f"quests-md: {text}", markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Labelling) -> None:
        """Show how far the labelling is, and why a frame got no label."""
        self.counts = counts
        for note in counts.notes[self._notes :]:
            self.say(note)
        self._notes = len(counts.notes)
        event = counts.ended, counts.last  # the same text may come twice
        if event != self._event and not counts.last.endswith(": done"):
            self.say(counts.last)
        self._event = event
        each, left = counts.seconds_per_frame, counts.seconds_left
        parts = [f"{counts.done} done", f"{counts.failed + counts.quarantined} failed", f"{counts.running} running"]
        parts += [f"{counts.waiting} waiting"]
        if each is not None and left is not None:
            parts += [f"{each:.3g} s per frame", f"{_format_time(left)} left"]
        self._progress.update(self._task, description=", ".join(parts))

    def summary(self, queue: Queue) -> str:
        """Summarise what was done, and what the queue holds now."""
        counts = self.counts
        each = counts.seconds_per_frame
        speed = "" if each is None else f", {each:.3g} s per frame"
        states = ", ".join(f"{number} {state}" for state, number in queue.counts().items())
        return (
            f"{counts.done} frames labelled, {counts.failed} failed, {counts.quarantined} quarantined, "
            f"{counts.tries} tried in vain, in {_format_time(counts.seconds)}{speed}\n{queue.name}: {states}"
        )


@contextmanager
def _show_view() -> Iterator[_View]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _View(progress)


def _format_time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


# -- learn -------------------------------------------------------------------------------------------------------------


# The table of generations: heading, column of learning.csv, format.
_SHOWN = (
    ("generation", "generation", "d"), ("frames", "training_frames", "d"), ("labels", "labels", "d"),
    ("failed", "failed", "d"), ("force error", "force_rmse", ".4f"), ("covered", "covered_share", ".4f"),
    ("first halt/ps", "first_halt_ps", ".3f"),
)  # fmt: skip
COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left:"),
    TimeRemainingColumn(),
)  # fmt: skip
# The things that a stage counts, if they are not frames.
_THINGS = {"explore": "explorations", "confirm": "explorations", "select": "candidates"}


class Lines:
    """A reporter that prints a line for each stage, and a table of the generations.

    Parameters
    ----------
    echo
        Function that prints a line.
    most
        The limit of generations.
    then
        Function that is called with each row.
    """

    def __init__(self, echo: Callable[[str], object], most: int, then: Callable[[dict[str, Any]], object]) -> None:
        self._echo, self._most, self._then = echo, most, then
        self._started = time.perf_counter()
        self._rows = 0

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Print the stage that begins."""
        self._echo(name_stage(generation, name, total))

    def step(self, done: int, text: str = "") -> None:
        """Print the text, if there is one."""
        if text:
            self._echo(f"  {text}")

    def row(self, row: dict[str, Any]) -> None:
        """Print the row, and the time that is left until the limit of generations."""
        shown = {heading: "-" if row[key] is None else format(row[key], form) for heading, key, form in _SHOWN}
        head, line = format_table([shown]).split("\n")
        if not self._rows:
            self._echo(head)
        self._rows += 1
        self._echo(line)
        left = max(0, self._most - row["generation"] - 1) * (time.perf_counter() - self._started) / self._rows
        if left:
            self._echo(f"  {_format_time(left)} to the limit of {self._most} generations, if they take as long")
        self._then(row)


class Bar(Lines):
    """The same with a bar for the stage, and no line for it."""

    def __init__(self, progress: Progress, most: int, then: Callable[[dict[str, Any]], object]) -> None:
        # markup=False: the reasons of failures may hold brackets.
        super().__init__(lambda text: progress.console.print(text, markup=False, highlight=False), most, then)
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Show the stage that begins, with an empty bar."""
        self._progress.reset(self._task, description=name_stage(generation, name, None), total=total)

    def step(self, done: int, text: str = "") -> None:
        """Move the bar."""
        super().step(done, text)
        self._progress.update(self._task, completed=done)


def name_stage(generation: int, name: str, total: int | None) -> str:
    """Return the name of a stage, for people."""
    things = "" if total is None else f": {total} {_THINGS.get(name, 'frames')}"
    return f"generation {generation}: {name}{things}"


@contextmanager
def make_reporter(most: int, then: Callable[[dict[str, Any]], object]) -> Iterator[Lines]:
    """Yield a reporter for a terminal, or for a file or pipe in its place."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(lambda text: click.echo(text, err=True), most, then)
        return
    with Progress(*COLUMNS, console=console, transient=True) as progress:
        yield Bar(progress, most, then)


@click.command("learn")
@click.argument("file", default="learn.toml", type=click.Path(dir_okay=False))
@click.option("--check", is_flag=True, help="Check the file, and stop.")
def learn_command(file: str, check: bool) -> None:
    """Run the loop that FILE (learn.toml by default) describes, or go on with it.

    Explore, select, label, train, extend the index, and again. Killed at any moment and started again, it goes on where
    it was. Rows of learning.csv are printed as they come; learning.png shows them (pip install 'quests_md[plot]').

    Exit code: 0 converged, 1 failed, 3 ended without: covered, but above the limit of the force error, or at a limit of
    generations or labels.
    """
    from ..learning import LearnConfig, learn

    config = LearnConfig.read(file)
    if check:
        click.echo(f"{file}: right")
        return
    output = Path(config.output)
    with make_reporter(config.stop.generations, lambda row: _draw(output)) as report:
        result = learn(config, report)
    click.echo(f"{result.status}: {result.reason}")
    labels = f"{result.labels} in {result.generation + 1} generations"
    click.echo(format_facts({"potential": result.potential, "index": result.index, "labels": labels}))
    click.echo(f"files in {output}" + ("" if _draw(output) else "; no learning.png: pip install 'quests_md[plot]'"))
    raise click.exceptions.Exit(EXIT_CODES["finished"] if result.status == "converged" else EXIT_CODES["halted"])


def _draw(output: Path) -> bool:
    """Draw learning.png; return False if matplotlib is not installed."""
    from ..report import generations

    try:
        figure = generations(output)
    except MissingExtraError:
        return False
    write_atomically(output / "learning.png", lambda png: figure.savefig(png, format="png", dpi=150))
    return True
