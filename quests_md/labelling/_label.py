"""Labelling: claim the frames that wait, calculate their labels, and write these to the queue."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Halted, InputError, OracleError, QueueError
from ..sources import name_what_is_there
from ._compute import Outcome, await_outcome, make_task, read_outcome, run_task
from ._entries import Claim, Entry
from ._oracle_settings import Oracle
from ._queue import Queue

if TYPE_CHECKING:
    import ase

__all__ = ["Labelling", "check_labels", "is_dead", "label"]

_DETAILS = re.compile(r"; kept: .*|\d+|\s+")  # of a reason: they differ between frames that fail in the same way
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
    notes
        What to know of the labels, each told once: that nobody can see whether they have converged, or that the meshes
        of k-points differ.
    """

    done: int = 0
    failed: int = 0
    quarantined: int = 0
    tries: int = 0
    waiting: int = 0
    running: int = 0
    seconds: float = 0.0
    last: str = ""
    notes: tuple[str, ...] = ()

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
    give_up: int = 0,
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
    give_up
        Stop with an error if the first frames, as many as this, all fail in the same way. Each of them has lost one
        try, and no other frame has. 0: go on. A queue that has labels of this oracle goes on, too.
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
        The calculator cannot be made, the queue has labels of another oracle, the first frames fail in the same way, or
        no worker answers any more.
    QueueError
        The database cannot be used.
    Halted
        `stop` returned True. The ``with`` of the executor kills the calculations that still run.
    """
    identity = _identify(oracle, executor, stop)
    done = queue.entries(["done"])
    if not force:
        _refuse_mixture(queue, done, oracle, identity)
    work = _Work(queue, oracle, executor, workers, limit, report or (lambda counts: None), identity)
    work.counts.notes = _note_untold(oracle, identity)
    work.give_up = give_up
    for entry in done:
        work.compare_meshes(entry.id, entry.record)
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


def _refuse_mixture(queue: Queue, done: Sequence[Entry], oracle: Oracle, identity: Mapping[str, Any]) -> None:
    """Raise `OracleError` if the queue has labels of another calculator, other keywords or another version."""
    mine = {"settings": oracle.settings} | {key: identity.get(key) for key in ("code", "version")}
    for entry in done:
        theirs = {key: entry.record.get(key) for key in mine}
        if theirs["settings"] is None:  # written by another program, without settings
            continue
        for key, value in mine.items():
            if theirs[key] != value:
                raise OracleError(
                    f"{queue.name}: frame {entry.id} was labelled by another oracle: {key} {theirs[key]}, and now "
                    f"{value}. Use the same oracle, another queue, or force it if the labels agree"
                )


def _note_untold(oracle: Oracle, identity: Mapping[str, Any]) -> tuple[str, ...]:
    if not identity.get("untold"):
        return ()
    return (
        f"how the program of {oracle.calculator} says that it has not converged is not known here: see that it, or its "
        "calculator, ends with an error then",
    )


_SPREAD = 1.5  # how many times coarser the mesh of one frame may be than that of another before it is told


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
        identity: Mapping[str, Any],
    ) -> None:
        self._queue, self._oracle, self._executor, self._report = queue, oracle, executor, report
        self._slots, self._left = workers, limit
        self._version = {key: identity[key] for key in ("program_version",) if key in identity}
        self._name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"  # as `is_dead` reads it
        self._under_way: dict[Future[str], tuple[Claim, float]] = {}
        self._started, self._renewed = time.monotonic(), time.monotonic()
        self.counts = Labelling()
        self.give_up = 0
        self._failures: dict[int, str] = {}  # while no frame has got labels: what was wrong with which frame
        self._works = False
        self._meshes: dict[float, int] = {}  # the coarsest and the finest mesh so far, and of which frame

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
                claim = self._claim()
            except QueueError:
                if not self._under_way:
                    raise
                break  # the calculations go on while the database does not answer
            if claim is None:
                break
            if self._left is not None:
                self._left -= 1
            future = self._executor.submit(run_task, make_task(self._oracle, claim.atoms, again=claim.tries > 1))
            self._under_way[future] = claim, time.monotonic()
            self._tell_counts()
        if not self._slots and self._under_way == {}:
            raise OracleError(f"no worker answers: each was silent {_GRACE:g} s longer than wall_time")
        return bool(self._under_way)

    def _claim(self) -> Claim | None:
        """Claim a frame: first one that has not failed here, as long as no other has got labels."""
        if self.give_up and not self._works:
            claim = self._queue.claim(self._name, skip=self._failures)
            if claim is not None or self._under_way:
                return claim
        return self._queue.claim(self._name)

    def _compare_failures(self, claim: Claim, outcome: Outcome) -> None:
        """Raise `OracleError` if the first frames have failed in the same way, and none has got labels."""
        if not self.give_up or self._works:
            return
        self._failures[claim.id] = f"{outcome.problem}: {outcome.reason}"
        kinds = {_DETAILS.sub("", reason) for reason in self._failures.values()}
        if len(self._failures) < self.give_up:
            return
        self._works = len(kinds) > 1 or self._has_labels()
        if not self._works:
            ids = ", ".join(map(str, sorted(self._failures)))
            raise OracleError(
                f"frames {ids}, the first ones, have failed in the same way, so the oracle's settings are to blame: "
                f"{self._failures[claim.id]}. The other frames wait; those that failed have lost one try"
            )

    def _has_labels(self) -> bool:
        done = self._queue.entries(["done"])
        return any(entry.record.get("settings") == self._oracle.settings for entry in done)

    def compare_meshes(self, id: int, record: Mapping[str, Any]) -> None:
        """Note it, once, if the meshes of k-points of two frames differ much in density."""
        spacing = record.get("mesh_spacing")
        if spacing is None or self._oracle.kspacing is not None or len(self._meshes) > 2:
            return
        both = {**self._meshes, float(spacing): id}
        fine, coarse = min(both), max(both)
        self._meshes = {fine: both[fine], coarse: both[coarse]}
        if coarse > _SPREAD * fine:
            self.counts.notes += (
                f"k-points are {coarse:.3g} 1/Å apart in frame {both[coarse]} and {fine:.3g} 1/Å in frame "
                f"{both[fine]}, since all frames have one mesh: give the oracle kspacing instead, and label anew",
            )
            self._meshes = {0.0: 0, 1.0: 0, 2.0: 0}  # told

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
        record = self._version | outcome.record
        if labels is not None:
            state = self._store(claim, lambda: self._queue.done(claim, labels, record), "done")
        elif outcome.problem == "insane" or (outcome.problem == "died" and self._always_dies(claim)):
            state = self._store(claim, lambda: self._queue.quarantine(claim, reason), "quarantined")
        else:
            state = self._store(claim, lambda: self._queue.fail(claim, reason))
        self._works = self._works or state == "done"
        if labels is not None:
            self.compare_meshes(claim.id, record)
        counts.done += state == "done"
        counts.failed += state == "failed"
        counts.quarantined += state == "quarantined"
        counts.tries += state == "waiting"
        counts.last = f"frame {claim.id}: {state}" + (f": {reason}" if labels is None else "")
        if labels is None and state != "lost":
            self._compare_failures(claim, outcome)

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
