"""The inner loops of kernel sums against their naive twins, on the vector path and on the portable one."""

from __future__ import annotations

import re

import naive
import numpy as np
import pytest
from llvmlite import binding, ir
from rounding import EXP_NEGATIVE, gamma, of_exponents, power_of_two, unit
from scipy.spatial.distance import cdist

from quests_md.errors import InputError
from quests_md.index import Index
from quests_md.information import ERRORS, log_kernel_sum, log_kernel_sum_of_few, pack
from quests_md.kernels import _simd_sum, kernel_sum
from quests_md.kernels._simd import vector_bytes
from quests_md.kernels._simd_panel import add_panels, exponents_plain, lanes_of, panel_width
from quests_md.kernels._simd_sum import ROWS, lanes, squares, sums_exp2
from quests_md.kernels.blocks import TILE, axes_of
from quests_md.kernels.jit import kernel

SINGLE, DOUBLE = np.float32, np.float64


@kernel
def call_panels(queries, active, numbers, tile, first, sums, columns):
    """Call the intrinsic, which exists in compiled code only."""
    add_panels(queries, active, numbers, tile, first, sums, columns, None, 0)


@kernel
def call_squares(rows, tile, out):
    """Call the intrinsic, which exists in compiled code only."""
    squares(rows, tile, out)


@kernel
def call_sums_exp2(x, shifts, out):
    """Call the intrinsic, which exists in compiled code only."""
    sums_exp2(x, shifts, out)


def sums(add, x, shifts):
    """Return what `add` writes for rows of exponents and their shifts."""
    out = np.full(len(x), np.nan)
    add(x, np.asarray(shifts, float), out)
    return out


def factors(d, dtype, columns=TILE, seed=0):
    """Return random rows and a tile in the layout of the kernels: the same columns, however wide vectors are."""
    rng, width = np.random.default_rng(seed), lanes(np.dtype(dtype).itemsize)
    rows, tile = rng.normal(size=d * ROWS), rng.normal(size=(columns, d)).reshape(-1, width, d)
    return rows.astype(dtype), np.ascontiguousarray(tile.swapaxes(1, 2), dtype)


def rows_of(n, seed, spread=0.01, width=63):
    """Return n rows some bandwidths apart."""
    return np.random.default_rng(seed).normal(0.0, spread, (n, width))


def tolerance(precision, dH):
    """Return what is promised of each precision, in nats."""
    absolute, relative = ERRORS[precision]
    return np.maximum(absolute, relative * np.abs(dH))


# -- the two loops ---------------------------------------------------------------------------------


