"""The forces of a model on labelled frames: units, what fails, and what tells one model from another."""

from __future__ import annotations

import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st
from lammps_runs import wheel_potentials
from oracles import oracle

from quests_md.errors import InputError, OracleError, SourceError, TrainingError
from quests_md.index import Index
from quests_md.labelling import Oracle
from quests_md.sources import read_force_errors, read_forces
from quests_md.training import Potential, fingerprint, measure_residuals, read_commands
from quests_md.training._cross_validation import FOLDS, cross_validate
from quests_md.training._model_forces import check_units, compute_forces, fingerprint_potential

LJ = "ase.calculators.lj:LennardJones"
KEYWORDS = {"sigma": 2.1, "epsilon": 0.5, "rc": 6.0, "smooth": False}
SAID = {"name": "LJ", "fingerprint": "ab" * 32}


@pytest.fixture(scope="module")
def frames():
    """Return copper frames with forces of another potential than the model's."""
    made = []
    for seed in range(4):
        atoms = bulk("Cu", cubic=True) * (2, 2, 1 + seed % 2)
        atoms.rattle(0.08, seed=seed)
        atoms.calc = LennardJones(**{**KEYWORDS, "epsilon": 0.4})
        forces = atoms.get_forces()
        model = atoms.copy()
        model.calc = LennardJones(**KEYWORDS)
        atoms.arrays["model_forces"] = model.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
        made.append(atoms)
    return made


