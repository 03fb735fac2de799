"""temporary"""

from dataclasses import dataclass

import numpy as np

from ..information import log_kernel_sum


@dataclass(frozen=True)
class Verdict:
    keep: bool
    novelty: float
    ordinal: int | None = None
    drop: int | None = None


class Selection:
    def __init__(self, index, *, budget=None, comm=None, threads=1):
        self.index, self.comm, self.n, self.all = index, comm, 0, None

    def consider(self, proposal, *, must=False):
        parts = self.comm.gather((proposal.ids, proposal.rows(), proposal.dH))
        out = None
        if parts is not None:
            ids = np.concatenate([p[0] for p in parts])
            o = np.argsort(ids)
            rows = np.concatenate([p[1] for p in parts])[o]
            dH = np.concatenate([p[2] for p in parts])[o]
            nov = dH if self.all is None else -np.logaddexp(-dH, log_kernel_sum(rows, self.all, self.index.bandwidth))
            out = rows, float(nov.max())
        rows, novelty = self.comm.broadcast(out)
        keep = must or novelty > float(np.min(self.comm.broadcast(proposal.select)[:1]))
        if keep:
            self.all = rows if self.all is None else np.concatenate([self.all, rows])
            self.n += 1
        return Verdict(keep, novelty, self.n - 1)