def panels(d, dtype, first=None, groups=3, seed=0):
    """Return queries and references as `add_panels` takes them, with exponents from far below the limit to above it."""
    rng, width = np.random.default_rng(seed), panel_width(np.dtype(dtype).itemsize)
    first = min(8, d) if first is None else first
    spread = np.where(np.arange(d) < first, 1.0, 0.1)
    queries = (spread[:, None] * rng.normal(size=(groups, d, ROWS))).astype(dtype)
    tile = np.zeros((TILE // width, 2 + d, width), dtype)
    tile[:, 2:] = spread[:, None] * rng.normal(size=(len(tile), d, width))
    tile[:, 0] = -0.5 * (tile[:, 2 : 2 + first].astype(float) ** 2).sum(axis=1)
    tile[:, 1] = -0.5 * (tile[:, 2 + first :].astype(float) ** 2).sum(axis=1)
    squares = queries.astype(float) ** 2
    half = [0.5 * squares[:, :first].sum(axis=1), 0.5 * squares[:, first:].sum(axis=1)]
    limit = rng.uniform(-12.0, -4.0, (groups, ROWS)) - first
    return queries.reshape(groups, -1), np.stack([*half, limit], axis=1), tile


def terms_of(made, g, first):
    """Return the naive terms of a group, and how wrong the kernel may make them."""
    queries, numbers, tile = made
    expected = naive.add_panels(queries[g], numbers[g], tile, first)
    d = tile.shape[1] - 2
    # None of the numbers that are added up is larger than 100 in all, and of the rest 10; a power is wrong as it says.
    wrong = gamma(first + 6, tile.dtype) * 100.0 + gamma(d - first + 6, tile.dtype) * 10.0
    name = "short" if tile.dtype == SINGLE else "double"
    return expected, expected * (np.expm1(np.log(2.0) * wrong) + _simd_sum.EXP2_ERROR[name] + gamma(40, tile.dtype))


def near_the_limit(made, g):
    """Return the largest part of a sum that rounding may leave out or not: terms as small as the limit."""
    return TILE * 1e-3 * np.exp2(made[1][g, 2])


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize(("d", "first"), [(63, 8), (3, 3), (1, 1), (9, 8), (124, 8)])
def test_panels_agree_with_the_naive_twin(d, first, dtype):
    queries, numbers, tile = made = panels(d, dtype, first)
    active, groups = np.array([1, 0, 1], np.int8), len(queries)
    sums, columns = np.zeros((groups, ROWS * lanes_of(tile.itemsize)), dtype), np.full(TILE, 3.0)
    call_panels(queries, active, numbers, tile, first, sums, columns)
    alone = np.zeros_like(sums)
    call_panels(queries, active, numbers, tile, first, alone, None)
    assert np.array_equal(sums, alone)
    assert not sums[1].any()
    both, both_wrong = np.zeros(TILE), np.zeros(TILE)
    for g in (0, 2):
        expected, wrong = terms_of(made, g, first)
        actual = sums[g].reshape(ROWS, -1).sum(axis=1, dtype=float)
        assert np.all(np.abs(actual - expected.sum(axis=1)) <= wrong.sum(axis=1) + near_the_limit(made, g))
        both, both_wrong = both + expected.sum(axis=0), both_wrong + wrong.sum(axis=0) + near_the_limit(made, g).sum()
    assert np.all(np.abs(columns - 3.0 - both) <= both_wrong + 1e-14)
    assert (both > 0).mean() > 0.02


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_panels_that_the_first_coordinates_leave_out_have_no_terms(dtype):
    """All references of some panels are far away in the first coordinates: nothing else is read of these."""
    queries, numbers, tile = panels(28, dtype)
    tile[::2, 0] -= 1e6
    tile[::2, 10:] = np.nan
    sums, columns = np.zeros((3, ROWS * lanes_of(tile.itemsize)), dtype), np.zeros(TILE)
    call_panels(queries, np.ones(3, np.int8), numbers, tile, 8, sums, columns)
    assert np.isfinite(sums).all()
    assert not columns.reshape(len(tile), -1)[::2].any()
    assert columns.any()


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("d", [63, 3, 36])
def test_plain_exponents_agree_with_the_naive_twin(d, dtype):
    queries, numbers, tile = made = panels(d, dtype)
    out, first = np.empty(tile.shape[2]), min(8, d)
    for panel in range(len(tile)):
        for r in range(ROWS):
            needed = exponents_plain(queries[0], r, numbers[0], tile[panel], d, first, out)
            expected, wrong = terms_of((queries, numbers, tile[panel : panel + 1]), 0, first)
            powers = np.where(out > numbers[0, 2, r], np.exp2(out), 0.0) if needed else 0.0
            assert np.all(np.abs(powers - expected[r]) <= wrong[r] + near_the_limit(made, 0)[r] / TILE)


@pytest.mark.parametrize("measure", [call_squares, _simd_sum.squares_plain])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("d", [2, 16, 17, 64])
def test_squares_agree_with_the_naive_twin(d, dtype, measure):
    """All terms are positive: rows of equal entries, where most roundings go the same way, and random ones."""
    vector = measure is call_squares
    times = sum(_simd_sum._OF_SQUARES) + d // np.prod(_simd_sum._OF_SQUARES) + 1
    # A term is a difference, rounded once and squared, and a square. Not every processor fuses that with the sum.
    most = gamma(times + 2 + (vector and not _simd_sum.VECTOR), dtype)
    for seed in range(20):
        rows, tile = factors(d, dtype, seed=seed)
        if seed > 9:
            rows[:], tile[:] = rows[0], tile[:, :1]
        out = np.full((ROWS, TILE), np.nan, dtype)
        measure(rows, tile, out)
        assert np.all(np.abs(out / naive.squares(rows, tile) - 1.0) <= most)


def assert_sums(actual, x, shifts, of_power, off, additions):
    """Check sums of 2^(x + shift), a power being wrong by `of_power`, an exponent by `off`·u."""
    powers = naive.powers(x, shifts)
    wrong = of_power + of_exponents(off, x.dtype)
    most = (powers * wrong).sum(axis=1) + gamma(additions, x.dtype) * (powers * (1.0 + wrong)).sum(axis=1)
    assert np.all(np.abs(actual - powers.sum(axis=1)) <= most)


@pytest.mark.parametrize(("dtype", "largest"), [(SINGLE, 100.0), (DOUBLE, 900.0)])
def test_sums_of_powers_agree_with_the_naive_twin(dtype, largest):
    x = np.random.default_rng(1).uniform(-50.0, 0.0, (4, TILE)).astype(dtype)
    shifts = np.array([0.0, 0.3, -20.0, largest])
    off = np.abs(shifts)[:, None] + np.abs(x + shifts[:, None])  # the shift is rounded, and what it is added to
    # Each lane adds up its own powers, and then halves are added: the order is the code's, whatever the width.
    width = lanes(np.dtype(dtype).itemsize)
    additions = TILE // width + int(np.log2(width))
    assert_sums(sums(call_sums_exp2, x, shifts), x, shifts, power_of_two(dtype), off, additions)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_no_power_is_off_by_more_than_it_says(dtype):
    """One power beside others that vanish: the sum adds no rounding of its own."""
    exponents = np.linspace(-1.0, 1.0, 1001).astype(dtype)  # ½ is among them, where the polynomial is at its worst
    x = np.full((len(exponents), TILE), -1e30, dtype)
    x[np.arange(len(x)), np.arange(len(x)) % TILE] = exponents
    actual = sums(call_sums_exp2, x, np.zeros(len(x)))
    wrong = np.abs(actual / np.exp2(exponents.astype(np.longdouble)) - 1.0)
    assert np.all(wrong <= power_of_two(dtype))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_plain_sums_of_powers_agree_with_the_naive_twin(dtype):
    """In double precision whatever the rows are in."""
    x, shifts = np.random.default_rng(1).uniform(-50.0, 0.0, (3, TILE)).astype(dtype).astype(float), [0.0, -0.25, -7.0]
    off = 3.0 * np.abs(x + np.array(shifts)[:, None])  # the sum, ln 2 and the product
    actual = sums(_simd_sum.sums_exp2_plain, x.astype(dtype), shifts)
    assert_sums(actual, x, shifts, EXP_NEGATIVE, off, TILE)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_powers_that_vanish_add_nothing(dtype):
    x = np.full((1, TILE), -1e30, dtype)
    assert 0.0 <= sums(call_sums_exp2, x, [0.0]) < 1e-30
    x[0, 5] = 0.0
    assert sums(call_sums_exp2, x, [0.0]) == 1.0


@pytest.mark.parametrize("precision", ["single", "double"])
def test_what_moves_an_exponent_is_bounded_for_rows_far_from_the_centre(path, precision):
    """One query, two references: their exponents by products against differences in a wider precision."""
    rng = np.random.default_rng(31)
    for far in np.geomspace(0.01, 0.2, 12):
        row = rng.normal(size=(1, 63)) * np.geomspace(1.0, 0.01, 63)
        query = rng.normal(0.0, 0.1, (1, 63)) + row * (1.0 + far)
        reference = np.vstack([row, row * (1.0 - far)]) * far
        expected = naive.log_kernel_sum(query * far, reference, 0.015)
        actual = log_kernel_sum(query * far, reference, precision=precision)
        assert np.all(np.abs(actual - expected) <= tolerance(precision, expected))


# -- which path ------------------------------------------------------------------------------------


def test_the_vector_path_needs_wide_fused_multiply_adds():
    assert vector_bytes("x86_64-unknown-linux-gnu", "+avx2,+fma,+sse2") == 32
    assert vector_bytes("x86_64-pc-windows-msvc", "+avx2,+fma,+avx512f") == 64
    assert vector_bytes("aarch64-unknown-linux-gnu", "") == 16
    assert vector_bytes("arm64-apple-darwin", "") == 16
    assert vector_bytes("x86_64-unknown-linux-gnu", "+avx,+fma,-avx2") == 16
    assert vector_bytes("x86_64-unknown-linux-gnu", "-avx2,-fma,+sse2") == 0
    assert vector_bytes("x86_64-pc-windows-msvc", "+avx2,-fma") == 0
    assert vector_bytes("powerpc64le-unknown-linux-gnu", "") == 0


@pytest.fixture(params=["vector", "portable"])
def path(request, monkeypatch):
    """Force one of the two paths."""
    monkeypatch.setattr(_simd_sum, "VECTOR", request.param == "vector")
    return request.param


def test_the_portable_path_is_taken_where_it_is_forced(monkeypatch):
    taken = []
    real = kernel_sum.log_kernel_sum
    monkeypatch.setattr(kernel_sum, "log_kernel_sum", lambda *a: (taken.append(a[3]), real(*a)))
    monkeypatch.setattr(_simd_sum, "VECTOR", False)
    log_kernel_sum(rows_of(3, 1), rows_of(5, 2))
    assert taken == [1]


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("n", [1, TILE - 1, TILE, TILE + 1, 1000])
def test_both_paths_agree_with_the_naive_twin(path, n, precision):
    query, reference = rows_of(101, 1, 0.02), rows_of(n, 2, 0.02)
    expected = naive.log_kernel_sum(query, reference, 0.015)
    actual = log_kernel_sum(query, reference, precision=precision)
    assert np.all(np.abs(actual - expected) <= tolerance(precision, expected))


@pytest.mark.parametrize("element", [ir.FloatType(), ir.DoubleType()])
def test_the_vector_code_compiles_for_arm(element):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple("aarch64-linux-gnu")
    except RuntimeError:
        pytest.skip("this llvmlite knows no aarch64")
    module = ir.Module()
    values, count = element.as_pointer(), ir.IntType(64)
    measure = ir.Function(module, ir.FunctionType(ir.VoidType(), [values, values, count, values, count]), "measure")
    builder = ir.IRBuilder(measure.append_basic_block())
    _simd_sum._squares_of_panel(builder, *measure.args)
    builder.ret_void()
    powers = ir.Function(module, ir.FunctionType(ir.DoubleType(), [values, count, ir.DoubleType()]), "powers")
    builder = ir.IRBuilder(powers.append_basic_block())
    builder.ret(_simd_sum._sum_of_powers(builder, *powers.args))

    machine = target.create_target_machine(cpu="neoverse-n1", opt=3)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert assembly.count("fmla") >= 12  # vectors, fused
    assert "bl" not in re.findall(r"^\s+(\w+)", assembly, re.M)  # nothing is left to a library


# -- the sums --------------------------------------------------------------------------------------


def test_single_precision_holds_up_to_a_thousand_nats(path):
    reference = rows_of(700, 3, 0.008)
    direction = np.random.default_rng(4).normal(size=63)
    far = np.linspace(0.0, 0.75, 120)[:, None] * direction / np.linalg.norm(direction)
    query = rows_of(120, 5, 0.005) + far
    expected = naive.log_kernel_sum(query, reference, 0.015)
    assert -expected.max() < 10 < 1e3 < -expected.min()
    actual = log_kernel_sum(query, reference, precision="single")
    assert np.all(np.abs(actual - expected) <= tolerance("single", expected))


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("spread", [1e-5, 0.3, 30.0, 1e4])
def test_rows_of_any_scale_hold_their_promise(spread, precision):
    """Where products round too much, differences take over."""
    reference = rows_of(300, 6, spread)
    query = np.vstack([reference[:50] + rows_of(50, 7, 0.001), rows_of(50, 8, spread)])
    expected = naive.log_kernel_sum(query, reference, 0.015)
    actual = log_kernel_sum(query, reference, precision=precision)
    # Beside the promise: rows round by u of their length where the centre of a block is subtracted, u of double, as
    # the differences are that take over. A term at a distance ρ moves by ρ/h² of that, and a sum by the mean of terms.
    distances = cdist(query, reference)
    moved = 2.0 * unit(DOUBLE) * (np.linalg.norm(query, axis=1)[:, None] + np.linalg.norm(reference, axis=1))
    weights = np.exp(-0.5 * (distances / 0.015) ** 2 - expected[:, None])
    rounding = (weights * distances * moved).sum(axis=1) / 0.015**2
    assert np.all(np.abs(actual - expected) <= tolerance(precision, expected) + rounding)


@pytest.mark.parametrize(("n", "spread"), [(500, 0.01), (3, 1.0), (1, 1.0), (0, 1.0), (300, 0.0)])
def test_axes_are_orthonormal_or_zero(n, spread):
    axes = axes_of(rows_of(n, 27) * spread, 4)
    lengths = np.round(np.linalg.norm(axes, axis=1))
    assert lengths[0] == (n > 1 and spread > 0.0)
    wide = axes.astype(np.longdouble)
    # The last projection leaves the rounding of one product of 63 terms, and of a difference, three sums and a factor;
    # so does the length of an axis.
    assert np.all(np.abs(wide @ wide.T - np.diag(lengths)) <= gamma(63 + 8, DOUBLE))


def test_wide_blocks_are_summed_by_differences_in_their_own_precision(path):
    """References far apart from each other share blocks: too wide for products, not for differences."""
    reference = np.vstack([rows_of(500, 22, 0.01), rows_of(300, 23, 0.03)])
    query = np.vstack([rows_of(60, 24, 0.01), rows_of(60, 25, 0.03), reference[-60:] + rows_of(60, 26, 0.002)])
    expected = naive.log_kernel_sum(query, reference, 0.015)
    blocks = pack(reference, 0.015, "single")
    actual = log_kernel_sum(query, reference, blocks=blocks, precision="single")
    assert np.all(np.abs(actual - expected) <= tolerance("single", expected))


@pytest.mark.parametrize("precision", ["single", "double"])
def test_blocks_that_are_left_out_change_nothing(precision):
    near, away = rows_of(200, 9, 0.01), rows_of(5000, 10, 0.01) + 0.4
    query = rows_of(40, 11, 0.01)
    expected = naive.log_kernel_sum(query, np.vstack([near, away]), 0.015)
    actual = log_kernel_sum(query, np.vstack([near, away]), precision=precision)
    assert np.all(np.abs(actual - expected) <= tolerance(precision, expected))


@pytest.mark.parametrize("precision", ["single", "double"])
def test_a_sum_depends_neither_on_the_batch_nor_on_threads(path, precision):
    query, reference = rows_of(301, 12, 0.04), rows_of(700, 13, 0.02)
    whole = log_kernel_sum(query, reference, precision=precision, threads=1)
    for size in (1, 5, 6, 7, 96, 97):
        starts = range(0, min(301, 20 * size), size)
        parts = np.concatenate([log_kernel_sum(query[i : i + size], reference, precision=precision) for i in starts])
        assert np.array_equal(parts, whole[: len(parts)])
    assert np.array_equal(log_kernel_sum(query, reference, precision=precision, threads=3), whole)


@pytest.mark.parametrize("precision", ["single", "double"])
def test_nothing_known_is_minus_infinity_and_the_same_row_is_zero(precision):
    row = rows_of(1, 14, 1.0).astype(SINGLE).astype(DOUBLE)  # as the rows of an index are
    assert log_kernel_sum(row, np.empty((0, 63)), precision=precision) == -np.inf
    assert log_kernel_sum(row, row, precision=precision) == 0.0
    assert log_kernel_sum([[1e308, 1e308]], [[0.0, 0.0]], precision=precision) == -np.inf
    assert log_kernel_sum([[1e100, 0.0]], [[0.0, 0.0]], precision=precision) == pytest.approx(-0.5e200 / 0.015**2)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_kept_blocks_give_the_same_as_fresh_ones(precision, sort):
    query, reference = rows_of(50, 15), rows_of(400, 16)
    kept = pack(reference, 0.015, precision, sort=sort)
    actual = log_kernel_sum(query, reference, blocks=kept, precision=precision)
    expected = naive.log_kernel_sum(query, reference, 0.015)
    assert np.all(np.abs(actual - expected) <= tolerance(precision, expected))
    assert sorted(kept.order) == list(range(400))


# -- few queries, many references ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("n", [1, 31, 33, 8192, 8193, 20000])
def test_sums_of_few_agree_with_the_naive_twin(n, dtype):
    reference, centre = rows_of(n, 17).astype(dtype), rows_of(1, 18, 0.1)[0]
    query = rows_of(9, 19) + np.linspace(0.0, 0.2, 9)[:, None]
    expected = naive.log_kernel_sum(query, reference.astype(float), 0.015)
    one, three = (
        log_kernel_sum_of_few(query + centre, reference, 0.015, centre=centre, threads=threads) for threads in (1, 3)
    )
    assert np.all(np.abs(one - expected) <= 1e-12 * np.maximum(1.0, np.abs(expected)))  # as it promises
    assert np.array_equal(one, three)
    alone = [log_kernel_sum_of_few(q[None] + centre, reference, 0.015, centre=centre) for q in query]
    assert np.array_equal(np.concatenate(alone), one)


def test_sums_of_few_at_the_ends_of_the_scale():
    row, origin = rows_of(1, 14, 1.0), np.zeros(63)
    assert log_kernel_sum_of_few(row, np.empty((0, 63)), 0.015, centre=origin) == -np.inf
    assert log_kernel_sum_of_few(row, row, 0.015, centre=origin) == 0.0
    for query, expected in ((1e308, -np.inf), (1e100, -0.5e200 / 0.015**2)):
        zeros = np.zeros((3, 1))
        actual = log_kernel_sum_of_few(np.array([[query]]), zeros, 0.015, centre=zeros[0])
        assert actual == pytest.approx(expected)


# -- against an index ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_single_precision_keeps_its_promise_against_an_index(structure, threads):
    index = Index.build([structure("si_rattled")])
    query = [structure("triclinic"), structure("si_rattled"), structure("small")]
    exact = index.log_kernel_sum(query)
    single = index.log_kernel_sum(query, threads, precision="single")
    assert np.all(np.abs(single - exact) <= tolerance("single", exact))
    assert not np.array_equal(single, exact)
    assert np.array_equal(index.log_kernel_sum(query), exact)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision must be one of double, single, not 'half'"):
        log_kernel_sum(rows_of(2, 1), rows_of(2, 2), precision="half")
