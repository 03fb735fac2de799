"""References in blocks, laid out for exact sums of Gaussian kernels: see `kernel_sum`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel
from ._simd_sum import ROWS, lanes

Array = NDArray[Any]

TILE = 256  # references of a block: a multiple of every `lanes`
AXES = 4  # of the references, along which a block is enclosed in a box: more of them leave out no more blocks
LOG2E = math.log2(math.e)
SAFE = 1e-12  # by which bounds of distances are widened, as they are rounded themselves
_PADDING = -1e30  # the exponent where a block has no reference: 2^x is clamped to nothing
_AWAY = 1e13  # and its first coordinate: its square is that large, too
# What may be left out of a sum, as a part of it. Single precision promises 1e-4 nats: 8.3e-5 of them are for products
# (`_TOLERANCE`, which is in powers of two), 1e-5 for this, 3e-6 for `EXP2_ERROR`, the rest for sums and shifts.
_NEGLIGIBLE = {4: 1e-5, 8: 1e-12}
# Largest error of an exponent that a product may have: absolute, and relative to the smallest exponent of the block.
_TOLERANCE = {4: (1.2e-4, 1e-6), 8: (1e-11, 1e-11)}
# The factor c of that rounding. An exponent is a sum of d + 1 products of rounded numbers, in chunks of 16 which are
# added up then. So each product carries 3 roundings of its own and takes part in at most 16 + d/16 sums: by the
# standard analysis (Higham, Accuracy and Stability of Numerical Algorithms, 3.1) c = 20 + d/16, whatever the signs.
# Double precision asks for that. In single it would send most blocks of a melt to differences, ten times slower, for
# what does not occur: that all roundings of all terms that matter go the same way. There c is 5.2: the sampled systems
# reach 3.4, mostly 0.4, and rows made for it 5.1 (tests/test_kernel_sum.py makes such). Of wide rows, such as own
# descriptors can be, rows made for it reach 17 at 1000 columns and 48 at 3000: there c = 4.5 + d/60.
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
    axes: Array  # (AXES, d) orthonormal, or zeros: the longest ones of all references
    along: Array  # (AXES, n_blocks) the centres along these
    low: Array  # (AXES, n_blocks) the smallest and the largest of the references along these, less the centre
    high: Array
    across: Array  # (n_blocks,) largest distance from the centre across all of these
    spread: Array  # (n_blocks,) mean squared distance from the centre
    counts: Array  # (n_blocks,) references
    scale: float  # s
    unit: float  # u
    rounding: float  # c·u
    tolerance: tuple[float, float]
    negligible: float
    vector: bool  # laid out for vector code: panels of `lanes`; else one panel, so that plain loops are long


def empty_blocks(rows: Array, order: Array, axes: Array, bandwidth: float, dtype: Any, vector: bool) -> Blocks:
    """Make room for the blocks of the references `rows` (n, d), taken in `order`; `pack` fills it."""
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
    """Return the factor c of rows of `d` columns, in numbers of `size` bytes."""
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
    """Find the box around the references `order` of block b along the axes, and their distance across these."""
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
