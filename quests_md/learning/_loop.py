"""The loop: train, explore, select, label, extend the index, and again; and what is recorded of it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
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
from ._job import Exploration
from ._settings import LearnConfig
from ._stages import (
    Work,
    explored,
    extended,
    is_covered,
    labelled,
    labels_before,
    prepared,
    selected,
    trained,
    verified,
)
from ._state import Folder, Reporter, Silent, State, read_json, write_json

__all__ = ["COLUMNS", "LearnResult", "learn", "recorded"]

COLUMNS = (
    "generation", "training_frames", "labels", "labels_new", "failed", "quarantined", "force_rmse", "energy_rmse",
    "covered_share", "first_halt_ps", "shortest_ps", "select", "halt", "select_at_10", "select_at_1", "index_size",
    "seconds_train", "seconds_explore", "seconds_select", "seconds_label", "seconds_extend",
)  # fmt: skip
_RATES = {"select_at_10": 0.1, "select_at_1": 0.01}


def recorded(work: Work, generation: int, explorations: list[Exploration], ended: str | None) -> dict[str, Any]:
    """Write generation.json and learning.csv; return the row."""
    folder = work.folder
    labels: dict[str, list[int]] = {"done": [], "failed": [], "quarantined": []}
    if folder.labelled(generation).exists():
        labels = read_json(folder.labelled(generation))
    training = read_json(folder.trained(generation))
    record = {
        "generation": generation,
        "ended": ended,
        "thresholds": work.state.data["thresholds"],
        "training": training,
        "explorations": [_told(folder, exploration) for exploration in explorations],
        "labels": labels,
        "files": _hashes(folder, generation),
        "seconds": work.state.data["seconds"].get(str(generation), {}),
    }
    record["row"] = row = _row(work, generation, record, explorations)
    write_json(folder.record(generation), record)
    _write_table(folder, generation)
    return row


def _row(work: Work, generation: int, record: dict[str, Any], explorations: list[Exploration]) -> dict[str, Any]:
    before, labels = len(labels_before(work, generation)), record["labels"]
    held_out, index = record["training"]["errors"]["held_out"], Index.open(work.folder.index(generation))
    halts = [exploration.first_halt for exploration in explorations if exploration.first_halt is not None]
    return {
        "generation": generation,
        "training_frames": len(record["training"]["frames"]),
        "labels": before + len(labels["done"]),
        "labels_new": len(labels["done"]),
        "failed": len(labels["failed"]),
        "quarantined": len(labels["quarantined"]),
        "force_rmse": held_out["force_rmse"],
        "energy_rmse": held_out["energy_rmse"],
        "covered_share": min(exploration.covered_share for exploration in explorations),
        "first_halt_ps": min(halts, default=None),
        "shortest_ps": min(exploration.time for exploration in explorations),
        **{name: max(record["thresholds"][name].values()) for name in ("select", "halt")},
        **{name: _at_rate(index, rate, work.state.data["watched"]) for name, rate in _RATES.items()},
        "index_size": len(index),
        **{column: record["seconds"].get(column[8:]) for column in COLUMNS if column.startswith("seconds_")},
    }


def _at_rate(index: Index, rate: float, watched: dict[str, int]) -> float | None:
    """Return the threshold that a false-alarm rate comes to in this index; None where it cannot be told."""
    try:
        found = None if index.calibration is None else index.calibration.false_alarm(rate, watched)
    except CalibrationError:
        return None
    return None if found is None else max(found.values())


def _told(folder: Folder, exploration: Exploration) -> dict[str, Any]:
    """Return an exploration with its paths relative to the folder."""
    values = dataclasses.asdict(exploration)
    return {name: folder.relative(value) if isinstance(value, Path) else value for name, value in values.items()}


def _hashes(folder: Folder, generation: int) -> dict[str, str]:
    """Return the SHA-256 of what the generation is made of, by path."""
    paths = [
        folder.index(generation),
        folder.index(generation + 1),
        folder.selected(generation),
        folder.labelled(generation),
    ]
    paths += sorted(path for path in folder.training(generation).rglob("*") if path.is_file())
    return {folder.relative(path): _sha256(path) for path in paths if path.exists()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_table(folder: Folder, generation: int) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for g in range(generation + 1):
        row = read_json(folder.record(g))["row"]
        writer.writerow([_cell(row[name]) for name in COLUMNS])
    write_atomically(folder.table, lambda file: file.write(text.getvalue().encode()))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


_CHECKED = 3  # reference frames that are labelled again


@dataclass(frozen=True)
class LearnResult:
    """How a loop ended.

    Attributes
    ----------
    status
        "converged"; "covered": the explorations are, but the force error is above its limit; "generations" or "labels":
        that limit is reached.
    reason
        The same in a sentence, with the numbers.
    generation
        The last one.
    labels
        How many frames the loop labelled.
    force_error
        Root mean square error of the forces of the last potential on the held-out frames, in eV/Å.
    potential, index
        The folder of the last potential, and the file of the index that its explorations were judged by.
    """

    status: str
    reason: str
    generation: int
    labels: int
    force_error: float
    potential: Path
    index: Path


def learn(config: LearnConfig, report: Reporter | None = None) -> LearnResult:
    """Run the loop, or go on with the one in its folder, until it ends.

    Parameters
    ----------
    config
        What it is told.
    report
        Who is told how far it is; default nobody.

    Raises
    ------
    ConfigError
        The folder holds a loop with other settings.
    LearningError
        The explorations are not covered, and propose nothing that could be learned from.
    OracleError
        The oracle does not give the labels of the training frames again, or too many labels of a generation fail.
    TrainingError
        No potential came out of a training.
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
            oracle = _Oracle(config, stack)
            queue = Queue(folder.queue, tries=config.oracle.tries)
            work = Work(config, folder, state, queue, Silent() if report is None else report, oracle)
            return _generations(work)
    finally:
        lock.release()


