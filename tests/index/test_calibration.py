"""Calibrations: left-out sums, groups, and what a false-alarm rate comes to."""

from __future__ import annotations

import dataclasses
import itertools
import math

import naive
import numpy as np
import pytest
from calibrations import MEMORY, moving
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import CalibrationError, InputError
from quests_md.index import Calibration, Index, _calibration, calibrate
from quests_md.index._calibration import Rows, correlation_length, partition, sum_left_out

# -- left-out sums ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 60), n_groups=st.integers(1, 20), scale=st.sampled_from([0.3, 30.0]))
def test_left_out_sums_are_those_of_the_obvious_loop(seed, n, n_groups, scale):
    rng = np.random.default_rng(seed)
    rows = (scale * 0.015 * rng.normal(size=(n, 5))).astype(np.float32)
    groups = 7 * rng.integers(0, n_groups, n)
    asked = rng.permutation(n)[: rng.integers(1, n + 1)]
    found = sum_left_out(rows, groups, asked, 0.015, 1)
    expected = naive.sum_left_out(rows.astype(float), groups, 0.015)[asked]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


def test_a_group_that_makes_up_nearly_all_of_a_sum_costs_no_digits():
    """A difference of sums would be 0 here: the own group adds 2000, the other 1e-15."""
    rows = np.zeros((2001, 3), np.float32)
    rows[2000, 0] = 8.3 * 0.015
    groups = np.array([0] * 2000 + [1])
    found = sum_left_out(rows, groups, np.array([5]), 0.015, 1)
    np.testing.assert_allclose(found, -(8.3**2) / 2, rtol=1e-5)


