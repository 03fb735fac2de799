"""The bound of the force error: its quantiles, its coverage, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from ase.build import bulk
from calibrations import moving
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md import DescriptorSpec, Frame
from quests_md.errors import CalibrationError, IndexFileError, InputError
from quests_md.index import ErrorBin, ErrorBound, Index, calibrate, find_known, fit_error_bound
from quests_md.index._conformal import estimate_interval, find_quantile
from quests_md.index._force_error import _find_bin_ends, _Fit


@pytest.fixture(scope="module")
def index():
    return Index.build(moving(20, 1, memory=0), threads=1)


def with_errors(frames, seed=3, slope=0.02):
    """Return frames with errors that grow with how far the atoms are displaced, and by structure."""
    rng = np.random.default_rng(seed)
    return [(f, (0.05 + slope * i / len(frames)) * np.abs(rng.normal(size=16))) for i, f in enumerate(frames)]


def hotter(n, seed):
    """Return n frames of one atom count, each hotter than the one before."""
    return [moving(1, seed + i, scale=0.04 + 0.1 * i / n, memory=0)[0] for i in range(n)]


# -- the quantile ----------------------------------------------------------------------------------


def obvious_quantile(errors, structures, coverage):
    """Return the smallest error below which lie `coverage` of all, one unseen structure of infinite errors included."""
    kinds = sorted(set(structures))
    for bound in sorted(errors):
        shares = [np.mean([e <= bound for e, s in zip(errors, structures, strict=True) if s == k]) for k in kinds]
        if sum(shares) / (len(kinds) + 1) >= coverage - 1e-12:
            return bound
    return math.inf


@given(data=st.data(), seed=st.integers(0, 1000), coverage=st.sampled_from([0.5, 0.8, 0.9]))
@settings(deadline=None)
def test_the_quantile_is_that_of_the_obvious_loop(data, seed, coverage):
    rng = np.random.default_rng(seed)
    n = data.draw(st.integers(1, 40))
    errors, structures = rng.integers(0, 15, n) / 10.0, rng.integers(0, data.draw(st.integers(1, 15)), n)
    assert find_quantile(errors, structures, coverage) == obvious_quantile(errors, structures, coverage)


def test_structures_of_one_environment_give_the_usual_conformal_rank():
    errors = np.random.default_rng(0).permutation(np.arange(19.0))
    assert find_quantile(errors, np.arange(19), 0.9) == 17.0  # the 18th of 19: ceil(0.9 · 20)
    assert find_quantile(errors[:8], np.arange(8), 0.9) == math.inf
    assert find_quantile(errors[:9], np.arange(9), 0.9) == errors[:9].max()


def test_a_new_structure_is_covered_as_often_as_was_asked():
    """Structures differ in how wrong the model is: pooled atoms would be a wrong sample, structures are not."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(1500):
        scale = np.exp(rng.normal(size=31))
        sizes = rng.integers(1, 12, 31)
        structures = np.repeat(np.arange(31), sizes)
        errors = np.abs(rng.normal(size=len(structures))) * scale[structures]
        new = structures == 30
        covered.append((errors[new] <= find_quantile(errors[~new], structures[~new], 0.8)).mean())
    assert 0.8 - 0.02 < np.mean(covered) < 0.8 + 1 / 31 + 0.02


# -- bins ------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 200), n=st.integers(1, 400), k=st.integers(1, 80))
@settings(deadline=None)
def test_bins_hold_enough_structures_and_reach_the_largest_dH(seed, n, k):
    rng = np.random.default_rng(seed)
    dH, structures = np.round(rng.normal(size=n), 2), rng.integers(0, k, n)
    ends = _find_bin_ends(dH, structures, 0.8)
    assert ends[-1] == dH.max()
    assert (np.diff(ends) > 0).all()
    place = np.searchsorted(ends, dH)
    if len(ends) > 1:
        assert min(len(np.unique(structures[place == b])) for b in range(len(ends))) >= 10


