"""observe(Frame) → Decision."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, raise_together
from ..errors import FrameError, InputError, MonitorError
from ..frame import Frame
from ..index import Reference
from ..index._index import check_elements
from ..kernels._jit import announce_compiling
from ._decision import Band, Decision
from ._schedule import Schedule
from ._summary import Summary, combine, summarise

__all__ = ["Monitor"]


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
        "exact": every published dH is exact.
    threads
        Threads per rank; 1 by default, for the simulation has the other cores.
    comm
        How ranks talk; `Serial` for one.

    Raises
    ------
    InputError
        A threshold is not a number, or `select` is above `halt`.
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
        threads: int | None = 1,
        comm: Comm | None = None,
    ) -> None:
        for name, value in (("select", select), ("halt", halt)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise InputError(f"{name} must be a number of nats, not {value!r}")
        if select > halt:
            raise InputError(f"select = {select} lies above halt = {halt}: candidates lie between the two")
        if values != "exact":
            raise InputError(f'values must be "exact", not {values!r}')
        self.index = index
        self.select = float(select)
        self.halt = float(halt)
        self.values = values
        self.threads = threads
        self.schedule = Schedule(every, save_every)
        self.comm = Serial() if comm is None else comm

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
                two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([1, 1]), np.eye(3) * 9.0, True)
                try:
                    self.index.log_kernel_sum(self.index.spec.compute(two, 1), 1)
                except Exception as caught:  # noqa: BLE001 - a compiler that fails on one rank ends all of them
                    error = caught
            raise_together(self.comm, error)

    def measure(self, frame: Frame) -> NDArray[np.float64]:
        """Compute dH of this rank's atoms, nan for those not watched. Nothing is decided.

        Raises
        ------
        ElementError
            The frame holds an element that the index lacks.
        FrameError
            The frame has no descriptor.
        """
        if not self.index.ready:
            raise MonitorError("the reference is not ready yet")
        check_elements(self.index.elements, np.unique(frame.numbers))
        assert frame.n_local is not None
        dH = np.full(frame.n_local, np.nan)
        centres = frame.centres
        if len(centres):
            rows = self.index.spec.compute(frame, self.threads)
            dH[centres] = -self.index.log_kernel_sum(rows, self.threads)
            if np.isnan(dH[centres]).any():
                raise MonitorError("the reference gave a dH that is not a number")
        return dH

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
        dH, values, ids = np.empty(0), np.empty(0), np.empty(0, np.int64)
        if error is None and frame is not None:
            try:
                dH = self.measure(frame)
                centres = frame.centres
                assert frame.ids is not None
                values, ids = dH[centres], frame.ids[centres]
            except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
                error = caught
        vector = summarise(values, ids, self.select, self.halt, error is not None)
        summary = combine(self.comm.allgather(vector))
        if summary.failed:
            self._fail(summary.failed[0], step, error)
        return self._decide(step, summary, dH, started)

    def _fail(self, first: int, step: int, error: Exception | None) -> None:
        """Raise the same error on all ranks; called on all ranks."""
        texts = self.comm.gather(None if error is None else f"{type(error).__name__}: {error}")
        text: str = self.comm.broadcast(None if texts is None else texts[first])
        where = f" on rank {first} of {self.comm.size}" if self.comm.size > 1 else ""
        failure = MonitorError(f"watching failed at step {step}{where}: {text}")
        failure.implausible = text.startswith(f"{FrameError.__name__}:")
        raise failure from error

    def _decide(self, step: int, summary: Summary, dH: NDArray[np.float64], started: float) -> Decision:
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
            dH=dH,
            seconds=time.perf_counter() - started,
            **shared,
        )
