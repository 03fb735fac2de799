"""References in blocks: an order in which near rows stand together, and their layout for exact sums."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd_panel import NORMS, RESIDUALS, panel_width
from ._simd_sum import ROWS
from .jit import inlined, kernel, ordered

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

TILE = 256  # references of a block: a multiple of every `panel_width`
AXES = 8  # coordinates that tell whether a panel is needed; a box along these encloses a block
LOG2E = math.log2(math.e)
_PLACES = 32  # a loop over so many blocks has no rest that is not vector code
_NOWHERE = 1e100  # a coordinate of a block that does not exist: none of its references matters
SAFE = 1e-12  # bounds of distances are widened by this, because they are rounded themselves
_PADDING = -1e30  # the exponent in a place without a reference: it is always too small to count
# The part of a sum that may be left out. Single precision promises 1e-4 nats, double precision 1e-10. Of these 9e-5 and
# 3e-11 are for exponents (`_TOLERANCE`, which is in powers of two), 1e-6 and 1e-11 for this, and 1e-6 and 1e-12 for the
# powers of two and their sums.
_NEGLIGIBLE = {4: 1e-6, 8: 1e-11}
# The largest error of an exponent, the larger of two: absolute, and relative to the exponent. Let a term be the share p
# of a sum of n terms. Its exponent is −log₂ p more than that of the sum, dH/ln 2, and Σ −p·log₂ p ≤ log₂ n, as of every
# entropy. So the exponents are dH/ln 2 + log₂ n in the mean of the terms, and the error of dH is relative to dH if
# log₂ n is taken off first.
_TOLERANCE = {4: (1.3e-4, 1.3e-6), 8: (4e-11, 4e-11)}
_HEADROOM = {4: 60.0, 8: 900.0}  # sums of terms overflow at 128 and 1024
_REST = 0.1  # of the tolerance, what blocks get that add little
_SECOND_ORDER = 1.001  # (1 + u)ⁿ is at most 1 + 1.001·n·u for n < 16,000
_UNIT = 2.0**-53
_TOGETHER = 4096  # rows that are measured at a time
_WIDEST = 256  # a wider row is not turned: that would take as long as some hundred pairs


class Blocks(NamedTuple):
    """References in blocks of `TILE`, laid out for `log_kernel_sum` at one bandwidth.

    The coordinates of a row are those along the principal axes of the references: the longest `first` of them, then the
    rest, each from the shortest to the longest, so that the longer are rounded less often.
    """

    rows: Array  # (n, d) the references themselves
    order: Array  # (n,) rows in the order of the blocks
    middle: Array  # (d,) is subtracted from a row before it is turned
    turn: Array  # (d, d) and zeros: row c holds what coordinates get of column c; empty if `columns` are enough
    columns: Array  # (d,) the column of the rows that is each coordinate, without `turn`
    tiles: Array  # (n_blocks, panels, 2 + d, width) −s/2·|r − c|² of the `first`, and of the rest; then s·(r − c);
    # with residuals two more rows: 1 where there is one, else 0; and the residual
    residuals: Array  # (n,) how wrong a potential is on each row, nan where that is not known; or empty
    squarings: int  # of the square root of a term that make what the weights of residuals are powers of
    centres: Array  # (d, places) coordinates; places are blocks, and then some that are far from everything
    repeated: Array  # (n_blocks, 6·d) the same, every coordinate six times
    low: Array  # (first, places) the smallest of the first coordinates of the references, less that of the centre
    high: Array  # the same for the largest
    across: Array  # (places,) largest distance from the centre, at right angles to the first axes
    radius: Array  # (places,) largest distance from the centre
    spread: Array  # (places,) mean squared distance from the centre
    weighted: Array  # (places,) how wrong products and rounded references make an exponent, at the distance 1
    counts: Array  # (places,) number of references
    scale: float  # s
    first: int  # coordinates after which a panel is left out or not
    weights: Array  # (d,) how wrong a product may be, relative to it
    of_norms: float  # how wrong the norms and what they are added to may be, relative to all that is added up
    of_turn: float  # how far turning moves a row, relative to its length
    longest: float  # the length of the longest reference
    tolerance: tuple[float, float]
    negligible: float
    log_negligible: float  # the exponent of a term, relative to the sum, n of which are negligible
    headroom: float  # a term may exceed what its sum is relative to by so many exponents
    vector: bool  # whether it is for vector code, in panels; else one panel, so that plain loops are long


def empty_blocks(
    rows: Array,
    order: Array,
    bandwidth: float,
    dtype: Any,
    vector: bool,
    turned: bool,
    residuals: Array,
    squarings: int = 0,
) -> Blocks:
    """Make room for the blocks of the references `rows` (n, d) in this order; `pack` fills them.

    `residuals` (n,) float64 are those of the rows, or empty.
    """
    n, d = rows.shape
    size, scale = np.dtype(dtype).itemsize, LOG2E / bandwidth**2
    middle = rows.mean(axis=0, dtype=np.float64) if n else np.zeros(d)
    longest = _longest(rows, middle)
    turn, columns = _find_coordinates(rows, turned and _may_turn(longest, d, scale, _TOLERANCE[size][0]))
    first = min(AXES, d)
    backwards = np.r_[np.arange(first - 1, -1, -1), np.arange(d - 1, first - 1, -1)]
    turn, columns = turn[:, backwards] if len(turn) else turn, columns[backwards]
    blocks, width = -(-n // TILE), panel_width(size) if vector else TILE
    places = -(-blocks // _PLACES) * _PLACES
    return Blocks(
        rows=rows,
        order=order,
        middle=middle,
        turn=_pad(turn),
        columns=columns,
        tiles=np.empty((blocks, TILE // width, NORMS + d + (RESIDUALS if len(residuals) else 0), width), dtype),
        residuals=residuals,
        squarings=squarings,
        centres=np.full((d, places), _NOWHERE),
        repeated=np.empty((blocks, ROWS * d)),
        low=np.zeros((first, places)),
        high=np.zeros((first, places)),
        across=np.zeros(places),
        radius=np.zeros(places),
        spread=np.zeros(places),
        weighted=np.zeros(places),
        counts=np.clip(n - TILE * np.arange(places), 0, TILE).astype(float),
        scale=scale,
        first=first,
        weights=_weigh(d, first, size, vector),
        of_norms=_of_norms(d, size),
        of_turn=_moves(d) if len(turn) else 0.0,
        longest=longest,
        tolerance=_TOLERANCE[size],
        negligible=_NEGLIGIBLE[size],
        log_negligible=math.log2(_NEGLIGIBLE[size] / max(n, 1)),
        headroom=_HEADROOM[size] / 2.0 ** max(0, squarings - 1),
        vector=vector,
    )


def _longest(rows: Array, middle: Array) -> float:
    """Return the largest distance of a row from `middle`, or a little more."""
    largest = 0.0
    with np.errstate(over="ignore"):
        for first in range(0, len(rows), _TOGETHER):
            away = rows[first : first + _TOGETHER] - middle
            largest = max(largest, float(np.einsum("ij,ij->i", away, away).max()))
    return math.sqrt(largest) * (1.0 + SAFE)


def _moves(d: int) -> float:
    """Return how far rounding may move a row that is turned, relative to its length.

    A coordinate is a sum of d products, in groups of eight. So a product is rounded when it is made, three times in its
    group, and once with each group. No coordinate is wrong by more than that times the length of the row (Cauchy).
    """
    return (padded_width(d) // 8 + 5) * math.sqrt(d) * _UNIT


def _may_turn(longest: float, d: int, scale: float, tolerance: float) -> bool:
    """Return whether turning rows moves them so little that exponents may still be wrong by half of `tolerance`."""
    moved = 2.0 * _moves(d) * longest
    reach = math.sqrt(2.0 * 60.0 / scale)  # terms below 2⁻⁶⁰ of the largest do not matter
    return d <= _WIDEST and scale * moved * (reach + moved) <= 0.5 * tolerance


def _find_coordinates(rows: Array, turned: bool) -> tuple[Array, Array]:
    """Return `turn` (d, d), or nothing; and the columns in the order of the coordinates.

    Coordinates are sorted by their variance, the largest first.
    """
    sample = np.asarray(rows[:: max(1, len(rows) // (2 * _SAMPLE))], np.float64)
    axes = np.eye(rows.shape[1])
    if turned and len(sample):
        axes = _complete(axes_of(rows, min(2 * AXES, rows.shape[1])))
    with np.errstate(over="ignore", invalid="ignore"):
        spread = np.var(sample @ axes.T, axis=0) if len(sample) else np.zeros(len(axes))
    order = np.argsort(-spread, kind="stable")
    return np.ascontiguousarray(axes[order].T) if turned else np.empty((0, len(axes))), order


def _complete(axes: Array) -> Array:
    """Return d orthonormal axes (d, d), the first of which are those of `axes` (k, d) but for their sign.

    These are Householder's reflections, written out so that no digit depends on a library.
    """
    d = axes.shape[1]
    whole, left = np.eye(d), axes.T.copy()
    for k in range(len(axes)):
        mirror = left[k:, k].copy()
        length = math.sqrt(float((mirror * mirror).sum()))
        if length < 0.5:  # no such axis
            continue
        mirror[0] += math.copysign(length, mirror[0])
        mirror /= math.sqrt(float((mirror * mirror).sum()))
        for columns in (left[k:], whole[k:]):
            columns -= 2.0 * mirror[:, None] * (mirror[:, None] * columns).sum(axis=0)
    return whole


def _weigh(d: int, first: int, size: int, vector: bool) -> Array:
    """Return how wrong a product may be, relative to it: how often it is rounded, times the unit.

    A product is rounded with each partial sum that it is part of, and when it is made, unless that is fused. Then the
    norms are added to it, and its sum to the other one. The query is rounded once, and what is subtracted from the
    query and the reference counts as three times of double precision. What rounding takes from a reference is known,
    and counted when it is laid out.
    """
    after = np.r_[first - 1 - np.arange(first), d - 1 - np.arange(first, d)]
    rounded = after + 1 + 2 + 1 + (0 if vector else 1)
    return np.asarray((rounded * _unit(size) + 3 * _UNIT) * _SECOND_ORDER)


def _of_norms(d: int, size: int) -> float:
    """Return how wrong norms may be, relative to |top| and all squares.

    A norm is computed in double precision, as a sum of d squares. What rounding takes from the first one is part of the
    second, which is rounded, too. It is subtracted from another one, added to the products, and with these to the
    others.
    """
    return (2 * _unit(size) + (d + 10) * _UNIT) * _SECOND_ORDER


def _unit(size: int) -> float:
    """Return how wrong a rounded number is at most, relative to it."""
    return 2.0**-24 if size == 4 else _UNIT


def _pad(turn: Array) -> Array:
    """Return it with zeros after its rows and columns, so that both are whole vectors."""
    d, width = len(turn), padded_width(len(turn))
    out = np.zeros((width, width))
    if d:
        out[:d, :d] = turn
    return out


def padded_width(d: int) -> int:
    """Return the width at which rows are whole vectors of double precision."""
    return (d + 15) // 16 * 16


padded = inlined(padded_width)


@ordered
def find_coordinates(row: Array, turn: Array, columns: Array, out: Array) -> None:
    """Write the coordinates of a row less `middle` (d and zeros,) into `out`, as long. `_moves` bounds the rounding."""
    if len(turn) == 0:
        for k in range(len(columns)):
            out[k] = row[columns[k]]
        return
    out[:] = 0.0
    for c in range(0, len(row), 8):
        x0, x1, x2, x3 = row[c], row[c + 1], row[c + 2], row[c + 3]
        x4, x5, x6, x7 = row[c + 4], row[c + 5], row[c + 6], row[c + 7]
        for k in range(len(out)):
            low = (x0 * turn[c, k] + x1 * turn[c + 1, k]) + (x2 * turn[c + 2, k] + x3 * turn[c + 3, k])
            high = (x4 * turn[c + 4, k] + x5 * turn[c + 5, k]) + (x6 * turn[c + 6, k] + x7 * turn[c + 7, k])
            out[k] += low + high


@kernel
def pack(blocks: Blocks, first: int, last: int) -> None:
    """Fill the blocks first..last."""
    n, d = blocks.rows.shape
    row, coordinates, centre = np.zeros(padded(d)), np.empty((TILE, padded(d))), np.empty(d)
    for b in range(first, last):
        begin, end = b * TILE, min(n, (b + 1) * TILE)
        centre[:] = 0.0
        for j in range(end - begin):
            source = blocks.rows[blocks.order[begin + j]]
            for c in range(d):
                row[c] = source[c] - blocks.middle[c]
            find_coordinates(row, blocks.turn, blocks.columns, coordinates[j])
            for k in range(d):
                centre[k] += coordinates[j, k] / (end - begin)
        for k in range(d):
            blocks.repeated[b, ROWS * k : ROWS * (k + 1)] = centre[k]
            blocks.centres[k, b] = centre[k]
        for j in range(end - begin):
            for k in range(d):
                coordinates[j, k] -= centre[k]
        _lay_out(blocks, b, coordinates, end - begin)
        _enclose(blocks, b, coordinates, end - begin)


@kernel
def _lay_out(blocks: Blocks, b: int, coordinates: Array, count: int) -> None:
    """Write the references of block b, less their centre, into its panels."""
    tiles, d, scale, first = blocks.tiles[b], len(blocks.columns), blocks.scale, blocks.first
    width = tiles.shape[2]
    tiles[:], worst = 0.0, 0.0
    for j in range(TILE):
        panel, lane = j // width, j % width
        if j >= count:
            tiles[panel, 0, lane] = _PADDING
            continue
        near, far, wrong, moved = 0.0, 0.0, 0.0, 0.0
        for k in range(d):
            x = coordinates[j, k]
            tiles[panel, NORMS + k, lane] = x * scale
            if k < first:
                near += x * x
            else:
                far += x * x
            wrong += (x * blocks.weights[k]) ** 2
            moved += (x - tiles[panel, NORMS + k, lane] / scale) ** 2
        tiles[panel, 0, lane] = -0.5 * scale * near
        # What rounding takes from the first is part of the second, which is smaller.
        tiles[panel, 1, lane] = -0.5 * scale * far + (-0.5 * scale * near - tiles[panel, 0, lane])
        worst = max(worst, math.sqrt(wrong) + math.sqrt(moved))
        if len(blocks.residuals):
            residual = blocks.residuals[blocks.order[b * TILE + j]]
            if not math.isnan(residual):
                tiles[panel, NORMS + d, lane], tiles[panel, NORMS + d + 1, lane] = 1.0, residual
    blocks.weighted[b] = worst


@kernel
def _enclose(blocks: Blocks, b: int, coordinates: Array, count: int) -> None:
    """Find the radius of block b, and the box along the first axes around its references."""
    low, high, d = blocks.low, blocks.high, len(blocks.columns)
    low[:, b], high[:, b] = np.inf, -np.inf
    largest, total, across = 0.0, 0.0, 0.0
    for j in range(count):
        inside, outside = 0.0, 0.0
        for k in range(len(low)):
            x = coordinates[j, k]
            low[k, b], high[k, b] = min(low[k, b], x), max(high[k, b], x)
            inside += x * x
        for k in range(len(low), d):
            outside += coordinates[j, k] ** 2
        total += inside + outside
        largest, across = max(largest, inside + outside), max(across, outside)
    blocks.radius[b], blocks.spread[b] = math.sqrt(largest) * (1.0 + SAFE), total / count
    blocks.across[b] = math.sqrt(across) * (1.0 + SAFE)


# -- what rounding may do to an exponent -------------------------------------------------------------------------------


@inlined
def error_of_panels(squared: float, radius: float, weighted: float, top: float, blocks: Blocks) -> float:
    """Return the largest error of the exponents of a block of this `radius` and `weighted`, relative to 2^`top`.

    The squared distance of the query from the centre is `squared`. A product a_c·b_c is wrong by at most w_c of itself,
    and Σ_c w_c·|a_c|·|b_c| ≤ |a|·|w∘b| (Cauchy). The norms are no larger than what all squares and |top| add up to.
    """
    away = math.sqrt(squared)
    far = away + radius
    added = 0.5 * blocks.scale * far * far + abs(top)
    return float(blocks.scale * weighted * away + blocks.of_norms * added)


@inlined
def error_of_turn(length: float, reach: float, blocks: Blocks) -> float:
    """Return the largest error of exponents by turning a query of this length, and references, within its `reach`."""
    moved = blocks.of_turn * (length + blocks.longest)
    return float(blocks.scale * moved * (reach + moved))


@inlined
def is_allowed(error: float, exponent: float, log_rows: float, total: float, blocks: Blocks) -> bool:
    """Return whether the exponents of a block may be so wrong, if none is larger than this. `log_rows` is log₂ n.

    The sum is at least 2^`total`. So the share of this block in it is at most `TILE`·2^(exponent − total), and a block
    that adds little may be wrong by more: all that is allowed on top, each times its share, adds up to `_REST` of the
    tolerance.
    """
    allowed = (1.0 - _REST) * max(blocks.tolerance[0], blocks.tolerance[1] * (-exponent - log_rows))
    if error <= allowed:  # a power takes longer than all of this
        return True
    places = float(TILE * len(blocks.tiles))
    return bool(error <= allowed + _REST * blocks.tolerance[0] * 2.0 ** min(total - exponent, 50.0) / places)
