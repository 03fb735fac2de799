"""Kernel sums of a dataset that fits into memory over itself: every pair of rows once, split over threads and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, raise_together
from ..kernels import self_sum
from ..kernels._jit import over_rows
from ..kernels.blocks import TILE
from ..kernels.order import order_of
from ._sums import check_rows, pack

__all__ = ["paired_log_sums"]


def paired_log_sums(
    x: NDArray[Any], bandwidths: Sequence[float], *, comm: Comm, threads: int | None
) -> NDArray[np.float64]:
    """Compute ln K (n_bandwidths, n) of the rows of a dataset over all of its rows. Collective.

    The strips of `self_sum` are dealt out to the ranks, and within a rank to threads; they are added up in one
    order, so neither changes a digit.
    """
    own, error = np.empty((0, 0)), None
    strips = self_sum.strips(len(x))
    places = [np.arange(rank, len(strips), comm.size) for rank in range(comm.size)]
    order = np.empty(0, np.int64)
    try:
        rows = check_rows("x", x, np.float64)
        order = order_of(rows)
        own = np.stack([_sums_of(rows, h, order, [strips[s] for s in places[comm.rank]], threads) for h in bandwidths])
    except Exception as failure:  # noqa: BLE001 - the other ranks must hear of it before they wait for this one
        error = failure
    raise_together(comm, error)
    out = np.empty((len(bandwidths), len(x)))
    n_places = -(-len(x) // TILE) * TILE
    for k in range(len(bandwidths)):
        padded = np.zeros((len(places[0]), n_places))  # rank 0 has the most strips
        padded[: len(places[comm.rank])] = own[k]
        parts = comm.allgather(padded.ravel()).reshape(comm.size, len(places[0]), n_places)
        total = np.zeros(n_places)
        for s in range(len(strips)):
            total += parts[s % comm.size, s // comm.size]
        out[k, order] = np.log(total[: len(x)])
    return out


def _sums_of(
    rows: NDArray[np.float64],
    bandwidth: float,
    order: NDArray[np.int64],
    strips: Sequence[tuple[int, int]],
    threads: int | None,
) -> NDArray[np.float64]:
    """Return what each of the strips adds to the sums (n_strips, n_blocks·TILE), in the order of the blocks."""
    blocks = pack(rows, bandwidth, order=order, threads=threads)
    sums, plain = np.zeros((len(strips), len(blocks.radius), TILE)), None if blocks.vector else 1

    def task(first: int, last: int) -> None:
        for s in range(first, last):
            self_sum.add_strip(blocks, plain, *strips[s], sums[s])

    over_rows(task, len(strips), threads, 1)
    return sums.reshape(len(strips), -1)
