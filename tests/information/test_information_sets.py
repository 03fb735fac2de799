"""What a dataset holds: several bandwidths, samples, learning curves, overlap, likelihood; in chunks and on ranks."""

from __future__ import annotations

import math
import tracemalloc

import naive
import numpy as np
import pytest
import ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_promised, promised

from quests_md.errors import InputError, MonitorError
from quests_md.information import (
    _sums,
    bandwidth_from_volume,
    delta_entropy,
    diversity,
    entropy,
    information,
    information_at,
    learning_curve,
    likelihood_bandwidth,
    overlap,
    pack,
    sample_entropy,
    suggest_bandwidth,
)
from quests_md.information._sums import sum_groups
from quests_md.kernels.blocks import order_of

SEEDS = st.integers(0, 2**32 - 1)
H = 0.015


def rows(n, seed=0, width=63, clusters=5):
    """Return n rows in clusters that are many bandwidths apart, some of them alone."""
    rng = np.random.default_rng(seed)
    places = rng.normal(0.0, 0.2, (clusters, width))
    spread = rng.choice([0.001, 0.003, 0.03], (n, 1))
    return places[rng.integers(clusters, size=n)] + rng.normal(0.0, 1.0, (n, width)) * spread


@pytest.fixture
def small_chunks(monkeypatch):
    """Let a few hundred rows be several chunks, the last one a short one."""
    monkeypatch.setattr(_sums, "PAIRED", 0)
    monkeypatch.setattr(_sums, "CHUNK", 250)


def same(a, b):
    """Tell whether two results agree in every digit."""
    return np.array_equal(a.delta_entropy, b.delta_entropy) and (a.entropy, a.diversity) == (b.entropy, b.diversity)


# -- the numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 95, 97, 600])
def test_information_agrees_with_the_naive_twin(small_chunks, n):
    x = rows(n)
    for found in information_at(x, [0.001, H, 0.3]):
        dH, entropy, diversity = naive.information(x, found.bandwidth)
        np.testing.assert_allclose(found.delta_entropy, dH, rtol=0, atol=1e-10)
        assert found.entropy == pytest.approx(entropy, abs=1e-10)
        assert found.diversity == pytest.approx(diversity, abs=1e-10)
        assert found.information_gap == pytest.approx(math.log(n) - entropy, abs=1e-10)
        assert found.efficiency == pytest.approx(entropy / math.log(n) if n > 1 else 1.0, abs=1e-10)


def test_all_equal_and_all_different_environments():
    equal, different = information(np.ones((50, 7))), information(np.eye(50))
    assert (equal.efficiency, different.efficiency) == pytest.approx((0.0, 1.0), abs=1e-14)
    assert (equal.diversity, different.diversity) == pytest.approx((0.0, math.log(50)), abs=1e-13)


def test_parity_with_quests_at_several_bandwidths(quests):
    x, bandwidths = rows(400), np.array([0.005, H, 0.029, 0.062])
    ours = information_at(x, bandwidths)
    assert [found.entropy for found in ours] == pytest.approx(quests.entropy(x, h=bandwidths), rel=1e-6)
    assert [found.diversity for found in ours] == pytest.approx(quests.diversity(x, h=bandwidths), rel=1e-6)


@pytest.mark.parametrize("replace", [True, False])
def test_parity_with_quests_of_the_same_samples(quests, replace):
    x, generator = rows(300), np.random.default_rng(5)
    drawn = [x[generator.choice(300, 120, replace=replace)] for _ in range(3)]
    found = sample_entropy(x, 120, 3, seed=5, replace=replace)
    assert found.entropies == pytest.approx([quests.entropy(some, h=H) for some in drawn], rel=1e-6)
    assert found.diversities == pytest.approx([quests.diversity(some, h=H) for some in drawn], rel=1e-6)
    assert found.mean == np.mean(found.entropies)
    assert found.standard_error == pytest.approx(np.std(found.entropies, ddof=1) / math.sqrt(3))


