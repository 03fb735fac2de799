"""temporary"""

from dataclasses import asdict, dataclass

import numpy as np

from ..information import log_kernel_sum


@dataclass(frozen=True)
class Kept:
    ordinal: int
    step: int
    information: float
    must: bool = False


@dataclass(frozen=True)
class Verdict:
    keep: bool
    novelty: float
    ordinal: int | None = None
    drop: int | None = None


class Selection:
    def __init__(self, index, *, budget=None, comm=None, threads=1):
        self.index, self.comm, self.next, self.all, self.kept = index, comm, 0, None, []

    def consider(self, proposal, *, must=False):
        rows, dH, select = self._whole(proposal)
        nov = dH if self.all is None else -np.logaddexp(-dH, log_kernel_sum(rows, self.all, self.index.bandwidth))
        novelty = float(nov.max())
        keep = must or novelty > float(select.min())
        if keep:
            self._join(rows, Kept(self.next, proposal.step, float(len(rows)), must))
        return Verdict(keep, novelty, self.next - 1)

    def add(self, proposal, kept):
        self._join(self._whole(proposal)[0], kept if isinstance(kept, Kept) else Kept(**kept))

    def state(self):
        return {"next": self.next, "kept": [asdict(kept) for kept in self.kept]}

    def restore(self, state):
        self.next = max(self.next, int(state["next"]))

    def _join(self, rows, kept):
        self.all = rows if self.all is None else np.concatenate([self.all, rows])
        self.kept.append(kept)
        self.next = max(self.next, kept.ordinal + 1)

    def _whole(self, proposal):
        parts = self.comm.gather(
            (proposal.ids, proposal.rows(np.arange(len(proposal.ids))), proposal.dH, proposal.select)
        )
        out = None
        if parts is not None:
            order = np.argsort(np.concatenate([p[0] for p in parts]))
            out = tuple(np.concatenate([p[i] for p in parts])[order] for i in (1, 2, 3))
        return self.comm.broadcast(out)
