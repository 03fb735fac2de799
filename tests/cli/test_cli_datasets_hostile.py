"""The verbs that judge datasets, given what nobody should give them, and in places where they cannot write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from click.testing import CliRunner, Result
from limits import LIMIT

from quests_md import cli, delta_entropy
from quests_md.cli.results import format_table
from quests_md.compression import compress
from quests_md.errors import InputError
from quests_md.information import information, likelihood_bandwidth


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with frames of silicon, the first of which is one atom."""
    monkeypatch.chdir(tmp_path)
    frames = [Atoms("Si", cell=[20.0] * 3, pbc=True)] + [bulk("Si", cubic=True) for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
        atoms.info["kind"] = "alone" if seed == 0 else "crystal"
    ase.io.write("si.extxyz", frames)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [*arguments, "--threads", "1"])
    assert result.exit_code == code, result.output
    assert code == 0 or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_group_of_one_environment_is_a_sample():
    run("entropy", "si.extxyz", "--group-key", "kind", "--sample", "2", "--runs", "2", "-o", "e.json")
    first = json.loads(Path("e.json").read_text())["results"][0]
    assert (first["group"], first["sample"], first["entropy"], first["efficiency"]) == ("alone", 1, 0.0, 1.0)


@pytest.mark.parametrize("verb", [["entropy"], ["overlap", "--reference", "si.extxyz"]])
def test_no_group_has_the_name_of_all(verb):
    frames = ase.io.read("si.extxyz", ":")
    frames[0].info["kind"] = "(all)"
    ase.io.write("named.extxyz", frames)
    assert 'a group is named "(all)"' in run(*verb, "named.extxyz", "--group-key", "kind", code=1).output


def test_a_name_from_a_file_neither_tears_a_table_nor_steers_a_terminal():
    assert format_table([{"group": "a\n\x1b[31mÅ", "n": 1}]).split("\n")[1] == "a\\n\\x1b[31mÅ  1"


def test_frames_without_atoms_leave_no_file():
    ase.io.write("none.traj", [Atoms(cell=[5.0] * 3, pbc=True)])
    result = run("dh", "none.traj", "--reference", "si.extxyz", "-o", "dh.extxyz", code=1)
    assert "no environments" in result.output
    assert not Path("dh.extxyz").exists()


def test_an_environment_against_itself_has_a_dh_of_plain_zero():
    row = np.array([[0.1, 0.2]])
    assert not np.signbit(delta_entropy(row, row)).any()


@pytest.mark.parametrize("method", ["msc", "farthest", "random"])
def test_the_whole_entropy_is_kept_by_all_frames(method):
    """Sums of another order differ in their last digits."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.normal(size=(40, 3))
        found = compress(x, np.arange(0, 41, 8), method=method, entropy=information(x, 1.0).entropy, bandwidth=1.0)
        assert found.entropy == pytest.approx(information(x, 1.0).entropy, abs=1e-9) or len(found.selected) < 5
    run("compress", "si.extxyz", "--keep", "1", "--method", method)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 no archive", "not an array that numpy reads"),
        (
            b"\x93NUMPY\x01\x00\x36\x00{'descr':'<f8','fortran_order':False,'shape':((((((   \n",
            "not an array that numpy",
        ),
    ],
)
def test_a_broken_array_is_told_by_name(content, says):
    Path("broken.npy").write_bytes(content)
    output = run("entropy", "broken.npy", "--bandwidth", "1", code=1).output
    assert output.startswith(f"quests-md: error: broken.npy: {says}")


@pytest.mark.parametrize("verb", [["entropy"], ["compress", "--size", "2"], ["learning-curve"], ["dh", "--reference"]])
def test_an_array_with_nan_is_told_by_name(verb):
    np.save("bad.npy", np.array([[1.0], [np.nan]]))
    np.save("good.npy", np.ones((2, 1)))
    more = ["good.npy"] if verb[0] == "dh" else []
    result = run(*verb, "bad.npy", *more, "--bandwidth", "1", code=1)
    assert "bad.npy: the array holds values that are not finite" in result.output


@pytest.mark.parametrize("bandwidth", [1e-320, 1e-200, 1e-10, 1e10, 1e200])
def test_a_bandwidth_whose_square_is_no_number_is_refused(bandwidth):
    x = np.eye(3)
    for call in (information, lambda x, h: delta_entropy(x, x, h), lambda x, h: likelihood_bandwidth(x, [h])):
        with pytest.raises(InputError, match=r"not between 1e-09 and 1e\+09"):
            call(x, bandwidth)


def test_rows_beside_which_a_bandwidth_is_lost_are_refused():
    """Bounds of their distances are rounded: they would count as alone, or as nothing."""
    x = np.random.default_rng(0).normal(size=(300, 4))
    far = np.vstack([x, x[:3] * 1e11])
    dH = -np.log(np.exp(-0.5 * ((far[:, None] - far) ** 2).sum(axis=2)).sum(axis=1))
    np.testing.assert_allclose(information(far, 1.0).delta_entropy, dH, atol=1e-10)
    far[-1] = 1e20
    offsets = np.arange(len(far) + 1)
    for call in (
        lambda: information(far, 1.0),
        lambda: delta_entropy(x, far, 1.0),
        lambda: compress(far, offsets, 3, bandwidth=1.0),
    ):
        with pytest.raises(InputError, match=r"values up to 1e\+20, more than 1e\+12 bandwidths of 1"):
            call()
    assert np.isfinite(delta_entropy(far, x, 1.0)).all()  # queries may be anywhere


def test_a_reader_that_has_gone_costs_no_file():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "quests_md.cli", "entropy", "si.extxyz", "--threads", "1", "-o", "e.csv"]
    try:
        told = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=LIMIT, check=False)
    finally:
        os.close(writer)
    assert Path("e.csv").exists(), told


def test_a_result_that_cannot_be_written_is_printed():
    Path("folder.json").mkdir()
    result = run("entropy", "si.extxyz", "-o", "folder.json", "--overwrite", code=1)
    assert "folder.json: cannot be written" in result.output
    assert "efficiency" in result.output
