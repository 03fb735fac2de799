"""Any program as a trainer; and gap_fit, a real one, which leaves forces out of a fit where it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from limits import wait_until
from paths import DOCS
from trainings import GAP, copper, cut_out, python, with_labels

from quests_md.errors import ConfigError, TrainingError
from quests_md.toml import read_toml
from quests_md.training import Potential, Trainer, errors, make_trainer, train

COPY = """
import os, shutil, sys
assert os.getcwd() == sys.argv[2], os.getcwd()
shutil.copy(sys.argv[1], "out.txt")
print(sys.argv[3:])
"""
CORE = np.arange(8) < 3


def test_arguments_are_filled_in_and_braces_of_others_stay(tmp_path: Path) -> None:
    potential = make_trainer(python(COPY)).train([copper(0, True)], tmp_path / "a b", seed=5)
    assert (potential.folder / "train.log").read_text().strip() == "['5', 'Cu Ag', '{other} {x:1}']"
    assert Potential.open(tmp_path / "a b") == potential
    assert potential.elements == ("Cu", "Ag")


def test_the_training_file_holds_every_digit_under_the_names_it_is_told(tmp_path: Path) -> None:
    names = {"energy_key": "REF_energy", "forces_column": "REF_forces", "stress_key": "REF_stress"}
    frame = copper(0)
    frame.info.update(config_type='bulk "x" y', energy_sigma=0.125, other=1)
    settings = python(COPY, **names, keys=["config_type", "energy_sigma", "absent"])
    read = ase.io.read(make_trainer(settings).train([frame], tmp_path).folder / "out.txt", format="extxyz")
    assert read.info["REF_energy"] == frame.get_potential_energy()
    np.testing.assert_array_equal(read.arrays["REF_forces"], frame.get_forces())
    np.testing.assert_array_equal(read.positions, frame.positions)
    np.testing.assert_array_equal(read.cell, frame.cell)
    np.testing.assert_array_equal(np.ravel(read.info["REF_stress"]), frame.get_stress(voigt=False).ravel())
    assert {key: read.info[key] for key in ("config_type", "energy_sigma")} == {
        "config_type": 'bulk "x" y',
        "energy_sigma": 0.125,
    }
    assert not {"absent", "other"} & set(read.info)


@pytest.mark.parametrize("excludes", [True, False])
def test_of_cut_outs_only_core_forces_are_written(tmp_path: Path, excludes: bool) -> None:
    settings = python(
        COPY, mask_column="mask", mask_excludes=excludes, energy_key="E", forces_column="F", stress_key="S"
    )
    cut = cut_out(copper(1), CORE, garbage=3)
    folder = make_trainer(settings).train([copper(0), cut], tmp_path).folder
    whole, masked = ase.io.read(folder / "out.txt", ":", format="extxyz")
    np.testing.assert_array_equal(masked.arrays["mask"], ~CORE if excludes else CORE)
    np.testing.assert_array_equal(whole.arrays["mask"], np.full(8, not excludes))
    np.testing.assert_array_equal(masked.arrays["F"][CORE], cut.get_forces()[CORE])
    assert not masked.arrays["F"][~CORE].any()
    assert {"E", "S"} <= set(whole.info)
    assert not {"E", "S"} & set(masked.info)


def test_without_a_mask_cut_outs_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(python(COPY))
    assert isinstance(trainer, Trainer)
    assert not trainer.masks
    with pytest.raises(TrainingError, match=r"frames \[1\] are cut-outs.* give mask_column"):
        trainer.train([copper(0), cut_out(copper(1), CORE)], tmp_path / "x")
    with pytest.raises(TrainingError, match=r"the trainer command cannot leave the others out"):
        train(trainer, [copper(0), cut_out(copper(1), CORE)], [], tmp_path / "x")


def test_labels_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(python(COPY))
    unlabelled = copper(0).copy()
    coreless = cut_out(copper(0), CORE)
    del coreless.arrays["core"]
    broken = with_labels(copper(0), float("nan"), np.zeros((8, 3)))
    for frames, message in (
        ([], "no frames to train on"),
        ([copper(0), unlabelled], r"frame 1 \(Cu8\) has no energy and forces"),
        ([coreless], "has no column core"),
        ([broken], "labels that are not finite"),
    ):
        with pytest.raises(TrainingError, match=message):
            trainer.train(frames, tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('almost')", r"(?s)did not write out\.txt; .*train\.log ends with:\nalmost"),
        ("raise SystemExit('no memory')", r"(?s)ended with exit code 1; .*ends with:\nno memory"),
        ("import os; os.abort()", r"was killed by signal 6 \(SIGABRT\)"),
    ],
)
def test_a_program_that_fails_is_told_with_its_log(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make_trainer(python(code)).train([copper(0)], tmp_path)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    trainer = make_trainer(python("", command=["no-such-program", "{training}"]))
    with pytest.raises(TrainingError, match="no-such-program: there is no such program"):
        trainer.train([copper(0)], tmp_path)


SPAWN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
with open("pids.new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.new", "pids")
time.sleep(3600)
"""


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_program_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="took longer than 5 s and was killed"):
        make_trainer(python(SPAWN, timeout=5.0)).train([copper(0)], tmp_path)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: all(map(_ended, pids)), f"of {pids} some go on")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_program_ends_with_whoever_started_it(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "frame.xyz", copper(0))
    (tmp_path / "settings.json").write_text(json.dumps(python(SPAWN)))
    code = (
        "import ase.io, json; from pathlib import Path; from quests_md.training import make_trainer;"
        "make_trainer(json.loads(Path('settings.json').read_text())).train([ase.io.read('frame.xyz')], Path('out'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_until((tmp_path / "out" / "pids").exists, "the program has not begun")
    pids = [int(pid) for pid in (tmp_path / "out" / "pids").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: all(map(_ended, pids)), f"of {pids} some go on")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": []}, "command"),
        ({"command": ["fit"]}, r"no argument of command holds \{training\}"),
        ({"command": "fit {training}"}, "command"),
        ({"files": []}, "files"),
        ({"calculator": None}, "lammps or calculator must say"),
        ({"calculator": {"call": "nowhere"}}, "call must be an import path such as"),
        ({"calculator": {"file": "x"}}, "call must be an import path such as"),
        ({"timeout": "1h"}, "timeout must be a number of seconds"),
        ({"lammps": ["shell ls"]}, "no command of LAMMPS for a potential"),
        ({"mask": "x"}, "unknown key 'mask'"),
    ],
)
def test_wrong_settings_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(python(COPY, **changes))


