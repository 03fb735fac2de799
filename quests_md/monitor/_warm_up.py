"""Compiling before the run, and not in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..comm import Comm, together
from ..elements import SYMBOLS
from ..frame import Frame
from ..index import Reference
from ..information import Precision
from ..kernels._jit import announce_compiling
from ._identity import mark_of

__all__ = ["warm_up"]


def warm_up(
    index: Reference, comm: Comm, precision: Precision, is_flagged: bool, also: Callable[[], object] | None
) -> None:
    """Compile the kernels, or load them from the cache: rank 0 first, then the others. Collective."""
    if comm.rank == 0:
        announce_compiling()
    for is_first in (True, False):

        def ask(is_first: bool = is_first) -> None:
            if (comm.rank == 0) == is_first:
                _ask_once(index, precision, is_flagged)
                if also is not None:
                    also()

        together(comm, ask)


def _ask_once(index: Reference, precision: Precision, is_flagged: bool) -> None:
    known = SYMBOLS.index(index.centre_elements[0]) if index.ready else 1
    two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([known] * 2), np.eye(3) * 9.0, True)
    mark_of(two)
    if not index.ready:
        return
    rows = index.spec.compute(two, 1)
    precisions: set[Precision] = {"double"} if is_flagged else {"double", precision}
    for times in (1, 50):  # a large index has one way for few queries, and another for many
        for each in sorted(precisions):
            index.log_kernel_sum(np.repeat(rows, times, axis=0), 1, precision=each)
    if is_flagged:
        index.upper_bound(rows, 0.0, np.full(len(rows), -1, np.int32), 1)
