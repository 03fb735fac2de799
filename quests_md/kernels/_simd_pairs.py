"""The inner loop of a kernel sum of a dataset against itself: powers of two, added to their rows and to their columns.

As those of `_simd_sum`: vector code, and a plain twin in numpy's words.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ._jit import kernel
from ._simd_sum import ROWS, _constant, _exp2, _load, _splat, _store, _sum_of_elements, _vector_of, exp_negative

Array = NDArray[Any]
Value = Any  # of llvmlite, which has no types

_INT64 = ir.IntType(64)
_LN2 = math.log(2.0)


@kernel
def add_exp2_plain(x: Array, shifts: Array, rows: Array, columns: Array) -> None:
    """As `add_exp2`, for x_j + shift ≤ 0; terms less than e^-60 are nothing."""
    for r in range(x.shape[0]):
        total = 0.0
        for j in range(x.shape[1]):
            term = exp_negative((x[r, j] + shifts[r]) * _LN2)
            total += term
            columns[j] += term
        rows[r] += total


@intrinsic
def add_exp2(typing_context: Any, x: Any, shifts: Any, rows: Any, columns: Any) -> Any:
    """Add 2^(x_rj + shift_r) to ``rows[r]`` and ``columns[j]``, for all r and j; all float64.

    Rows of `x` are a multiple of `lanes` long. A term below the smallest normal number is that number: it is nothing.
    """
    if not all(array.layout == "C" and array.dtype == types.float64 for array in (x, shifts, rows, columns)):
        return None
    signature = types.void(x, shifts, rows, columns)

    def generate(context: Any, builder: Value, signature: Any, arguments: Any) -> Value:
        x, shifts, rows, columns = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        vector = _vector_of(x.data)
        _, length = cgutils.unpack_tuple(builder, x.shape)
        moved = [_splat(builder, builder.load(builder.gep(shifts.data, [_INT64(r)])), vector) for r in range(ROWS)]
        sums = [cgutils.alloca_once(builder, vector) for _ in range(ROWS)]
        for total in sums:
            builder.store(_constant(vector, 0.0), total)
        lane = _INT64(vector.count)
        with cgutils.for_range(builder, builder.sdiv(length, lane), intp=_INT64) as part:
            start = builder.mul(part.index, lane)
            target = builder.gep(columns.data, [start])
            column = _load(builder, target, 0, vector)
            for r, (shift, total) in enumerate(zip(moved, sums, strict=True)):
                place = builder.gep(x.data, [builder.add(start, builder.mul(length, _INT64(r)))])
                power = _exp2(builder, builder.fadd(_load(builder, place, 0, vector), shift))
                builder.store(builder.fadd(builder.load(total), power), total)
                column = builder.fadd(column, power)
            _store(builder, column, target, 0)
        for r, total in enumerate(sums):
            place = builder.gep(rows.data, [_INT64(r)])
            builder.store(builder.fadd(builder.load(place), _sum_of_elements(builder, builder.load(total))), place)
        return context.get_dummy_value()

    return signature, generate
