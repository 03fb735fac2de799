"""Compiling before the run, and not in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..comm import Comm, raise_together
from ..elements import SYMBOLS
from ..frame import Frame
from ..index import Reference
from ..information import Precision
from ..kernels._jit import announce_compiling

__all__ = ["warm_up"]


def warm_up(
    index: Reference, comm: Comm, precision: Precision, is_flagged: bool, also: Callable[[], object] | None
) -> None:
    """Compile the kernels, or load them from the cache: rank 0 first, then the others. Collective."""
    if comm.rank == 0:
        announce_compiling()
    for turn in (0, 1):
        error: Exception | None = None
        if (comm.rank == 0) == (turn == 0):
            try:
                _ask_once(index, precision, is_flagged)
                if also is not None:
                    also()
            except Exception as caught:  # noqa: BLE001 - a compiler that fails on one rank ends all of them
                error = caught
        raise_together(comm, error)


def _ask_once(index: Reference, precision: Precision, is_flagged: bool) -> None:
    if not index.ready:
        return
    known = SYMBOLS.index(index.centre_elements[0])
    two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([known] * 2), np.eye(3) * 9.0, True)
    rows = index.spec.compute(two, 1)
    precisions: set[Precision] = {"double"} if is_flagged else {"double", precision}
    for times in (1, 50):  # a large index has one way for few queries, and another for many
        for each in sorted(precisions):
            index.log_kernel_sum(np.repeat(rows, times, axis=0), 1, precision=each)
    if is_flagged:
        index.upper_bound(rows, 0.0, np.full(len(rows), -1, np.int32), 1)
