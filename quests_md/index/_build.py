"""Building and extending an index, from frames or from own descriptors."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import descriptors
from ..comm import Comm, Serial, choose_threads, deal_frames, share_rows, together
from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame, as_frames
from ..information import Report, bandwidth_from_volume, check_bandwidth, check_reach, suggest_bandwidth
from ..kernels import search
from ..kernels.blocks import order_of
from ..kernels.threads import over_rows
from ..machine import find_versions
from ._data import IndexData
from ._parts import find_parts
from ._residuals import extend_residuals

__all__ = [
    "LONGEST",
    "arrange",
    "build_index",
    "build_own_index",
    "extend_index",
    "mean_volume",
    "measure_tree",
    "volume_per_atom",
]

T = TypeVar("T", bound=IndexData)

# -- the search tree ---------------------------------------------------------------------------------------------------


class Arrangement(NamedTuple):
    """Rows in the order of their search trees, and the nodes of these: fields of an index."""

    rows: NDArray[np.float32]
    numbers: NDArray[np.int16]
    order: NDArray[np.int32]
    node_centres: NDArray[np.float32]
    node_radius: NDArray[np.float32]
    node_spread: NDArray[np.float32]


def arrange(rows: NDArray[np.float32], numbers: NDArray[np.int16], by_centre: bool, threads: int | None) -> Arrangement:
    """Put rows into the order of a search tree; with `by_centre`, of one tree for each element."""
    order = np.argsort(numbers, kind="stable") if by_centre else np.arange(len(rows))
    out, trees = np.empty_like(rows), []
    for first, last in find_parts(numbers, by_centre).values():
        some = rows[order[first:last]] if by_centre else rows
        places = order_of(some)
        np.take(some, places, axis=0, out=out[first:last])
        order[first:last] = order[first:last][places]
        trees.append(measure_tree(out[first:last], threads))
    return Arrangement(
        rows=out,
        numbers=numbers[order],
        order=order.astype(np.int32),
        node_centres=np.concatenate([tree.centres for tree in trees]),
        node_radius=np.concatenate([tree.radius for tree in trees]),
        node_spread=np.concatenate([tree.spread for tree in trees]),
    )


def measure_tree(rows: NDArray[np.float32], threads: int | None) -> search.Tree:
    """Compute the nodes of the tree over rows that are in its order."""
    tree = search.empty_tree(rows)
    for level, nodes in enumerate(np.diff(tree.first).tolist()):
        over_rows(partial(search.measure_nodes, tree, level), nodes, threads, 1)
    return tree


# -- an index of frames ------------------------------------------------------------------------------------------------

_SHARED = 1024  # least number of environments that a rank describes at a time


def build_index(
    kind: type[T],
    frames: Any,
    spec: DescriptorSpec | None,
    bandwidth: float | str,
    sources: Sequence[dict[str, Any]],
    threads: int | None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> T:
    """Build an index of frames, as `Index.build` says."""
    comm = comm or Serial()
    threads = choose_threads(comm, threads)
    spec = DescriptorSpec() if spec is None else spec
    if bandwidth != "auto":
        check_bandwidth(bandwidth)
    kept = [frame for frame in as_frames(frames) if len(frame.centres)]
    if not kept:
        raise InputError("the reference is empty: no frames, or no atoms in them")
    numbers = np.concatenate([f.numbers[f.centres] for f in kept]).astype(np.int16)
    present = set(np.concatenate([f.numbers for f in kept]).tolist()) - {0}
    spec = spec.for_elements(present)
    spec.check_elements(present)
    described = _describe(kept, spec, threads, comm, report)
    h = _choose_bandwidth(kept, spec, described) if bandwidth == "auto" else float(bandwidth)
    offsets = np.cumsum([0] + [len(x) for x in described], dtype=np.int64)
    centre = np.sum([x.sum(axis=0) for x in described], axis=0) / offsets[-1]
    rows = np.empty((offsets[-1], len(centre)), np.float32)
    for first, last in itertools.pairwise(offsets):
        np.subtract(described.pop(0), centre, out=rows[first:last], casting="same_kind")  # one copy, not three
    return kind(
        descriptor=spec,
        bandwidth=h,
        centre=centre,
        frame_offsets=offsets,
        elements=_list_symbols(present),
        pair_distances=_measure_pair_distances(kept, spec.cutoff, comm),
        provenance=_make_provenance(sources, bandwidth == "auto"),
        frame_groups=_read_groups(kept),
        **arrange(rows, numbers, spec.by_centre, threads)._asdict(),
    )


def _describe(
    frames: Sequence[Frame], spec: DescriptorSpec, threads: int | None, comm: Comm, report: Report | None = None
) -> list[NDArray[np.float64]]:
    """Return the descriptors of each frame, without the atomic number. Each rank computes its share. Collective."""
    first = int(spec.by_centre)
    offsets = np.cumsum([0, *(len(frame.centres) for frame in frames)], dtype=np.int64)
    tell = report or (lambda done: None)
    if comm.size == 1:
        found = list[NDArray[np.float64]]()
        for number, frame in enumerate(frames, 1):
            found.append(spec.compute(frame, threads)[:, first:])
            tell(offsets[number] / offsets[-1])
        return found
    parts, out = deal_frames(offsets, _SHARED), np.empty((offsets[-1], spec.width))

    def work() -> None:
        for begin, end in parts[comm.rank :: comm.size]:
            out[offsets[begin] : offsets[end]] = spec.compute(frames[begin:end], threads)
            tell(offsets[end] / offsets[-1])

    together(comm, work)
    share_rows(comm, out, [(int(offsets[begin]), int(offsets[end])) for begin, end in parts])
    return [rows[:, first:] for rows in np.split(out, offsets[1:-1])]


def _list_symbols(numbers: set[int]) -> tuple[str, ...]:
    """Return the chemical symbols of atomic numbers, in ascending order of these."""
    return tuple(SYMBOLS[z] for z in sorted(numbers))


def _choose_bandwidth(frames: Sequence[Frame], spec: DescriptorSpec, described: Sequence[NDArray[np.float64]]) -> float:
    """Return QUESTS's bandwidth by the volume; where it has no rule, the error suggests one."""
    volumes = np.array([volume_per_atom(frame) for frame in frames])
    weights = np.array([np.count_nonzero(frame.numbers) for frame in frames])
    try:
        return bandwidth_from_volume(mean_volume(volumes, weights, spec))
    except InputError as error:
        numbers = np.concatenate([frame.numbers[frame.centres] for frame in frames])
        of_rows = np.repeat(np.arange(len(frames)), [len(x) for x in described])
        suggested = suggest_bandwidth(np.concatenate(list(described)), of_rows, numbers if spec.by_centre else None)
        if suggested is None:
            raise
        raise InputError(
            f"{error}; {suggested:.2g} is how far these environments are from the nearest ones of other frames"
        ) from error


