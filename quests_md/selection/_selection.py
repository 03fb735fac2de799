"""Which candidates a run keeps (docs/selection.md)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, raise_together
from ..errors import InputError
from ..index import Reference
from ._pace import Pace
from ._provisional import Provisional

__all__ = ["Kept", "Proposal", "Selection", "Verdict"]

# Environments of a frame that are judged, and join when it is kept (5 MB in double precision): a sample of a frame
# that has more of them, so that a million atoms in a melt cost no more memory than ten thousand.
MOST_ROWS = 10_000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio: multiples of it are spread evenly

T = TypeVar("T")


class Proposal(Protocol):
    """What is handed over of a frame that is not covered: this rank's environments above `select`.

    Attributes
    ----------
    step
        Of the frame.
    ids
        (m,) ids of the environments.
    dH
        (m,) exact dH of each against the index, in nats.
    select
        The threshold of each, in nats, or that of all.
    """

    @property
    def step(self) -> int:
        """The frame's."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """Of the environments."""
        ...

    @property
    def dH(self) -> NDArray[np.float64]:
        """Against the index, exact."""
        ...

    @property
    def select(self) -> NDArray[np.float64] | float:
        """The threshold."""
        ...

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the descriptors (len(which), d) of the environments ``ids[which]``."""
        ...


@dataclass(frozen=True)
class Kept:
    """What a selection remembers of a kept frame, beside its rows.

    Attributes
    ----------
    ordinal
        Counts the frames that the run kept, from 0; never given twice.
    step
        Of the frame.
    information
        The number of its environments that were novel when it was kept.
    must
        It was saved whatever it adds: outside of the budget, and never dropped.
    """

    ordinal: int
    step: int
    information: float
    must: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a frame is kept, and why: the same on all ranks.

    Attributes
    ----------
    keep
        Keep it.
    ordinal
        Its ordinal if it is kept, else None.
    novelty
        The largest novelty of its environments, in nats; −inf if it has none above `select`.
    n_novel
        How many of its environments are novel: with a novelty above their `select`.
    information
        What the budget compares: `n_novel`.
    drop
        Ordinal of the kept frame that has to go, as the budget is full; None: nothing goes.
    excess
        By how much the largest novelty exceeds its `select`, in nats; −inf without environments.
    reason
        "new", "novel", "must"; or why it is not kept: "copy", "budget".
    """

    keep: bool
    ordinal: int | None
    novelty: float
    n_novel: int
    information: float
    drop: int | None
    excess: float
    reason: str


