"""A watched run leaves the files it should, whatever happens to it."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import TESTS
from watched import (
    CANDIDATE,
    COVERED,
    HALT,
    HALTING,
    SELECT,
    atoms_of,
    block,
    frame_of,
    frames_of,
    has_dH_of,
    names_of,
    rows_of,
    run_of,
    session_of,
    steps_of,
)

from quests_md import Frame, Session
from quests_md.config import RunConfig
from quests_md.errors import Halted, IndexFileError, InputError, MonitorError, OutputError
from quests_md.monitor import Band

COLUMNS = (
    "run,step,time,n,max,max_id,mean,q50,q99,n_select,n_halt,band,saved,values,seconds,event,novelty,force_error,"
    "repeat,configuration,n_novel,excess,dropped,n_sample,sample_age,sample,expected_error,n_outside,force_rmse,"
    "bias_energy,bias_force,bias_tau"
)


def test_one_row_per_evaluation(index, folder):
    with session_of(index, folder, every=2) as session:
        decisions = [session.observe(frame_of(s, CANDIDATE if s == 4 else COVERED)) for s in range(7)]
    assert (folder / "monitor.csv").read_text().splitlines()[0] == COLUMNS
    evaluated = [d for d in decisions if d.evaluated]
    assert [d.step for d in evaluated] == [0, 2, 4, 6]
    for row, decision in zip(rows_of(folder), evaluated, strict=True):
        numbers = [float(row[key]) for key in ("max", "mean", "q50", "q99")]
        assert numbers == [decision.maximum, decision.mean, decision.q50, decision.q99]
        counts = [int(row[key]) for key in ("run", "step", "n", "max_id", "n_select", "n_halt", "saved")]
        assert counts == [
            1, decision.step, 32, decision.max_id, decision.n_select, decision.n_halt, decision.step == 4,
        ]  # fmt: skip
        assert (float(row["time"]), row["values"]) == (0.001 * decision.step, "exact")
        assert row["band"] == ("candidate" if decision.step == 4 else "covered")
        assert 0 < decision.seconds <= float(row["seconds"])


def test_saved_frames(index, folder):
    rng = np.random.default_rng(1)
    model = {"velocities": rng.normal(size=(32, 3)), "forces": rng.normal(size=(32, 3)), "energy": -1 / 3}
    with session_of(index, folder) as session:
        decisions = [
            session.observe(frame_of(step, scale, **model))
            for step, scale in [(0, COVERED), (1, CANDIDATE), (2, COVERED), (3, HALTING)]
        ]
    saved = frames_of(folder)
    assert [atoms.info["step"] for atoms in saved] == [1, 3]
    for atoms, decision, scale in zip(saved, decisions[1::2], (CANDIDATE, HALTING), strict=True):
        assert atoms.info == {
            "run": 1, "step": decision.step, "time": 0.001 * decision.step, "band": decision.band.value,
            "dH_max": decision.maximum, "dH_max_id": decision.max_id, "event": decision.event, "values": "exact",
            "model_energy": -1 / 3,
        }  # fmt: skip
        np.testing.assert_array_equal(atoms.positions, atoms_of(scale).positions)
        np.testing.assert_array_equal(atoms.arrays["dH"], decision.dH)
        np.testing.assert_array_equal(atoms.arrays["model_forces"], model["forces"])
        np.testing.assert_allclose(atoms.get_velocities(), model["velocities"], rtol=1e-15)
        assert has_dH_of(index, atoms)
    assert steps_of(folder, "last") == [3]


def test_atoms_that_are_not_watched_are_saved_without_dH(index, folder):
    watched = np.arange(32) % 4 == 0
    with session_of(index, folder) as session:
        session.observe(frame_of(0, HALTING, watched=watched))
    (atoms,) = frames_of(folder)
    np.testing.assert_array_equal(np.isnan(atoms.arrays["dH"]), ~watched)
    assert rows_of(folder)[0]["n"] == "8"


def test_a_run_that_triggers_nothing(index, folder, capsys):
    session = session_of(index, folder, every=5)
    for step in range(12):
        session.observe(frame_of(step))
    assert run_of(folder)["status"] == "running"
    session.close()
    session.close()
    assert names_of(folder) == ["last.extxyz", "monitor.csv", "run.json"]
    assert steps_of(folder, "last") == [10]
    run = run_of(folder)
    assert (run["status"], run["last_step"], run["evaluations"], run["saved"]) == ("finished", 10, 3, 0)
    assert (run["select"], run["halt"], run["every"], run["index"]["n_env"]) == (SELECT, HALT, 5, 128)
    assert 0 < run["share"] <= 1
    assert {"python", "quests_md", "numpy", "numba", "ase"} == set(run["versions"])
    thresholds, warning, line = capsys.readouterr().out.splitlines()
    assert thresholds == f"quests_md: select = {SELECT:g}, halt = {HALT:g}"
    assert warning.startswith("quests_md: warning: the index has no calibration")
    assert line == session.summary()
    assert line.startswith(f"quests_md: finished; 3 evaluations of 32 atoms, 0 kept of 0 flagged frames in {folder}; ")
    assert line.endswith(" % of the run")
    with pytest.raises(MonitorError, match=r"has ended \(finished\)"):
        session.observe(frame_of(13))


def test_a_run_without_evaluations(index, folder):
    with session_of(index, folder) as session:
        pass
    assert names_of(folder) == ["run.json"]
    assert session.summary() == f"quests_md: finished; 0 evaluations, 0 kept of 0 flagged frames in {folder}"
    assert run_of(folder)["share"] is None


def test_steps_that_come_again_and_steps_that_go_back(index, folder):
    with session_of(index, folder, halt=math.inf) as session:
        for step in (0, 1, 1, 2, 1, 1, 2, 0):
            session.observe(frame_of(step, CANDIDATE))
    keys = [(row["run"], row["step"]) for row in rows_of(folder)]
    assert keys == [("1", "0"), ("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"), ("3", "0")]
    saved = [(str(atoms.info["run"]), str(atoms.info["step"])) for atoms in frames_of(folder)]
    assert saved == keys
    assert session.n_saved == 6
    assert run_of(folder)["halt"] == "inf"


def test_steps_may_be_numbers_of_numpy(index, folder):
    with session_of(index, folder) as session:
        session.observe(frame_of(np.int64(3), CANDIDATE))
    assert (rows_of(folder)[0]["step"], steps_of(folder), run_of(folder)["last_step"]) == ("3", [3], 3)


def test_save_every(index, folder):
    with session_of(index, folder, save_every=3) as session:
        for step in range(7):
            session.observe(frame_of(step, CANDIDATE))
    assert steps_of(folder) == [0, 3, 6]
    assert [row["saved"] for row in rows_of(folder)] == list("1001001")


def test_a_halt_holds_until_it_is_acknowledged(index, folder):
    session = session_of(index, folder, every=2)
    assert session.observe(frame_of(4, HALTING)).stop
    run = run_of(folder)
    assert (session.status, run["status"]) == ("halted", "halted")
    assert run["reason"].startswith("step 4: dH = ")
    assert steps_of(folder, "last") == [4]
    for step in (4, 5, 6):
        with pytest.raises(Halted, match=r"step 4: dH = .* acknowledge\(\)"):
            session.observe(frame_of(step))
    session.acknowledge()
    assert run_of(folder)["status"] == "running"
    # ASE and LAMMPS evaluate the step they start from: it would halt for ever.
    assert not session.observe(frame_of(4, HALTING)).stop
    assert session.observe(frame_of(6, HALTING)).stop
    session.close()
    session.close()
    session.acknowledge()
    assert run_of(folder)["status"] == "halted"
    assert [row["step"] for row in rows_of(folder)] == ["4", "6"]
    assert steps_of(folder) == [4, 6]
    with pytest.raises(MonitorError, match="has ended"):
        session.observe(frame_of(8))


def test_the_context_says_how_it_ended(index, tmp_path):
    def run(name, error, scale=COVERED):
        with contextlib.suppress(type(error)), session_of(index, tmp_path / name) as session:
            session.observe(frame_of(0, scale))
            raise error
        assert len(frames_of(tmp_path / name, "last")) == 1
        return [run_of(tmp_path / name)[key] for key in ("status", "reason")]

    assert run("failed", ValueError("boom")) == ["failed", "ValueError: boom"]
    assert run("stopped", KeyboardInterrupt()) == ["failed", "KeyboardInterrupt: "]
    for name, error in (("halted", Halted("again")), ("halted before", ValueError("boom"))):
        status, reason = run(name, error, HALTING)
        assert status == "halted"
        assert reason.startswith("step 0: dH = ")


def broken_position(atoms):
    atoms.positions[5, 1] = math.nan


def broken_cell(atoms):
    atoms.cell[0, 0] = math.inf


def same_place(atoms):
    atoms.positions[5] = atoms.positions[6]


@pytest.mark.parametrize("breaks", [broken_position, broken_cell, same_place])
def test_a_broken_frame_is_kept_apart(index, folder, breaks):
    session = session_of(index, folder)
    session.observe(frame_of(0))
    atoms = atoms_of(COVERED)
    breaks(atoms)
    with pytest.raises(MonitorError, match="watching failed at step 1: "):
        session.observe(Frame.from_atoms(atoms, 1))
    with pytest.raises(MonitorError, match=r"has ended \(failed\)"):
        session.observe(frame_of(2))
    decision, run = session.decision, run_of(folder)
    assert (decision.band, decision.save, run["status"]) == (Band.IMPLAUSIBLE, False, "failed")
    assert run["reason"] == f"watching failed at step 1: {decision.reasons[0]}"
    (proposed,) = frames_of(folder)  # the last plausible frame, though it is covered
    assert proposed.info["step"] == 0
    assert proposed.info["reason"] == f"the last before {decision.reasons[0]}"
    assert steps_of(folder, "last") == [1]
    assert [(row["step"], row["band"]) for row in rows_of(folder)] == [("0", "covered"), ("1", "implausible")]
    (implausible,) = frames_of(folder, "implausible")
    assert (implausible.info["step"], implausible.info["reason"]) == (1, decision.reasons[0])
    np.testing.assert_array_equal(implausible.positions, atoms.positions)
    np.testing.assert_array_equal(implausible.cell, atoms.cell)


def test_an_unknown_element_is_no_broken_frame(index, folder, capsys):
    atoms = atoms_of(COVERED)
    atoms.numbers[3] = 79
    message = "watching failed at step 0: ElementError: Au is not in the index, which knows Cu"
    with pytest.raises(MonitorError, match=message), session_of(index, folder) as session:
        session.observe(Frame.from_atoms(atoms))
    assert names_of(folder) == ["run.json"]
    run = run_of(folder)
    assert run["status"] == "failed"
    assert run["reason"].startswith(message)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_run_that_failed_before_its_first_evaluation_makes_way(index, folder):
    """Nothing is lost, and whoever mends an error need not remove its folder."""
    with pytest.raises(MonitorError, match="a first error"), session_of(index, folder) as session:
        session.observe(None, step=0, error=MonitorError("a first error"))
    assert names_of(folder) == ["run.json"]
    with session_of(index, folder) as session:
        session.observe(frame_of(0))
    with pytest.raises(OutputError, match="holds an earlier run"):
        session_of(index, folder)


def test_an_earlier_run_is_kept_unless_told_otherwise(index, folder):
    with session_of(index, folder) as session:
        session.observe(frame_of(0, CANDIDATE))
    before = {name: (folder / name).read_bytes() for name in names_of(folder)}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds an earlier run \(monitor.csv\).* overwrite = true"):
        session_of(index, folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    with session_of(index, folder, overwrite=True) as session:
        session.observe(frame_of(7))
    assert names_of(folder) == ["last.extxyz", "monitor.csv", "notes.txt", "run.json"]
    assert [row["step"] for row in rows_of(folder)] == ["7"]


@contextlib.contextmanager
def without_rights():
    """Act as a user who may not write: root may always."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_that_cannot_be_used(index, tmp_path):
    (tmp_path / "file").write_text("")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for path, message in [
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "uq", "Not a directory"),
        (locked, "Permission denied"),
        (locked / "uq", "Permission denied"),
    ]:
        with (
            without_rights() if "locked" in str(path) else contextlib.nullcontext(),
            pytest.raises(OutputError, match=rf"{path.name}: cannot be used as output folder: {message}"),
        ):
            session_of(index, path)


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 68 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=68k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a disk that is soon full needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_spoils_nothing(index, small_disk, capsys):
    folder = small_disk / "uq"
    session = session_of(index, folder)

    def go_on():
        for step in range(100):
            session.observe(frame_of(step, CANDIDATE))

    with pytest.raises(OutputError, match=r"candidates.extxyz: cannot be written: No space left on device"):
        go_on()
    assert session.status == "failed"
    written = session.n_saved
    assert 1 < written < 100
    assert [row["step"] for row in rows_of(folder)] == [str(step) for step in range(written)]
    assert (folder / "monitor.csv").read_text().endswith("\n")
    saved = frames_of(folder)
    assert [atoms.info["step"] for atoms in saved] == list(range(written))
    assert all(has_dH_of(index, atoms) for atoms in saved)
    assert run_of(folder)["status"] in ("failed", "running")  # the old file, if the new one does not fit
    assert not list(folder.glob("*.part"))
    assert "quests_md: failed; " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["monitor.csv", "last.extxyz", "run.json"])