def test_bounds_never_fall_with_dH_and_are_inf_beyond_the_data():
    rng = np.random.default_rng(2)
    dH = rng.uniform(-5, 20, 4000)
    errors = np.abs(rng.normal(size=4000)) * (0.1 + 0.01 * np.abs(dH - 5))  # falls first
    fit = _Fit(dH, errors, rng.integers(0, 100, 4000), 0.9)
    assert len(fit.bounds) > 5
    assert (np.diff(fit.bounds) >= 0).all()
    assert fit.of(np.array([dH.max(), dH.max() + 1e-6])).tolist() == [fit.bounds[-1], math.inf]
    assert fit.bounds[-1] > fit.bounds[0]


def test_the_interval_is_over_structures():
    covered = np.repeat([True, False], 500)
    structures = np.arange(1000) // 100  # ten structures, five of them covered: not a thousand atoms
    share, low, high = estimate_interval(covered, structures)
    assert share == 0.5
    assert low == pytest.approx(0.2, abs=0.05)
    assert high == pytest.approx(0.8, abs=0.05)


# -- fitted to frames ------------------------------------------------------------------------------


def test_a_bound_of_labelled_frames(index):
    labelled = with_errors(hotter(60, 100), slope=0.3)
    bound = fit_error_bound(index, labelled, coverage=0.8, potential="SNAP", threads=1)
    bins = bound.bins["Si"]
    assert (bound.structures, bound.environments, bound.potential) == (60, 960, "SNAP")
    assert len(bins) >= 3
    assert bins[-1].bound > 2 * bins[0].bound
    assert sum(b.environments for b in bins) == 960
    assert bound.low <= bound.covered <= bound.high
    assert bound.covered == pytest.approx(0.8, abs=0.06)
    dH = np.concatenate([index.delta_entropy(frame) for frame, _ in labelled])
    errors = np.concatenate([e for _, e in labelled])
    fitted = bound.bound(dH, np.full(len(dH), 14))
    assert np.isfinite(fitted).all()
    assert (errors <= fitted).mean() >= 0.8
    below = bound.threshold(bins[1].bound, "Si")
    assert below == bins[1].upper
    assert bound.bound([below, below + 1e-9], [14, 14])[0] <= bins[1].bound
    np.testing.assert_array_equal(bound.bound([dH.max() + 1, math.nan, 0.0], [14, 14, 32]), [math.inf] * 3)