class _Oracle:
    """Starts the oracle's executor when it is first needed, and labels some reference frames again."""

    def __init__(self, config: LearnConfig, stack: contextlib.ExitStack) -> None:
        self._config, self._stack = config, stack
        self._executor: Executor | None = None

    def __call__(self) -> Executor:
        if self._executor is None:
            table = self._config.oracle
            self._executor = self._stack.enter_context(make_executor(table.executor, table.workers, table.scheduler))
            frames = [atoms for file in self._config.training for atoms in read_labelled(file)]
            check_labels(table.oracle(), self._executor, frames, _CHECKED)
        return self._executor


def _generations(work: Work) -> LearnResult:
    if work.state.data["status"] == "running":
        work.report.stage(0, "check", _CHECKED)
        work.executor()  # before hours of exploring
    prepared(work)
    first = _first(work)
    verified(work, first)
    for generation in itertools.count(first):
        trained(work, generation)
        explorations, ids = explored(work, generation), list[int]()
        result = _ended(work, generation, explorations, any(one.n_candidates for one in explorations))
        if result is None:
            work.state.save(status="running", reason="")
            ids = selected(work, generation, explorations)
        if result is None and not ids:
            result = _ended(work, generation, explorations, False)
            if result is None:
                raise LearningError(_stuck(work, generation, explorations))
        if result is not None:
            work.report.row(recorded(work, generation, explorations, result.status))
            work.state.save(status=result.status, reason=result.reason)
            return result
        labelled(work, generation, ids)
        extended(work, generation)
        work.report.row(recorded(work, generation, explorations, None))
    raise AssertionError("unreachable")


def _first(work: Work) -> int:
    """Return the generation to go on with."""
    for generation in itertools.count():
        path = work.folder.record(generation)
        if not path.exists() or read_json(path)["ended"] is not None:
            return generation
    raise AssertionError("unreachable")


def _ended(work: Work, generation: int, explorations: list[Exploration], proposes: bool) -> LearnResult | None:
    """Return the end of the loop, or None where it goes on; `proposes`: there is something to label."""
    stop = work.config.stop
    error = float(read_json(work.folder.trained(generation))["errors"]["held_out"]["force_rmse"])
    labels = len(labels_before(work, generation))
    covered = all(is_covered(exploration, stop.covered) for exploration in explorations)
    side = "below" if error < stop.force_error else "not below"
    told = f"the force error on the held-out frames is {error:.4g} eV/Å, {side} the limit of {stop.force_error:g}"
    if covered and error < stop.force_error:
        status, reason = "converged", f"all {len(explorations)} explorations stay covered, and {told}"
    elif covered and not proposes:
        status, reason = "covered", f"all {len(explorations)} explorations stay covered and propose nothing, but {told}"
    elif generation + 1 >= stop.generations:
        status, reason = "generations", f"the limit of {stop.generations} generations is reached; {told}"
    elif stop.labels is not None and labels >= stop.labels:
        status, reason = "labels", f"the limit of {stop.labels} labels is reached; {told}"
    else:
        return None
    potential, index = work.folder.training(generation), work.folder.index(generation)
    return LearnResult(status, reason, generation, labels, error, potential, index)


def _stuck(work: Work, generation: int, explorations: list[Exploration]) -> str:
    ends = "; ".join(f"{e.name}: {e.status}{f' ({e.reason})' if e.reason else ''}" for e in explorations[:5])
    return (
        f"generation {generation}: the explorations are not covered, and propose nothing that is not labelled or has "
        f"failed already: {ends}. See the logs in {work.folder.generation(generation)}; begin at a lower temperature, "
        "with a shorter timestep or more training frames, in another output"
    )
