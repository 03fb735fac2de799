"""The inner loop of kernel sums, as vector code: six queries and one panel of references at a time.

The squared distance of a query at a and a reference at b from the centre of a block is |a|² − 2a·b + |b|². The
coordinates are those along the principal axes of the references, and the first few are the longest: they hold most of a
distance. Their products are added up first. If they alone put every pair of the panel so far apart that its term is
nothing, the rest is left out. The rest has sums of its own, because small numbers are rounded less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ._simd_sum import (
    ROWS,
    VECTOR_BYTES,
    _constant,
    _load,
    _multiply_add,
    _splat,
    _store,
    exp2_inside,
)
from .jit import ordered

Array = NDArray[Any]
Value = Any

_INT64 = ir.IntType(64)
_F32, _F64 = ir.FloatType(), ir.DoubleType()
NORMS = 2  # rows of a tile before its coordinates: −s/2·|b|² of the first coordinates, and of all others
RESIDUALS = (
    2  # rows of a tile after its coordinates, if it has residuals: 1 where there is one, else 0; and the residual
)
# The weight of a residual, of y = K^(2^-shift): y^16 + 2^-18·y. See `kernel_sum.log_kernel_sum`.
SQUARINGS, WIDE = 4, 2.0**-18


def panel_width(itemsize: int) -> int:
    """Return the references of a panel of numbers of this size: two vectors."""
    return 2 * lanes_of(itemsize)


def lanes_of(itemsize: int) -> int:
    """Return how many numbers of this size a vector holds: a sum is in so many parts."""
    return VECTOR_BYTES // itemsize


@ordered
def exponents_plain(queries: Array, r: int, numbers: Array, tile: Array, d: int, first: int, out: Array) -> bool:
    """Write the exponents of query r of a group into `out`, which is as wide as the panel.

    The arrays are those of one group and one panel in `add_panels`. It returns False if the first coordinates tell that
    all terms are nothing.
    """
    width = tile.shape[1]
    part = np.zeros(width, tile.dtype)
    _add_products(queries, tile, r, 0, first, part)
    largest = -np.inf
    for j in range(width):
        out[j] = part[j] + (tile[0, j] - tile.dtype.type(numbers[0, r]))
        largest = max(largest, out[j])
    if not largest > numbers[2, r]:
        return False
    part[:] = 0.0
    _add_products(queries, tile, r, first, d, part)
    for j in range(width):
        out[j] += min(0.0, part[j] + (tile[1, j] - tile.dtype.type(numbers[1, r])))
    return True


@ordered
def _add_products(queries: Array, tile: Array, r: int, first: int, last: int, out: Array) -> None:
    for c in range(first, last):
        x = queries[ROWS * c + r]
        for j in range(len(out)):
            out[j] += x * tile[NORMS + c, j]


@intrinsic
def add_panels(
    typing_context: Any,
    queries: Any,
    active: Any,
    numbers: Any,
    tile: Any,
    first: Any,
    sums: Any,
    columns: Any,
    local: Any,
    squarings: Any,
) -> Any:
    """Add the terms of groups of six queries with the references of a block to the sums of the queries.

    All arrays are C-contiguous. `queries` (groups, 6·d) hold the coordinates of the queries less the centre of the
    block, six queries side by side. Groups whose `active` (groups,), int8, is 0 are left out. `tile` (panels, 2 + d,
    width) holds the references. `numbers` (groups, 3, 6), float64, holds for every query what is subtracted from its
    exponents: s/2·|a|² of the `first` coordinates, with the exponent that the sum is relative to; s/2·|a|² of all
    others; and the exponent that a term must exceed. After the first coordinates it looks whether the panel is needed.
    The sums of a query are in parts, (groups, 6·lanes_of). `queries`, `tile` and `sums` are of one type. The sums of
    the references are added to `columns` (panels·width,), float64, unless it is None.

    With `local` (groups, 6), float64, the tile has two more rows, for residuals, and there are three sums of each
    query, (groups, 3·6·lanes_of): of terms, of weights, and of weights times residuals. A term is squared so many
    times to be y: its square root is with 0 `squarings`. `local` holds what y is multiplied by before y¹⁶.
    """
    arrays = (queries, active, numbers, tile, sums)
    if not all(array.layout == "C" for array in arrays) or not queries.dtype == tile.dtype == sums.dtype:
        return None
    signature = types.void(queries, active, numbers, tile, types.int64, sums, columns, local, types.int64)

    def generate(context: Any, builder: Value, signature: Any, arguments: Any) -> Value:
        made: list[Any] = [
            context.make_array(kind)(context, builder, a) if isinstance(kind, types.Array) else None
            for kind, a in zip(signature.args, arguments, strict=True)
        ]
        queries, active, _, tile, *_ = made
        groups = cgutils.unpack_tuple(builder, active.shape)[0]
        panels, height, _ = cgutils.unpack_tuple(builder, tile.shape)
        d = builder.sdiv(cgutils.unpack_tuple(builder, queries.shape)[1], _INT64(ROWS))
        counts = groups, panels, arguments[4], d, height, arguments[8]
        pointers = [None if array is None else array.data for array in (*made[:4], *made[5:8])]
        element = tile.data.type.pointee
        emit_panels(builder, lanes_of(4 if element == _F32 else 8), element, counts, pointers)
        return context.get_dummy_value()

    return signature, generate


def emit_panels(builder: Value, lanes: int, element: Value, counts: Sequence[Value], pointers: Sequence[Value]) -> None:
    """Emit what `add_panels` does, for vectors of so many `lanes`.

    `element` is the type of the queries and references, `counts` are groups, panels, first, d, the rows of a tile and
    squarings, and `pointers` those of the arrays in the order of `add_panels`.
    """
    b, (groups, panels, first, d, height, squarings) = builder, counts
    queries, active, numbers, tile, sums, columns, local = pointers
    emit = _Emitter(builder, ir.VectorType(element, lanes), first, d, squarings)
    width, kinds = _INT64(2 * lanes), 1 if local is None else 3
    with cgutils.for_range(builder, panels, intp=_INT64) as panel:
        emit.tile = _row(b, tile, panel.index, b.mul(height, width))
        emit.columns = None if columns is None else _row(b, columns, panel.index, width)
        with cgutils.for_range(builder, groups, intp=_INT64) as group:
            g = group.index
            with b.if_then(b.icmp_signed("!=", b.load(b.gep(active, [g])), ir.IntType(8)(0))):
                emit.local = None if local is None else _row(b, local, g, _INT64(ROWS))
                emit.group(
                    _row(b, queries, g, b.mul(d, _INT64(ROWS))),
                    _row(b, numbers, g, _INT64(3 * ROWS)),
                    _row(b, sums, g, _INT64(kinds * ROWS * lanes)),
                )


def _row(builder: Value, data: Value, index: Value, length: Value) -> Value:
    return builder.gep(data, [builder.mul(index, length)])


class _Emitter:
    """Emits the code of one group and one panel: twelve vectors of sums, none of which waits for the others."""

    def __init__(self, builder: Value, vector: Value, first: Value, d: Value, squarings: Value) -> None:
        self.b, self.vector, self.first, self.d, self.squarings = builder, vector, first, d, squarings
        self.near = [[cgutils.alloca_once(builder, vector) for _ in range(2)] for _ in range(ROWS)]
        self.far = [[cgutils.alloca_once(builder, vector) for _ in range(2)] for _ in range(ROWS)]
        self.powers = [cgutils.alloca_once(builder, vector) for _ in range(2)]
        self.tile: Value = None
        self.columns: Value = None
        self.local: Value = None

    def group(self, queries: Value, numbers: Value, sums: Value) -> None:
        """Emit the sums of a group."""
        b = self.b
        self._multiply(queries, _INT64(0), self.first, self.near)
        self._add_norms(numbers, 0, self.near)
        with b.if_then(self._is_needed(numbers)):
            self._multiply(queries, self.first, self.d, self.far)
            self._add_norms(numbers, 1, self.far)
            self._add_terms(numbers, sums)

    def _multiply(self, rows: Value, begin: Value, end: Value, totals: list[list[Value]]) -> None:
        """Set sums to the products of six queries with two vectors of references, in the coordinates begin..end."""
        b = self.b
        for pair in totals:
            for total in pair:
                b.store(_constant(self.vector, 0.0), total)
        with cgutils.for_range_slice(b, begin, end, _INT64(1), intp=_INT64) as (c, _):
            column = b.gep(self.tile, [b.mul(b.add(c, _INT64(NORMS)), _INT64(2 * self.vector.count))])
            columns = [_load(b, column, i, self.vector) for i in range(2)]
            row = b.gep(rows, [b.mul(c, _INT64(ROWS))])
            for r, pair in enumerate(totals):
                x = _splat(b, b.load(b.gep(row, [_INT64(r)])), self.vector)
                for column, total in zip(columns, pair, strict=True):
                    b.store(_multiply_add(b, x, column, b.load(total)), total)

    def _number(self, numbers: Value, i: int) -> Value:
        number = self.b.load(self.b.gep(numbers, [_INT64(i)]))
        if self.vector.element == _F32:
            number = self.b.fptrunc(number, _F32)
        return _splat(self.b, number, self.vector)

    def _add_norms(self, numbers: Value, which: int, totals: list[list[Value]]) -> None:
        """Make products exponents: add what the squares of the query and of the references are."""
        b = self.b
        norms = [_load(b, self.tile, 2 * which + i, self.vector) for i in range(2)]
        for r, pair in enumerate(totals):
            own = self._number(numbers, ROWS * which + r)
            for norm, total in zip(norms, pair, strict=True):
                b.store(b.fadd(b.load(total), b.fsub(norm, own)), total)

    def _is_needed(self, numbers: Value) -> Value:
        """Emit whether any exponent may be above that which a term must exceed."""
        b, bits = self.b, ir.IntType(self.vector.count)
        needed = bits(0)
        for r, (one, other) in enumerate(self.near):
            one, other = b.load(one), b.load(other)
            largest = b.select(b.fcmp_ordered(">", one, other), one, other)
            above = b.fcmp_ordered(">", largest, self._number(numbers, 2 * ROWS + r))
            needed = b.or_(needed, b.bitcast(above, bits))
        return b.icmp_signed("!=", needed, bits(0))

    def _add_terms(self, numbers: Value, sums: Value) -> None:
        b, zero = self.b, _constant(self.vector, 0.0)
        name = "short" if self.vector.element == _F32 else "double"
        own: list[Value] = []
        for r, (near, far) in enumerate(zip(self.near, self.far, strict=True)):
            limit = self._number(numbers, 2 * ROWS + r)
            exponents = [self._add_far(b.load(x), b.load(y)) for x, y in zip(near, far, strict=True)]
            inside = [b.fcmp_ordered(">", exponent, limit) for exponent in exponents]
            if self.local is not None:  # square roots of the terms
                exponents = [b.fmul(exponent, _constant(self.vector, 0.5)) for exponent in exponents]
            powers = [exp2_inside(b, exponent, name) for exponent in exponents]
            powers = [b.select(keep, power, zero) for keep, power in zip(inside, powers, strict=True)]
            if self.local is not None:
                self._add_residuals(powers, r, sums)
                powers = [b.fmul(power, power) for power in powers]
            _store(b, b.fadd(_load(b, sums, r, self.vector), b.fadd(*powers)), sums, r)
            own = [b.fadd(a, c) for a, c in zip(own, powers, strict=True)] if own else powers
        if self.columns is not None:
            self._add_columns(own)

    def _add_residuals(self, roots: list[Value], r: int, sums: Value) -> None:
        """Add the weights of query r, and these times residuals, of two vectors of square roots of terms."""
        b, narrow, wide = self.b, self._number(self.local, r), _constant(self.vector, WIDE)
        for root, power in zip(roots, self.powers, strict=True):
            b.store(root, power)
        with cgutils.for_range(b, self.squarings, intp=_INT64):
            for power in self.powers:
                value = b.load(power)
                b.store(b.fmul(value, value), power)
        rows = b.gep(self.tile, [b.mul(b.add(self.d, _INT64(NORMS)), _INT64(2 * self.vector.count))])
        weights, products = (_load(b, sums, kind * ROWS + r, self.vector) for kind in (1, 2))
        for i, power in enumerate(self.powers):
            value = b.load(power)
            peak = b.fmul(value, narrow)
            for _ in range(SQUARINGS):
                peak = b.fmul(peak, peak)
            weight = _multiply_add(b, value, wide, peak)
            weights = _multiply_add(b, weight, _load(b, rows, i, self.vector), weights)
            products = _multiply_add(b, weight, _load(b, rows, 2 + i, self.vector), products)
        _store(b, weights, sums, ROWS + r)
        _store(b, products, sums, 2 * ROWS + r)

    def _add_far(self, near: Value, far: Value) -> Value:
        """Emit the exponent of all coordinates, which is no larger than that of the first ones.

        Rounding may make it larger. Then a term that its first coordinates leave out would count if its panel is needed
        for another query, and not else.
        """
        b = self.b
        both = b.fadd(near, far)
        return b.select(b.fcmp_ordered("<", both, near), both, near)

    def _add_columns(self, totals: list[Value]) -> None:
        """Add what the six queries add to each reference, in double precision."""
        b, place = self.b, 0
        for total in totals:
            for part in _as_doubles(b, total):
                _store(b, b.fadd(_load(b, self.columns, place, part.type), part), self.columns, place)
                place += 1


def _as_doubles(builder: Value, vector: Value) -> list[Value]:
    """Return a vector as one or two of double precision."""
    if vector.type.element == _F64:
        return [vector]
    count = vector.type.count // 2
    places = [[ir.IntType(32)(i) for i in range(first, first + count)] for first in (0, count)]
    wide = ir.VectorType(_F64, count)
    return [
        builder.fpext(
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), count), place)), wide
        )
        for place in places
    ]
