"""Explorations with LAMMPS: real ones, of small cells, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry import find_mic
from explorations import NEVER, frames_of, one
from lammps_runs import ROOT, WHEEL, wheel_potentials
from limits import LIMIT, wait_until

from quests_md.errors import ConfigError, Halted, HostError, InputError, OutputError
from quests_md.index import Index
from quests_md.learning._exploration import Exploration, Explore, Job, explore
from quests_md.sources import read_frames
from quests_md.training import Potential

pytestmark = WHEEL
COMMANDS = ("pair_style sw", "pair_coeff * * {folder}/Si.sw Si")
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


def rows(job):
    lines = (job.folder / "monitor.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


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
    asked = job(monitor=EASY | {"novelty": False}, temperature=3000.0, time=0.1)
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
    asked = job(monitor={"select": 3.0, "halt": 6.0, "every": 5}, temperature=3000.0, time=1.0)
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


def test_a_run_that_goes_on_after_broken_frames_was_not_covered_to_its_end(job, parts):
    potential_in(parts / "nothing", ("pair_style zero 5.0", "pair_coeff * *"))
    monitor = NEVER | {"every": 1, "implausible": "continue"}
    asked = job(monitor=monitor, potential=parts / "nothing", temperature=30_000.0, time=0.15)
    result = one(asked)
    broken = [row["band"] == "implausible" for row in rows(asked)]
    assert any(broken)
    assert (result.status, result.steps, result.covered_to_end) == ("finished", 150, False)
    assert result.covered_share == 1.0  # broken frames do not count


def test_an_error_of_lammps_is_a_crash_whose_last_frame_is_a_candidate(job, tmp_path):
    (tmp_path / "setup").write_text('variable late equal "step > 30"\nfix late all halt 23 v_late > 0 error hard\n')
    asked = job(setup=str(tmp_path / "setup"), time=0.1)
    result = one(asked)
    assert result.status == "crashed"
    assert "halt" in result.reason.lower()
    assert "ERROR" in result.log
    assert (result.n_candidates, result.covered_share) == (1, 1.0)
    (candidate,) = frames_of(result.candidates)
    assert candidate.info["step"] == 45
    assert (rows(asked)[-1]["step"], result.covered_to_end) == ("45", False)


# -- where it begins -------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_frames_and_another_one_others(job):
    monitor = EASY | {"select": -3.0}
    same, again, other = explore([job(name, monitor, seed=seed) for name, seed in (("a", 7), ("b", 7), ("c", 8))])
    first, second, third = (frames_of(result.candidates) for result in (same, again, other))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.arrays["dH"], b.arrays["dH"])
    assert not np.array_equal(third[0].positions, first[0].positions)


def test_velocities_are_drawn_at_the_temperature(job):
    result = one(job(time=0.001, temperature=900.0))
    (last,) = frames_of(result.last_covered)
    assert last.info["step"] == 0
    assert last.get_temperature() == pytest.approx(900.0, rel=0.25)  # of 64 atoms
    np.testing.assert_allclose(last.get_momenta().sum(axis=0), 0.0, atol=1e-9)


def test_it_goes_on_with_positions_and_velocities_of_the_last_covered_frame(job):
    """20 steps, and 20 more from there, are 40 steps: the thermostat is so slow here that it does nothing."""
    whole = one(job("whole", damping=1e9))
    half = one(job("half", time=0.02, damping=1e9))
    rest = one(job("rest", time=0.02, damping=1e9, start=str(half.last_covered), continues=True, seed=99))
    (expected,), (found,) = frames_of(whole.last_covered), frames_of(rest.last_covered)
    moved = np.abs(expected.positions - frames_of(half.last_covered)[0].positions).max()
    assert moved > 0.05
    assert np.abs(find_mic(expected.positions - found.positions, found.cell)[0]).max() < 1e-6
    assert np.abs(expected.get_velocities() - found.get_velocities()).max() < 1e-6
    drawn = one(job("drawn", time=0.02, damping=1e9, start=str(half.last_covered), seed=99))
    assert np.abs(frames_of(drawn.last_covered)[0].get_velocities() - found.get_velocities()).max() > 0.01


def test_a_general_cell_is_the_same_system_in_lammps(job, tmp_path):
    atoms = bulk("Si") * (3, 3, 3)  # a primitive cell, with vectors in no order that LAMMPS would take
    atoms.set_cell(atoms.cell[[1, 2, 0]])
    atoms.rattle(0.05, seed=1)
    atoms.rotate(40.0, (1, 2, 3), rotate_cell=True)
    ase.io.write(tmp_path / "tilted.xyz", atoms)
    asked = job(start=f"{tmp_path}/tilted.xyz@0", time=0.001, monitor=NEVER | {"precision": "double"})
    (last,) = frames_of(one(asked).last_covered)
    dH = Index.open(asked.index).delta_entropy(ase.io.read(tmp_path / "tilted.xyz"))
    np.testing.assert_allclose(last.arrays["dH"], dH, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(last.cell.cellpar(), atoms.cell.cellpar())
    (frame,) = read_frames(last_covered := asked.folder / "last_covered.extxyz")
    np.testing.assert_allclose(Index.open(asked.index).delta_entropy(frame), dH, rtol=1e-7, atol=1e-7)
    again = job("again", start=str(last_covered), continues=True, time=0.001, monitor=NEVER | {"precision": "double"})
    (further,) = frames_of(one(again).last_covered)
    np.testing.assert_allclose(further.get_all_distances(mic=True), last.get_all_distances(mic=True), atol=1e-9)
    np.testing.assert_allclose(further.get_velocities(), last.get_velocities(), atol=1e-9)


def test_a_pressure_moves_the_cell(job):
    squeezed, free = explore([job("p20", pressure=20.0, time=0.5), job("p0", pressure=0.0, time=0.5)])
    volumes = [frames_of(result.last_covered)[0].get_volume() for result in (squeezed, free)]
    assert volumes[0] < 0.97 * volumes[1]


# -- starting, stopping, starting again ------------------------------------------------------------


def test_what_has_its_result_is_not_run_again_and_what_has_none_is_run_anew(job):
    jobs = [job("done"), job("half")]
    first = explore(jobs, workers=2)
    (jobs[1].folder / "exploration.json").unlink()
    (jobs[1].folder / "last.extxyz").write_text("torn")
    kept = {path.name: path.stat().st_mtime_ns for path in jobs[0].folder.iterdir()}
    said = []
    assert explore(jobs, report=lambda done, text: said.append((done, text))) == first
    assert {path.name: path.stat().st_mtime_ns for path in jobs[0].folder.iterdir()} == kept
    assert len(frames_of(jobs[1].folder / "last.extxyz")) == 1
    assert said[-1][0] == 2
    assert said[-1][1].startswith("half: finished after 0.04 ps, 0 candidates")


def test_a_folder_of_something_else_is_not_cleared(job):
    asked = job()
    asked.folder.mkdir()
    (asked.folder / "thesis.tex").write_text("much")
    with pytest.raises(OutputError, match="holds no exploration"):
        explore([asked])
    assert (asked.folder / "thesis.tex").exists()


# A shell lets its background jobs ignore SIGINT, and whoever they start: that is not what is tested.
DRIVE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from quests_md.learning._exploration import Job, explore
explore([Job.read(Path(path)) for path in sys.argv[1:]], workers=2)
"""


