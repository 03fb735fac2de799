"""Kernel sums, dH, entropy and diversity against naive twins, the peer `quests`, and what they must obey."""

from __future__ import annotations

import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import promised

from quests_md.errors import InputError
from quests_md.information import (
    bandwidth_from_volume,
    delta_entropy,
    diversity,
    entropy,
    log_kernel_sum,
)

SEEDS = st.integers(0, 2**32 - 1)


def rows(n, seed=0, width=63, spread=0.01):
    """Return n rows some bandwidths apart, away from the origin as descriptors are."""
    rng = np.random.default_rng(seed)
    return np.linspace(0.4, 0.0, width) + rng.normal(0.0, spread * rng.uniform(0.1, 1.0, (n, 1)), (n, width))


def assert_close(actual, expected):
    """Agreement to 1e-10·max(1, |dH|), as promised between hosts and ranks."""
    assert np.all(np.abs(actual - expected) <= promised(expected))


# -- against the naive twin and the peer -----------------------------------------------------------


@pytest.mark.parametrize("n_reference", [1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("n_query", [1, 31, 32, 33, 100])
def test_dH_agrees_with_the_naive_twin(n_query, n_reference):
    query, reference = rows(n_query, 1), rows(n_reference, 2)
    assert_close(delta_entropy(query, reference), -naive.log_kernel_sum(query, reference, 0.015))


@pytest.mark.parametrize("bandwidth", [1e-4, 0.015, 0.06, 2.0])
@pytest.mark.parametrize("width", [1, 3, 31, 63])
def test_any_width_and_bandwidth_agrees_with_the_naive_twin(width, bandwidth):
    query, reference = rows(40, 3, width), rows(200, 4, width)
    assert_close(log_kernel_sum(query, reference, bandwidth), naive.log_kernel_sum(query, reference, bandwidth))


@pytest.mark.parametrize("bandwidth", [0.015, 0.029, 0.062])
def test_parity_with_quests(quests, bandwidth):
    query, reference = rows(150, 5, spread=bandwidth), rows(400, 6, spread=bandwidth)
    ours = delta_entropy(query, reference, bandwidth)
    assert ours.min() < 0 < ours.max()
    theirs = quests.delta_entropy(query, reference, h=bandwidth)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert entropy(reference, bandwidth) == pytest.approx(quests.entropy(reference, h=bandwidth), abs=1e-6)
    assert diversity(reference, bandwidth) == pytest.approx(quests.diversity(reference, h=bandwidth), abs=1e-6)


def test_entropy_and_diversity_are_their_formulas():
    x = rows(300, 7)
    log_sums = naive.log_kernel_sum(x, x, 0.015)
    most = promised(log_sums).mean()
    assert entropy(x) == pytest.approx(-np.mean(log_sums - np.log(len(x))), abs=most)
    assert diversity(x) == pytest.approx(np.log(np.sum(np.exp(-log_sums))), abs=promised(log_sums).max())


def test_entropy_of_all_different_and_of_all_equal_rows():
    different, equal = np.eye(20), np.ones((20, 5))
    assert entropy(different) == pytest.approx(math.log(20))
    assert diversity(different) == pytest.approx(math.log(20))
    assert entropy(equal) == pytest.approx(0.0, abs=1e-14)
    assert diversity(equal) == pytest.approx(0.0, abs=1e-14)


# -- far away, and nothing there -------------------------------------------------------------------


@pytest.mark.parametrize(("dH", "peer_is_finite"), [(10.0, True), (1e3, False), (1e5, False), (1e12, False)])
def test_dH_is_finite_at_any_distance(quests, dH, peer_is_finite):
    reference = np.zeros((1, 63))
    query = np.zeros((1, 63))
    query[0, 7] = 0.015 * math.sqrt(2 * dH)
    assert delta_entropy(query, reference) == pytest.approx(dH, rel=1e-12)
    assert np.isfinite(quests.delta_entropy(query, reference)).all() == peer_is_finite


def test_a_far_query_agrees_with_the_naive_twin_against_many():
    query, reference = rows(20, 8) + 0.5, rows(500, 9)
    assert delta_entropy(query, reference).min() > 1e3
    assert_close(delta_entropy(query, reference), -naive.log_kernel_sum(query, reference, 0.015))


def test_an_empty_reference_is_infinitely_far_and_no_query_is_no_answer():
    assert np.all(delta_entropy(rows(3), np.empty((0, 63))) == np.inf)
    assert delta_entropy(np.empty((0, 63)), rows(3)).shape == (0,)


def test_a_known_row_has_minus_ln_of_how_often_it_is_known():
    row = rows(1)
    assert delta_entropy(row, row) == 0.0
    assert delta_entropy(row, np.repeat(row, 1000, axis=0)) == pytest.approx(-math.log(1000), rel=1e-14)


# -- what a result must not depend on --------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, first=st.integers(0, 99), length=st.integers(1, 100))
def test_a_result_does_not_depend_on_the_other_queries(seed, first, length):
    query, reference = rows(100, seed, spread=0.05), rows(300, seed + 1)
    part = slice(first, first + length)
    assert np.array_equal(delta_entropy(query, reference)[part], delta_entropy(query[part], reference))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_no_bit(threads):
    query, reference = rows(1000, 1), rows(300, 2)
    alone = delta_entropy(query, reference, threads=1)
    assert np.array_equal(delta_entropy(query, reference, threads=threads), alone)


def test_a_single_precision_reference_is_computed_in_double():
    query, reference = rows(50, 1), rows(300, 2).astype(np.float32)
    assert np.array_equal(delta_entropy(query, reference), delta_entropy(query, reference.astype(float)))


def test_a_centred_reference_gives_the_same():
    query, reference = rows(50, 1), rows(300, 2)
    centre = reference.mean(axis=0)
    assert_close(log_kernel_sum(query, reference - centre, centre=centre), log_kernel_sum(query, reference))


@pytest.mark.parametrize("form", [np.asfortranarray, lambda x: x[::-1][::-1], lambda x: x.tolist()])
def test_the_form_of_the_arrays_does_not_matter(form):
    query, reference = rows(20, 1), rows(50, 2)
    assert np.array_equal(delta_entropy(form(query), form(reference)), delta_entropy(query, reference))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, known=st.integers(1, 300), more=st.integers(1, 300))
def test_more_references_never_raise_dH(seed, known, more):
    query, reference = rows(20, seed, spread=0.03), rows(known + more, seed + 1, spread=0.03)
    before = delta_entropy(query, reference[:known])
    assert np.all(delta_entropy(query, reference) <= before + promised(before))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_references_hardly_matters(seed):
    query, reference = rows(20, 1), rows(300, 2)
    shuffled = np.random.default_rng(seed).permutation(reference)
    assert_close(delta_entropy(query, shuffled), delta_entropy(query, reference))


# -- the bandwidth rule, and errors ----------------------------------------------------------------


@pytest.mark.parametrize("volume", [5.0, 11.8, 20.02, 60.0])
def test_the_bandwidth_rule_is_that_of_quests(quests, volume):
    assert bandwidth_from_volume(volume) == pytest.approx(quests.bandwidth(volume), rel=1e-14)


X = rows(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_entropy(X[0], X), r"query must have shape \(n, d\)"),
        (lambda: delta_entropy(X, X[None]), r"reference must have shape \(n, d\)"),
        (lambda: delta_entropy(X, X[:, :-1]), "query has 63 columns, reference has 62"),
        (lambda: delta_entropy(np.where(X > 0.3, np.nan, X), X), "query holds values that are not finite"),
        (
            lambda: delta_entropy(X, np.where(X > 0.3, np.inf, X)),
            "reference holds values that are not finite",
        ),
        (lambda: entropy(np.empty((0, 63))), "x has no rows"),
        (lambda: diversity(np.empty((0, 63))), "x has no rows"),
        (lambda: entropy(np.full((2, 2), np.nan)), "x holds values that are not finite"),
        (lambda: bandwidth_from_volume(0.0), "volume per atom must be positive"),
        (lambda: bandwidth_from_volume(float("nan")), "volume per atom must be positive"),
    ]
    + [
        (lambda h=h: delta_entropy(X, X, h), "bandwidth must be a positive number")
        for h in (0, -0.015, float("nan"), float("inf"), True, "0.015", None)
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_infinities_of_both_signs_are_refused_and_huge_values_are_not():
    with pytest.raises(InputError, match="not finite"):
        delta_entropy([[np.inf, -np.inf]], [[0.0, 0.0]])
    assert delta_entropy([[1e308, 1e308]], [[0.0, 0.0]]) == np.inf  # farther than a double can say
