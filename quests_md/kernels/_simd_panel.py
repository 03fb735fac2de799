"""The inner loop of kernel sums, as vector code: six queries and one panel of references at a time.

The squared distance of a query at a and a reference at b from the centre of a block is |a|² − 2a·b + |b|². The
coordinates are those along the principal axes of the references, so the first few hold most of a distance. These are
added up first, in double precision. If they alone put every pair of the panel so far apart that its term is nothing,
the rest is left out. The rest is added up in the precision of its array.
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
    _call,
    _constant,
    _load,
    _multiply_add,
    _polynomial,
    _splat,
    _store,
)
from .jit import ordered

Array = NDArray[Any]
Value = Any

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_F32, _F64 = ir.FloatType(), ir.DoubleType()
DOUBLES = VECTOR_BYTES // 8  # of a vector
NORMS = 2  # rows of a tile before its coordinates: −s/2·|b|² of the first coordinates, and of all others
# Adding this to an integer below 2⁵¹ leaves that in the lowest bits. AVX2 has no conversion for double precision.
_MAGIC = 1.5 * 2.0**52


@ordered
def exponents_plain(
    queries: Array, rest: Array, r: int, numbers: Array, tile: Array, rest_tile: Array, first: int, out: Array
) -> bool:
    """Write the exponents of query r of a group, relative to the one below which a term is nothing, into `out`.

    The arrays are those of one group and one panel in `add_panels`, and `out` is as wide as the panel. It returns False
    if the first coordinates tell that all terms are nothing.
    """
    p, width = tile.shape[0] - NORMS, tile.shape[1]
    for j in range(width):
        out[j] = tile[0, j] - numbers[0, r]
    _add_products(queries, tile[NORMS:], r, 0, first, out)
    largest = out[0]
    for j in range(width):
        largest = max(largest, out[j])
    if not largest > 0.0:
        return False
    _add_products(queries, tile[NORMS:], r, first, p, out)
    part = np.zeros(width, rest.dtype)
    _add_products(rest, rest_tile, r, 0, len(rest_tile), part)
    for j in range(width):
        out[j] = ((out[j] + tile[1, j]) + part[j]) - numbers[1, r]
    return True


@ordered
def _add_products(queries: Array, tile: Array, r: int, first: int, last: int, out: Array) -> None:
    for c in range(first, last):
        x = queries[ROWS * c + r]
        for j in range(len(out)):
            out[j] += x * tile[c, j]


@intrinsic
def add_panels(
    typing_context: Any,
    queries: Any,
    rest: Any,
    active: Any,
    numbers: Any,
    tile: Any,
    rest_tile: Any,
    first: Any,
    sums: Any,
    columns: Any,
) -> Any:
    """Add the terms of groups of six queries with the references of a block to the sums of the queries.

    All arrays are C-contiguous. `queries` (groups, 6·p), float64, and `rest` (groups, 6·t) hold the coordinates of
    the queries less the centre of the block, six queries side by side. Groups whose `active` (groups,), int8, is 0 are
    left out. `numbers` (groups, 3, 6) holds for every query: the exponent below which a term is nothing, plus s/2·|a|²
    of the `first` coordinates; s/2·|a|² of all others; and what is added to an exponent that is relative to the first
    number. `tile` (panels, 2 + p, width), float64, and `rest_tile` (panels, t, width), of the type of `rest`, hold the
    references. After `first` of the p coordinates it looks whether the panel is needed. The sums of a query are in
    lanes, (groups, 6·DOUBLES). The sums of the references are added to `columns` (panels·width,), unless it is None.
    """
    arrays = (queries, rest, active, numbers, tile, rest_tile, sums)
    if not all(array.layout == "C" for array in arrays) or rest.dtype != rest_tile.dtype:
        return None
    signature = types.void(queries, rest, active, numbers, tile, rest_tile, types.int64, sums, columns)

    def generate(context: Any, builder: Value, signature: Any, arguments: Any) -> Value:
        made: list[Any] = [
            context.make_array(kind)(context, builder, a) if isinstance(kind, types.Array) else None
            for kind, a in zip(signature.args, arguments, strict=True)
        ]
        _, rest, active, _, tile, rest_tile, _, _, _ = made
        groups = cgutils.unpack_tuple(builder, active.shape)[0]
        panels, height, _ = cgutils.unpack_tuple(builder, tile.shape)
        t = cgutils.unpack_tuple(builder, rest_tile.shape)[1]
        counts = groups, panels, arguments[6], builder.sub(height, _INT64(NORMS)), t
        pointers = [None if array is None else array.data for array in (*made[:6], *made[7:])]
        emit_panels(builder, DOUBLES, rest.data.type.pointee, counts, pointers)
        return context.get_dummy_value()

    return signature, generate


def emit_panels(
    builder: Value, doubles: int, element: Value, counts: Sequence[Value], pointers: Sequence[Value]
) -> None:
    """Emit what `add_panels` does, for vectors of so many `doubles`.

    `element` is the type of the rest, `counts` are groups, panels, first, p and t, and `pointers` those of the arrays
    in the order of `add_panels`.
    """
    b, (groups, panels, first, p, t) = builder, counts
    queries, rest, active, numbers, tile, rest_tile, sums, columns = pointers
    emit = _Emitter(builder, element, doubles, (first, p, t))
    width = _INT64(emit.panel)
    with cgutils.for_range(builder, panels, intp=_INT64) as panel:
        emit.tile = _row(b, tile, panel.index, b.mul(b.add(p, _INT64(NORMS)), width))
        emit.rest_tile = _row(b, rest_tile, panel.index, b.mul(t, width))
        emit.columns = None if columns is None else _row(b, columns, panel.index, width)
        with cgutils.for_range(builder, groups, intp=_INT64) as group:
            g = group.index
            with b.if_then(b.icmp_signed("!=", b.load(b.gep(active, [g])), ir.IntType(8)(0))):
                emit.group(
                    _row(b, queries, g, b.mul(p, _INT64(ROWS))),
                    _row(b, rest, g, b.mul(t, _INT64(ROWS))),
                    _row(b, numbers, g, _INT64(3 * ROWS)),
                    _row(b, sums, g, _INT64(ROWS * doubles)),
                )


def _row(builder: Value, data: Value, index: Value, length: Value) -> Value:
    return builder.gep(data, [builder.mul(index, length)])


class _Emitter:
    """Emits the code of one group and one panel: one part of two vectors, or two of them in single precision.

    So six queries and a panel are always twelve vectors of sums, each added to without waiting for the others.
    """

    def __init__(self, builder: Value, element: Value, doubles: int, counts: tuple[Value, Value, Value]) -> None:
        self.b, self.is_single = builder, element == _F32
        self.first, self.p, self.t = counts
        self.parts = range(2 if self.is_single else 1)
        self.panel = len(self.parts) * 2 * doubles
        self.vector = ir.VectorType(_F64, doubles)
        self.rest_vector = ir.VectorType(_F32, 2 * doubles) if self.is_single else self.vector
        self.near = [self._make_sums(self.vector) for _ in self.parts]
        self.far = self._make_sums(self.rest_vector)
        self.tile: Value = None
        self.rest_tile: Value = None
        self.columns: Value = None

    def _make_sums(self, vector: Value) -> list[list[Value]]:
        return [[cgutils.alloca_once(self.b, vector) for _ in range(2)] for _ in range(ROWS)]

    def group(self, queries: Value, rest: Value, numbers: Value, sums: Value) -> None:
        """Emit the sums of a group."""
        b = self.b
        for part, totals in enumerate(self.near):
            norms = [_load(b, self.tile, 2 * part + i, self.vector) for i in range(2)]
            for r, pair in enumerate(totals):
                limit = self._number(numbers, r)
                for norm, total in zip(norms, pair, strict=True):
                    b.store(b.fsub(norm, limit), total)
            self._add_near(part, queries, _INT64(0), self.first)
        with b.if_then(self._is_needed()):
            for part in self.parts:
                self._add_near(part, queries, self.first, self.p)
            self._add_rest(rest)
            self._add_terms(numbers, sums)

    def _number(self, numbers: Value, i: int) -> Value:
        return _splat(self.b, self.b.load(self.b.gep(numbers, [_INT64(i)])), self.vector)

    def _add_near(self, part: int, queries: Value, begin: Value, end: Value) -> None:
        """Add the products of the coordinates begin..end to the sums of a part of the panel."""
        b = self.b
        with cgutils.for_range_slice(b, begin, end, _INT64(1), intp=_INT64) as (c, _):
            column = b.gep(self.tile, [b.mul(b.add(c, _INT64(NORMS)), _INT64(self.panel))])
            self._multiply(queries, c, [_load(b, column, 2 * part + i, self.vector) for i in range(2)], self.near[part])

    def _multiply(self, rows: Value, c: Value, columns: list[Value], totals: list[list[Value]]) -> None:
        """Add the products of coordinate c of six queries with two vectors of references to sums."""
        b = self.b
        row = b.gep(rows, [b.mul(c, _INT64(ROWS))])
        for r, pair in enumerate(totals):
            x = _splat(b, b.load(b.gep(row, [_INT64(r)])), columns[0].type)
            for column, total in zip(columns, pair, strict=True):
                b.store(_multiply_add(b, x, column, b.load(total)), total)

    def _is_needed(self) -> Value:
        """Emit whether any exponent may be above that below which a term is nothing."""
        b = self.b
        largest, *others = (b.load(total) for totals in self.near for pair in totals for total in pair)
        for value in others:
            largest = b.select(b.fcmp_ordered(">", largest, value), largest, value)
        bits = ir.IntType(self.vector.count)
        above = b.fcmp_ordered(">", largest, _constant(self.vector, 0.0))
        return b.icmp_signed("!=", b.bitcast(above, bits), bits(0))

    def _add_rest(self, rest: Value) -> None:
        b = self.b
        for pair in self.far:
            for total in pair:
                b.store(_constant(self.rest_vector, 0.0), total)
        with cgutils.for_range(b, self.t, intp=_INT64) as loop:
            column = b.gep(self.rest_tile, [b.mul(loop.index, _INT64(self.panel))])
            self._multiply(rest, loop.index, [_load(b, column, i, self.rest_vector) for i in range(2)], self.far)

    def _rest_of(self, part: int, r: int) -> list[Value]:
        """Return the sums of a row over the rest of the coordinates, as two vectors of double precision."""
        b = self.b
        if not self.is_single:
            return [b.load(total) for total in self.far[r]]
        return [b.fpext(half, self.vector) for half in _halves(b, b.load(self.far[r][part]))]

    def _add_terms(self, numbers: Value, sums: Value) -> None:
        b, zero = self.b, _constant(self.vector, 0.0)
        for part, totals in enumerate(self.near):
            norms = [_load(b, self.tile, 2 * (len(self.parts) + part) + i, self.vector) for i in range(2)]
            own: list[Value] = []
            for r, pair in enumerate(totals):
                rest, lift = self._number(numbers, ROWS + r), self._number(numbers, 2 * ROWS + r)
                near = [b.fadd(b.load(total), norm) for total, norm in zip(pair, norms, strict=True)]
                exponents = [b.fadd(x, y) for x, y in zip(near, self._rest_of(part, r), strict=True)]
                inside = [b.fcmp_ordered(">", exponent, rest) for exponent in exponents]
                powers = self._exp2([b.fadd(exponent, lift) for exponent in exponents])
                powers = [b.select(keep, power, zero) for keep, power in zip(inside, powers, strict=True)]
                _store(b, b.fadd(_load(b, sums, r, self.vector), b.fadd(*powers)), sums, r)
                own = [b.fadd(a, c) for a, c in zip(own, powers, strict=True)] if own else powers
            if self.columns is not None:
                for i, total in enumerate(own):
                    place = 2 * part + i
                    _store(b, b.fadd(_load(b, self.columns, place, self.vector), total), self.columns, place)

    def _exp2(self, exponents: list[Value]) -> list[Value]:
        """Emit 2^x of two vectors, for |x| < 1022; else it is any number."""
        b, magic = self.b, _constant(self.vector, _MAGIC)
        whole = [_call(b, "rint", self.vector, x) for x in exponents]
        fractions = [b.fsub(x, k) for x, k in zip(exponents, whole, strict=True)]
        moved = [b.fadd(k, magic) for k in whole]
        # Single precision needs a shorter polynomial. In vectors of single precision it would not take less time: there
        # and back is four conversions.
        name = "short" if self.is_single else "double"
        powers = [_polynomial(b, f, name) for f in fractions]
        integers = ir.VectorType(_INT64, self.vector.count)
        shift = ir.Constant(integers, [52] * self.vector.count)
        return [
            b.bitcast(b.add(b.bitcast(p, integers), b.shl(b.bitcast(m, integers), shift)), self.vector)
            for p, m in zip(powers, moved, strict=True)
        ]


def _halves(builder: Value, vector: Value) -> list[Value]:
    count = vector.type.count // 2
    places = [[_INT32(i) for i in range(first, first + count)] for first in (0, count)]
    return [
        builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INT32, count), place)) for place in places
    ]


def panel_width(itemsize: int) -> int:
    """Return the references of a panel whose rest has numbers of this size."""
    return (2 if itemsize == 8 else 4) * DOUBLES
