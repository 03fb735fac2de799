"""Local residuals against their naive twin: kernels, indexes, left-out frames, and which kernel is chosen."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md.errors import InputError
from quests_md.index import Index, Residuals
from quests_md.index._local import choose_squarings, measure_left_out
from quests_md.index._parts import join_residuals
from quests_md.information import local_residuals, pack
from quests_md.kernels import kernel_sum
from quests_md.kernels.blocks import empty_blocks
from quests_md.kernels.blocks import pack as fill

H = 0.015
NAME = {"name": "a potential", "fingerprint": "0" * 64, "origin": "training"}


def rows_of(n, seed, spread=0.01, width=63):
    """Return rows of several kinds: dense, spread, and some twice."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0.4, 0.0, width) + rng.normal(0.0, 1.0, (n, width)) * rng.choice([0.1, 1.0], (n, 1)) * spread
    rows[n // 2 : n // 2 + n // 8] = rows[: n // 8]
    return rows


def errors_of(n, seed, unknown=0.1):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < unknown, np.nan, rng.gamma(2.0, 0.1, n))


def ask(query, rows, errors, precision="double", squarings=0, threads=1):
    blocks = pack(rows, H, precision, residuals=errors, squarings=squarings)
    return local_residuals(query, blocks, np.zeros(rows.shape[1]), threads)


@pytest.mark.parametrize("squarings", [0, 1, 2])
@pytest.mark.parametrize(("precision", "error"), [("double", 1e-5), ("single", 2e-3)])
@pytest.mark.parametrize("n", [1, 255, 257, 3000])
def test_local_residuals_agree_with_the_naive_twin(n, precision, error, squarings):
    """Terms that do not matter to dH are left out, and matter a little here: weights fall off more slowly."""
    rows, errors = rows_of(n, 0), errors_of(n, 1, unknown=0.0 if n == 1 else 0.1)
    query = rows_of(50, 2)
    sums, local = ask(query, rows, errors, precision, squarings)
    absolute, relative = {"double": (1e-10, 1e-10), "single": (1e-4, 1e-6)}[precision]
    np.testing.assert_allclose(sums, naive.log_kernel_sum(query, rows, H), atol=absolute, rtol=relative)
    np.testing.assert_allclose(local[:, 0], naive.local_residuals(query, rows, errors, H, squarings), atol=error)


def test_far_away_the_nearest_reference_decides():
    """No 0/0 and no overflow: of references at many distances, and of one that is hit exactly."""
    rows = rows_of(400, 3)
    rows[7] += 1.0
    errors = errors_of(400, 4, 0.0)
    query = np.concatenate([rows[7:8] + 30.0, rows[7:8] + 1e-9, rows[20:21], rows[:1] - 500.0])
    for squarings in (0, 1, 2):
        _, local = ask(query, rows, errors, squarings=squarings)
        assert local[0, 0] == pytest.approx(errors[7], abs=1e-12)
        assert local[1, 0] == pytest.approx(errors[7], abs=1e-12)
        assert np.isfinite(local).all()


def test_blocks_that_are_summed_by_differences_have_residuals_too():
    rng = np.random.default_rng(5)
    rows = rng.normal(0.0, 300.0, (300, 9))
    rows = np.concatenate([rows, rows + rng.normal(0.0, 0.01, rows.shape)])
    errors = errors_of(600, 6, 0.0)
    query = rows[::7] + 0.001
    expected = naive.local_residuals(query, rows, errors, H)
    np.testing.assert_allclose(ask(query, rows, errors)[1][:, 0], expected, atol=1e-6)


def test_plain_loops_give_the_same():
    rows, errors, query = rows_of(700, 7), errors_of(700, 8), rows_of(40, 9)
    blocks = empty_blocks(rows, np.arange(700), H, np.float64, False, True, errors, 1)
    fill(blocks, 0, len(blocks.tiles))
    out, local = np.empty(40), np.empty((40, 2))
    kernel_sum.log_kernel_sum(query, np.zeros(63), blocks, 1, -np.inf, 0, 40, out, local)
    sums, expected = ask(query, rows, errors, squarings=1)
    np.testing.assert_allclose(out, sums, atol=1e-10)
    np.testing.assert_allclose(local, expected, atol=1e-9)


