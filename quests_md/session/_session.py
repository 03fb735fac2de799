"""A watched run and its files."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import itertools
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..comm import Comm, Serial, raise_together
from ..config import RunConfig
from ..errors import Halted, InputError, MonitorError, OutputError, QuestsError
from ..frame import Frame
from ..index import Index, Live
from ..monitor import Band, Decision, Moment, Monitor
from ..settings import seconds_of
from ..sinks import RunFolder
from ._candidates import Candidates
from ._cost import Cost
from ._describe import describe
from ._ending import Ending
from ._film import Film
from ._hooks import Hook, Hooks
from ._live import Learning, reference_of
from ._resume import Past, find_past, mode_of, state_of_event
from ._writer import Writer

__all__ = ["Session"]


class Session:
    """Watch a run and keep its files.

    They are monitor.csv, events.jsonl, run.json, and candidates, cutouts, history, implausible and last.extxyz; and
    live.qindex, if the monitor's reference is a live one.

    Parameters
    ----------
    monitor
        What decides.
    output
        Folder of the files; made if it is not there.
    overwrite
        Replace the files of an earlier run in that folder.
    resume
        Go on with the run in that folder, if it holds one: counters, events, what was kept, the budget. A step that has
        its row is evaluated, but neither written nor counted again. Another index or other settings that decide are
        refused, unless this is "anyway".
    history, after
        When an event begins, so many evaluated frames before it are written to history.extxyz, and so many after it.
    novelty
        Save a candidate only if it adds information to the index and to what this run has kept.
    budget
        Most candidates to keep, the most informative ones; None: no limit. Needs `novelty`.
    cutout
        Cut small cells or clusters around the worst atoms of every candidate, to cutouts.extxyz: `radius` and, if
        wanted, `margin` or `potential_range`, `shape`, `vacuum`, `passivate` and `most` of `selection.cutouts`.
    on_select, on_halt
        Function of the whole frame and the decision, called on rank 0 when a candidate has been saved and when the
        run is told to stop; or a command as a list of arguments, with the fields {output}, {run}, {step}, {event}
        and {max}. What a function raises ends the watching.
    on_event
        The same when an event begins and when it ends: function of the `Event`.
    on_error
        "stop": what fails ends the run. "warn": the run goes on without being watched, and dH is inf from then on.
    wall_time
        The run is told to stop at the first evaluation after so many seconds, or after that time as "hh:mm:ss".
        SIGTERM does the same.
    host
        Name of the program that moves the atoms, for run.json.

    Attributes
    ----------
    decision
        The last evaluated one, or None.
    n_evaluated, n_flagged
        Frames evaluated so far, and those above `select` among them.
    status
        "running", "finished", "halted" or "failed".
    reason
        Why it was halted or has failed, in words.
    given_up
        Whether watching has failed and the run goes on without it.
    seconds
        What watching has taken on this rank, since this session began.
    counter
        Counts 0, 1, 2, ... for hosts that know no step: whoever shares the session takes the next one.

    Raises
    ------
    OutputError
        The folder holds an earlier run and neither `overwrite` nor `resume` says what to do with it, another run is
        writing to it, or it cannot be written. On all ranks.
    InputError
        A value is out of range.
    """

    def __init__(
        self,
        monitor: Monitor,
        output: str | Path = "uq",
        *,
        overwrite: bool = False,
        resume: bool | str = False,
        history: int = 0,
        after: int = 0,
        novelty: bool = True,
        budget: int | None = None,
        cutout: Mapping[str, Any] | None = None,
        on_select: Hook | None = None,
        on_halt: Hook | None = None,
        on_event: Hook | None = None,
        on_error: str = "stop",
        wall_time: float | str | None = None,
        host: str = "python",
    ) -> None:
        mode, limit = mode_of(resume, overwrite), None if wall_time is None else seconds_of(wall_time)
        if on_error not in ("stop", "warn"):
            raise InputError(f'on_error must be "stop" or "warn", not {on_error!r}')
        self.monitor = monitor
        self.output = Path(output).absolute()  # the program may change its folder
        self.host = host
        self.settings: dict[str, Any] = {
            "history": history,
            "after": after,
            "novelty": novelty,
            "budget": budget,
            "cutout": cutout,
        }
        self.decision: Decision | None = None
        self.n_evaluated = self.n_flagged = 0
        self.status, self.given_up = "running", False
        self.counter = itertools.count()
        self.reason = ""
        self._ended, self._on_error = False, on_error
        self._run = 1
        # (run, step) of the last row, and of the last halt that was acknowledged
        self._row: tuple[int, int] | None = None
        self._newest: tuple[int, int] | None = None  # of the rows in the file
        self._acknowledged: tuple[int, int] | None = None
        self._resolved = monitor.thresholds.resolved is not None
        self._began = datetime.datetime.now(datetime.timezone.utc)
        self._cost = Cost()
        self._files = RunFolder(self.output)
        self._writer = Writer(self._files, monitor.comm)
        self._film = Film(history, after, self._writer)
        self._learning = Learning(monitor, self._files, self._writer)
        self._candidates = Candidates(monitor, self._writer, novelty, budget, cutout)
        self._hooks = Hooks(self.output, {"on_select": on_select, "on_halt": on_halt, "on_event": on_event})
        self._past: Past | None = None
        if mode:
            self._learning.resume()
            self._past = find_past(self._files, self._writer.on_root, monitor.comm, self._describe(), mode)
        if self._past is None:
            self._writer.on_root(lambda: self._files.prepare(self._describe(), overwrite))
        else:
            self._resume(self._past)
        monitor.warm_up(self._candidates.warm_up)
        self._ending = Ending(monitor, limit)
        atexit.register(self._at_exit)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        comm: Comm | None = None,
        index: Index | Live | None = None,
        host: str = "python",
        **more: Any,
    ) -> Session:
        """Wire a session as a configuration says; `index` replaces the one that it names. Collective.

        `more` are keywords of `Session` that no configuration can hold: functions for `on_select` and the like.
        """
        comm, error = Serial() if comm is None else comm, None
        try:
            index = reference_of(config) if index is None else index
            if isinstance(index, Index):
                index.require(k=config.k, cutoff=config.cutoff)
            monitor = Monitor(index, comm=comm, **config.of_monitor())
        except QuestsError as caught:  # a file that only one rank cannot read, say
            error = caught
        raise_together(comm, error)
        return cls(monitor, host=host, **{**config.of_session(), **more})

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.fail(error or kind())

    def _resume(self, past: Past) -> None:
        """Go on where the files end. Collective."""
        monitor, is_root = self.monitor, self.monitor.comm.rank == 0
        self._run, self._began = past.run, past.began
        self.n_evaluated, self.n_flagged = past.rows, past.flagged
        self._film.resume(past)
        self._newest = self._acknowledged = past.last  # a halt there has been seen
        self.counter = itertools.count(0 if past.last is None else past.last[1] + 1)
        monitor.restore(past.state, past.thresholds if past.same else None, past.saved_step)
        event = past.event
        if event is not None and not is_root:  # rank 0 has the atoms of all
            event = replace(event, atoms=event.atoms[:0])
        monitor.events.resume(past.events, event, past.calm)
        self._resolved = monitor.thresholds.resolved is not None
        self._candidates.resume(past)

        def act() -> None:
            self._write_json()
            if past.is_written:
                self._files.events.remove_last()  # it is written anew when the event ends
            print(f"quests_md: resumes {past.in_words()}, in {self.output}", flush=True)

        self._writer.on_root(act)

    def due(self, step: int) -> bool:
        """Return whether a frame of this step would be evaluated: hosts ask before they build one."""
        return self.monitor.due(step)

    def check_running(self) -> None:
        """Raise what `observe` would for any frame: `Halted`, or `MonitorError` after the end."""
        if self._ended and not self.given_up:
            raise MonitorError(f"this session has ended ({self.status}): make a new one")
        if self.status == "halted":
            raise Halted(f"this run was halted ({self.reason}); acknowledge() lets it go on")

    def observe(self, frame: Frame | None, *, step: int | None = None, error: Exception | None = None) -> Decision:
        """Evaluate a frame if it is due, and write what must be written. Collective.

        A step that is observed again gets no second row and no second frame, and does not halt once more
        after `acknowledge`. Parameters are those of `Monitor.observe`. Once watching has failed and the run goes on
        without it, the decision says that nothing was evaluated, and that dH is inf.

        Raises
        ------
        Halted
            An earlier frame halted the run and nobody has called `acknowledge`.
        QuestsError
            Measuring failed on any rank, a file cannot be written, or a function of the user raised: on all ranks,
            and the session is over.
        """
        step = frame.step if frame is not None else step
        assert step is not None
        self.check_running()
        if not self.due(step):
            return Decision(step, evaluated=False)
        if self.given_up:
            return _unwatched(frame, step)
        started = time.perf_counter()
        self._ending.look()
        if self._row is not None and step < self._row[1]:
            self._run += 1  # reset_timestep: steps went backwards
        try:
            self._candidates.verdict = None
            run, error = self._run, error or self._writer.unwritten
            again = self._past is not None and self._past.has_row((run, step))
            decision = self.monitor.observe(
                frame,
                step=step,
                error=error,
                keep=lambda proposal: self._candidates.consider(proposal, run),
                again=again,
            )
            if not decision.evaluated:  # a live reference has taken the frame
                if self._learning.follow(step):
                    self._writer.on_root(self._write_json)
                return decision
            if frame is None:  # this rank knows no more of it than that it is broken
                frame = Frame(np.empty((0, 3)), np.empty(0, np.int64), step=step)
            return self._record(frame, decision, started, again)
        except QuestsError as failure:
            with contextlib.suppress(QuestsError):
                self._film.write_last()
            self._fail_together(failure)
            return _unwatched(frame, step)

    def acknowledge(self) -> None:
        """Let a halted session go on. Collective."""
        if self.status == "halted" and not self._ended:
            self.status, self.reason = "running", ""
            self._ending.forget()
            self._acknowledged = self._row
            self._writer.on_root(self._write_json)

    def flush(self) -> None:
        """Write the last evaluated frame to last.extxyz, and run.json. Collective; for the end of a run.

        Raises
        ------
        OutputError, MonitorError
            Something cannot be written, or could not be: on all ranks, and the session has failed.
        """
        try:
            self._film.write_last()
            self._writer.on_root(self._write_json)
        except QuestsError as failure:
            self._fail_together(failure)

    def close(self) -> None:
        """Write what is left, as `flush` does, and end the session. Collective; may be called again."""
        if not self._ended:
            event = self.monitor.events.current
            try:
                if event is not None:
                    self._writer.event(event, run=self._run)
            except QuestsError as failure:
                self._fail_together(failure)
            self.flush()
            self._end("finished" if self.status == "running" else self.status, self.reason)

    def fail(self, error: BaseException) -> None:
        """End the session for an error that ends its program; after a halt it stays halted. Not collective."""
        if self.monitor.comm.size == 1:
            with contextlib.suppress(QuestsError):
                self._film.write_last()
        halted = self.status == "halted"
        self._end(*(("halted", self.reason) if halted else ("failed", f"{type(error).__name__}: {error}")))

    @property
    def n_saved(self) -> int:
        """Candidates that are kept."""
        return self._candidates.n

    @property
    def share(self) -> float:
        """Share of the wall time that watching took on this rank, from the first evaluation to the last."""
        return self._cost.share

    @property
    def seconds(self) -> float:
        """Time that watching has taken on this rank since this session began."""
        return self._cost.seconds

    def summary(self) -> str:
        """Return the line that a run ends with."""
        text = f"quests_md: {self.status}; {self.n_evaluated} evaluations"
        if self.decision is not None and self.decision.n:
            text += f" of {self.decision.n} atoms"
        return f"{text}, {self.n_saved} kept of {self.n_flagged} flagged frames in {self.output}{self._cost.in_words()}"

    # -- what observe does -----------------------------------------------------------------------------------

    def _record(self, frame: Frame, decision: Decision, started: float, again: bool = False) -> Decision:
        """Count a decision, write its row and, where asked, frames; return what the host is to do.

        What the files hold of a resumed run already (`again`: the row) is not written a second time.
        """
        key = (self._run, frame.step)
        if key == self._acknowledged:
            decision = replace(decision, stop=False)
        if self._candidates.verdict is not None:
            decision = replace(decision, novelty=self._candidates.verdict.novelty)
        self._say_thresholds()
        before, self.decision = self.decision, decision
        self._cost.n += 1
        self.n_evaluated += not again
        is_broken = decision.band is Band.IMPLAUSIBLE
        moment = self._film.push(frame, decision, self._info(frame, decision), self._has_frame("history", key))
        is_new = self._row != key and not again
        if is_new and decision.band in (Band.CANDIDATE, Band.HALT):
            self.n_flagged += 1
        saved = decision.save and self._save(moment, decision)
        if is_broken and (before is None or before.band is not Band.IMPLAUSIBLE) and not again:
            self._set_apart(moment, decision)
        if not again:
            self._film.follow(moment, decision)
        self._follow_event(decision)
        elapsed = time.perf_counter() - started
        if is_new and self.monitor.comm.rank == 0:
            self._write_row(frame, decision, saved, elapsed)
        self._row = key
        if again:
            self._say_again(frame.step)
        else:
            self._newest = key
        is_worth = decision.begins or decision.ends or (saved and bool(self.settings["novelty"]))
        if self._cost.n == 1 or is_worth:  # what run.json alone knows has changed
            self._writer.on_root(self._write_json)
        self._cost.add(started, len(frame.centres))
        if is_broken and self.monitor.implausible == "stop":
            raise MonitorError(f"watching failed at step {frame.step}: {decision.reasons[0]}")
        if decision.stop:
            self._halt(moment, decision)
        return decision

    def _save(self, moment: Moment, decision: Decision, **info: Any) -> bool:
        fields = self._fields(decision)
        return self._candidates.save(
            moment, lambda frame: self._hooks.call("on_select", (frame, decision), fields), **info
        )

    def _set_apart(self, moment: Moment, decision: Decision) -> None:
        """Keep a broken frame apart, and propose the last one before it."""
        if not self._has_frame("implausible", (moment.info["run"], moment.info["step"])):
            self._writer.append(self._files.implausible, moment, reason=decision.reasons[0])
        last = self._film.last_plausible()
        if last is not None:
            self._save(last, decision, reason=f"the last before {decision.reasons[0]}")

    def _follow_event(self, decision: Decision) -> None:
        events = self.monitor.events
        event = events.ended if decision.ends else events.current
        if decision.ends:
            assert event is not None
            self._writer.event(event, run=self._run)
        if (decision.begins or decision.ends) and "on_event" in self._hooks:
            self._writer.on_root(lambda: self._hooks.call("on_event", (event,), self._fields(decision)))

    def _halt(self, moment: Moment, decision: Decision) -> None:
        self.status, self.reason = "halted", f"step {decision.step}: {'; '.join(decision.reasons)}"
        self.flush()
        if "on_halt" in self._hooks:
            whole = self._writer.whole(moment)
            self._writer.on_root(lambda: self._hooks.call("on_halt", (whole, decision), self._fields(decision)))

    def _say_thresholds(self) -> None:
        """Print what thresholds that were no numbers have become, once, and keep it in run.json."""
        if not self._resolved and self.monitor.thresholds.resolved is not None:
            self._resolved = True
            self._writer.on_root(lambda: print(f"quests_md: {self.monitor.thresholds.in_words()}", flush=True))
            self._writer.on_root(self._write_json)

    def _say_again(self, step: int) -> None:
        """Say that rows are there already, once: whoever has forgotten to give the host its step sees it."""
        if self._cost.n == 1 and self._newest is not None and step < self._newest[1] and self.monitor.comm.rank == 0:
            print(
                f"quests_md: goes on at step {step}; steps that have their row, up to {self._newest[1]}, get no second"
            )

    def _has_frame(self, name: str, key: tuple[int, int]) -> bool:
        return self._past is not None and self._past.holds(name, key)

    def _fields(self, decision: Decision) -> dict[str, Any]:
        return {"run": self._run, "step": decision.step, "event": decision.event, "max": decision.maximum}

    def _info(self, frame: Frame, decision: Decision) -> dict[str, Any]:
        return {
            "run": self._run,
            "step": frame.step,
            "time": frame.time,
            "dH_max": decision.maximum,
            "dH_max_id": decision.max_id,
            "band": str(decision.band),
            "event": decision.event,
            "values": decision.values,
        }

    def _write_row(self, frame: Frame, decision: Decision, saved: bool, seconds: float) -> None:
        names = ("n", "max_id", "mean", "q50", "q99", "n_select", "n_halt", "force_error", "event", "novelty")
        row = {name: getattr(decision, name) for name in names}
        row.update(run=self._run, step=frame.step, time=frame.time, max=decision.maximum, band=decision.band)
        row.update(saved=saved, values=self.monitor.values, seconds=seconds)
        self._writer.row(row)

    # -- files -----------------------------------------------------------------------------------------------

    def _write_json(self) -> None:
        self._files.write_json(self._describe())

    def _describe(self) -> dict[str, Any]:
        past = self._past
        state = {
            "row": None if self._newest is None else [int(number) for number in self._newest],
            **self._film.state(),
            "event": state_of_event(self.monitor.events.open),
            **self.monitor.state(),
            **self._candidates.state(),
        }
        resumed = [] if past is None else past.resumed
        return describe(self, self._began, self.reason, resumed, state, self._learning.describe())

    # -- the end ---------------------------------------------------------------------------------------------

    def _fail_together(self, failure: QuestsError) -> None:
        """End the session for what all ranks have heard of; raise it, unless the run goes on without."""
        self._end("failed", str(failure))
        if self._on_error == "stop":
            raise failure
        if not self.given_up and self.monitor.comm.rank == 0:
            text = f'quests_md: WARNING: watching failed, and the run goes on without it (on_error = "warn"): {failure}'
            print(text, file=sys.stderr, flush=True)
        self.given_up = True

    def _end(self, status: str, reason: str) -> None:
        """End the session, without a collective call: the other ranks may be gone."""
        if self._ended:
            return
        self._ended = True
        atexit.unregister(self._at_exit)
        if self._writer.unwritten is not None:
            status, reason = "failed", str(self._writer.unwritten)
        self.status, self.reason = status, reason
        self._hooks.close()
        if self.monitor.comm.rank == 0:
            try:
                self._write_json()
            except OutputError as error:
                print(f"quests_md: {error}", file=sys.stderr)
            print(self.summary(), flush=True)
            self._files.release()
        self._ending.close(self.status == "halted")

    def _at_exit(self) -> None:
        """End a session that nobody closed. An exception that ended the program is a failure."""
        error = getattr(sys, "last_value", None)
        # At a prompt an exception ends nothing, and may be any number of lines old.
        if error is not None and not hasattr(sys, "ps1"):
            self.fail(error)
        elif self.monitor.comm.size == 1:
            with contextlib.suppress(QuestsError):  # the session has printed that it failed
                self.close()
        else:
            self._end("finished" if self.status == "running" else self.status, self.reason)


def _unwatched(frame: Frame | None, step: int) -> Decision:
    """Return what is published of a frame when watching has been given up: inf, for nan stops nobody."""
    n = 0 if frame is None else frame.n_local or 0
    return Decision(step, evaluated=False, maximum=math.inf, mean=math.inf, dH=np.full(n, math.inf))
