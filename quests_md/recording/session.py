"""A session: a watched run and its files. It wires the monitor to the recorders."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import itertools
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..bias import Push
from ..comm import Comm, Serial, raise_together, together
from ..config import RunConfig, describe_keys
from ..errors import Halted, InputError, MonitorError, OutputError, QuestsError
from ..files import HeldFolder
from ..frame import Frame, step_of
from ..index import Described, Index, Live
from ..machine import hold_interrupt
from ..monitor import Band, Decision, Key, Monitor
from ..notebook import to_html
from ..toml import parse_seconds
from .about import begin_folder, describe, is_overwriting, resume_folder, to_json, write_about
from .candidates import Candidates
from .commands import Commands, Hook
from .ending import Ending
from .events import EventLines, replay_events
from .history import History
from .last import Implausible, Last
from .live_reference import LiveReference, reference_of
from .messages import say_again, say_thresholds, say_unwatched
from .past import Past, check_mode, find_past
from .recorder import Moment, Place, Recorder, to_quests_error
from .rows import Cost, Recent, RowLines
from .steering import Steering

__all__ = ["Session"]


@describe_keys
class Session:
    """Watch a run and write its files.

    The files are monitor.csv, events.jsonl, run.json, and candidates, cutouts, history, implausible and last.extxyz;
    with a live reference also live.qindex. Files named "resume.*" are needed to resume a run that was killed.

    The output folder belongs to the session: if somebody renames, removes or empties it, the watching ends. Here
    `on_select` and `on_halt` may also be functions of the whole frame and its decision, and `on_event` a function of
    the `Event`. Rank 0 calls them. An exception of such a function ends the watching.

    Parameters
    ----------
    monitor
        The monitor that decides.
    {keys}
    host
        Name of the program that moves the atoms, for run.json.

    Attributes
    ----------
    decision
        The last decision on an evaluated frame, or None.
    n_evaluated, n_flagged
        Number of evaluated frames, and how many of them are above `select`.
    status
        "running", "finished", "halted" or "failed".
    reason
        Why the run was halted or has failed, in words.
    steering
        The bias of the run, or None.
    given_up
        Whether watching has failed and the run goes on without it.
    counter
        Counts 0, 1, 2, ... for hosts that know no step. All that share the session take the next number from it.

    Raises
    ------
    OutputError
        The folder holds an earlier run and neither `overwrite` nor `resume` is given, another run writes to it, or it
        cannot be written. On all ranks.
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
        bias: Mapping[str, Any] | None = None,
        on_select: Hook | None = None,
        on_halt: Hook | None = None,
        on_event: Hook | None = None,
        commands_at_once: int = 16,
        on_error: str = "stop",
        wall_time: float | str | None = None,
        host: str = "python",
    ) -> None:
        mode, limit = check_mode(resume, overwrite), None if wall_time is None else parse_seconds(wall_time)
        if on_error not in ("stop", "warn"):
            raise InputError(f'on_error must be "stop" or "warn", not {on_error!r}')
        if not hasattr(monitor, "every"):
            raise InputError(f"monitor must be a Monitor, not a {type(monitor).__name__}: Monitor(index, ...)")
        self.monitor = monitor
        self.output = Path(output).absolute()  # the program may change its folder
        self.host = host
        self.settings: dict[str, Any] = {
            "history": history, "after": after, "novelty": novelty, "budget": budget, "cutout": cutout,
        }  # fmt: skip
        self.steering = None if bias is None else together(monitor.comm, lambda: Steering(monitor, bias))
        self.settings["bias"] = None if self.steering is None else self.steering.settings
        self.decision: Decision | None = None
        self.n_evaluated = self.n_flagged = 0
        self.status, self.reason, self.given_up = "running", "", False
        self.counter = itertools.count()
        self._began = datetime.datetime.now(datetime.timezone.utc)
        self._resumed: list[str] = []
        self._cost = Cost()
        self._ended, self._on_error, self._process = False, on_error, os.getpid()
        self._every, self._said = monitor.every, False  # whether thresholds were told
        self._recent = Recent()
        self._halted: Key | None = None  # the last evaluation that halted
        self._passed: set[Key] = set()  # halts that the host knows of
        self._newest: Key | None = None  # key and event of the last row when the run was resumed
        self._newest_event = 0
        self._is_unsettled = True  # whether the monitor may have settled more than run.json says
        self._settled: tuple[Any, ...] | None = None  # what run.json says
        self._folder = HeldFolder(self.output)
        place = Place(self._folder, monitor)
        self.place = place
        self._live = LiveReference(place)
        self._candidates = Candidates(place, novelty, budget, cutout)
        self._history = History(place, history, after)
        hooks = {"on_select": on_select, "on_halt": on_halt, "on_event": on_event}
        self._commands = Commands(place, hooks, commands_at_once)
        self._rows, self._events, self._last = RowLines(place), EventLines(place), Last(place)
        # They see an evaluation in this order; its row is written last.
        self._recorders: list[Recorder] = [
            Implausible(place), self._candidates, self._history, self._events, self._commands,
        ]  # fmt: skip
        self._of_calm: list[Recorder] = []
        self._of_band: dict[Band, list[Recorder]] = {}
        self._sort_recorders()
        self._begin(mode, overwrite)
        monitor.warm_up(self._candidates.warm_up)
        self._ending, self._is_limited = Ending(monitor, limit), limit is not None
        atexit.register(self._at_exit)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        comm: Comm | None = None,
        index: Index | Described | Live | None = None,
        host: str = "python",
        **more: Any,
    ) -> Session:
        """Make a session from a configuration; `index` replaces the one that the configuration names. Collective.

        `more` are keywords of `Session` that a configuration cannot hold, such as functions for `on_select`.
        """
        comm = Serial() if comm is None else comm

        def make() -> Monitor:  # it may fail on one rank only
            reference = reference_of(config, index) if index is None or isinstance(index, Index) else index
            if isinstance(reference, (Index, Described)):
                reference.require(k=config.k, cutoff=config.cutoff)
            return Monitor(reference, comm=comm, **config.of_monitor())

        monitor = together(comm, make)
        return cls(monitor, host=host, **{**config.of_session(), **more})

    def __repr__(self) -> str:
        return f"<Session: {self.summary().removeprefix('quests_md: ')}>"

    def _repr_html_(self) -> str:
        shown = ("status", "reason", "output", "host", "n_evaluated", "n_flagged", "n_saved", "monitor")
        return to_html("Session", {name: getattr(self, name) for name in shown})

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.fail(error or kind())

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a Session cannot be pickled or copied, because its folder belongs to one run: give MonitoredCalculator or "
            "MonitorObserver a configuration (a RunConfig, or the path of a quests.toml) in place of the session, and "
            "each process opens a session of its own"
        )

    # -- the beginning -----------------------------------------------------------------------------------------------

    @property
    def _every_recorder(self) -> list[Recorder]:
        return [self._rows, *self._recorders, self._last, self._live]

    def _begin(self, mode: bool | str, overwrite: bool) -> None:
        """Begin a new run in the folder, or resume the one that it holds. Collective."""
        names = tuple(name for recorder in self._every_recorder for name in recorder.files)
        past = None
        if mode and self.monitor.comm.broadcast(self.place.on_root(lambda: is_overwriting(self._folder))):
            mode, overwrite = False, True
        if mode:
            self._live.open()
            past = find_past(self._folder, names, self.monitor.comm, to_json(self._describe()), mode)
        if past is None:
            self.place.on_root(lambda: begin_folder(self._folder, names, self._describe(), overwrite))
            return
        try:
            self._resume(past)
        except BaseException:
            self._folder.release()
            raise

    def _resume(self, past: Past) -> None:
        """Go on after the last row. Collective."""
        monitor = self.monitor
        self._began, self._resumed = past.began_at, past.resumed
        self.n_evaluated, self.n_flagged = past.rows, past.flagged
        self._newest, self._newest_event = past.last, past.last_event
        self._halted = past.state.halted
        self._passed = set(past.halts)  # a copy: ranks that are threads share what was broadcast
        self._recent.is_broken = past.is_broken
        if self.steering is not None:
            self.steering.resume(past.tau)
        self.counter = itertools.count(0 if past.last is None else past.last.step + 1)
        state = {"volume": past.state.volume, "sample": past.state.sample}
        thresholds = past.thresholds if past.same else None
        monitor.restore(state, thresholds, past.saved, evaluations=past.rows, samples=past.samples)
        monitor.visits.resume(past.evaluations)
        replay_events(monitor.events, past.open_rows, past.events_before)
        for recorder in self._every_recorder:
            recorder.resume(past)
        self._recent.plausible = self._history.find_last_plausible()
        self._last.moment = self._history.find(past.last)
        self.place.on_root(lambda: resume_folder(self._folder, self._describe(), past.in_words(self.n_saved)))
        self._live.forget()

    def record(self, recorder: Recorder) -> None:
        """Add a recorder: from now on it sees every evaluation before its row is written."""
        self._recorders.append(recorder)
        self._sort_recorders()

    def _sort_recorders(self) -> None:
        """Note which recorders see which frames: most frames are calm, and most recorders do not need them."""
        self._of_calm = [recorder for recorder in self._recorders if recorder.sees_calm]
        self._of_band = {band: [each for each in self._recorders if band in each.bands] for band in Band}

    # -- an evaluation -----------------------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Return whether a frame of this step would be evaluated: hosts ask before they build one."""
        return self.monitor.due(step)

    def check_running(self) -> None:
        """Raise what `observe` would raise for any frame: `Halted`, or `MonitorError` after the end."""
        if self._process != os.getpid():
            raise MonitorError(f"this session belongs to process {self._process}, not to its fork: make a new one here")
        if self._ended and not self.given_up:
            raise MonitorError(f"this session has ended ({self.status}): make a new one")
        if self.status == "halted":
            raise Halted(f"this run was halted ({self.reason}); acknowledge() lets it go on")

    def observe(self, frame: Frame | None, *, step: int | None = None, error: Exception | None = None) -> Decision:
        """Evaluate a frame if it is due, and write what must be written. Collective.

        The same configuration at the same step is not recorded again, and does not halt again; a different one at that
        step is evaluated like any frame. The parameters are those of `Monitor.observe`. When watching has failed and
        the run goes on without it, the decision says that nothing was evaluated, and dH is inf.

        Raises
        ------
        Halted
            An earlier frame halted the run and nobody has called `acknowledge`.
        QuestsError
            Measuring failed on any rank, a file cannot be written, or a function of the user raised. On all ranks; the
            session is over. If an error of another kind occurs on one of several ranks only, this rank raises it
            unchanged.
        """
        step = step_of(frame, step)
        self.check_running()
        if step % self._every:
            return Decision(step, evaluated=False)
        if self.given_up:
            return Decision.unwatched(step, frame)
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # LAMMPS's host handles Ctrl-C itself
            return self._evaluate(frame, step, error)
        with hold_interrupt():  # so it is raised when the evaluation has its row
            return self._evaluate(frame, step, error)

    def _evaluate(self, frame: Frame | None, step: int, error: Exception | None) -> Decision:
        """Evaluate a frame that is due, and write what must be written. Collective."""
        started = time.perf_counter()
        try:
            if self._is_limited:
                self._ending.look()
            error = error or self._rows.unwritten or self._history.unwritten
            decision = self.monitor.observe(frame, step=step, error=error, whole=False)
            if not decision.evaluated:  # a live reference has taken the frame
                if self._live.follow(decision):
                    self._write_about()
                    self._live.forget()
                return decision
            if frame is None:  # this rank only knows that the frame is broken
                frame = Frame(np.empty((0, 3)), np.empty(0, np.int64), step=step)
            return self._answer_again(frame, decision) if decision.again else self._record(frame, decision, started)
        except Exception as caught:  # noqa: BLE001 - it is raised, or printed, as one of our errors
            failure = self._to_shared_error(caught, f"watching failed at step {step}")
            with contextlib.suppress(QuestsError):
                self._last.close()
            self._fail_together(failure)
            return Decision.unwatched(step, frame)

    def _record(self, frame: Frame, decision: Decision, started: float) -> Decision:
        """Record a new evaluation; return the decision for the host."""
        if decision.save:
            decision = self._candidates.judge(decision)
        self._said = self._said or say_thresholds(self.place)
        # A recorder that sees all frames may still hold an old moment. Then the memory of that moment cannot be reused.
        moment = self._recent.take(frame, decision, may_reuse=not self._of_calm)
        self.decision, self._last.moment = decision, moment
        self.n_evaluated += 1
        if decision.band is Band.CANDIDATE or decision.band is Band.HALT:
            self.n_flagged += 1
        self._cost.n += 1
        if self._is_unsettled:
            self._write_settled(decision)
        is_calm = decision.band is Band.COVERED and not decision.event and not decision.ends
        recorders = self._of_calm if is_calm else self._of_band[decision.band]
        for recorder in recorders:
            recorder.see(moment)
        moment.seconds = time.perf_counter() - started
        self._rows.see(moment)
        if not is_calm:
            self._settle(moment, recorders)
        if self._commands.is_busy:
            self._commands.look()
        self._cost.add(started, 0 if decision.evaluation is None else len(decision.evaluation.ids))
        if decision.band is Band.IMPLAUSIBLE and self.monitor.implausible == "stop":
            raise MonitorError(f"watching failed at step {decision.step}: {decision.reasons[0]}")
        if decision.stop:
            self._halt(moment)
        return decision

    def _write_settled(self, decision: Decision) -> None:
        """Write to run.json, before the row, what this evaluation may have settled: thresholds, sample, volume."""
        settled = self.monitor.settled
        if settled != self._settled:
            self._settled = settled
            self._write_about()
        # A broken frame, or one without watched atoms, does not settle everything.
        self._is_unsettled = decision.band is Band.IMPLAUSIBLE or not decision.n

    def _settle(self, moment: Moment, recorders: list[Recorder]) -> None:
        """Let recorders finish an evaluation that is not calm, after its row was written. Collective."""
        for recorder in recorders:
            recorder.settle(moment)
        if moment.decision.begins or moment.decision.ends:
            self._write_about()

    def _answer_again(self, frame: Frame, decision: Decision) -> Decision:
        """Return the decision for the host on a frame that was evaluated before. It is published, but not recorded."""
        if decision.key in self._passed:  # its halt is known to the host; another reason (signal, time) still stops
            decision = replace(decision, stop=len(decision.reasons) > 1)
        last = self._recent.present
        newest, event = (self._newest, self._newest_event) if last is None else (last.key, last.decision.event)
        if decision.key == newest:  # this frame may have ended its event
            decision = replace(decision, event=event)
        self.decision = decision
        self._cost.n += 1
        moment = Moment(frame.local(), decision)
        self._history.see_again(moment)
        self._last.moment = moment
        self._recent.take_again(moment)
        if self._cost.n == 1:
            say_again(self.place, decision.step, self._newest)
            self._write_about()
        if self._commands.is_busy:
            self._commands.look()
        if not moment.is_plausible and self.monitor.implausible == "stop":
            raise MonitorError(f"watching failed at step {decision.step}: {decision.reasons[0]}")
        if decision.stop:
            self._halt(moment)
        return decision

    def _halt(self, moment: Moment) -> None:
        decision = moment.decision
        self.status, self.reason = "halted", f"step {decision.step}: {'; '.join(decision.reasons)}"
        if decision.band is Band.HALT:
            self._halted = decision.key
            self._passed.add(decision.key)
        self.flush()
        self._commands.tell_halt(moment)

    def halt(self, reason: str) -> None:
        """Take note that the run ends because of something outside of it, such as another run. Collective.

        Raises
        ------
        OutputError, MonitorError
            As in `flush`.
        """
        if self.status == "running" and not self._ended:
            self.status, self.reason = "halted", reason
            self.flush()

    def acknowledge(self) -> None:
        """Let a halted run go on. Collective."""
        if self.status == "halted" and not self._ended:
            self.status, self.reason = "running", ""
            self._ending.forget()
            self._write_about()

    def propose(self, reason: str) -> None:
        """Make the last plausible frame a candidate, because the host crashed after it. Collective."""
        if self._recent.plausible is not None and not self._ended:
            self._candidates.add(self._recent.plausible, reason=f"the last before {reason}")

    def push(self, frame: Frame | None, *, step: int, error: Exception | None = None) -> Push | None:
        """Compute what the bias adds to the forces of a frame, for the host to add; None without a bias. Collective.

        A rank that has no frame gives the `error` why.

        Raises
        ------
        QuestsError
            The frame cannot be measured, on any rank. On all ranks; the session is over.
        """
        if self.steering is None or self._ended:
            return None
        try:
            return self.steering.push(frame, error)
        except Exception as caught:  # noqa: BLE001 - it is raised, or printed, as one of our errors
            self._fail_together(self._to_shared_error(caught, f"the bias failed at step {step}"))
            return None

    # -- the end -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the last evaluated frame to last.extxyz, and write run.json. Collective; for the end of a run.

        Raises
        ------
        OutputError, MonitorError
            A file is gone or cannot be written, or an earlier row or frame could not be written. All ranks raise this,
            and the session has failed.
        """
        try:
            self._last.close()
            self.place.on_root(lambda: self._folder.check(every_file=True))
            self._write_about()
            raise_together(self.monitor.comm, self._rows.unwritten or self._history.unwritten)
        except Exception as failure:  # noqa: BLE001 - it is raised, or printed, as one of our errors
            self._fail_together(self._to_shared_error(failure, "watching failed"))

    def close(self) -> None:
        """Write what is left, as `flush` does, and end the session. Collective; a second call does nothing."""
        if self._ended or self._process != os.getpid():
            return
        try:
            self._events.close()
            for recorder in self._recorders:
                if recorder is not self._events:
                    recorder.close()
        except Exception as failure:  # noqa: BLE001 - it is raised, or printed, as one of our errors
            self._fail_together(self._to_shared_error(failure, "watching failed"))
        if not self._ended:
            self.flush()
        self._end("finished" if self.status == "running" else self.status, self.reason)

    def fail(self, error: BaseException) -> None:
        """End the session because of an error that ends the program; a halted run stays halted. Not collective."""
        if self._process != os.getpid():
            return
        if self.monitor.comm.size == 1:
            with contextlib.suppress(QuestsError):
                self._last.close()
        halted = self.status == "halted"
        self._end(*(("halted", self.reason) if halted else ("failed", f"{type(error).__name__}: {error}")))

    @property
    def n_saved(self) -> int:
        """Number of candidates that are kept."""
        return len(self._candidates.keys)

    @property
    def _last_step(self) -> int | None:
        """Step of the last evaluation; None before the first."""
        if self.decision is not None:
            return int(self.decision.step)
        return None if self._newest is None else self._newest.step

    @property
    def share(self) -> float:
        """Share of the wall time between the first and the last evaluation that watching took on this rank."""
        return self._cost.share

    @property
    def seconds(self) -> float:
        """Time (s) that watching has taken on this rank since the session began."""
        return self._cost.seconds

    def summary(self) -> str:
        """Return the last line that a run prints."""
        text = f"quests_md: {self.status}; {self.n_evaluated} evaluations"
        if self.decision is not None and self.decision.n:
            text += f" of {self.decision.n} atoms"
        text += f", {self.n_saved} kept of {self.n_flagged} flagged frames in {self.output}{self._cost.in_words()}"
        return f"{text}; {self.reason}" if self.status == "halted" else text

    def _write_about(self) -> None:
        self.place.on_root(lambda: write_about(self._folder, self._describe()))

    def _describe(self) -> dict[str, Any]:
        state: dict[str, Any] = {**self.monitor.state(), "halted": self._halted}
        for recorder in self._every_recorder:
            state |= recorder.state()
        counts = {
            "started": self._began.isoformat(timespec="seconds"),
            "resumed": self._resumed,
            "last_step": self._last_step,
            "evaluations": self.n_evaluated,
            "flagged": self.n_flagged,
            "saved": self.n_saved,
            **self._cost.describe(),
        }
        ended = {"status": self.status, "reason": self.reason, "host": self.host}
        return describe(self.monitor, ended, self.settings, counts, state, self._live.describe())

    def _to_shared_error(self, failure: Exception, where: str) -> QuestsError:
        """Return a failure, known to all ranks, as a `QuestsError`.

        A failure that only this rank knows ends the session, and is raised as it is. The other ranks may wait for this
        one: the program that runs them must end them, as after any error of a single rank.
        """
        ours = to_quests_error(failure, where)
        if ours is not failure and self.monitor.comm.size > 1:
            self._end("failed", str(ours))
            raise failure
        return ours

    def _fail_together(self, failure: QuestsError) -> None:
        """End the session because of a failure that all ranks know; raise it, unless the run goes on unwatched."""
        self._end("failed", str(failure))
        if self._on_error == "stop":
            raise failure
        if not self.given_up:
            say_unwatched(self.place, failure)
        self.given_up = True

    def _end(self, status: str, reason: str) -> None:
        """End the session without a collective call: the other ranks may be gone."""
        if self._ended:
            return
        self._ended = True
        atexit.unregister(self._at_exit)
        if self._rows.unwritten is not None:
            status, reason = "failed", str(self._rows.unwritten)
        self.status, self.reason = status, reason
        self._commands.close()
        if self.place.is_root:
            try:
                write_about(self._folder, self._describe(), is_checked=False)
            except (OutputError, MemoryError) as error:
                print(f"quests_md: {error}", file=sys.stderr)
            print(self.summary(), flush=True)
            self._folder.release()
        self._ending.close(self.status == "halted")

    def _at_exit(self) -> None:
        """End a session that nobody closed. If an exception ended the program, the session has failed."""
        if self._process != os.getpid():
            return
        error = getattr(sys, "last_value", None)
        # At a prompt an exception does not end the program, and may be long ago.
        if error is not None and not hasattr(sys, "ps1"):
            self.fail(error)
        elif self.monitor.comm.size == 1:
            with contextlib.suppress(QuestsError):  # the session has printed its failure
                self.close()
        else:
            self._end("finished" if self.status == "running" else self.status, self.reason)