@pytest.fixture
def labelled(frames, tmp_path, monkeypatch):
    """The name of a file of these frames, in the working folder."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("cu.extxyz", frames)
    return "cu.extxyz"


# -- residuals ---------------------------------------------------------------------------------------------------------


def test_both_forces_of_a_file_and_a_calculator_and_lammps_give_the_same(frames, labelled):
    pytest.importorskip("lammps", exc_type=ImportError)
    index = Index.build(frames)
    of_file = measure_residuals(index, read_forces(labelled), **SAID)
    expected = np.concatenate([error for _, error in read_force_errors(labelled)])[index.order]
    np.testing.assert_allclose(of_file.values, expected, rtol=1e-6)
    model = Oracle(calculator=LJ, keywords=KEYWORDS)
    of_calculator = measure_residuals(index, read_forces(labelled, model_key=None), **SAID, model=model)
    np.testing.assert_allclose(of_calculator.values, of_file.values, rtol=1e-5, atol=1e-7)
    Path("lj.txt").write_text("# LJ\n\npair_style lj/cut 6.0 # Å\npair_coeff * * &\n  0.5 2.1\npair_modify shift yes\n")
    model, _ = read_commands("lj.txt", ["Cu"])
    of_lammps = measure_residuals(index, read_forces(labelled, model_key=None), **SAID, model=model)
    np.testing.assert_allclose(of_lammps.values, of_file.values, rtol=1e-5, atol=1e-7)


def test_frames_are_looked_for_before_the_model_computes(frames, labelled):
    index = Index.build(frames[:2])
    model = oracle("Dies")  # it would
    with pytest.raises(InputError, match=r"2 of 4 labelled frames .* The first is cu.extxyz: frame 2: 16 of its 16"):
        measure_residuals(index, read_forces(labelled, model_key=None), **SAID, model=model)


def test_a_model_that_fails_names_the_frame_and_says_why(frames, labelled):
    read = list(read_forces(labelled, model_key=None))
    silicon = Oracle(calculator="ase.calculators.emt:EMT")
    read[1].atoms.numbers[0] = 14
    with pytest.raises(InputError, match=r"^cu\.extxyz: frame 1: the model fails on it: .*No EMT-potential for Si"):
        list(compute_forces(silicon, read))
    with pytest.raises(OracleError, match="cannot be made"):
        list(compute_forces(Oracle(calculator="no.such:Thing"), read))


def test_forces_that_are_the_same_are_no_model(frames, labelled):
    with pytest.raises(InputError, match="the model's forces are the oracle's: they differ by at most 0 eV/Å"):
        measure_residuals(Index.build(frames), read_forces(labelled, model_key="forces"), **SAID)


@pytest.mark.parametrize("key", ["forces", "model_forces"])
def test_a_frame_without_forces_and_forces_that_are_not_finite_are_named(frames, key, tmp_path):
    for change in ("missing", "nan"):
        broken = [atoms.copy() for atoms in frames]
        for atoms, whole in zip(broken, frames, strict=True):
            atoms.arrays["forces"] = whole.calc.results["forces"].copy()
        if change == "missing":
            del broken[2].arrays[key]
        else:
            broken[2].arrays[key][5, 1] = np.nan
        ase.io.write(tmp_path / "b.extxyz", broken)
        with pytest.raises(SourceError, match=rf"b.extxyz: frame 2 needs {key} .*three finite numbers"):
            list(read_forces(tmp_path / "b.extxyz"))


# -- cross-validation --------------------------------------------------------------------------------------------------


class Remembers:
    """A trainer whose potentials are Lennard-Jones, with an ε that is a hundredth of the number of training frames."""

    name, masks = "remembers", False

    def __init__(self):
        self.trained, self.folders = [], []

    def train(self, frames, folder, *, seed=0):
        assert not list(folder.iterdir())
        (folder / "left").write_text("over")
        self.trained.append([atoms.info["number"] for atoms in frames])
        self.folders.append(folder)
        call = {"call": LJ, **KEYWORDS, "epsilon": 0.01 * len(frames)}
        potential = Potential(folder, ("Cu",), (), call)
        potential.save()
        return potential


@pytest.fixture
def numbered(frames, labelled):
    """Return thirteen labelled frames, of which the last one is a copy of the second."""
    made = []
    for number in range(12):
        atoms = frames[number % 4].copy()
        atoms.calc = frames[number % 4].calc
        atoms.info["number"] = number
        atoms.positions[0] += 0.01 * (number // 4)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=frames[number % 4].get_forces())
        made.append(atoms)
    ase.io.write(labelled, [*made, made[1]])
    return list(read_forces(labelled, model_key=None))


def test_no_fit_has_seen_the_frames_that_it_is_asked_about(numbered, tmp_path):
    trainer, folder = Remembers(), tmp_path / "fold"
    done = list(cross_validate(trainer, numbered, folder))
    assert sorted(one.where for one in done) == sorted(one.where for one in numbered)
    assert len(trainer.trained) == FOLDS == 4
    for trained, asked in zip(trainer.trained, [[0, 4, 8], [1, 5, 9, 1], [2, 6, 10], [3, 7, 11]], strict=True):
        assert set(trained) == set(range(12)) - set(asked)
    assert [one.atoms.info["number"] for one in done] == [0, 4, 8, 1, 5, 9, 1, 2, 6, 10, 3, 7, 11]
    for one in done:
        atoms = one.atoms.copy()
        seen = 9 if one.atoms.info["number"] in (1, 5, 9) else 10
        atoms.calc = LennardJones(**{**KEYWORDS, "epsilon": 0.01 * seen})
        np.testing.assert_allclose(one.model, atoms.get_forces(), atol=1e-9)
    assert not folder.exists()


def test_few_frames_are_no_cross_validation_and_nothing_is_left(numbered, tmp_path):
    with pytest.raises(InputError, match="7 different frames are too few for a cross-validation with 4 folds"):
        list(cross_validate(Remembers(), [*numbered[:7], numbered[0]], tmp_path / "fold"))
    forces = cross_validate(Remembers(), numbered, tmp_path / "fold")
    next(forces)
    forces.close()  # as if the next one failed
    assert not (tmp_path / "fold").exists()


# -- units -------------------------------------------------------------------------------------------------------------

FACTORS = {
    23.0605: "the model's in kcal/mol/Å", 96.4853: "the model's in kJ/mol/Å", 0.043364: "the oracle's in kcal/mol/Å",
    0.010364: "the oracle's in kJ/mol/Å", 1 / 27.2114: "the model's in Hartree/Å or the model's in Ry/Bohr",
    1 / 51.4221: "the model's in Hartree/Bohr", 1 / 25.711: "the model's in Ry/Bohr or the model's in Hartree/Å",
    27.2114: "the oracle's in Hartree/Å or the oracle's in Ry/Bohr", 51.4221: "the oracle's in Hartree/Bohr",
    25.711: "the oracle's in Ry/Bohr",
}  # fmt: skip


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_forces_in_another_unit_are_recognised(factor, error):
    rng = np.random.default_rng(3)
    oracle = rng.normal(size=(200, 3)) * rng.exponential(size=(200, 1))
    model = factor * (oracle + error * rng.normal(size=(200, 3)))
    model[0] = 1e6  # an outlier
    with pytest.raises(InputError, match=rf"forces are [\d.e+]+ times the oracle's: are {FACTORS[factor]}"):
        check_units(oracle, model)


@given(slope=st.floats(0.2, 5.0), error=st.floats(0.0, 3.0), seed=st.integers(0, 1000))
def test_a_bad_model_is_not_one_in_another_unit(slope, error, seed):
    rng = np.random.default_rng(seed)
    oracle = rng.normal(size=(100, 3))
    check_units(oracle, slope * oracle + error * rng.normal(size=(100, 3)))
    check_units(oracle, 0.0 * oracle)
    check_units(0.0 * oracle, oracle)
    check_units(oracle, 0.04 * rng.normal(size=(100, 3)))  # a model that knows nothing


# -- fingerprints and commands -----------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_contents_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        shutil.copy(Path(wheel_potentials()) / "Si.sw", f"{name}/Si.sw")
        Path(name, "sw.txt").write_text("pair_style sw\npair_coeff * * Si.sw Si\n")
    (model, one), (_, other) = read_commands("a/sw.txt", ["Si"]), read_commands("b/sw.txt", ["Si"])
    assert one == other
    assert model.keywords["commands"][1] == f"pair_coeff * * {tmp_path}/a/Si.sw Si"
    assert read_commands("a/sw.txt", ["Si", "Ge"])[1] != one
    shutil.copy("a/Si.sw", "a/it is.sw")
    Path("a/sw.txt").write_text("pair_style sw\npair_coeff * * 'it is.sw' Si\n")
    model, spaced = read_commands("a/sw.txt", ["Si"])
    assert (spaced, model.keywords["commands"][1]) == (one, f'pair_coeff * * "{tmp_path}/a/it is.sw" Si')
    Path("Si").write_text("no file of a potential")
    assert read_commands("b/sw.txt", ["Si"])[1] == one
    potential = Potential(tmp_path / "b", ("Si",), ("pair_style sw", "pair_coeff * * {folder}/Si.sw Si"), None)
    assert fingerprint_potential(potential) == one
    with open("b/Si.sw", "a", encoding="utf-8") as file:
        file.write("# trained again\n")
    assert read_commands("b/sw.txt", ["Si"])[1] != one
    assert fingerprint_potential(potential) != one


def test_a_fingerprint_follows_settings_and_files_of_a_calculator(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"1")
    calculator = {"call": "a:B", "file": "{folder}/net.pt"}
    first = fingerprint_potential(Potential(tmp_path, ("Si",), (), calculator, ("net.pt",)))
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(tmp_path / "net.pt", moved)
    assert fingerprint_potential(Potential(moved, ("Si",), (), calculator, ("net.pt",))) == first
    (moved / "net.pt").write_bytes(b"2")
    assert fingerprint_potential(Potential(moved, ("Si",), (), calculator, ("net.pt",))) != first
    assert fingerprint({"a": 1, "b": [2.0, None]}) == fingerprint({"b": (2.0, None), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": "x" * 10_000}) != fingerprint({"a": "\0"})


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        (None, InputError, "no file of commands of LAMMPS"),
        ("", InputError, "no pair_style"),
        ("pair_coeff * * Si.sw Si\n", InputError, "no pair_style"),
        ("shell rm -rf x\n", TrainingError, "no command of LAMMPS for a potential"),
        ("pair_style sw\nrun 10\n", TrainingError, "no command of LAMMPS for a potential"),
        ("pair_style sw\npair_coeff * * 'Si.sw Si\n", InputError, "No closing quotation"),
        ("pair_style sw\npair_coeff * * ${file} Si\n", TrainingError, "without variables"),
    ],
)
def test_commands_that_are_no_potential_are_refused(text, kind, match, tmp_path):
    if text is not None:
        (tmp_path / "commands.txt").write_text(text)
    with pytest.raises(kind, match=match):
        read_commands(tmp_path / "commands.txt", ["Si"])
