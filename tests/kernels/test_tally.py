"""What is counted of a frame, beside the same in plain numpy."""

from __future__ import annotations

import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md.kernels import tally

INF = math.inf
EDGES = np.sinh(np.linspace(-4.0, 12.0, 257))
ID = st.integers(-(2**63), 2**63 - 1)
VALUE = st.one_of(st.sampled_from([-INF, -27.5, -1.0, 0.0, 1.0, 2.0, INF, *EDGES[[0, 100, 256]]]), st.floats(-1e9, 1e9))


@st.composite
def frames(draw):
    n = draw(st.integers(0, 30))
    several = {"min_size": n, "max_size": n}
    ids = np.array(draw(st.lists(ID, unique=True, **several)), np.int64)
    dH = np.array(draw(st.lists(VALUE, **several)), float)
    flags = np.array(draw(st.lists(st.booleans(), **several)), bool)
    return ids, dH, flags, np.array(draw(st.lists(st.integers(0, 2), **several)), np.uint8)


@settings(max_examples=200, deadline=None)
@given(frames(), st.booleans())
def test_counts(frame, everything):
    ids, dH, sample, numbers = frame
    select, halt = np.array([0.0, -1.0, INF]), np.array([2.0, 2.0, INF])
    histogram = np.zeros(len(EDGES) - 1)
    given_sample = np.empty(0, bool) if everything else sample
    ours = tally.count(dH, ids, numbers, select, halt, given_sample, EDGES, histogram)
    if not len(dH):
        assert ours[:2] == (-INF, -1)
        return
    sampled = np.ones(len(dH), bool) if everything else sample
    with np.errstate(invalid="ignore"):  # inf - inf in the sum
        theirs, expected = naive.count(dH, ids, numbers, select, halt, sampled, EDGES)
    assert ours[:5] == theirs[:5]
    np.testing.assert_allclose(ours[5], theirs[5], rtol=1e-12, atol=1e-3)
    np.testing.assert_array_equal(histogram, expected)


@given(st.lists(ID, max_size=20), st.integers(0, 2**32 - 1), st.integers(0, 2**32))
def test_a_window_goes_round(ids, low, width):
    sample = np.empty(len(ids), bool)
    tally.mark_sample(np.array(ids, np.int64), low, width, sample)
    assert sample.tolist() == [naive.in_window(number, low, width) for number in ids]


@settings(max_examples=200, deadline=None)
@given(frames(), st.integers(1, 5), VALUE)
def test_the_largest_exact_values(frame, most, threshold):
    ids, dH, is_exact, _ = frame
    out = np.empty(most, np.int64)
    n, n_above = tally.find_largest(dH, is_exact, ids, threshold, out)
    order = sorted(np.flatnonzero(is_exact), key=lambda i: (-dH[i], ids[i]))
    assert out[:n].tolist() == ids[order[:most]].tolist()
    assert n_above == np.count_nonzero(dH > threshold)


@given(frames(), st.lists(ID, max_size=3))
def test_what_is_asked_first(frame, suspects):
    ids, _, sample, _ = frame
    suspects, out = np.array([*suspects, *ids[:1]], np.int64), np.empty(len(ids), np.int64)
    n, largest = tally.choose(ids, sample, suspects, out)
    assert out[:n].tolist() == np.flatnonzero(sample | np.isin(ids, suspects)).tolist()
    assert largest == ids.max(initial=-1)


@given(frames(), st.integers(0, 6), st.integers(-(2**31), 2**31 - 1))
def test_bounds_are_settled(frame, bits, hint):
    ids, bounds, is_exact, _ = frame
    bounds = np.where(bounds == 1.0, np.nan, bounds)
    hints = np.full(1 << bits, hint, np.int32)
    memory, dH, above = np.empty(len(ids), np.int32), np.full(len(ids), 7.0), np.empty(len(ids), np.int64)
    tally.recall(ids, hints, memory)
    assert (memory == hint).all()
    n = tally.settle(bounds, 0.5, ids, memory, hints, is_exact, dH, above)
    np.testing.assert_array_equal(dH, np.where(is_exact, 7.0, bounds))
    assert above[:n].tolist() == np.flatnonzero(~is_exact & ~(bounds <= 0.5)).tolist()
    slots = np.unique(ids & (len(hints) - 1))
    assert (hints[slots] == max(hint, -1)).all()
    assert (np.delete(hints, slots) == hint).all()


@given(st.lists(st.tuples(st.integers(0, 2), VALUE, ID), max_size=6))
def test_ranks_are_united(parts):
    counts, maxima = (np.array([part[i] for part in parts], float) for i in range(2))
    ids = [part[2] for part in parts]
    high, low = np.array([i >> 32 for i in ids], float), np.array([i & (2**32 - 1) for i in ids], float)
    known = [(-maximum, number) for n, maximum, number in parts if n]
    expected = min(known, default=(INF, -1))
    assert tally.unite(counts, maxima, high, low) == (-expected[0], expected[1])


@given(st.lists(st.floats(-20.0, 7e4), max_size=50), st.sampled_from([0.5, 0.99]))
def test_quantiles_are_inside_the_bin(values, share):
    histogram, out = np.histogram(values, EDGES)[0].astype(float), np.empty(1)
    tally.quantiles(histogram, EDGES, np.array([share]), max(values, default=INF), out)
    if not values:
        assert np.isnan(out[0])
        return
    wanted = np.quantile(values, share, method="inverted_cdf")
    place = np.searchsorted(EDGES, wanted, side="right") - 1
    tolerance = 1e-9 * (1.0 + abs(wanted))
    assert EDGES[place] - tolerance <= out[0] <= min(EDGES[place + 1], max(values)) + tolerance


@pytest.mark.parametrize("value", [-1e300, 1e300])
def test_values_beyond_the_histogram_are_in_its_last_bins(value):
    histogram = np.zeros(len(EDGES) - 1)
    one = np.array([value])
    tally.count(one, np.array([3]), np.zeros(1, np.uint8), one, one, np.empty(0, bool), EDGES, histogram)
    assert histogram[0 if value < 0 else -1] == 1.0
