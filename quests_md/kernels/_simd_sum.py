"""The inner loops of the choice of frames and of the search, as vector code; and powers of two for all sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ._simd import BYTES, Vectors, pointer
from .jit import kernel, ordered

Array = NDArray[Any]
Value = Any  # of llvmlite, which has no types

ROWS = 6  # rows of a product: 6 × 2 vectors of sums, 2 of the tile and a broadcast fit into 16 registers

# Sums of squares are made in chunks: so many coordinates one after the other, so many chunks one after the other, and
# then what is left. So each number is rounded a few times only.
_OF_SQUARES = (4, 8)
_SPAN_OF_PLAIN = 4 * 16
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)

# exp2 of the fraction, |f| ≤ ½, as the polynomial with 2⁰ = 1 that has the smallest relative error. `EXP2_ERROR` is
# that error. It is small beside the promised 1e-10 and 1e-6, and every degree costs 1 % of a sum.
_COEFFICIENTS = {
    "float": [1.0, 0.69312423, 0.24024099, 0.055906430, 0.0095828551],
    "short": [
        1.0, 0.6931469775984707, 0.24022242084919057, 0.0555073374424643, 0.009671512660573815,
        0.0013264726898403905,
    ],
    "double": [
        1.0, 0.6931471805482129, 0.24022650698110556, 0.05550410935265717, 0.009618128616150915,
        0.0013333454860632995, 0.00015403825442480767, 1.530915620821591e-05, 1.3178937761526264e-06,
    ],
}  # fmt: skip
EXP2_ERROR = {"float": 3e-6, "short": 9.2e-8, "double": 1e-12}
# x is clamped to this, because below it 2^x is not a normal number.
_SMALLEST = {"float": -126.0, "double": -1022.0}


VECTOR = BYTES > 0
VECTOR_BYTES = max(32, BYTES)  # two registers if they have only 16 bytes


def lanes(itemsize: int) -> int:
    """Return the columns of one panel of a tile: two vectors."""
    return 2 * VECTOR_BYTES // itemsize


# -- plain twins -------------------------------------------------------------------------------------------------------


@ordered
def squares_plain(rows: Array, tile: Array, out: Array) -> None:
    """Write squared distances into `out`, as `squares` does."""
    panels, d, width = tile.shape
    last = d - 1
    out[:] = 0.0
    part = np.empty(width, out.dtype)
    for p in range(panels):
        for r in range(ROWS):
            for start in range(0, last, _SPAN_OF_PLAIN):
                part[:] = 0.0
                end = min(last, start + _SPAN_OF_PLAIN)
                for c in range(start, end - 3, 4):
                    i = c * ROWS + r
                    x0, x1, x2, x3 = rows[i], rows[i + ROWS], rows[i + 2 * ROWS], rows[i + 3 * ROWS]
                    for j in range(width):
                        d0, d1 = x0 - tile[p, c, j], x1 - tile[p, c + 1, j]
                        d2, d3 = x2 - tile[p, c + 2, j], x3 - tile[p, c + 3, j]
                        part[j] += ((d0 * d0 + d1 * d1) + d2 * d2) + d3 * d3
                for c in range(end - (end - start) % 4, end):
                    for j in range(width):
                        difference = rows[c * ROWS + r] - tile[p, c, j]
                        part[j] += difference * difference
                for j in range(width):
                    out[r, p * width + j] += part[j]


@kernel
def sums_exp2_plain(x: Array, shifts: Array, out: Array) -> None:
    """Do what `sums_exp2` does, for x_j + shift ≤ 0. No term is less than e^-60."""
    for r in range(x.shape[0]):
        out[r] = 0.0
        for j in range(x.shape[1]):
            out[r] += exp_negative((x[r, j] + shifts[r]) * _LN2)


_LN2 = math.log(2.0)


@kernel
def exp_negative(x: float) -> float:
    """Return exp(x) for x ≤ 5, to 1e-13. It is never less than exp(-60), which is nothing beside a sum of 1 or more.

    exp(x) = exp(x/128)¹²⁸: a Taylor polynomial and seven squarings. A loop over it is vectorised, one over exp is not.
    """
    y = max(x, -60.0) * 0.0078125
    p = 1.0 + y * (1.0 / 13.0)
    p = 1.0 + y * (1.0 / 12.0) * p
    p = 1.0 + y * (1.0 / 11.0) * p
    p = 1.0 + y * (1.0 / 10.0) * p
    p = 1.0 + y * (1.0 / 9.0) * p
    p = 1.0 + y * (1.0 / 8.0) * p
    p = 1.0 + y * (1.0 / 7.0) * p
    p = 1.0 + y * (1.0 / 6.0) * p
    p = 1.0 + y * (1.0 / 5.0) * p
    p = 1.0 + y * (1.0 / 4.0) * p
    p = 1.0 + y * (1.0 / 3.0) * p
    p = 1.0 + y * (1.0 / 2.0) * p
    p = 1.0 + y * p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    return p * p


# -- vector code -------------------------------------------------------------------------------------------------------


@intrinsic
def squares(typing_context: Any, rows: Any, tile: Any, out: Any) -> Any:
    """Write the squared distances of six rows from the columns of a tile into `out`.

    `rows` (6·d,) holds six rows, with the six values of a coordinate side by side. `tile` (panels, d, lanes) holds the
    columns, `lanes` at a time. `out` is (6, panels·lanes). The 6 × lanes sums of a panel stay in registers until they
    are complete. The last coordinate is left out.
    """
    if not (rows.dtype == tile.dtype == out.dtype and rows.layout == tile.layout == out.layout == "C"):
        return None
    signature = types.void(rows, tile, out)

    def generate(context: Any, builder: Value, signature: Any, arguments: Any) -> Value:
        rows, tile, out = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        panels, d, width = cgutils.unpack_tuple(builder, tile.shape)
        with cgutils.for_range(builder, panels, intp=_INT64) as panel:
            start = builder.mul(panel.index, width)
            columns = builder.gep(tile.data, [builder.mul(start, d)])
            target, stride = builder.gep(out.data, [start]), builder.mul(panels, width)
            _squares_of_panel(builder, rows.data, columns, d, target, stride)
        return context.get_dummy_value()

    return signature, generate


def _squares_of_panel(builder: Value, rows: Value, columns: Value, d: Value, out: Value, stride: Value) -> None:
    """Emit the squared distances of six rows from two vectors of columns, in chunks; rows of `out` are `stride` apart.

    The last of the d coordinates is left out.
    """
    vector, d = _vector_of(rows), builder.sub(d, _INT64(1))
    zero = _constant(vector, 0.0)
    sums, totals, whole = (
        [[cgutils.alloca_once(builder, vector) for _ in range(2)] for _ in range(ROWS)] for _ in "abc"
    )
    size, many = _INT64(_OF_SQUARES[0]), _INT64(_OF_SQUARES[0] * _OF_SQUARES[1])

    def add_up(parts: list[list[Value]], into: list[list[Value]]) -> None:
        for part, total in zip(chain(*parts), chain(*into), strict=True):
            builder.store(builder.fadd(builder.load(total), builder.load(part)), total)

    _for_each(whole, lambda total: builder.store(zero, total))
    with cgutils.for_range_slice(builder, _INT64(0), d, many, intp=_INT64) as (first, _):
        _for_each(totals, lambda total: builder.store(zero, total))
        last = _lesser(builder, d, builder.add(first, many))
        with cgutils.for_range_slice(builder, first, last, size, intp=_INT64) as (start, _):
            _for_each(sums, lambda total: builder.store(zero, total))
            end = _lesser(builder, last, builder.add(start, size))
            with cgutils.for_range_slice(builder, start, end, _INT64(1), intp=_INT64) as (c, _):
                column = builder.gep(columns, [builder.mul(c, _INT64(2 * vector.count))])
                row = builder.gep(rows, [builder.mul(c, _INT64(ROWS))])
                both = [_load(builder, column, i, vector) for i in range(2)]
                for r, pair in enumerate(sums):
                    x = _splat(builder, builder.load(builder.gep(row, [_INT64(r)])), vector)
                    for total, values in zip(pair, both, strict=True):
                        builder.store(_add_square(builder, x, values, builder.load(total)), total)
            add_up(sums, totals)
        add_up(totals, whole)
    for r, pair in enumerate(whole):
        target = builder.gep(out, [builder.mul(stride, _INT64(r))])
        for i, total in enumerate(pair):
            _store(builder, builder.load(total), target, i)


def _lesser(builder: Value, a: Value, b: Value) -> Value:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _for_each(pairs: list[list[Value]], do: Callable[[Value], object]) -> None:
    for total in chain(*pairs):
        do(total)


@intrinsic
def sums_exp2(typing_context: Any, x: Any, shifts: Any, out: Any) -> Any:
    """Write Σ_j 2^(x_j + shift) of every row of `x` into `out`. The length of a row is a multiple of `lanes`.

    `shifts` and `out` are float64, one value per row. If x_j + shift is below the smallest exponent of the type, the
    term is 2 to that exponent. It must not exceed the largest exponent. Terms are added in the precision of the type.
    """
    if not x.layout == shifts.layout == out.layout == "C":
        return None
    signature = types.void(x, shifts, out)

    def generate(context: Any, builder: Value, signature: Any, arguments: Any) -> Value:
        x, shifts, out = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        rows, length = cgutils.unpack_tuple(builder, x.shape)
        with cgutils.for_range(builder, rows, intp=_INT64) as row:
            start = builder.gep(x.data, [builder.mul(row.index, length)])
            shift = builder.load(builder.gep(shifts.data, [row.index]))
            total = _sum_of_powers(builder, start, length, shift)
            builder.store(total, builder.gep(out.data, [row.index]))
        return context.get_dummy_value()

    return signature, generate


def _sum_of_powers(builder: Value, x: Value, length: Value, shift: Value) -> Value:
    """Emit the sum of 2^(x_j + shift) over `length` values, two vectors at a time."""
    vector = _vector_of(x)
    exact, rest = shift, None
    if vector.element == ir.FloatType():
        shift = builder.fptrunc(shift, vector.element)
        rest = builder.fsub(exact, builder.fpext(shift, exact.type))
    shifts = _splat(builder, shift, vector)
    sums = [cgutils.alloca_once(builder, vector) for _ in range(2)]
    for total in sums:
        builder.store(_constant(vector, 0.0), total)
    both = _INT64(2 * vector.count)
    with cgutils.for_range(builder, builder.sdiv(length, both), intp=_INT64) as pair:
        start = builder.gep(x, [builder.mul(pair.index, both)])
        for i, total in enumerate(sums):
            power = _exp2(builder, builder.fadd(_load(builder, start, i, vector), shifts))
            builder.store(builder.fadd(builder.load(total), power), total)
    total = _sum_of_elements(builder, builder.fadd(*map(builder.load, sums)))
    if rest is None:
        return total
    # What rounding took from the shift: 2^rest = e^z, and z is so small that two terms are enough.
    z = builder.fmul(rest, ir.Constant(exact.type, math.log(2.0)))
    series = builder.fmul(z, builder.fadd(ir.Constant(exact.type, 1.0), builder.fmul(z, ir.Constant(exact.type, 0.5))))
    return builder.fadd(total, builder.fmul(total, series))


def _exp2(builder: Value, x: Value) -> Value:
    """Emit 2^x, or a number near 0 where that is not a normal number."""
    name = str(x.type.element)
    smallest = _constant(x.type, _SMALLEST[name])
    return exp2_inside(builder, builder.select(builder.fcmp_ordered(">", x, smallest), x, smallest), name)


def exp2_inside(builder: Value, x: Value, name: str) -> Value:
    """Emit 2^x = 2^k · 2^f: the nearest integer k goes into the bits of the exponent, 2^f is the polynomial `name`.

    It is any number where 2^x is not a normal number.
    """
    vector = x.type
    bits, mantissa = (32, 23) if vector.element == ir.FloatType() else (64, 52)
    # Adding this to an integer leaves that in the lowest bits. AVX2 has no conversion for double precision.
    magic = _constant(vector, 1.5 * 2.0**mantissa)
    whole = _call(builder, "rint", vector, x)
    power = _polynomial(builder, builder.fsub(x, whole), name)
    integers = ir.VectorType(ir.IntType(bits), vector.count)
    exponent = builder.shl(builder.bitcast(builder.fadd(whole, magic), integers), _constant(integers, mantissa))
    return builder.bitcast(builder.add(builder.bitcast(power, integers), exponent), vector)


def _polynomial(builder: Value, fraction: Value, name: str) -> Value:
    """Emit 2^f, |f| ≤ ½, by the polynomial of this name."""
    coefficients = _COEFFICIENTS[name]
    power = _constant(fraction.type, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        power = _multiply_add(builder, power, fraction, _constant(fraction.type, coefficient))
    return power


def _vector_of(pointer: Value) -> Value:
    element = pointer.type.pointee
    return ir.VectorType(element, VECTOR_BYTES // (4 if element == ir.FloatType() else 8))


def _constant(vector: Value, value: float) -> Value:
    return ir.Constant(vector, [value] * vector.count)


def _splat(builder: Value, scalar: Value, vector: Value) -> Value:
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, _INT32(0))
    everywhere = ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, undefined, everywhere)


def _place(builder: Value, pointer: Value, i: int, vector: Value) -> Value:
    return builder.bitcast(builder.gep(pointer, [_INT64(i * vector.count)]), vector.as_pointer())


def _load(builder: Value, pointer: Value, i: int, vector: Value) -> Value:
    """Emit a load of the i-th vector after `pointer`; numpy aligns it only to an element."""
    value = builder.load(_place(builder, pointer, i, vector))
    value.align = 4
    return value


def _store(builder: Value, value: Value, pointer: Value, i: int) -> None:
    builder.store(value, _place(builder, pointer, i, value.type)).align = 4


def _call(builder: Value, name: str, vector: Value, *arguments: Value) -> Value:
    """Emit a call of LLVM's intrinsic `name`. Every target has it."""
    suffix = f"v{vector.count}f{32 if vector.element == ir.FloatType() else 64}"
    kind = ir.FunctionType(vector, [vector] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), arguments)


