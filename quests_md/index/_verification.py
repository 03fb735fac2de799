"""What an index file must hold: what no index that was built here can hold is refused when the file is opened.

Checksums tell that a file is what was once written. They do not tell that this can be an index: a file may be forged,
with checksums that are right. So opening also compares what belongs together: the nodes of the search tree, the
centre, the cutoff and the smallest distances with the rows. One pass over the rows does it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS
from ..errors import InputError
from ..information import check_reach
from ..kernels.blocks import LEAF
from ..kernels.jit import kernel
from ..kernels.search import FAN, Tree, levels
from ._build import LONGEST
from ._data import IndexData
from ._header import is_count
from ._parts import find_parts
from ._residuals import check_residuals
from ._thresholds import Calibration

__all__ = ["check_provenance", "check_rows", "check_sections"]

# -- the header, and the small sections --------------------------------------------------------------------------------


def check_provenance(provenance: Any, generation: int) -> None:
    """Raise `InputError` unless this is a provenance, with an entry for each generation after the first."""
    if not (isinstance(provenance, dict) and _are_objects(provenance.get("sources", []))):
        raise InputError("provenance must be an object whose sources are a list of objects")
    if not all(isinstance(provenance.get(name, ""), str) for name in ("created", "bandwidth_rule")):
        raise InputError("provenance: created and bandwidth_rule must be text")
    added = provenance.get("generations", [])
    if (
        not _are_objects(added)
        or len(added) != generation
        or any(e.get("generation") != i for i, e in enumerate(added, 1))
    ):
        raise InputError(f"provenance: the generations are not those up to generation {generation}")
    for entry in added:
        known = isinstance(entry.get("created"), str) and _are_objects(entry.get("sources"))
        if not known or not all(is_count(entry.get(name)) for name in ("frames", "environments")):
            raise InputError(f"provenance: the entry of generation {entry['generation']} is not one")


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def check_sections(
    descriptor: DescriptorSpec | OwnDescriptors, header: dict[str, Any], sections: dict[str, NDArray[Any]]
) -> None:
    """Raise `InputError` unless the sections fit the header and each other. This reads no row."""
    n, width = sections["rows"].shape
    offsets, numbers, centre = sections["frame_offsets"], sections["numbers"], sections["centre"]
    if width != descriptor.width - descriptor.by_centre or centre.shape != (width,):
        raise InputError("section rows: the width of the rows is not that of the descriptor")
    if not np.isfinite(centre).all():
        raise InputError("section centre: the centre is not finite")
    # A difference of hostile numbers may overflow: so the range comes first.
    if len(offsets) < 2 or offsets.min() < 0 or offsets.max() > n:
        raise InputError("section frame_offsets: the frame offsets do not divide the rows")
    if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) <= 0).any():
        raise InputError("section frame_offsets: the frame offsets do not divide the rows")
    _check_elements(descriptor, header["elements"], numbers, n)
    if len(header.get("frame_groups", ())) not in (0, len(offsets) - 1):
        raise InputError("the header: the groups are not those of the frames")
    _check_distances(descriptor, len(header["elements"]), sections["pair_distances"])
    added = header["provenance"].get("generations", [])
    if not (sum(e["environments"] for e in added) < n and sum(e["frames"] for e in added) < len(offsets) - 1):
        raise InputError("the header: its generations have added more than there is")
    if "order" in sections:
        _check_tree(descriptor.by_centre, sections)
    if header.get("calibration") is not None:
        _check_calibration(header["calibration"], sections)
    check_residuals(header.get("residuals", ()), sections.get("residuals"), n)


def _check_elements(
    descriptor: DescriptorSpec | OwnDescriptors, elements: list[str], numbers: NDArray[np.int16], n: int
) -> None:
    """Raise `InputError` unless the elements fit the descriptor and the `n` rows."""
    if isinstance(descriptor, OwnDescriptors):
        if elements or numbers.shape != (n,) or numbers.any():
            raise InputError("section numbers: own descriptors have no elements")
        return
    if numbers.shape != (n,) or numbers.min() < 1 or numbers.max() >= len(SYMBOLS):
        raise InputError("section numbers: the elements of the rows are not atomic numbers")
    if not {SYMBOLS[z] for z in np.unique(numbers)} <= set(elements) <= set(SYMBOLS[1:]):
        raise InputError("section numbers: the list of elements is not that of the rows")
    if elements != sorted(set(elements), key=SYMBOLS.index):
        raise InputError("the header: the list of elements is not in the order of the atomic numbers")
    if not set(elements) <= set(descriptor.elements or elements):
        raise InputError("the header: the list of elements is not that of the descriptor")


def _check_distances(descriptor: DescriptorSpec | OwnDescriptors, n: int, distances: NDArray[np.float32]) -> None:
    """Raise `InputError` unless these can be the smallest distances of pairs of `n` elements."""
    ok = distances.shape == (n, n) and bool((distances > 0.0).all()) and np.array_equal(distances, distances.T)
    if ok and isinstance(descriptor, DescriptorSpec):
        ok = bool((np.isinf(distances) | (distances.astype(np.float64) <= descriptor.cutoff * _ROUNDED)).all())
    if not ok:
        raise InputError("section pair_distances: the smallest distances are not those of pairs of elements")


def _check_tree(by_centre: bool, sections: dict[str, NDArray[Any]]) -> None:
    """Raise `InputError` unless the order is one, and the search trees can be those of the rows."""
    n, width = sections["rows"].shape
    if by_centre and (np.diff(sections["numbers"]) < 0).any():
        raise InputError("section numbers: the rows are not in the order of their elements")
    parts = find_parts(sections["numbers"], by_centre).values()
    nodes = sum(int(levels(last - first)[-1]) for first, last in parts)
    shapes = {"order": (n,), "node_centres": (nodes, width), "node_radius": (nodes,), "node_spread": (nodes,)}
    for name, shape in shapes.items():
        if sections[name].shape != shape:
            raise InputError(f"section {name}: the search tree is not one over these rows")
    order, named = sections["order"], np.zeros(n, bool)
    if order.min() >= 0 and order.max() < n:
        named[order] = True
    if not named.all():
        raise InputError("section order: it does not name every environment once")
    if not np.isfinite(sections["node_centres"]).all():
        raise InputError("section node_centres: the search tree holds centres that are not finite")
    for name in ("node_radius", "node_spread"):
        if not (np.isfinite(sections[name]).all() and sections[name].min() >= 0):
            raise InputError(f"section {name}: the search tree holds values of {name} that are no distances")


def _check_calibration(made: Calibration, sections: dict[str, NDArray[Any]]) -> None:
    """Raise `InputError` unless a calibration can be that of these rows."""
    n, frames = len(sections["numbers"]), len(sections["frame_offsets"]) - 1
    symbols = [SYMBOLS[z] for z in np.unique(sections["numbers"])]
    ok = list(made.symbols) == symbols and len(made.sizes) <= made.frames and made.frames + made.copies <= frames
    ok = ok and 2 <= made.groups <= made.frames and 1.0 <= made.correlation <= frames
    ok = ok and made.redundancy <= math.log(n) + 1e-9 and int(made.sizes.max()) <= n and int(made.sizes.sum()) <= n
    if not ok:
        raise InputError("the header: the calibration is not one of these frames")


# -- the rows ----------------------------------------------------------------------------------------------------------

_UNIT = 2.0**-24  # rounding of single precision
_ROUNDED = 1.0 + 4.0 * _UNIT  # values in the file were rounded, some of them up
_TINY = 1e-40  # single precision has no relative precision below this
_NEAR = 1e-6  # relative to what is compared: single precision, and room
_FAULTS = ("", "node_centres", "node_radius", "node_spread")


def check_rows(index: IndexData) -> None:
    """Raise `InputError` unless the rows of an index are finite, and trees, centre and distances are those of them.

    A bound of the search is right only for the mean of a node's rows, and for a radius and a spread that are not too
    small. So after this check `exceeds` is right whoever has written the file.
    """
    width = index.rows.shape[1]
    low, high, longest = np.full(width, np.inf), np.full(width, -np.inf), 0.0
    for _, tree in index.trees():
        root = len(tree.radius) - 1
        reach = 1.001 * (float(np.linalg.norm(tree.centres[root].astype(np.float64))) + float(tree.radius[root]))
        fault, node = _measure(tree, reach, low, high)  # `search.question` has the same reach
        if fault == _NOT_FINITE:
            raise InputError("section rows: it holds values that are not finite")
        if fault:
            raise InputError(f"section {_FAULTS[fault]}: node {node} of the search tree is not that of its rows")
        longest = max(longest, reach)
    check_reach("section rows", np.array([low, high]), index.bandwidth)
    _check_columns(index, low + index.centre, high + index.centre)
    _check_maxima(index, longest)


def _check_columns(index: IndexData, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    """Raise `InputError` unless these are the smallest and largest values of columns of the descriptor.

    No value is negative. In each block the first k columns fall, and so do the others. The first column is w(r)/r of
    the nearest neighbour, which falls with r: so its largest value belongs to the smallest of all distances.
    """
    spec = index.descriptor
    if isinstance(spec, OwnDescriptors):
        if not np.abs(index.centre).max() <= LONGEST:
            raise InputError(f"section centre: it holds values beyond {LONGEST:g}")
        return
    smallest, k = float(index.pair_distances.min()), spec.k
    expected = (1.0 - min(1.0, smallest / spec.cutoff) ** 2) ** 2 / smallest
    slack = 10.0 * _NEAR * max(expected, 1.0 / spec.cutoff)
    if not abs(high[:: 2 * k - 1].max() - expected) <= slack:
        raise InputError("section pair_distances: cutoff, smallest distances and rows do not belong together")
    for values in (low.reshape(-1, 2 * k - 1), high.reshape(-1, 2 * k - 1)):
        falls = (np.diff(values[:, :k]) <= slack).all() and (np.diff(values[:, k:]) <= slack).all()
        # Two neighbours of an atom may be nearer to each other than any to a watched atom, but not by this factor.
        if not falls or values.min() < -slack or values[:, k].max() > 10.0 * expected + slack:
            raise InputError("section centre: centre and rows are not those of a descriptor")


def _check_maxima(index: IndexData, longest: float) -> None:
    """Raise `InputError` if the calibration holds a dH that no row of the index can have."""
    if index.calibration is None:
        return
    maxima = index.calibration.maxima[np.isfinite(index.calibration.maxima)]
    most = (2.0 * longest / index.bandwidth) ** 2 / 2.0  # of two rows that are farthest from each other
    least = -math.log(len(index))
    if len(maxima) and not (maxima.min() >= least - _slack_of(least) and maxima.max() <= most + _slack_of(most)):
        raise InputError("the header: the calibration holds a dH that no row of the index can have")


def _slack_of(dH: float) -> float:
    return 1e-3 * max(1.0, abs(dH))  # ten times what a sum in single precision may be off by


# Numbers of faults, as in `_FAULTS`.
_NO_FAULT, _CENTRE, _RADIUS, _SPREAD, _NOT_FINITE = 0, 1, 2, 3, 4


@kernel
def _measure(tree: Tree, longest: float, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[int, int]:
    """Compare all nodes of a tree with its rows; return the fault of the first that is wrong, and its number.

    `low` and `high` (d,) take in the columns' smallest and largest values. All levels are done for each leaf, while its
    rows are in the cache.
    """
    n, d = tree.rows.shape
    depth, leaves = len(tree.first) - 1, tree.first[1]
    sums, centres, row = np.zeros((depth, d)), np.empty((depth, d)), np.empty(d)
    farthest, spread = np.zeros(depth), np.zeros(depth)
    for leaf in range(leaves):
        for level in range(depth):  # the nodes that begin with this leaf
            if leaf % FAN**level:
                break
            centres[level] = tree.centres[tree.first[level] + leaf // FAN**level]
            sums[level], farthest[level], spread[level] = 0.0, 0.0, 0.0
        for j in range(leaf * LEAF, min(n, (leaf + 1) * LEAF)):
            for c in range(d):
                row[c] = tree.rows[j, c]
                sums[0, c] += row[c]
                low[c], high[c] = min(low[c], row[c]), max(high[c], row[c])
            for level in range(depth):
                squared = 0.0
                for c in range(d):
                    squared += (row[c] - centres[level, c]) ** 2
                farthest[level] = max(farthest[level], squared)
                spread[level] += squared
        for level in range(depth):  # the nodes that end with it
            size = FAN**level
            if (leaf + 1) % size and leaf + 1 < leaves:
                break
            node = leaf // size
            count = min(n, (node + 1) * size * LEAF) - node * size * LEAF
            off = 0.0
            for c in range(d):
                off += (sums[level, c] / count - centres[level, c]) ** 2
            node += tree.first[level]
            fault = _judge(tree, node, math.sqrt(off), math.sqrt(farthest[level]), spread[level] / count, longest)
            if fault:
                return fault, node
            if level + 1 < depth:
                sums[level + 1] += sums[level]
    return _NO_FAULT, -1


@kernel
def _judge(tree: Tree, node: int, off: float, farthest: float, spread: float, longest: float) -> int:
    """Return what is wrong with a node. `search.widths` allows for a mean that is off by rounding, and no more."""
    if not (np.isfinite(off) and np.isfinite(spread)):
        return _NOT_FINITE
    if off > _UNIT * longest + _TINY:
        return _CENTRE
    if not farthest - _TINY <= tree.radius[node] <= farthest * _ROUNDED + _TINY:
        return _RADIUS
    if not spread - _TINY <= tree.spread[node] <= spread * _ROUNDED + _TINY:
        return _SPREAD
    return _NO_FAULT