def test_a_learning_curve_ends_at_the_entropy_of_the_dataset():
    x = rows(300)
    curve = learning_curve(x, (0.1, 0.55, 1.0), runs=2)
    assert curve.sizes.tolist() == [30, 165, 300]
    assert curve.mean[-1] == pytest.approx(information(x).entropy, abs=promised(0.0))
    assert curve.std[-1] == pytest.approx(0.0, abs=promised(0.0))
    assert curve.std[0] > 0.0
    assert np.array_equal(curve.mean, learning_curve(x, (0.1, 0.55, 1.0), runs=2).mean)


def test_overlap_is_a_share_of_dH(quests):
    query, reference = rows(200, 1), rows(300, 0)
    dH = quests.delta_entropy(query, reference, h=0.2)
    threshold = float(np.median(dH))
    assert 0.0 < overlap(query, reference, 0.2, threshold) < 1.0
    assert overlap(query, reference, 0.2, threshold) == np.mean(dH < threshold)
    assert overlap(reference, reference) == 1.0


@pytest.mark.parametrize("volume", [1.0, 5.0, 20.02, 30.0, 31.0, 60.0])
def test_both_forms_of_the_volume_rule_are_those_of_quests(quests, volume):
    for method in ("gaussian", "cutoff"):
        assert bandwidth_from_volume(volume, method) == pytest.approx(quests.bandwidth(volume, method), rel=1e-12)


# -- precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_single_precision_errs_by_no_more_than_it_says(monkeypatch, paired):
    monkeypatch.setattr(_sums, "PAIRED", 10_000 * paired)
    x = rows(3000, clusters=40)
    single, double = (information(x, precision=precision) for precision in ("single", "double"))
    absolute, relative = _sums.ERRORS["single"]
    dH = double.delta_entropy
    assert np.all(np.abs(single.delta_entropy - dH) <= np.maximum(absolute, relative * np.abs(dH)))
    most = max(absolute, relative * np.abs(dH).max())
    assert single.entropy == pytest.approx(double.entropy, abs=most)
    assert single.diversity == pytest.approx(double.diversity, abs=most)
    for function in (entropy, diversity):
        assert function(x, precision="single") == getattr(single, function.__name__)
    for precision, expected in (("single", single), ("double", double)):
        drawn = sample_entropy(x, len(x), 1, precision=precision)
        assert drawn.mean == pytest.approx(expected.entropy, abs=1e-12)
        curve = learning_curve(x, [1.0], 1, precision=precision)
        assert curve.mean[0] == drawn.mean


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="precision must be one of double, single"):
        information(rows(10), precision="half")


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, which=st.integers(0, 199), off=st.sampled_from([-1e-7, 0.0, 1e-7]))
def test_the_overlap_does_not_depend_on_the_precision(seed, which, off):
    query, reference = rows(200, seed), rows(300, seed + 1)
    threshold = float(delta_entropy(query, reference, H)[which]) + off
    shares = {overlap(query, reference, H, threshold, precision=precision) for precision in ("single", "double")}
    assert len(shares) == 1


# -- chunks, threads, ranks ------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 5), threads=st.integers(1, 3), paired=st.booleans())
def test_ranks_and_threads_change_no_digit(seed, size, threads, paired):
    x = rows(700, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sums, "PAIRED", 1000 * paired)
        patch.setattr(_sums, "CHUNK", 250)
        alone = information_at(x, [H, 0.1])
        for found in ranks.run(size, lambda comm: information_at(x, [H, 0.1], comm=comm, threads=threads)):
            assert all(same(*pair) for pair in zip(found, alone, strict=True))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_the_rows_hardly_matters(seed):
    x = rows(600)
    shuffled = np.random.default_rng(seed).permutation(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sums, "PAIRED", 0)
        patch.setattr(_sums, "CHUNK", 250)
        assert information(shuffled).entropy == pytest.approx(information(x).entropy, abs=promised(0.0))


