"""Indexes of own descriptors: arrays in the place of frames, in whatever unit they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..information import check_bandwidth
from ..own import OwnDescriptors
from . import _build

if TYPE_CHECKING:
    from ._index import Index

__all__ = ["built", "extended"]

_CHUNK = 1 << 22  # values that are converted at a time: rows may be mapped, and larger than memory
# Single precision squares distances up to 1e19 and down to 1e-19; here is room for what is summed and scaled.
_LONGEST = 1e15


def built(
    x: NDArray[Any],
    bandwidth: Any,
    frame_offsets: ArrayLike | None,
    name: str,
    sources: Sequence[dict[str, Any]],
    threads: int | None,
) -> dict[str, Any]:
    """Return the fields of the index that `Index.from_descriptors` makes."""
    if isinstance(bandwidth, str):
        raise InputError(f"bandwidth={bandwidth!r} is a rule for frames: of own descriptors give a number")
    check_bandwidth(bandwidth)
    _check_array(x)
    offsets = _offsets(frame_offsets, len(x))
    centre = np.zeros(x.shape[1])
    for _, part in _parts(x):
        centre += part.sum(axis=0) / len(x)
    rows = _centred(x, centre)
    made: dict[str, Any] = _build.arranged(rows, np.zeros(len(x), np.int16), False, threads)
    return {
        "descriptor": OwnDescriptors(name, x.shape[1]),
        "bandwidth": float(bandwidth),
        "centre": centre,
        "frame_offsets": offsets,
        **made,
        "elements": (),
        "pair_distances": np.empty((0, 0), np.float32),
        "provenance": _build.provenance(sources, False),
    }


def extended(index: Index, x: Any, frame_offsets: ArrayLike | None, threads: int | None) -> dict[str, Any]:
    """Return the fields that change when own descriptors are added to an index of such."""
    if not isinstance(x, np.ndarray):
        _ = index.spec  # frames, it seems: the error says what this index is
    _check_array(x)
    if x.shape[1] != index.descriptor.width:
        raise InputError(f"the index has {index.descriptor.width} columns, the array {x.shape[1]}: other descriptors")
    offsets = _offsets(frame_offsets, len(x))
    n = len(index)
    rows = np.empty((n + len(x), len(index.centre)), np.float32)
    rows[index.order], rows[n:] = index.rows, _centred(x, index.centre)
    made: dict[str, Any] = _build.arranged(rows, np.zeros(len(rows), np.int16), False, threads)
    return {"frame_offsets": np.concatenate([index.frame_offsets, n + offsets[1:]]), **made}


def _check_array(x: Any) -> None:
    is_array = isinstance(x, np.ndarray)
    if not is_array or x.dtype.kind not in "fiu" or x.ndim != 2 or 0 in x.shape:
        what = f"{x.dtype} {x.shape}" if is_array else type(x).__name__
        raise InputError(f"own descriptors are an array of numbers (n, d) with a row at least, not {what}")


def _offsets(given: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if given is None:
        return np.array([0, n], np.int64)
    offsets = np.asarray(given)
    whole = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    if not whole or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise InputError(f"frame_offsets must ascend from 0 to the {n} rows, one number more than frames")
    return offsets.astype(np.int64)


def _parts(x: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield rows in double precision, some at a time; raise `InputError` where they are not finite, or too long."""
    step = max(1, _CHUNK // x.shape[1])
    for first, last in itertools.pairwise([*range(0, len(x), step), len(x)]):
        part = np.asarray(x[first:last], np.float64)
        bad = np.flatnonzero(~(np.abs(part) < _LONGEST).all(axis=1))
        if len(bad):
            raise InputError(f"row {first + bad[0]} holds values that are not finite, or beyond {_LONGEST:g}")
        yield slice(first, last), part


def _centred(x: NDArray[Any], centre: NDArray[np.float64]) -> NDArray[np.float32]:
    rows = np.empty(x.shape, np.float32)
    for where, part in _parts(x):
        np.subtract(part, centre, out=rows[where], casting="same_kind")
    return rows
