"""What an index becomes when frames are added to its reference."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import as_frames
from ..own import OwnDescriptors
from ..versions import versions
from . import _build, _own

if TYPE_CHECKING:
    from ._index import Index

__all__ = ["extended"]


def extended(
    index: Index, frames: Any, frame_offsets: Any, sources: Sequence[dict[str, Any]], threads: int | None
) -> dict[str, Any]:
    """Return the fields of the index that `Index.extend` makes."""
    if isinstance(index.descriptor, OwnDescriptors):
        changed = _own.extended(index, frames, frame_offsets, threads)
    elif frame_offsets is None:
        changed = _with_frames(index, frames, threads)
    else:
        raise InputError("frame_offsets are those of own descriptors: frames need none")
    n_frames, n_env = len(changed["frame_offsets"]) - len(index.frame_offsets), len(changed["rows"]) - len(index)
    return {
        "descriptor": index.descriptor,
        "bandwidth": index.bandwidth,
        "centre": index.centre,
        "elements": index.elements,
        "pair_distances": index.pair_distances,
        **changed,
        "generation": index.generation + 1,
        "provenance": _provenance(index, n_frames, n_env, sources),
    }


def _with_frames(index: Index, frames: Any, threads: int | None) -> dict[str, Any]:
    """Return the fields that change when frames are added."""
    added = [frame for frame in as_frames(frames) if len(frame.centres)]
    if not added:
        raise InputError("nothing to extend the index with: no frames, or no atoms in them")
    present = {int(z) for frame in added for z in frame.distinct_numbers}
    elements = tuple(SYMBOLS[z] for z in sorted(present | {SYMBOLS.index(symbol) for symbol in index.elements}))
    index.spec.check_elements({SYMBOLS.index(symbol) for symbol in elements})
    groups = _groups(index, _build.groups_of(added), len(added))
    described = [index.spec.compute(frame, threads)[:, int(index.spec.by_centre) :] for frame in added]
    sizes = [len(x) for x in described]
    n, more = len(index), sum(sizes)
    # The centre stays. So the rows that are there already are not rounded a second time, and no dH can rise.
    rows = np.empty((n + more, len(index.centre)), np.float32)
    numbers = np.empty(n + more, np.int16)
    rows[index.order], numbers[index.order] = index.rows, index.numbers  # in the order of the frames again
    np.subtract(np.concatenate(described), index.centre, out=rows[n:], casting="same_kind")
    numbers[n:] = np.concatenate([frame.numbers[frame.centres] for frame in added])
    made: dict[str, Any] = _build.arranged(rows, numbers, index.spec.by_centre, threads)
    nearest = _build.pair_distances(added, index.spec.cutoff)
    return {
        "frame_offsets": np.concatenate([index.frame_offsets, n + np.cumsum(sizes, dtype=np.int64)]),
        **made,
        "elements": elements,
        "pair_distances": _smaller(
            elements,
            (index.elements, index.pair_distances),
            (tuple(SYMBOLS[z] for z in sorted(present)), nearest),
        ),
        "frame_groups": groups,
    }


def _groups(index: Index, added: tuple[str, ...], n_added: int) -> tuple[str, ...]:
    """Return the group of every frame; all have one, or none."""
    if bool(index.frame_groups) == bool(added):
        return index.frame_groups + added
    n = len(index.frame_offsets) - 1
    has, lacks = ("index", "added frames") if index.frame_groups else ("added frames", "index")
    raise InputError(
        f"the frames of the {has} have a group and those of the {lacks} have none ({n} in the index, {n_added} added): "
        "give one to all of them, or to none"
    )


def _smaller(elements: tuple[str, ...], *known: tuple[tuple[str, ...], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the smallest distances of all pairs of `elements`, of tables for some of them."""
    out = np.full((len(elements), len(elements)), np.inf, np.float32)
    for some, distances in known:
        at = np.ix_(*[[elements.index(symbol) for symbol in some]] * 2)
        out[at] = np.minimum(out[at], distances)
    return out


def _provenance(index: Index, n_frames: int, n_env: int, sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the provenance of generation 0, and what each generation after it has added."""
    entry = {
        "generation": index.generation + 1,
        "parent": index.hash,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "frames": n_frames,
        "environments": n_env,
        "sources": list(sources),
        "versions": versions(),
    }
    return {**index.provenance, "generations": [*index.provenance.get("generations", []), entry]}
