"""Kernel sums of many queries over many references: in chunks, so that memory is bounded, and split over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, together
from ..errors import InputError
from ..kernels.kernel_sum import BLOCK
from ..kernels.order import order_of
from ._pairs import Report, paired_log_sums
from ._sums import check_reach, check_rows, pack, sums_of_groups

__all__ = ["Report", "own_log_sums", "set_of_rows"]

PAIRED = 1 << 20  # rows of a dataset that is laid out as a whole: 800 MB beside the rows, with 63 columns
CHUNK = 1 << 17  # rows that are held at a time: 66 MB in double precision, as much again laid out, and their order
_BATCH = 64 * BLOCK  # queries between two reports
_LEFT_OUT = 1e-12  # of a sum that is known to be 1 at least


def set_of_rows(x: Any) -> NDArray[Any]:
    """Return a dataset as an array (n, d) whose rows are not read yet: a mapped file stays where it is.

    Raises
    ------
    InputError
        It has another shape, or no rows.
    """
    rows: NDArray[Any] = x if isinstance(x, np.memmap) else np.asarray(x)
    if rows.ndim != 2:
        raise InputError(f"x must have shape (n, d), not {rows.shape}")
    if not len(rows):
        raise InputError("x has no rows")
    return rows


def own_log_sums(
    x: NDArray[Any],
    bandwidths: Sequence[float],
    *,
    comm: Comm,
    threads: int | None,
    report: Report | None,
) -> NDArray[np.float64]:
    """Compute ln K of the rows of a dataset over all of its rows, at several bandwidths. Collective.

    Of up to `PAIRED` rows every pair is computed once. Of more, chunks of rows are references in turn, laid out once
    for each bandwidth, and all rows are queries of each. A row is in its own sum, which is thus 1 at least: whatever is
    nothing beside 1 is left out, in every chunk.

    Parameters
    ----------
    x
        (n, d), of any kind of numbers; may be mapped and larger than memory.
    bandwidths
        h, in 1/Å.
    comm
        The queries are split over its ranks. A sum depends neither on the other queries nor on the ranks.
    threads
        Threads of this rank; None takes all cores, or one where there are several ranks.
    report
        Called with the share that is done, from time to time.

    Returns
    -------
    ndarray
        (n_bandwidths, n), on all ranks.

    Raises
    ------
    InputError
        A value is not finite, or beyond 1e12 bandwidths.
    """
    threads = 1 if threads is None and comm.size > 1 else threads
    if len(x) <= PAIRED:
        return paired_log_sums(x, bandwidths, comm=comm, threads=threads, report=report)

    def work() -> tuple[list[list[NDArray[np.int64]]], NDArray[np.float64]]:
        shares = _shares(x, comm.size)
        return shares, _sums_of_share(x, [share[comm.rank] for share in shares], bandwidths, threads, report)

    shares, own = together(comm, work)
    return _gathered(own, shares, len(x), comm)


def _shares(x: NDArray[Any], ranks: int) -> list[list[NDArray[np.int64]]]:
    """Return for each chunk the rows of each rank: groups that stand together in space, dealt out in turn."""
    shares, dealt = [], 0
    for first in range(0, len(x), CHUNK):
        order = order_of(_chunk(x, first))
        owners = (np.arange(len(order)) // BLOCK + dealt) % ranks
        dealt += -(-len(order) // BLOCK)
        shares.append([order[owners == rank] for rank in range(ranks)])
    return shares


def _chunk(x: NDArray[Any], first: int) -> NDArray[np.float64]:
    part = x[first : first + CHUNK]
    # What is mapped is copied: pages that are read in order, and not row by row in the kernels.
    rows = check_rows("x", np.array(part) if isinstance(x, np.memmap) else part, np.float64)
    return np.require(rows, requirements=["W"])  # what kernels were compiled for


def _sums_of_share(
    x: NDArray[Any],
    share: list[NDArray[np.int64]],
    bandwidths: Sequence[float],
    threads: int | None,
    report: Report | None,
) -> NDArray[np.float64]:
    """Compute ln K (n_bandwidths, n_share) of the rows of `share`, given by chunk."""
    ends = np.cumsum([0, *(len(rows) for rows in share)])
    out, nothing = np.full((len(bandwidths), ends[-1]), -np.inf), math.log2(_LEFT_OUT / len(x))
    done, total = 0, len(x) * len(bandwidths)
    for first in range(0, len(x), CHUNK):
        reference = _chunk(x, first)
        check_reach("x", reference, min(bandwidths))
        order = order_of(reference)
        for k, bandwidth in enumerate(bandwidths):
            blocks = pack(reference, bandwidth, order=order, threads=threads)
            for c, rows in enumerate(share):
                query = (reference if c * CHUNK == first else _chunk(x, c * CHUNK))[rows]
                for begin in range(0, len(query), _BATCH):
                    part = slice(ends[c] + begin, min(ends[c] + begin + _BATCH, ends[c + 1]))
                    sums = sums_of_groups(query[begin : begin + _BATCH], blocks, nothing, threads)
                    out[k, part] = np.logaddexp(out[k, part], sums)
                    if report is not None:
                        report((done + len(reference) * part.stop / ends[-1]) / total)
            done += len(reference)
    return out


def _gathered(
    own: NDArray[np.float64], shares: list[list[NDArray[np.int64]]], n: int, comm: Comm
) -> NDArray[np.float64]:
    """Put the shares of all ranks together, on all of them."""
    places = [np.concatenate([c * CHUNK + share[rank] for c, share in enumerate(shares)]) for rank in range(comm.size)]
    out, longest = np.empty((len(own), n)), max(len(rows) for rows in places)
    for k, sums in enumerate(own):
        padded = np.zeros(longest)
        padded[: len(sums)] = sums
        for rows, values in zip(places, comm.allgather(padded), strict=True):
            out[k, rows] = values[: len(rows)]
    return out
