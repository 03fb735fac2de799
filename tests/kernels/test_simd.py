"""The emitted vector code against its naive twins, for every width of vectors, and for another processor."""

from __future__ import annotations

import ctypes
import itertools

import naive
import numpy as np
import pytest
from llvmlite import binding, ir
from numba.core.registry import cpu_target
from rounding import gamma, of_exponents, power_of_two

from quests_md.kernels import _simd, _simd_panel, _simd_sum

SIZES = (16, 24, 28, 32)  # of the networks
ELEMENTS = {np.float32: ir.FloatType(), np.float64: ir.DoubleType()}


F64, I64 = ir.DoubleType(), ir.IntType(64)


def module(name, arguments, emit):
    """Return the IR of a module that holds one function of these arguments, whose body is emitted."""
    made = ir.Module()
    function = ir.Function(made, ir.FunctionType(ir.VoidType(), arguments), name)
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, *function.args)
    builder.ret_void()
    return str(made)


def sums_module(dtype, width, size):
    element = ELEMENTS[dtype]

    def emit(builder, near, out, n):
        _simd.emit_sorted_sums(builder, element, width, size, near, n, out)

    return module("sums", [element.as_pointer(), F64.as_pointer(), I64], emit)


def ranks_module(width):
    def emit(builder, values, out, n):
        _simd.emit_ranks(builder, width, values, n, out)

    return module("ranks", [ir.FloatType().as_pointer(), ir.IntType(32).as_pointer(), I64], emit)


def inside_module(width):
    def emit(builder, points, rows, squares, found, stride, first, last, centre, limit, n):
        ends, limit = (first, last), builder.load(limit)
        total = _simd.emit_inside(builder, width, points, stride, ends, centre, limit, rows, n, squares)
        builder.store(total, found)

    pointers = [F64.as_pointer(), I64.as_pointer(), F64.as_pointer(), I64.as_pointer()]
    return module("inside", [*pointers, I64, I64, I64, I64, F64.as_pointer(), I64], emit)


def near_module(dtype, width):
    element = ELEMENTS[dtype]

    def emit(builder, points, order, rows, r2, near, x1, cutoff, stride, centre, n):
        points, chosen = (points, stride, centre), (order, rows, r2)
        _simd.emit_near(builder, element, width, points, chosen, n, builder.load(cutoff), near, x1)

    f64, i64 = F64.as_pointer(), I64.as_pointer()
    return module("near", [f64, i64, i64, f64, element.as_pointer(), f64, f64, I64, I64, I64], emit)


def distances_module(width):
    def emit(builder, query, rows, out, d, n):
        _simd_sum.emit_squared_distances(builder, width, query, d, rows, n, out)

    single = ir.FloatType().as_pointer()
    return module("distances", [single, single, single, I64, I64], emit)


def squares_module(dtype, width, monkeypatch):
    """Return the module of squared distances of six rows from two vectors of columns."""
    monkeypatch.setattr(_simd_sum, "VECTOR_BYTES", width)
    pointer = ELEMENTS[dtype].as_pointer()

    def body(builder, rows, columns, out, d, stride):
        _simd_sum._squares_of_panel(builder, rows, columns, d, out, stride)

    return module("panel", [pointer, pointer, pointer, I64, I64], body)


def panels_module(dtype, width):
    """Return the module of sums over panels."""
    element = ELEMENTS[dtype].as_pointer()

    def body(builder, *arguments):
        lanes = width // np.dtype(dtype).itemsize
        counts = *arguments[6:], builder.add(arguments[9], I64(_simd_panel.NORMS)), I64(0)
        _simd_panel.emit_panels(builder, lanes, ELEMENTS[dtype], counts, [*arguments[:6], None])

    pointers = [element, ir.IntType(8).as_pointer(), F64.as_pointer(), element, element, F64.as_pointer()]
    return module("panels", [*pointers, *[I64] * 4], body)


def powers_module(dtype, width, monkeypatch):
    monkeypatch.setattr(_simd_sum, "VECTOR_BYTES", width)

    def body(builder, values, shift, out, n):
        builder.store(_simd_sum._sum_of_powers(builder, values, n, builder.load(shift)), out)

    return module("powers", [ELEMENTS[dtype].as_pointer(), F64.as_pointer(), F64.as_pointer(), I64], body)


