"""Kernel sums: of queries over references, and of a dataset over itself, in chunks, on threads and ranks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..comm import Comm, choose_threads, join, together
from ..errors import InputError
from ..kernels import _simd_sum, self_sum
from ..kernels import blocks as _blocks
from ..kernels import kernel_sum as _kernel_sum
from ..kernels.blocks import TILE, order_of
from ..kernels.kernel_sum import BLOCK
from ..kernels.threads import over_rows

__all__ = [
    "DEFAULT_BANDWIDTH",
    "ERRORS",
    "Blocks",
    "Precision",
    "Report",
    "as_rows",
    "check_bandwidth",
    "check_reach",
    "check_rows",
    "delta_entropy",
    "find_undecided",
    "local_residuals",
    "log_kernel_sum",
    "log_kernel_sum_of_few",
    "pack",
    "sum_dataset",
    "sum_groups",
    "sum_pairs",
]

DEFAULT_BANDWIDTH = 0.015

Blocks = _blocks.Blocks
Precision = Literal["double", "single"]
Report = Callable[[float], None]
_BANDWIDTHS = (1e-9, 1e9)
# In bandwidths: the largest value of a row. Beyond it, the rounding of a distance is larger than a bandwidth, and the
# rows that pad a block are no longer far from all others.
_REACH = 1e12
_DTYPES: dict[Precision, list[Any]] = {
    "double": [np.float64],
    "single": [np.float32, np.float64],
}  # the first that rounds little enough
_MOST_DIFFERENCES = 0.05  # of the blocks that matter. A block takes far longer by differences than as a product
# What no dH errs by more than: the larger of nats, and of a share of |dH|.
ERRORS: dict[Precision, tuple[float, float]] = {"double": (1e-10, 1e-10), "single": (1e-4, 1e-6)}


def log_kernel_sum(
    query: ArrayLike,
    reference: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    centre: NDArray[np.float64] | None = None,
    checked: bool = False,
    blocks: Blocks | None = None,
    precision: Precision = "double",
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute ln K(q) = ln Σ_j exp(−‖q − r_j‖² / 2h²), exactly.

    Parameters
    ----------
    query, reference
        (n_query, d) and (n_reference, d) descriptors, in 1/Å.
    bandwidth
        h, in 1/Å.
    centre
        (d,) what was subtracted from the rows of `reference` and not from those of `query`. Default: nothing.
    checked
        Whether the rows of `reference` are known to be finite. Then they are not read once more to check it.
    blocks
        What `pack` returned for `reference` at this bandwidth and precision. Default: made for this call.
    precision
        "double" (to 1e-10·max(1, |dH|)), or "single" (to max(1e-4, 1e-6·|dH|)), which takes less time.
    threads
        Threads to use; None takes all cores. A result depends neither on it nor on the other queries.

    Returns
    -------
    ndarray
        (n_query,); finite at any distance; −inf for an empty reference.

    Raises
    ------
    InputError
        Shapes do not match, a value is not finite, the bandwidth is not a number between 1e-9 and 1e9, or the
        reference has values beyond 1e12 bandwidths.
    """
    check_bandwidth(bandwidth)
    if not checked:
        reference = check_rows("reference", reference, None)
        check_reach("reference", reference, bandwidth)
    reference = np.asarray(reference)
    query = _check_query(query, reference)
    centre = np.zeros(query.shape[1]) if centre is None else centre
    if blocks is None:
        blocks = pack(reference, bandwidth, precision, sort=precision == "single", threads=threads)
    out = np.empty(len(query))
    plain = None if blocks.vector else 1

    def task(first: int, last: int) -> None:
        _kernel_sum.log_kernel_sum(query, centre, blocks, plain, -np.inf, first, last, out, None)

    over_rows(task, len(query), threads, _kernel_sum.BLOCK)
    return out