# -- gap_fit ---------------------------------------------------------------------------------------------


@pytest.fixture
def gap() -> Any:
    pytest.importorskip("quippy")
    return make_trainer(GAP)


def _model(potential: Potential) -> list[Any]:
    """Return energies and forces of a potential on frames that it was not trained on."""
    values = []
    for seed in (20, 21):
        atoms = copper(seed).copy()
        atoms.calc = potential.ase_calculator()
        values += [atoms.get_potential_energy(), atoms.get_forces()]
    return values


def test_gap_fit_trains_and_its_potential_runs_in_ase(tmp_path: Path, gap: Any) -> None:
    frames, held_out = [copper(seed) for seed in range(8)], [copper(20)]
    potential, record = train(gap, frames, held_out, tmp_path / "gap", seed=3)
    assert record["errors"]["training"]["force_rmse"] < 0.2
    assert record["errors"]["held_out"]["force_rmse"] < 0.4
    moved = Potential.open(potential.folder.rename(tmp_path / "moved"))
    assert errors(moved, held_out).to_json() == record["errors"]["held_out"]
    atoms = copper(0, amplitude=0.05).copy()
    atoms.set_velocities(np.random.default_rng(0).normal(0, 0.02, (8, 3)))
    atoms.calc = moved.ase_calculator()
    before = atoms.get_total_energy()
    VelocityVerlet(atoms, 2 * fs).run(50)
    assert atoms.get_kinetic_energy() > 0.01
    assert atoms.get_total_energy() == pytest.approx(before, abs=0.01)


def test_forces_outside_the_core_play_no_part_in_the_fit(tmp_path: Path, gap: Any) -> None:
    whole = [copper(seed) for seed in range(5)]

    def fitted(name: str, garbage: int | None, frames: Any = None) -> list[Any]:
        cut = [cut_out(copper(seed), CORE, None if garbage is None else garbage + seed) for seed in (11, 12)]
        return _model(gap.train(whole + (cut if frames is None else frames), tmp_path / name, seed=1))

    clean, spoilt = fitted("clean", None), fitted("spoilt", 77)
    for one, two in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(one, two)
    unlike = [fitted("nothing", None, []), fitted("whole", None, [copper(11), copper(12)])]
    for other in unlike:  # core forces do play a part; and so would the others
        assert np.abs(other[1] - clean[1]).max() > 1e-3


def test_the_gap_fit_of_the_manual_trains(tmp_path: Path, gap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "training.md").read_text("utf-8")
    (table,) = [text for text in re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S) if '"gap_fit"' in text]
    (tmp_path / "learn.toml").write_text(table)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    trainer = make_trainer(read_toml(tmp_path / "learn.toml")["trainer"])
    frames = [*(copper(seed) for seed in range(8)), cut_out(copper(11), CORE, garbage=1)]
    _, record = train(trainer, frames, [copper(20)], tmp_path / "gap")
    assert record["frames"][-1]["n_core"] == 3
    assert record["errors"]["training"]["n_atoms"] == 67
    assert record["errors"]["held_out"]["force_rmse"] < 0.2


def test_what_a_program_says_before_a_long_log_is_told(tmp_path: Path, gap: Any) -> None:
    with pytest.raises(TrainingError, match=r"(?s)train\.log says:\nSYSTEM ABORT: .*seed.*ends with:"):
        gap.train([copper(0)], tmp_path, seed=0)