def test_frames_of_one_group_are_one_structure(index):
    frames = [dataclasses.replace(f, n_local=None, group=str(i // 3)) for i, f in enumerate(hotter(60, 100))]
    assert fit_error_bound(index, with_errors(frames), threads=1).structures == 20


def test_frames_of_the_reference_are_refused(index):
    known = moving(20, 1, memory=0)
    labelled = with_errors([*hotter(30, 100), known[4], *known[8:10]])
    with pytest.raises(CalibrationError, match=r"3 of 33 labelled frames are in the reference .the first is frame 30,"):
        fit_error_bound(index, labelled, threads=1)


@pytest.mark.parametrize("species", ["ignore", "full", "centre", "neighbours"])
def test_frames_of_the_reference_are_found_in_each_kind_of_descriptor(species):
    frames = []
    for seed in range(14):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (1, 1, 2)
        atoms.rattle(0.06, seed=seed)
        frames.append(Frame.from_atoms(atoms))
    index = Index.build(frames[:4], DescriptorSpec(species=species), threads=1)
    known = [find_known(index, index.spec.compute(frame, 1), 1) for frame in frames[2:6]]
    assert [(some.all(), some.any()) for some in known] == [(True, True)] * 2 + [(False, False)] * 2
    assert fit_error_bound(index, with_errors(frames[4:]), threads=1).environments == 160
    with pytest.raises(CalibrationError, match="1 of 11 labelled frames are in the reference"):
        fit_error_bound(index, with_errors(frames[3:]), threads=1)


def test_too_few_structures_and_nonsense_are_refused(index):
    with pytest.raises(CalibrationError, match=r"needs at least 9 labelled structures .* and there are 8"):
        fit_error_bound(index, with_errors(hotter(8, 100)), threads=1)
    assert len(fit_error_bound(index, with_errors(hotter(9, 100)), threads=1).bins["Si"]) == 1
    with pytest.raises(CalibrationError, match="no labelled frames"):
        fit_error_bound(index, [])
    for coverage in (0.0, 1.0, 1, math.nan):
        with pytest.raises(InputError, match="coverage must be a share"):
            fit_error_bound(index, with_errors(hotter(9, 100)), coverage=coverage)
    (frame, errors), *_ = with_errors(hotter(1, 100))
    for wrong in (errors[1:], np.full(16, math.nan)):
        with pytest.raises(InputError, match="frame 0: the force errors must be 16 finite numbers"):
            fit_error_bound(index, [(frame, wrong)])


def test_arrays_of_two_lengths_are_refused(index):
    bound = fit_error_bound(index, with_errors(hotter(9, 100)), threads=1)
    with pytest.raises(InputError, match="of one length"):
        bound.bound([1.0, 2.0], [14])


# -- kept in the file ------------------------------------------------------------------------------


@pytest.fixture
def calibrated(index):
    bound = fit_error_bound(index, with_errors(hotter(30, 100)), potential="SNAP", threads=1)
    whole = dataclasses.replace(calibrate(index, threads=1), force_error=bound)
    return dataclasses.replace(index, calibration=whole)


def test_a_bound_is_kept_in_the_file_and_by_a_new_calibration(calibrated, tmp_path):
    calibrated.save(tmp_path / "a.qindex")
    again = Index.open(tmp_path / "a.qindex")
    assert again.calibration.force_error == calibrated.calibration.force_error
    assert calibrate(again).force_error == calibrated.calibration.force_error


@pytest.mark.parametrize("change", [{"generation": 1}, {"bandwidth": 0.02}, {"rows": None}])
def test_a_bound_of_another_generation_or_of_other_references_is_refused(calibrated, change, tmp_path):
    if "rows" in change:
        change = {"rows": calibrated.rows + np.float32(1e-6)}
    if "generation" in change:
        added = {"generation": 1, "created": "today", "frames": 1, "environments": 1, "sources": []}
        change = change | {"provenance": {"generations": [added]}}
    dataclasses.replace(calibrated, **change).save(tmp_path / "a.qindex")
    with pytest.raises(IndexFileError, match=r"a\.qindex: its bound of the force error was fitted to other references"):
        Index.open(tmp_path / "a.qindex")


def test_data_that_cannot_be_a_bound_are_refused(calibrated):
    data = calibrated.calibration.force_error.to_json()
    assert ErrorBound.from_json(data) == calibrated.calibration.force_error
    entry = data["bins"]["Si"][0]
    wrong = [
        [],
        {**data, "more": 1},
        {k: v for k, v in data.items() if k != "bins"},
        *({**data, key: value} for key in ("covered", "low", "high", "coverage") for value in (1.5, "1", math.nan, 1)),
        *({**data, key: value} for key in ("structures", "environments") for value in (0, 1.5, True)),
        *({**data, key: 3} for key in ("potential", "reference")),
        *({**data, "bins": bins} for bins in ({}, [], {"Si": []}, {"Zz": [entry]}, {"Si": [3]}, {"Si": [{}]})),
        *(
            {**data, "bins": {"Si": [{**entry, key: value}]}}
            for key in ("upper", "bound")
            for value in (math.inf, math.nan, "1", None)
        ),
        {**data, "bins": {"Si": [{**entry, "bound": -0.1}]}},
        {**data, "bins": {"Si": [entry, {**entry, "upper": entry["upper"] - 1.0}]}},
    ]
    for some in wrong:
        with pytest.raises((ValueError, KeyError, TypeError)):
            ErrorBound.from_json(some)


def test_bins_say_what_they_were_fitted_to(calibrated):
    bins = calibrated.calibration.force_error.bins["Si"]
    assert all(isinstance(entry, ErrorBin) and entry.structures >= 20 for entry in bins)
    assert sum(entry.environments for entry in bins) == 480
