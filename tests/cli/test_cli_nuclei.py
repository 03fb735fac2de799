"""quests-md nuclei: what it writes is what the functions give; what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner, Result

from quests_md import Index, cli
from quests_md.nuclei import NucleiSeries, linked_mean, nuclei
from quests_md.report import nuclei_picture
from quests_md.sources import read_frames

LINK = ("--index", "cu.qindex", "--threshold", "8", "--link", "3.2")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with an index of a crystal of copper, and frames of a crystal with ever more of it shaken."""
    monkeypatch.chdir(tmp_path)
    crystal = bulk("Cu", cubic=True) * (3, 3, 3)
    frames = []
    for t in range(24):
        atoms = crystal.copy()
        atoms.rattle(0.03, seed=t)
        if t >= 4:
            shaken = np.argsort(atoms.positions[:, 0] + atoms.positions[:, 1])[: 4 * t]
            atoms.positions[shaken] += np.random.default_rng(t).normal(0.0, 0.35, (len(shaken), 3))
        atoms.info.update(step=10 * t, time=0.01 * t)
        frames.append(atoms)
    ase.io.write("ref.xyz", frames[:4])
    ase.io.write("md.xyz", frames[2:])
    Index.build(read_frames("ref.xyz"), threads=1).save("cu.qindex")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["nuclei", *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("above", [(), ("--above",)])
def test_all_files_hold_what_the_functions_give(above: tuple[str, ...]) -> None:
    said = run("md.xyz", *LINK, *above, "-o", "n.csv", "-o", "n.json", "-o", "n.xyz", "--plot", "n.png").stdout
    index, frames = Index.open("cu.qindex"), list(read_frames("md.xyz"))
    inside = [index.delta_entropy(frame) <= 8.0 for frame in frames]
    expected = [nuclei(f, ~mask if above else mask, 3.2) for f, mask in zip(frames, inside, strict=True)]
    with open("n.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "time", "n", "n_inside", "n_nuclei", "largest"]
    assert [int(row["largest"]) for row in rows] == [one.largest for one in expected]
    assert [int(row["step"]) for row in rows] == [10 * t for t in range(2, 24)]
    result = json.loads(Path("n.json").read_text())
    assert result["sizes"] == [one.sizes.tolist() for one in expected]
    assert (result["above"], result["link"], result["nucleation"]) == (bool(above), 3.2, None)
    for atoms, frame, one in zip(ase.io.iread("n.xyz", ":"), frames, expected, strict=True):
        assert atoms.arrays["nucleus"].tolist() == one.numbers.tolist()
        assert np.array_equal(atoms.arrays["dH"], index.delta_entropy(frame))
        assert np.array_equal(atoms.positions, frame.positions)
        assert (atoms.info["step"], atoms.info["largest"]) == (frame.step, one.largest)
    # Without the frames dH is not computed where it need not be: the same nuclei.
    run("md.xyz", *LINK, *above, "-o", "again.csv")
    assert Path("again.csv").read_text() == Path("n.csv").read_text()
    run("md.xyz", *LINK, *above, "--average", "-o", "mean.xyz")
    for atoms, frame in zip(ase.io.iread("mean.xyz", ":"), frames, strict=True):
        mean = linked_mean(frame, index.delta_entropy(frame), 3.2)
        assert atoms.arrays["dH_mean"] == pytest.approx(mean, abs=1e-12)
        assert np.array_equal(atoms.arrays["nucleus"] > 0, (mean > 8.0) if above else (mean <= 8.0))
    assert Path("n.png").stat().st_size > 10_000
    assert "written: n.xyz" in said


@pytest.mark.parametrize("temperature", ["700", "nan"])
def test_a_fit_that_is_refused_leaves_the_rest(temperature: str) -> None:
    fit = ("--temperature", temperature, "--density", "0.08", "--driving-force", "0.05")
    said = run("md.xyz", *LINK, *fit, "-o", "n.json", code=1)
    assert said.stderr.startswith("quests-md: error: ")
    result = json.loads(Path("n.json").read_text())
    assert result["nucleation"] is None
    assert " ".join(result["refused"].split()) in said.stderr
    assert len(result["frames"]) == 22


def test_a_sign_that_is_wrong_is_said_before_frames_are_read() -> None:
    assert "'--driving-force': -0.05 is not" in run("md.xyz", *LINK, "--driving-force", "-0.05", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--temperature", "700"), "--temperature alone: a fit"),
        (("--driving-force", "0.05"), "--driving-force alone: a fit"),
        (("-o", "a.xyz", "-o", "b.extxyz"), "would hold the same frames"),
        (("-o", "ref.xyz"), "ref.xyz exists"),
        (("-o", "n.txt"), "must end with"),
        (("--plot", "n.txt"), "must end with"),
        (("--link", "0"), "positive length"),
        (("--threshold", "nan"), "not nan"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(arguments: tuple[str, ...], reason: str) -> None:
    before = sorted(Path().iterdir())
    assert reason in run("md.xyz", *LINK, *arguments, code=1).stderr
    assert sorted(Path().iterdir()) == before


def test_a_picture_of_no_nuclei_says_so() -> None:
    series = NucleiSeries(
        np.arange(3), np.full(3, np.nan), np.full(3, 8), tuple(np.empty(0, np.int64) for _ in range(3))
    )
    left, right = nuclei_picture(series).axes
    assert left.get_ylim() == (0.0, 1.0)
    assert [text.get_text() for text in right.texts] == ["no nuclei"]
