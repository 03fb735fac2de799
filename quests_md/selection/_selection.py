"""Which candidates a run keeps: by the novelty of their environments, the pace, and the budget (docs/selection.md)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, together
from ..errors import InputError
from ..index import Reference
from ..information import Blocks, log_kernel_sum, log_kernel_sum_of_few, pack

__all__ = ["SKIPPED", "Kept", "Proposal", "Selection", "Verdict"]

# -- pace: how often a frame is kept -----------------------------------------------------------------------------------

SKIPPED = -1  # the number of novel environments of a frame that was not judged
_TIMES = 4  # a frame is new if it has this many times more than any frame before
_LEAST = 1.0  # nats above select: smaller excesses are taken as equal
# With k kept frames one of k / 5 is judged. Judging takes k times as long as with one, so the mean cost of a frame does
# not grow with k, and about five frames are judged between two that are kept.
_OF_SPARE = 2  # the 5 is half of `spare`


@dataclass
class Pace:
    """The rule that says how often a run keeps a frame: a new one at once, similar ones more and more rarely.

    A frame has the weight n² if n of its environments are novel. So one frame of a melt has a larger weight than many
    frames of a crystal in which an atom or two are unusual, and a frame that is half covered has a quarter of its
    weight. All that the rule remembers are numbers, so that a run can be resumed.

    Attributes
    ----------
    most
        Largest number of novel environments in a frame of this run.
    excess
        Largest difference between novelty and `select`, in nats.
    seen, largest, passed
        Sum of the weights, largest weight, and number of the frames that came after the last kept one.
    skipped
        Number of frames that came after the last judged one, and were not judged.
    """

    most: int = 0
    excess: float = _LEAST
    seen: int = 0
    largest: int = 0
    passed: int = 0
    skipped: int = 0

    def skips(self, n_above: int, excess: float, kept: int, spare: int) -> bool:
        """Return whether a frame need not be judged, and count it if so.

        It has `n_above` environments above `select`, by at most `excess` nats. Its novelty can only be less. At least
        max(`spare`, `kept`) frames that are alike come before the next kept one. So it is enough to judge a few of
        them, and the frames between them are taken to be like these. A frame that may be new is always judged.
        """
        turn = kept // (spare // _OF_SPARE or 1) if kept >= spare else 1
        if self.skipped + 1 >= turn or n_above > _TIMES * self.most or excess > _TIMES * self.excess:
            return False
        self.skipped += 1
        return True

    def judge(self, n_novel: int, excess: float, kept: int, spare: int) -> str:
        """Count a frame with `n_novel` novel environments; return why to keep it, or "".

        `excess` is the largest difference between novelty and `select` in it, in nats. `kept` is the number of frames
        that the run has kept. After a kept frame, the weights of the following frames are added up. The next frame is
        kept if the sum is at least max(`spare`, `kept`) times the largest of these weights, and if its own weight is
        not below their mean. So about √(2N) of N equal frames are kept.
        """
        times, self.skipped = self.skipped + 1, 0  # it stands for the frames that were not judged, too
        if not n_novel:
            return ""
        new, weight = n_novel > _TIMES * self.most or excess > _TIMES * self.excess, n_novel**2
        self.most, self.excess = max(self.most, n_novel), max(self.excess, excess)
        self.seen += times * weight
        self.largest = max(self.largest, weight)
        self.passed += times
        if new:
            return "new"
        enough = self.seen >= max(spare, kept) * self.largest
        return "novel" if enough and weight * self.passed >= self.seen else ""

    def restart(self) -> None:
        """Begin to count anew after a kept frame."""
        self.seen = self.largest = self.passed = 0


# -- provisional reference: the environments of the kept frames --------------------------------------------------------

# Kernel sums are fast for rows that are laid out. All rows are laid out again when more rows than this are not laid
# out, and when these are more than a quarter of the others. So laying out stays cheap, and most sums are fast.
_LOOSE = 1024
_NEAR = 0.01  # in bandwidths: an environment that is nearer is a copy


class Provisional:
    """The rows of the kept frames, by ordinal of the frame. Rows can be added and dropped."""

    def __init__(self, width: int, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._nothing = np.zeros(width)  # the centre that is subtracted from rows: none
        self._owners = np.empty(0, np.int64)  # ordinal of each row's frame
        self._buffer = np.empty((0, width))  # the rows, and room for more
        self._blocks: Blocks | None = None  # the layout of the first `_laid_out` rows
        self._laid_out = 0

    @classmethod
    def warm_up(cls, width: int, bandwidth: float) -> None:
        """Compile the kernels, by calling each of them once."""
        rows, trial = np.zeros((2, width)), cls(width, bandwidth)
        trial.add(0, rows, 1)
        trial.log_kernel_sum(rows, 1)
        trial.find_copies(rows, 1)
        trial._lay_out(1)
        trial.log_kernel_sum(rows, 1)

    def __len__(self) -> int:
        return len(self._owners)

    def log_kernel_sum(self, query: NDArray[np.float64], threads: int | None) -> NDArray[np.float64]:
        """Return ln K(q) against the rows, within 1e-10·max(1, |ln K|); −inf without rows."""
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

    def find_copies(self, query: NDArray[np.float64], threads: int | None) -> NDArray[np.bool_]:
        """Return which queries (n,) have a row within h/100."""
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
            # The layout keeps a view of the old buffer, until it is made again.
        self._buffer[len(self) : n] = rows
        self._owners = np.append(self._owners, np.full(len(rows), ordinal))
        if n - self._laid_out > max(_LOOSE, self._laid_out // 4):
            self._lay_out(threads)

    def drop(self, ordinal: int, threads: int | None) -> None:
        """Remove the rows of a frame that is no longer kept."""
        stay = self._owners != ordinal
        self._buffer = self._buffer[: len(self)][stay]
        self._owners = self._owners[stay]
        self._blocks, self._laid_out = None, 0
        if len(self) > _LOOSE:
            self._lay_out(threads)

    def _lay_out(self, threads: int | None) -> None:
        self._laid_out = len(self)
        self._blocks = pack(self._buffer[: self._laid_out], self._bandwidth, threads=threads)


# -- selection: which frames are kept ----------------------------------------------------------------------------------

# The largest number of environments of a frame that are judged, and that join the reference (5 MB in double precision).
# A larger frame is sampled. So a melt of a million atoms needs no more memory than one of ten thousand.
MOST_ROWS = 10_000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio: its multiples are spread evenly


class Proposal(Protocol):
    """A frame that is not covered, as a `Selection` takes it: this rank's environments above `select`.

    Attributes
    ----------
    step
        Step of the frame.
    ids
        (m,) ids of the environments.
    dH
        (m,) exact dH of each environment against the index, in nats.
    select
        Threshold of each environment (m,), or one number for all, in nats.
    """

    @property
    def step(self) -> int:
        """Step of the frame."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the environments."""
        ...

    @property
    def dH(self) -> NDArray[np.float64]:
        """Exact dH against the index."""
        ...

    @property
    def select(self) -> NDArray[np.float64] | float:
        """Thresholds."""
        ...

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the descriptors (len(which), d) of the environments ``ids[which]``."""
        ...


@dataclass(frozen=True)
class Kept:
    """What a selection remembers of a kept frame, besides its rows.

    Attributes
    ----------
    ordinal
        Number of the frame among all that the run has kept, from 0; never used twice.
    step
        Step of the frame.
    information
        Number of its environments that were novel when it was kept.
    must
        Whether it was kept whatever it adds. Such a frame does not count for the budget and is never dropped.
    """

    ordinal: int
    step: int
    information: float
    must: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a frame is kept, and why; the same on all ranks.

    Attributes
    ----------
    keep
        Whether the frame is kept.
    ordinal
        Ordinal of the frame if it is kept, else None.
    novelty
        Largest novelty of its environments, in nats; −inf if none is above `select`.
    n_novel
        Number of its novel environments, whose novelty is above their `select`.
    information
        What the budget compares: `n_novel`.
    drop
        Ordinal of the kept frame that must go, because the budget is full; None: none.
    excess
        Largest difference between novelty and `select`, in nats; −inf without environments.
    reason
        Why it is kept: "new", "novel", "must"; or why not: "copy", "budget".
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
    """Decide which candidates of a run are kept.

    Parameters
    ----------
    index
        The reference of dH; its bandwidth is used.
    budget
        Largest number of frames that are kept at a time; None: no limit.
    spare
        Smallest number of equally novel frames that pass before the next one is kept.
    comm
        How ranks talk; default one rank.
    threads
        Number of threads; None: all cores.

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
        # Made at the first frame: only then a live reference knows its width.
        return Provisional(self._index.spec.width, self._index.bandwidth)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The frames that are kept now, in the order in which they were kept."""
        return tuple(self._kept.values())

    def warm_up(self) -> None:
        """Compile what judging a frame needs, before the run; nothing happens until the reference is ready."""
        if self._index.ready:
            Provisional.warm_up(self._index.spec.width, self._index.bandwidth)

    def consider(self, proposal: Proposal, *, must: bool = False, first: bool = False) -> Verdict:
        """Decide about a frame; a kept frame joins the provisional reference at once. Collective.

        Parameters
        ----------
        proposal
            This rank's part of the frame; it may have no environments.
        must
            Keep the frame whatever it adds, because it halts the run.
        first
            The frame begins an event: keep it if anything in it is novel.

        Raises
        ------
        MonitorError
            Another rank failed. The rank that failed raises its own error.
        """
        which, m = self._sample(proposal)
        rows, sums, novelty, excess = together(self._comm, lambda: self._judge(proposal, which))
        novel = excess > 0.0
        tops = [novelty.max(initial=-math.inf), excess.max(initial=-math.inf)]
        counts = self._comm.allgather(np.array([np.count_nonzero(novel), len(which), *tops]))
        judged = int(counts[:, 1].sum())
        n_novel = round(counts[:, 0].sum() * m / judged) if judged else 0  # scaled up from the sample
        largest, above = (float(top) for top in counts[:, 2:].max(axis=0))
        reason = self._pace.judge(n_novel, above, self._next, self._spare)
        if first and n_novel:
            reason = "new"
        drop = None
        if must:
            reason = "must"
        elif reason and self._are_copies(rows, sums, novel):
            reason = ""
        elif reason:
            drop, reason = self._make_room(n_novel, reason)
        keep = reason in ("must", "new", "novel")
        ordinal = self._next if keep else None
        if keep:
            self._pace.restart()
            if drop is not None:
                together(self._comm, lambda: self._drop(drop))
            self._join(proposal.ids[which], rows, Kept(self._next, proposal.step, float(n_novel), must))
        return Verdict(keep, ordinal, largest, n_novel, float(n_novel), drop, above, reason or "copy")

    def skips(self, n_above: int, excess: float) -> bool:
        """Return whether a frame need not be considered, so that the cost does not grow with the kept frames.

        Every frame must be asked for once, except those that begin an event or halt the run. Not collective: `n_above`
        and `excess` are the same on all ranks.

        Parameters
        ----------
        n_above
            Number of environments above `select`.
        excess
            At least the largest difference between dH and `select` in the frame, in nats.
        """
        return self._pace.skips(n_above, excess, self._next, self._spare)

    def add(self, proposal: Proposal, kept: Kept | Mapping[str, Any]) -> None:
        """Add a frame that was kept before the run was resumed. Collective.

        Parameters
        ----------
        proposal
            This rank's part of the saved frame.
        kept
            The entry of the frame in `state`.
        """
        which, _ = self._sample(proposal)
        rows = together(self._comm, lambda: self._read_rows(proposal, which))
        self._join(proposal.ids[which], rows, kept if isinstance(kept, Kept) else Kept(**kept))

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides the saved frames, as values that JSON can hold."""
        return {"next": self._next, "pace": asdict(self._pace), "kept": [asdict(kept) for kept in self.kept]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the counters of `state`. The frames are added by `add`, in the same order.

        Raises
        ------
        InputError
            It is not what `state` returned.
        """
        try:
            pace = {"skipped": 0, **state["pace"]}  # a run of format 1 skipped none
            self._pace = Pace(**{field.name: pace[field.name] + 0 for field in fields(Pace)})
            self._next = max(self._next, int(state["next"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the state of the selection cannot be read ({error!r}): start a new folder") from error

    def recall(self, n_novel: NDArray[np.int64], excess: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
        """Count the frames that were considered before the run was resumed. Kept frames are added by `add`.

        Parameters
        ----------
        n_novel, excess, kept
            (n,) `n_novel`, `excess` and `keep` of each frame's verdict, in order. `n_novel` is `SKIPPED` for frames
            that were not considered.
        """
        for novel, above, is_kept in zip(n_novel.tolist(), excess.tolist(), kept.tolist(), strict=True):
            if novel == SKIPPED:
                self._pace.skipped += 1
                continue
            self._pace.judge(novel, above, self._next, self._spare)
            if is_kept:
                self._pace.restart()
                self._next += 1

    def _sample(self, proposal: Proposal) -> tuple[NDArray[np.int64], int]:
        """Return which environments of this rank are judged, and how many environments all ranks have."""
        dH, ids = proposal.dH, np.asarray(proposal.ids)
        parts = self._comm.allgather(np.array([len(ids), np.max(dH, initial=-math.inf)]))
        m, worst = int(parts[:, 0].sum()), parts[:, 1].max()
        if m <= MOST_ROWS:
            return np.arange(len(ids)), m
        place = (ids.astype(np.uint64) * _GOLDEN) / 2.0**64  # in [0, 1); it depends on the id alone
        return np.flatnonzero((place < MOST_ROWS / m) | (dH == worst)), m

    def _read_rows(self, proposal: Proposal, which: NDArray[np.int64]) -> NDArray[np.float64]:
        rows, shape = np.ascontiguousarray(proposal.rows(which), dtype=np.float64), (len(which), self._index.spec.width)
        if rows.shape != shape:
            raise InputError(f"the descriptors of a proposal must have shape {shape}, not {rows.shape}")
        return rows

    def _judge(self, proposal: Proposal, which: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return descriptors, ln K against the kept rows, novelty, and novelty less `select` of this rank."""
        rows = self._read_rows(proposal, which)
        sums = self._provisional.log_kernel_sum(rows, self._threads)
        novelty = -np.logaddexp(-proposal.dH[which], sums)
        return rows, sums, novelty, novelty - np.broadcast_to(proposal.select, proposal.dH.shape)[which]

    def _are_copies(self, rows: NDArray[np.float64], sums: NDArray[np.float64], novel: NDArray[np.bool_]) -> bool:
        """Return whether the novel environments of all ranks are copies. If select < 0, a copy may be novel."""
        near = novel & (sums > -0.1)  # K of a copy is at least 1
        copies = together(self._comm, lambda: self._provisional.find_copies(rows[near], self._threads))
        others = np.count_nonzero(novel) - np.count_nonzero(copies)
        return not self._comm.allgather(np.array([others], dtype=np.float64)).any()

    def _make_room(self, information: float, reason: str) -> tuple[int | None, str]:
        """Return the ordinal of the frame that must leave (None if there is room), and `reason`.

        If a frame of this `information` adds too little to take the place of another one, return None and "budget".
        """
        inside = [kept for kept in self.kept if not kept.must]
        if self._budget is None or len(inside) < self._budget:
            return None, reason
        least = min(inside, key=lambda kept: (kept.information, -kept.ordinal))
        return (least.ordinal, reason) if least.information < information else (None, "budget")

    def _join(self, ids: NDArray[np.int64], rows: NDArray[np.float64], kept: Kept) -> None:
        """Add the environments of all ranks, sorted by id, to the provisional reference of every rank."""
        parts = self._comm.gather((ids, rows))
        whole = together(self._comm, lambda: None if parts is None else _merge_by_id(parts))
        whole = self._comm.broadcast(whole)
        together(self._comm, lambda: self._provisional.add(kept.ordinal, whole, self._threads))
        self._kept[kept.ordinal] = kept
        self._next = max(self._next, kept.ordinal + 1)

    def _drop(self, ordinal: int) -> None:
        self._provisional.drop(ordinal, self._threads)
        del self._kept[ordinal]


def _merge_by_id(parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Return the rows of all ranks, sorted by id."""
    ids = np.concatenate([part[0] for part in parts])
    return np.asarray(np.concatenate([part[1] for part in parts])[np.argsort(ids, kind="stable")])
