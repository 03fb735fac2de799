"""quests-md compress: what it prints, writes and draws, and how it fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner, Result

from quests_md import DescriptorSpec, Index, cli
from quests_md.compression import compress
from quests_md.files.extxyz import format_atoms
from quests_md.report import compression


@pytest.fixture(scope="module")
def frames():
    """Return labelled frames of silicon, one of them without atoms."""
    made = [bulk("Si", cubic=True) for _ in range(8)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.03 + 0.1 * (seed % 3), seed=seed)
        atoms.info.update(note=f"frame {seed}", label=seed)
        atoms.arrays["tag"] = np.arange(8) + seed
        forces = np.random.default_rng(seed).random((8, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-1.5 * seed, forces=forces, stress=np.arange(6.0))
    made.insert(3, made[0][:0])
    return made


@pytest.fixture(autouse=True)
def there(frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with the frames in two files, and an index of some of them."""
    monkeypatch.chdir(tmp_path)
    Path("a.extxyz").write_bytes(b"".join(map(format_atoms, frames[:5])))
    Path("b.extxyz").write_bytes(b"".join(map(format_atoms, frames[5:])))
    Index.build(frames[1:3], threads=1).save(Path("si.qindex"))


def run(*arguments: str, fails: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["compress", *arguments])
    assert result.exit_code == fails, result.output
    return result


def test_frames_are_written_as_they_were_read(frames):
    filled = [atoms for atoms in frames if len(atoms)]
    rows = DescriptorSpec().compute(filled)
    expected = compress(rows, np.arange(0, 65, 8), 4)
    said = run("a.extxyz", "b.extxyz", "--size", "50%", "-o", "few.extxyz").stdout
    assert said.split()[7:11] == ["4", "8", "32", "64"]
    written = ase.io.read("few.extxyz", ":")
    for atoms, number in zip(written, expected.selected, strict=True):
        original = filled[number]
        assert (atoms.positions == original.positions).all()
        assert atoms.info == original.info
        assert (atoms.arrays["tag"] == original.arrays["tag"]).all()
        assert atoms.calc.results.keys() == original.calc.results.keys()
        for name, value in original.calc.results.items():
            assert np.all(atoms.calc.results[name] == value), name

    run("a.extxyz", "b.extxyz", "--size", "0.5", "-o", "few.csv", "--plot", "few.png")
    with open("few.csv", newline="") as file:
        table = list(csv.DictReader(file))
    places = [("a.extxyz", n) for n in (0, 1, 2, 4)] + [("b.extxyz", n) for n in range(4)]
    assert [(row["file"], int(row["frame"])) for row in table] == [places[n] for n in expected.selected]
    for name in ("n_env", "entropy", "diversity", "overlap"):
        np.testing.assert_allclose([float(row[name]) for row in table], getattr(expected.growth(), name), rtol=1e-12)
    assert Path("few.png").read_bytes().startswith(b"\x89PNG")


def test_an_index_gives_the_numbers_of_its_frames(frames):
    run("si.qindex", "--size", "1", "-o", "few.json")
    result = json.loads(Path("few.json").read_text())
    assert (result["chosen"]["frames"], result["chosen"]["of"], result["bandwidth"]) == (1, 2, 0.015)
    assert [row["frame"] for row in result["frames"]] in ([0], [1])
    failed = run("si.qindex", "--size", "1", "-o", "few.xyz", fails=1)
    assert "si.qindex holds no frames to write: give a name that ends with .json or .csv" in failed.stderr


def test_a_reference_and_an_entropy(frames):
    run("a.extxyz", "b.extxyz", "--reference", "si.qindex", "--size", "4", "-o", "few.json")
    result = json.loads(Path("few.json").read_text())
    first = [(row["file"], row["frame"]) for row in result["frames"]]
    assert not {("a.extxyz", 1), ("a.extxyz", 2)} & set(first)  # they are known already
    assert result["reference"]["sources"][0]["file"] == "si.qindex"
    run("a.extxyz", "--keep", "0.8", "-o", "keep.json")
    run("a.extxyz", "--entropy", "1.5", "-o", "reach.json")
    assert json.loads(Path("reach.json").read_text())["chosen"]["entropy"] >= 1.5


@pytest.mark.parametrize(
    ("arguments", "fails", "message"),
    [
        ([], 2, "give one of --size, --entropy and --keep"),
        (["--size", "1", "--keep", "0.5"], 2, "give one of --size, --entropy and --keep"),
        (["--size", "few"], 2, "'few' is neither a number of frames nor a share"),
        (["--size", "2.5"], 1, "size must be a number of frames from 1 on, or a share"),
        (["--entropy", "9"], 1, "an entropy of 9 nats is not reached: all 4 frames have"),
        (["--size", "1", "-o", "a.extxyz"], 1, "a.extxyz exists"),
        (["--size", "1", "-o", "few.txt"], 1, "must end with .xyz or .extxyz or .json or .csv"),
        (["--size", "1", "--method", "random", "--reference", "si.qindex"], 1, 'a reference is for "msc"'),
    ],
)
def test_what_cannot_be_done_is_said(arguments, fails, message):
    assert message in run("a.extxyz", *arguments, fails=fails).stderr


def test_an_element_that_the_reference_lacks_is_said():
    ase.io.write("ge.extxyz", bulk("Ge", cubic=True))
    failed = run("ge.extxyz", "--size", "1", "--reference", "si.qindex", fails=1)
    assert "Ge is the centre of no environment of the reference" in failed.stderr


def test_the_picture_draws_what_the_choice_holds():
    found = compress(np.random.default_rng(0).normal(0, 0.02, (40, 3)), np.arange(0, 41, 4), 7)
    growth = found.growth()
    above, below = compression(found, 10).axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in above.lines}
    assert drawn == {"entropy $H$": growth.entropy.tolist(), "diversity $D$": growth.diversity.tolist()}
    assert below.lines[0].get_ydata().tolist() == growth.overlap.tolist()
    assert below.get_xlabel().startswith("frames chosen of 10 (msc")
