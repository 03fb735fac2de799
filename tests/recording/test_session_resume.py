"""A run that is resumed goes on where its files end: nothing twice, nothing lost, torn ends cut off."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import ranks
from paths import TESTS
from watched import (
    CANDIDATE,
    COVERED,
    HALTING,
    atoms_of,
    frame_of,
    frames_of,
    names_of,
    part_of,
    rows_of,
    run_of,
    session_of,
    steps_of,
)

from quests_md import Frame
from quests_md.errors import Halted, InputError, OutputError
from quests_md.recording.rows import COLUMNS

# A run of thirteen frames with two events, the second of which is cut in two by most restarts.
SCALES = [COVERED, CANDIDATE, CANDIDATE, COVERED, COVERED, *[0.09] * 2, 0.1, 0.11, 0.1, COVERED, COVERED, COVERED]
MORE = [0.075, 0.085, 0.16]  # each has many more novel environments than the one before: all are kept
SETTINGS = {"consecutive": 2, "history": 2, "after": 1, "novelty": True}


def frame_at(step, scales=SCALES):
    """Return a frame that differs from all others, by its scale and its seed."""
    return frame_of(step, scales[step])


def watch(session, first, last):
    for step in range(first, last):
        session.observe(frame_at(step))


def is_row(row):
    return {key: value for key, value in row.items() if key != "seconds"}


def events_of(folder):
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same_run(one, other):
    """Assert that two folders hold the same run."""
    assert [is_row(row) for row in rows_of(one)] == [is_row(row) for row in rows_of(other)]
    assert events_of(one) == events_of(other)
    for name in ("candidates.extxyz", "history.extxyz", "implausible.extxyz", "last.extxyz"):
        assert (one / name).exists() == (other / name).exists(), name
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    counts = [{key: run_of(f)[key] for key in ("evaluations", "flagged", "saved", "events")} for f in (one, other)]
    assert counts[0] == counts[1]


@pytest.fixture
def whole(index, tmp_path):
    with session_of(index, tmp_path / "whole", **SETTINGS) as session:
        watch(session, 0, len(SCALES))
    assert [(event["start"], event["end"]) for event in events_of(session.output)] == [(1, 2), (5, 9)]
    assert 1 < session.n_saved < session.n_flagged
    return session.output


def stopped(index, folder, until, how):
    """Watch a run until a step, and end it."""
    if how == "killed":
        session = session_of(index, folder, **SETTINGS)
        watch(session, 0, until)
        twin = folder.parent / "twin"
        shutil.copytree(folder, twin)  # what a program that is killed here leaves
        session.close()
        shutil.rmtree(folder)
        twin.rename(folder)
        return
    session = session_of(index, folder, **SETTINGS)
    watch(session, 0, until)
    if how == "failed":
        session.fail(ValueError("boom"))
    session.close()


@pytest.mark.parametrize("how", ["killed", "failed", "finished"])
@pytest.mark.parametrize("back", [0, 1, 3])
@pytest.mark.parametrize("until", range(3, 12))
def test_a_resumed_run_is_as_if_it_had_never_stopped(index, folder, whole, until, back, how):
    stopped(index, folder, until, how)
    with session_of(index, folder, resume=True, **SETTINGS) as session:
        assert session.n_evaluated == until
        watch(session, until - back, len(SCALES))
    same_run(folder, whole)
    assert run_of(folder)["status"] == "finished"
    assert len(run_of(folder)["resumed"]) == 1


@pytest.mark.parametrize("until", [67, 90])
def test_what_was_skipped_is_known_when_the_run_goes_on(index, tmp_path, until):
    def watch(folder, parts):
        for first, last in parts:
            with session_of(index, folder, novelty=True, halt=math.inf, resume=True) as session:
                for step in range(first, last):  # each event has a frame that is kept, and four others
                    scale = COVERED if step % 6 == 0 else 0.11
                    session.observe(Frame.from_atoms(atoms_of(scale, seed=step), step))
        return [row["n_novel"] for row in rows_of(folder)]

    novel = watch(tmp_path / "whole", [(0, 130)])
    assert "-1" in novel[:until]
    assert watch(tmp_path / "parts", [(0, until), (until, 130)]) == novel
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_folder_without_a_run_starts_anew(index, folder):
    for n in (1, 2, 3):
        with session_of(index, folder, resume=True) as session:
            session.observe(frame_of(n, CANDIDATE))
        assert [row["step"] for row in rows_of(folder)] == [str(step) for step in range(1, n + 1)]
        assert len(run_of(folder)["resumed"]) == n - 1
    assert steps_of(folder) == [1, 2, 3]


def test_settings_that_do_not_decide_may_change(index, folder, tmp_path):
    session_of(index, folder).close()
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    with session_of(index, moved, resume=True, threads=2, precision="single", values="flagged", history=3) as session:
        session.observe(frame_of(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": 1.5}, r"select was 2.0, now 1.5\. Choose .* resume = \"anyway\""),
        ({"halt": math.inf}, "halt was 30.0, now 'inf'"),
        ({"every": 2, "novelty": True}, "every was 1, now 2; novelty was False, now True"),
        ({"consecutive": 3}, "consecutive was 1, now 3"),
        ({"min_atoms": 2}, "min_atoms was 1, now 2"),
    ],
)
def test_other_settings_are_refused_unless_told(index, folder, settings, message):
    with session_of(index, folder) as session:
        session.observe(frame_of(0, CANDIDATE))
    before = {name: (folder / name).read_bytes() for name in names_of(folder)}
    with pytest.raises(OutputError, match=f"holds a run that was watched otherwise: {message}"):
        session_of(index, folder, resume=True, **settings)
    assert {name: (folder / name).read_bytes() for name in before} == before
    with session_of(index, folder, resume="anyway", **settings) as session:
        session.observe(frame_of(2))
    assert [row["step"] for row in rows_of(folder)] == ["0", "2"]


def test_another_index_is_refused_unless_told(index, folder):
    with session_of(index, folder, novelty=True) as session:
        session.observe(frame_of(0, CANDIDATE))
    other = type(index).build([frame_of(0)], threads=1)
    with pytest.raises(OutputError, match="index was None"):
        session_of(other, folder, resume=True, novelty=True)
    with session_of(other, folder, resume="anyway", novelty=True) as session:
        assert not session.observe(frame_of(1, CANDIDATE)).save  # its environments are known from before


@pytest.mark.parametrize("resume", [1, "yes", None])
def test_what_resume_may_be(index, folder, resume):
    with pytest.raises(InputError, match='resume must be true, false or "anyway"'):
        session_of(index, folder, resume=resume)
    with pytest.raises(InputError, match="resume and overwrite exclude each other"):
        session_of(index, folder, resume=True, overwrite=True)


def without_state(text):
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "state"})


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("run.json", None, "run.json is missing or damaged"),
        ("run.json", lambda text: "{", "run.json: cannot be read"),
        ("run.json", without_state, "run.json: state: is missing"),
        ("monitor.csv", lambda text: text.replace("q50", "median"), "monitor.csv has other columns"),
        ("candidates.extxyz", lambda text: text[:-200] + "\n" + text, "candidates.extxyz: damaged at byte"),
        ("monitor.csv", lambda text: text + "1,2\n1,2\n", "monitor.csv: line 4 is damaged"),
    ],
    ids=["no run.json", "no JSON", "other version", "other columns", "torn amid", "cells"],
)
def test_what_cannot_be_resumed(index, folder, name, damage, message):
    with session_of(index, folder) as session:
        session.observe(frame_of(0, CANDIDATE))
        session.observe(frame_of(1, CANDIDATE))
    path = folder / name
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()))
    for _ in range(2):  # the folder is free again
        with pytest.raises(OutputError, match=message):
            session_of(index, folder, resume=True)


def test_nobody_else_writes_to_the_folder(index, folder):
    session = session_of(index, folder)
    for more in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError, match="is the output of another run that goes on"):
            session_of(index, folder, **more)
    script = f"""if True:
        import sys
        sys.path.insert(0, {str(TESTS)!r})
        from quests_md.files import FolderLock
        from pathlib import Path
        FolderLock(Path({str(folder)!r}))
    """
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "OutputError" in other.stderr
    session.close()
    session_of(index, folder, resume=True).close()


def test_a_halted_run_goes_on(index, folder):
    session = session_of(index, folder)
    session.observe(frame_of(0))
    assert session.observe(frame_of(4, HALTING)).stop
    session.close()
    session = session_of(index, folder, resume=True)
    assert session.status == run_of(folder)["status"] == "running"
    assert not session.observe(frame_of(4, HALTING)).stop  # the frame that it goes on from
    assert session.observe(frame_of(5, HALTING)).stop
    session.close()
    assert [row["step"] for row in rows_of(folder)] == ["0", "4", "5"]
    assert steps_of(folder) == [4, 5]


def test_a_run_that_goes_back_says_so(index, folder, capsys):
    for steps, said in [((4, 5), False), ((5, 6), False), ((4, 5, 6, 7), True)]:
        with session_of(index, folder, resume=True) as session:
            for step in steps:
                session.observe(frame_of(step))
        assert capsys.readouterr().out.count("steps that have their row, up to 6, get no second") == said


def test_steps_that_go_back_again_are_a_new_run(index, folder):
    with session_of(index, folder) as session:
        for step in (0, 1, 2, 0, 1):
            session.observe(frame_of(step))
    with session_of(index, folder, resume=True) as session:
        for step in (1, 2, 0):
            session.observe(frame_of(step))
    keys = [(row["run"], row["step"]) for row in rows_of(folder)]
    assert keys == [("1", "0"), ("1", "1"), ("1", "2"), ("2", "0"), ("2", "1"), ("2", "2"), ("3", "0")]


def test_a_host_without_steps_counts_on(index, folder):
    for _ in range(2):
        with session_of(index, folder, resume=True) as session:
            for _ in range(3):
                session.observe(frame_of(next(session.counter)))
    assert [row["step"] for row in rows_of(folder)] == list("012345")


@pytest.mark.parametrize("values", ["exact", "flagged"])
def test_the_sample_and_the_first_volume_stay(index, folder, values):
    session = session_of(index, folder, values=values)
    session.observe(frame_of(0))
    state = session.monitor.state()
    session.close()
    session = session_of(index, folder, resume=True, values=values)
    assert session.monitor.state() == state
    assert (state["volume"], state["sample"]) == (
        pytest.approx(frame_of(0).cell[0, 0] ** 3),
        4.0 if values == "flagged" else None,  # 128 over 32 atoms
    )
    session.close()


def test_the_sample_goes_on_with_the_rows(index, folder, tmp_path):
    """A resumed run asks the atoms that the run would have asked, and pools what it would have pooled."""
    names = ("mean", "q50", "q99", "n_sample", "sample_age", "sample")
    rows = []
    for parts, output in (([(0, 12)], folder), ([(0, 5), (4, 6), (0, 0), (6, 12)], tmp_path / "again")):
        for first, last in parts:
            with session_of(index, output, resume=True, values="flagged") as session:
                for step in range(first, last):
                    session.observe(frame_of(step, COVERED - 1e-4 * step))
        assert session.monitor._flagged.count == 12
        rows.append([{name: row[name] for name in names} for row in rows_of(output)])
    assert rows[0] == rows[1]
    assert [int(row["sample_age"]) for row in rows[0]] == list(range(12))
    sizes = [int(row["n_sample"]) for row in rows[0]]
    assert (sizes[0], sizes) == (32, sorted(sizes))


@pytest.mark.parametrize("text", ["x", "1.5/3", "1.5/300*1", "1.5/3*0", "1.5/-1*1", "/", "1.5/3*1/"])
def test_a_sample_that_no_run_wrote_is_refused(index, folder, text):
    with session_of(index, folder, values="flagged") as session:
        session.observe(frame_of(0))
    path = folder / "monitor.csv"
    head, row = path.read_text().splitlines()
    cells = dict(zip(head.split(","), row.split(","), strict=True)) | {"sample": text}
    path.write_text(f"{head}\n{','.join(cells.values())}\n")
    with pytest.raises(OutputError, match=r"monitor\.csv: sample of run 1, step 0: '.*' is none"):
        session_of(index, folder, resume=True, values="flagged")


@pytest.mark.parametrize("lacks", [3, 6, 9, 14])
def test_a_run_of_an_older_version_is_gone_on_with(index, folder, lacks):
    with session_of(index, folder) as session:
        session.observe(frame_of(0))
    path = folder / "monitor.csv"
    path.write_text("".join(line.rsplit(",", lacks)[0] + "\n" for line in path.read_text().splitlines()))
    with session_of(index, folder, resume=True) as session:
        session.observe(frame_of(1))
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    old, new = rows_of(folder)
    assert (old["step"], old["n_outside"], old["expected_error"]) == ("0", "0", "nan")
    assert (old["n_sample"], old["sample_age"]) == ("0" if lacks > 6 else old["n"], "0")
    assert (new["step"], new["n_sample"], new["sample_age"]) == ("1", new["n"], "0")


# -- torn ends -------------------------------------------------------------------------------------------


def test_a_torn_frame_is_cut_off_wherever_it_is_torn(index, folder, capsys):
    with session_of(index, folder) as session:
        for step in range(3):
            session.observe(frame_of(step, CANDIDATE))
    path = folder / "candidates.extxyz"
    text = path.read_bytes()
    lines = np.cumsum([len(line) for line in text.splitlines(keepends=True)])
    assert len(lines) == 3 * 34
    ends = [0, *lines[33::34]]
    places = [ends[1], ends[1] + 1, *lines[34:], *(lines[34:] - 1), *(lines[34:-1] + 40)]
    for size in map(int, places):
        path.write_bytes(text[:size])
        whole = max(n for n in range(4) if ends[n] <= size)
        with session_of(index, folder, resume=True) as session:
            assert (session.n_saved, path.read_bytes()) == (whole, text[: ends[whole]])
        said = "bytes of a frame that was not written in full are cut off" in capsys.readouterr().out
        assert said == (ends[whole] < size)
    path.write_bytes(text)
    with session_of(index, folder, resume=True) as session:
        session.observe(frame_of(3, CANDIDATE))
    assert steps_of(folder) == [0, 1, 2, 3]


def test_torn_lines_are_cut_off(index, folder):
    with session_of(index, folder) as session:
        for step, scale in enumerate([CANDIDATE, COVERED, CANDIDATE, COVERED]):
            session.observe(frame_of(step, scale))
    contents = {name: (folder / name).read_bytes() for name in ("monitor.csv", "events.jsonl")}
    for size in range(1, 120, 7):
        for name, text in contents.items():
            (folder / name).write_bytes(text[:-size])
        (folder / "run.jsonabc.part").write_text("{")
        session_of(index, folder, resume=True).close()
        for name, text in contents.items():
            assert (folder / name).read_bytes().startswith(text[: text[:-size].rfind(b"\n") + 1]), (name, size)
            assert (folder / name).read_bytes().endswith(b"\n")
        assert not list(folder.glob("*.part"))
    (folder / "monitor.csv").write_text("run,st")
    with session_of(index, folder, resume=True) as session:
        session.observe(frame_of(7))
    assert [row["step"] for row in rows_of(folder)] == ["7"]


def test_a_frame_without_its_row_is_not_saved_twice(index, folder):
    """Killed after the frame was written and before its row was."""
    for novelty in (True, False):
        with session_of(index, folder, halt=math.inf, novelty=novelty, overwrite=True) as session:
            for step in range(3):
                session.observe(frame_of(step, MORE[step]))
        path = folder / "monitor.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        with session_of(index, folder, halt=math.inf, novelty=novelty, resume=True) as session:
            assert (session.n_evaluated, session.n_saved) == (2, 2)  # it will come again
            session.observe(frame_of(2, MORE[2]))
        assert steps_of(folder) == [0, 1, 2]
        assert [row["saved"] for row in rows_of(folder)] == ["1", "1", "1"]


def test_what_was_kept_is_known_though_run_json_is_not_of_now(index, folder):
    """The rows tell what was kept: run.json may be as old as the first evaluation."""
    with session_of(index, folder, halt=math.inf, novelty=True, budget=2) as session:
        for step in range(3):
            session.observe(frame_of(step, MORE[step]))
            if step == 0:
                old = (folder / "run.json").read_bytes()
        state = session._candidates._selection.state()
    assert steps_of(folder) == [1, 2]
    (folder / "run.json").write_bytes(old)
    session = session_of(index, folder, halt=math.inf, novelty=True, budget=2, resume=True)
    assert session._candidates._selection.state() == state
    for step in range(3):  # no copy is kept
        assert not session.observe(frame_of(10 + step, MORE[2])).save
    session.close()


# -- ranks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [3, 8])
def test_ranks_resume_what_one_rank_began(index, folder, whole, until):
    stopped(index, folder, until, "finished")

    def work(comm):
        session = session_of(index, folder, comm=comm, resume=True, **SETTINGS)
        for step in range(until - 2, len(SCALES)):
            session.observe(part_of(step, SCALES[step], comm))
        session.close()

    for result in ranks.run(2, work):
        assert result is None
    for one, other in zip(rows_of(folder), rows_of(whole), strict=True):
        assert (one["step"], one["event"], one["saved"]) == (other["step"], other["event"], other["saved"])
        assert float(one["max"]) == pytest.approx(float(other["max"]), rel=1e-9)
        if one["novelty"] != "nan":
            assert float(one["novelty"]) == pytest.approx(float(other["novelty"]), rel=1e-8)
    assert events_of(folder)[0] == events_of(whole)[0]
    assert steps_of(folder) == steps_of(whole)
    assert (events_of(folder)[1]["n_atoms"] == events_of(whole)[1]["n_atoms"]) or until == 8  # ids are others there


def test_what_is_refused_is_refused_on_all_ranks(index, folder):
    session_of(index, folder).close()
    first, other = ranks.run(2, lambda comm: session_of(index, folder, comm=comm, select=1.0, resume=True))
    assert type(first) is OutputError
    assert "watched otherwise" in str(other)


# -- what ends a run from outside ------------------------------------------------------------------------


def test_the_wall_time_ends_the_run(index, folder):
    session = session_of(index, folder, wall_time=1e-9)
    decision = session.observe(frame_of(0))
    assert decision.stop
    assert decision.reasons == ("the wall time of 1e-09 s is over",)
    assert (session.status, run_of(folder)["status"]) == ("halted", "halted")
    assert steps_of(folder, "last") == [0]
    with pytest.raises(Halted, match="wall time"):
        session.observe(frame_of(1))
    session.acknowledge()  # told once
    assert not session.observe(frame_of(1)).stop
    session.close()
    with session_of(index, folder, resume=True, wall_time="10:00:00") as session:
        assert not session.observe(frame_of(2)).stop


def test_one_rank_whose_time_is_over_ends_all(index, folder):
    def work(comm):
        session = session_of(index, folder, comm=comm, wall_time=1e-9 if comm.rank == 1 else 1e9)
        decision = session.observe(part_of(0, COVERED, comm))
        session.close()
        return decision.stop, decision.reasons

    assert ranks.run(2, work) == [(True, ("the wall time of 1e-09 s is over",))] * 2


@pytest.mark.parametrize("plausible", [True, False])
def test_a_broken_frame_that_may_go_on_does_not_when_one_rank_is_asked_to_stop(index, folder, plausible):
    def work(comm):
        session = session_of(index, folder, comm=comm, implausible="continue")
        if comm.rank == 1:
            session.monitor.request_stop("enough")
        frame = part_of(0, COVERED, comm)
        if not plausible and comm.rank == 0:
            frame.positions[0] = np.nan
        return session.observe(frame).stop

    assert ranks.run(2, work) == [True, True]


def test_sigterm_ends_the_run(index, folder):
    before = signal.getsignal(signal.SIGTERM)
    assert before is signal.SIG_DFL
    session = session_of(index, folder)
    session.observe(frame_of(0))
    os.kill(os.getpid(), signal.SIGTERM)
    decision = session.observe(frame_of(1))
    assert (decision.stop, decision.reasons, session.status) == (True, ("SIGTERM",), "halted")
    run = run_of(folder)
    assert (run["status"], run["reason"], steps_of(folder, "last")) == ("halted", "step 1: SIGTERM", [1])
    session.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_is_raised_when_the_evaluation_has_its_row(index, folder):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell may ignore it
    try:
        with pytest.raises(KeyboardInterrupt), session_of(index, folder, on_select=interrupt) as session:
            session.observe(frame_of(0, CANDIDATE))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (len(rows_of(folder)), len(frames_of(folder)), run_of(folder)["status"]) == (1, 1, "failed")
    with session_of(index, folder, resume=True) as session:
        assert session.observe(frame_of(0, CANDIDATE)).again


def interrupt(frame, decision):
    os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_of_a_program_that_listens_itself_is_left_alone(index, folder):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with session_of(index, folder) as session:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not session.observe(frame_of(0)).stop
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("lines", ["pass", "kill()\nprint('no')", "session.close()\nprint('no')"])
def test_sigterm_that_nobody_acts_on_ends_the_program(index, folder, lines):
    """None comes to an evaluation: it is the second one, or the session is closed, or the program ends."""
    index.save(folder.parent / "cu.qindex")
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from watched import *
session = session_of(Index.open("cu.qindex"), Path("uq"))
session.observe(frame_of(0))
kill = lambda: os.kill(os.getpid(), signal.SIGTERM)
kill()
print("went on")
{lines}
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=folder.parent, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGTERM, ended.stderr
    assert "went on" in ended.stdout
    assert "no\n" not in ended.stdout
    assert run_of(folder)["status"] == ("running" if "kill" in lines else "finished")


# -- a run that goes on without being watched ------------------------------------------------------------


def test_a_failure_may_be_a_warning(index, folder, capsys):
    session = session_of(index, folder, on_error="warn", every=2, on_select=["/no/such/program"])
    session.observe(frame_of(0))
    decision = session.observe(frame_of(2, CANDIDATE))
    for step in (2, 4):
        assert (decision.step, decision.evaluated, decision.stop) == (step, False, False)
        assert (decision.maximum, decision.mean) == (math.inf, math.inf)
        np.testing.assert_array_equal(decision.dH, np.full(32, math.inf))
        decision = session.observe(frame_of(4))
    assert not len(session.observe(frame_of(5)).dH)  # not due
    assert (session.status, session.given_up) == ("failed", True)
    session.close()
    said = capsys.readouterr().err
    assert said.count("WARNING: watching failed, and the run goes on without it") == 1
    assert "on_select failed" in said
    assert (run_of(folder)["status"], len(rows_of(folder))) == ("failed", 1)
    assert steps_of(folder, "last") == [2]
    with session_of(index, folder, resume=True, every=2) as session:  # the cause is gone
        session.observe(frame_of(2, CANDIDATE))
    assert [row["step"] for row in rows_of(folder)] == ["0", "2"]
    assert frames_of(folder)[-1].info["step"] == 2


def test_what_on_error_may_be(index, folder):
    with pytest.raises(InputError, match='on_error must be "stop" or "warn"'):
        session_of(index, folder, on_error="ignore")


@pytest.mark.parametrize("how", ["flush", "close"])
def test_the_last_frame_that_cannot_be_written_may_be_a_warning(index, folder, how):
    session = session_of(index, folder, on_error="warn")
    session.observe(frame_of(0))
    (folder / "last.extxyz" / "x").mkdir(parents=True)
    getattr(session, how)()
    assert (session.status, run_of(folder)["status"]) == ("failed", "failed")


def test_a_run_with_cut_outs_goes_on(index, folder):
    settings = {**SETTINGS, "cutout": {"radius": 2.0, "most": 1}}
    for first, last in ((0, 7), (7, 13)):
        with session_of(index, folder, resume=True, **settings) as session:
            watch(session, first, last)
    steps = steps_of(folder, "candidates")
    assert len(steps) >= 2
    assert steps_of(folder, "cutouts") == steps
