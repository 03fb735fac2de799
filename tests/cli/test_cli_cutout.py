"""quests-md cutout: what it prints and writes, and how it fails."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner, Result

from quests_md import DescriptorSpec, Index, cli
from quests_md.selection import cutouts
from quests_md.sources import read_frames


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an index, and two frames of which one has an atom that the index does not know."""
    monkeypatch.chdir(tmp_path)
    frames = [bulk("Si", cubic=True) * (5, 5, 5) for _ in range(2)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=seed)
        atoms.info["step"] = 10 * seed
    Index.build(frames, DescriptorSpec(k=16, cutoff=4.0), bandwidth=0.05, threads=1).save("si.qindex")
    frames[1].positions[700] += [0.7, 0.5, 0.3]
    ase.io.write("md.xyz", frames)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["cutout", *arguments])
    assert result.exit_code == code, result.output
    return result


OPTIONS = ("--index", "si.qindex", "--threshold", "5", "--radius", "2.5", "--threads", "1")


def test_cutouts_are_those_of_the_library(files: Path) -> None:
    shown = run("md.xyz", *OPTIONS, "-o", "cut.extxyz", "--vacuum", "8", "--shape", "cluster", "--most", "2").stdout
    index = Index.open("si.qindex")
    found = [
        cut
        for frame in read_frames("md.xyz")
        for cut in cutouts(
            frame,
            index.delta_entropy(frame),
            4.0,
            threshold=5.0,
            radius=2.5,
            shape="cluster",
            vacuum=8.0,
            most=2,
            index=index,
        )
    ]
    assert 1 <= len(found) <= 2
    written = ase.io.read("cut.extxyz", ":")
    assert [atoms.info["centre"] for atoms in written] == [cut.info["centre"] for cut in found]
    for atoms, cut in zip(written, found, strict=True):
        np.testing.assert_array_equal(atoms.positions, cut.frame.positions)
        np.testing.assert_array_equal(atoms.arrays["core"], cut.core)
        np.testing.assert_array_equal(atoms.arrays["dH"], cut.dH)
        assert atoms.info["step"] == 10
    lines = shown.splitlines()
    assert lines[0].split() == ["step", "centre", "dH", "core", "atoms", "of", "removed", "filled", "dangling"]
    first = found[0].info
    assert lines[1].split()[:6] == [
        "10", str(first["centre"]), f"{first['dH_max']:.6g}", str(first["n_core"]), first["composition"], "Si1000",
    ]  # fmt: skip
    assert lines[-1] == f"{len(found)} cut-outs in cut.extxyz"


def test_a_replayed_cutout_has_the_dH_of_its_parent(files: Path) -> None:
    run("md.xyz", *OPTIONS, "-o", "cut.extxyz")
    (frame, *_), (atoms, *_) = read_frames("cut.extxyz"), ase.io.read("cut.extxyz", ":")
    dH = Index.open("si.qindex").delta_entropy(frame)
    np.testing.assert_allclose(dH, atoms.arrays["dH"][atoms.arrays["core"]], rtol=0, atol=1e-10)


def test_hydrogens_are_in_the_table(files: Path) -> None:
    shown = run("md.xyz", *OPTIONS, "-o", "cut.extxyz", "--shape", "cluster", "--passivate", "--most", "1").stdout
    (atoms,) = ase.io.read("cut.extxyz", ":")
    assert f" H{atoms.info['hydrogens']} Si" in shown


def test_nothing_to_cut_writes_nothing(files: Path) -> None:
    shown = run("md.xyz@0", *OPTIONS, "-o", "cut.extxyz").stdout
    assert shown == "no atom of md.xyz@0 is above 5 nats: nothing to cut out\n"
    assert not Path("cut.extxyz").exists()


def test_a_file_is_replaced_only_if_told(files: Path) -> None:
    before = Path("md.xyz").read_bytes()
    result = run("md.xyz", *OPTIONS, "-o", "md.xyz", code=1)
    assert result.stderr == "quests-md: error: md.xyz exists: choose another name, or give --overwrite\n"
    assert Path("md.xyz").read_bytes() == before
    Path("cut.extxyz").write_text("old")
    run("md.xyz", *OPTIONS, "-o", "cut.extxyz", "--overwrite")
    assert len(ase.io.read("cut.extxyz", ":")) >= 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--margin", "3"], "margin = 3.0 Å is less than the descriptor's cutoff, 4.0 Å"),
        (["--margin", "9", "--potential-range", "4"], "either margin or potential_range"),
        (["--passivate"], "passivate is for shape"),
        (["--radius", "-1"], "radius must be a length"),
    ],
)
def test_errors_are_one_line_and_write_nothing(files: Path, more: list[str], says: str) -> None:
    stderr = run("md.xyz", *OPTIONS, "-o", "cut.extxyz", *more, code=1).stderr
    assert says in stderr
    assert stderr.count("\n") == 1
    assert not Path("cut.extxyz").exists()