def test_neither_threads_nor_other_queries_change_a_digit():
    rows, errors, query = rows_of(2000, 10), errors_of(2000, 11), rows_of(300, 12)
    whole = ask(query, rows, errors)[1]
    assert np.array_equal(ask(query, rows, errors, threads=3)[1], whole)
    assert np.array_equal(ask(query[41:47], rows, errors)[1], whole[41:47])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 199))
def test_two_sets_of_references_join_to_one(seed, cut):
    rows, errors, query = rows_of(200, seed), errors_of(200, seed + 1), rows_of(20, seed + 2)
    parts = [ask(query, rows[part], errors[part])[1] for part in (slice(0, cut), slice(cut, None))]
    joined = join_residuals(join_residuals(None, parts[0]), parts[1])
    np.testing.assert_allclose(joined, ask(query, rows, errors)[1], atol=1e-5)
    assert np.all(joined[:, 0] <= np.nanmax(errors) + 1e-12)


def test_where_no_reference_that_matters_has_a_residual_there_is_none():
    """Far references say nothing about what only references without a label are near to."""
    rows, errors = rows_of(300, 13), errors_of(300, 14, 0.0)
    rows[:100] += 2.0
    errors[:100] = np.nan
    s = ask(rows, rows, errors)[1][:, 0]
    assert np.isnan(s[:100]).all()
    assert np.isfinite(s[100:]).all()
    assert np.isnan(ask(rows, rows, np.full(300, np.nan))[1][:, 0]).all()


# -- an index ----------------------------------------------------------------------------------------------------------


def index_of(frames=12, per=40, seed=0, unknown=0.0):
    """Return an index of own descriptors with residuals that follow a column of the rows."""
    rows = rows_of(frames * per, seed)
    index = Index.from_descriptors(rows, H, frame_offsets=np.arange(frames + 1) * per)
    errors = np.abs(rows[:, 0] - 0.4) * 10.0 + 0.01
    errors[np.random.default_rng(seed).random(len(errors)) < unknown] = np.nan
    return index.with_residuals(Residuals(**NAME, values=errors[index.order])), rows, errors


def test_an_index_answers_with_dH_and_local_residuals():
    index, rows, errors = index_of(unknown=0.2)
    query = rows_of(60, 99)
    dH, s = index.local_residuals(query)
    np.testing.assert_allclose(dH, index.delta_entropy(query), atol=1e-10)
    np.testing.assert_allclose(s, naive.local_residuals(query, rows, errors, H), atol=1e-5)
    assert np.array_equal(index.local_residuals(query, potential="a potential")[1], s)
    with pytest.raises(InputError, match="not of 'another'"):
        index.local_residuals(query, potential="another")


def test_a_left_out_residual_is_that_of_the_other_frames():
    index, rows, _ = index_of(frames=5)
    asked = np.arange(0, len(rows), 7)
    residuals = index.residuals_of()
    _, found = measure_left_out(index, residuals, asked)
    frame = index.order // 40
    centred = index.rows.astype(float)
    for place, row in enumerate(asked):
        others = frame != frame[row]
        expected = naive.local_residuals(centred[[row]], centred[others], residuals.values[others], H)
        assert found[place] == pytest.approx(expected[0], abs=2e-3)


def test_the_kernel_that_ranks_best_is_chosen():
    """Errors that change within a fraction of a bandwidth want a narrow kernel; noise beside a trend a wide one."""
    index, _, _ = index_of(frames=20)
    chosen = choose_squarings(index, index.residuals_of())
    assert chosen.squarings in (0, 1, 2)
    ranks = []
    asked = np.arange(len(index))
    for squarings in (0, 1, 2):
        _, s = measure_left_out(index, Residuals(**NAME, values=chosen.values, squarings=squarings), asked)
        ranks.append(np.corrcoef(np.argsort(np.argsort(s)), np.argsort(np.argsort(chosen.values)))[0, 1])
    assert ranks[chosen.squarings] >= max(ranks) - 0.02


def test_too_few_references_keep_the_widest_kernel():
    index, _, _ = index_of(frames=1)
    assert choose_squarings(index, index.residuals_of()).squarings == 0
