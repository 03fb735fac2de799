"""Calibrated local residuals: the fit against plain loops, what it promises, what it refuses, and its files."""

from __future__ import annotations

import dataclasses
import json
import math

import naive
import numpy as np
import pytest
from ase.build import bulk
from calibrations import moving
from forging import forged, header_of, refuse

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import CalibrationError, InputError
from quests_md.frame import Frame
from quests_md.index import Index, LocalBound, Residuals, calibrate, fit_local_bound, match_residuals
from quests_md.index._conformal import draw_medians, find_median
from quests_md.index._local import measure_left_out
from quests_md.index._local_fit import _choose_references

H = 0.015
NAME = {"name": "SNAP", "fingerprint": "0" * 64}
ADDED = 0.005  # eV/Å


def own_index(frames=24, per=20, seed=0, scale=1.0, order=None, unknown=0.0, groups=()):
    """Return an index of own descriptors; errors grow along the first column, and scatter around that by structure."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0.4, 0.0, 12) + rng.normal(0.0, 0.01, (frames, per, 12))
    size = (0.05 + 5.0 * np.abs(rows[..., 0] - 0.4)) * np.exp(0.3 * rng.normal(size=(frames, 1)))
    errors = size * np.abs(rng.normal(size=(frames, per)))
    errors[rng.random(errors.shape) < unknown] = np.nan
    order = np.arange(frames) if order is None else order
    rows, errors = rows[order].reshape(-1, 12), scale * errors[order].ravel()
    index = Index.from_descriptors(rows, H, frame_offsets=np.arange(frames + 1) * per)
    if groups:
        index = dataclasses.replace(index, frame_groups=tuple(groups))
    return index.with_residuals(Residuals(**NAME, origin="training", values=errors[index.order]))


def plain_quantile(ratios, structures, share, unseen):
    """Return the smallest ratio below which lies this share, all structures weighing the same."""
    kinds = sorted(set(structures))
    for bound in sorted(ratios):
        shares = [np.mean([r <= bound for r, s in zip(ratios, structures, strict=True) if s == k]) for k in kinds]
        if sum(shares) / (len(kinds) + unseen) >= share - 1e-12:
            return bound
    return math.inf


# -- left-out references ---------------------------------------------------------------------------


def test_the_factors_are_those_of_plain_loops():
    index = own_index(unknown=0.2)
    bound = fit_local_bound(index, coverage=0.8, threads=1)
    values, frame = index.residuals_of().values.astype(float), index.order // 20
    rows = index.rows.astype(float)
    ratios, structures, dH = [], [], []
    for row in np.flatnonzero(~np.isnan(values)):
        others = frame != frame[row]
        (s,) = naive.local_residuals(rows[[row]], rows[others], values[others], H)
        ratios.append(values[row] / (s + ADDED))
        structures.append(frame[row])
        dH.append(-naive.log_kernel_sum(rows[[row]], rows[others], H)[0])
    factors = bound.elements["X"]
    assert factors.median == pytest.approx(plain_quantile(ratios, structures, 0.5, 0), rel=0.02)
    assert factors.factor == pytest.approx(plain_quantile(ratios, structures, 0.8, 1), rel=0.02)
    assert factors.largest == pytest.approx(max(dH), abs=1e-3)
    assert (bound.structures, bound.environments) == (24, len(ratios))
    assert (factors.structures, factors.environments) == (24, len(ratios))
    assert (bound.potential, bound.fingerprint, bound.errors) == ("SNAP", "0" * 64, "left out")
    assert (bound.excess, bound.excess_low, bound.excess_high, bound.warning) == (1.0, 1.0, 1.0, "")


def test_left_out_dH_comes_in_the_same_pass():
    index = own_index(frames=6)
    asked = np.arange(0, len(index), 5)
    dH, s = measure_left_out(index, index.residuals_of(), asked)
    frame, rows = index.order // 20, index.rows.astype(float)
    for place, row in enumerate(asked):
        others = frame != frame[row]
        assert dH[place] == pytest.approx(-naive.log_kernel_sum(rows[[row]], rows[others], H)[0], abs=2e-4)
    assert np.isfinite(s).all()


@pytest.fixture(scope="module")
def fitted():
    index = own_index()
    return index, fit_local_bound(index, coverage=0.8, threads=1)


def test_larger_errors_have_a_larger_bound():
    """Where the 0.005 eV/Å that are added do not matter: errors that are ten times larger, and so are the bounds."""
    one, ten = own_index(scale=1e6), own_index(scale=1e7)
    bounds = [fit_local_bound(index, coverage=0.8, threads=1) for index in (one, ten)]
    query, nowhere = one.rows.astype(float) + one.centre, np.zeros(len(one), int)
    (dH, s), (_, wide) = one.local_residuals(query), ten.local_residuals(query)
    np.testing.assert_allclose(wide, 10.0 * s, rtol=1e-5)
    inside = bounds[0].bound(dH, s, nowhere)
    assert np.isfinite(inside).all()
    np.testing.assert_allclose(bounds[1].bound(dH, wide, nowhere), 10.0 * inside, rtol=1e-3)
    expected = [bound.expected(dH, some, nowhere) for bound, some in zip(bounds, (s, wide), strict=True)]
    np.testing.assert_allclose(expected[1], 10.0 * expected[0], rtol=1e-3)


def test_the_order_of_frames_does_not_matter(fitted):
    _, bound = fitted
    other = fit_local_bound(own_index(order=np.random.default_rng(1).permutation(24)), coverage=0.8, threads=1)
    assert other.elements["X"].median == pytest.approx(bound.elements["X"].median, rel=1e-4)
    assert other.elements["X"].factor == pytest.approx(bound.elements["X"].factor, rel=1e-4)


def test_frames_like_those_of_the_fit_are_covered_as_often_as_asked():
    """Exchangeable structures: half of them are the reference, the other half is asked about."""
    shares = []
    for seed in range(12):
        both = own_index(frames=60, per=10, seed=seed)
        errors, rows = np.empty(600), np.empty((600, 12))
        errors[both.order], rows[both.order] = both.residuals_of().values, both.rows + both.centre
        half = Index.from_descriptors(rows[:300], H, frame_offsets=np.arange(31) * 10)
        half = half.with_residuals(Residuals(**NAME, origin="training", values=errors[:300][half.order]))
        bound = fit_local_bound(half, coverage=0.8, threads=1)
        assert bound.low <= bound.covered <= bound.high
        assert bound.covered == pytest.approx(0.8, abs=0.08)
        dH, s = half.local_residuals(rows[300:])
        shares.append(np.mean(errors[300:] <= bound.bound(dH, s, np.zeros(300))))
    assert np.mean(shares) == pytest.approx(0.8, abs=0.04)


def test_outside_nothing_is_said(fitted):
    _, bound = fitted
    factors = bound.elements["X"]
    dH = np.array([factors.largest, np.nextafter(factors.largest, np.inf), 0.0, math.nan, 0.0])
    s, numbers = np.array([0.1, 0.1, math.nan, 0.1, 0.1]), np.array([0, 0, 0, 0, 14])
    inside = [0.105 * factors.median, *[math.nan] * 4]
    np.testing.assert_allclose(bound.expected(dH, s, numbers), inside)
    np.testing.assert_allclose(bound.bound(dH, s, numbers), [0.105 * factors.factor, *[math.inf] * 4])
    with pytest.raises(InputError, match="of one length"):
        bound.bound(dH, s, [0])


def test_groups_are_left_out_and_counted_as_one():
    groups = [f"run {i // 2}" for i in range(24)]
    assert fit_local_bound(own_index(groups=groups), threads=1).structures == 12
    with pytest.raises(
        CalibrationError, match=r"at least 9 labelled structures .* there are 6: give more frames resid"
    ):
        fit_local_bound(own_index(groups=[f"run {i // 4}" for i in range(24)]), threads=1)


def test_nonsense_and_missing_residuals_are_refused():
    index = own_index()
    with pytest.raises(InputError, match="coverage must be a share"):
        fit_local_bound(index, coverage=1.0)
    with pytest.raises(InputError, match="not of 'POD'"):
        fit_local_bound(index, potential="POD")
    with pytest.raises(InputError, match="has no residuals"):
        fit_local_bound(index.with_residuals())
    lone = own_index(frames=1)
    with pytest.raises(CalibrationError, match="no environment has a local residual of SNAP"):
        fit_local_bound(lone, threads=1)


def test_many_references_are_sampled_by_frames_or_evenly():
    small, large = np.repeat(np.arange(1000), 50), np.repeat(np.arange(20), 2500)
    rows = _choose_references(small, np.ones(50_000, bool))
    assert len(rows) == 20_000
    assert set(np.bincount(small[rows]).tolist()) <= {0, 50}
    rows = _choose_references(large, np.ones(50_000, bool))
    assert len(np.unique(rows)) == 20_000
    assert set(np.bincount(large[rows]).tolist()) == {1000}
    known = np.arange(50_000) % 5 == 0
    assert np.array_equal(_choose_references(large, known), np.flatnonzero(known))


def test_medians_of_a_bootstrap_scatter_around_the_median():
    rng = np.random.default_rng(0)
    values, structures = rng.gamma(2.0, size=900), rng.integers(0, 60, 900)
    drawn = np.fromiter(draw_medians(values, structures, 0), float)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert low < find_median(values, structures) < high
    assert high - low < 0.4
    assert set(draw_medians(values[:1], structures[:1], 0)) == {values[0]}


@pytest.mark.parametrize("species", ["ignore", "centre"])
def test_each_element_has_factors_of_its_own(species):
    frames, rng = [], np.random.default_rng(0)
    for seed in range(12):
        atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
        atoms.rattle(0.05, seed=seed)
        carbon = atoms.numbers == 6
        frames.append((Frame.from_atoms(atoms), np.where(carbon, 1.0, 0.1) * np.abs(rng.normal(size=8))))
    index = Index.build([frame for frame, _ in frames], DescriptorSpec(species=species), threads=1)
    index = index.with_residuals(match_residuals(index, frames, **NAME, threads=1))
    bound = fit_local_bound(index, threads=1)
    assert list(bound.elements) == ["C", "Si"]
    assert [f.environments for f in bound.elements.values()] == [48, 48]
    values, numbers = index.residuals_of().values, index.numbers
    dH, s = measure_left_out(index, index.residuals_of(), np.arange(len(index)))
    for symbol, z in (("C", 6), ("Si", 14)):
        mine = numbers == z
        ratio = values[mine] / (s[mine] + ADDED)
        assert bound.elements[symbol].median == pytest.approx(find_median(ratio, index.order[mine] // 8))
        assert bound.elements[symbol].largest == dH[mine].max()
        assert np.mean(values[mine] <= bound.bound(dH, s, numbers)[mine]) >= 0.9


# -- labelled frames -------------------------------------------------------------------------------


def errors_on(frames, seed, scale):
    rng = np.random.default_rng(seed)
    return [(frame, scale * np.abs(rng.normal(size=16))) for frame in frames]


@pytest.fixture(scope="module")
def silicon():
    """An index of silicon with residuals of about 0.1 eV/Å."""
    frames = moving(20, 1, memory=0)
    index = Index.build(frames, threads=1)
    return index.with_residuals(match_residuals(index, errors_on(frames, 2, 0.1), **NAME, threads=1))


def test_held_out_errors_that_are_larger_rescale_the_bound_and_say_so(silicon):
    labelled = errors_on(moving(30, 5, memory=0), 6, 0.2)
    bound = fit_local_bound(silicon, labelled, threads=1)
    left_out = fit_local_bound(silicon, threads=1)
    assert (bound.errors, bound.structures, bound.environments) == ("held out", 30, 480)
    assert 1.0 < bound.excess_low < bound.excess < bound.excess_high
    assert bound.excess == pytest.approx(2.0, abs=0.4)
    assert bound.excess == pytest.approx(bound.elements["Si"].median / left_out.elements["Si"].median, rel=0.05)
    assert bound.elements["Si"].factor > 1.5 * left_out.elements["Si"].factor
    said = f"errors on held-out frames are {bound.excess:.2g} ({bound.excess_low:.2g} to {bound.excess_high:.2g}) times"
    assert bound.warning.startswith(said)
    assert bound.elements["Si"].largest == pytest.approx(
        max(silicon.delta_entropy(frame).max() for frame, _ in labelled), abs=1e-9
    )


def test_held_out_errors_like_those_of_the_reference_warn_of_nothing(silicon):
    bound = fit_local_bound(silicon, errors_on(moving(30, 5, memory=0), 6, 0.1), threads=1)
    assert bound.excess_low < 1.0 < bound.excess_high
    assert bound.warning == ""


def test_without_a_left_out_reference_the_factor_is_not_known():
    (frame,) = moving(1, 1, memory=0)
    index = Index.build([frame], threads=1)
    index = index.with_residuals(match_residuals(index, errors_on([frame], 2, 0.1), **NAME, threads=1))
    bound = fit_local_bound(index, errors_on(moving(9, 5, memory=0), 6, 0.2), threads=1)
    assert (bound.excess, bound.excess_low, bound.warning) == (None, None, "")
    assert LocalBound.from_json(bound.to_json()) == bound


def test_frames_of_the_reference_and_too_few_structures_are_refused(silicon):
    labelled = errors_on([*moving(12, 5, memory=0), moving(20, 1, memory=0)[4]], 6, 0.2)
    with pytest.raises(CalibrationError, match=r"1 of 13 labelled frames are in the reference .the first is frame 12,"):
        fit_local_bound(silicon, labelled, threads=1)
    with pytest.raises(CalibrationError, match=r"needs at least 9 labelled structures .* there are 8: label more"):
        fit_local_bound(silicon, labelled[:8], threads=1)
    with pytest.raises(CalibrationError, match="no labelled frames"):
        fit_local_bound(silicon, [])
    for wrong in (-0.1, 1e300):
        labelled[0][1][3] = wrong
        with pytest.raises(InputError, match="no force errors"):
            fit_local_bound(silicon, labelled[:12], threads=1)


# -- kept in the file ------------------------------------------------------------------------------


@pytest.fixture
def saved(fitted, tmp_path):
    index, bound = fitted
    index = dataclasses.replace(index, calibration=dataclasses.replace(calibrate(index), local_error=bound))
    index.save(tmp_path / "a.qindex")
    return index, tmp_path / "a.qindex"


def test_a_bound_is_kept_in_the_file_and_by_a_new_calibration(saved):
    index, path = saved
    again = Index.open(path)
    assert again.calibration.local_error == index.calibration.local_error
    assert calibrate(again).local_error == index.calibration.local_error
    plain = dataclasses.replace(index.calibration, local_error=None)
    assert "local_error" not in plain.to_json()  # the file that it was


def test_other_residuals_drop_the_bound(saved):
    index, path = saved
    one = index.residuals_of()
    other = dataclasses.replace(one, name="POD")
    assert index.with_residuals(one, other).calibration.local_error is not None
    for changed in (other, dataclasses.replace(one, squarings=1), dataclasses.replace(one, values=one.values * 2)):
        index.with_residuals(changed).save(path)
        assert Index.open(path).calibration.local_error is None


def test_a_bound_of_other_residuals_or_references_is_refused(saved):
    index, path = saved
    one, added = index.residuals_of(), {"created": "today", "frames": 1, "environments": 1, "sources": []}
    for change in (
        {"generation": 1, "provenance": {"generations": [{"generation": 1, **added}]}},
        {"bandwidth": 0.02},
        {"rows": index.rows + np.float32(1e-6)},
        {"residuals": (dataclasses.replace(one, fingerprint="1" * 64),)},
        {"residuals": (dataclasses.replace(one, name="POD"),)},
        {"residuals": (dataclasses.replace(one, values=one.values * 2),)},
        {"residuals": (dataclasses.replace(one, squarings=2),)},
        {"residuals": ()},
    ):
        dataclasses.replace(index, **change).save(path)
        refuse(path, match="its bound from local residuals was fitted to other residuals, other references or another")


def test_forged_bounds_are_refused(saved):
    index, path = saved
    content = path.read_bytes()
    data, entry = index.calibration.local_error.to_json(), index.calibration.local_error.to_json()["elements"]["X"]
    shares = (1.5, -0.1, "1", math.nan, 1)
    wrong = [
        *([], None, 3, {}, {**data, "more": 1}, {k: v for k, v in data.items() if k != "elements"}),
        *({**data, key: value} for key in ("covered", "low", "high", "coverage") for value in shares),
        *({**data, key: value} for key in ("structures", "environments") for value in (0, 1.5, True)),
        *({**data, key: value} for key in ("fingerprint", "reference") for value in (3, "0", "x" * 64, "1" * 64)),
        *({**data, "potential": value} for value in (3, "POD")),
        *({**data, "errors": value} for value in ("training", 3, [], "held out\n")),
        *({**data, key: value} for key in ("excess", "excess_low", "excess_high") for value in (2.0, None, "1", True)),
        *({**data, "errors": "held out", "excess": value} for value in (0.5, None, math.nan, "1", [])),
        *({**data, "elements": some} for some in ({}, [], {"Zz": entry}, {"Si": entry}, {"X": [3]}, {"X": {}})),
        *(
            {**data, "elements": {"X": {**entry, key: value}}}
            for key, values in {
                **dict.fromkeys(("median", "factor"), (-1.0, math.inf, math.nan, "1", None, 1)),
                "largest": (math.inf, math.nan, "1", None, 1),
                "covered": shares,
                "environments": (0, -1, True),
            }.items()
            for value in values
        ),
    ]
    header = json.loads(header_of(content)[0])
    for some in wrong:
        calibration = {**header["calibration"], "local_error": some}
        path.write_bytes(forged(content, {**header, "calibration": calibration}))
        refuse(path)
