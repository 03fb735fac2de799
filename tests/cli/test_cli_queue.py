"""quests-md queue: what it prints and writes; and a live run that hands its frames over."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.stress import full_3x3_to_voigt_6_stress
from click.testing import CliRunner
from queueing import frame_of, has_labels, labels_of, same
from watched import CANDIDATE, build_index, copper, frames_of, session_of, verlet

from quests_md.cli import main
from quests_md.files.extxyz import format_atoms
from quests_md.hosts.ase import MonitorObserver
from quests_md.labelling import Queue, digest


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["queue", *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write three saved frames, and go there."""
    monkeypatch.chdir(tmp_path)
    Path("candidates.extxyz").write_bytes(b"".join(format_atoms(frame_of(seed)) for seed in (1, 2, 3)))
    return tmp_path


def test_frames_are_added_once(files):
    assert run("add", "queue.db", "candidates.extxyz@:2").stdout == "queue.db: 2 frames added\n"
    again = run("add", "queue.db", "candidates.extxyz", "candidates.extxyz").stdout
    assert again == "queue.db: 1 frames added, 2 were there\n"
    queue = Queue("queue.db")
    for id in (1, 2, 3):
        same(queue.atoms(id), frame_of(id), sizes=False)
    assert queue.entry(3).source == {
        "run": 1, "step": 3, "event": 1, "dH_max": 2.5, "band": "candidate", "file": "candidates.extxyz", "frame": 2,
    }  # fmt: skip


def test_a_file_that_ends_in_the_middle_of_a_frame_gives_those_before(files):
    text = Path("candidates.extxyz").read_bytes()
    Path("torn.extxyz").write_bytes(text[:-50])
    result = run("add", "queue.db", "torn.extxyz", code=1)
    assert "torn.extxyz: ASE cannot read it after 2 frames" in result.stderr
    assert Queue("queue.db").counts()["waiting"] == 2


def test_a_file_that_grows_while_it_is_read_is_read_again(files, monkeypatch):
    text, add, told = Path("candidates.extxyz").read_bytes(), Queue.add, []
    Path("growing.extxyz").write_bytes(text[:-50])

    def growing(self, *arguments, **named):
        if not told:
            Path("growing.extxyz").write_bytes(text)
        told.append(named["frame"])
        return add(self, *arguments, **named)

    # All of a small file may have been read by then, or not: what counts is that it changed.
    monkeypatch.setattr(Queue, "add", growing)
    assert run("add", "queue.db", "growing.extxyz").stdout == "queue.db: 3 frames added\n"
    assert set(told) == {0, 1, 2}


def test_list_and_show_say_what_is_known(files):
    run("add", "queue.db", "candidates.extxyz")
    queue = Queue("queue.db", tries=1)
    queue.done(queue.claim("node 1"), labels_of(1), {"code": "test", "version": "7", "seconds": 2.5})
    queue.fail(queue.claim("node 2"), "not converged: " + "x" * 100)
    shown = run("list", "queue.db").stdout.splitlines()
    table = [re.split(r"  +", line.strip()) for line in shown]
    assert table[0] == ["id", "state", "tries", "worker", "formula", "run", "step", "dH_max", "seconds", "reason"]
    assert table[1] == ["1", "done", "1", "node 1", "Si8", "1", "1", "2.5", "2.5"]
    assert table[2][:8] == ["2", "failed", "1", "node 2", "Si8", "1", "2", "2.5"]
    assert table[2][8] == "not converged: " + "x" * 44 + "…"
    assert table[3] == ["3", "waiting", "0", "Si8", "1", "3", "2.5"]
    assert shown[4] == "queue.db: 1 waiting, 0 running, 1 done, 1 failed, 0 quarantined"
    only = run("list", "queue.db", "--state", "done", "--state", "waiting").stdout.splitlines()
    assert [line.split()[0] for line in only] == ["id", "1", "3", "queue.db:"]
    said = run("show", "queue.db", "2").stdout
    assert re.search(r"\d failed, node 2: not converged: x{100}|failed, node 2: not converged: x{100}", said)
    assert re.search(rf"digest +{digest(frame_of(2))}", said)
    assert "oracle: version    7" in run("show", "queue.db", "1").stdout
    assert "there is no frame 9" in run("show", "queue.db", "9", code=1).stderr


