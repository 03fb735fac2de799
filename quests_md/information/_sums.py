"""Kernel sums and dH of queries against a reference."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..kernels import _simd_sum
from ..kernels import blocks as _blocks
from ..kernels import kernel_sum as _kernel_sum
from ..kernels._jit import over_rows
from ..kernels.order import axes_of, order_of

__all__ = [
    "DEFAULT_BANDWIDTH",
    "Blocks",
    "Precision",
    "check_bandwidth",
    "check_reach",
    "check_rows",
    "delta_entropy",
    "log_kernel_sum",
    "log_kernel_sum_of_few",
    "pack",
    "sums_of_groups",
]

DEFAULT_BANDWIDTH = 0.015

Blocks = _blocks.Blocks
Precision = Literal["double", "single"]
_BANDWIDTHS = (1e-9, 1e9)
_REACH = 1e12  # bandwidths: beyond, bounds of distances round to more than a bandwidth, and padding is no longer far
_DTYPES = {"double": np.float64, "single": np.float32}


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
        (d,) what was subtracted from the rows of `reference`, and not from those of `query`. Default: nothing.
    checked
        The rows of `reference` are known to be finite: do not read them all once more.
    blocks
        What `pack` made of `reference` at this bandwidth and precision, if it is kept; default: made for this call.
    precision
        "double", to 1e-10·max(1, |dH|); or "single", to max(1e-4, 1e-6·|dH|), which takes about half the time.
    threads
        Threads to use; None takes all cores. The result does not depend on it, nor on the other queries.

    Returns
    -------
    ndarray
        (n_query,); finite at any distance; −inf for an empty reference.

    Raises
    ------
    InputError
        Shapes do not match, a value is not finite, the bandwidth is not a number between 1e-9 and 1e9, or values of
        the reference are beyond 1e12 bandwidths.
    """
    check_bandwidth(bandwidth)
    if not checked:
        reference = check_rows("reference", reference, None)
        check_reach("reference", reference, bandwidth)
    reference = np.asarray(reference)
    query = _queries(query, reference)
    centre = np.zeros(query.shape[1]) if centre is None else centre
    if blocks is None:
        blocks = pack(reference, bandwidth, precision, sort=precision == "single", threads=threads)
    out = np.empty(len(query))
    plain = None if blocks.vector else 1

    def task(first: int, last: int) -> None:
        _kernel_sum.log_kernel_sum(query, centre, blocks, plain, -np.inf, first, last, out)

    over_rows(task, len(query), threads, _kernel_sum.BLOCK)
    return out


def sums_of_groups(
    query: NDArray[np.float64], blocks: Blocks, nothing: float, threads: int | None
) -> NDArray[np.float64]:
    """Compute ln K(q) against laid-out references; neighbours among the queries (n, d) should stand together.

    `nothing` is the exponent of 2 of a term that need not be added, as the caller knows the sum to be far larger.
    """
    out, centre, plain = np.empty(len(query)), np.zeros(query.shape[1]), None if blocks.vector else 1
    step = _kernel_sum.BLOCK

    def task(first: int, last: int) -> None:
        for group in range(first, last):  # each alone, for the kernel has an order of its own for longer ranges
            end = min((group + 1) * step, len(query))
            _kernel_sum.log_kernel_sum(query, centre, blocks, plain, nothing, group * step, end, out)

    over_rows(task, -(-len(query) // step), threads, 1)
    return out


def log_kernel_sum_of_few(
    query: NDArray[np.float64],
    reference: NDArray[Any],
    bandwidth: float,
    *,
    centre: NDArray[np.float64],
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute what `log_kernel_sum` computes in double precision, to 1e-12, for few queries and many references.

    Nothing is laid out: the references are read once, as they are. The result does not depend on threads, nor on the
    other queries.
    """
    parts = -(-len(reference) // _kernel_sum.PART)
    sums = np.full((parts, len(query)), -np.inf)
    query = _queries(query, reference) - centre

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
    threads: int | None = None,
) -> Blocks:
    """Lay out references (n, d), finite and C-contiguous, for many calls of `log_kernel_sum`.

    Takes 8 bytes per value in double precision and 4 in single, beside the references. `sort` makes blocks of rows
    that are near each other: it pays off from some hundred queries on, and always in single precision, where products
    with wide blocks would have to be repeated in double. `order` is that order, where it is known.
    """
    if precision not in _DTYPES:
        raise InputError(f"precision must be one of {', '.join(_DTYPES)}, not {precision!r}")
    axes = np.zeros((_blocks.AXES, reference.shape[1]))
    if order is None:
        order = order_of(reference) if sort else np.arange(len(reference))
    if sort:  # rows as they come make wide blocks: to know their axes would leave out none of them
        axes = axes_of(reference, _blocks.AXES)
    blocks = _blocks.empty_blocks(reference, order, axes, float(bandwidth), _DTYPES[precision], _simd_sum.VECTOR)
    over_rows(lambda first, last: _blocks.pack(blocks, first, last), len(blocks.radius), threads, 8)
    return blocks


def delta_entropy(
    query: ArrayLike,
    reference: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
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
    return 0.0 - log_kernel_sum(query, reference, bandwidth, threads=threads)  # and not −0


def check_bandwidth(bandwidth: Any) -> None:
    """Raise `InputError` unless `bandwidth` is a positive number whose square is far from what a number can hold."""
    number = isinstance(bandwidth, (int, float, np.floating)) and not isinstance(bandwidth, bool)
    if not (number and math.isfinite(bandwidth) and bandwidth > 0):
        raise InputError(f"bandwidth must be a positive number in 1/Å, not {bandwidth!r}")
    low, high = _BANDWIDTHS
    if not low <= bandwidth <= high:
        raise InputError(f"the bandwidth {bandwidth:g} is not between {low:g} and {high:g}: take another unit")


def _queries(query: ArrayLike, reference: NDArray[Any]) -> NDArray[np.float64]:
    query = check_rows("query", query, np.float64)
    if query.shape[1] != reference.shape[1]:
        raise InputError(f"query has {query.shape[1]} columns, reference has {reference.shape[1]}: other descriptors")
    return query


def check_reach(name: str, rows: NDArray[Any], bandwidth: float) -> None:
    """Raise `InputError` where finite rows are so far from 0 that a bandwidth beside them is lost in rounding."""
    largest = max(float(rows.max()), -float(rows.min())) if rows.size else 0.0
    if largest > _REACH * bandwidth:
        raise InputError(
            f"{name} holds values up to {largest:.3g}, more than {_REACH:g} bandwidths of {bandwidth:g}: "
            "leave such rows out, or take a larger bandwidth"
        )


def check_rows(name: str, x: ArrayLike, dtype: Any, empty: bool = True) -> NDArray[Any]:
    rows = np.ascontiguousarray(x, dtype=dtype)
    if rows.ndim != 2:
        raise InputError(f"{name} must have shape (n, d), not {rows.shape}")
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if not (empty or len(rows)):
        raise InputError(f"{name} has no rows")
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(np.sum(rows, dtype=np.float64))
    # A finite sum needs finite rows; a sum that is not may be one that overflows.
    if not math.isfinite(total) and not np.isfinite(rows).all():
        raise InputError(f"{name} holds values that are not finite")
    return rows