def _multiply_add(builder: Value, x: Value, y: Value, z: Value) -> Value:
    """Emit x·y + z: fused if the processor can, else two operations (`fma` would call a library)."""
    return _call(builder, "fmuladd", x.type, x, y, z)


def _add_square(builder: Value, x: Value, y: Value, z: Value) -> Value:
    """Emit (x − y)² + z."""
    difference = builder.fsub(x, y)
    return _multiply_add(builder, difference, difference, z)


def _sum_of_elements(builder: Value, vector: Value) -> Value:
    """Emit the sum of a vector's elements: add halves until one element is left, always in the same order."""
    while (count := vector.type.count // 2) > 0:
        halves = [[_INT32(i) for i in range(first, first + count)] for first in (0, count)]
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INT32, count), half)) for half in halves
        )
        vector = builder.fadd(low, high)
    total = builder.extract_element(vector, _INT32(0))
    return total if total.type == ir.DoubleType() else builder.fpext(total, ir.DoubleType())


# -- distances of the search -------------------------------------------------------------------------------------------

_TOGETHER = 4  # rows at a time: their sums do not wait for each other
_F32 = ir.FloatType()

# The fewest columns for vector code: one whole vector.
FEWEST = max(32, BYTES) // 4


@kernel
def squared_distances_plain(query: Array, rows: Array, first: int, n: int, out: Array) -> None:
    """Write the squared distances of `query` (d,) from ``rows[first:first + n]`` into ``out[:n]``; all float32."""
    for i in range(n):
        total = query[0] - query[0]
        for c in range(len(query)):
            difference = query[c] - rows[first + i, c]
            total += difference * difference
        out[i] = total


