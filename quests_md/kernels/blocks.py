"""References in blocks: an order in which near rows stand together, and their layout for exact sums."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd_sum import ROWS, lanes
from .jit import kernel

Array = NDArray[Any]

LEAF = 32
_SAMPLE = 128  # rows of a part that tell its axis; more of them do not make smaller parts
_ITERATIONS = 6  # a rough axis only costs speed
_PAD = 16  # rows of the sample are padded to whole vectors


def order_of(rows: Array) -> Array:
    """Return the order (n,) of the rows (n, d), finite and of either precision.

    It depends only on the rows, and neither on threads nor on a library of linear algebra.
    """
    n, d = rows.shape
    order = np.arange(n)
    sample = np.zeros((min(n, _SAMPLE), -(-d // _PAD) * _PAD))
    bisect(rows, order, sample, np.empty(n))
    return order


@kernel
def bisect(rows: Array, order: Array, sample: Array, along: Array) -> None:
    """Put `order` (n,), a permutation of places in `rows`, into the order of the parts.

    `sample` and `along` (n,) are scratch.
    """
    axis = np.zeros(sample.shape[1])
    image = np.empty(sample.shape[1])
    begins, ends = np.empty(64, np.int64), np.empty(64, np.int64)  # the parts to cut; each cut at least halves a part
    begins[0], ends[0], waiting = 0, len(order), 1
    while waiting:
        waiting -= 1
        begin, end = begins[waiting], ends[waiting]
        if end - begin <= LEAF:
            continue
        left = LEAF
        while 2 * left < end - begin:
            left *= 2
        _take_sample(rows, order[begin:end], sample)
        _longest_axis(sample[: min(len(sample), end - begin)], axis, image)
        _project(rows, order[begin:end], axis, along[begin:end])
        select(along[begin:end], order[begin:end], left)
        begins[waiting], ends[waiting] = begin + left, end
        begins[waiting + 1], ends[waiting + 1] = begin, begin + left
        waiting += 2


@kernel
def _take_sample(rows: Array, order: Array, sample: Array) -> None:
    """Fill the first rows of `sample` with rows evenly spread over `order`, less their mean."""
    n, d = len(order), rows.shape[1]
    count = min(len(sample), n)
    mean = np.zeros(d)
    for i in range(count):
        row = rows[order[i * n // count]]
        for c in range(d):
            sample[i, c] = row[c]
            mean[c] += row[c]
    for i in range(count):
        for c in range(d):
            sample[i, c] -= mean[c] / count


@kernel
def _longest_axis(sample: Array, axis: Array, image: Array) -> None:
    """Write the direction of the largest variance of `sample` (n, d) into `axis`, by power iteration.

    It starts from the row farthest from the mean. Only by accident is that row at right angles to the axis.
    """
    farthest, largest = 0, -1.0
    for i in range(len(sample)):
        squared = _dot(sample[i], sample[i])
        if squared > largest:
            farthest, largest = i, squared
    axis[:] = sample[farthest]
    for _ in range(_ITERATIONS):
        image[:] = 0.0
        for i in range(len(sample)):
            part = _dot(sample[i], axis)
            for c in range(len(image)):
                image[c] += part * sample[i, c]
        length = math.sqrt(_dot(image, image))
        if not 0.0 < length < np.inf:  # all rows are the same, or their squares overflow: any axis will do
            return
        axis[:] = image / length


def axes_of(rows: Array, count: int) -> Array:
    """Return roughly the `count` longest axes (count, d) of rows (n, d): orthonormal, or zeros if none is left."""
    sample = np.zeros((min(len(rows), 2 * _SAMPLE), -(-rows.shape[1] // _PAD) * _PAD))
    axes = np.zeros((count, sample.shape[1]))
    if len(rows):
        _longest_axes(rows, np.arange(len(rows)), sample, axes)
    return np.ascontiguousarray(axes[:, : rows.shape[1]])


@kernel
def _longest_axes(rows: Array, order: Array, sample: Array, axes: Array) -> None:
    _take_sample(rows, order, sample)
    image = np.empty(axes.shape[1])
    for k in range(len(axes)):
        axis = axes[k]
        _longest_axis(sample, axis, image)
        length = math.sqrt(_dot(axis, axis))
        left = 1.0 if 0.0 < length < np.inf else 0.0
        axis *= left / max(length, 1e-300)
        for _ in range(2):  # the second pass removes what rounding left
            for j in range(k):
                axis -= _dot(axis, axes[j]) * axes[j]
            length = math.sqrt(_dot(axis, axis))
            left *= length
            axis *= 1.0 / length if left > 1e-3 else 0.0
        for i in range(len(sample)):
            sample[i] -= _dot(sample[i], axis) * axis


@kernel
def _dot(a: Array, b: Array) -> float:
    total = 0.0
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@kernel
def _project(rows: Array, order: Array, axis: Array, along: Array) -> None:
    """Write the coordinate along `axis` of the rows in `order` into `along`."""
    for i in range(len(order)):
        row, total = rows[order[i]], 0.0
        for c in range(len(row)):
            total += row[c] * axis[c]
        along[i] = total


@kernel
def select(values: Array, order: Array, count: int) -> None:
    """Swap `values`, and `order` with them, until none of the first `count` is larger than any of the others.

    This is Hoare's quickselect with the median of three as the pivot. Equal values cost no more than others.
    """
    low, high = 0, len(values) - 1
    while low < high:
        a, b, c = values[low], values[(low + high) // 2], values[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if count <= j:
            high = j
        elif count >= i:
            low = i
        else:
            return


# -- the layout --------------------------------------------------------------------------------------------------------

TILE = 256  # references of a block: a multiple of every `lanes`
AXES = 4  # a box along these axes of the references encloses a block; more axes would not leave out more blocks
LOG2E = math.log2(math.e)
SAFE = 1e-12  # bounds of distances are widened by this, because they are rounded themselves
_PADDING = -1e30  # the exponent in a place without a reference: 2^x is then clamped to nothing
_AWAY = 1e13  # the first coordinate in such a place, so that its square is large too
# The part of a sum that may be left out. Single precision promises 1e-4 nats: 8.3e-5 of these are for products
# (`_TOLERANCE`, which is in powers of two), 1e-5 for this, 3e-6 for `EXP2_ERROR`, the rest for sums and shifts.
_NEGLIGIBLE = {4: 1e-5, 8: 1e-12}
# The largest error that a product may have in an exponent: absolute, and relative to the block's smallest exponent.
_TOLERANCE = {4: (1.2e-4, 1e-6), 8: (1e-11, 1e-11)}
# The factor c of that rounding. An exponent is a sum of d + 1 products of rounded numbers: first in chunks of 16, then
# over the chunks. So each product carries 3 roundings of its own and takes part in at most 16 + d/16 sums. By the
# standard analysis (Higham, Accuracy and Stability of Numerical Algorithms, 3.1) c = 20 + d/16, whatever the signs.
# Double precision asks for that. In single precision it would send most blocks of a melt to differences, which are ten
# times slower, for a case that does not occur: all roundings of all terms that matter go the same way. There c is 5.2:
# sampled systems reach 3.4, mostly 0.4, and rows made for this purpose 5.1 (tests/kernels/test_kernel_sum.py makes
# them). Own descriptors can be wide: rows made for this purpose reach 17 at 1000 columns and 48 at 3000. So beyond
# `_WIDE` columns c = 4.5 + d/60.
_ROUNDINGS_SINGLE = 5.2
_WIDE = 256


class Blocks(NamedTuple):
    """References in blocks of `TILE`, laid out for `log_kernel_sum` at one bandwidth."""

    rows: Array  # (n, d) the references themselves
    order: Array  # (n,) rows in the order of the blocks
    tiles: Array  # (n_blocks, panels, d + 1, lanes): s·(r − c); in the last coordinate −s/2·|r − c|²
    centres: Array  # (d, n_blocks), rounded to the precision of the tiles
    repeated: Array  # (n_blocks, 6·(d + 1)), as the tiles: every coordinate of c six times; in the last, −1
    radius: Array  # (n_blocks,) largest distance from the centre
    axes: Array  # (AXES, d) the longest axes of all references: orthonormal, or zeros
    along: Array  # (AXES, n_blocks) the centres along these axes
    low: Array  # (AXES, n_blocks) the smallest coordinate of the references along these, less that of the centre
    high: Array  # the same for the largest coordinate
    across: Array  # (n_blocks,) largest distance from the centre, at right angles to all these axes
    spread: Array  # (n_blocks,) mean squared distance from the centre
    counts: Array  # (n_blocks,) number of references
    scale: float  # s
    unit: float  # u
    rounding: float  # c·u
    tolerance: tuple[float, float]
    negligible: float
    vector: bool  # whether it is for vector code, in panels of `lanes`; else one panel, so that plain loops are long


def empty_blocks(rows: Array, order: Array, axes: Array, bandwidth: float, dtype: Any, vector: bool) -> Blocks:
    """Make room for the blocks of the references `rows` (n, d) in this order; `pack` fills them."""
    n, d = rows.shape
    size = np.dtype(dtype).itemsize
    blocks, width = -(-n // TILE), lanes(size) if vector else TILE
    unit = 0.5 * float(np.finfo(dtype).eps)
    return Blocks(
        rows=rows,
        order=order,
        tiles=np.empty((blocks, TILE // width, d + 1, width), dtype),
        centres=np.empty((d, blocks)),
        repeated=np.empty((blocks, ROWS * (d + 1)), dtype),
        radius=np.empty(blocks),
        axes=axes,
        along=np.empty((len(axes), blocks)),
        low=np.empty((len(axes), blocks)),
        high=np.empty((len(axes), blocks)),
        across=np.empty(blocks),
        spread=np.empty(blocks),
        counts=np.minimum(TILE, n - TILE * np.arange(blocks)).astype(float),
        scale=LOG2E / bandwidth**2,
        unit=unit,
        rounding=_roundings(d, size) * unit,
        tolerance=_TOLERANCE[size],
        negligible=_NEGLIGIBLE[size],
        vector=vector,
    )


def _roundings(d: int, size: int) -> float:
    """Return the factor c for rows of `d` columns, with numbers of `size` bytes."""
    if size == 8:
        return 20.0 + d / 16
    return _ROUNDINGS_SINGLE if d <= _WIDE else 4.5 + d / 60


@kernel
def pack(blocks: Blocks, first: int, last: int) -> None:
    """Fill the blocks first..last."""
    n, d = blocks.rows.shape
    width = blocks.tiles.shape[3]
    centre = np.empty(d)
    for b in range(first, last):
        begin, end = b * TILE, min(n, (b + 1) * TILE)
        centre[:] = 0.0
        for j in range(begin, end):
            for c in range(d):
                centre[c] += blocks.rows[blocks.order[j], c] / (end - begin)
        for c in range(d):
            blocks.repeated[b, ROWS * c : ROWS * (c + 1)] = centre[c]
            centre[c] = blocks.repeated[b, ROWS * c]
            blocks.centres[c, b] = centre[c]
        blocks.repeated[b, ROWS * d :] = -1.0
        largest, total = 0.0, 0.0
        for j in range(end - begin):
            row = blocks.rows[blocks.order[begin + j]]
            squared = _pack_row(row, centre, blocks.scale, blocks.tiles[b, j // width, :, j % width])
            largest, total = max(largest, squared), total + squared
        for j in range(end - begin, TILE):
            blocks.tiles[b, j // width, :, j % width] = 0.0
            blocks.tiles[b, j // width, 0, j % width] = _AWAY
            blocks.tiles[b, j // width, d, j % width] = _PADDING
        blocks.radius[b], blocks.spread[b] = math.sqrt(largest), total / (end - begin)
        _enclose(blocks, b, blocks.order[begin:end], centre)


@kernel
def _enclose(blocks: Blocks, b: int, order: Array, centre: Array) -> None:
    """Find the box along the axes around the references `order` of block b, and their distance across the axes."""
    axes, low, high, across = blocks.axes, blocks.low, blocks.high, 0.0
    for k in range(len(axes)):
        blocks.along[k, b], low[k, b], high[k, b] = 0.0, np.inf, -np.inf
        for c in range(len(centre)):
            blocks.along[k, b] += axes[k, c] * centre[c]
    for i in order:
        squared, inside = 0.0, 0.0
        for c in range(len(centre)):
            squared += (blocks.rows[i, c] - centre[c]) ** 2
        for k in range(len(axes)):
            place = 0.0
            for c in range(len(centre)):
                place += axes[k, c] * (blocks.rows[i, c] - centre[c])
            low[k, b], high[k, b] = min(low[k, b], place), max(high[k, b], place)
            inside += place * place
        across = max(across, squared * (1.0 + SAFE) - inside)
    blocks.across[b] = math.sqrt(across)


@kernel
def _pack_row(row: Array, centre: Array, scale: float, column: Array) -> float:
    """Write one reference into its column of a tile; return its squared distance from the centre."""
    squared = 0.0
    for c in range(len(row)):
        difference = row[c] - centre[c]
        column[c] = difference * scale
        squared += difference * difference
    column[len(row)] = -0.5 * scale * squared
    return squared
