"""Folders that version 0.1.0 has left, format 1, are read and gone on with as that version would have."""

from __future__ import annotations

import json
import math
import runpy
import shutil

import ase.io
import numpy as np
import pytest
from kill_runs import differences, left_in
from paths import DATA
from watched import rows_of, run_of, steps_of

from quests_md import Index, Monitor, Session, read_run
from quests_md.recording.rows import COLUMNS

FOLDERS = DATA / "format_1"
OLD = runpy.run_path(str(FOLDERS / "make_format_1.py"))  # what was watched, and with which settings
STEPS, CUT = len(OLD["SCALES"]), OLD["CUT"]
# What a row has where version 0.1.0 wrote it.
DEFAULTS = {
    "repeat": "0", "configuration": "", "n_novel": "0", "excess": "nan", "dropped": "", "n_sample": "0",
    "sample_age": "0", "sample": "", "expected_error": "nan", "n_outside": "0", "force_rmse": "nan",
    "bias_energy": "nan", "bias_force": "nan", "bias_tau": "nan",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Return a function that copies one of the folders."""
    return lambda name: shutil.copytree(FOLDERS / name, tmp_path / name)


def go_on(folder, first, until=STEPS):
    index = Index.open(DATA / "format_1_copper.qindex")
    with Session(Monitor(index, **OLD["MONITOR"]), folder, resume=True, **OLD["SESSION"]) as session:
        for step in range(first, until):
            session.observe(OLD["frame_of"](step))


def of_format_1(left):
    """Return what is left without what version 0.1.0 did not write: keys of an evaluation, state."""
    rows = [{name: value for name, value in row.items() if name not in DEFAULTS} for row in left["rows"]]
    about = {name: value for name, value in left["about"].items() if name != "state"}
    return {**left, "rows": rows, "about": about}


@pytest.mark.parametrize(("name", "n", "status"), [("whole", STEPS, "finished"), ("killed", CUT, "running")])
def test_it_is_read(name, n, status):
    run = read_run(FOLDERS / name)
    assert (run.status, len(run.rows), run.n_damaged) == (status, n, 0)
    assert run.rows["step"].tolist() == list(range(n))
    assert run.rows["dropped"].tolist() == [""] * n
    assert run.rows["configuration"].tolist() == [""] * n
    assert not run.rows["repeat"].any()
    assert not run.rows["n_novel"].any()
    assert np.isnan(run.rows["excess"]).all()
    assert [atoms.info["step"] for atoms in run.candidates()] == ([7, 14] if name == "whole" else [3, 7])
    assert [event["over"] for event in run.events] == ([True, True, False] if name == "whole" else [True])
    assert len(list(run.cutouts())) == 2
    assert len(list(run.history())) == (12 if name == "whole" else 8)


@pytest.mark.parametrize("first", [CUT, CUT - 1, CUT - 4, 0])
@pytest.mark.parametrize("name", ["killed", "ended"])
def test_it_is_gone_on_with(folder, name, first):
    there = folder(name)
    go_on(there, first)
    whole, left = of_format_1(left_in(FOLDERS / "whole")), of_format_1(left_in(there))
    assert differences(left, whole, is_rounded=True) == []  # another processor may have written what is frozen
    rows = rows_of(there)
    assert tuple(rows[0]) == COLUMNS
    for row in rows[:CUT]:
        assert {name: row[name] for name in DEFAULTS} == DEFAULTS
    for row in rows[CUT:]:
        assert all(math.isfinite(float(half)) for half in row["configuration"].split("/"))
        assert (int(row["n_novel"]) > 0) == (row["novelty"] != "nan" and float(row["novelty"]) > 2.0)
    assert [row["dropped"] for row in rows if row["dropped"]] == ["1:3:0"]
    assert run_of(there)["format"] == 2


@pytest.mark.parametrize("until", range(CUT, STEPS))
def test_it_is_killed_once_more(folder, until, tmp_path):
    """What rows of format 1 do not tell is kept in run.json: the folder is one of format 2 by then."""
    there, again = folder("killed"), tmp_path / "again"
    index = Index.open(DATA / "format_1_copper.qindex")
    session = Session(Monitor(index, **OLD["MONITOR"]), there, resume=True, **OLD["SESSION"])
    for step in range(CUT - 1, until):
        session.observe(OLD["frame_of"](step))
    shutil.copytree(there, again)
    session.close()
    go_on(again, until - 1)
    assert differences(of_format_1(left_in(again)), of_format_1(left_in(FOLDERS / "whole")), is_rounded=True) == []
    assert len(run_of(again)["resumed"]) == 2


def test_what_took_no_part_in_the_selection_is_kept(folder):
    """A frame that a crash has proposed is in the folder, and no row tells that it was saved."""
    there = folder("killed")
    proposed = ase.io.read(there / "history.extxyz", 0)
    text = (there / "history.extxyz").read_text().splitlines(keepends=True)
    with open(there / "candidates.extxyz", "a") as file:
        file.writelines(text[: len(proposed) + 2])
    about = json.loads((there / "run.json").read_text())
    about["state"]["candidates"].append([1, int(proposed.info["step"]), None])
    (there / "run.json").write_text(json.dumps(about))
    go_on(there, CUT)
    assert sorted(steps_of(there)) == sorted([int(proposed.info["step"]), 7, 14])
