"""Building and extending an index, of frames or of own descriptors."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import descriptors
from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame, as_frames
from ..information import bandwidth_from_volume, check_bandwidth
from ..kernels import search
from ..kernels._jit import over_rows
from ..kernels.blocks import order_of
from ..machine import find_versions
from ._data import spans

if TYPE_CHECKING:
    from ._index import Index

__all__ = ["build_own", "extend_index", "extend_own"]

# A gap between layers of atoms wider than this (Å) is vacuum: no bulk phase has one.
_VACUUM_GAP = 5.0


def measured(rows: NDArray[np.float32], threads: int | None) -> search.Tree:
    """Return the tree over rows that are in its order."""
    tree = search.empty_tree(rows)
    for level, nodes in enumerate(np.diff(tree.first).tolist()):
        over_rows(partial(search.measure_nodes, tree, level), nodes, threads, 1)
    return tree


def arranged(
    rows: NDArray[np.float32], numbers: NDArray[np.int16], by_centre: bool, threads: int | None
) -> dict[str, NDArray[Any]]:
    """Put rows into the order of a search tree, of one for each element with `by_centre`.

    Returns the fields of an `Index` that follow from it.
    """
    order = np.argsort(numbers, kind="stable") if by_centre else np.arange(len(rows))
    out, trees = np.empty_like(rows), []
    for first, last in spans(numbers, by_centre).values():
        some = rows[order[first:last]] if by_centre else rows
        places = order_of(some)
        np.take(some, places, axis=0, out=out[first:last])
        order[first:last] = order[first:last][places]
        trees.append(measured(out[first:last], threads))
    return {
        "rows": out,
        "numbers": numbers[order],
        "order": order.astype(np.int32),
        "node_centres": np.concatenate([tree.centres for tree in trees]),
        "node_radius": np.concatenate([tree.radius for tree in trees]),
        "node_spread": np.concatenate([tree.spread for tree in trees]),
    }


def bandwidth_of(frames: Sequence[Frame], spec: DescriptorSpec) -> float:
    volumes = np.array([volume_per_atom(frame) for frame in frames])
    return bandwidth_from_volume(mean_volume(volumes, np.array([np.count_nonzero(f.numbers) for f in frames]), spec))


def mean_volume(volumes: NDArray[np.float64], weights: NDArray[np.int64], spec: DescriptorSpec) -> float:
    """Return the mean volume per atom (Å³) of the frames that are bulk, for QUESTS's rule of the bandwidth.

    Parameters
    ----------
    volumes
        (n_frames,) what `volume_per_atom` gives of every frame.
    weights
        (n_frames,) number of atoms.
    spec
        The descriptor: the rule was fitted for k = 32, a cutoff of 5 Å and one block.

    Raises
    ------
    InputError
        The rule does not hold for this descriptor, or no frame is bulk.
    """
    if (spec.k, spec.cutoff) != (32, 5.0):
        raise InputError(
            f'bandwidth="auto" holds for k = 32 and a cutoff of 5 Å, not k = {spec.k} and {spec.cutoff} Å: '
            "give a number"
        )
    if spec.n_blocks > 1:
        raise InputError(f'bandwidth="auto" holds for one block, not for species="{spec.species}": give a number')
    bulk = np.isfinite(volumes)
    if not bulk.any():
        raise InputError(
            'bandwidth="auto" needs frames that are periodic in three directions and hold no vacuum: give a number'
        )
    return float(np.average(volumes[bulk], weights=weights[bulk]))


def volume_per_atom(frame: Frame) -> float:
    """Return the volume per atom in Å³; nan of a frame that is not periodic in three directions, or holds vacuum."""
    n = np.count_nonzero(frame.numbers)
    if not n or not np.all(frame.pbc) or frame.has_ghosts:
        return float("nan")
    volume = float(abs(np.linalg.det(np.asarray(frame.cell))))
    return volume / n if volume > 0.0 and not _has_vacuum(frame) else float("nan")


def _has_vacuum(frame: Frame) -> bool:
    inverse = np.linalg.inv(np.asarray(frame.cell))
    fractional = np.sort((frame.positions[frame.numbers != 0] @ inverse) % 1.0, axis=0)
    gaps = np.diff(np.vstack([fractional, fractional[:1] + 1.0]), axis=0).max(axis=0)
    return bool((gaps / np.linalg.norm(inverse, axis=0) > _VACUUM_GAP).any())


def pair_distances(frames: Sequence[Frame], cutoff: float) -> NDArray[np.float32]:
    """Return the smallest distance (Å) between atoms of each pair of elements, inf where none came near."""
    known = np.unique(np.concatenate([f.numbers for f in frames]))
    known = known[known != 0]
    out = np.full((len(known), len(known)), np.inf)
    for frame in frames:
        kinds = np.searchsorted(known, frame.numbers)
        descriptors.minimum_distances(frame, cutoff, kinds, out)
    symmetric: NDArray[np.float32] = np.minimum(out, out.T).astype(np.float32)
    return symmetric


def groups_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Return the group of every frame; nothing where none has one."""
    groups = [frame.group for frame in frames if frame.group is not None]
    if len(groups) not in (0, len(frames)):
        raise InputError(f"{len(groups)} of {len(frames)} frames have a group: give one to all of them, or to none")
    return tuple(groups)


