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

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_F64 = ir.DoubleType()
_F32 = ir.FloatType()

# Two atoms that are nearer than this (squared, Å²) are at the same place: 1/distance is then inf, not huge.
SAME_PLACE = 1e-20
# It is added to r²: no digit of others changes, and 1/r of such atoms is a number.
_NOT_ZERO = 1e-30
# The most neighbours that the networks sort.
WIDTH = 32
# Vectors whose ranks are counted together.
RANKED = 4
# The number of columns of `near`: neighbours, and again as many of the first ones as loops read after the last.
SPAN = 2 * WIDTH
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


# Green's network of 60 comparators, the fewest known for 16 values (Knuth 5.3.4).
_SIXTEEN = """
0-13 1-12 2-15 3-14 4-8 5-6 7-11 9-10  0-5 1-7 2-9 3-4 6-13 8-14 10-15 11-12  0-1 2-3 4-5 6-8 7-9 10-11 12-13 14-15
0-2 1-3 4-10 5-11 6-7 8-9 12-14 13-15  1-2 3-12 4-6 5-7 8-10 9-11 13-14  1-4 2-6 5-8 7-10 9-13 11-14
2-4 3-6 9-12 11-13  3-5 6-8 7-9 10-12  3-4 5-6 7-8 9-10 11-12  6-7 8-9
"""


def network(n: int) -> list[tuple[int, int]]:
    """Return the comparators (i, j), i < j, of a network that sorts n ≤ 32 values: few, and near each other.

    Each 16 values are sorted, since these are in registers together, and then merged by Batcher's odd-even merge. What
    a network of more places does with the first n is right, since larger values than theirs stay where they are.
    """
    sixteen = [tuple(map(int, pair.split("-"))) for pair in _SIXTEEN.split()]
    pairs = [(start + i, start + j) for start in (0, 16) for i, j in sixteen]
    for d in (16, 8, 4, 2, 1) if n > 16 else ():
        pairs += (
            [(i, i + d) for i in range(16)]
            if d == 16
            else [(i, i + d) for start in range(d, 32 - d, 2 * d) for i in range(start, start + d)]
        )
    return [(i, j) for i, j in pairs if j < n]


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

    def larger(self, x: Any, y: Any) -> Any:
        return self.call("maxnum", [x, y], self.type, _NO_NAN)

    def smaller(self, x: Any, y: Any) -> Any:
        return self.call("minnum", [x, y], self.type, _NO_NAN)

    def smallest_of_elements(self, x: Any) -> Any:
        return self.call("vector.reduce.fmin", [x], self.element, _NO_NAN)

    def ones_below(self, first: Any, end: int) -> Any:
        """Return a vector that is 1 where ``first + i`` is below `end`, and 0 elsewhere."""
        whole = ir.VectorType(_I64, self.lanes)
        place = self.builder.add(self.splat(first), ir.Constant(whole, list(range(self.lanes))))
        below = self.builder.icmp_signed("<", place, ir.Constant(whole, [end] * self.lanes))
        return self.builder.select(below, self.constant(1.0), self.constant(0.0))

    def squared_norm(self, x: Any, y: Any, z: Any, more: float = 0.0) -> Any:
        """Return x² + y² + z², plus `more`."""
        b = self.builder
        xx, yy, zz = (b.fmul(c, c, flags=_FUSE) for c in (x, y, z))
        if more:
            xx = b.fadd(xx, self.constant(more), flags=_FUSE)
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


