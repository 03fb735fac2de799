"""The manual's page of LAMMPS: its files are run, each in the LAMMPS that it is for."""

from __future__ import annotations

import json
import re

import ase.io
import pytest
from ase.build import bulk
from lammps_runs import ROOT, WHEEL, in_scripts, in_scripts_once, ok, quests_md_run, run_lmp, run_wheel

from quests_md import Index
from quests_md.index import calibrate

PAGE = (ROOT / "docs" / "lammps.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\{code-block\} \w+\n:caption: (\S+)\n(.*?)^```$", PAGE, re.M | re.S))
SCRIPTS = {"in.lammps", "in.two", "in.see"}
PROGRAMS = ["drive.py", "halt.py", "fail.py"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Return the path of an index of silicon whose calibration knows one false alarm in a hundred frames."""
    frames = [bulk("Si", cubic=True) * (2, 2, 2) for _ in range(100)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.08, seed=seed)
    index = Index.build(frames, bandwidth="auto", threads=1)
    index.calibration = calibrate(index, threads=1)
    path = tmp_path_factory.mktemp("calibrated") / "si.qindex"
    index.save(path)
    return path


@pytest.fixture
def place(tmp_path, calibrated):
    """Return a folder with an index and the files that the others share."""
    folder = tmp_path
    (folder / "si.qindex").write_bytes(calibrated.read_bytes())
    for name in ("in.setup", "in.see", "quests.toml"):
        (folder / name).write_text(FILES[name])
    return folder


def status_of(folder, output):
    return json.loads((folder / output / "run.json").read_text())["status"]


def test_every_file_of_the_page_is_run_here():
    assert set(FILES) == {"in.setup", "quests.toml", "in.wheel", *SCRIPTS, *PROGRAMS}
    console = re.findall(r"^```(\w+)$", PAGE, re.M)
    assert set(console) == {"console", "text"}  # commands to type, and one message


def check_seen(folder):
    """Check what in.see asks for: values of the last step, the same in thermo and dump."""
    thermo = [line.split() for line in (folder / "log.lammps").read_text().splitlines()]
    rows = [row for row in thermo if len(row) == 6 and row[0].isdigit()]
    (row,) = [row for row in rows if row[0] == "100"]
    assert row[-1] == "100"
    frame = ase.io.read(folder / "all.dump", index=10, format="lammps-dump-text")
    assert float(row[3]) == pytest.approx(float(frame.arrays["d_dH"].max()), rel=1e-6)
    assert (folder / "uncertain.dump").exists()


@in_scripts
def test_lines_in_an_input_script(build, place):
    ok(run_lmp(build, place, FILES["in.lammps"].replace("run 100", "include in.see\nrun 100")))
    assert status_of(place, "uq") == "finished"
    check_seen(place)


@in_scripts_once
@pytest.mark.mpi
def test_two_systems(build, place):
    for name in ("first", "second"):
        (place / f"{name}.toml").write_text(FILES["quests.toml"].replace('"uq"', f'"{name}"'))
    ok(run_lmp(build, place, FILES["in.two"], 2))
    assert [status_of(place, name) for name in ("first", "second")] == ["finished"] * 2


@pytest.mark.lammps
@WHEEL[1]
@pytest.mark.parametrize("name", [pytest.param("drive", marks=pytest.mark.mpi), "halt", "fail"])
def test_programs(place, name):
    finished = ok(run_wheel(place, FILES[f"{name}.py"], 2 if name == "drive" else 1))
    output, status = {"drive": ("driven", "finished"), "halt": ("halted", "halted"), "fail": ("failed", "failed")}[name]
    assert status_of(place, output) == status
    begins = ("quests_md: select", "quests_md: halt", "quests_md: warning: select")  # what the thresholds mean
    said = [line for line in finished.stdout.splitlines() if not line.startswith(begins)]
    assert len(said) == 2  # what the program prints, and the summary


@pytest.mark.lammps
@WHEEL[1]
def test_what_lammps_sees_in_the_wheel(place):
    code = FILES["drive.py"].replace('"-screen", "none"', '"-screen", "none", "-log", "log.lammps"')
    code = code.replace('lmp.command("run 100")', 'lmp.file("in.see")\nlmp.command("run 100")')
    ok(run_wheel(place, code.replace('lmp.command("minimize 0 1e-3 100 1000")\n', "")))
    check_seen(place)


@pytest.mark.lammps
@WHEEL[1]
def test_the_message_of_ghosts_that_reach_less_far(place):
    (place / "in.setup").write_text(FILES["in.setup"].replace("comm_modify cutoff 7.0\n", ""))
    (message,) = re.findall(r"^```text\n(ghost atoms.*?)^```$", PAGE, re.M | re.S)
    assert " ".join(message.split()) in run_wheel(place, FILES["drive.py"]).stderr


@pytest.mark.lammps
@WHEEL[1]
def test_quests_md_run(place):
    (place / "in.test").write_text(FILES["in.wheel"])
    ok(quests_md_run(place, "-log", "none"))
    assert status_of(place, "uq") == "finished"