def test_left_out_sums_do_not_depend_on_threads():
    rng = np.random.default_rng(1)
    rows, groups = (0.02 * rng.normal(size=(700, 63))).astype(np.float32), rng.integers(0, 30, 700)
    one, two = (sum_left_out(rows, groups, np.arange(700), 0.015, n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# -- copies, correlation, groups -------------------------------------------------------------------


def rows_of(index):
    return Rows(index.rows, index.numbers, index.order, index.frame_offsets)


def built(frames, **more):
    return Index.build(frames, threads=1, **more)


def test_the_rows_of_a_frame_are_its_own_atoms_in_order():
    frames = moving(3, 1)
    index = built(frames)
    rows = rows_of(index)
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(rows.of(i) + index.centre, index.spec.compute(frame), atol=1e-6)


def changed(frame, **values):
    return dataclasses.replace(frame, **{"n_local": None, "ids": None, "watched": None} | values)


def shuffled(frame):
    order = np.random.default_rng(5).permutation(len(frame.positions))
    return changed(frame, positions=frame.positions[order], numbers=frame.numbers[order])


def larger(frame):
    """Return the same environments in a cell of twice the atoms."""
    positions = np.concatenate([frame.positions, frame.positions + frame.cell[0]])
    cell = frame.cell * np.array([[2], [1], [1]])
    return changed(frame, positions=positions, numbers=np.tile(frame.numbers, 2), cell=cell)


@pytest.mark.parametrize("change", [lambda f: f, shuffled, larger])
def test_copies_are_found_and_the_first_is_kept(change):
    frames = moving(6, 2, memory=0)
    parts = partition(rows_of(built([*frames, change(frames[2]), change(frames[4])])), (), 0.015)
    assert (parts.copies, parts.frames.tolist()) == (2, [0, 1, 2, 3, 4, 5])
    moved = changed(frames[2], positions=frames[2].positions + 0.01 * np.eye(16, 3))
    assert partition(rows_of(built([*frames, moved])), (), 0.015).copies == 0


def test_frames_of_other_elements_are_no_copies():
    frames = moving(2, 2)
    germanium = changed(frames[0], numbers=np.full(16, 32))
    index = built([*frames, germanium], spec=DescriptorSpec(species="ignore"))
    assert partition(rows_of(index), (), 0.015).copies == 0


def test_the_correlation_length_follows_the_memory_of_the_atoms():
    lengths = {m: correlation_length(rows_of(built(moving(120, 3, memory=m))), range(120)) for m in (0, 4.0, 16.0)}
    assert lengths[0] == 1
    assert 3 <= lengths[4.0] <= 10
    assert 2.5 <= lengths[16.0] / lengths[4.0] <= 6.0


def test_a_trend_of_all_atoms_and_places_that_differ_are_no_correlation():
    heated = [f for i in range(10) for f in moving(4, 100 + i, scale=0.01 + 0.01 * i, memory=0)]
    assert correlation_length(rows_of(built(heated)), range(40)) == 1
    slab = moving(40, 4, scale=0.02, memory=0)
    for frame in slab:
        frame.cell = frame.cell * np.array([[1], [1], [2]])  # a vacuum: atoms at the surface differ from others
    assert correlation_length(rows_of(built(slab)), range(40)) == 1


def test_blocks_are_contiguous_and_longer_than_the_correlation():
    parts = partition(rows_of(built(moving(800, 5, repeat=(1, 1, 1)))), (), 0.015)
    assert 5 <= parts.correlation <= 30
    assert (np.abs(np.diff(parts.frames) - parts.correlation) < 1.0).all()
    assert np.bincount(parts.groups)[:-1].tolist() == [min(4, len(parts.frames) // 10)] * (parts.groups.max())
    assert (np.diff(parts.groups) >= 0).all()


def test_groups_that_are_named_are_left_out_and_copies_join_them():
    frames = [f for name in "abc" for f in moving(4, ord(name), memory=0, group=name)]
    assert (
        partition(rows_of(built(frames)), built(frames).frame_groups, 0.015).groups.tolist()
        == [0] * 4 + [1] * 4 + [2] * 4
    )
    copy = changed(frames[0], group="c")  # a and c hold the same frame: they are one group
    index = built([*frames, copy])
    assert partition(rows_of(index), index.frame_groups, 0.015).groups.tolist() == [0] * 4 + [1] * 4 + [0] * 4


def test_groups_are_of_all_frames_or_of_none():
    with pytest.raises(InputError, match="1 of 2 frames have a group"):
        built([*moving(1, 1, group="a"), *moving(1, 2)])


def test_left_out_values_are_those_of_an_index_without_the_group():
    frames = [f for name in "abc" for f in moving(4, ord(name), memory=0, group=name)]
    calibration = calibrate(built(frames), threads=1)
    expected = [built([f for f in frames if f.group != frame.group]).delta_entropy(frame).max() for frame in frames]
    np.testing.assert_allclose(calibration.maxima[:, 0], expected, rtol=1e-4, atol=1e-3)
    assert (calibration.groups, calibration.frames, calibration.symbols) == (3, 12, ("Si",))
    assert (calibration.sizes == 16).all()


def test_one_group_is_refused():
    with pytest.raises(CalibrationError, match="one independent frame"):
        calibrate(built(moving(1, 1)))
    with pytest.raises(CalibrationError, match="one independent frame"):
        calibrate(built(moving(1, 1) * 3))
    with pytest.raises(CalibrationError, match="one group"):
        calibrate(built(moving(5, 1, memory=0, group="a")))


def test_rows_are_compared_within_the_element_of_their_centre_where_the_spec_says_so():
    class ByCentre(DescriptorSpec):
        by_centre = True

    frames = [changed(f, numbers=np.array([14, 32] * 8)) for f in moving(6, 7, memory=0)]
    index = built(frames, spec=DescriptorSpec(species="ignore"))
    everything = calibrate(index)
    index.descriptor = ByCentre(species="ignore")
    split = calibrate(index)
    assert split.symbols == ("Si", "Ge")
    assert (split.maxima > everything.maxima).all()
    rows, groups = rows_of(index), partition(rows_of(index), (), 0.015).groups
    for column, z in enumerate((14, 32)):
        some = [rows.of(f)[rows.elements(f) == z] for f in range(6)]
        sums = naive.sum_left_out(np.concatenate(some), np.repeat(groups, 8), 0.015)
        np.testing.assert_allclose(split.maxima[:, column], -sums.reshape(6, 8).min(axis=1), rtol=1e-5, atol=1e-3)


def test_a_large_reference_is_sampled(monkeypatch):
    index = built(moving(40, 8, memory=0))
    whole = calibrate(index)
    monkeypatch.setattr(_calibration, "MOST_PAIRS", len(index) ** 2 // 4)
    part = calibrate(index)
    assert (len(part.maxima), part.frames, len(whole.maxima)) == (10, 40, 40)
    assert set(part.maxima[:, 0]) <= set(whole.maxima[:, 0])


# -- what redundancy does --------------------------------------------------------------------------

RATES = (0.5, 0.2, 0.1)


def thresholds(frames, rates=RATES):
    calibration = calibrate(built(frames))
    return np.array([calibration.false_alarm(rate, {"Si": 16})["Si"] for rate in rates])


def test_copies_of_a_frame_and_of_all_frames_move_no_threshold():
    frames = moving(60, 9, memory=0)
    before = thresholds(frames)
    assert np.abs(thresholds([*frames, *[frames[7]] * 5]) - before).max() < 1e-3
    assert np.abs(thresholds([*frames, *frames]) - before).max() < 1e-3
    assert np.abs(thresholds([f for f in frames for _ in range(3)]) - before).max() < 1e-3
    assert calibrate(built(frames * 2)).redundancy == pytest.approx(math.log(2))


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_sampling_every_frame_moves_a_threshold_by_less_than_half_a_nat(seed):
    frames = moving(1200, seed)
    dense = calibrate(built(frames))
    assert 0.5 < dense.correlation / MEMORY < 2.0
    assert dense.redundancy == pytest.approx(math.log(dense.correlation), abs=0.1)
    for apart in (2, 3, 5, math.ceil(dense.correlation)):
        every = calibrate(built(frames[::apart]))
        for rate in RATES:
            moved = every.false_alarm(rate, {"Si": 16})["Si"] - dense.false_alarm(rate, {"Si": 16})["Si"]
            assert abs(moved) < 0.5


def test_the_measured_rate_is_the_asked_one():
    """Frames that the reference does not hold, of the size that was asked about, and of twice that."""
    calibration = calibrate(built(moving(200, 11, memory=0, repeat=(1, 1, 1))))
    index = built(moving(200, 11, memory=0, repeat=(1, 1, 1)))
    for repeat, n, some in (((1, 1, 1), 8, 400), ((1, 1, 2), 16, 400)):
        fresh = [index.delta_entropy(frame).max() for frame in moving(some, 12, memory=0, repeat=repeat)]
        for rate in (0.3, 0.1, 0.05):
            measured = np.mean(np.array(fresh) > calibration.false_alarm(rate, {"Si": n})["Si"])
            # Both samples are finite: 200 left-out frames, and these.
            error = 3.0 * math.sqrt(rate * (1 - rate) * (1 / some + 1 / 200 * n / 8))
            assert abs(measured - rate) < error + 0.01, (n, rate, measured)


def test_a_redundant_reference_errs_on_the_safe_side():
    """dH of a run is that of all references: where they are redundant it lies lower than in the calibration."""
    frames = moving(1200, 13, repeat=(1, 1, 1))
    index, thinned = built(frames), built(frames[::8])
    calibration = calibrate(index)
    fresh = moving(300, 14, memory=0, repeat=(1, 1, 1))
    maxima, plain = (np.array([i.delta_entropy(f).max() for f in fresh]) for i in (index, thinned))
    for rate in (0.5, 0.2):
        threshold = calibration.false_alarm(rate, {"Si": 8})["Si"]
        assert (maxima > threshold).mean() < rate
        assert (plain > threshold).mean() > 0.5 * rate  # against the thinned reference it is what was asked for
    lower = np.median(plain - maxima)
    assert 0.5 * calibration.redundancy < lower < 1.5 * calibration.redundancy


# -- rates -----------------------------------------------------------------------------------------


def calibration_of(maxima, sizes, symbols=("Si",)):
    maxima, sizes = np.array(maxima, float), np.array(sizes)
    if maxima.ndim == 1:
        maxima, sizes = maxima[:, None], sizes[:, None]
    n = len(maxima)
    return Calibration(symbols, sizes, maxima, n, n, 0, 1.0, 0.0)


@given(n=st.integers(1, 200), rate=st.floats(0.01, 0.9), seed=st.integers(0, 99))
@settings(deadline=None)
def test_at_the_size_of_the_frames_the_threshold_is_an_order_statistic(n, rate, seed):
    maxima = np.random.default_rng(seed).normal(size=n)
    allowed = math.floor(rate * (n + 1) + 1e-9) - 1  # frames that may lie above, so that one more would too
    calibration = calibration_of(maxima, np.full(n, 64))
    if allowed < 0:
        with pytest.raises(CalibrationError, match="is not resolved by"):
            calibration.false_alarm(rate, {"Si": 64})
    elif allowed < n:
        assert calibration.false_alarm(rate, {"Si": 64}) == {"Si": np.sort(maxima)[::-1][allowed]}


def test_more_atoms_need_the_level_of_the_power():
    n, rate, maxima = 999, 0.1, np.arange(999.0)
    calibration = calibration_of(maxima, np.full(n, 100))
    for atoms in (100, 200, 1000):
        level = 1.0 - (1.0 - rate) ** (100 / atoms)  # of a frame of 100
        expected = n - math.floor(level * (n + 1) + 1e-9)
        assert calibration.false_alarm(rate, {"Si": atoms})["Si"] == expected


def test_too_few_frames_are_refused_with_what_would_do():
    calibration = calibration_of(np.arange(50.0), np.full(50, 100))
    with pytest.raises(CalibrationError, match="not resolved by 50 independent") as caught:
        calibration.false_alarm(0.01, {"Si": 100})
    text = str(caught.value)
    assert "the lowest rate is 0.02" in text
    assert "about 99 frames" in text or "about 100 frames" in text or "about 101 frames" in text
    assert calibration.false_alarm(0.02, {"Si": 100}) == {"Si": 49.0}
    with pytest.raises(CalibrationError):
        calibration.false_alarm(0.02, {"Si": 400})


def test_frames_of_mixed_sizes_are_pooled_by_atom():
    """Maxima of a known distribution: whatever the sizes of frames, the threshold is near the true one."""
    rng = np.random.default_rng(3)
    for sizes in (np.full(4000, 50), rng.choice([10, 50, 200], 4000), rng.choice([5, 500], 4000)):
        maxima = -np.log(-np.log(rng.random(4000)) / sizes)  # P(max ≤ t) = exp(−n e^{−t})
        found = calibration_of(maxima, sizes).false_alarm(0.1, {"Si": 100})["Si"]
        assert found == pytest.approx(-math.log(-math.log(0.9) / 100), abs=0.25)


def test_several_elements_share_one_threshold_or_the_rate():
    rng = np.random.default_rng(4)
    sizes = np.column_stack([np.full(3000, 60), np.full(3000, 20)])
    maxima = -np.log(-np.log(rng.random((3000, 2))) / sizes) + [0.0, 2.0]
    calibration, counts = calibration_of(maxima, sizes, ("Na", "Cl")), {"Na": 60, "Cl": 20}
    one = calibration.false_alarm(0.1, counts)
    assert one["Na"] == one["Cl"] == pytest.approx(math.log((60 + 20 * math.exp(2)) / -math.log(0.9)), abs=0.25)
    each = calibration.false_alarm(0.1, counts, per_element=True)
    assert each["Na"] == pytest.approx(-math.log(-math.log(0.9) / 2 / 60), abs=0.3)
    assert each["Cl"] == pytest.approx(2 - math.log(-math.log(0.9) / 2 / 20), abs=0.3)
    above = (maxima > [each["Na"], each["Cl"]]).any(axis=1).mean()
    assert above == pytest.approx(0.1, abs=0.015)
    assert (maxima > one["Na"]).any(axis=1).mean() == pytest.approx(0.1, abs=0.015)
    assert set(calibration.false_alarm(0.1, {"Na": 10, "Cl": 0})) == {"Na"}


@given(seed=st.integers(0, 50), data=st.data())
@settings(deadline=None, max_examples=50)
def test_thresholds_rise_with_atoms_and_fall_with_the_rate(seed, data):
    rng = np.random.default_rng(seed)
    calibration = calibration_of(rng.normal(size=300), rng.integers(1, 200, 300))
    rates = sorted(data.draw(st.lists(st.floats(0.2, 0.9), min_size=2, max_size=4)))
    sizes = sorted(data.draw(st.lists(st.integers(1, 100), min_size=2, max_size=4)))
    found = np.array([[calibration.false_alarm(r, {"Si": n})["Si"] for n in sizes] for r in rates])
    assert (np.diff(found, axis=0) <= 0).all()
    assert (np.diff(found, axis=1) >= 0).all()


def test_an_element_that_is_missing_or_alone_in_its_group_is_refused():
    calibration = calibration_of([[0.0, math.inf], [1.0, -math.inf]] * 20, [[8, 8], [8, 0]] * 20, ("Si", "Ge"))
    with pytest.raises(CalibrationError, match="Na is not in the calibration"):
        calibration.false_alarm(0.5, {"Na": 3})
    with pytest.raises(CalibrationError, match="no finite threshold for Ge"):
        calibration.false_alarm(0.5, {"Ge": 8})
    assert calibration.false_alarm(0.5, {"Si": 8})["Si"] in (0.0, 1.0)


# -- kept in the file ------------------------------------------------------------------------------


def test_a_calibration_is_kept_in_the_file(tmp_path):
    frames = [f for name in "abc" for f in moving(4, ord(name), memory=0, group=name)]
    index = built(frames)
    index.calibration = calibrate(index)
    index.save(tmp_path / "a.qindex")
    again = Index.open(tmp_path / "a.qindex")
    assert again.frame_groups == tuple(f.group for f in frames)
    for name, value in vars(index.calibration).items():
        np.testing.assert_array_equal(getattr(again.calibration, name), value)
    np.testing.assert_array_equal(calibrate(again).maxima, index.calibration.maxima)


def test_an_infinite_maximum_is_kept(tmp_path):
    index = built(moving(3, 1, memory=0))
    index.calibration = calibration_of([[0.5], [math.inf], [-math.inf]], [[16], [16], [0]])
    index.save(tmp_path / "a.qindex")
    np.testing.assert_array_equal(Index.open(tmp_path / "a.qindex").calibration.maxima, index.calibration.maxima)


def test_the_pairs_of_all_groups_are_named_once():
    """`frame_groups` has a name per frame, whatever the order of frames."""
    frames = list(itertools.chain(*zip(moving(3, 1, group="a"), moving(3, 2, group="b"), strict=True)))
    assert built(frames).frame_groups == ("a", "b") * 3
