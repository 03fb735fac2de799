"""dH of one frame on one rank, as far as it is known."""

from __future__ import annotations

from collections.abc import Sequence

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
    screen
        Å; whether any atom has a neighbour nearer than this is told by the rows.

    Attributes
    ----------
    ids, numbers
        (n,) of the environments' atoms; `numbers` are atomic numbers.
    dH
        (n,) in nats: exact, an upper bound, or nan where nothing is known.
    is_exact
        (n,) where dH is exact, in double precision.
    is_crowded
        Whether any environment whose rows have been computed has a neighbour nearer than `screen`.
    """

    def __init__(self, index: Reference, frame: Frame, threads: int | None, screen: float = 0.0) -> None:
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
        self.numbers = frame.numbers[self.environments.centres].astype(np.uint8)  # there are 118 elements
        self.is_crowded, self._screen = False, screen
        self.dH = np.full(len(self), np.nan)
        self.is_exact = np.zeros(len(self), dtype=bool)
        self._n_local = frame.n_local

    def __len__(self) -> int:
        return len(self.environments)

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the descriptors of environments."""
        rows = self.environments.compute(which, self.threads)
        if self._screen and not self.is_crowded:
            self.is_crowded = bool(self.environments.is_nearer(rows, self._screen).any())
        return rows

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
        return self.spread(self.dH)

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of environments as those of this rank's atoms, nan for those that are not watched."""
        of_atoms = np.full(self._n_local, np.nan)
        of_atoms[self.environments.centres] = values
        return of_atoms


def compute_in_single(evaluation: Evaluation, thresholds: Sequence[NDArray[np.float64]]) -> None:
    """Compute dH in single precision; in double what decides: near the thresholds, and what may be the maximum.

    `thresholds` are (n,), one for each environment.
    """
    evaluation.compute(np.arange(len(evaluation)), "single")
    dH = evaluation.dH
    error = np.maximum(_ABSOLUTE, _RELATIVE * np.abs(dH))
    error[~np.isfinite(dH)] = 0.0
    again = dH + error >= np.max(dH - error, initial=-np.inf)
    for threshold in thresholds:
        if np.isfinite(threshold).any():
            distance = np.where(np.isfinite(dH), dH, np.inf) - threshold
            np.abs(distance, out=distance)
            distance -= error
            again |= distance <= _NEAR
    evaluation.compute(np.flatnonzero(again))
