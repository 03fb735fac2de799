"""Explorations with ASE: real ones, of small cells of copper; what kills their processes is a result."""

from __future__ import annotations

import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from explorations import NEVER, frames_of, one

from quests_md.errors import HostError
from quests_md.index import Index
from quests_md.learning._exploration import Explore, Job, explore
from quests_md.oracle import Potential

TESTS = Path(__file__).parent
EMT = {"call": "ase.calculators.emt:EMT"}


def crystal(scale, seed, n=2):
    atoms = bulk("Cu", cubic=True) * (n, n, n)
    atoms.rattle(scale, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with an index of warm crystals, and a crystal to start from."""
    place = tmp_path_factory.mktemp("parts")
    Index.build([crystal(0.03 + 0.02 * seed, seed) for seed in range(6)], bandwidth=0.03).save(place / "cu.qindex")
    ase.io.write(place / "start.xyz", crystal(0.02, 0))
    return place


@pytest.fixture
def job(parts, tmp_path, monkeypatch):
    """Return a function that makes a job of 40 steps, unless told otherwise, with a calculator."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))

    def make(name="a", calculator=EMT, monitor=NEVER, **more):
        own = {key: more.pop(key) for key in list(more) if key in Job.__dataclass_fields__}
        settings = {"host": "ase", "start": "start.xyz", "temperature": [300.0], "time": 0.04, **more}
        folder = tmp_path / f"potential-{name}"
        folder.mkdir(exist_ok=True)
        Potential(folder, ("Cu",), calculator=calculator).save()
        values = {
            "potential": folder,
            "index": parts / "cu.qindex",
            "start": str(parts / "start.xyz"),
            "temperature": 300.0,
            "pressure": None,
            "seed": 7,
        }
        return Job(name, tmp_path / name, settings=Explore(**settings), monitor=monitor, **{**values, **own})

    return make


def test_one_that_stays_covered(job):
    result = one(job())
    assert (result.status, result.steps, result.frames, result.n_candidates) == ("finished", 40, 9, 0)
    assert (result.covered_share, result.covered_to_end) == (1.0, True)
    (last,) = frames_of(result.last_covered)
    assert last.info["step"] == 40
    assert last.get_temperature() > 50


def test_the_same_seed_gives_the_same_frames_and_another_one_others(job):
    monitor = NEVER | {"select": -5.0, "consecutive": 1, "novelty": False}
    jobs = [job(name, monitor=monitor, seed=seed) for name, seed in (("a", 7), ("b", 7), ("c", 8))]
    same, again, other = explore(jobs, workers=2)
    first, second, third = (frames_of(result.candidates) for result in (same, again, other))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())
    assert not np.array_equal(third[-1].positions, first[-1].positions)


def test_it_goes_on_with_the_velocities_of_the_last_covered_frame(job):
    half = one(job("half", time=0.02))
    rest = one(job("rest", time=0.001, start=str(half.last_covered), continues=True))
    (start,), (found,) = frames_of(half.last_covered), frames_of(rest.last_covered)
    assert found.info["step"] == 0
    np.testing.assert_array_equal(found.positions, start.positions)
    np.testing.assert_allclose(found.get_velocities(), start.get_velocities(), rtol=1e-12)
    drawn = one(job("drawn", time=0.001, start=str(half.last_covered)))
    assert np.abs(frames_of(drawn.last_covered)[0].get_velocities() - start.get_velocities()).max() > 1e-3


def test_a_pressure_moves_the_cell(job):
    squeezed, free = explore([job("p20", pressure=20.0, time=0.4), job("p0", pressure=0.0, time=0.4)], workers=2)
    volumes = [frames_of(result.last_covered)[0].get_volume() for result in (squeezed, free)]
    assert volumes[0] < 0.97 * volumes[1]


def test_a_halt_is_a_result(job):
    asked = job(monitor={"select": 2.0, "halt": 6.0, "every": 5}, temperature=4000.0, time=1.0)
    result = one(asked)
    assert result.status == "halted"
    assert result.first_halt == pytest.approx(result.time) == pytest.approx(result.steps / 1000.0)
    assert frames_of(result.candidates)[-1].info["step"] == result.steps


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("SIGSEGV", "killed by SIGSEGV"),
        ("SIGABRT", "killed by SIGABRT"),
        ("SIGKILL", "killed by SIGKILL"),
        ("exit", "its process ended with exit code 3"),
    ],
)
def test_what_kills_the_process_is_a_result_and_costs_no_other_run(job, what, reason):
    dies = {"call": "dying:Dying", "what": what, "at": 24}
    crashed, whole = explore([job("dies", dies), job("whole")], workers=2)
    assert (crashed.status, crashed.reason, whole.status) == ("crashed", reason, "finished")
    assert "these are my last words" in crashed.log
    assert (crashed.steps, crashed.frames, crashed.covered_share, crashed.covered_to_end) == (20, 5, 1.0, False)
    (last,) = frames_of(crashed.last_covered)
    assert last.info["step"] in (0, 5, 10, 15, 20)
    assert crashed.n_candidates == 0


def test_an_error_of_the_calculator_is_a_result_and_the_frame_before_it_a_candidate(job):
    result = one(job(calculator={"call": "dying:Dying", "what": "raise", "at": 24}))
    assert (result.status, result.reason, result.frames) == ("crashed", "the forces", 5)
    assert "RuntimeError" in result.log
    (candidate,) = frames_of(result.candidates)
    assert (candidate.info["step"], candidate.info["reason"]) == (20, "the last before the forces")


def test_a_calculator_that_cannot_be_made_is_an_error(job):
    with pytest.raises(HostError, match="gives no calculator"):
        one(job(calculator={"call": "dying:Dying"}))
