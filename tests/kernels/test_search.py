"""Certified bounds: never wrong, and cheap where it counts."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import EXP_NEGATIVE, gamma, unit

from quests_md.kernels import search
from quests_md.kernels._simd_sum import FEWEST, exp_negative, squared_distances_plain
from quests_md.kernels.blocks import LEAF, order_of

H = 0.3


def rows_of(n, d=20, seed=0, scale=0.2):
    """Return float32 rows in clusters, in the order of a tree."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d))
    rows = (centres[rng.integers(5, size=n)] + scale * rng.normal(size=(n, d))).astype(np.float32)
    return rows[order_of(rows)]


def tree_over(rows):
    tree = search.empty_tree(rows)
    for level, nodes in enumerate(np.diff(tree.first)):
        search.measure_nodes(tree, level, 0, nodes)
    return tree


def queries_near(rows, seed=1, n=60):
    """Return queries at all distances from the rows: on them, between them, and far off."""
    rng = np.random.default_rng(seed)
    chosen = rows[rng.integers(len(rows), size=n)].astype(float)
    return chosen + np.geomspace(1e-4, 30.0, n)[:, None] * rng.normal(size=chosen.shape) / np.sqrt(rows.shape[1])


def ask_tree(query, tree, threshold, h=H, memory=None, **changes):
    ask = search.question(np.zeros(query.shape[1]), tree, threshold, h)._replace(**changes)
    memory = np.full(len(query), -1, np.int32) if memory is None else memory
    out = np.empty(len(query))
    search.upper_bounds(query, tree, ask, memory, 0, len(query), out, np.empty(len(query)))
    return out


def assert_certified(out, exact, threshold):
    decided = ~np.isnan(out)
    np.testing.assert_array_equal((out > threshold)[decided], (exact > threshold)[decided])
    assert (out[decided] >= exact[decided] - 1e-12).all()


@pytest.mark.parametrize("n", [1, 5, LEAF, LEAF + 1, 4 * LEAF, 5 * LEAF + 3, 1000])
def test_nodes_hold_what_their_rows_say(n):
    rows = rows_of(n)
    tree = tree_over(rows)
    assert tree.first[-1] - tree.first[-2] == 1, "one root"
    for level in range(len(tree.first) - 1):
        size = LEAF * search.FAN**level
        for i, node in enumerate(range(tree.first[level], tree.first[level + 1])):
            part = rows[i * size : (i + 1) * size].astype(float)
            squared = ((part - tree.centres[node].astype(float)) ** 2).sum(axis=1)
            # The sums of either mean round in double precision, and the kernel's mean in single.
            off = 2.0 * gamma(len(part), float) * np.abs(part).mean(axis=0)
            off += unit(np.float32) * np.abs(part.mean(axis=0))
            assert np.all(np.abs(tree.centres[node] - part.mean(axis=0)) <= 1.001 * off)
            assert tree.radius[node] ** 2 >= squared.max()
            assert tree.spread[node] >= squared.mean()
            # Rounded up by 2u of single precision, and then once: 3u, with what double precision adds.
            said = [tree.radius[node], tree.spread[node]]
            np.testing.assert_allclose(said, [squared.max() ** 0.5, squared.mean()], 3.01 * unit(np.float32))
            np.testing.assert_allclose(np.exp(tree.log_rows[node]), len(part), 1e-12)


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("d", [3, 16, 20, 63])
@pytest.mark.parametrize("n", [1, 31, 200, 3000])
def test_no_decision_is_wrong(n, d, vector):
    vector = vector and d >= FEWEST
    rows = rows_of(n, d)
    tree, query = tree_over(rows), queries_near(rows)
    exact = -naive.log_kernel_sum(query, rows.astype(float), H)
    for threshold in (-5.0, -1.0, 0.0, 3.0, 30.0, 500.0, *np.quantile(exact, [0.2, 0.5])):
        out = ask_tree(query, tree, threshold, vector=vector, budget=10 * len(tree.log_rows) + 10)
        assert_certified(out, exact, threshold)
        # With the whole tree opened, only what rounding hides is left open.
        assert (np.abs(exact - threshold)[np.isnan(out)] < 1e-3 * max(1.0, abs(threshold))).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    threshold=st.floats(-8.0, 50.0),
    h=st.floats(0.02, 3.0),
    seed=st.integers(0, 50),
    hint=st.integers(-(2**31), 2**31 - 1),
)
def test_no_decision_is_wrong_whatever_is_remembered(n, threshold, h, seed, hint):
    rows = rows_of(n, seed=seed)
    query, tree = queries_near(rows, seed, 20), tree_over(rows)
    exact = -naive.log_kernel_sum(query, rows.astype(float), h)
    memory = np.full(len(query), hint, np.int32)
    memory[::3] = np.random.default_rng(seed).integers(-20, len(tree.log_rows) + 5, len(memory[::3]))
    for _ in range(2):
        assert_certified(ask_tree(query, tree, threshold, h, memory), exact, threshold)


