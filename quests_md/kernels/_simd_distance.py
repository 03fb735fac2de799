"""Squared distances of one point from rows of a matrix, as vector code: the inner loop of a search.

numba vectorises the sum over coordinates, but adds the last columns one by one: of 63 columns half the time goes there.
Written as `_simd` is: portable LLVM IR, and a plain twin.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ._jit import kernel
from ._simd import BYTES, Vectors, pointer

Array = NDArray[Any]

_TOGETHER = 4  # rows whose sums are independent of each other, so that none waits for the one before
_F32, _I64 = ir.FloatType(), ir.IntType(64)

# Fewest columns that vector code takes: one whole vector.
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
    """Write the squared distances of `query` from `n` rows of `d` columns, all float32 and d at least one vector."""
    v = Vectors(builder, _F32, width)
    with cgutils.for_range(builder, builder.udiv(n, _I64(_TOGETHER)), intp=_I64) as group:
        first = builder.mul(group.index, _I64(_TOGETHER))
        _emit_rows(v, _TOGETHER, query, d, rows, first, out)
    with cgutils.for_range_slice(
        builder, builder.sub(n, builder.urem(n, _I64(_TOGETHER))), n, _I64(1), intp=_I64, inc=True
    ) as (row, _):
        _emit_rows(v, 1, query, d, rows, row, out)


def _emit_rows(v: Vectors, count: int, query: Any, d: Any, rows: Any, first: Any, out: Any) -> None:
    """Emit the distances of `count` rows. The columns after the last whole vector are the end of one that overlaps."""
    b, lanes = v.builder, _I64(v.lanes)
    starts = [b.gep(rows, [b.mul(b.add(first, _I64(r)), d)]) for r in range(count)]
    sums = [cgutils.alloca_once(b, v.type) for _ in range(count)]
    for total in sums:
        b.store(v.constant(0.0), total)
    with cgutils.for_range(b, b.udiv(d, lanes), intp=_I64) as block:
        column = b.mul(block.index, lanes)
        x = v.load(query, column)
        for start, total in zip(starts, sums, strict=True):
            difference = b.fsub(x, v.load(start, column))
            b.store(v.multiply_add(difference, difference, b.load(total)), total)
    last, rest = b.sub(d, lanes), b.urem(d, lanes)
    lane = ir.Constant(ir.VectorType(_I64, v.lanes), list(range(v.lanes)))
    new = b.icmp_signed(">=", lane, v.splat(b.sub(lanes, rest)))
    x = v.load(query, last)
    for r, (start, total) in enumerate(zip(starts, sums, strict=True)):
        difference = b.select(new, b.fsub(x, v.load(start, last)), v.constant(0.0))
        whole = v.multiply_add(difference, difference, b.load(total))
        b.store(v.sum_of_elements(whole), b.gep(out, [b.add(first, _I64(r))]))


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
