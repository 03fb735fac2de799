"""What thresholds mean on an index: rates, frames above, and what is called far or low."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from quests_md import DescriptorSpec, Index
from quests_md.errors import CalibrationError, InputError
from quests_md.index import (
    Calibration,
    ErrorBin,
    ErrorBound,
    calibrate,
    check_threshold,
    explain_threshold,
    resolve_threshold,
)
from quests_md.information import suggest_bandwidth

COUNTS = {"Si": 64}


@pytest.fixture(scope="module")
def index() -> Index:
    frames = [bulk("Si", cubic=True) * (2, 2, 2) for _ in range(40)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    made = Index.build(frames, bandwidth="auto", threads=1)
    made.calibration = calibrate(made, threads=1)
    return made


def maxima(index: Index) -> np.ndarray:
    return np.sort(index.calibration.maxima[:, 0])


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.4])
@pytest.mark.parametrize("n", [64, 32])
def test_the_rate_of_a_threshold_is_the_inverse_of_the_threshold_of_a_rate(index: Index, rate: float, n: int) -> None:
    nats = resolve_threshold("select", {"false_alarm": rate}, index, {"Si": n})
    found, is_least = index.calibration.find_rate(nats, {"Si": n})
    # Thresholds are left-out maxima: the next lower one has a larger rate than was asked for.
    below = maxima(index)[np.searchsorted(maxima(index), nats["Si"]) - 1]
    assert found <= rate < index.calibration.find_rate({"Si": below}, {"Si": n})[0]
    assert not is_least or nats["Si"] == maxima(index)[-1]


def test_frames_of_the_same_size_have_the_rate_of_conformal_prediction(index: Index) -> None:
    """With frames of n atoms alone the rate at n atoms is (frames above + 1) / (frames + 1)."""
    for above in (0, 1, 4, 15):
        nats = {"Si": float(maxima(index)[-1 - above])}
        meaning = explain_threshold("select", nats, index, COUNTS)
        assert (meaning.above, meaning.frames) == (above, 40)
        assert meaning.rate == pytest.approx((above + 1) / 41, rel=1e-6)
        assert meaning.is_least is (above == 0)
        assert ("at most" in meaning.in_words()) is (above == 0)
        assert meaning.warning == ""


def test_more_atoms_have_more_false_alarms(index: Index) -> None:
    nats = {"Si": float(maxima(index)[-5])}
    rates = [explain_threshold("select", nats, index, {"Si": n}).rate for n in (16, 64, 1000)]
    assert rates == sorted(rates)
    assert rates[2] == pytest.approx(1 - (1 - rates[1]) ** (1000 / 64), rel=1e-9)


def test_what_is_far_is_called_far(index: Index) -> None:
    worst = float(maxima(index)[-1])
    for name, beyond in (("select", 5.0), ("halt", 50.0)):
        assert explain_threshold(name, {"": worst + beyond - 0.1}, index, COUNTS).warning == ""
        warning = explain_threshold(name, {"": worst + beyond + 0.1}, index, COUNTS).warning
        assert f"{name} = {worst + beyond + 0.1:.4g} nats lies far outside the calibrated range" in warning
        assert f"the largest left-out dH of Si is {worst:.4g}" in warning
        assert "give" in warning
    low = explain_threshold("select", {"": float(maxima(index)[10])}, index, COUNTS)
    assert "lies low in the calibrated range" in low.warning
    assert low.above == 29


def test_never_is_no_mistake(index: Index) -> None:
    meaning = explain_threshold("halt", {"": math.inf}, index, COUNTS)
    assert (meaning.rate, meaning.warning, meaning.in_words()) == (None, "", "")


def test_an_index_that_does_not_know_says_so(index: Index) -> None:
    bare = replace(index, calibration=None, path=None)
    warning = explain_threshold("select", {"": 5.0}, bare, COUNTS).warning
    assert warning == (
        "the index has no calibration, so nothing tells what select means: quests_md.index.calibrate(index) makes one"
    )
    assert "Ge is not in the calibration" in explain_threshold("select", {"": 5.0}, index, {"Ge": 8}).warning
    with pytest.raises(CalibrationError, match="Ge is not in the calibration"):
        index.calibration.find_rate({"Ge": 1.0}, {"Ge": 1})


def test_the_bound_of_the_force_error_is_told(index: Index) -> None:
    numbers = {"structures": 20, "environments": 200, "covered": 0.9, "low": 0.8, "high": 1.0}
    bins = (ErrorBin(0.0, 0.1, **numbers), ErrorBin(50.0, 0.4, **numbers))
    bound = ErrorBound({"Si": bins}, 0.9, potential="SNAP", reference="", **numbers)
    known = replace(index, calibration=replace(index.calibration, force_error=bound))
    assert (
        "90 % of force errors at it below 0.1 eV/Å" in explain_threshold("select", {"": -1.0}, known, COUNTS).in_words()
    )
    assert (
        "90 % of force errors at it below 0.4 eV/Å" in explain_threshold("select", {"": 1.0}, known, COUNTS).in_words()
    )
    assert "not bounded" in explain_threshold("select", {"": 51.0}, known, COUNTS).in_words()


def test_elements_are_judged_each_by_its_own(index: Index) -> None:
    sizes = np.full((9, 2), 10)
    values = np.column_stack([np.arange(9.0), np.arange(9.0) + 100.0])
    two = Calibration(("C", "Si"), sizes, values, 9, 9, 0, 1.0, 0.0)
    made = replace(index, calibration=two)
    meaning = explain_threshold("select", {"C": 7.0, "Si": 107.0}, made, {"C": 10, "Si": 10})
    assert (meaning.above, meaning.frames, meaning.warning) == (1, 9, "")
    assert meaning.rate == pytest.approx(1 - (1 - 0.2) ** 2)
    assert "of C is 8" in explain_threshold("select", {"": 105.0}, made, {"C": 10, "Si": 10}).warning


# -- plus --------------------------------------------------------------------------------------------------------------


def test_a_threshold_may_lie_above_that_of_a_rate(index: Index) -> None:
    plain = resolve_threshold("halt", {"false_alarm": 0.1}, index, COUNTS)["Si"]
    assert resolve_threshold("halt", {"false_alarm": 0.1, "plus": 10}, index, COUNTS) == {"Si": plain + 10.0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"plus": 3.0}, "plus do not go together"),
        ({"force_error": 0.1, "plus": 3.0}, "do not go together"),
        ({"false_alarm": 0.1, "plus": -1.0}, "plus must be a number of nats that is not negative, not -1.0"),
        ({"false_alarm": 0.1, "plus": math.nan}, "plus must be"),
        ({"false_alarm": 0.1, "plus": True}, "plus must be"),
        ({"false_alarm": 0.1, "pluss": 1.0}, "did you mean 'plus'"),
    ],
)
def test_plus_is_checked(given: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_threshold("halt", given)


# -- a bandwidth where the volume tells none ---------------------------------------------------------------------------


def salts() -> list:
    frames = [bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2) for _ in range(6)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.08, seed=seed)
    return frames


def test_auto_suggests_one_where_it_has_no_rule() -> None:
    rows = DescriptorSpec(species="neighbours").for_elements({11, 17}).compute(salts(), 1)
    suggested = suggest_bandwidth(rows, np.repeat(np.arange(6), 64))
    with pytest.raises(InputError, match=f"holds for one block, .* give a number; {suggested:.2g} is how far these"):
        Index.build(salts(), species="neighbours", bandwidth="auto", threads=1)


def test_species_can_be_given_in_short() -> None:
    short, long = Index.build(salts(), species="centre"), Index.build(salts(), DescriptorSpec(species="centre"))
    np.testing.assert_array_equal(short.rows, long.rows)
    assert short.spec == long.spec
    with pytest.raises(InputError, match="species is 'full', and that of spec is 'centre': give it once"):
        Index.build(salts(), DescriptorSpec(species="centre"), species="full")


# -- progress ----------------------------------------------------------------------------------------------------------


def test_building_and_calibrating_report_their_progress() -> None:
    shares: list[float] = []
    frames = salts()
    index = Index.build(frames, species="centre", report=shares.append)
    assert shares == pytest.approx([(i + 1) / 6 for i in range(6)])
    shares.clear()
    index.extend(frames[:2], report=shares.append)
    assert shares == pytest.approx([0.5, 1.0])
    shares.clear()
    plain = index.calibration
    made = calibrate(index, report=shares.append)
    assert plain is None
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0 < shares[-1] + 0.3
    np.testing.assert_array_equal(made.maxima, calibrate(index).maxima)
