"""The inner loops that numba does not turn into vectors by itself, written as vector code.

numba vectorises no sorting network, and no loop as short as the number of neighbours. So these loops are LLVM IR on
types like <8 x double>. This code names no instruction of any processor; LLVM translates it for each. An `emit_`
function writes a loop on bare pointers, with a builder of llvmlite. An `@intrinsic` makes it callable from a kernel, on
arrays. tests/naive.py computes the same in plain numpy, and tests/kernels/test_simd.py compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_F64 = ir.DoubleType()
_F32 = ir.FloatType()

# Two atoms that are nearer than this (squared, Å²) are at the same place: 1/distance is then inf, not huge.
SAME_PLACE = 1e-20
# The most neighbours that the networks sort, and the number of columns of `near`.
WIDTH = 32
# A fused multiply-add is allowed, and 1/sqrt(x) from the refined estimate of the processor. To assume that nothing is
# infinite is not allowed.
_FUSE = ("contract",)
_ESTIMATE = ("arcp", "contract", "afn", "reassoc")
# No sorted value is nan: so a minimum is one instruction.
_NO_NAN = ("nnan", "nsz")


def vector_bytes(triple: str, features: str) -> int:
    """Return the width of the vectors of a processor, by LLVM's names; 0 if they are not worth using.

    They are worth it with fused multiply-adds on vectors. On Arm both are part of the architecture. A processor with
    these but without AVX2 does well with half of its width.
    """
    if triple.startswith(("aarch64", "arm64")):
        return 16
    for needed, width in (({"+avx512f"}, 64), ({"+avx2", "+fma"}, 32), ({"+avx", "+fma"}, 16)):
        if needed <= set(features.split(",")):
            return width
    return 0


def _target() -> tuple[str, str]:
    # What numba compiles for, not what the processor is: numba tells kept machine code apart by this.
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, features


BYTES = vector_bytes(*_target())


def network(n: int) -> list[tuple[int, int]]:
    """Return the comparators (i, j), i < j, of Batcher's odd-even merge sort of n values (Knuth 5.2.2, M)."""
    top = 1 << max(0, (n - 1).bit_length() - 1)
    pairs, p = [], top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return pairs


