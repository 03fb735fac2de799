"""observe(Frame) → Decision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, raise_together
from ..elements import SYMBOLS
from ..errors import FrameError, InputError, MonitorError
from ..frame import Frame
from ..index import Reference
from ..information import Precision
from ..kernels._jit import announce_compiling
from ._decision import Band, Decision
from ._evaluation import Evaluation, compute_in_single
from ._flagged import Flagged
from ._schedule import Schedule
from ._summary import Summary, combine, summarise

__all__ = ["Monitor"]

_T = TypeVar("_T")


class Monitor:
    """Compare frames with a reference and decide; write nothing.

    Parameters
    ----------
    index
        The reference, an `Index`.
    select, halt
        dH (nats) above which a frame is worth keeping, and above which the run stops. Compared with ``>``. There is
        no default: dH depends on the bandwidth and the number of references.
    every
        Evaluate frames whose step is a multiple of this.
    save_every
        Save candidates at least this many steps apart; a frame that halts is always saved.
    values
        "exact": every published dH is exact. "flagged", much faster: exact above `select`, for the frame's maximum and
        in saved frames; the others are certified upper bounds, never above `select`, and mean and quantiles are those
        of a fixed sample of about 128 atoms. Maximum, counts, bands and decisions are the same.
    precision
        Of exact values. "single" errs by less than max(1e-4, 1e-6·|dH|) nats where that decides nothing: near a
        threshold, for the maximum and in saved frames dH is that of "double". "flagged" values are always in double.
    threads
        Threads per rank; 1 by default, for the simulation has the other cores.
    comm
        How ranks talk; `Serial` for one.

    Raises
    ------
    InputError
        A threshold is not a number, `select` is above `halt`, or there is no such choice.
    """

    def __init__(
        self,
        index: Reference,
        *,
        select: float,
        halt: float,
        every: int = 1,
        save_every: int = 1,
        values: str = "exact",
        precision: Precision = "single",
        threads: int | None = 1,
        comm: Comm | None = None,
    ) -> None:
        for name, value in (("select", select), ("halt", halt)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise InputError(f"{name} must be a number of nats, not {value!r}")
        if select > halt:
            raise InputError(f"select = {select} lies above halt = {halt}: candidates lie between the two")
        if values not in ("exact", "flagged"):
            raise InputError(f'values must be "exact" or "flagged", not {values!r}')
        if precision not in ("double", "single"):
            raise InputError(f'precision must be "double" or "single", not {precision!r}')
        self.index = index
        self.select = float(select)
        self.halt = float(halt)
        self.values = values
        self.precision = precision
        self.threads = threads
        self.schedule = Schedule(every, save_every)
        self.comm = Serial() if comm is None else comm
        self._flagged = Flagged() if values == "flagged" else None

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.schedule.every

    def due(self, step: int) -> bool:
        """Return whether a frame of this step would be evaluated: hosts ask before they build one."""
        return self.schedule.due(step)

    def warm_up(self) -> None:
        """Compile the kernels, or load them from the cache, before the run: rank 0 first, then the others."""
        if self.comm.rank == 0:
            announce_compiling()
        for turn in (0, 1):
            error: Exception | None = None
            if (self.comm.rank == 0) == (turn == 0):
                try:
                    self._ask_once()
                except Exception as caught:  # noqa: BLE001 - a compiler that fails on one rank ends all of them
                    error = caught
            raise_together(self.comm, error)

    def _ask_once(self) -> None:
        known = SYMBOLS.index(self.index.centre_elements[0])
        two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([known] * 2), np.eye(3) * 9.0, True)
        rows = self.index.spec.compute(two, 1)
        precisions: set[Precision] = {"double"} if self._flagged is not None else {"double", self.precision}
        for times in (1, 50):  # a large index has one way for few queries, and another for many
            for precision in sorted(precisions):
                self.index.log_kernel_sum(np.repeat(rows, times, axis=0), 1, precision=precision)
        if self._flagged is not None:
            self.index.upper_bound(rows, 0.0, np.full(len(rows), -1, np.int32), 1)

    def measure(self, frame: Frame) -> NDArray[np.float64]:
        """Compute dH of this rank's atoms, all exactly and in double precision; nan for those not watched.

        Nothing is decided.

        Raises
        ------
        ElementError
            The frame holds an element that the index lacks.
        FrameError
            The frame has no descriptor.
        """
        evaluation = Evaluation(self.index, frame, self.threads)
        evaluation.complete()
        return evaluation.of_atoms()

    def observe(self, frame: Frame | None, *, step: int | None = None, error: Exception | None = None) -> Decision:
        """Evaluate a frame if it is due, and decide; the same decision on every rank.

        Parameters
        ----------
        frame
            This rank's part of the frame; None if it could not be made.
        step
            The step, if `frame` is None.
        error
            What kept this rank from making the frame. It is a failure of all ranks then.

        Raises
        ------
        MonitorError
            On all ranks, if measuring failed on any; the text is that of the first rank that failed.
        """
        step = frame.step if frame is not None else step
        assert step is not None
        if not self.due(step):
            return Decision(step, evaluated=False)
        started = time.perf_counter()
        work = _Work(error)
        evaluation = work.do(lambda: self._begin(frame))
        if self._flagged is not None and self._flagged.share is None:
            n = self._agree(step, work.error, 0 if evaluation is None else len(evaluation))
            if n:
                self._flagged.choose_share(n)
        vector = work.do(lambda: self._summarise(evaluation))
        if vector is None:
            vector = summarise(np.empty(0), np.empty(0, np.int64), self.select, self.halt, True)
        summary = combine(self.comm.allgather(vector))
        if summary.failed:
            self._fail(summary.failed[0], step, work.error)
        decision = self._decide(step, summary)
        assert evaluation is not None
        values = self.values
        if decision.save and (values, self.precision) != ("exact", "double"):
            work.do(evaluation.complete)
            self._agree(step, work.error)
            values = "exact"
        dH = evaluation.of_atoms()
        return replace(decision, dH=dH, values=values, seconds=time.perf_counter() - started)

    def _begin(self, frame: Frame | None) -> Evaluation:
        assert frame is not None
        return Evaluation(self.index, frame, self.threads)

    def _summarise(self, evaluation: Evaluation | None) -> NDArray[np.float64]:
        """Compute what must be known of a frame, and return this rank's vector."""
        assert evaluation is not None
        sample = None
        if self._flagged is not None:
            sample = self._flagged.compute(evaluation, self.select)
        elif self.precision == "single":
            compute_in_single(evaluation, self.select, self.halt)
        else:
            evaluation.complete()
        return summarise(evaluation.dH, evaluation.ids, self.select, self.halt, False, sample)

    def _agree(self, step: int, error: Exception | None, count: int = 0) -> int:
        """Return the sum of the ranks' counts; or raise the same error on all of them, if any brings one."""
        vectors = self.comm.allgather(np.array([error is not None, count], dtype=np.float64))
        if vectors[:, 0].any():
            self._fail(int(np.flatnonzero(vectors[:, 0])[0]), step, error)
        return int(vectors[:, 1].sum())

    def _fail(self, first: int, step: int, error: Exception | None) -> None:
        """Raise the same error on all ranks; called on all ranks."""
        texts = self.comm.gather(None if error is None else f"{type(error).__name__}: {error}")
        text: str = self.comm.broadcast(None if texts is None else texts[first])
        where = f" on rank {first} of {self.comm.size}" if self.comm.size > 1 else ""
        failure = MonitorError(f"watching failed at step {step}{where}: {text}")
        failure.implausible = text.startswith(f"{FrameError.__name__}:")
        raise failure from error

    def _decide(self, step: int, summary: Summary) -> Decision:
        """Return the decision, which lacks only what differs between ranks."""
        band, reasons = Band.COVERED, []
        if summary.maximum > self.select:
            band = Band.HALT if summary.maximum > self.halt else Band.CANDIDATE
            threshold = self.halt if band is Band.HALT else self.select
            name = "halt" if band is Band.HALT else "select"
            reasons.append(f"dH = {summary.maximum:.6g} of atom {summary.max_id} is above {name} = {threshold:.6g}")
        save = band is Band.HALT or (band is Band.CANDIDATE and self.schedule.may_save(step))
        if save:
            self.schedule.saved(step)
        shared: dict[str, Any] = {
            name: getattr(summary, name)
            for name in ("maximum", "max_id", "mean", "q50", "q99", "n", "n_select", "n_halt")
        }
        return Decision(
            step,
            evaluated=True,
            band=band,
            reasons=tuple(reasons),
            save=save,
            stop=band is Band.HALT,
            **shared,
        )


class _Work:
    """Does one thing after the other until one fails, and keeps that error: the other ranks must hear of it."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def do(self, act: Callable[[], _T]) -> _T | None:
        """Return what comes of `act`; None if it, or something before it, failed."""
        if self.error is None:
            try:
                return act()
            except Exception as caught:  # noqa: BLE001 - whatever it is
                self.error = caught
        return None