def provenance(sources: Sequence[dict[str, Any]], automatic: bool) -> dict[str, Any]:
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "bandwidth_rule": "volume" if automatic else "given",
        "sources": list(sources),
        "versions": find_versions(),
    }


_CHUNK = 1 << 22  # values that are converted at a time: rows may be mapped, and larger than memory
# Single precision squares distances up to 1e19 and down to 1e-19; here is room for what is summed and scaled.
_LONGEST = 1e15


def build_own(
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
    made: dict[str, Any] = arranged(rows, np.zeros(len(x), np.int16), False, threads)
    return {
        "descriptor": OwnDescriptors(name, x.shape[1]),
        "bandwidth": float(bandwidth),
        "centre": centre,
        "frame_offsets": offsets,
        **made,
        "elements": (),
        "pair_distances": np.empty((0, 0), np.float32),
        "provenance": provenance(sources, False),
    }


def extend_own(index: Index, x: Any, frame_offsets: ArrayLike | None, threads: int | None) -> dict[str, Any]:
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
    made: dict[str, Any] = arranged(rows, np.zeros(len(rows), np.int16), False, threads)
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


def extend_index(
    index: Index, frames: Any, frame_offsets: Any, sources: Sequence[dict[str, Any]], threads: int | None
) -> dict[str, Any]:
    """Return the fields of the index that `Index.extend` makes."""
    if isinstance(index.descriptor, OwnDescriptors):
        changed = extend_own(index, frames, frame_offsets, threads)
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
    groups = _groups(index, groups_of(added), len(added))
    described = [index.spec.compute(frame, threads)[:, int(index.spec.by_centre) :] for frame in added]
    sizes = [len(x) for x in described]
    n, more = len(index), sum(sizes)
    # The centre stays. So the rows that are there already are not rounded a second time, and no dH can rise.
    rows = np.empty((n + more, len(index.centre)), np.float32)
    numbers = np.empty(n + more, np.int16)
    rows[index.order], numbers[index.order] = index.rows, index.numbers  # in the order of the frames again
    np.subtract(np.concatenate(described), index.centre, out=rows[n:], casting="same_kind")
    numbers[n:] = np.concatenate([frame.numbers[frame.centres] for frame in added])
    made: dict[str, Any] = arranged(rows, numbers, index.spec.by_centre, threads)
    nearest = pair_distances(added, index.spec.cutoff)
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
        "versions": find_versions(),
    }
    return {**index.provenance, "generations": [*index.provenance.get("generations", []), entry]}
