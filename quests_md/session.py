"""The only wiring: configuration, index, monitor and sinks make a watched run with its files."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .comm import Comm, Serial, raise_together
from .config import RunConfig
from .errors import Halted, MonitorError, OutputError, QuestsError
from .frame import Frame
from .index import Index
from .monitor import Decision, Monitor
from .sinks import ExtxyzSink, RunFolder
from .versions import versions

__all__ = ["Session"]


class Session:
    """Watch a run and keep its files.

    They are monitor.csv, candidates.extxyz, implausible.extxyz, last.extxyz and run.json.

    Parameters
    ----------
    monitor
        What decides.
    output
        Folder of the files; made if it is not there.
    overwrite
        Replace the files of an earlier run in that folder.
    host
        Name of the program that moves the atoms, for run.json.

    Attributes
    ----------
    decision
        The last evaluated one, or None.
    n_evaluated, n_saved
        Counts so far.
    status
        "running", "finished", "halted" or "failed".
    counter
        Counts 0, 1, 2, ... for hosts that know no step: whoever shares the session takes the next one.

    Raises
    ------
    OutputError
        The folder holds an earlier run and `overwrite` is False, or it cannot be written. On all ranks.
    """

    def __init__(
        self,
        monitor: Monitor,
        output: str | Path = "uq",
        *,
        overwrite: bool = False,
        host: str = "python",
    ) -> None:
        self.monitor = monitor
        self.output = Path(output).absolute()  # the program may change its folder
        self.host = host
        self.decision: Decision | None = None
        self.n_evaluated = self.n_saved = 0
        self.status = "running"
        self.counter = itertools.count()
        self._reason = ""
        self._ended = False
        self._run = 1
        # (run, step) of the last row, of the last saved frame, and of the last halt that was acknowledged
        self._row: tuple[int, int] | None = None
        self._frame: tuple[int, int] | None = None
        self._acknowledged: tuple[int, int] | None = None
        self._last: tuple[Frame, NDArray[np.float64], dict[str, Any]] | None = None
        self._unwritten: Exception | None = None
        self._began = datetime.datetime.now(datetime.timezone.utc)
        self._clock: tuple[float, float] | None = None  # start of the first observe, end of the last
        self._seconds, self._atoms = 0.0, 0
        self._files = RunFolder(self.output)
        self._on_root(lambda: self._files.prepare(self._describe(), overwrite))
        monitor.warm_up()
        atexit.register(self._at_exit)

    @classmethod
    def from_config(
        cls, config: RunConfig, comm: Comm | None = None, index: Index | None = None, host: str = "python"
    ) -> Session:
        """Wire a session as a configuration says; `index` replaces the one that it names. Collective."""
        comm, error = Serial() if comm is None else comm, None
        try:
            index = Index.open(config.index) if index is None else index
            index.require(k=config.k, cutoff=config.cutoff)
            monitor = Monitor(
                index,
                select=config.select,
                halt=config.halt,
                every=config.every,
                save_every=config.save_every,
                values=config.values,
                precision=config.precision,
                threads=config.threads,
                comm=comm,
            )
        except QuestsError as caught:  # a file that only one rank cannot read, say
            error = caught
        raise_together(comm, error)
        return cls(monitor, config.output, overwrite=config.overwrite, host=host)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.fail(error or kind())

    def due(self, step: int) -> bool:
        """Return whether a frame of this step would be evaluated: hosts ask before they build one."""
        return self.monitor.due(step)

    def check_running(self) -> None:
        """Raise what `observe` would for any frame: `Halted`, or `MonitorError` after the end."""
        if self._ended:
            raise MonitorError(f"this session has ended ({self.status}): make a new one")
        if self.status == "halted":
            raise Halted(f"this run was halted ({self._reason}); acknowledge() lets it go on")

    def observe(self, frame: Frame | None, *, step: int | None = None, error: Exception | None = None) -> Decision:
        """Evaluate a frame if it is due, and write what must be written. Collective.

        A step that is observed again gets no second row and no second frame, and does not halt once more
        after `acknowledge`. Parameters are those of `Monitor.observe`.

        Raises
        ------
        Halted
            An earlier frame halted the run and nobody has called `acknowledge`.
        MonitorError, OutputError
            Measuring failed on any rank, or a file cannot be written: on all ranks, and the session is over.
        """
        step = frame.step if frame is not None else step
        assert step is not None
        self.check_running()
        if not self.due(step):
            return Decision(step, evaluated=False)
        started = time.perf_counter()
        try:
            decision = self.monitor.observe(frame, step=step, error=error or self._unwritten)
            assert frame is not None
            return self._record(frame, decision, started)
        except QuestsError as failure:
            self._keep_what_is_left(frame, failure)
            self._end("failed", str(failure))
            raise

    def acknowledge(self) -> None:
        """Let a halted session go on. Collective."""
        if self.status == "halted" and not self._ended:
            self.status, self._reason = "running", ""
            self._acknowledged = self._row
            self._on_root(self._write_json)

    def flush(self) -> None:
        """Write the last evaluated frame to last.extxyz, and run.json. Collective; for the end of a run.

        Raises
        ------
        OutputError, MonitorError
            Something cannot be written, or could not be: on all ranks, and the session has failed.
        """
        try:
            self._write_last()
            self._on_root(self._write_json)
        except QuestsError as failure:
            self._end("failed", str(failure))
            raise

    def close(self) -> None:
        """Write what is left, as `flush` does, and end the session. Collective; may be called again."""
        if not self._ended:
            self.flush()
            self._end("finished" if self.status == "running" else self.status, self._reason)

    def fail(self, error: BaseException) -> None:
        """End the session for an error that ends its program; after a halt it stays halted. Not collective."""
        if self.monitor.comm.size == 1:
            with contextlib.suppress(QuestsError):
                self._write_last()
        halted = self.status == "halted"
        self._end(*(("halted", self._reason) if halted else ("failed", f"{type(error).__name__}: {error}")))

    @property
    def share(self) -> float:
        """Share of the wall time that watching took on this rank, from the first evaluation to the last."""
        if self._clock is None or self.n_evaluated < 2:
            return float("nan")
        return self._seconds / (self._clock[1] - self._clock[0])

    def summary(self) -> str:
        """Return the line that a run ends with."""
        text = f"quests_md: {self.status}; {self.n_evaluated} evaluations, {self.n_saved} frames saved"
        text += f" in {self.output}"
        if self._atoms:
            text += f"; {1e6 * self._seconds / self._atoms:.1f} µs per atom and evaluation"
        return text if math.isnan(self.share) else f"{text}, {100 * self.share:.2f} % of the run"

    # -- what observe does -----------------------------------------------------------------------------------

    def _record(self, frame: Frame, decision: Decision, started: float) -> Decision:
        """Count a decision, write its row and, where asked, its frame; return what the host is to do."""
        if self._row is not None and frame.step < self._row[1]:
            self._run += 1  # reset_timestep: steps went backwards
        key = (self._run, frame.step)
        if key == self._acknowledged:
            decision = replace(decision, stop=False)
        self.decision = decision
        self.n_evaluated += 1
        # The memory of the frame before serves again. Nothing refers to it: not `_last` either, while it is mixed.
        before, self._last = self._last, None
        self._last = frame.local(before and before[0]), decision.dH, self._info(frame, decision)
        saved = decision.save and self._frame != key
        if saved:
            self._append(self._files.candidates, *self._last)
            self._frame = key
            self.n_saved += 1
        elapsed = time.perf_counter() - started
        if self._row != key and self.monitor.comm.rank == 0:
            self._write_row(frame, decision, saved, elapsed)
        self._row = key
        first = started if self._clock is None else self._clock[0]
        self._clock = (first, time.perf_counter())
        self._seconds += self._clock[1] - started
        self._atoms += len(frame.centres)
        if decision.stop:
            self.status, self._reason = "halted", f"step {decision.step}: {'; '.join(decision.reasons)}"
            self.flush()
        return decision

    def _info(self, frame: Frame, decision: Decision) -> dict[str, Any]:
        return {
            "run": self._run,
            "step": frame.step,
            "time": frame.time,
            "dH_max": decision.maximum,
            "dH_max_id": decision.max_id,
            "band": str(decision.band),
            "values": decision.values,
        }

    def _write_row(self, frame: Frame, decision: Decision, saved: bool, seconds: float) -> None:
        names = ("n", "max_id", "mean", "q50", "q99", "n_select", "n_halt")
        row = {name: getattr(decision, name) for name in names}
        row.update(run=self._run, step=frame.step, time=frame.time, max=decision.maximum, band=decision.band)
        row.update(saved=saved, values=self.monitor.values, seconds=seconds)
        try:
            self._files.rows.write(row)
        except OutputError as error:
            if self.monitor.comm.size == 1:
                raise
            self._unwritten = error  # the other ranks hear of it at the next evaluation, or flush

    def _keep_what_is_left(self, frame: Frame | None, failure: QuestsError) -> None:
        """Write the last frame, and a broken one apart. Collective; `failure` is raised by the caller."""
        with contextlib.suppress(QuestsError):
            self._write_last()
        if isinstance(failure, MonitorError) and failure.implausible:
            local = None if frame is None else frame.local()
            dH = np.full(0 if local is None else len(local.positions), np.inf)
            info = {} if frame is None else {"run": self._run, "step": frame.step, "time": frame.time}
            with contextlib.suppress(QuestsError):
                self._append(self._files.implausible, local, dH, info)

    # -- what rank 0 writes ----------------------------------------------------------------------------------

    def _append(self, sink: ExtxyzSink, local: Frame | None, dH: NDArray[np.float64], info: dict[str, Any]) -> None:
        """Gather a frame and let rank 0 add it to a file. Collective."""
        parts = self.monitor.comm.gather((local, dH))
        self._on_root(lambda: sink.append(*_assemble(parts or ()), info))

    def _write_last(self) -> None:
        """Make the last evaluated frame the content of last.extxyz. Collective."""
        if self._last is None:
            return
        (local, dH, info), self._last = self._last, None
        parts = self.monitor.comm.gather((local, dH))
        self._on_root(lambda: self._files.last.replace(*_assemble(parts or ()), info))

    def _on_root(self, act: Callable[[], object]) -> None:
        """Let rank 0 act; raise on all ranks if it, or a row before, could not be written. Collective."""
        error: Exception | None = None
        if self.monitor.comm.rank == 0:
            try:
                act()
                error = self._unwritten
            except OutputError as caught:
                error = caught
            except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
                error = OutputError(f"{self.output}: {type(caught).__name__}: {caught}")
                error.__cause__ = caught
        raise_together(self.monitor.comm, error)

    def _write_json(self) -> None:
        self._files.write_json(self._describe())

    def _describe(self) -> dict[str, Any]:
        """Return the content of run.json."""
        monitor = self.monitor
        now = datetime.datetime.now(datetime.timezone.utc)
        return {
            "status": self.status,
            "reason": self._reason,
            "host": self.host,
            "index": monitor.index.describe(),
            "select": _number(monitor.select),
            "halt": _number(monitor.halt),
            "every": monitor.every,
            "save_every": monitor.schedule.save_every,
            "values": monitor.values,
            "precision": monitor.precision,
            "ranks": monitor.comm.size,
            "threads": monitor.threads,
            "started": self._began.isoformat(timespec="seconds"),
            "updated": now.isoformat(timespec="seconds"),
            "last_step": None if self.decision is None else int(self.decision.step),
            "evaluations": self.n_evaluated,
            "saved": self.n_saved,
            "seconds": self._seconds,
            "share": None if math.isnan(self.share) else self.share,
            "versions": versions(),
        }

    # -- the end ---------------------------------------------------------------------------------------------

    def _end(self, status: str, reason: str) -> None:
        """End the session, without a collective call: the other ranks may be gone."""
        if self._ended:
            return
        self._ended = True
        atexit.unregister(self._at_exit)
        if self._unwritten is not None:
            status, reason = "failed", str(self._unwritten)
        self.status, self._reason = status, reason
        if self.monitor.comm.rank == 0:
            try:
                self._write_json()
            except OutputError as error:
                print(f"quests_md: {error}", file=sys.stderr)
            print(self.summary(), flush=True)

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
            self._end("finished" if self.status == "running" else self.status, self._reason)


def _assemble(
    parts: Sequence[tuple[Frame | None, NDArray[np.float64]]],
) -> tuple[Frame, NDArray[np.float64]]:
    """Put the ranks' parts of a frame together, atoms by id."""
    frames = [part[0] for part in parts if part[0] is not None]
    if len(frames) < len(parts):
        raise OutputError("a rank has no frame")
    order = np.argsort(np.concatenate([np.asarray(frame.ids) for frame in frames]), kind="stable")
    columns: dict[str, Any] = {}
    for name in ("positions", "numbers", "ids", "watched", "velocities", "forces"):
        values = [getattr(frame, name) for frame in frames]
        columns[name] = None if values[0] is None else np.concatenate(values)[order]
    return replace(frames[0], n_local=None, **columns), np.concatenate([part[1] for part in parts])[order]


def _number(value: float) -> float | str:
    """Return what JSON can hold of a threshold, which may be infinite."""
    return value if math.isfinite(value) else str(value)
