"""dH of one frame on one rank, as far as it is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..descriptors import Environments
from ..elements import check_elements
from ..errors import MonitorError
from ..frame import Frame
from ..index import Reference
from ..information import Precision

__all__ = ["CHUNK", "Evaluation", "compute_in_single"]

# Environments whose rows are held at a time: few enough that half a megabyte of rows stays in the cache, many enough
# that the kernel sums have whole blocks of queries.
CHUNK = 960

# What single precision may be off by is max of the two, the second times |dH|; and bands are those of double: within
# this of a threshold dH is computed again.
_ABSOLUTE, _RELATIVE, _NEAR = 1e-4, 1e-6, 1e-3


class Evaluation:
    """What is known of dH of a frame's environments; rows are computed when they are needed, and not kept.

    Parameters
    ----------
    index, threads
        The reference, and threads to ask it with.
    frame
        The frame; its arrays are needed as long as something is to be computed.

    Attributes
    ----------
    ids
        (n,) of the environments' atoms.
    dH
        (n,) in nats: exact, an upper bound, or nan where nothing is known.
    is_exact
        (n,) where dH is exact, in double precision.
    """

    def __init__(self, index: Reference, frame: Frame, threads: int | None) -> None:
        if not index.ready:
            raise MonitorError("the reference is not ready yet")
        present = frame.distinct_numbers
        check_elements(index.elements, present)
        index.spec.check_elements(set(present.tolist()))
        assert frame.ids is not None
        assert frame.n_local is not None
        self.index, self.threads = index, threads
        self.environments = Environments(index.spec, frame)
        self.ids = frame.ids[self.environments.centres].astype(np.int64, copy=False)
        self.dH = np.full(len(self), np.nan)
        self.is_exact = np.zeros(len(self), dtype=bool)
        self._n_local = frame.n_local

    def __len__(self) -> int:
        return len(self.environments)

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the descriptors of environments."""
        return self.environments.compute(which, self.threads)

    def put(self, which: NDArray[np.int64], rows: NDArray[np.float64], precision: Precision = "double") -> None:
        """Compute dH of environments from their `rows`."""
        dH = -self.index.log_kernel_sum(rows, self.threads, precision=precision)
        if np.isnan(dH).any():
            raise MonitorError("the reference gave a dH that is not a number")
        self.dH[which] = dH
        self.is_exact[which] = precision == "double"

    def compute(self, which: NDArray[np.int64], precision: Precision = "double") -> None:
        """Compute dH of environments, some at a time: it does not depend on which others are asked for."""
        for first in range(0, len(which), CHUNK):
            part = which[first : first + CHUNK]
            self.put(part, self.rows(part), precision)

    def complete(self) -> None:
        """Compute what is not exact yet."""
        self.compute(np.flatnonzero(~self.is_exact))

    def of_atoms(self) -> NDArray[np.float64]:
        """Return dH of this rank's atoms (n_local,), nan for those that are not watched."""
        dH = np.full(self._n_local, np.nan)
        dH[self.environments.centres] = self.dH
        return dH


def compute_in_single(evaluation: Evaluation, select: float, halt: float) -> None:
    """Compute dH in single precision; in double what decides: near the thresholds, and what may be the maximum."""
    evaluation.compute(np.arange(len(evaluation)), "single")
    dH = evaluation.dH
    error = np.maximum(_ABSOLUTE, _RELATIVE * np.abs(dH))
    error[~np.isfinite(dH)] = 0.0
    again = dH + error >= np.max(dH - error, initial=-np.inf)
    for threshold in (select, halt):
        if np.isfinite(threshold):
            again |= np.abs(dH - threshold) <= error + _NEAR
    evaluation.compute(np.flatnonzero(again))