def test_rows_in_a_file_are_read_in_chunks_and_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(_sums, "PAIRED", 0)
    monkeypatch.setattr(_sums, "CHUNK", 2048)
    n, width = 20_000, 63
    x = np.memmap(tmp_path / "rows", np.float64, "w+", shape=(n, width))
    x[:] = rows(n)
    x.flush()
    mapped = np.memmap(tmp_path / "rows", np.float64, "r", shape=(n, width))
    information(rows(100))  # compiled and imported before memory is measured
    tracemalloc.start()
    found = information(mapped, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * mapped.nbytes  # a chunk, its layout, and some numbers for each row
    assert same(found, information(np.array(x)))


@pytest.mark.parametrize("paired", [0, 1000])
def test_rows_that_must_not_be_written_to_are_taken(small_chunks, monkeypatch, paired):
    monkeypatch.setattr(_sums, "PAIRED", paired)
    x = rows(300)
    x.flags.writeable = False
    assert same(information(x), information(x.copy()))


def test_what_one_rank_cannot_read_fails_all(monkeypatch):
    x = rows(300)

    def work(comm):
        y = x.copy()
        if comm.rank == 1:
            y[7] = np.nan
        return information(y, comm=comm)

    first, other = ranks.run(2, work)
    assert type(first) is MonitorError
    assert "rank 1 failed: InputError: x holds values that are not finite" in str(first)
    assert type(other) is InputError


@pytest.mark.parametrize(("paired", "calls"), [(0, 3 * 3 * 2), (1000, 2 * 2)])  # chunks by chunks, or strips
def test_the_share_that_is_done_grows_to_all(small_chunks, monkeypatch, paired, calls):
    monkeypatch.setattr(_sums, "PAIRED", paired)
    told = []
    information_at(rows(700), [H, 0.1], report=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert len(told) == calls


def test_chunks_give_what_pairs_do(small_chunks, monkeypatch):
    chunked = information(rows(700))
    monkeypatch.setattr(_sums, "PAIRED", 1000)
    assert_promised(chunked.delta_entropy, information(rows(700)).delta_entropy)


# -- the likelihood --------------------------------------------------------------------------------------


def gaussian(n, width=4, scale=0.05, seed=3):
    """Return n rows of a normal distribution, with a column that does not vary."""
    return np.column_stack([np.random.default_rng(seed).normal(0.0, scale, (n, width)), np.full(n, 0.7)])


def test_the_likelihood_agrees_with_the_naive_twin():
    x, tried = gaussian(150), [0.004, 0.01, 0.03, 0.2]
    found = likelihood_bandwidth(np.concatenate([x, x[:40]]), tried)
    expected = [naive.log_likelihood(np.concatenate([x, x[:40]]), h, 0.05 * 0.004) for h in tried]
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-9)
    assert (found.n_env, found.n_asked, found.n_copies, found.dimension) == (190, 190, 80, 4)
    assert not found.at_edge
    assert 0.01 < found.bandwidth < 0.2


def test_copies_do_not_make_the_bandwidth_vanish():
    x = gaussian(400)
    copied = np.concatenate([x, x, x + np.random.default_rng(0).normal(0.0, 1e-6, x.shape)])  # as files round them
    alone, found = likelihood_bandwidth(x), likelihood_bandwidth(copied, size=1200)
    assert found.bandwidth == pytest.approx(alone.bandwidth, rel=1e-4)
    assert (alone.n_copies, found.n_copies, alone.at_edge) == (0, 1200, False)


def test_the_bandwidth_is_the_best_one_for_rows_that_were_not_seen():
    x, unseen = gaussian(1000), gaussian(1000, seed=4)
    found = likelihood_bandwidth(x, np.geomspace(0.01, 0.1, 12), size=300)
    held_out = [np.mean(naive.log_kernel_sum(unseen, x, h)) - 4 * np.log(h) for h in found.bandwidths]
    best = found.bandwidths[np.argmax(held_out)]
    assert found.bandwidth == pytest.approx(best, rel=0.25)  # one step
    assert found.bandwidth == likelihood_bandwidth(x, np.geomspace(0.01, 0.1, 12), size=300).bandwidth


def test_a_likelihood_that_still_grows_at_the_end_says_so():
    assert likelihood_bandwidth(gaussian(100), [0.001, 0.002]).at_edge
    assert likelihood_bandwidth(gaussian(100), [0.5, 1.0]).at_edge


# -- what is refused -------------------------------------------------------------------------------------

X = rows(10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: information(np.empty((0, 3))), "x has no rows"),
        (lambda: information(X[0]), r"x must have shape \(n, d\)"),
        (lambda: information(np.where(X > 0.1, np.nan, X)), "x holds values that are not finite"),
        (lambda: information(X, 0.0), "bandwidth must be a positive number"),
        (lambda: information_at(X, []), "no bandwidth was given"),
        (lambda: sample_entropy(X, 11), "at most 10, the number of rows"),
        (lambda: sample_entropy(X, 2.0), "whole number of at least 1"),
        (lambda: sample_entropy(X, 5, 0), "number of runs"),
        (lambda: learning_curve(X, (0.5, 1.1)), "above 0 and at most 1, not 1.1"),
        (lambda: learning_curve(X, (0.05,)), "a share of 0.05 of 10 rows is none"),
        (lambda: overlap(X, X, threshold=math.nan), "the threshold must be a number of nats"),
        (lambda: overlap(X[:0], X), "query has no rows"),
        (lambda: bandwidth_from_volume(20.0, "linear"), '"gaussian" or "cutoff", not'),
        (lambda: likelihood_bandwidth(np.ones((9, 3))), "the 9 rows are copies of one environment"),
        (lambda: likelihood_bandwidth(X, [0.1, 0.01]), "must ascend"),
        (lambda: likelihood_bandwidth(X, size=0), "whole number of at least 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_dH_of_a_dataset_against_itself_is_that_of_queries():
    x = rows(200)
    np.testing.assert_allclose(information(x).delta_entropy, delta_entropy(x, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision", ["double", "single"])
def test_what_is_left_out_of_a_sum_is_below_what_was_allowed(precision):
    x, nothing = rows(3000, clusters=40), -30.0
    order = order_of(x)
    blocks = pack(x, H, precision, order=order)
    bound = sum_groups(x[order], blocks, nothing, 1)
    exact = naive.log_kernel_sum(x[order], x, H)
    assert np.all(np.exp(exact) - np.exp(bound) <= len(x) * 2.0**nothing + 1e-4 * np.exp(exact))
    assert np.all(bound <= exact + 1e-4)
    far = x[:1] + 10.0 * H  # e^(-50·63) beside it: nothing of it is above what is allowed
    assert sum_groups(far, blocks, nothing, 1)[0] == -np.inf
    assert np.isfinite(sum_groups(far, blocks, -np.inf, 1)[0])


# -- a bandwidth to suggest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_frames", [2, 12, 45])
def test_the_suggestion_is_the_distance_to_other_frames(n_frames):
    rng = np.random.default_rng(n_frames)
    rows, frames = rng.normal(size=(6 * n_frames, 5)), np.repeat(np.arange(n_frames), 6)
    numbers = rng.integers(1, 3, len(rows))
    expected = naive.suggested_bandwidth(rows, frames, numbers)
    assert suggest_bandwidth(rows, frames, numbers) == pytest.approx(expected, rel=1e-12)
    order = rng.permutation(len(rows))
    assert suggest_bandwidth(rows[order], frames[order], numbers[order]) == pytest.approx(expected, rel=1e-12)


def test_frames_that_follow_each_other_do_not_make_it_small():
    """A trajectory that is written at every step has the next frame very near."""
    slow = np.linspace(0.0, 1.0, 40)[:, None] * np.ones((1, 4))  # neighbours are 0.05 apart
    assert suggest_bandwidth(slow, np.arange(40)) == pytest.approx(2 * 2 / 39)


def test_of_large_sets_a_sample_is_asked():
    rng = np.random.default_rng(1)
    rows, frames = rng.normal(size=(20_000, 3)), np.repeat(np.arange(200), 100)
    few = naive.suggested_bandwidth(rows[:600], frames[:600], np.ones(600))
    assert 0.1 * few < suggest_bandwidth(rows, frames) < few


@pytest.mark.parametrize(("rows", "frames"), [(np.zeros((20, 3)), np.arange(20)), (np.eye(8), np.zeros(8, int)),
                                              (np.empty((0, 3)), np.empty(0, int))])  # fmt: skip
def test_copies_or_one_frame_suggest_nothing(rows, frames):
    assert suggest_bandwidth(rows, frames) is None
