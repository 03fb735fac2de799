"""Kernel sums of a dataset that fits into memory over itself: every pair of rows once, split over threads and ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, together
from ..kernels import self_sum
from ..kernels._jit import over_rows
from ..kernels.blocks import TILE
from ..kernels.order import order_of
from ._sums import check_reach, check_rows, pack

__all__ = ["Report", "paired_log_sums"]

Report = Callable[[float], None]


def paired_log_sums(
    x: NDArray[Any],
    bandwidths: Sequence[float],
    *,
    comm: Comm,
    threads: int | None,
    report: Report | None = None,
) -> NDArray[np.float64]:
    """Compute ln K (n_bandwidths, n) of the rows of a dataset over all of its rows. Collective.

    The strips of `self_sum` are dealt out to the ranks, and within a rank to threads; they are added up in one
    order, so neither changes a digit. `report` is called with the share of this rank's work that is done.
    """
    strips = self_sum.strips(len(x))
    mine = strips[comm.rank :: comm.size]
    done = _Done(len(mine) * len(bandwidths), report)

    def work() -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
        rows = np.require(check_rows("x", x, np.float64), requirements=["W"])  # what kernels were compiled for
        check_reach("x", rows, min(bandwidths))
        order = order_of(rows)
        return order, [_sums_of(rows, h, order, mine, threads, done) for h in bandwidths]

    order, own = together(comm, work)
    out = np.empty((len(bandwidths), len(x)))
    nothing = np.zeros(-(-len(x) // TILE) * TILE)
    for k, sums in enumerate(own):
        total = nothing.copy()
        for turn in range(-(-len(strips) // comm.size)):  # a strip of every rank at a time: they are large
            for part in comm.allgather(sums[turn] if turn < len(sums) else nothing):
                total += part
        out[k, order] = np.log(total[: len(x)])
    return out


class _Done:
    """Counts strips that are done by any thread."""

    def __init__(self, total: int, report: Report | None) -> None:
        self._total, self._report, self._count, self._lock = total, report, 0, threading.Lock()

    def add(self) -> None:
        with self._lock:
            self._count += 1
            if self._report is not None:
                self._report(self._count / self._total)


def _sums_of(
    rows: NDArray[np.float64],
    bandwidth: float,
    order: NDArray[np.int64],
    strips: Sequence[tuple[int, int]],
    threads: int | None,
    done: _Done,
) -> NDArray[np.float64]:
    """Return what each of the strips adds to the sums (n_strips, n_blocks·TILE), in the order of the blocks."""
    blocks = pack(rows, bandwidth, order=order, threads=threads)
    sums, plain = np.zeros((len(strips), len(blocks.radius), TILE)), None if blocks.vector else 1

    def task(first: int, last: int) -> None:
        for s in range(first, last):
            self_sum.add_strip(blocks, plain, *strips[s], sums[s])
            done.add()

    over_rows(task, len(strips), threads, 1)
    return sums.reshape(len(strips), len(blocks.radius) * TILE)
