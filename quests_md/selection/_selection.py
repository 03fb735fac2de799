"""Which candidates a run keeps: the novelty of their environments, the pace, and the budget (docs/selection.md)."""

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
from ..information import Blocks, log_kernel_sum, log_kernel_sum_of_few, pack

__all__ = ["Kept", "Pace", "Proposal", "Provisional", "Selection", "Verdict"]

_TIMES = 4  # how many times as much as any frame before makes a frame new
_LEAST = 1.0  # nats above select: excesses below it are not told apart


@dataclass
class Pace:
    """The rule, and what it remembers: numbers, so that a run can be resumed.

    Frames count by the square of the number of their novel environments: one frame of a melt counts more than many of
    a crystal with an atom or two out of the ordinary, and a frame that is half covered counts a quarter.

    Attributes
    ----------
    most
        The largest number of novel environments that a frame of this run had.
    excess
        The largest of all novelties less `select`, in nats.
    seen, largest, passed
        Of the frames since the last one kept: their squares together, the largest of them, and how many frames.
    """

    most: int = 0
    excess: float = _LEAST
    seen: int = 0
    largest: int = 0
    passed: int = 0

    def look(self, n_novel: int, excess: float, kept: int, spare: int) -> str:
        """Take a frame with `n_novel` novel environments into account; return why to keep it, or "".

        `excess` is that of its worst environment, in nats. `kept` is how many frames the run kept until now: as many
        like the largest have to pass, and at least `spare`. So of frames that are all alike about the square root of
        twice their number is kept.
        """
        if not n_novel:
            return ""
        new, weight = n_novel > _TIMES * self.most or excess > _TIMES * self.excess, n_novel**2
        self.most, self.excess = max(self.most, n_novel), max(self.excess, excess)
        self.seen += weight
        self.largest = max(self.largest, weight)
        self.passed += 1
        if new:
            return "new"
        enough = self.seen >= max(spare, kept) * self.largest
        return "novel" if enough and weight * self.passed >= self.seen else ""

    def kept(self) -> None:
        """Start anew after a frame that is kept."""
        self.seen = self.largest = self.passed = 0


# Rows are laid out for kernel sums when the others are more than this, and more than a quarter of those laid out: so
# what laying out costs in a run is some times the cost of the rows, and most sums are fast ones.
_LOOSE = 1024
_NEAR = 0.01  # bandwidths between an environment and a copy of it


class Provisional:
    """Rows of kept frames, by ordinal; they come and go."""

    def __init__(self, width: int, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._nothing = np.zeros(width)  # what is subtracted from the rows
        self._owners = np.empty(0, np.int64)  # ordinal of the frame of every row
        self._buffer = np.empty((0, width))  # the rows, and room for more
        self._blocks: Blocks | None = None  # of the first `_laid_out` rows
        self._laid_out = 0

    @classmethod
    def warm_up(cls, width: int, bandwidth: float) -> None:
        """Compile what is needed later, by asking every question once."""
        rows, trial = np.zeros((2, width)), cls(width, bandwidth)
        trial.add(0, rows, 1)
        trial.log_kernel_sum(rows, 1)
        trial.copies(rows, 1)
        trial._lay_out(1)
        trial.log_kernel_sum(rows, 1)

    def __len__(self) -> int:
        return len(self._owners)

    def log_kernel_sum(self, query: NDArray[np.float64], threads: int | None) -> NDArray[np.float64]:
        """Return ln K(q) against the rows, to 1e-10·max(1, |ln K|); −inf where there are none."""
        total = np.full(len(query), -np.inf)
        if not len(query):
            return total
        laid_out, loose = self._buffer[: self._laid_out], self._buffer[self._laid_out : len(self)]
        if self._blocks is not None:
            total = log_kernel_sum(query, laid_out, self._bandwidth, checked=True, blocks=self._blocks, threads=threads)
        if len(loose):
            few = log_kernel_sum_of_few(query, loose, self._bandwidth, centre=self._nothing, threads=threads)
            total = np.logaddexp(total, few)
        return total

    def copies(self, query: NDArray[np.float64], threads: int | None) -> NDArray[np.bool_]:
        """Return whether a row lies within h/100 of each query."""
        rows, narrow = self._buffer[: len(self)], _NEAR * self._bandwidth
        sums = log_kernel_sum_of_few(query, rows, narrow, centre=self._nothing, threads=threads)
        return np.asarray(sums > -0.5)

    def add(self, ordinal: int, rows: NDArray[np.float64], threads: int | None) -> None:
        """Add the rows of a kept frame."""
        n = len(self) + len(rows)
        if n > len(self._buffer):
            grown = np.empty((max(n, len(self._buffer) * 3 // 2), self._buffer.shape[1]))
            grown[: len(self)] = self._buffer[: len(self)]
            self._buffer = grown
            # The layout holds a view of the rows that it was made of: they live on until it is made anew.
        self._buffer[len(self) : n] = rows
        self._owners = np.append(self._owners, np.full(len(rows), ordinal))
        if n - self._laid_out > max(_LOOSE, self._laid_out // 4):
            self._lay_out(threads)

    def drop(self, ordinal: int, threads: int | None) -> None:
        """Take out the rows of a frame that is kept no longer."""
        stay = self._owners != ordinal
        self._buffer = self._buffer[: len(self)][stay]
        self._owners = self._owners[stay]
        self._blocks, self._laid_out = None, 0
        if len(self) > _LOOSE:
            self._lay_out(threads)

    def _lay_out(self, threads: int | None) -> None:
        self._laid_out = len(self)
        self._blocks = pack(self._buffer[: self._laid_out], self._bandwidth, threads=threads)


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