def test_a_result_depends_on_no_other_query():
    rows = rows_of(2000)
    tree, query = tree_over(rows), queries_near(rows)
    together = ask_tree(query, tree, 1.0)
    alone = np.concatenate([ask_tree(query[i : i + 1], tree, 1.0) for i in range(len(query))])
    np.testing.assert_array_equal(together, alone)


def test_distances_far_from_zero_are_not_trusted_more_than_they_deserve():
    """Rows at 1000 and a bandwidth that single precision can hardly resolve: nothing is decided that is not sure."""
    rows = (1000.0 + rows_of(500, scale=1e-3)).astype(np.float32)
    query, tree = queries_near(rows), tree_over(rows)
    for h in (1e-4, 1e-3, 1e-2, 1.0):
        exact = -naive.log_kernel_sum(query, rows.astype(float), h)
        for threshold in (-3.0, 0.0, 10.0, *np.quantile(exact, [0.1, 0.5])):
            assert_certified(ask_tree(query, tree, threshold, h), exact, threshold)


def test_the_node_that_certified_a_query_does_so_again_with_one_distance():
    rows = rows_of(3000)
    tree, query = tree_over(rows), queries_near(rows)[:10]
    memory = np.full(len(query), -1, np.int32)
    ask_tree(query, tree, 20.0, memory=memory)
    assert (memory >= 0).all()
    moved = query + 1e-3
    # A budget of no node at all leaves nothing but what is remembered.
    assert (ask_tree(moved, tree, 20.0, memory=memory, budget=0) <= 20.0).all()
    assert np.isnan(ask_tree(moved, tree, 20.0, budget=0)).all()


def test_a_query_that_stays_undecided_is_given_up_sooner_and_tried_again_later():
    rows = rows_of(3000)
    tree, query = tree_over(rows), queries_near(rows)[:1]
    threshold = float(-naive.log_kernel_sum(query, rows.astype(float), H)[0]) + 1e-7
    memory = np.full(1, -1, np.int32)
    seen = []
    for _ in range(20):
        assert np.isnan(ask_tree(query, tree, threshold, memory=memory, budget=16)).all()
        seen.append(int(memory[0]))
    assert seen[:18] == [*range(-17, 0), -17]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_decided_of_a_query_that_is_no_number(value):
    rows = rows_of(100)
    query = rows[:2].astype(float)
    query[0, 3] = value
    out = ask_tree(query, tree_over(rows), 3.0)
    assert np.isnan(out[0])
    assert out[1] <= 3.0


def test_terms_above_the_threshold_are_as_right_as_those_below():
    x = np.linspace(-59.0, search._CLAMP, 301)
    np.testing.assert_allclose([exp_negative(value) for value in x], np.exp(x), rtol=EXP_NEGATIVE)


def test_plain_distances_agree_with_the_naive_twin():
    rows, out = rows_of(10), np.full(6, np.nan, np.float32)
    squared_distances_plain(rows[9], rows, 2, 5, out)
    # A difference, rounded once and squared, and a square, in a sum of 20 terms.
    most = gamma(20 + 2, np.float32)
    np.testing.assert_allclose(out[:5], naive.squared_distances(rows[9], rows[2:7]), rtol=most)
    assert np.isnan(out[5])
