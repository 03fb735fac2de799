"""Labelling: claim the frames that wait, calculate their labels, and write these to the queue."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Halted, InputError, OracleError, QueueError
from ..sources import name_what_is_there
from ._compute import Outcome, await_outcome, make_task, read_outcome, run_task
from ._entries import Claim
from ._oracle_settings import Oracle
from ._queue import Queue

if TYPE_CHECKING:
    import ase

__all__ = ["Labelling", "check_labels", "is_dead", "label"]

_GRACE = 120.0  # seconds beyond wall_time after which a worker that has not answered counts as lost


@dataclass
class Labelling:
    """The progress of a labelling.

    Attributes
    ----------
    done, failed, quarantined
        Number of frames that got labels; that were given up; and that were put aside, because their labels cannot be
        true or because they kill their process.
    tries
        Calculations that failed, and whose frames wait again.
    waiting, running
        Frames that wait; and frames that this labelling calculates now.
    seconds
        Seconds since the start.
    last
        What happened last, in words.
    """

    done: int = 0
    failed: int = 0
    quarantined: int = 0
    tries: int = 0
    waiting: int = 0
    running: int = 0
    seconds: float = 0.0
    last: str = ""

    @property
    def ended(self) -> int:
        """Calculations that have ended, with labels or without."""
        return self.done + self.failed + self.quarantined + self.tries

    @property
    def seconds_per_frame(self) -> float | None:
        """Wall-clock seconds for each calculation that has ended; None before the first."""
        return self.seconds / self.ended if self.ended else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until all waiting and running frames have ended; None before the first has ended."""
        each = self.seconds_per_frame
        return None if each is None else each * (self.waiting + self.running)


def label(
    queue: Queue,
    oracle: Oracle,
    executor: Executor,
    *,
    workers: int,
    limit: int | None = None,
    force: bool = False,
    stop: Callable[[], bool] | None = None,
    report: Callable[[Labelling], None] | None = None,
) -> Labelling:
    """Label the frames of a queue until none waits.

    Several labellings may share a queue. If a labelling ends early, by `stop` or an exception, its frames wait again;
    if it is killed, they wait again when their claims expire. A calculation that crashes costs one try of its frame.

    Parameters
    ----------
    queue
        The frames; their labels are written to it.
    oracle
        What calculates.
    executor
        Where calculations run: any executor of processes or threads that can call functions of this package.
    workers
        How many calculations run at once at most.
    limit
        How many calculations are started at most.
    force
        Label even if the queue has labels of another oracle.
    stop
        Called several times a second; the labelling stops when it returns True. Prefer it to an exception, such as
        Ctrl-C: that may come just after a frame was claimed, and then the frame waits until its claim expires.
    report
        Called after every change, and several times a second.

    Returns
    -------
    Labelling
        The counts.

    Raises
    ------
    OracleError
        The calculator cannot be made, the queue has labels of another oracle, or no worker answers any more.
    QueueError
        The database cannot be used.
    Halted
        `stop` returned True. The `with` of the executor kills the calculations that still run.
    """
    identity = _identify(oracle, executor, stop)
    if not force:
        _refuse_mixture(queue, oracle, identity)
    work = _Work(queue, oracle, executor, workers, limit, report or (lambda counts: None))
    try:
        work.run(stop or (lambda: False))
    finally:
        work.give_back()
    return work.counts


def _identify(oracle: Oracle, executor: Executor, stop: Callable[[], bool] | None) -> dict[str, Any]:
    """Make the calculator where it will run, and return its record; `OracleError` if it cannot be made there."""
    outcome = await_outcome(executor.submit(run_task, make_task(oracle, None)), stop)
    if outcome.problem:
        raise OracleError(f"{oracle.calculator} cannot be made: {outcome.reason}")
    return outcome.record


def _refuse_mixture(queue: Queue, oracle: Oracle, identity: dict[str, Any]) -> None:
    """Raise `OracleError` if the queue has labels of another calculator, other keywords or another version."""
    mine = {"settings": oracle.settings} | {key: identity.get(key) for key in ("code", "version")}
    for entry in queue.entries(["done"]):
        theirs = {key: entry.record.get(key) for key in mine}
        if theirs["settings"] is None:  # written by another program, without settings
            continue
        for key, value in mine.items():
            if theirs[key] != value:
                raise OracleError(
                    f"{queue.name}: frame {entry.id} was labelled by another oracle: {key} {theirs[key]}, and now "
                    f"{value}. Use the same oracle, another queue, or force it if the labels agree"
                )


