"""The monitor: it compares frames with a reference and decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, raise_together, share_text, together
from ..descriptors import DescriptorSpec
from ..elements import SYMBOLS
from ..errors import FrameError, InputError
from ..frame import Frame, step_of
from ..index import Index, Live, Reference
from ..information import Precision
from ..kernels.jit import announce_compiling
from ..notebook import to_html
from ..own_function import OwnFunction
from ._ask_all import ask_all
from ._decision import Above, Band, Decision, Key, Visits, compute_cell_mark, compute_mark
from ._errors import LocalErrors
from ._flagged import Flagged
from ._measure import (
    ALL,
    NO_ERRORS,
    POOLED,
    Evaluation,
    Part,
    Pool,
    RankState,
    Summary,
    combine,
    compute_in_single,
    count_only,
    summarise,
    summarise_nothing,
)
from ._own_rows import compute_own_rows
from ._rules import Events, Plausibility, Schedule, Thresholds

__all__ = ["Monitor"]


class Monitor:
    """Compare frames with a reference and decide; write nothing.

    Parameters
    ----------
    index
        The reference: an `Index`, a `Live` one, or a `Described` one, of own descriptors. A live reference takes the
        first frames, which are not evaluated, until its span is over; then the owner of the monitor must call its
        `finish`.
    select, halt
        dH (nats) above which a frame is worth keeping, and above which the run stops; compared with ``>``. Each is a
        number; a number for each chemical symbol; or a false-alarm rate or force error, ``{"false_alarm": 0.01}`` or
        ``{"force_error": 0.3}``, which the calibration of the index turns into numbers at the first evaluation. With a
        calibration of local residuals an atom lies above a force error if its own bound does; then `values` must be
        "exact". There is no default, because dH depends on the bandwidth and the number of references.
    min_atoms, min_fraction
        A frame lies above a threshold if at least this many atoms, and this share of the watched atoms, do. By default
        the worst atom decides.
    consecutive
        An event begins after this many evaluated frames in a row above `select`, and ends after as many that are not
        above it. Only frames of an event are saved, so one hot frame alone is not. A frame that halts begins an event
        at once.
    release
        An event can end only when the largest dH is at most this (nats); default `select`.
    every
        Evaluate frames whose step is a multiple of this.
    save_every
        Save candidates at least this many steps apart; a frame that halts is always saved.
    min_distance
        A frame is implausible if two atoms are nearer than this share of the smallest distance that the reference has
        for their elements; 0: distances are not checked. Frames with nan, lost atoms or an exploded cell are also
        implausible.
    implausible
        What happens at an implausible frame: "stop" (the session fails) or "continue".
    values
        "exact": every published dH is exact. "flagged" is much faster: dH is exact above `select`, for the frame's
        maximum and in saved frames. The others are certified upper bounds, never above `select`, and mean and quantiles
        are those of a sample of about 128 atoms. Maximum, counts, bands and decisions are the same. Force errors by
        local residuals are exact where dH is, and estimates elsewhere.
    precision
        Precision of exact values. "single" errs by less than max(1e-4, 1e-6·|dH|) nats, and only where that decides
        nothing: near a threshold, for the maximum and in saved frames dH is computed in "double". "flagged" values are
        always in double precision.
    threads
        Threads per rank; 1 by default, because the simulation uses the other cores.
    comm
        How ranks talk; default `Serial`, for one rank.

    Raises
    ------
    InputError
        A threshold is invalid, `select` is above `halt`, a choice does not exist, the index is one of own
        descriptors without their function, or flagged values are to be compared with a force error by local residuals.
    """

    def __init__(
        self,
        index: Reference,
        *,
        select: float | Mapping[str, Any],
        halt: float | Mapping[str, Any],
        min_atoms: int = 1,
        min_fraction: float = 0.0,
        consecutive: int = 3,
        release: float | None = None,
        every: int = 1,
        save_every: int = 1,
        min_distance: float = 0.5,
        implausible: str = "stop",
        values: str = "exact",
        precision: Precision = "single",
        threads: int | None = 1,
        comm: Comm | None = None,
    ) -> None:
        choices = {
            "values": (values, ("exact", "flagged")),
            "precision": (precision, ("double", "single")),
            "implausible": (implausible, ("stop", "continue")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise InputError(f'{name} must be "{allowed[0]}" or "{allowed[1]}", not {value!r}')
        if not hasattr(index, "spec"):
            raise InputError(f"index must be an Index, not a {type(index).__name__}: Index.open(path) opens one")
        spec = index.spec  # an index of own descriptors without a function raises here, before the run begins
        self.index = index
        self._own = spec if isinstance(spec, OwnFunction) else None
        self._local = LocalErrors.find(index)
        self.thresholds = Thresholds(select, halt, min_atoms, min_fraction, self._local is not None)
        if values == "flagged" and self.thresholds.has_limits:
            raise InputError(
                'a force_error as a threshold needs values = "exact": flagged values have estimates of local residuals '
                "where dH is only bounded. Or give select and halt as numbers of nats or as false_alarm rates"
            )
        self.plausibility = Plausibility(index, min_distance)
        self.events = Events(consecutive, release)
        self.schedule = Schedule(every, save_every)
        self.implausible = implausible
        self.values = values
        self.precision = precision
        self.threads = threads
        self.comm = Serial() if comm is None else comm
        self._flagged = Flagged() if values == "flagged" else None
        self._pool = Pool(0 if self._flagged is None else POOLED)
        self.visits = Visits()
        self.learned_until: Key | None = None  # the last evaluation that a live reference has taken
        self._every = every
        self._ready = False  # whether thresholds are numbers, and the share of the sample is chosen
        self._lost = 0  # number of atoms that were lost at the last evaluation
        self._cell: bytes | None = None  # the cell of the last frame
        self._present = b""  # the elements of the last frame
        self._screen: float | None = None  # in Å, of `Plausibility`; known when the reference is ready
        self._stop = ""  # why this rank wants the run to stop

    def __repr__(self) -> str:
        """Return one line that says what it compares, and with what."""
        given = ", ".join(f"{name} = {value}" for name, value in self.thresholds.given.items())
        of = f"{len(self.index):,} references" if isinstance(self.index, Index) else repr(self.index)
        return f"<Monitor: {given}, every {self.every}, {self.values} values, {of}>"

    def _repr_html_(self) -> str:
        shown = ("every", "values", "precision", "implausible", "threads", "index")
        return to_html("Monitor", {**self.thresholds.given, **{name: getattr(self, name) for name in shown}})

    # -- settings and state ----------------------------------------------------------------------------------------

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.schedule.every

    @property
    def expects_errors(self) -> bool:
        """Whether evaluations tell which force errors are expected: the calibration of the index knows."""
        return self._local is not None

    def due(self, step: int) -> bool:
        """Return whether a frame of this step would be evaluated: hosts ask before they make one."""
        return step % self._every == 0

    def request_stop(self, reason: str) -> None:
        """Let the run stop at the next evaluation, on all ranks, even if only one asks. "" takes the request back."""
        self._stop = reason

    @property
    def settled(self) -> tuple[bool, float | None, float | None]:
        """What evaluations have settled so far: whether thresholds are numbers, the sample, the first volume."""
        share = None if self._flagged is None else self._flagged.share
        return self.thresholds.resolved is not None, share, self.plausibility.volume

    def state(self) -> dict[str, Any]:
        """Return what the next decisions depend on, besides thresholds and events, as values that JSON can hold."""
        _, share, volume = self.settled
        return {"sample": share, "volume": volume}

    def restore(
        self,
        state: Mapping[str, Any],
        thresholds: Mapping[str, Any] | None,
        saved: tuple[int, int] | None,
        learned_until: Key | None = None,
        evaluations: int = 0,
        samples: Sequence[tuple[int, int, Part]] = (),
    ) -> None:
        """Go on after an earlier part of the run, which saved its last frame at run and step `saved`.

        It has made this number of `evaluations`, the last of which had these `samples` (run, step, what it added).
        """
        self.plausibility.volume = state.get("volume")
        self.learned_until = learned_until
        if self._flagged is not None:
            self._flagged.share, self._flagged.count = state.get("sample"), evaluations
            for run, step, part in samples:
                self._pool.add(part, run, step)
        if thresholds is not None:
            self.thresholds.restore(thresholds)
        self._ready = self.thresholds.resolved is not None and (
            self._flagged is None or self._flagged.share is not None
        )
        if saved is not None:
            self.schedule.note_saved(*saved)

    def warm_up(self, also: Callable[[], object] | None = None) -> None:
        """Compile the kernels, or load them from the cache, before the run. Collective.

        Rank 0 does so before the others. `also` is called in the same order, for what the owner of the monitor needs.
        """
        if self.comm.rank == 0:
            announce_compiling()
        for is_first in (True, False):

            def ask(is_first: bool = is_first) -> None:
                if (self.comm.rank == 0) == is_first:
                    ask_all(self.index, self.precision, self._flagged is not None)
                    if also is not None:
                        also()

            together(self.comm, ask)

    # -- what hosts and sessions ask for ---------------------------------------------------------------------------

    def measure(self, frame: Frame) -> NDArray[np.float64]:
        """Compute dH (n_local,) of this rank's atoms in double precision, and decide nothing; nan if not watched.

        Raises
        ------
        ElementError
            The frame holds an element that the index lacks.
        FrameError
            The frame has no descriptor.
        """
        return self.measure_all(frame)[0]

    def measure_all(self, frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Compute what `measure` does, and beside it the bound of the force errors; None without a calibration."""
        if self._own is not None and frame.has_ghosts and self.comm.size > 1:
            raise InputError("own descriptors are computed of whole frames, and this rank has a part of one")
        evaluation = Evaluation(self.index, frame, self.threads, errors=self._local)
        evaluation.complete()
        bound: NDArray[np.float64] | None = evaluation.spread_errors()["force_errors"]
        return evaluation.spread(evaluation.dH), bound

    def observe(
        self, frame: Frame | None, *, step: int | None = None, error: Exception | None = None, whole: bool = True
    ) -> Decision:
        """Evaluate a frame if it is due, and decide, the same on every rank. Collective.

        A decision to save is a proposal: a caller that does not save the frame must call `not_saved`.

        Parameters
        ----------
        frame
            This rank's part of the frame; None if it could not be made.
        step
            The step, if `frame` is None.
        error
            Why this rank could not make the frame. All ranks fail then; but after a `FrameError` the frame is
            implausible.
        whole
            Whether to compute every dH exactly if the frame shall be saved. A caller that may still decide not to save
            the frame passes False, and calls `complete` when it saves the frame.

        Raises
        ------
        MonitorError
            Measuring failed on any rank. On all ranks, with the text of the first rank that failed.
        InputError
            A threshold cannot be resolved. On all ranks, at the first evaluation.
        """
        step = step_of(frame, step)
        if step % self._every:
            return Decision(step, evaluated=False)
        started = time.perf_counter()
        evaluation, vector, failure = self._measure(frame, error)
        summary = combine(vector[None] if self.comm.size == 1 else self.comm.allgather(vector))
        if summary.failed:
            raise_together(self.comm, failure, f"watching failed at step {step}")
        place = float("nan") if frame is None else compute_cell_mark(frame)
        mark = (summary.mark[0] + place, summary.mark[1] + place)
        is_covered = not summary.implausible and (not summary.n_select or self._find_band(summary) is Band.COVERED)
        maximum = float("inf") if summary.implausible else summary.maximum
        key, again = self.visits.visit(step, mark, summary.n_frame, maximum, is_covered)
        named: dict[str, Any] = {"run": key.run, "repeat": key.repeat, "again": again, "mark": mark}
        if self._is_learned(key, again):
            return Decision(step, evaluated=False, **named)
        broken = self._find_damage(step, summary, failure, frame)
        if not broken and isinstance(self.index, Live) and not self.index.ready:
            assert frame is not None
            return self._learn(self.index, frame, summary, key, named)
        if not again and self._flagged is not None:
            self._flagged.count += 1
        named["seconds"] = time.perf_counter() - started
        if broken:
            return self._decide_broken(broken, step, frame, summary, named)
        assert evaluation is not None
        assert frame is not None
        decision = self._decide(frame, summary, evaluation, named)
        return self.complete(decision) if whole and decision.save else decision

    def not_saved(self) -> None:
        """Take note that the frame of the last decision was not saved: `save_every` counts from saved frames."""
        self.schedule.take_back()

    def propose(self, decision: Decision) -> Above:
        """Return the environments above `select` of an evaluated frame, with exact dH in double precision. Collective.

        Raises
        ------
        MonitorError
            A dH cannot be computed on any rank. On all ranks, with the text of the first rank that failed.
        """
        evaluation = decision.evaluation
        assert evaluation is not None
        select = self.thresholds.get(evaluation.numbers)[0]
        above = np.flatnonzero(self._find_above(evaluation, 0))
        where = f"watching failed at step {decision.step}"
        together(self.comm, lambda: evaluation.compute(above[~evaluation.is_exact[above]]), where)
        return Above(
            decision.step,
            evaluation.ids[above],
            self.thresholds.scale(0, evaluation.dH, self._bound_if_needed(evaluation), evaluation.numbers)[above],
            np.asarray(select)[above],
            lambda which: evaluation.rows(above[which]),
            must=decision.band is Band.HALT,
        )

    def complete(self, decision: Decision) -> Decision:
        """Return the decision with every dH of its frame computed exactly, in double precision. Collective.

        Raises
        ------
        MonitorError
            A dH cannot be computed on any rank. On all ranks, with the text of the first rank that failed.
        """
        evaluation = decision.evaluation
        if evaluation is None or (self.values, self.precision) == ("exact", "double"):
            return decision
        together(self.comm, evaluation.complete, f"watching failed at step {decision.step}")
        return replace(decision, dH=evaluation.spread(evaluation.dH), values="exact", **evaluation.spread_errors())

    # -- measuring -------------------------------------------------------------------------------------------------

    def _measure(
        self, frame: Frame | None, error: Exception | None
    ) -> tuple[Evaluation | None, NDArray[np.float64], Exception | None]:
        """Measure a frame; return the evaluation, this rank's vector, and the error of this rank."""
        evaluation, vector, mark, rows = None, None, None, None
        is_learning = isinstance(self.index, Live) and not self.index.ready
        if self._own is not None:
            rows, error = compute_own_rows(self._own, frame, error, self.plausibility, self.comm)
        try:
            if error is not None:
                raise error
            assert frame is not None
            mark = compute_mark(frame)
            if is_learning:
                spec = self.index.spec
                assert isinstance(spec, DescriptorSpec)
                vector = count_only(spec, frame, bool(self._stop), mark)
            elif self._own is None or rows is not None:  # else rank 0 has failed
                if self._screen is None:
                    self._screen = self.plausibility.screen
                evaluation = Evaluation(self.index, frame, self.threads, self._screen, self._present, self._local, rows)
                self._present = evaluation.present
        except Exception as caught:  # noqa: BLE001 - the other ranks must learn any error
            error = caught
        if not self._ready and not is_learning:
            self._prepare(evaluation, error)
        if evaluation is not None and self._ready:
            try:
                assert frame is not None
                vector = self._summarise(evaluation, frame, mark)
            except Exception as caught:  # noqa: BLE001 - as above
                error = caught
        if vector is None:
            vector = summarise_nothing(RankState.of(error), bool(self._stop), mark)
        return evaluation, vector, error

    def _is_learned(self, key: Key, again: bool) -> bool:
        """Return whether a live reference has learned from this frame: such a frame is not evaluated."""
        until = self.learned_until
        if until is None:
            return False
        is_learning = isinstance(self.index, Live) and not self.index.ready
        return key.run == until.run and key.step <= until.step and (again or not is_learning)

    def _learn(self, live: Live, frame: Frame, summary: Summary, key: Key, named: dict[str, Any]) -> Decision:
        """Give a frame to a live reference that learns; it is not evaluated. Collective."""
        lesson = live.learn(frame, summary.n, self.comm)
        self.learned_until = key
        stop = bool(summary.stopping)
        reasons = (self._say_why_stopping(summary),) if stop else ()
        return Decision(frame.step, evaluated=False, reasons=reasons, stop=stop, lesson=lesson, **named)

    def _prepare(self, evaluation: Evaluation | None, error: Exception | None) -> None:
        """Settle what depends on the number of watched atoms, unless there are none or a rank failed. Collective."""
        counts = np.zeros(1 + len(SYMBOLS))
        counts[0] = error is not None
        if evaluation is not None:
            counts[1:] = np.bincount(evaluation.numbers, minlength=len(SYMBOLS))
        total = self.comm.allgather(counts).sum(axis=0).astype(int)
        n = int(total[1:].sum())
        if total[0] or (not n and self.thresholds.resolved is None):
            return
        self.thresholds.watched = {SYMBOLS[z]: int(total[1 + z]) for z in np.flatnonzero(total[1:])}
        if self.thresholds.resolved is None:
            self.thresholds.resolve(self.index, self.thresholds.watched)
        if self._flagged is not None and n:
            self._flagged.choose_share(n)
        self._ready = n > 0 or self._flagged is None

    def _summarise(self, evaluation: Evaluation, frame: Frame, mark: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Compute the dH that decisions need, and return this rank's vector."""
        thresholds = self.thresholds
        sample = ALL
        if self._flagged is not None:
            # What lies beyond the largest calibrated dH must be known, so that its force error is not estimated.
            known = np.inf if self._local is None else self._local.largest()
            sample = self._flagged.compute(evaluation, min(thresholds.lowest, known), not len(self._pool))
        elif self.precision == "single":
            compute_in_single(evaluation, thresholds)
        else:
            evaluation.complete()
        overlap = self.plausibility.find_overlap(frame) if evaluation.is_crowded else ""
        if overlap:
            raise FrameError(overlap)
        errors = evaluation.judge()
        return summarise(
            evaluation.dH,
            evaluation.ids,
            evaluation.numbers,
            thresholds.tables,
            stop=bool(self._stop),
            n_rank=frame.n_local or 0,
            n_expected=frame.n_expected,
            errors=NO_ERRORS if errors is None else evaluation.sum_up(errors),
            counts=self._count_above(evaluation) if thresholds.has_limits else None,
            sample=sample,
            mark=mark,
        )

    def _find_above(self, evaluation: Evaluation, which: int) -> NDArray[np.bool_]:
        """Return which environments (n,) lie above `select` (0) or `halt` (1)."""
        bound = self._bound_if_needed(evaluation)
        return self.thresholds.is_above(which, evaluation.dH, bound, evaluation.numbers)

    def _bound_if_needed(self, evaluation: Evaluation) -> NDArray[np.float64] | None:
        """Return the bound (n,) of the force errors, if a threshold is one of it."""
        errors = evaluation.judge() if self.thresholds.has_limits else None
        return None if errors is None else errors.bound

    def _count_above(self, evaluation: Evaluation) -> tuple[int, int]:
        """Return how many environments lie above `select` and `halt`."""
        n_select, n_halt = (int(self._find_above(evaluation, which).sum()) for which in (0, 1))
        return n_select, n_halt

    def _find_damage(self, step: int, summary: Summary, error: Exception | None, frame: Frame | None) -> str:
        """Return why a frame is implausible, the same on every rank; empty if it is not. Collective."""
        if summary.implausible:
            text = share_text(self.comm, summary.implausible[0], None if error is None else str(error))
            return text.removeprefix(f"step {step}: ")
        assert frame is not None
        # Only newly lost atoms count: a host may still expect those that were lost before the last evaluation.
        lost = max(0, summary.n_expected - summary.n_frame)
        known, self._lost = self._lost, lost
        if lost > known:
            return f"{lost} of {summary.n_expected} atoms are lost"
        assert frame.cell is not None
        cell = frame.cell.tobytes()
        if cell == self._cell:
            return ""
        exploded = self.plausibility.find_explosion(frame)
        self._cell = None if exploded else cell
        return exploded

    def _decide_broken(
        self, why: str, step: int, frame: Frame | None, summary: Summary, named: dict[str, Any]
    ) -> Decision:
        """Return the decision on a broken frame. Collective."""
        n_local = 0 if frame is None else frame.n_local or 0
        asked = (self._say_why_stopping(summary),) if summary.stopping else ()
        return Decision(
            step,
            evaluated=True,
            band=Band.IMPLAUSIBLE,
            reasons=(why, *asked),
            stop=self.implausible == "stop" or bool(asked),
            event=0 if self.events.current is None else self.events.current.number,
            maximum=float("inf"),
            n=0 if summary.implausible else summary.n,  # not every rank may have counted its atoms
            dH=np.full(n_local, np.inf),
            **named,
        )

    def _decide(self, frame: Frame, summary: Summary, evaluation: Evaluation, named: dict[str, Any]) -> Decision:
        """Return the decision on a plausible frame; `named` is what names its evaluation. Collective."""
        events, band, reasons, again = self.events, self._find_band(summary), list[str](), named["again"]
        if band is not Band.COVERED:
            name = "halt" if band is Band.HALT else "select"
            many = summary.n_halt if band is Band.HALT else summary.n_select
            worst = summary.maximum, summary.max_id, summary.force_error
            reasons.append(self.thresholds.explain(name, many, summary.n, *worst))
        begins = ends = False
        if not again and (band is not Band.COVERED or events.current is not None or events.coming is not None):
            begins, ends = self._follow(frame, band, summary, evaluation)
        event = events.ended if ends else events.current
        save = band is not Band.COVERED and events.current is not None and not again
        save = save and (band is Band.HALT or self.schedule.may_save(self.visits.run, frame.step))
        if save:
            self.schedule.note_saved(self.visits.run, frame.step)
        if summary.stopping:
            reasons.append(self._say_why_stopping(summary))
        if not again or not len(self._pool):
            self._pool.add(summary.part, self.visits.run, frame.step)
        sample = self._pool.describe(frame.step)
        return Decision(
            frame.step,
            evaluated=True,
            band=band,
            reasons=tuple(reasons),
            save=save,
            stop=band is Band.HALT or bool(summary.stopping),
            event=0 if event is None else event.number,
            begins=begins,
            ends=ends,
            maximum=summary.maximum,
            max_id=summary.max_id,
            mean=sample.mean,
            q50=sample.q50,
            q99=sample.q99,
            n_sample=sample.n,
            sample_age=sample.age,
            sample=None if self._flagged is None else summary.part,
            n=summary.n,
            n_select=summary.n_select,
            n_halt=summary.n_halt,
            force_error=summary.force_error,
            expected_error=summary.expected_error,
            n_outside=summary.n_outside,
            force_rmse=self._expect_rmse(summary),
            dH=evaluation.spread(evaluation.dH),
            **evaluation.spread_errors(),
            values=self.values,
            evaluation=evaluation,
            **named,
        )

    def _expect_rmse(self, summary: Summary) -> float:
        """Return the expected root mean square force error of a frame, in eV/Å; nan if nothing is known of it."""
        if self._local is None:
            return float("nan")
        return self._local.rmse_of(summary.squares, summary.n, summary.n_outside)

    def _find_band(self, summary: Summary) -> Band:
        if not summary.n_select:
            return Band.COVERED
        is_enough = self.thresholds.is_enough
        if is_enough(summary.n_halt, summary.n):
            return Band.HALT
        return Band.CANDIDATE if is_enough(summary.n_select, summary.n) else Band.COVERED

    def _follow(self, frame: Frame, band: Band, summary: Summary, evaluation: Evaluation) -> tuple[bool, bool]:
        """Give a frame to the events; return whether one begins, and whether one ends."""
        if band is Band.COVERED:
            return False, self.events.see_below(summary.maximum)
        above = evaluation.ids[self._find_above(evaluation, 0)]
        at_once = band is Band.HALT
        return self.events.see_above(frame.step, frame.time, summary.maximum, summary.max_id, above, at_once), False

    def _say_why_stopping(self, summary: Summary) -> str:
        return share_text(self.comm, summary.stopping[0], self._stop)