def test_what_failed_is_tried_again(files):
    run("add", "queue.db", "candidates.extxyz")
    queue = Queue("queue.db", tries=1)
    queue.fail(queue.claim("worker"), "no")
    queue.quarantine(queue.claim("worker"), "bad")
    assert "give the ids of frames, or --all" in run("retry", "queue.db", code=2).stderr
    run("retry", "queue.db", "1", "--all", code=2)
    shown = run("retry", "queue.db", "1", "3").stdout
    assert shown == "queue.db: 1 frames wait again\n  frame 3 is left alone: it is waiting\n"
    assert run("retry", "queue.db", "--all").stdout == "queue.db: 1 frames wait again\n"
    assert queue.counts()["waiting"] == 3
    assert "there is no frame 7" in run("retry", "queue.db", "7", code=1).stderr


def test_export_writes_labels_to_the_last_digit(files):
    run("add", "queue.db", "candidates.extxyz")
    queue = Queue("queue.db")
    queue.done(queue.claim("worker"), labels_of(1), {})
    assert run("export", "queue.db", "-o", "labelled.extxyz").stdout == "1 frames written to labelled.extxyz\n"
    assert "labelled.extxyz exists" in run("export", "queue.db", "-o", "labelled.extxyz", code=1).stderr
    queue.done(queue.claim("worker"), labels_of(2), {})
    more = run("export", "queue.db", "-o", "labelled.extxyz", "--append").stdout
    assert more == "1 frames written to labelled.extxyz, 1 were there\n"
    frames = ase.io.read("labelled.extxyz", ":")
    for seed, atoms in enumerate(frames, 1):
        same(atoms, frame_of(seed), sizes=False)
        has_labels(atoms, labels_of(seed))
    run("export", "queue.db", "-o", "labelled.extxyz", "--overwrite", "--state", "waiting")
    (atoms,) = ase.io.read("labelled.extxyz", ":")
    assert atoms.calc is None
    same(atoms, frame_of(3), sizes=False)
    run("export", "queue.db", "-o", "labelled.extxyz", "--overwrite", "--append", code=2)


def test_a_frame_that_cannot_be_kept_is_named(files):
    frames = [frame_of(7), frame_of(8)]
    frames[1].positions[0] = np.nan
    ase.io.write("broken.extxyz", frames)
    done = run("add", "queue.db", "broken.extxyz", code=1)
    assert "broken.extxyz: frame 1: a frame whose positions or cell are not finite" in done.stderr
    assert "there is no frame 10" in run("show", "queue.db", "1" + 30 * "0", code=1).stderr


def test_export_calls_labels_what_another_program_expects(files):
    run("add", "queue.db", "candidates.extxyz@:1")
    labels, queue = labels_of(1), Queue("queue.db")
    queue.done(queue.claim("worker"), labels, {})
    names = ["--energy-key", "REF_energy", "--forces-key", "REF_forces", "--stress-key", "REF_stress"]
    run("export", "queue.db", "-o", "mace.xyz", *names, "--virial-key", "virial")
    atoms = ase.io.read("mace.xyz")
    assert atoms.calc is None or not atoms.calc.results  # ASE takes none of them for its own
    assert atoms.info["REF_energy"] == labels.energy
    np.testing.assert_array_equal(atoms.arrays["REF_forces"], labels.forces)
    stress = full_3x3_to_voigt_6_stress(np.reshape(atoms.info["REF_stress"], (3, 3)))
    np.testing.assert_array_equal(stress, labels.stress)
    virial = np.reshape(atoms.info["virial"], (3, 3))
    np.testing.assert_allclose(full_3x3_to_voigt_6_stress(virial), -labels.stress * atoms.get_volume(), rtol=1e-12)
    again = ["--append", *names, "--virial-key", "virial"]
    assert "0 frames written to mace.xyz, 1 were there" in run("export", "queue.db", "-o", "mace.xyz", *again).stdout
    run("add", "other.db", "mace.xyz")
    run("import", "other.db", "mace.xyz", *names)
    assert Queue("other.db").entry(1).state == "done"