class _Work:
    """The calculations of a labelling that are under way."""

    def __init__(
        self,
        queue: Queue,
        oracle: Oracle,
        executor: Executor,
        workers: int,
        limit: int | None,
        report: Callable[[Labelling], None],
    ) -> None:
        self._queue, self._oracle, self._executor, self._report = queue, oracle, executor, report
        self._slots, self._left = workers, limit
        self._name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"  # as `is_dead` reads it
        self._under_way: dict[Future[str], tuple[Claim, float]] = {}
        self._started, self._renewed = time.monotonic(), time.monotonic()
        self.counts = Labelling()

    def run(self, stop: Callable[[], bool]) -> None:
        """Keep as many calculations under way as there are workers, until nothing waits."""
        while self._fill():
            if stop():
                raise Halted(f"told to stop; {len(self._under_way)} frames that were being calculated wait again")
            each = min(self._queue.lease / 8, 0.5)
            ended, _ = wait(self._under_way, timeout=each, return_when=FIRST_COMPLETED)
            for future in ended:
                claim, _ = self._under_way[future]
                self._settle(claim, future)
                del self._under_way[future]
                self._tell_counts()
            self._give_up_silent()
            self._renew()
            self._tell_counts()  # how the time goes by

    def give_back(self) -> None:
        """Give back the frames that are under way, as if they had not been claimed."""
        for claim, _ in self._under_way.values():
            with contextlib.suppress(QueueError):  # the claim was lost, or will expire
                self._queue.release(claim)
        self._under_way.clear()

    def _fill(self) -> bool:
        """Claim frames for the workers that have none; return whether anything is under way."""
        while len(self._under_way) < self._slots and self._left != 0:
            try:
                claim = self._queue.claim(self._name)
            except QueueError:
                if not self._under_way:
                    raise
                break  # the calculations go on while the database does not answer
            if claim is None:
                break
            if self._left is not None:
                self._left -= 1
            future = self._executor.submit(run_task, make_task(self._oracle, claim.atoms))
            self._under_way[future] = claim, time.monotonic()
            self._tell_counts()
        if not self._slots and self._under_way == {}:
            raise OracleError(f"no worker answers: each was silent {_GRACE:g} s longer than wall_time")
        return bool(self._under_way)

    def _settle(self, claim: Claim, future: Future[str]) -> None:
        """Write the outcome of a calculation that has ended."""
        try:
            outcome = read_outcome(future.result())
        except OracleError:
            raise
        except Exception as error:  # noqa: BLE001 - each executor raises its own when a worker dies
            reason = f"its worker was lost: {type(error).__name__}: {error}"
            outcome = Outcome(None, "died", reason, 0.0, {})
        self._write(claim, outcome)

    def _write(self, claim: Claim, outcome: Outcome) -> None:
        labels, counts = outcome.labels, self.counts
        reason = f"{outcome.problem}: {outcome.reason}"
        if labels is not None:
            state = self._store(claim, lambda: self._queue.done(claim, labels, outcome.record), "done")
        elif outcome.problem == "insane" or (outcome.problem == "died" and self._always_dies(claim)):
            state = self._store(claim, lambda: self._queue.quarantine(claim, reason), "quarantined")
        else:
            state = self._store(claim, lambda: self._queue.fail(claim, reason))
        counts.done += state == "done"
        counts.failed += state == "failed"
        counts.quarantined += state == "quarantined"
        counts.tries += state == "waiting"
        counts.last = f"frame {claim.id}: {state}" + (f": {reason}" if labels is None else "")

    def _always_dies(self, claim: Claim) -> bool:
        """Return whether this is the last try of a frame, and each try before has killed its process."""
        if claim.tries < self._queue.tries:
            return False
        history = self._queue.entry(claim.id).history
        before = history[len(history) - claim.tries + 1 :]
        return all(event["what"] == "expired" or event["reason"].startswith("died") for event in before)

    def _store(self, claim: Claim, write: Callable[[], str | None], state: str = "") -> str:
        """Write to the queue and return the state of the frame; "lost" if another worker has it now.

        A label may have cost hours. So if the database does not answer, or its disk is full, this tries again until the
        claim has expired, and reports it.
        """
        until = time.monotonic() + self._queue.lease
        while True:
            try:
                return write() or state
            except QueueError as error:
                if self._lost(claim):
                    return "lost"
                if time.monotonic() > until:
                    raise
                self.counts.last = f"frame {claim.id}: what came out waits for the queue: {error}"
                self._report(self.counts)
            time.sleep(0.5)  # databases do not say when they answer again

    def _lost(self, claim: Claim) -> bool:
        """Return whether another worker has the frame; False while the database does not answer."""
        try:
            return not self._queue.holds(claim)
        except QueueError:
            return False

    def _renew(self) -> None:
        """Prolong the claims. Forget the frames that were lost: the workers that have them now write their labels."""
        if time.monotonic() < self._renewed + self._queue.lease / 4:
            return
        answered = True
        for future, (claim, _) in list(self._under_way.items()):
            try:
                self._queue.renew(claim)
            except QueueError:
                if self._lost(claim):
                    del self._under_way[future]
                else:
                    answered = False
        if answered:  # else try again at once: any worker could claim a frame whose claim expires
            self._renewed = time.monotonic()

    def _give_up_silent(self) -> None:
        """Fail the frames of workers that were silent for longer than a calculation may take, and use fewer workers."""
        now = time.monotonic()
        for future, (claim, since) in list(self._under_way.items()):
            if now > since + self._oracle.wall_time + _GRACE:
                self._slots -= 1
                reason = f"its worker is silent, {_GRACE:g} s longer than wall_time"
                self._write(claim, Outcome(None, "died", reason, now - since, {}))
                del self._under_way[future]
                self._tell_counts()

    def _tell_counts(self) -> None:
        with contextlib.suppress(QueueError):  # only claims and labels need an answer
            self.counts.waiting = self._queue.counts()["waiting"]
        self.counts.running = len(self._under_way)
        self.counts.seconds = time.monotonic() - self._started
        self._report(self.counts)