def test_any_file_that_cannot_be_written_fails_the_run(index, folder, name):
    session = session_of(index, folder)
    session.observe(frame_of(0, CANDIDATE))
    block(folder / name)

    def go_on():
        session.observe(frame_of(1))
        session.close()

    with pytest.raises(OutputError, match=rf"{name}: cannot be written: Is a directory"):
        go_on()
    assert session.status == "failed"
    assert len(frames_of(folder)) == 1


ENDINGS = {
    # At a prompt the last exception may be of any line before.
    "prompt": ("sys.flags.interactive or sys.exit('no prompt')", "finished"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "running"),
    "not closed": ("", "finished"),
    "sys.exit": ("sys.exit(0)", "finished"),
    "exception": ("raise ValueError('boom')", "failed"),
    "halted": ("session.observe(frame_of(3, HALTING))", "halted"),
    "Halted": ("session.observe(frame_of(3, HALTING)); session.observe(frame_of(4))", "halted"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_however_the_program_ends_its_files_are_whole(index, folder, name):
    ending, status = ENDINGS[name]
    index.save(folder.parent / "cu.qindex")
    script = f"""if True:
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(TESTS)!r})
        from watched import *
        session = session_of(Index.open("cu.qindex"), Path("uq"))
        for step in range(3):
            session.observe(frame_of(step, CANDIDATE))
        {ending}
    """
    options, lines = (["-i"], "1 / 0\n") if name == "prompt" else ([], None)
    ended = subprocess.run(
        [sys.executable, *options, "-c", script],
        input=lines,
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    run = run_of(folder)
    assert run["status"] == status, ended.stderr
    assert ("Traceback" in ended.stderr) == (name in ("exception", "Halted", "prompt"))
    if name == "exception":
        assert run["reason"] == "ValueError: boom"
    steps = [0, 1, 2] + [3] * (status == "halted")
    assert [row["step"] for row in rows_of(folder)] == list(map(str, steps))
    assert steps_of(folder) == steps
    if name != "killed":
        assert steps_of(folder, "last") == steps[-1:]
        assert run["evaluations"] == len(steps)
        assert f"quests_md: {status}; " in ended.stdout


def test_from_config(index, folder):
    config = RunConfig(index=str(folder), select=1, halt=9, every=2, save_every=4, output=str(folder))
    with pytest.raises(IndexFileError):
        Session.from_config(config)
    with pytest.raises(InputError, match="lies above halt"):
        Session.from_config(config.model_copy(update={"select": 10.0}), index=index)
    with pytest.raises(InputError, match="was built with k = 32, but 20 is asked for"):
        Session.from_config(config.model_copy(update={"k": 20}), index=index)
    assert not folder.exists()
    with Session.from_config(config, index=index, host="a test"):
        run = run_of(folder)
    assert [run[key] for key in ("host", "select", "halt", "every", "save_every")] == ["a test", 1, 9, 2, 4]