class Selection:
    """Decides which candidates of a run are kept.

    Parameters
    ----------
    index
        The reference that dH is computed against: its bandwidth is used.
    budget
        The most frames that are kept at a time; None is no limit.
    spare
        How many frames that are as novel go by for one that is kept, at least.
    comm
        The communicator; default one rank.
    threads
        Threads to use; None takes all cores.

    Raises
    ------
    InputError
        `budget` or `spare` is not a whole number of at least 1.
    """

    def __init__(
        self,
        index: Reference,
        *,
        budget: int | None = None,
        spare: int = 10,
        comm: Comm | None = None,
        threads: int | None = 1,
    ) -> None:
        for name, value in (("budget", budget), ("spare", spare)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not (whole or (name == "budget" and value is None)):
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        self._budget, self._spare = budget, spare
        self._comm: Comm = Serial() if comm is None else comm
        self._threads = threads
        self._index = index
        self._pace = Pace()
        self._kept: dict[int, Kept] = {}
        self._next = 0

    @functools.cached_property
    def _provisional(self) -> Provisional:
        # Not before the first frame: by then a live reference knows its width, too.
        return Provisional(self._index.spec.width, self._index.bandwidth)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The frames that are kept now, in the order in which they came."""
        return tuple(self._kept.values())

    def warm_up(self) -> None:
        """Compile before the run what judging a frame needs, once the reference is ready."""
        if self._index.ready:
            Provisional.warm_up(self._index.spec.width, self._index.bandwidth)

    def consider(self, proposal: Proposal, *, must: bool = False, first: bool = False) -> Verdict:
        """Decide about a frame; one that is kept joins the provisional reference at once. Collective.

        Parameters
        ----------
        proposal
            This rank's part of the frame; without environments where none is above `select`.
        must
            Keep it, whatever it adds: it halts the run.
        first
            It begins an event: keep it if anything in it is novel.

        Raises
        ------
        MonitorError
            Another rank failed; a rank that fails raises its own error.
        """
        which, m = self._sample(proposal)
        rows, sums, novelty, excess = self._together(lambda: self._judge(proposal, which))
        novel = excess > 0.0
        tops = [novelty.max(initial=-math.inf), excess.max(initial=-math.inf)]
        counts = self._comm.allgather(np.array([np.count_nonzero(novel), len(which), *tops]))
        judged = int(counts[:, 1].sum())
        n_novel = round(counts[:, 0].sum() * m / judged) if judged else 0  # of a sample: what it stands for
        largest, above = (float(top) for top in counts[:, 2:].max(axis=0))
        reason = self._pace.look(n_novel, above, self._next, self._spare)
        if first and n_novel:
            reason = "new"
        drop = None
        if must:
            reason = "must"
        elif reason and self._copied(rows, sums, novel):
            reason = ""
        elif reason:
            drop, reason = self._room(n_novel, reason)
        keep = reason in ("must", "new", "novel")
        ordinal = self._next if keep else None
        if keep:
            self._pace.kept()
            if drop is not None:
                self._together(lambda: self._drop(drop))
            self._join(proposal.ids[which], rows, Kept(self._next, proposal.step, float(n_novel), must))
        return Verdict(keep, ordinal, largest, n_novel, float(n_novel), drop, above, reason or "copy")

    def add(self, proposal: Proposal, kept: Kept | Mapping[str, Any]) -> None:
        """Take in a frame that was kept before the run was resumed. Collective.

        Parameters
        ----------
        proposal
            This rank's part of it, made of the saved frame.
        kept
            What `state` held of it.
        """
        which, _ = self._sample(proposal)
        rows = self._together(lambda: self._rows(proposal, which))
        self._join(proposal.ids[which], rows, kept if isinstance(kept, Kept) else Kept(**kept))

    def state(self) -> dict[str, Any]:
        """Return what a run needs to be resumed, beside the saved frames: JSON can hold it."""
        return {"next": self._next, "pace": asdict(self._pace), "kept": [asdict(kept) for kept in self.kept]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the counters of `state`; the frames themselves come by `add`, in the same order.

        Raises
        ------
        InputError
            It is not what `state` returned.
        """
        try:
            self._pace = Pace(**{field.name: state["pace"][field.name] + 0 for field in fields(Pace)})
            self._next = max(self._next, int(state["next"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the state of the selection cannot be read ({error!r}): start a new folder") from error

    def recall(self, n_novel: NDArray[np.int64], excess: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
        """Go through frames that were considered before the run was resumed; those that are kept come by `add`.

        Parameters
        ----------
        n_novel, excess, kept
            (n,) of each frame, in their order: as the verdict had it.
        """
        for novel, above, is_kept in zip(n_novel.tolist(), excess.tolist(), kept.tolist(), strict=True):
            self._pace.look(novel, above, self._next, self._spare)
            if is_kept:
                self._pace.kept()
                self._next += 1

    def _sample(self, proposal: Proposal) -> tuple[NDArray[np.int64], int]:
        """Return which environments of this rank are judged, and how many the frame has on all ranks."""
        dH, ids = proposal.dH, np.asarray(proposal.ids)
        parts = self._comm.allgather(np.array([len(ids), np.max(dH, initial=-math.inf)]))
        m, worst = int(parts[:, 0].sum()), parts[:, 1].max()
        if m <= MOST_ROWS:
            return np.arange(len(ids)), m
        place = (ids.astype(np.uint64) * _GOLDEN) / 2.0**64  # in [0, 1), of the id alone: the same on any rank
        return np.flatnonzero((place < MOST_ROWS / m) | (dH == worst)), m

    def _rows(self, proposal: Proposal, which: NDArray[np.int64]) -> NDArray[np.float64]:
        rows, shape = np.ascontiguousarray(proposal.rows(which), dtype=np.float64), (len(which), self._index.spec.width)
        if rows.shape != shape:
            raise InputError(f"the descriptors of a proposal must have shape {shape}, not {rows.shape}")
        return rows

    def _judge(self, proposal: Proposal, which: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return this rank's descriptors, ln K of what is kept, novelty, and how far that is above `select`."""
        rows = self._rows(proposal, which)
        sums = self._provisional.log_kernel_sum(rows, self._threads)
        novelty = -np.logaddexp(-proposal.dH[which], sums)
        return rows, sums, novelty, novelty - np.broadcast_to(proposal.select, proposal.dH.shape)[which]

    def _copied(self, rows: NDArray[np.float64], sums: NDArray[np.float64], novel: NDArray[np.bool_]) -> bool:
        """Return whether all novel environments of all ranks are copies: where select < 0, one copy covers nothing."""
        near = novel & (sums > -0.1)  # of a copy, K is 1 at least
        copies = self._together(lambda: self._provisional.copies(rows[near], self._threads))
        others = np.count_nonzero(novel) - np.count_nonzero(copies)
        return not self._comm.allgather(np.array([others], dtype=np.float64)).any()

    def _room(self, information: float, reason: str) -> tuple[int | None, str]:
        """Return which frame has to go for one of this `information`, and the reason, or "budget" for none."""
        inside = [kept for kept in self.kept if not kept.must]
        if self._budget is None or len(inside) < self._budget:
            return None, reason
        least = min(inside, key=lambda kept: (kept.information, -kept.ordinal))
        return (least.ordinal, reason) if least.information < information else (None, "budget")

    def _join(self, ids: NDArray[np.int64], rows: NDArray[np.float64], kept: Kept) -> None:
        """Add a frame's environments, of all ranks and by id, to the provisional reference of every rank."""
        parts = self._comm.gather((ids, rows))
        whole = self._together(lambda: None if parts is None else _by_id(parts))
        whole = self._comm.broadcast(whole)
        self._together(lambda: self._provisional.add(kept.ordinal, whole, self._threads))
        self._kept[kept.ordinal] = kept
        self._next = max(self._next, kept.ordinal + 1)

    def _drop(self, ordinal: int) -> None:
        self._provisional.drop(ordinal, self._threads)
        del self._kept[ordinal]

    def _together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; raise on all ranks where it raises on one."""
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is raised, together with the other ranks
            failed = error
        raise_together(self._comm, failed)
        return result  # type: ignore[return-value]  # raised above, or made


def _by_id(parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Return the rows of all ranks, by id."""
    ids = np.concatenate([part[0] for part in parts])
    return np.asarray(np.concatenate([part[1] for part in parts])[np.argsort(ids, kind="stable")])
