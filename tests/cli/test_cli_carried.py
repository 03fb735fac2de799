"""Columns and keys of others: every verb that writes frames carries them letter by letter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner

from quests_md import cli
from quests_md.files.extxyz import FrameText
from quests_md.labelling import Labels, Queue

# What ASE renames, swallows, converts or refuses, each as somebody may write it.
KEYS = (
    r'virial="1.0 0.1 0.2 0.1 2.0 0.3 0.2 0.3 3.0" Virial="1 2 3 4 5 6" REF_energy=-7.100 flag cfg=1_2 ok=true '
    r'dft_stress="1e-3 0 0 0 0 0.0" version=1.10 code=007 "key with space"="a \"q\" b" ü=é big=99999999999999999999 '
    r'nothing=nan json="_JSON {\"a\": [1, null]}" dipole="0.10 0.2 0.3" magmom=0.0 time="0.5 ps" step=relax_3'
)
COLUMNS = {
    "REF_forces:R:3": "0.10 -0.0 1e-3", "move_mask:L:1": "F", "id:S:1": "a{n}", "n:I:1": "3000000000", "tags:I:1": "1",
    "initial_magmoms:R:1": "0.50", "note:S:1": "w-{n}", "momenta:R:3": "0.0 0.10 0.20", "charges:R:1": "nan",
    "energies:R:1": "-1.0", "virials:R:6": "1 2 3 4 5 6.0",
}  # fmt: skip
LABELS = ("energy", "free_energy", "stress", "forces")


def write(path: Path, size: int, move: float = 0.0) -> None:
    """Write a frame of silicon with all these, and with labels."""
    atoms = bulk("Si", cubic=True) * (size, size, size)
    atoms.rattle(0.01, seed=0)
    atoms.positions[5] += move
    lattice = " ".join(f"{x:g}" for x in atoms.cell.array.ravel())
    properties = ":".join(["species:S:1:pos:R:3", *COLUMNS, "forces:R:3"])
    labels = 'energy=-7.10 free_energy=-7.2 stress="0.1 0 0 0 0.2 0 0 0 0.3"'
    lines = [str(len(atoms)), f'Lattice="{lattice}" Properties={properties} {labels} {KEYS} pbc="T T T"']
    for n, (x, y, z) in enumerate(atoms.positions):
        cells = " ".join(COLUMNS.values()).format(n=n)
        lines.append(f"Si {x:16.8f} {y:.8f} {z:.8f} {cells} 1.0 2.0 3.0")
    path.write_text("\n".join(lines) + "\n", "utf-8")


def run(*arguments: str) -> None:
    result = CliRunner().invoke(cli.main, [*arguments])
    assert result.exit_code == 0, result.output


def check(path: Path, labels: tuple[str, ...]) -> FrameText:
    """Check that the first frame of a file has all columns and keys as they were written, and these labels."""
    written = FrameText(path.read_text("utf-8"))
    words = {str(word) for _, _, word in written.words}
    assert {str(word) for _, _, word in FrameText(f"0\n{KEYS}\n").words} <= words
    columns, _ = written.take(np.array([0]), ())
    first = columns["note"].words[0, 0].removeprefix("w-")
    for name, text in COLUMNS.items():
        name, kind, _ = name.split(":")
        assert columns[name].kind == kind
        assert " ".join(columns[name].words[0]) == text.format(n=first)
    assert [name for name in LABELS if name in columns or name in {key for key, *_ in written.words}] == list(labels)
    return written


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(Path("in.xyz"), 1)
    return tmp_path


def test_compress_copies_a_frame(folder):
    run("compress", "in.xyz", "--size", "1", "-o", "few.extxyz")
    assert Path("few.extxyz").read_bytes() == Path("in.xyz").read_bytes()


def test_dh_adds_to_a_frame(folder):
    run("dh", "in.xyz", "--itself", "-o", "dh.extxyz")
    written = check(Path("dh.extxyz"), LABELS)
    assert written.columns[-1] == ("dH", "R", 1)
    run("dh", "dh.extxyz", "--itself", "-o", "again.extxyz")  # and replaces what is its own
    assert Path("again.extxyz").read_text("utf-8").split() == Path("dh.extxyz").read_text("utf-8").split()


def test_a_queue_gives_back_what_was_added_with_labels_of_its_own(folder):
    run("queue", "add", "q.db", "in.xyz")
    run("queue", "export", "q.db", "-o", "waiting.extxyz", "--state", "waiting")
    check(Path("waiting.extxyz"), ())
    queue = Queue("q.db")
    claim = queue.claim("worker")
    queue.done(claim, Labels(-1.5, [[0.25, 0.0, 0.0]] * 8), {})
    run("queue", "export", "q.db", "-o", "done.extxyz")
    columns, keys = check(Path("done.extxyz"), ("energy", "forces")).take(np.array([7]), ())
    assert (keys["energy"], columns["forces"].words.tolist()) == ("energy=-1.5", [["0.25", "0.0", "0.0"]])


def test_a_cutout_carries_the_rows_of_its_atoms(folder):
    run("index", "build", "in.xyz", "-o", "si.qindex", "--no-calibrate", "--k", "8", "--cutoff", "3")
    write(Path("large.xyz"), 4, 0.6)
    cut = ("cutout", "large.xyz", "--index", "si.qindex", "--threshold", "5", "--radius", "1", "--most", "1")
    run(*cut, "--shape", "cluster", "--passivate", "-o", "cut.extxyz")
    written = check(Path("cut.extxyz"), ())
    numbers = range(int(written.text.split("\n", 1)[0]))
    columns, _ = written.take(np.array(numbers), ())
    for (symbol,), (note,), (number,), (move,) in zip(
        *(columns[name].words.tolist() for name in ("species", "note", "number", "move_mask")), strict=True
    ):
        assert (note, move) == ((f"w-{number}", "F") if symbol == "Si" else ("_", "T"))