def _emit_pairs(v: Vectors, size: int, near: Any, matrix: Any) -> Any:
    """Write A_(l, l+d), columns counted modulo `size`, to ``matrix[d - 1, WIDTH + l]``; return the smallest r² of each.

    Each pair is computed once: it is in column l, and d places further in column l + d. So each row also holds what
    comes before l = 0, which is its end.
    """
    b, half, lanes = v.builder, size // 2, v.lanes
    axes = [b.gep(near, [ir.Constant(_I64, SPAN * c)]) for c in range(4)]
    columns = range(0, size, lanes)
    for axis in axes:  # the columns after the last one are the first ones again
        for first in range(0, columns[-1] + lanes + half - size, lanes):
            v.store(v.load(axis, ir.Constant(_I64, first)), axis, ir.Constant(_I64, size + first))
    closest = cgutils.alloca_once_value(b, v.constant(1e30))
    with cgutils.for_range(b, ir.Constant(_I64, half), intp=_I64) as loop:
        row = b.gep(matrix, [b.mul(loop.index, ir.Constant(_I64, SPAN))])
        other = b.add(loop.index, ir.Constant(_I64, 1))
        smallest = b.load(closest)
        for first in columns:
            place = ir.Constant(_I64, first)
            x, y, z, u = (v.load(axis, place) for axis in axes)
            xj, yj, zj, uj = (v.load(axis, b.add(other, place)) for axis in axes)
            squared = v.squared_norm(b.fsub(xj, x), b.fsub(yj, y), b.fsub(zj, z), _NOT_ZERO)
            smallest = v.smaller(smallest, squared)
            value = b.fmul(b.fmul(uj, u), v.inverse_root(squared))
            v.store(value, row, ir.Constant(_I64, WIDTH + first))
            if first + lanes > size - half:
                v.store(value, row, ir.Constant(_I64, WIDTH + first - size))
        b.store(smallest, closest)
    return b.load(closest)