def sum_groups(query: NDArray[np.float64], blocks: Blocks, nothing: float, threads: int | None) -> NDArray[np.float64]:
    """Compute ln K(q) over references that are laid out. It is fast if near queries (n, d) follow each other.

    Terms below 2^`nothing` need not be added: the caller knows that the sum is far larger.
    """
    out, centre, plain = np.empty(len(query)), np.zeros(query.shape[1]), None if blocks.vector else 1
    step = _kernel_sum.BLOCK

    def task(first: int, last: int) -> None:
        for group in range(first, last):  # one at a time: the kernel would reorder a longer range
            end = min((group + 1) * step, len(query))
            _kernel_sum.log_kernel_sum(query, centre, blocks, plain, nothing, group * step, end, out, None)

    over_rows(task, -(-len(query) // step), threads, 1)
    return out


def local_residuals(
    query: NDArray[np.float64], blocks: Blocks, centre: NDArray[np.float64], threads: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute ln K of queries, and their local residuals: weighted means of the residuals of the references.

    The local residual is s(q) = Σ_j w_j e_j / Σ_j w_j, over the references with a residual e_j. With
    y_j = exp(−p·‖q − r_j‖² / 2h²), the weight w_j is y_j¹⁶ + 2⁻¹⁸ y_j: references at a fourth of the width of y_j
    decide where there are any, and all near ones elsewhere. Far away the nearest reference decides.

    Parameters
    ----------
    query
        (n_query, d), finite and C-contiguous.
    blocks
        What `pack` returned for the references and their residuals; p is 2^(squarings − 1).
    centre
        (d,) what was subtracted from the references and not from the queries.
    threads
        Threads to use; None takes all cores.

    Returns
    -------
    tuple
        ln K (n_query,); and (n_query, 2): s, and ln Σ_j w_j. References that are left out of K have no weight, so s is
        nan if none of those that matter has a residual.
    """
    out, local, plain = np.empty(len(query)), np.empty((len(query), 2)), None if blocks.vector else 1

    def task(first: int, last: int) -> None:
        _kernel_sum.log_kernel_sum(query, centre, blocks, plain, -np.inf, first, last, out, local)

    over_rows(task, len(query), threads, _kernel_sum.BLOCK)
    return out, local


def log_kernel_sum_of_few(
    query: NDArray[np.float64],
    reference: NDArray[Any],
    bandwidth: float,
    *,
    centre: NDArray[np.float64],
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute ln K(q) for few queries and many references: as `log_kernel_sum` in double precision, to 1e-12.

    It reads the references once, as they are, without a layout. A result depends neither on threads nor on the other
    queries.
    """
    parts = -(-len(reference) // _kernel_sum.PART)
    sums = np.full((parts, len(query)), -np.inf)
    query = _check_query(query, reference) - centre

    def task(first: int, last: int) -> None:
        _kernel_sum.log_sums_of_parts(query, reference, float(bandwidth), first, last, sums)

    over_rows(task, parts, threads, 1)
    return np.asarray(np.logaddexp.reduce(sums, axis=0, initial=-np.inf), dtype=np.float64)


def pack(
    reference: NDArray[Any],
    bandwidth: float,
    precision: Precision = "double",
    *,
    sort: bool = True,
    order: NDArray[np.int64] | None = None,
    residuals: NDArray[np.float64] | None = None,
    squarings: int = 0,
    threads: int | None = None,
) -> Blocks:
    """Lay out references (n, d), finite and C-contiguous, for many calls of `log_kernel_sum`.

    The layout takes 8 bytes per value in double precision and 4 in single, beside the references. With `sort`, a block
    holds rows that are near each other, along their principal axes. From some hundred queries on, this saves more time
    than it takes. If the caller knows the sorted order of the rows, `order` saves the sorting. Rows that are so wide
    apart that single precision would round too much are laid out in double precision. `residuals` (n,) of the rows, nan
    where there is none, and `squarings` are for `local_residuals`.
    """
    if precision not in _DTYPES:
        raise InputError(f"precision must be one of {', '.join(_DTYPES)}, not {precision!r}")
    if order is None:
        order = order_of(reference) if sort else np.arange(len(reference))
    for dtype in _DTYPES[precision]:
        vector = _simd_sum.VECTOR
        known = np.empty(0) if residuals is None else residuals
        blocks = _blocks.empty_blocks(reference, order, float(bandwidth), dtype, vector, sort, known, squarings)
        over_rows(partial(_blocks.pack, blocks), len(blocks.tiles), threads, 8)
        if dtype == np.float64 or _kernel_sum.share_of_differences(blocks) <= _MOST_DIFFERENCES:
            break
    return blocks


def delta_entropy(
    query: ArrayLike,
    reference: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    precision: Precision = "double",
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute dH(q) = −ln K(q) of every query against a reference, exactly.

    QUESTS calls it differential entropy; it is not the continuous entropy of the textbooks. dH ≤ 0 says only that
    the kernel sum reaches 1. Parameters and errors are those of `log_kernel_sum`.

    Returns
    -------
    ndarray
        (n_query,), in nats; +inf for an empty reference.
    """
    # A minus sign alone could give −0.
    return 0.0 - log_kernel_sum(query, reference, bandwidth, precision=precision, threads=threads)


def find_undecided(dH: NDArray[np.float64], thresholds: Sequence[float], precision: Precision) -> NDArray[np.intp]:
    """Return which dH (n,) of this precision may lie on the other side of a threshold, by their error."""
    if precision == "double":
        return np.empty(0, np.intp)
    absolute, relative = ERRORS[precision]
    with np.errstate(invalid="ignore"):  # dH against an empty reference is infinite
        error = np.maximum(absolute, relative * np.abs(dH))
        near = [np.abs(dH - threshold) <= error for threshold in thresholds]
    return np.flatnonzero(np.any(near, axis=0)) if near else np.empty(0, np.intp)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_bandwidth(bandwidth: Any) -> None:
    """Raise `InputError` unless `bandwidth` is a number between 1e-9 and 1e9, whose square a number can hold."""
    number = isinstance(bandwidth, (int, float, np.floating)) and not isinstance(bandwidth, bool)
    if not (number and math.isfinite(bandwidth) and bandwidth > 0):
        raise InputError(f"bandwidth must be a positive number in 1/Å, not {bandwidth!r}")
    low, high = _BANDWIDTHS
    if not low <= bandwidth <= high:
        raise InputError(f"the bandwidth {bandwidth:g} is not between {low:g} and {high:g}: take another unit")


def _check_query(query: ArrayLike, reference: NDArray[Any]) -> NDArray[np.float64]:
    query = check_rows("query", query, np.float64)
    if query.shape[1] != reference.shape[1]:
        raise InputError(f"query has {query.shape[1]} columns, reference has {reference.shape[1]}: other descriptors")
    return query


def check_reach(name: str, rows: NDArray[Any], bandwidth: float) -> None:
    """Raise `InputError` if values of rows are so large that their rounding is larger than a bandwidth."""
    largest = max(float(rows.max()), -float(rows.min())) if rows.size else 0.0
    if largest > _REACH * bandwidth:
        raise InputError(
            f"{name} holds values up to {largest:.3g}, more than {_REACH:g} bandwidths of {bandwidth:g}: "
            "leave such rows out, or take a larger bandwidth"
        )


def check_rows(name: str, x: ArrayLike, dtype: Any, empty: bool = True) -> NDArray[Any]:
    """Return rows (n, d) as a contiguous array, or raise `InputError` with their `name`.

    The values must be finite. With ``dtype=None`` the rows keep single or double precision. With ``empty=False`` there
    must be at least one row.
    """
    rows = np.ascontiguousarray(x, dtype=dtype)
    if rows.ndim != 2:
        raise InputError(f"{name} must have shape (n, d), not {rows.shape}")
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if not (empty or len(rows)):
        raise InputError(f"{name} has no rows")
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(np.sum(rows, dtype=np.float64))
    # A finite sum needs finite rows. A sum that is not finite may have overflowed.
    if not math.isfinite(total) and not np.isfinite(rows).all():
        raise InputError(f"{name} holds values that are not finite")
    return rows


def as_rows(x: Any) -> NDArray[Any]:
    """Return a dataset as an array (n, d), without reading its rows: a mapped file stays on disk.

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


# -- a dataset over itself ---------------------------------------------------------------------------------------------

PAIRED = 1 << 20  # largest number of rows that are laid out as a whole; with 63 columns the layout takes 800 MB
CHUNK = 1 << 17  # rows in memory at a time: 66 MB in double precision, as much for their layout, and their order
_BATCH = 64 * BLOCK  # queries between two reports
_LEFT_OUT = 1e-12  # what may be left out of a sum, which is at least 1


def sum_dataset(
    x: NDArray[Any],
    bandwidths: Sequence[float],
    *,
    comm: Comm,
    threads: int | None,
    report: Report | None,
    precision: Precision = "double",
) -> NDArray[np.float64]:
    """Compute ln K of the rows of a dataset over all of its rows, at several bandwidths. Collective.

    With up to `PAIRED` rows it computes every pair once. With more rows it takes one chunk after the other as
    references: it lays the chunk out once for each bandwidth, and sums over it for all rows. A row is part of its own
    sum, so the sum is at least 1. Terms that are negligible beside 1 are left out in every chunk.

    Parameters
    ----------
    x
        (n, d) numbers of any type; may be mapped, and larger than memory.
    bandwidths
        h, in 1/Å.
    comm
        The ranks share the queries. A sum depends neither on the other queries nor on the ranks.
    threads
        Threads of this rank; None takes all cores, or one thread if there are several ranks.
    report
        It is called from time to time with the share of the work that is done.
    precision
        As in `log_kernel_sum`.

    Returns
    -------
    ndarray
        (n_bandwidths, n), on all ranks.

    Raises
    ------
    InputError
        A value is not finite, or beyond 1e12 bandwidths.
    """
    threads = choose_threads(comm, threads)
    if len(x) <= PAIRED:
        return sum_pairs(x, bandwidths, comm=comm, threads=threads, report=report, precision=precision)

    def work() -> tuple[list[list[NDArray[np.int64]]], NDArray[np.float64]]:
        shares = _deal_out(x, comm.size)
        return shares, _sum_share(x, [share[comm.rank] for share in shares], bandwidths, threads, report, precision)

    shares, own = together(comm, work)
    return _gather(own, shares, len(x), comm)


# -- every pair once ---------------------------------------------------------------------------------------------------


def sum_pairs(
    x: NDArray[Any],
    bandwidths: Sequence[float],
    *,
    comm: Comm,
    threads: int | None,
    report: Report | None = None,
    precision: Precision = "double",
) -> NDArray[np.float64]:
    """Compute ln K (n_bandwidths, n) of the rows of a dataset over all of its rows, each pair once. Collective.

    The ranks share the strips of `self_sum`, and so do the threads of a rank. The strips are always added up in the
    same order, so no digit depends on either. `report` is called with the share of this rank's work that is done.
    """
    strips = self_sum.strips(len(x))
    mine = strips[comm.rank :: comm.size]
    done = _Progress(len(mine) * len(bandwidths), report)

    def work() -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
        rows = np.require(check_rows("x", x, np.float64), requirements=["W"])  # what kernels were compiled for
        check_reach("x", rows, min(bandwidths))
        order = order_of(rows)
        return order, [_sum_strips(rows, h, order, mine, threads, done, precision) for h in bandwidths]

    order, own = together(comm, work)
    out = np.empty((len(bandwidths), len(x)))
    nothing = np.zeros(-(-len(x) // TILE) * TILE)
    for k, sums in enumerate(own):
        total = nothing.copy()
        for turn in range(-(-len(strips) // comm.size)):  # one strip of every rank at a time, because strips are large
            for part in comm.allgather(sums[turn] if turn < len(sums) else nothing):
                total += part
        out[k, order] = np.log(total[: len(x)])
    return out


class _Progress:
    """The number of strips that the threads have done."""

    def __init__(self, total: int, report: Report | None) -> None:
        self._total, self._report, self._count, self._lock = total, report, 0, threading.Lock()

    def add(self) -> None:
        with self._lock:
            self._count += 1
            if self._report is not None:
                self._report(self._count / self._total)


def _sum_strips(
    rows: NDArray[np.float64],
    bandwidth: float,
    order: NDArray[np.int64],
    strips: Sequence[tuple[int, int]],
    threads: int | None,
    done: _Progress,
    precision: Precision,
) -> NDArray[np.float64]:
    """Return what each strip adds to the sums, (n_strips, n_blocks·TILE), in the order of the blocks."""
    blocks = pack(rows, bandwidth, precision, order=order, threads=threads)
    sums, plain = np.zeros((len(strips), len(blocks.tiles), TILE)), None if blocks.vector else 1

    def task(first: int, last: int) -> None:
        for s in range(first, last):
            self_sum.add_strip(blocks, plain, *strips[s], sums[s])
            done.add()

    over_rows(task, len(strips), threads, 1)
    return sums.reshape(len(strips), len(blocks.tiles) * TILE)


# -- chunks as references in turn --------------------------------------------------------------------------------------


def _deal_out(x: NDArray[Any], ranks: int) -> list[list[NDArray[np.int64]]]:
    """Return for each chunk the rows of each rank. Groups of near rows are dealt out to the ranks in turn."""
    shares, dealt = [], 0
    for first in range(0, len(x), CHUNK):
        order = order_of(_read_chunk(x, first))
        owners = (np.arange(len(order)) // BLOCK + dealt) % ranks
        dealt += -(-len(order) // BLOCK)
        shares.append([order[owners == rank] for rank in range(ranks)])
    return shares


def _read_chunk(x: NDArray[Any], first: int) -> NDArray[np.float64]:
    part = x[first : first + CHUNK]
    # A copy of a mapped file is read in the order of its pages; kernels would read it row by row.
    rows = check_rows("x", np.array(part) if isinstance(x, np.memmap) else part, np.float64)
    return np.require(rows, requirements=["W"])  # what kernels were compiled for


def _sum_share(
    x: NDArray[Any],
    share: list[NDArray[np.int64]],
    bandwidths: Sequence[float],
    threads: int | None,
    report: Report | None,
    precision: Precision,
) -> NDArray[np.float64]:
    """Compute ln K (n_bandwidths, n_share) of the rows of this rank; `share` has those of each chunk."""
    ends = np.cumsum([0, *(len(rows) for rows in share)])
    out, nothing = np.full((len(bandwidths), ends[-1]), -np.inf), math.log2(_LEFT_OUT / len(x))
    done, total = 0, len(x) * len(bandwidths)
    for first in range(0, len(x), CHUNK):
        reference = _read_chunk(x, first)
        check_reach("x", reference, min(bandwidths))
        order = order_of(reference)
        for k, bandwidth in enumerate(bandwidths):
            blocks = pack(reference, bandwidth, precision, order=order, threads=threads)
            for c, rows in enumerate(share):
                query = (reference if c * CHUNK == first else _read_chunk(x, c * CHUNK))[rows]
                for begin in range(0, len(query), _BATCH):
                    part = slice(ends[c] + begin, min(ends[c] + begin + _BATCH, ends[c + 1]))
                    sums = sum_groups(query[begin : begin + _BATCH], blocks, nothing, threads)
                    out[k, part] = np.logaddexp(out[k, part], sums)
                    if report is not None:
                        report((done + len(reference) * part.stop / ends[-1]) / total)
            done += len(reference)
    return out


def _gather(own: NDArray[np.float64], shares: list[list[NDArray[np.int64]]], n: int, comm: Comm) -> NDArray[np.float64]:
    """Put the sums of all ranks together, on all ranks."""
    places = [np.concatenate([c * CHUNK + share[rank] for c, share in enumerate(shares)]) for rank in range(comm.size)]
    return np.array([join(comm, sums, places) for sums in own]).reshape(len(own), n)
