"""Thresholds as they are given: what is refused, and what the rest comes to."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from quests_md.errors import CalibrationError, InputError
from quests_md.index import Calibration, ErrorBin, ErrorBound, check_threshold, resolve_threshold

MAXIMA = np.arange(100.0)


def index_of(calibration, path=None):
    return SimpleNamespace(calibration=calibration, path=path)


@pytest.fixture
def index():
    shares = {"structures": 30, "environments": 100, "covered": 0.9, "low": 0.8, "high": 1.0}
    bins = tuple(ErrorBin(upper, bound, **shares) for upper, bound in ((0.0, 0.1), (5.0, 0.2), (9.0, 0.4)))
    bound = ErrorBound({"Si": bins}, coverage=0.9, potential="SNAP", reference="ab", **shares)
    sizes = np.column_stack([np.full(100, 64), np.full(100, 32)])
    maxima = np.column_stack([MAXIMA, MAXIMA + 0.5])
    return index_of(Calibration(("Si", "Ge"), sizes, maxima, 100, 25, 0, 1.0, 0.0, bound))


def test_a_number_is_that_of_every_watched_element(index):
    assert resolve_threshold("select", 5, None, {"Si": 8, "Ge": 1, "O": 0}) == {"Si": 5.0, "Ge": 5.0}
    assert resolve_threshold("select", -math.inf, None, {"Si": 8}) == {"Si": -math.inf}


def test_a_value_for_every_element():
    given = {"Si": 5.0, "Ge": 7, "O": 1.0}
    assert resolve_threshold("halt", given, None, {"Si": 8, "Ge": 8}) == {"Si": 5.0, "Ge": 7.0}
    with pytest.raises(InputError, match="halt has no value for Na, which is watched: it has Si, Ge, O"):
        resolve_threshold("halt", given, None, {"Na": 1, "Si": 8})


def test_a_rate_is_asked_of_the_calibration(index):
    found = resolve_threshold("select", {"false_alarm": 0.1}, index, {"Si": 64})
    assert found == {"Si": 90.0}
    assert found == index.calibration.false_alarm(0.1, {"Si": 64})
    both = {"Si": 64, "Ge": 32}
    found = resolve_threshold("select", {"false_alarm": 0.2, "per_element": True}, index, both)
    assert found == index.calibration.false_alarm(0.2, both, per_element=True)
    assert found["Si"] < found["Ge"]
    same = resolve_threshold("select", {"false_alarm": 0.2, "per_element": False}, index, both)
    assert same["Si"] == same["Ge"]


def test_a_rate_that_is_not_resolved_is_refused_with_the_reason(index):
    with pytest.raises(CalibrationError, match=r"^select: a false-alarm rate of 0\.001 .* is not resolved by 100"):
        resolve_threshold("select", {"false_alarm": 0.001}, index, {"Si": 64})


def test_a_force_error_is_the_largest_dH_with_a_bound_below_it(index):
    found = {e: resolve_threshold("select", {"force_error": e}, index, {"Si": 64})["Si"] for e in (0.1, 0.3, 0.4, 9.0)}
    assert found == {0.1: 0.0, 0.3: 5.0, 0.4: 9.0, 9.0: 9.0}
    with pytest.raises(CalibrationError, match=r"no dH of Si has a force error of at most 0\.05 eV/Å"):
        resolve_threshold("select", {"force_error": 0.05}, index, {"Si": 64})
    with pytest.raises(CalibrationError, match="knows Si, not Ge"):
        resolve_threshold("select", {"force_error": 0.3}, index, {"Ge": 64})


@pytest.mark.parametrize("given", [{"false_alarm": 0.1}, {"force_error": 0.1}])
@pytest.mark.parametrize("reference", [index_of(None, "si.qindex"), object()])
def test_without_a_calibration_the_command_is_named(given, reference):
    with pytest.raises(CalibrationError, match=r"select: the index has no calibration; make it: quests-md index cal"):
        resolve_threshold("select", given, reference, {"Si": 8})


def test_without_a_bound_the_command_is_named(index):
    sizes, maxima = np.full((5, 1), 8), np.zeros((5, 1))
    without = index_of(Calibration(("Si",), sizes, maxima, 5, 5, 0, 1.0, 0.0), "si.qindex")
    with pytest.raises(CalibrationError, match=r"quests-md index calibrate si\.qindex --errors"):
        resolve_threshold("select", {"force_error": 0.1}, without, {"Si": 8})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (True, "must be a number of nats"),
        ("5", "must be a number of nats"),
        (math.nan, "must be a number of nats"),
        (None, "must be a number of nats"),
        ([5.0], "must be a number of nats"),
        ({}, "holds nothing"),
        ({"false_alarms": 0.1}, "unknown key 'false_alarms'; did you mean 'false_alarm'?"),
        ({"force_eror": 0.1}, "unknown key 'force_eror'; did you mean 'force_error'?"),
        ({"si": 0.1}, "unknown key 'si'; did you mean 'Si'?"),
        ({"silicon_atoms": 0.1}, "unknown key 'silicon_atoms'; the keys are"),
        ({3: 0.1}, "unknown key 3"),
        ({"X": 0.1}, "unknown key 'X'"),
        ({"Si": "5"}, "Si must be a number of nats, not '5'"),
        ({"Si": math.nan}, "Si must be a number of nats"),
        ({"Si": 5.0, "false_alarm": 0.1}, "do not go together"),
        ({"force_error": 1.0, "false_alarm": 0.1}, "do not go together"),
        ({"per_element": True}, "do not go together"),
        ({"false_alarm": 0.0}, "between 0 and 1"),
        ({"false_alarm": 1}, "between 0 and 1"),
        ({"false_alarm": True}, "between 0 and 1"),
        ({"false_alarm": math.nan}, "between 0 and 1"),
        ({"false_alarm": 0.1, "per_element": 1}, "per_element must be true or false"),
        ({"force_error": 0}, "a positive number of eV/Å"),
        ({"force_error": math.inf}, "a positive number of eV/Å"),
    ],
)
def test_what_is_no_threshold_is_refused(given, match):
    for call in (lambda: check_threshold("halt", given), lambda: resolve_threshold("halt", given, None, {"Si": 8})):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith("halt")
        assert match in str(caught.value)


@pytest.mark.parametrize("given", [5, 5.0, {"Si": 1}, {"false_alarm": 0.1}, {"force_error": 1}])
def test_what_may_be_a_threshold_is_not(given):
    check_threshold("select", given)
