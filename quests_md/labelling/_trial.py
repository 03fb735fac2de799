"""One frame, calculated to see whether an oracle works and what a queue will take; no try is spent."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ..errors import QueueError
from ._compute import Outcome, await_outcome, make_task, run_task
from ._oracle_settings import Oracle
from ._queue import Queue

__all__ = ["Trial", "try_frame"]


@dataclass(frozen=True)
class Trial:
    """What one calculation took, and what the frames that wait will take.

    Attributes
    ----------
    id, natoms
        The frame, and how many atoms it has.
    outcome
        Of its calculation. `record` has the mesh, the steps of the self-consistency and the memory.
    waiting
        How many frames wait.
    shortest, longest
        Seconds of one worker that they will take, if the time is proportional to the number of atoms, and if to its
        third power.
    """

    id: int
    natoms: int
    outcome: Outcome
    waiting: int
    shortest: float
    longest: float


def try_frame(queue: Queue, oracle: Oracle, executor: Executor, *, stop: Callable[[], bool] | None = None) -> Trial:
    """Calculate the first frame that waits, and change nothing in the queue.

    Parameters
    ----------
    queue
        The frames. If none waits, its first frame is taken.
    oracle
        What calculates.
    executor
        Where it runs.
    stop
        Called several times a second; `Halted` is raised when it returns True.

    Returns
    -------
    Trial
        The outcome, which may be a problem; and an estimate.

    Raises
    ------
    OracleError
        The calculator cannot be made.
    QueueError
        The queue is empty, or cannot be used.
    """
    waiting = queue.entries(["waiting"])
    entries = waiting or queue.entries()
    if not entries:
        raise QueueError(f"{queue.name}: there is no frame in it: add some with `quests-md queue add`")
    first = entries[0]
    atoms = queue.atoms(first.id)
    outcome = await_outcome(executor.submit(run_task, make_task(oracle, atoms)), stop)
    sums = [sum((entry.natoms / first.natoms) ** power for entry in waiting) for power in (1, 3)]
    shortest, longest = sorted(outcome.seconds * each for each in sums)
    return Trial(first.id, first.natoms, outcome, len(waiting), shortest, longest)