def emit_squared_distances(builder: Any, width: int, query: Any, d: Any, rows: Any, n: Any, out: Any) -> None:
    """Emit the squared distances of `query` from `n` rows of `d` columns. All is float32; d is at least one vector."""
    v = Vectors(builder, _F32, width)
    with cgutils.for_range(builder, builder.udiv(n, _INT64(_TOGETHER)), intp=_INT64) as group:
        first = builder.mul(group.index, _INT64(_TOGETHER))
        _emit_rows(v, _TOGETHER, query, d, rows, first, out)
    with cgutils.for_range_slice(
        builder, builder.sub(n, builder.urem(n, _INT64(_TOGETHER))), n, _INT64(1), intp=_INT64, inc=True
    ) as (row, _):
        _emit_rows(v, 1, query, d, rows, row, out)


def _emit_rows(v: Vectors, count: int, query: Any, d: Any, rows: Any, first: Any, out: Any) -> None:
    """Emit the distances of `count` rows. One more vector, which overlaps the last, covers the rest of the columns."""
    b, lanes = v.builder, _INT64(v.lanes)
    starts = [b.gep(rows, [b.mul(b.add(first, _INT64(r)), d)]) for r in range(count)]
    sums = [cgutils.alloca_once(b, v.type) for _ in range(count)]
    for total in sums:
        b.store(v.constant(0.0), total)
    with cgutils.for_range(b, b.udiv(d, lanes), intp=_INT64) as block:
        column = b.mul(block.index, lanes)
        x = v.load(query, column)
        for start, total in zip(starts, sums, strict=True):
            difference = b.fsub(x, v.load(start, column))
            b.store(v.multiply_add(difference, difference, b.load(total)), total)
    last, rest = b.sub(d, lanes), b.urem(d, lanes)
    lane = ir.Constant(ir.VectorType(_INT64, v.lanes), list(range(v.lanes)))
    new = b.icmp_signed(">=", lane, v.splat(b.sub(lanes, rest)))
    x = v.load(query, last)
    for r, (start, total) in enumerate(zip(starts, sums, strict=True)):
        difference = b.select(new, b.fsub(x, v.load(start, last)), v.constant(0.0))
        whole = v.multiply_add(difference, difference, b.load(total))
        b.store(v.sum_of_elements(whole), b.gep(out, [b.add(first, _INT64(r))]))


@intrinsic
def squared_distances(typing: Any, query: Any, rows: Any, first: Any, n: Any, out: Any) -> Any:
    """``squared_distances(query, rows, first, n, out)``: as `squared_distances_plain`, for d ≥ `FEWEST`."""
    whole = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shape = context.make_array(signature.args[0])(context, builder, arguments[0]).shape
        d = cgutils.unpack_tuple(builder, shape)[0]
        data = {i: pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 4)}
        start = builder.gep(data[1], [builder.mul(arguments[2], d)])
        emit_squared_distances(builder, max(32, BYTES), data[0], d, start, arguments[3], data[4])
        return context.get_dummy_value()

    return types.void(query, rows, whole, whole, out), generate