def machine(triple=None):
    """Return what compiles for the processor that numba compiles for, or for the plainest one of another kind."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    if triple is None:
        triple, name, features = cpu_target.target_context.codegen().magic_tuple()
        return binding.Target.from_triple(triple).create_target_machine(name, features, opt=3, jit=True)
    return binding.Target.from_triple(triple).create_target_machine(opt=3)


def call(text, name, *arguments):
    """Compile a module for this processor and call its function with arrays (as pointers) and whole numbers."""
    engine = binding.create_mcjit_compiler(binding.parse_assembly(text), machine())
    engine.finalize_object()
    values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    kinds = [ctypes.c_void_p if isinstance(a, np.ndarray) else ctypes.c_int64 for a in arguments]
    ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(name))(*values)


def environment(n, seed=0, cutoff=5.0):
    """Return `near` of n neighbours, none nearer to another than 1.5 Å, nearest first."""
    rng, found = np.random.default_rng(seed), np.empty((0, 3))
    while len(found) < n:
        place = rng.uniform(-cutoff, cutoff, 3)
        if 1.5 < np.linalg.norm(place) < cutoff and (np.linalg.norm(found - place, axis=1) > 1.5).all():
            found = np.vstack([found, place])
    near = np.zeros((4, _simd.SPAN))
    near[0] = cutoff * (2.0 + np.arange(_simd.SPAN))
    near[:3, :n] = found.T
    near[3, :n] = 1.0 - (found**2).sum(axis=1) / cutoff**2
    return near


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 16])
def test_a_network_that_sorts_zeros_and_ones_sorts_everything(n):
    """So says the 0-1 principle (Knuth 5.3.4, Z)."""
    values = np.array(list(itertools.product([0, 1], repeat=n)), dtype=np.int8).T
    for i, j in _simd.network(n):
        values[i], values[j] = np.minimum(values[i], values[j]), np.maximum(values[i], values[j])
    assert (np.diff(values, axis=0) >= 0).all()


@pytest.mark.parametrize("n", range(15, 33))
def test_networks_sort_random_values_with_ties(n):
    values = np.random.default_rng(n).integers(0, n, (n, 20000))
    expected = np.sort(values, axis=0)
    for i, j in _simd.network(n):
        values[i], values[j] = np.minimum(values[i], values[j]), np.maximum(values[i], values[j])
    np.testing.assert_array_equal(values, expected)


# -- against the naive twins -----------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("dtype", "of_root"), [(np.float32, 7), (np.float64, 3)])
@pytest.mark.parametrize("n", [1, 13, 20, 27, 32])
def test_sorted_sums_agree_with_the_naive_twin(width, dtype, of_root, n):
    """Of n terms with 1/√x, which is off by `of_root`·u.

    In single precision it starts from an estimate that is good to 1.5·2⁻¹² on every x86 processor; one step of Newton
    leaves 1.5 times the square of that, 3.4 u, and rounds 3.6 times. In double precision an estimate in single leaves
    nothing, and two roundings count. Other processors have better estimates, or divide.
    """
    size = next(size for size in SIZES if n <= size)
    near, out = environment(n, seed=n).astype(dtype), np.full(_simd.WIDTH, np.nan)
    expected = naive.sorted_sums(near, n, size)
    call(sums_module(dtype, width, size), "sums", near, out, n)
    out = out[:size]
    # Differences round once and their squares add up in 3: half of 5 counts below the root. Two factors, n − 1 sums.
    # If no term is off by more than that, no place of a sorted column is.
    most = gamma(3 + of_root + 2 + n - 1, dtype)
    np.testing.assert_allclose(out, expected, rtol=most)
    assert (out[n - 1 :] == 0.0).all()


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_neighbours_at_one_place_give_inf(dtype):
    near, out = environment(20).astype(dtype), np.empty(_simd.WIDTH)
    near[:3, 7] = near[:3, 3]
    call(sums_module(dtype, 32, 24), "sums", near, out, 20)
    assert out[0] == np.inf
    assert np.isfinite(out[1:24]).all()


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("n", [0, 1, 8, 43])
def test_ranks_agree_with_the_naive_twin(width, n):
    more = _simd.RANKED * width // 4
    values = (np.random.default_rng(n).integers(0, 30, n + more) / 7.0).astype(np.float32)  # some are equal
    out = np.full(n + more, -1, np.int32)
    call(ranks_module(width), "ranks", values, out, n)
    np.testing.assert_array_equal(out[:n], naive.ranks(values[:n]))


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("first", "last"), [(0, 50), (3, 4), (7, 7), (10, 29), (48, 50)])
def test_points_inside_agree_with_the_naive_twin(width, first, last):
    points = np.full((3, 50 + 8), 0.1)  # beyond the last point, others that would be inside
    points[:, :50] = np.random.default_rng(last).normal(size=(3, 50))
    for centre in (3, 28, 49):
        rows, squares, found = np.full(50 + 2 + 8, -1), np.full(50 + 8, np.nan), np.zeros(1, np.int64)
        rows[:2] = 77, 78
        limit = np.array([2.5])
        call(inside_module(width), "inside", points, rows, squares, found, 58, first, last, centre, limit, 2)
        expected = naive.inside(points, first, last, centre, 2.5)
        assert rows[: found[0]].tolist() == [77, 78, *expected]
        vectors = np.asarray(points[:, expected] - points[:, [centre]], naive.WIDE)
        np.testing.assert_allclose(squares[expected], (vectors**2).sum(axis=0), rtol=gamma(5, float))


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("n", [0, 1, 12, 32])
def test_near_agrees_with_the_naive_twin(width, dtype, n):
    rng = np.random.default_rng(n)
    points, cutoff = rng.normal(size=(3, 90 + 8)), 5.0
    rows, order = rng.permutation(89)[:40], rng.permutation(40)
    r2 = ((points[:, rows] - points[:, [89]]) ** 2).sum(axis=0)
    near, x1 = np.full((4, _simd.SPAN), np.nan, dtype), np.full(_simd.WIDTH, np.nan)
    call(near_module(dtype, width), "near", points, order, rows, r2, near, x1, np.array([cutoff]), 98, 89, n)
    expected, first = naive.near(points[:, rows[order[:n]]] - points[:, [89]], r2[order[:n]], cutoff)
    np.testing.assert_allclose(near[:, : _simd.WIDTH], expected, rtol=gamma(4, dtype), atol=gamma(2, dtype))
    np.testing.assert_allclose(x1[:n], first, rtol=gamma(12, float))


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_a_neighbour_at_the_place_of_the_centre_gives_inf(dtype):
    points, rows, r2 = np.ones((3, 10)), np.arange(1, 4), np.array([0.0, 1.0, 4.0])
    near, x1 = np.empty((4, _simd.SPAN), dtype), np.empty(_simd.WIDTH)
    call(near_module(dtype, 32), "near", points, rows - 1, rows, r2, near, x1, np.array([5.0]), 10, 0, 3)
    assert np.isinf(x1[:3]).tolist() == [True, False, False]


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("d", [16, 17, 31, 32, 63, 64, 65])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 7, 32])
def test_squared_distances_agree_with_the_naive_twin(width, d, n):
    rng = np.random.default_rng(d)
    query, rows = rng.normal(size=d).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32)
    out = np.full(n + 1, np.nan, np.float32)
    call(distances_module(width), "distances", query, rows, out, d, n)
    # A difference, rounded once and squared, and a square, in a sum of d terms.
    np.testing.assert_allclose(out[:n], naive.squared_distances(query, rows), rtol=gamma(d + 2, np.float32))
    assert np.isnan(out[n])


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("d", [1, 17, 64, 300])
def test_squares_have_the_same_digits_for_every_width(dtype, d, monkeypatch):
    """An element of a vector is a sum of its own, so the width does not matter. `test_kernel_sum` has the twins."""
    rng = np.random.default_rng(d)
    rows, columns = rng.normal(size=(d, _simd_sum.ROWS)).astype(dtype), rng.normal(size=(d, 64)).astype(dtype)
    found = []
    for width in (16, 32, 64):
        lanes = 2 * width // np.dtype(dtype).itemsize
        out, text = np.full((_simd_sum.ROWS, 64), np.nan, dtype), squares_module(dtype, width, monkeypatch)
        for first in range(0, 64, lanes):
            part = np.ascontiguousarray(columns[:, first : first + lanes])
            call(text, "panel", rows, part, out[:, first:], d, 64)
        found.append(out)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("d", [63, 19, 2])
def test_panels_agree_with_the_naive_twin_for_every_width(d, dtype, width):
    """Only the sums of columns are compared, because these do not depend on lanes."""
    rng, n, first = np.random.default_rng(d), 64, min(8, d)
    spread = np.where(np.arange(d) < first, 1.0, 0.1)[:, None]
    a, b = (spread * rng.normal(size=(d, 6))).astype(dtype), (spread * rng.normal(size=(d, n))).astype(dtype)
    halves = [[0.5 * (x[part].astype(float) ** 2).sum(axis=0) for part in np.split(range(d), [first])] for x in (a, b)]
    numbers = np.array([*halves[0], np.full(6, -3.0 * first)])
    lanes = width // np.dtype(dtype).itemsize
    tile = np.vstack([-halves[1][0], -halves[1][1], b]).astype(dtype)
    tile = np.ascontiguousarray(tile.reshape(2 + d, n // (2 * lanes), 2 * lanes).swapaxes(0, 1))
    sums, columns, active = np.zeros(6 * lanes, dtype), np.zeros(n), np.ones(1, np.int8)
    arrays = a.ravel(), active, numbers, tile, sums, columns
    call(panels_module(dtype, width), "panels", *arrays, 1, len(tile), first, d)
    expected = naive.add_panels(a.ravel(), numbers, tile, first)
    rtol = 1e-5 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(columns, expected.sum(axis=0).astype(float), rtol=rtol)
    summed = sums.reshape(6, -1).sum(axis=1, dtype=float)
    np.testing.assert_allclose(summed, expected.sum(axis=1).astype(float), rtol=rtol)
    assert (expected > 0).any()


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_sums_of_powers_agree_with_the_naive_twin(dtype, width, monkeypatch):
    """The shift is a number of double precision, and of single precision nothing is lost of it."""
    x = np.random.default_rng(1).uniform(-20.0, 0.0, 256).astype(dtype)
    shift, out = np.array([-300.1]), np.empty(1)
    x += dtype(300.0)
    call(powers_module(dtype, width, monkeypatch), "powers", x, shift, out, 256)
    powers = naive.powers(x[None], shift)
    # An exponent is rounded once it is moved, by at most 20.1 u; then come the power, and 256 sums at most.
    most = power_of_two(dtype) + of_exponents(20.1, dtype) + gamma(256, dtype)
    assert abs(out[0] / powers.sum() - 1.0) <= most


# -- other processors ------------------------------------------------------------------------------


@pytest.mark.parametrize("triple", ["aarch64-unknown-linux-gnu", "arm64-apple-macosx", "x86_64-unknown-linux-gnu"])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_the_code_compiles_for_other_processors(triple, dtype):
    try:
        compiler = machine(triple)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite compiles for no {triple}: {error}")
    texts = sums_module(dtype, 16, 32), ranks_module(16), inside_module(16), near_module(dtype, 16)
    for text in (*texts, distances_module(16), panels_module(dtype, 16)):
        parsed = binding.parse_assembly(text)
        assert len(compiler.emit_object(parsed)) > 500
        assembly = compiler.emit_assembly(parsed)
        if not triple.startswith("x86"):
            assert "\tbl\t" not in assembly, "an instruction became a call into a library"
            assert "fminnm" in assembly or "minnum" not in text


def test_no_instruction_of_one_processor_is_named():
    sums = (sums_module(np.float32, 64, 32), sums_module(np.float64, 64, 32))
    others = near_module(np.float32, 64), distances_module(64), panels_module(np.float32, 64)
    for text in (*sums, ranks_module(64), inside_module(64), *others):
        assert "llvm.x86" not in text
        assert "llvm.aarch64" not in text