def mean_volume(volumes: NDArray[np.float64], weights: NDArray[np.int64], spec: DescriptorSpec) -> float:
    """Return the mean volume per atom (Å³) of the bulk frames, for QUESTS's rule of the bandwidth.

    Parameters
    ----------
    volumes
        (n_frames,) what `volume_per_atom` returns for every frame.
    weights
        (n_frames,) number of atoms.
    spec
        The descriptor. The rule was fitted for k = 32, a cutoff of 5 Å and one block.

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


# A gap between layers of atoms that is wider than this (Å) is vacuum: no bulk phase has one.
_VACUUM_GAP = 5.0


def volume_per_atom(frame: Frame) -> float:
    """Return the volume per atom in Å³; nan if the frame is not periodic in three directions, or holds vacuum."""
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


def _measure_pair_distances(frames: Sequence[Frame], cutoff: float, comm: Comm | None = None) -> NDArray[np.float32]:
    """Return the smallest distance (Å) between atoms of each pair of elements; inf if none is within the cutoff."""
    known = np.unique(np.concatenate([f.numbers for f in frames]))
    known = known[known != 0]
    out = np.full((len(known), len(known)), np.inf)
    comm = comm or Serial()

    def work() -> None:
        for frame in frames[comm.rank :: comm.size]:
            kinds = np.searchsorted(known, frame.numbers)
            descriptors.minimum_distances(frame, cutoff, kinds, out)

    together(comm, work)
    out = comm.allgather(out.ravel()).min(axis=0).reshape(out.shape)
    symmetric: NDArray[np.float32] = np.minimum(out, out.T).astype(np.float32)
    return symmetric


def _read_groups(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Return the group of every frame, or nothing if no frame has one."""
    groups = [frame.group for frame in frames if frame.group is not None]
    if len(groups) not in (0, len(frames)):
        raise InputError(f"{len(groups)} of {len(frames)} frames have a group: give one to all of them, or to none")
    return tuple(groups)