def alive(pid):
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def explorers(caller):
    """Return the processes that explore for a caller; it may have other children, of earlier tests."""
    children = map(int, Path(f"/proc/{caller}/task/{caller}/children").read_text().split())
    return [pid for pid in children if b"_explorer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_explorations_end_with_their_caller_and_leave_no_result(job, number, tmp_path):
    jobs = [job(name, time=10_000.0) for name in "ab"]
    paths = []
    for each in jobs:
        (tmp_path / "told" / each.name).mkdir(parents=True)
        paths.append(replace(each, folder=tmp_path / "told" / each.name).write())
        Path(paths[-1]).write_text(Path(paths[-1]).read_text().replace(str(tmp_path / "told"), str(tmp_path)))
    caller = subprocess.Popen([sys.executable, "-c", DRIVE, *map(str, paths)], cwd=ROOT, stderr=subprocess.PIPE)

    def begun():
        assert caller.poll() is None, caller.stderr.read()
        return all((each.folder / "monitor.csv").exists() for each in jobs)

    wait_until(begun, "the explorations have not begun")
    children = explorers(caller.pid)
    assert len(children) == 2
    assert all(map(alive, children))
    caller.send_signal(number)
    caller.communicate(timeout=LIMIT)
    wait_until(lambda: not any(map(alive, children)), "an exploration goes on")
    assert not any((each.folder / "exploration.json").exists() for each in jobs)
    assert one(replace(jobs[0], settings=jobs[0].settings.model_copy(update={"time": 0.01}))).status == "finished"


def test_one_that_somebody_else_asks_to_end_has_no_result(job):
    asked = job(time=10_000.0)

    def end(done, text):
        (pid,) = explorers(os.getpid())
        os.kill(pid, signal.SIGTERM)

    with pytest.raises(Halted, match="asked to end by SIGTERM"):
        explore([asked], report=end)
    assert not (asked.folder / "exploration.json").exists()


def test_one_that_is_killed_is_a_result(job):
    asked, said, killed = job(time=10_000.0), [], []

    def end(done, text):
        said.append(text)
        if (asked.folder / "monitor.csv").exists() and not killed:
            killed.extend(explorers(os.getpid()))
            os.kill(*killed, signal.SIGKILL)

    (result,) = explore([asked], report=end)
    assert (result.status, result.reason) == ("crashed", "killed by SIGKILL")
    assert result.frames == len(rows(asked)) > 0
    assert result.steps == int(rows(asked)[-1]["step"])
    assert result.last_covered is not None
    assert re.search(r"^ +\d+ ", result.log, re.M)  # thermo output up to the kill; of a long log the end is kept
    assert re.match(r"a: \d+\.\d\d of 10000 ps", said[0])


# -- what cannot be run ----------------------------------------------------------------------------


def test_keys_that_an_exploration_sets_itself_are_refused(job):
    with pytest.raises(ConfigError, match=r"index, wall_time of \[monitor\] is set by the exploration"):
        job(monitor=NEVER | {"index": "x", "wall_time": 5})
    with pytest.raises(ConfigError, match="unknown key 'selct'"):
        job(monitor={"selct": 1.0, "halt": 2.0})
    with pytest.raises(ConfigError, match="seed must lie between"):
        job(seed=0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"host": "ase", "setup": "in.setup"}, "setup holds commands of LAMMPS"),
        ({"time": 0.0001}, "less than one timestep"),
        ({"temperature": []}, "at least 1 item"),
        ({"host": "gromacs"}, "'lammps' or 'ase'"),
    ],
)
def test_what_explore_refuses(values, text):
    with pytest.raises(ValueError, match=text):
        Explore(**{"start": "a.xyz", "temperature": [300.0], "time": 1.0, **values})


