"""What an index is made of: the order of its rows and their tree, bandwidth, smallest distances, provenance."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import descriptors
from ..descriptors import DescriptorSpec
from ..errors import InputError
from ..frame import Frame
from ..information import bandwidth_from_volume
from ..kernels import search
from ..kernels._jit import over_rows
from ..kernels.order import order_of
from ..versions import versions
from ._asked import spans

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
        "versions": versions(),
    }