class Vectors:
    """Short names for what a builder does on vectors of one type."""

    def __init__(self, builder: Any, element: Any, width: int) -> None:
        self.builder = builder
        self.element = element
        self.lanes = max(1, width // (4 if element == _F32 else 8))
        self.type = ir.VectorType(element, self.lanes)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.type, [value] * self.lanes)

    def splat(self, scalar: Any) -> Any:
        none = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(none, scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, none, zeros)

    def load(self, pointer: Any, index: Any) -> Any:
        place = self.builder.gep(pointer, [index])
        value = self.builder.load(self.builder.bitcast(place, self.type.as_pointer()))
        value.align = 4  # a row of an array may begin anywhere
        return value

    def load_splat(self, pointer: Any, index: Any) -> Any:
        return self.splat(self.builder.load(self.builder.gep(pointer, [index])))

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        place = self.builder.gep(pointer, [index])
        self.builder.store(value, self.builder.bitcast(place, value.type.as_pointer())).align = 4

    def call(self, name: str, arguments: Sequence[Any], result: Any, flags: Sequence[str]) -> Any:
        """Call an intrinsic function of LLVM on vectors of this type."""
        full = f"llvm.{name}.v{self.lanes}f{32 if self.element == _F32 else 64}"
        signature = ir.FunctionType(result, [a.type for a in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, signature, full)
        return self.builder.call(function, arguments, fastmath=flags)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Return x·y + z: fused if the processor can, else two operations (`fma` would call a library)."""
        return self.call("fmuladd", [x, y, z], self.type, ())

    def sum_of_elements(self, x: Any) -> Any:
        """Return the sum of a vector's elements, in an order that the compiler chooses."""
        return self.call("vector.reduce.fadd", [ir.Constant(self.element, 0.0), x], self.element, ("reassoc",))

    def squared_norm(self, x: Any, y: Any, z: Any) -> Any:
        b = self.builder
        xx, yy, zz = (b.fmul(c, c, flags=_FUSE) for c in (x, y, z))
        return b.fadd(zz, b.fadd(yy, xx, flags=_FUSE), flags=_FUSE)

    def inverse_root(self, squared: Any) -> Any:
        """Return 1/sqrt(x) to a few units of the last digit, for 1e-30 < x < 1e30."""
        b = self.builder
        if self.element == _F32:
            root = self.call("sqrt", [squared], self.type, _ESTIMATE)
            return b.fdiv(self.constant(1.0), root, flags=_ESTIMATE)
        # Double precision has no estimate: take that of single precision, and a step that cubes its error.
        single = Vectors(b, _F32, 4 * self.lanes)
        y = b.fpext(single.inverse_root(b.fptrunc(squared, single.type)), self.type)
        e = b.fsub(self.constant(1.0), b.fmul(b.fmul(squared, y), y, flags=_FUSE), flags=_FUSE)
        series = b.fadd(b.fmul(e, self.constant(0.375), flags=_FUSE), self.constant(0.5), flags=_FUSE)
        return b.fadd(y, b.fmul(b.fmul(y, e), series, flags=_FUSE), flags=_FUSE)


def _emit_columns(v: Vectors, near: Any, first: Any, size: int) -> list[Any]:
    """Return the rows 0..size of the columns first..first+lanes of the matrix A, each row a vector."""
    b = v.builder
    starts = [ir.Constant(_I64, WIDTH * c) for c in range(4)]
    x, y, z, u = (v.load(near, b.add(start, first)) for start in starts)
    lane = ir.Constant(ir.VectorType(_I64, v.lanes), list(range(v.lanes)))
    column = b.add(v.splat(first), lane)
    rows = []
    for j in range(size):
        xj, yj, zj, uj = (v.load_splat(near, start.add(ir.Constant(_I64, j))) for start in starts)
        squared = v.squared_norm(b.fsub(xj, x), b.fsub(yj, y), b.fsub(zj, z))
        value = b.fmul(b.fmul(uj, u), v.inverse_root(squared))
        itself = b.icmp_signed("==", column, ir.Constant(column.type, [j] * v.lanes))
        at_zero = b.select(itself, v.constant(0.0), v.constant(float("inf")))
        rows.append(b.select(b.fcmp_ordered("<", squared, v.constant(SAME_PLACE)), at_zero, value))
    return rows


def emit_sorted_sums(builder: Any, element: Any, width: int, size: int, near: Any, n: Any, out: Any) -> None:
    """Write the sums over the columns of A, each sorted largest first, into ``out[:size]`` (float64).

    `near` (4, WIDTH) holds x, y, z and u = 1 − (r/r_c)² of n ≤ size neighbours, then empty places with u = 0.
    A_jl = u_j u_l / r_jl is symmetric, so columns are sorted instead of rows. Then one vector holds one row of several
    columns, and a comparator of the network is a minimum and a maximum of two vectors.
    """
    v = Vectors(builder, element, width)
    sums = cgutils.alloca_once(builder, v.type, size=ir.Constant(_I64, size))
    for s in range(size):
        builder.store(v.constant(0.0), builder.gep(sums, [ir.Constant(_I64, s)]))
    lanes = ir.Constant(_I64, v.lanes)
    blocks = builder.udiv(builder.add(n, ir.Constant(_I64, v.lanes - 1)), lanes)
    with cgutils.for_range(builder, blocks, intp=_I64) as block:
        rows = _emit_columns(v, near, builder.mul(block.index, lanes), size)
        for i, j in network(size):
            pair = [rows[i], rows[j]]
            rows[i] = v.call("maxnum", pair, v.type, _NO_NAN)
            rows[j] = v.call("minnum", pair, v.type, _NO_NAN)
        for s in range(size):
            place = builder.gep(sums, [ir.Constant(_I64, s)])
            builder.store(builder.fadd(builder.load(place), rows[s]), place)
    for s in range(size):
        total = builder.load(builder.gep(sums, [ir.Constant(_I64, s)]))
        total = v.sum_of_elements(total)
        total = builder.fpext(total, _F64) if element == _F32 else total
        builder.store(total, builder.gep(out, [ir.Constant(_I64, s)]))


def emit_ranks(builder: Any, width: int, values: Any, n: Any, out: Any) -> None:
    """Write into ``out[i]`` how many of ``values[:n]`` (float64) are less than ``values[i]``.

    It reads and writes whole vectors: both arrays must be longer than n by one vector.
    """
    v = Vectors(builder, _F64, width)
    counts = ir.VectorType(_I64, v.lanes)
    rank = cgutils.alloca_once(builder, counts)
    lanes = ir.Constant(_I64, v.lanes)
    blocks = builder.udiv(builder.add(n, ir.Constant(_I64, v.lanes - 1)), lanes)
    with cgutils.for_range(builder, blocks, intp=_I64) as block:
        first = builder.mul(block.index, lanes)
        mine = v.load(values, first)
        builder.store(ir.Constant(counts, [0] * v.lanes), rank)
        with cgutils.for_range(builder, n, intp=_I64) as other:
            less = builder.fcmp_ordered("<", v.load_splat(values, other.index), mine)
            builder.store(builder.sub(builder.load(rank), builder.sext(less, counts)), rank)
        v.store(builder.load(rank), out, first)


def emit_inside(
    builder: Any, width: int, points: Any, stride: Any, ends: Sequence[Any], centre: Any, limit: Any, rows: Any, n: Any
) -> Any:
    """Append to ``rows[:n]`` the points of a range, less `centre`, whose r² from it is below `limit`; return the new n.

    `points` (3, stride) holds coordinates (float64), `ends` are first and last of the range. It reads whole vectors and
    writes one row more: both arrays must be longer by one vector.
    """
    v, b = Vectors(builder, _F64, width), builder
    axes = [b.gep(points, [b.mul(stride, ir.Constant(_I64, c))]) for c in range(3)]
    middle = [v.load_splat(axis, centre) for axis in axes]
    lane = ir.Constant(ir.VectorType(_I64, v.lanes), list(range(v.lanes)))
    found = cgutils.alloca_once_value(b, n)
    lanes = ir.Constant(_I64, v.lanes)
    blocks = b.udiv(b.add(b.sub(ends[1], ends[0]), ir.Constant(_I64, v.lanes - 1)), lanes)
    with cgutils.for_range(b, blocks, intp=_I64) as block:
        start = b.add(ends[0], b.mul(block.index, lanes))
        squared = v.squared_norm(*(b.fsub(v.load(axis, start), m) for axis, m in zip(axes, middle, strict=True)))
        row = b.add(v.splat(start), lane)
        other = b.and_(b.icmp_signed("<", row, v.splat(ends[1])), b.icmp_signed("!=", row, v.splat(centre)))
        inside = b.and_(b.fcmp_ordered("<", squared, v.splat(limit)), other)
        bits = b.zext(b.bitcast(inside, ir.IntType(v.lanes)), _I64)
        count = b.load(found)
        for i in range(v.lanes):  # always write, and keep it only if it counts: a branch would be taken at random
            b.store(b.add(start, ir.Constant(_I64, i)), b.gep(rows, [count]))
            count = b.add(count, b.and_(b.lshr(bits, ir.Constant(_I64, i)), ir.Constant(_I64, 1)))
        b.store(count, found)
    return b.load(found)


def pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


@intrinsic(prefer_literal=True)
def sorted_sums(typing: Any, size: Any, near: Any, n: Any, out: Any) -> Any:
    """``sorted_sums(size, near, n, out)``: see `emit_sorted_sums`. In the precision of `near`; `size` is a literal."""
    if not isinstance(size, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, near_type, _, out_type = signature.args
        near_data = pointer(context, builder, near_type, arguments[1])
        out_data = pointer(context, builder, out_type, arguments[3])
        element = _F32 if near_type.dtype == types.float32 else _F64
        emit_sorted_sums(builder, element, BYTES, size.literal_value, near_data, arguments[2], out_data)
        return context.get_dummy_value()

    return types.void(size, near, types.int64, out), generate


@intrinsic
def ranks(typing: Any, values: Any, n: Any, out: Any) -> Any:
    """``ranks(values, n, out)``: see `emit_ranks`. `values` is float64, `out` int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = pointer(context, builder, signature.args[0], arguments[0])
        out_data = pointer(context, builder, signature.args[2], arguments[2])
        emit_ranks(builder, BYTES, data, arguments[1], out_data)
        return context.get_dummy_value()

    return types.void(values, types.int64, out), generate


@intrinsic
def inside(typing: Any, points: Any, first: Any, last: Any, centre: Any, limit: Any, rows: Any, n: Any) -> Any:
    """``n = inside(points, first, last, centre, limit, rows, n)``: see `emit_inside`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, array.shape)[1]
        _, first, last, centre, limit, _, n = arguments
        row_data = pointer(context, builder, signature.args[5], arguments[5])
        return emit_inside(builder, BYTES, array.data, stride, (first, last), centre, limit, row_data, n)

    whole = types.int64
    return whole(points, whole, whole, whole, types.float64, rows, whole), generate