def test_export_writes_to_nothing_but_extended_xyz(files):
    run("add", "queue.db", "candidates.extxyz")
    ase.io.write("mine.traj", frame_of(7))
    before = Path("mine.traj").read_bytes()
    for how in ("--append", "--overwrite"):
        done = run("export", "queue.db", "-o", "mine.traj", "--state", "waiting", how, code=1)
        assert "choose a name that ends in .extxyz or .xyz" in done.stderr
    assert Path("mine.traj").read_bytes() == before
    for text in (b"", format_atoms(frame_of(7)).rstrip()):  # nothing, and a last line that does not end
        Path("mine.xyz").write_bytes(text)
        run("export", "queue.db", "-o", "mine.xyz", "--state", "waiting", "--append")
        assert len(ase.io.read("mine.xyz", ":")) == 3 + bool(text)


def test_only_add_makes_a_queue(files):
    for arguments in (["list"], ["show", "1"], ["retry", "--all"], ["export", "-o", "x.extxyz"]):
        verb, *more = arguments
        assert "queue.db: no such file" in run(verb, "queue.db", *more, code=1).stderr
    assert sorted(path.name for path in files.iterdir()) == ["candidates.extxyz"]


@pytest.mark.postgresql
def test_a_queue_in_postgresql_is_used_alike_and_its_password_not_shown(files, postgresql_server):
    address = postgresql_server.make()
    shown = run("add", address, "candidates.extxyz").stdout + run("list", address).stdout
    assert "3 frames added" in shown
    assert "3 waiting" in shown
    assert "sesame" not in shown
    run("export", address, "-o", "all.extxyz", "--state", "waiting")
    for seed, atoms in enumerate(ase.io.read("all.extxyz", ":"), 1):
        same(atoms, frame_of(seed), sizes=False)


def test_a_live_run_hands_its_frames_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    command = ["quests-md", "queue", "add", "queue.db", "{output}/candidates.extxyz"]
    atoms = copper(CANDIDATE, temperature=900)
    dyn = verlet(atoms)
    cutout = {"radius": 0.0}
    with session_of(build_index(), tmp_path / "uq", halt=1e9, on_select=command, cutout=cutout, every=4) as session:
        dyn.attach(MonitorObserver(session, dyn))
        dyn.run(12)
        session._commands.wait()
    saved = frames_of(tmp_path / "uq")
    assert len(saved) >= 2
    queue = Queue("queue.db", create=False)
    assert [entry.source["step"] for entry in queue.entries()] == sorted(atoms.info["step"] for atoms in saved)
    for entry, atoms in zip(queue.entries(), saved, strict=True):
        same(queue.atoms(entry.id), atoms, sizes=False)
    run("add", "cut.db", "uq/cutouts.extxyz")
    cuts = Queue("cut.db")
    for id, atoms in enumerate(frames_of(tmp_path / "uq", "cutouts"), 1):
        same(cuts.atoms(id), atoms, sizes=False)
        assert cuts.atoms(id).arrays["core"].dtype == bool
        assert cuts.atoms(id).info["cutout"]


def test_what_is_written_is_read_as_it_was(tmp_path):
    atoms = frame_of(1, text="nan", words='a "b" \\ c', flag=True, nested={"a": [1, 2.5]}, third=1 / 3)
    atoms.info |= {"one": np.array([1.5]), "nine": np.arange(9.0), "matrix": np.arange(9).reshape(3, 3), "odd key": 1}
    atoms.arrays["core"] = np.arange(8) < 3
    atoms.arrays["name"] = np.array(["a", "bc"] * 4, dtype=object)  # as ASE reads a column of texts
    (tmp_path / "x.extxyz").write_bytes(format_atoms(atoms))
    same(ase.io.read(tmp_path / "x.extxyz"), atoms, sizes=False)