def test_every_state_point_and_seed_is_explored():
    explore_ = Explore(start="a.xyz", temperature=[300, 1000.5], pressure=[0.0, 5.0], time=1, seeds=2)
    assert [name for name, _, _ in explore_.state_points()] == [
        "300K-0GPa-1", "300K-0GPa-2", "300K-5GPa-1", "300K-5GPa-2",
        "1000.5K-0GPa-1", "1000.5K-0GPa-2", "1000.5K-5GPa-1", "1000.5K-5GPa-2",
    ]  # fmt: skip
    assert list(Explore(start="a.xyz", temperature=[300], time=1).state_points()) == [("300K", 300.0, None)]


def test_what_keeps_one_from_beginning_is_an_error_and_no_result(job, tmp_path):
    ase.io.write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    ase.io.write(tmp_path / "slab.xyz", Atoms("Si2", [[0, 0, 0], [2, 2, 2]], cell=[5, 5, 5], pbc=[1, 1, 0]))
    ase.io.write(tmp_path / "molecule.xyz", Atoms("Si2", [[0, 0, 0], [2, 2, 2]]))
    (tmp_path / "setup").write_text("no_such_command\n")
    for more, text in [
        ({"start": str(tmp_path / "cu.xyz")}, "cu.xyz holds Cu; the potential knows Si"),
        ({"start": str(tmp_path / "start.xyz")}, "start.xyz: no such file"),
        ({"start": str(tmp_path / "cu.xyz@99")}, "cu.xyz: ASE cannot read it after 0 frames"),
        ({"start": str(tmp_path / "molecule.xyz")}, "needs a start frame with a cell of three vectors"),
        ({"start": str(tmp_path / "slab.xyz"), "pressure": 1.0}, "periodic in three directions"),
        ({"setup": str(tmp_path / "setup")}, "no_such_command"),
        ({"index": tmp_path / "no.qindex"}, "no such index"),
        ({"potential": tmp_path}, "potential.json"),
    ]:
        asked = job(**more)
        with pytest.raises(HostError, match=text):
            explore([asked])
        assert not (asked.folder / "exploration.json").exists()


def test_two_of_one_folder_and_no_workers_are_refused(job):
    with pytest.raises(InputError, match="same folder"):
        explore([job(), job()])
    with pytest.raises(InputError, match="workers"):
        explore([job()], workers=0)


def test_a_job_and_a_result_are_what_was_written(job, tmp_path):
    asked = job(pressure=1.5, setup="in.setup", continues=True).absolute()
    assert Job.read(asked.write()) == asked
    (tmp_path / "a" / "exploration.json").write_text(json.dumps({"name": "a"}))
    with pytest.raises(OutputError, match="not the result of an exploration"):
        Exploration.read(tmp_path / "a")


def test_every_key_and_status_is_documented():
    page = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
    names = [*Explore.model_fields, "finished", "halted", "implausible", "crashed"]
    assert [name for name in names if f"| `{name}` |" not in page] == []
