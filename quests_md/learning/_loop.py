"""The loop: train, explore, select, label, extend the index, and again; and the record of each generation."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import math
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CalibrationError, LearningError, OutputError
from ..files import FolderLock, write_atomically
from ..index import Index
from ..labelling import Queue, check_labels, make_executor
from ..sources import read_labelled
from ..training._records import TrainingRecord, write_record
from . import _stages as stages
from ._loop_folder import COLUMNS, Exploration, Folder, Generation, Labelled, Row, State, read_file
from ._residual_stage import fill_residuals
from ._settings import LearnConfig
from ._stages import Reporter, Silent, Work

__all__ = ["LearnResult", "learn"]

_CHECKED = 3  # training frames that are labelled again, to check the oracle


@dataclass(frozen=True)
class LearnResult:
    """How a loop ended.

    Attributes
    ----------
    status
        "converged"; "covered": the explorations are covered, but the force error is above its limit; "generations" or
        "labels": this limit is reached.
    reason
        The same in a sentence, with the numbers.
    generation
        The last generation.
    labels
        How many frames the loop labelled.
    force_error
        Root mean square error of a force component of the last potential on the held-out frames, in eV/Å.
    potential, index
        Folder of the last potential, and file of the index by which its explorations were judged.
    """

    status: str
    reason: str
    generation: int
    labels: int
    force_error: float
    potential: Path
    index: Path


def learn(config: LearnConfig, report: Reporter | None = None) -> LearnResult:
    """Run a loop until it ends, or go on with the loop in its folder.

    Parameters
    ----------
    config
        The settings.
    report
        Listens to the progress; default: nobody.

    Raises
    ------
    ConfigError
        The folder holds a loop with other settings.
    LearningError
        The explorations are not covered, and propose no frame to learn from.
    OracleError
        The oracle does not reproduce the labels of the training frames, or too many frames of a generation get none.
    TrainingError
        A training made no potential.
    OutputError, SourceError, CalibrationError, QueueError
        The folder, a file, a threshold or the queue cannot be used.
    """
    folder = Folder(Path(config.output).absolute())
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder.path}: cannot be made: {error.strerror or error}") from error
    lock = FolderLock(folder.path)
    try:
        with contextlib.ExitStack() as stack:
            state = State.open(folder.path, config)
            queue = Queue(folder.queue, tries=config.oracle.tries)
            executor = _Executor(config, stack, queue)
            work = Work(config, folder, state, queue, report or Silent(), executor)
            return _run_generations(work)
    finally:
        lock.release()


class _Executor:
    """Starts the executor of the oracle when it is first needed, and checks the oracle, once a day, on some frames."""

    def __init__(self, config: LearnConfig, stack: contextlib.ExitStack, queue: Queue) -> None:
        self._config, self._stack, self._queue = config, stack, queue
        self._executor: Executor | None = None

    def __call__(self) -> Executor:
        if self._executor is None:
            table = self._config.oracle
            self._executor = self._stack.enter_context(make_executor(table.executor, table.workers, table.scheduler))
            oracle, keys = table.oracle(), self._config.oracle.label_keys()
            if not self._queue.is_checked(oracle):
                frames = [atoms for file in self._config.training for atoms in read_labelled(file, **keys)]
                check_labels(oracle, self._executor, frames, _CHECKED)
                self._queue.mark_checked(oracle)
        return self._executor


def _run_generations(work: Work) -> LearnResult:
    if work.state.status == "running":
        work.report.stage(0, "check", _CHECKED)
        work.executor()  # before hours of exploring
    stages.prepare(work)
    first = _find_first(work)
    stages.verify_index(work, first)
    for generation in itertools.count(first):
        stages.train_potential(work, generation)
        fill_residuals(work, generation)
        explorations, ids = stages.run_explorations(work, generation), list[int]()
        result = _find_end(work, generation, explorations, any(one.n_candidates for one in explorations))
        if result is None:
            work.state.save(status="running", reason="")
            ids = stages.select_frames(work, generation, explorations)
        if result is None and not ids:
            result = _find_end(work, generation, explorations, False)
            if result is None:
                raise LearningError(_explain_stuck(work, generation, explorations))
        if result is not None:
            _record_generation(work, generation, explorations, result.status)
            work.state.save(status=result.status, reason=result.reason)
            return result
        stages.label_frames(work, generation, ids)
        stages.extend_index(work, generation)
        _record_generation(work, generation, explorations, None)
    raise AssertionError("unreachable")


def _find_first(work: Work) -> int:
    """Return the generation to go on with."""
    for generation in itertools.count():
        path = work.folder.record(generation)
        if not path.exists() or read_file(Generation, path).ended is not None:
            return generation
    raise AssertionError("unreachable")


def _find_end(work: Work, generation: int, explorations: list[Exploration], proposes: bool) -> LearnResult | None:
    """Return the result of the loop, or None if it goes on; `proposes` says whether there are frames to label."""
    stop = work.config.stop
    training = read_file(TrainingRecord, work.folder.trained(generation))
    error = float(_get_held_out(training)["force_rmse"])
    labels = len(stages.list_labels_before(work, generation))
    covered = all(stages.is_covered(exploration, stop.covered) for exploration in explorations)
    side = "below" if error < stop.force_error else "not below"
    measured = f"the force error on the held-out frames is {error:.4g} eV/Å, {side} the limit of {stop.force_error:g}"
    if covered and error < stop.force_error:
        status, reason = "converged", f"all {len(explorations)} explorations stay covered, and {measured}"
    elif covered and not proposes:
        status, reason = (
            "covered",
            f"all {len(explorations)} explorations stay covered and propose nothing, but {measured}",
        )
    elif generation + 1 >= stop.generations:
        status, reason = "generations", f"the limit of {stop.generations} generations is reached; {measured}"
    elif stop.labels is not None and labels >= stop.labels:
        status, reason = "labels", f"the limit of {stop.labels} labels is reached; {measured}"
    else:
        return None
    potential, index = work.folder.training(generation), work.folder.index(generation)
    return LearnResult(status, reason, generation, labels, error, potential, index)


def _explain_stuck(work: Work, generation: int, explorations: list[Exploration]) -> str:
    ends = "; ".join(f"{e.name}: {e.status}{f' ({e.reason})' if e.reason else ''}" for e in explorations[:5])
    return (
        f"generation {generation}: the explorations are not covered, and propose nothing new to label: {ends}. See the "
        f"logs in {work.folder.generation(generation)}; begin at a lower temperature, with a shorter timestep or more "
        "training frames, in another output"
    )


# -- the record of a generation ----------------------------------------------------------------------------------------


def _record_generation(work: Work, generation: int, explorations: list[Exploration], ended: str | None) -> None:
    """Write generation.json and learning.csv, and report the row."""
    folder = work.folder
    path = folder.labelled(generation)
    labels = read_file(Labelled, path) if path.exists() else Labelled()
    training = read_file(TrainingRecord, folder.trained(generation))
    seconds = work.state.seconds.get(str(generation), {})
    row = _make_row(work, generation, explorations, labels, training, seconds)
    known = Index.open(folder.index(generation)).residuals
    record = Generation(
        generation=generation,
        ended=ended,
        thresholds=work.thresholds,
        training=training,
        explorations=[exploration.relative_to(folder.path) for exploration in explorations],
        labels=labels,
        residuals=known[0].describe() if known else None,
        files=_hash_files(folder, generation),
        seconds=seconds,
        row=row,
    )
    write_record(folder.record(generation), record)
    _write_table(folder, generation)
    work.report.row(row.model_dump())


def _make_row(
    work: Work,
    generation: int,
    explorations: list[Exploration],
    labels: Labelled,
    training: TrainingRecord,
    seconds: dict[str, float],
) -> Row:
    held_out, index = _get_held_out(training), Index.open(work.folder.index(generation))
    halts = [exploration.first_halt for exploration in explorations if exploration.first_halt is not None]
    return Row(
        generation=generation,
        training_frames=len(training.frames),
        labels=len(stages.list_labels_before(work, generation)) + len(labels.done),
        labels_new=len(labels.done),
        failed=len(labels.failed),
        quarantined=len(labels.quarantined),
        force_rmse=held_out["force_rmse"],
        energy_rmse=held_out["energy_rmse"],
        covered_share=min(exploration.covered_share for exploration in explorations),
        first_halt_ps=min(halts, default=None),
        shortest_ps=min(exploration.time for exploration in explorations),
        select=max(work.thresholds["select"].values()),
        halt=max(work.thresholds["halt"].values()),
        select_at_10=_find_threshold(index, 0.1, work.state.watched or {}),
        select_at_1=_find_threshold(index, 0.01, work.state.watched or {}),
        index_size=len(index),
        seconds_train=seconds.get("train"),
        seconds_explore=seconds.get("explore"),
        seconds_select=seconds.get("select"),
        seconds_label=seconds.get("label"),
        seconds_extend=seconds.get("extend"),
    )


def _get_held_out(training: TrainingRecord) -> dict[str, Any]:
    """Return the errors on the held-out frames; None for nan."""
    assert training.errors.held_out is not None
    return training.errors.held_out.to_json()


def _find_threshold(index: Index, rate: float, watched: dict[str, int]) -> float | None:
    """Return the threshold of a false-alarm rate in this index; None if the calibration cannot give it."""
    try:
        found = None if index.calibration is None else index.calibration.false_alarm(rate, watched)
    except CalibrationError:
        return None
    return None if found is None else max(found.values())


def _hash_files(folder: Folder, generation: int) -> dict[str, str]:
    """Return the SHA-256 of the files of a generation, by their paths in the folder."""
    paths = [
        folder.index(generation),
        folder.selected(generation),
        folder.labelled(generation),
    ]
    paths += sorted(path for path in folder.training(generation).rglob("*") if path.is_file())
    return {path.relative_to(folder.path).as_posix(): _hash(path) for path in paths if path.exists()}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_table(folder: Folder, generation: int) -> None:
    """Write learning.csv, with the rows of this generation and all before."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for g in range(generation + 1):
        row = read_file(Generation, folder.record(g)).row
        writer.writerow([_format_cell(value) for _, value in row])
    write_atomically(folder.table, lambda file: file.write(text.getvalue().encode()))


def _format_cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
