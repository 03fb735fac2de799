"""One calculation: labels as the calculator gives them, and every way in which it can go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from limits import LIMIT
from oracles import EMT_PATH, copper, oracle, parent_of, silicon, tblite, wait_for, wait_for_end

from quests_md.errors import ConfigError, OracleError
from quests_md.labelling import Oracle, compute
from quests_md.labelling._process import kill_children

pytestmark = pytest.mark.usefixtures("scratch_folders")


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


# -- labels --------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_calculator():
    atoms = copper(1)
    outcome = compute(oracle(EMT_PATH), atoms)
    atoms.calc = EMT()
    assert outcome.problem == outcome.reason == ""
    assert outcome.labels.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(outcome.labels.forces, atoms.get_forces())
    np.testing.assert_array_equal(outcome.labels.stress, atoms.get_stress())


def test_labels_of_an_electronic_structure_code_are_derivatives_of_its_energy():
    frame, given = silicon(2), tblite(accuracy=0.01)
    labels, step = compute(given, frame).labels, 1e-3
    moved, energies = [], []
    for sign in (1, -1):
        atoms = frame.copy()
        atoms.positions[3, 1] += sign * step
        moved.append(compute(given, atoms).labels.energy)
        strained = frame.copy()
        deformation = np.eye(3)
        deformation[0, 0] += sign * step
        strained.set_cell(frame.cell @ deformation, scale_atoms=True)
        energies.append(compute(given, strained).labels.energy)
    assert labels.forces[3, 1] == pytest.approx(-(moved[0] - moved[1]) / (2 * step), abs=1e-3)
    slope = (energies[0] - energies[1]) / (2 * step) / frame.get_volume()
    assert labels.stress[0] == pytest.approx(slope, abs=1e-3)


def test_the_record_says_what_calculated():
    record = compute(tblite(), silicon()).record
    assert record["code"] == "tblite"
    assert record["version"].count(".") == 2
    assert record["settings"] == {
        "calculator": "tblite.ase:TBLite",
        "keywords": {"method": "GFN1-xTB", "verbosity": 0},
    }
    assert record["seconds"] > 0
    assert {"host", "versions", "calculator"} <= set(record)


def test_there_is_no_stress_where_there_is_none():
    assert compute(oracle(EMT_PATH), molecule("CH4")).labels.stress is None
    assert compute(oracle(EMT_PATH, stress=False), copper()).labels.stress is None
    slab = copper()
    slab.pbc = (True, True, False)
    assert compute(oracle(EMT_PATH), slab).labels.stress is None


def test_constraints_change_no_label():
    atoms = copper(3)
    free = compute(oracle(EMT_PATH), atoms).labels.forces
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    np.testing.assert_array_equal(compute(oracle(EMT_PATH), atoms).labels.forces, free)


def test_charges_and_moments_reach_the_calculator():
    atoms = molecule("CH3", vacuum=4.0)  # its atoms come with magnetic moments
    atoms.set_initial_magnetic_moments([1, 0, 0, 0])
    neutral = compute(tblite(), atoms).labels.energy
    atoms.set_initial_magnetic_moments(None)
    atoms.set_initial_charges([1, 0, 0, 0])
    assert abs(compute(tblite(), atoms).labels.energy - neutral) > 1


NUMBERS = st.floats(-1e6, 1e6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(arrays(float, (4, 3), elements=NUMBERS), arrays(float, (3, 3), elements=NUMBERS))
def test_frames_and_labels_travel_to_the_last_digit(positions, cell):
    frame = Atoms("Cu4", positions, cell=cell, pbc=True)
    labels = compute(oracle("Echo", max_force=1e300), frame).labels
    np.testing.assert_array_equal(labels.forces, positions)
    np.testing.assert_array_equal(labels.stress, cell.flat[:6])


# -- one process for many frames -----------------------------------------------------------------------------


def test_the_calculator_is_kept_until_it_raises():
    counts, frame, bad = oracle("Counts"), copper(), copper()
    bad.set_tags(5)
    assert [compute(counts, copper(seed)).labels.energy for seed in range(3)] == [1, 2, 3]
    outcome = compute(counts, bad)
    assert (outcome.problem, outcome.labels) == ("failed", None)
    assert outcome.reason.startswith("RuntimeError: no such frame")
    assert compute(counts, frame).labels.energy == 1
    assert compute(oracle("Counts", keywords={"label": "other"}), frame).labels.energy == 1


def test_a_frame_that_comes_again_is_calculated_again():
    assert [compute(oracle("Counts"), copper(seed)).labels.energy for seed in (0, 1, 1, 2)] == [1, 2, 1, 2]


def test_what_a_calculator_prints_is_no_label():
    assert compute(oracle("Prints"), copper()).labels.energy == compute(oracle(EMT_PATH), copper()).labels.energy


def test_each_thread_has_its_process():
    found = {}

    def work(name):
        found[name] = [compute(oracle("Counts"), copper(seed)).labels.energy for seed in range(3)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [1, 2, 3], 1: [1, 2, 3]}


def test_a_program_that_is_driven_by_files_is_started_once_for_each_frame(tmp_path):
    told = tmp_path / "told"
    for seed in range(2):
        labels = compute(oracle("ByFiles", keywords={"told": str(told)}), copper(seed)).labels
        atoms = copper(seed)
        atoms.calc = EMT()
        np.testing.assert_array_equal(labels.forces, atoms.get_forces())
        np.testing.assert_array_equal(labels.stress, atoms.get_stress())
    assert told.read_text().splitlines() == ["energy forces stress"] * 2


# -- folders -------------------------------------------------------------------------------------------------


def profile(text):
    return {"profile": {"call": "oracles:Profile", "folder": "{folder}", "text": text}}


def test_a_table_with_call_is_called_and_its_folder_removed(scratch):
    assert compute(oracle("Folder", keywords=profile("run"), scratch=str(scratch)), copper()).labels is not None
    assert list(scratch.iterdir()) == []


def test_the_folder_of_a_failure_is_kept_and_named(scratch):
    outcome = compute(oracle("Folder", keywords=profile("fail"), scratch=str(scratch)), copper())
    (kept,) = scratch.iterdir()
    assert outcome.reason == f"RuntimeError: it failed; kept: {kept}"
    assert sorted(path.name for path in kept.iterdir()) == ["in.txt", "out.txt", "output.txt"]
    assert "RuntimeError: it failed" in (kept / "output.txt").read_text()  # with its traceback


def test_folders_are_kept_where_that_is_asked_for(scratch):
    compute(oracle("Folder", keywords=profile("run"), scratch=str(scratch), keep=True), copper())
    (kept,) = scratch.iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["in.txt", "out.txt"]


def test_a_folder_can_be_given(scratch):
    compute(oracle("Folder", keywords=profile("run")), copper(), folder=scratch)
    assert sorted(path.name for path in scratch.iterdir()) == ["in.txt", "out.txt"]


def test_a_scratch_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OracleError, match=r"scratch: no folder can be made in .*nowhere"):
        compute(oracle(EMT_PATH, scratch=str(tmp_path / "nowhere")), copper())


# -- what goes wrong -----------------------------------------------------------------------------------------


def test_a_calculation_that_does_not_converge_has_failed():
    outcome = compute(tblite(max_iterations=1), silicon())
    assert outcome.problem == "failed"
    assert outcome.reason.startswith("CalculationFailed: SCF not converged in 1 cycles")


def test_a_calculator_that_says_it_has_not_converged_has_failed():
    outcome = compute(oracle("WithoutConvergence"), copper())
    assert (outcome.problem, outcome.labels) == ("failed", None)
    assert outcome.reason.startswith("the calculator says that it has not converged")


@pytest.mark.parametrize(
    ("calculator", "reason"),
    [
        ("NanForces", "the force on atom 1 is not finite"),
        ("NanEnergy", "the energy is nan eV"),
        ("HugeForces", "the force on atom 2 is 500 eV/Å, above max_force = 50"),
        ("NanStress", "the stress is not six finite numbers"),
        ("FewForces", r"forces of shape (3, 3) for 4 atoms"),
    ],
)
def test_labels_that_cannot_be_true_are_insane(calculator, reason):
    outcome = compute(oracle(calculator), copper())
    assert (outcome.problem, outcome.reason, outcome.labels) == ("insane", reason, None)


def test_the_largest_believed_force_is_a_setting():
    assert compute(oracle("HugeForces", max_force=501.0), copper()).labels is not None


@pytest.mark.parametrize(
    ("calculator", "reason"),
    [
        ("Exits", "its process ended with exit code 7; it said: too many k-points"),
        ("Crashes", "its process was killed by signal 11 (SIGSEGV)"),
        ("Killed", "its process was killed by signal 9 (SIGKILL)"),
    ],
)
def test_a_process_that_dies_is_told_and_replaced(calculator, reason):
    outcome = compute(oracle(calculator, keywords={"tag": 5}), copper())
    assert outcome.labels is not None
    bad = copper(1)
    bad.set_tags(5)
    outcome = compute(oracle(calculator, keywords={"tag": 5}), bad)
    assert (outcome.problem, outcome.labels) == ("died", None)
    assert outcome.reason.startswith(reason)
    assert compute(oracle(calculator, keywords={"tag": 5}), copper()).labels is not None


def test_a_calculator_that_leaves_has_failed():
    outcome = compute(oracle("Leaves"), copper())
    assert outcome.problem == "failed"
    assert outcome.reason.startswith("SystemExit: licence expired")


def test_a_calculation_ends_with_its_wall_time_and_what_it_started_too(tmp_path):
    told = tmp_path / "pid"
    compute(oracle("Hangs", keywords={"told": str(told), "tag": 5}), copper())  # the process is there
    bad = copper(1)
    bad.set_tags(5)
    outcome = compute(oracle("Hangs", keywords={"told": str(told), "tag": 5}, wall_time=1.0), bad)
    assert (outcome.problem, outcome.labels) == ("timeout", None)
    assert outcome.reason.startswith("killed after 1 s, its wall_time")
    assert 1.0 <= outcome.seconds < LIMIT
    wait_for_end(int(wait_for(told)))


def test_children_can_be_killed_from_another_thread(tmp_path):
    told, found = tmp_path / "pid", []
    hangs = oracle("Hangs", keywords={"told": str(told)})
    thread = threading.Thread(target=lambda: found.append(compute(hangs, copper())))
    thread.start()
    other = int(wait_for(told))
    kill_children()
    thread.join()
    assert found[0].problem == "died"
    wait_for_end(other)


def test_nothing_outlives_a_program_that_is_killed(tmp_path):
    told = tmp_path / "pid"
    code = f"from oracles import *; compute(oracle('Hangs', keywords={{'told': {str(told)!r}}}), copper())"
    path = {"PYTHONPATH": oracle("Hangs").environment["PYTHONPATH"]}
    program = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **path})
    other = int(wait_for(told))
    child = parent_of(other)
    program.kill()
    program.wait()
    wait_for_end(other)
    wait_for_end(child)


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"calculator": "oracles:Nothing"}, "AttributeError: module 'oracles' has no attribute 'Nothing'"),
        ({"calculator": "nowhere.at_all:Nothing"}, "ModuleNotFoundError: No module named 'nowhere'"),
        ({"calculator": "oracles:Folder"}, "TypeError: .*profile"),
    ],
)
def test_a_calculator_that_cannot_be_made_is_an_error_and_no_outcome(given, reason):
    with pytest.raises(OracleError, match=f"{given['calculator']} cannot be made: {reason}"):
        compute(oracle(**given), copper())


TOML = """
calculator = "ase.calculators.espresso:Espresso"
wall_time = "01:30:00"
[keywords]
kpts = [2, 2, 2]
profile = { call = "ase.calculators.espresso:EspressoProfile", command = "pw.x", pseudo_dir = "/pseudo" }
"""


def test_an_oracle_is_read_from_a_file(tmp_path):
    (tmp_path / "oracle.toml").write_text(TOML)
    found = Oracle.read(tmp_path / "oracle.toml")
    assert found.wall_time == 5400.0
    assert found.keywords["profile"]["command"] == "pw.x"
    assert found.environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('calculater = "a:b"', "unknown key 'calculater'; did you mean 'calculator'"),
        ('calculator = "emt"', "calculator must be an import path such as .*, not 'emt'"),
        ('calculator = "a:b"\nwall_time = "soon"', "wall_time must be a number of seconds or a text"),
        ('calculator = "a:b"\nmax_force = -1.0', "max_force: input should be greater than 0, not -1.0"),
        ("", "calculator: field required"),
        ("calculator", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path, line, message):
    (tmp_path / "oracle.toml").write_text(line)
    with pytest.raises(ConfigError, match=message) as caught:
        Oracle.read(tmp_path / "oracle.toml")
    assert str(tmp_path / "oracle.toml") in str(caught.value)