def _emit_totals(v: Vectors, sums: Sequence[Any]) -> Any:
    """Return a vector of the sums of the elements of as many vectors as one has elements."""
    b, vectors = v.builder, list(sums)
    places = ir.VectorType(ir.IntType(32), v.lanes)
    # Halve their number until one is left. Each keeps the sums of its vectors in parts that follow each other.
    while len(vectors) > 1:
        span = len(vectors) // 2  # parts of one sum, half of what they were
        first = [i + span * (i // span) for i in range(v.lanes // 2)]
        first += [i + v.lanes for i in first]
        halves = [ir.Constant(places, first), ir.Constant(places, [i + span for i in first])]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [b.fadd(*(b.shuffle_vector(x, y, which) for which in halves)) for x, y in pairs]
    return vectors[0]


def emit_sorted_sums(builder: Any, element: Any, width: int, size: int, near: Any, n: Any, out: Any) -> Any:
    """Write the sums over the columns of A, each sorted largest first, into ``out[:size]`` (float64), in whole vectors.

    `near` (4, SPAN) holds x, y, z and u = 1 − (r/r_c)² of n ≤ size neighbours, then empty places with u = 0, up to
    `size`; what follows is overwritten. A_jl = u_j u_l / r_jl is symmetric, so columns are sorted instead of rows. Then
    one vector holds one row of several columns, and a comparator of the network is a minimum and a maximum of two
    vectors. The diagonal is left out: it is zero, and sorts itself to the end. Returned is the smallest r² of two
    neighbours (float64).
    """
    v, half = Vectors(builder, element, width), size // 2
    last = ir.Constant(_I64, size - 1)
    sums = cgutils.alloca_once(builder, v.type, size=last)
    matrix = cgutils.alloca_once(builder, element, size=ir.Constant(_I64, half * SPAN))
    places_of_sums = [builder.gep(sums, [ir.Constant(_I64, s)]) for s in range(size - 1)]
    for place in places_of_sums:
        builder.store(v.constant(0.0), place)
    closest = _emit_pairs(v, size, near, matrix)
    lanes = ir.Constant(_I64, v.lanes)
    blocks = builder.udiv(builder.add(n, ir.Constant(_I64, v.lanes - 1)), lanes)
    with cgutils.for_range(builder, blocks, intp=_I64) as block:
        first = builder.mul(block.index, lanes)
        column = builder.gep(matrix, [builder.add(first, ir.Constant(_I64, WIDTH))])
        offsets = [SPAN * d for d in range(half)] + [SPAN * d - d - 1 for d in range(half - 1)]
        rows = [v.load(column, ir.Constant(_I64, offset)) for offset in offsets]
        for i, j in network(size - 1):
            rows[i], rows[j] = v.larger(rows[i], rows[j]), v.smaller(rows[i], rows[j])
        counts = v.ones_below(first, size)
        for row, place in zip(rows, places_of_sums, strict=True):
            total = builder.load(place)
            # In the last vector some columns may be there twice.
            total = v.multiply_add(row, counts, total) if size % v.lanes else builder.fadd(row, total)
            builder.store(total, place)
    zeros = [v.constant(0.0)] * v.lanes
    for first in range(0, size, v.lanes):
        parts = [builder.load(place) for place in places_of_sums[first : first + v.lanes]]
        total = _emit_totals(v, (parts + zeros)[: v.lanes])
        total = builder.fpext(total, ir.VectorType(_F64, v.lanes)) if element == _F32 else total
        v.store(total, out, ir.Constant(_I64, first))
    smallest = v.smallest_of_elements(closest)
    smallest = builder.fpext(smallest, _F64) if element == _F32 else smallest
    with builder.if_then(builder.fcmp_ordered("<", smallest, ir.Constant(_F64, SAME_PLACE)), likely=False):
        builder.store(ir.Constant(_F64, float("inf")), out)
    return smallest


def emit_ranks(builder: Any, width: int, values: Any, n: Any, out: Any) -> None:
    """Write into ``out[i]`` (int32) how many of ``values[:n]`` (float32) are less than ``values[i]``.

    It reads and writes `RANKED` vectors at a time: both arrays must be longer than n by as many.
    """
    v, b = Vectors(builder, _F32, width), builder
    counts = ir.VectorType(_I32, v.lanes)
    ranks = [cgutils.alloca_once(b, counts) for _ in range(RANKED)]
    step = ir.Constant(_I64, RANKED * v.lanes)
    with cgutils.for_range(b, b.udiv(b.add(n, b.sub(step, ir.Constant(_I64, 1))), step), intp=_I64) as block:
        first = b.mul(block.index, step)
        places = [b.add(first, ir.Constant(_I64, i * v.lanes)) for i in range(RANKED)]
        mine = [v.load(values, place) for place in places]
        for rank in ranks:
            b.store(ir.Constant(counts, [0] * v.lanes), rank)
        with cgutils.for_range(b, n, intp=_I64) as other:
            value = v.load_splat(values, other.index)
            for rank, own in zip(ranks, mine, strict=True):
                less = b.sext(b.fcmp_ordered("<", value, own), counts)
                b.store(b.sub(b.load(rank), less), rank)
        for rank, place in zip(ranks, places, strict=True):
            v.store(b.load(rank), out, place)


def _which_bits(builder: Any, lanes: int) -> Any:
    """Return a table: for every word of `lanes` bits the places of those that are set, as a vector of bytes."""
    name = f"quests_md.bits.{lanes}"
    if name in builder.module.globals:
        return builder.module.globals[name]
    vector = ir.VectorType(ir.IntType(8), lanes)
    places = [[i for i in range(lanes) if word >> i & 1] for word in range(1 << lanes)]
    table = ir.ArrayType(vector, len(places))
    made = ir.GlobalVariable(builder.module, table, name)
    made.initializer = ir.Constant(table, [ir.Constant(vector, p + [0] * (lanes - len(p))) for p in places])
    made.global_constant, made.linkage = True, "internal"
    return made


def emit_inside(
    builder: Any,
    width: int,
    points: Any,
    stride: Any,
    ends: Sequence[Any],
    centre: Any,
    limit: Any,
    rows: Any,
    n: Any,
    squares: Any,
) -> Any:
    """Append to ``rows[:n]`` the points of a range, less `centre`, whose r² from it is below `limit`; return the new n.

    `points` (3, stride) holds coordinates (float64), `ends` are first and last of the range. The r² of a point goes to
    its row of `squares`. It reads and writes whole vectors: all arrays must be longer by one vector.
    """
    v, b = Vectors(builder, _F64, width), builder
    axes = [b.gep(points, [b.mul(stride, ir.Constant(_I64, c))]) for c in range(3)]
    middle = [v.load_splat(axis, centre) for axis in axes]
    whole, table = ir.VectorType(_I64, v.lanes), _which_bits(b, v.lanes)
    lane = ir.Constant(whole, list(range(v.lanes)))
    found = cgutils.alloca_once_value(b, n)
    lanes = ir.Constant(_I64, v.lanes)
    blocks = b.udiv(b.add(b.sub(ends[1], ends[0]), ir.Constant(_I64, v.lanes - 1)), lanes)
    with cgutils.for_range(b, blocks, intp=_I64) as block:
        start = b.add(ends[0], b.mul(block.index, lanes))
        squared = v.squared_norm(*(b.fsub(v.load(axis, start), m) for axis, m in zip(axes, middle, strict=True)))
        v.store(squared, squares, start)
        row = b.add(v.splat(start), lane)
        other = b.and_(b.icmp_signed("<", row, v.splat(ends[1])), b.icmp_signed("!=", row, v.splat(centre)))
        inside = b.and_(b.fcmp_ordered("<", squared, v.splat(limit)), other)
        bits = b.zext(b.bitcast(inside, ir.IntType(v.lanes)), _I64)
        # Which are inside is at random: a table takes no branch.
        which = b.load(b.gep(table, [ir.Constant(_I64, 0), bits]))
        which.align = 1
        count = b.load(found)
        v.store(b.add(v.splat(start), b.zext(which, whole)), rows, count)
        b.store(b.add(count, b.ctpop(bits)), found)
    return b.load(found)


def emit_near(
    builder: Any,
    element: Any,
    width: int,
    points: tuple[Any, Any, Any],
    chosen: tuple[Any, Any, Any],
    n: Any,
    cutoff: Any,
    near: Any,
    x1: Any,
) -> None:
    """Write neighbours of a point into `near`, as `emit_sorted_sums` takes them, and x1.

    `points` are coordinates (3, stride) (float64), the stride, and the column of the point. The neighbours are
    ``rows[order[j]]``, j < n ≤ WIDTH: `chosen` is order, rows, and the squared distances of `rows`. `x1` (float64) is
    written in whole vectors.
    """
    v, b = Vectors(builder, _F64, width), builder
    coordinates, stride, centre = points
    order, rows, r2 = chosen

    def place(c: int, index: Any) -> Any:
        return b.gep(near, [b.add(index, ir.Constant(_I64, SPAN * c))])

    def narrow(value: Any) -> Any:
        return b.fptrunc(value, element) if element == _F32 else value

    axes = [b.gep(coordinates, [b.mul(stride, ir.Constant(_I64, c))]) for c in range(3)]
    middle = [b.load(b.gep(axis, [centre])) for axis in axes]
    with cgutils.for_range(b, n, intp=_I64) as loop:
        neighbour = b.load(b.gep(order, [loop.index]))
        row = b.load(b.gep(rows, [neighbour]))
        for c in range(3):
            b.store(narrow(b.fsub(b.load(b.gep(axes[c], [row])), middle[c])), place(c, loop.index))
        b.store(b.load(b.gep(r2, [neighbour])), b.gep(x1, [loop.index]))
    _emit_weights(v, element, n, cutoff, x1, place(3, ir.Constant(_I64, 0)))
    zero = ir.Constant(element, 0.0)
    one, end = ir.Constant(_I64, 1), ir.Constant(_I64, WIDTH)
    with cgutils.for_range_slice(b, n, end, one, intp=_I64) as (j, _):
        away = b.fmul(b.uitofp(b.add(j, ir.Constant(_I64, 2)), _F64), cutoff)
        for c, value in enumerate((narrow(away), zero, zero, zero)):
            b.store(value, place(c, j))


def _emit_weights(v: Vectors, element: Any, n: Any, cutoff: Any, x1: Any, u: Any) -> None:
    """Write u = 1 − (r/r_c)² and u²/r of n neighbours into `u` and `x1`, which holds their r²."""
    b, lanes = v.builder, ir.Constant(_I64, v.lanes)
    per_square = b.fdiv(ir.Constant(_F64, 1.0), b.fmul(cutoff, cutoff))
    blocks = b.udiv(b.add(n, ir.Constant(_I64, v.lanes - 1)), lanes)
    with cgutils.for_range(b, blocks, intp=_I64) as block:
        first = b.mul(block.index, lanes)
        squared = v.load(x1, first)
        weight = b.fsub(v.constant(1.0), b.fmul(squared, v.splat(per_square)))
        inverse = v.inverse_root(b.fadd(squared, v.constant(_NOT_ZERO)))
        inverse = b.select(b.fcmp_ordered("<", squared, v.constant(SAME_PLACE)), v.constant(float("inf")), inverse)
        v.store(b.fmul(b.fmul(weight, weight), inverse), x1, first)
        v.store(b.fptrunc(weight, ir.VectorType(_F32, v.lanes)) if element == _F32 else weight, u, first)


def pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


@intrinsic(prefer_literal=True)
def sorted_sums(typing: Any, size: Any, near: Any, n: Any, out: Any) -> Any:
    """``closest = sorted_sums(size, near, n, out)``: see `emit_sorted_sums`. The precision is that of `near`."""
    if not isinstance(size, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, near_type, _, out_type = signature.args
        near_data = pointer(context, builder, near_type, arguments[1])
        out_data = pointer(context, builder, out_type, arguments[3])
        element = _F32 if near_type.dtype == types.float32 else _F64
        return emit_sorted_sums(builder, element, BYTES, size.literal_value, near_data, arguments[2], out_data)

    return types.float64(size, near, types.int64, out), generate


@intrinsic
def ranks(typing: Any, values: Any, n: Any, out: Any) -> Any:
    """``ranks(values, n, out)``: see `emit_ranks`. `values` is float32, `out` int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = pointer(context, builder, signature.args[0], arguments[0])
        out_data = pointer(context, builder, signature.args[2], arguments[2])
        emit_ranks(builder, BYTES, data, arguments[1], out_data)
        return context.get_dummy_value()

    return types.void(values, types.int64, out), generate


@intrinsic
def inside(
    typing: Any, points: Any, first: Any, last: Any, centre: Any, limit: Any, rows: Any, n: Any, squares: Any
) -> Any:
    """``n = inside(points, first, last, centre, limit, rows, n, squares)``: see `emit_inside`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, array.shape)[1]
        _, first, last, centre, limit, _, n, _ = arguments
        row_data, square_data = (pointer(context, builder, signature.args[i], arguments[i]) for i in (5, 7))
        ends = first, last
        return emit_inside(builder, BYTES, array.data, stride, ends, centre, limit, row_data, n, square_data)

    whole = types.int64
    return whole(points, whole, whole, whole, types.float64, rows, whole, squares), generate


@intrinsic
def gather(
    typing: Any, points: Any, centre: Any, order: Any, rows: Any, r2: Any, n: Any, cutoff: Any, near: Any, x1: Any
) -> Any:
    """``gather(points, centre, order, rows, r2, n, cutoff, near, x1)``: see `emit_near`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, array.shape)[1]
        data = {i: pointer(context, builder, signature.args[i], arguments[i]) for i in (2, 3, 4, 7, 8)}
        element = _F32 if signature.args[7].dtype == types.float32 else _F64
        points, chosen = (array.data, stride, arguments[1]), (data[2], data[3], data[4])
        emit_near(builder, element, BYTES, points, chosen, arguments[5], arguments[6], data[7], data[8])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(points, whole, order, rows, r2, whole, types.float64, near, x1), generate
