"""The loop: train, explore, select, label, extend the index, and again."""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ..errors import LearningError, OutputError
from ..files import FolderLock
from ..oracle import Queue, check_labels, make_executor
from ..sources import read_labelled
from ._config import LearnConfig
from ._folder import Folder
from ._job import Exploration
from ._labelling import labelled
from ._progress import Reporter, Silent
from ._record import recorded
from ._stages import (
    Work,
    explored,
    extended,
    is_covered,
    labels_before,
    prepared,
    selected,
    trained,
    verified,
)
from ._state import State, read_json

__all__ = ["LearnResult", "learn"]

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