def _make_provenance(sources: Sequence[dict[str, Any]], automatic: bool) -> dict[str, Any]:
    return {
        "created": _now(),
        "bandwidth_rule": "volume" if automatic else "given",
        "sources": list(sources),
        "versions": find_versions(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


# -- an index of own descriptors ---------------------------------------------------------------------------------------

_CHUNK = 1 << 22  # values that are converted at a time: rows may be mapped, and larger than memory
# Single precision squares distances between 1e-19 and 1e19. This leaves room for sums and scaling.
LONGEST = 1e15


def build_own_index(
    kind: type[T],
    x: NDArray[Any],
    bandwidth: Any,
    frame_offsets: ArrayLike | None,
    name: str,
    sources: Sequence[dict[str, Any]],
    threads: int | None,
) -> T:
    """Build an index of own descriptors, as `Index.from_descriptors` says."""
    if isinstance(bandwidth, str):
        raise InputError(f"bandwidth={bandwidth!r} is a rule for frames: of own descriptors give a number")
    check_bandwidth(bandwidth)
    _check_array(x)
    offsets = _check_offsets(frame_offsets, len(x))
    centre = np.zeros(x.shape[1])
    for _, part in _read_in_parts(x):
        centre += part.sum(axis=0) / len(x)
    return kind(
        descriptor=OwnDescriptors(name, x.shape[1]),
        bandwidth=float(bandwidth),
        centre=centre,
        frame_offsets=offsets,
        elements=(),
        pair_distances=np.empty((0, 0), np.float32),
        provenance=_make_provenance(sources, False),
        **arrange(_subtract_centre(x, centre, bandwidth), np.zeros(len(x), np.int16), False, threads)._asdict(),
    )


def _check_array(x: Any) -> None:
    is_array = isinstance(x, np.ndarray)
    if not is_array or x.dtype.kind not in "fiu" or x.ndim != 2 or 0 in x.shape:
        what = f"{x.dtype} {x.shape}" if is_array else type(x).__name__
        raise InputError(f"own descriptors are an array of numbers (n, d) with a row at least, not {what}")


def _check_offsets(given: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if given is None:
        return np.array([0, n], np.int64)
    offsets = np.asarray(given)
    whole = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    if not whole or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise InputError(f"frame_offsets must ascend from 0 to the {n} rows, one number more than frames")
    return offsets.astype(np.int64)


def _read_in_parts(x: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield some rows at a time, in double precision; `InputError` for rows that are not finite, or too long."""
    step = max(1, _CHUNK // x.shape[1])
    for first, last in itertools.pairwise([*range(0, len(x), step), len(x)]):
        part = np.asarray(x[first:last], np.float64)
        bad = np.flatnonzero(~(np.abs(part) < LONGEST).all(axis=1))
        if len(bad):
            raise InputError(f"row {first + bad[0]} holds values that are not finite, or beyond {LONGEST:g}")
        yield slice(first, last), part


def _subtract_centre(x: NDArray[Any], centre: NDArray[np.float64], bandwidth: float) -> NDArray[np.float32]:
    rows = np.empty(x.shape, np.float32)
    for where, part in _read_in_parts(x):
        np.subtract(part, centre, out=rows[where], casting="same_kind")
        check_reach("the array", rows[where], bandwidth)
    return rows


# -- the next generation -----------------------------------------------------------------------------------------------


def extend_index(
    index: T,
    frames: Any,
    frame_offsets: Any,
    sources: Sequence[dict[str, Any]],
    threads: int | None,
    report: Report | None = None,
) -> T:
    """Return the next generation of an index, as `Index.extend` says."""
    if isinstance(index.descriptor, OwnDescriptors):
        return _add_own(index, frames, frame_offsets, sources, threads)
    if frame_offsets is not None:
        raise InputError("frame_offsets are those of own descriptors: frames need none")
    return _add_frames(index, frames, sources, threads, report)


def _add_own(
    index: T, x: Any, frame_offsets: ArrayLike | None, sources: Sequence[dict[str, Any]], threads: int | None
) -> T:
    if not isinstance(x, np.ndarray):
        _ = index.spec  # these seem to be frames: the error says what this index is
    _check_array(x)
    if x.shape[1] != index.descriptor.width:
        raise InputError(f"the index has {index.descriptor.width} columns, the array {x.shape[1]}: other descriptors")
    sizes = np.diff(_check_offsets(frame_offsets, len(x)))
    rows, numbers = _subtract_centre(x, index.centre, index.bandwidth), np.zeros(len(x), np.int16)
    return _add_rows(index, rows, numbers, sizes, sources, threads)


def _add_frames(
    index: T, frames: Any, sources: Sequence[dict[str, Any]], threads: int | None, report: Report | None
) -> T:
    added = [frame for frame in as_frames(frames) if len(frame.centres)]
    if not added:
        raise InputError("nothing to extend the index with: no frames, or no atoms in them")
    present = {int(z) for frame in added for z in frame.distinct_numbers}
    known = {SYMBOLS.index(symbol) for symbol in index.elements}
    index.spec.check_elements(present | known)
    groups = _join_groups(index, _read_groups(added), len(added))
    described = _describe(added, index.spec, threads, Serial(), report)
    sizes = np.array([len(x) for x in described], np.int64)
    rows = (np.concatenate(described) - index.centre).astype(np.float32)
    numbers = np.concatenate([frame.numbers[frame.centres] for frame in added]).astype(np.int16)
    larger = _add_rows(index, rows, numbers, sizes, sources, threads)
    larger.elements, larger.frame_groups = _list_symbols(present | known), groups
    larger.pair_distances = _join_distances(
        larger.elements,
        (index.elements, index.pair_distances),
        (_list_symbols(present), _measure_pair_distances(added, index.spec.cutoff)),
    )
    return larger


def _add_rows(
    index: T,
    rows: NDArray[np.float32],
    numbers: NDArray[np.int16],
    sizes: NDArray[np.int64],
    sources: Sequence[dict[str, Any]],
    threads: int | None,
) -> T:
    """Return the next generation: the index and more `rows` (n, d), less its centre, in frames of these `sizes`."""
    n = len(index)
    # The centre stays. So the old rows are not rounded a second time, and no dH can rise.
    all_rows = np.empty((n + len(rows), len(index.centre)), np.float32)
    all_numbers = np.empty(n + len(rows), np.int16)
    with index.reading():
        all_rows[index.order], all_numbers[index.order] = index.rows, index.numbers  # in the order of the frames again
    all_rows[n:], all_numbers[n:] = rows, numbers
    entry = {
        "generation": index.generation + 1,
        "parent": index.hash,
        "created": _now(),
        "frames": len(sizes),
        "environments": len(rows),
        "sources": list(sources),
        "versions": find_versions(),
    }
    made = arrange(all_rows, all_numbers, index.descriptor.by_centre, threads)
    return replace(
        index,
        frame_offsets=np.concatenate([index.frame_offsets, n + np.cumsum(sizes)]),
        generation=index.generation + 1,
        # The provenance of generation 0, and an entry for each later generation.
        provenance={**index.provenance, "generations": [*index.provenance.get("generations", []), entry]},
        calibration=None,
        residuals=extend_residuals(index.residuals, index.order, made.order),
        path=None,
        hash=None,
        **made._asdict(),
    )


def _join_groups(index: IndexData, added: tuple[str, ...], n_added: int) -> tuple[str, ...]:
    """Return the group of every frame; all frames have one, or none has."""
    if bool(index.frame_groups) == bool(added):
        return index.frame_groups + added
    n = len(index.frame_offsets) - 1
    has, lacks = ("index", "added frames") if index.frame_groups else ("added frames", "index")
    raise InputError(
        f"the frames of the {has} have a group and those of the {lacks} have none ({n} in the index, {n_added} added): "
        "give one to all of them, or to none"
    )


def _join_distances(
    elements: tuple[str, ...], *tables: tuple[tuple[str, ...], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the smallest distance of each pair of `elements`. Each of the `tables` knows some of the elements."""
    out = np.full((len(elements), len(elements)), np.inf, np.float32)
    for some, distances in tables:
        at = np.ix_(*[[elements.index(symbol) for symbol in some]] * 2)
        out[at] = np.minimum(out[at], distances)
    return out