def is_dead(worker: str) -> bool:
    """Return whether the name of a worker, "NODE-PID-TOKEN", is that of a process of this machine that has ended."""
    node, _, rest = worker.partition(f"{platform.node()}-")
    pid, _, token = rest.partition("-")
    if node or not pid.isdigit() or not token:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # there is such a process, of another user
        pass
    return False


# -- frames that have labels already -----------------------------------------------------------------------------------


def check_labels(
    oracle: Oracle,
    executor: Executor,
    frames: Sequence[ase.Atoms],
    most: int = 3,
    *,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Label some frames again that have labels, and compare.

    Parameters
    ----------
    oracle
        What calculates. `energy_tolerance` applies per atom, `force_tolerance` to each component.
    executor
        Where the calculations run.
    frames
        Frames with energy and forces. If there are more than `most`: the first, the last, and others evenly between.
    most
        How many frames are labelled again.
    stop
        As in `label`.

    Returns
    -------
    int
        How many frames were labelled again.

    Raises
    ------
    OracleError
        A label differs from the stored one, or a frame gets none; the message has both values and the tolerance.
    InputError
        A frame has no energy or no forces.
    Halted
        `stop` returned True.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(most, len(frames)))})
    for i in chosen:
        if frames[i].calc is None or not {"energy", "forces"} <= set(frames[i].calc.results):
            raise InputError(
                f"frame {i} of those to check the oracle with has no energy and forces. {name_what_is_there(frames[i])}"
            )
    answers = {i: executor.submit(run_task, make_task(oracle, frames[i])) for i in chosen}
    for i, answer in answers.items():
        outcome = await_outcome(answer, stop)
        if outcome.labels is None:
            raise OracleError(f"frame {i} has labels, but gets none now: {outcome.problem}: {outcome.reason}")
        stored = frames[i].calc.results
        was, now = stored["energy"] / len(frames[i]), outcome.labels.energy / len(frames[i])
        _compare(i, "energy per atom", "eV", was, now, oracle.energy_tolerance)
        old, new = np.asarray(stored["forces"], dtype=float), outcome.labels.forces
        atom, axis = divmod(int(np.abs(new - old).argmax()), 3)
        what = f"component {'xyz'[axis]} of the force on atom {atom}"
        _compare(i, what, "eV/Å", float(old[atom, axis]), float(new[atom, axis]), oracle.force_tolerance)
    return len(chosen)


def _compare(frame: int, what: str, unit: str, stored: float, new: float, tolerance: float) -> None:
    if not abs(new - stored) <= tolerance:  # true for nan, too
        raise OracleError(
            f"the oracle no longer gives the labels that it gave: frame {frame}, {what}: stored {stored:.6f}, "
            f"new {new:.6f} {unit}, tolerance {tolerance:g}. Is it the same code, version and settings?"
        )
