"""References in blocks: an order in which near rows stand together, and their layout for exact sums."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd_sum import ROWS, lanes, roundings
from .jit import inlined, kernel

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
# The part of a sum that may be left out. Single precision promises 1e-4 nats: 7.9e-5 of these are for exponents
# (`_TOLERANCE`, which is in powers of two), 1e-5 for this, 3e-6 for `EXP2_ERROR`, 7e-6 for the rounding of an exponent
# relative to the largest, which may be `_HEADROOM`, and of the sums of the terms.
_NEGLIGIBLE = {4: 1e-5, 8: 1e-12}
# The largest error of an exponent, the larger of two: absolute, and relative to the exponent. Let a term be the share p
# of a sum of n terms. Its exponent is −log₂ p more than that of the sum, dH/ln 2, and Σ −p·log₂ p ≤ log₂ n, as of every
# entropy. So the exponents are dH/ln 2 + log₂ n in the mean of the terms, and the error of dH is relative to dH if
# log₂ n is taken off first.
_TOLERANCE = {4: (1.14e-4, 7.9e-7), 8: (1e-11, 1e-11)}
# How often the two factors of a product are rounded before it is made. The query less the centre is rounded once. s
# times the reference less the centre is computed in double precision: that is three roundings of double precision.
# What its rounding to single precision changes is known.
_FACTORS = {4: 1, 8: 4}
_SECOND_ORDER = 1.001  # (1 + u)ⁿ is at most 1 + 1.001·n·u for n < 16,000


class Blocks(NamedTuple):
    """References in blocks of `TILE`, laid out for `log_kernel_sum` at one bandwidth."""

    rows: Array  # (n, d) the references themselves
    order: Array  # (n,) rows in the order of the blocks
    columns: Array  # (d,) the column of the rows that is each coordinate of the tiles
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
    weights: Array  # (d,) w·u of every column: how much its product in an exponent may be wrong, relative to it
    weighted: Array  # (n_blocks,) how wrong a product with a query at the distance 1 from the centre may be
    of_lengths: float  # the same of −s/2·|r − c|²
    of_squares: float  # how much a sum of squares may be wrong, relative to it
    tolerance: tuple[float, float]
    negligible: float
    vector: bool  # whether it is for vector code, in panels of `lanes`; else one panel, so that plain loops are long


def empty_blocks(rows: Array, order: Array, axes: Array, bandwidth: float, dtype: Any, vector: bool) -> Blocks:
    """Make room for the blocks of the references `rows` (n, d) in this order; `pack` fills them."""
    n, d = rows.shape
    size = np.dtype(dtype).itemsize
    blocks, width = -(-n // TILE), lanes(size) if vector else TILE
    unit, scale = 0.5 * float(np.finfo(dtype).eps), LOG2E / bandwidth**2
    times = roundings(d + 1, vector)
    columns = _sort_columns(rows, times[:d])
    weights = np.empty(d)
    weights[columns] = times[:d] + _FACTORS[size]
    own = 1 if size == 4 else d + 5  # roundings of |r − c|², which is computed in double precision
    return Blocks(
        rows=rows,
        order=order,
        columns=columns,
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
        scale=scale,
        unit=unit,
        weights=weights * unit * _SECOND_ORDER,
        weighted=np.empty(blocks),
        of_lengths=float(times[d] + own) * unit * _SECOND_ORDER,
        # A difference is rounded once and squared. The sum is multiplied by −1/2s, which is rounded.
        of_squares=float(roundings(d, vector, of_squares=True).max(initial=0) + 4) * unit * _SECOND_ORDER,
        tolerance=_TOLERANCE[size],
        negligible=_NEGLIGIBLE[size],
        vector=vector,
    )


def _sort_columns(rows: Array, times: Array) -> Array:
    """Return the order of columns (d,) in which those that vary most are rounded the fewest `times` (d,).

    In descriptors a few columns vary much more than the others. So this halves the bound of the rounding.
    """
    sample = rows[:: max(1, len(rows) // _SAMPLE)]
    with np.errstate(over="ignore", invalid="ignore"):
        spread = np.var(sample, axis=0, dtype=np.float64) if len(sample) else np.zeros(len(times))
    columns = np.empty(len(times), np.int64)
    columns[np.argsort(-times, kind="stable")] = np.argsort(spread, kind="stable")
    return columns


@kernel
def pack(blocks: Blocks, first: int, last: int) -> None:
    """Fill the blocks first..last."""
    n, d = blocks.rows.shape
    width, columns = blocks.tiles.shape[3], blocks.columns
    centre = np.empty(d)
    for b in range(first, last):
        begin, end = b * TILE, min(n, (b + 1) * TILE)
        centre[:] = 0.0
        for j in range(begin, end):
            for c in range(d):
                centre[c] += blocks.rows[blocks.order[j], c] / (end - begin)
        for k in range(d):
            c = columns[k]
            blocks.repeated[b, ROWS * k : ROWS * (k + 1)] = centre[c]
            centre[c] = blocks.repeated[b, ROWS * k]
            blocks.centres[c, b] = centre[c]
        blocks.repeated[b, ROWS * d :] = -1.0
        largest, total, weighted = 0.0, 0.0, 0.0
        for j in range(end - begin):
            row = blocks.rows[blocks.order[begin + j]]
            squared, wrong = _pack_row(row, centre, blocks, blocks.tiles[b, j // width, :, j % width])
            largest, total, weighted = max(largest, squared), total + squared, max(weighted, wrong)
        for j in range(end - begin, TILE):
            blocks.tiles[b, j // width, :, j % width] = 0.0
            blocks.tiles[b, j // width, 0, j % width] = _AWAY
            blocks.tiles[b, j // width, d, j % width] = _PADDING
        blocks.radius[b], blocks.spread[b] = math.sqrt(largest), total / (end - begin)
        blocks.weighted[b] = weighted
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
def _pack_row(row: Array, centre: Array, blocks: Blocks, column: Array) -> tuple[float, float]:
    """Write one reference into its column of a tile; return its squared distance from the centre.

    And return how wrong its product with a query at the distance 1 may be: see `error_of_products`.
    """
    squared, weighted, moved, columns, weights = 0.0, 0.0, 0.0, blocks.columns, blocks.weights
    for k in range(len(row)):
        c = columns[k]
        difference = row[c] - centre[c]
        column[k] = difference * blocks.scale
        squared += difference * difference
        weighted += (difference * weights[c]) ** 2
        moved += (difference - column[k] / blocks.scale) ** 2
    column[len(row)] = -0.5 * blocks.scale * squared
    return squared, math.sqrt(weighted) + math.sqrt(moved)


# -- what rounding may do to an exponent -------------------------------------------------------------------------------


@inlined
def error_of_products(weighted: float, radius: float, far: float, lost: float, blocks: Blocks) -> float:
    """Return the largest error of an exponent by a product with a block of this `weighted` and `radius`.

    The query is at the distance `far` from the centre. A term a_c·b_c is wrong by at most w_c·u of itself, and Σ_c
    w_c·|a_c|·|b_c| ≤ |a|·|w∘b| (Cauchy). Before, rounding moves the reference by a known vector, which is part of
    `weighted`, and the query by one of the length `lost`.
    """
    return blocks.scale * (weighted * far + radius * (0.5 * blocks.of_lengths * radius + lost))


@inlined
def error_of_squares(radius: float, far: float, lost: float, reach: float, mean: float, blocks: Blocks) -> float:
    """Return the largest error of exponents by differences, of references no farther than `reach` from the query.

    Rounding moves the difference of query and reference: by `lost`; by 3·u·|a|, when the centre is subtracted and when
    that is multiplied by s, which is rounded, too; and by u·|b|. The sum of squares is wrong by `of_squares` of itself,
    so the sum of all terms is wrong by this share of their `mean` exponent.
    """
    moved = lost + blocks.unit * (3.0 * far + min(radius, far + reach))
    return blocks.scale * moved * (reach + moved) + blocks.of_squares * mean


@inlined
def allowed_error(exponent: float, log_rows: float, blocks: Blocks) -> float:
    """Return how wrong the exponents of a block may be, if none is larger than this. `log_rows` is log₂ n."""
    return max(blocks.tolerance[0], blocks.tolerance[1] * (-exponent - log_rows))
