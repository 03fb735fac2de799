"""ASE as host: a wrapped calculator in ASE's own dynamics and file formats."""

from __future__ import annotations

import copy
import math

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import LBFGSLineSearch
from watched import columns_of, copper, frames_of, langevin, verlet

from quests_md.errors import Halted, MonitorError
from quests_md.hosts.ase import MonitoredCalculator


def test_calculator_gives_the_results_of_the_wrapped_one(index, session):
    atoms, alone = copper(), copper()
    atoms.calc = calc = MonitoredCalculator(EMT(), session())
    for name in ("energy", "forces", "stress", "energies", "free_energy"):
        np.testing.assert_array_equal(calc.get_property(name, atoms), alone.calc.get_property(name, alone))
    assert calc.results.keys() == alone.calc.results.keys()
    assert (calc.name, calc.todict(), calc.parameters) == ("emt", alone.calc.todict(), alone.calc.parameters)
    np.testing.assert_array_equal(calc.dH, index.delta_entropy(atoms))
    np.testing.assert_array_equal(calc.get_property("dH", atoms), calc.dH)
    assert set(calc.implemented_properties) == {*alone.calc.implemented_properties, "dH"}
    assert columns_of(calc.session, "step") == [(0.0,)]


def test_results_outlive_the_next_use_of_the_wrapped_calculator(session):
    inner = EMT()
    atoms, other = copper(), copper(0.2)
    atoms.calc, other.calc = MonitoredCalculator(inner, session()), inner
    atoms.get_potential_energy()
    other.get_forces()  # EMT computes them in the array that it gave before
    np.testing.assert_array_equal(atoms.get_forces(), copper().get_forces())


def test_calculator_counts_configurations(session):
    watched = session(every=2)
    atoms = copper()
    atoms.calc = calc = MonitoredCalculator(EMT(), watched)
    for step in range(5):
        atoms.positions[0, 0] += 0.01
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_dipole_moment()
        atoms.get_forces()
        atoms.get_stress()
        calc.calculate_properties(atoms, ["energy", "forces"])
        atoms.set_initial_charges(np.full(32, 0.1 * step))
        atoms.get_potential_energy()
    assert columns_of(watched, "run", "step") == [(1, 0), (1, 2), (1, 4)]
    atoms.info["note"], atoms.arrays["mark"] = "new", np.arange(32)
    n = watched.n_evaluated
    assert not calc.calculation_required(atoms, ["forces"])
    atoms.get_forces()
    calc.reset()
    assert calc.calculator.results == calc.results == {}
    atoms.get_forces()
    assert (watched.n_evaluated, next(watched.counter)) == (n, 5)


def test_calculators_that_share_a_session_number_together(session):
    watched = session()
    images = [copper(seed=seed) for seed in range(3)]
    first = MonitoredCalculator(EMT(), watched)
    images[0].calc, images[1].calc = first, copy.deepcopy(first)
    images[2].calc = MonitoredCalculator(EMT(), watched)
    for _ in range(2):
        for image in images:
            image.rattle(0.001)
            image.get_forces()
    assert columns_of(watched, "run", "step") == [(1, step) for step in range(6)]


def test_copies_keep_results_and_share_the_run(session):
    atoms = copper()
    atoms.calc = MonitoredCalculator(EMT(), session())
    energy = atoms.get_potential_energy()
    twin = copy.deepcopy(atoms)
    assert twin.calc.session is atoms.calc.session
    assert twin.calc.calculator is not atoms.calc.calculator
    assert twin.calc.results["energy"] == twin.get_potential_energy() == energy
    assert atoms.calc.session.n_evaluated == 1
    twin.positions[0] += 0.1
    twin.get_forces()
    assert not np.array_equal(twin.calc.dH, atoms.calc.dH)
    assert atoms.get_potential_energy() == energy
    assert atoms.copy().calc is None


def test_parameters_reach_the_wrapped_calculator(session):
    class Resetting(LennardJones):
        discard_results_on_any_change = True

    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]])
    atoms.calc = MonitoredCalculator(Resetting(sigma=2.0), session())
    weak = atoms.get_potential_energy()
    atoms.calc.set(epsilon=2.0)
    assert atoms.get_potential_energy() == pytest.approx(2 * weak)
    assert atoms.calc.todict()["epsilon"] == 2.0


def test_dH_is_of_the_geometry_that_is_asked_for(index, session):
    atoms = copper()
    atoms.calc = calc = MonitoredCalculator(EMT(), session(every=10))
    assert calc.dH is None
    assert calc.get_property("dH", atoms, allow_calculation=False) is None
    atoms.get_forces()
    evaluated = calc.dH.copy()
    atoms.positions[0] += 0.2
    assert calc.get_property("dH", atoms, allow_calculation=False) is None
    np.testing.assert_array_equal(calc.get_property("dH", atoms), index.delta_entropy(atoms))
    atoms.get_forces()
    np.testing.assert_array_equal(calc.dH, evaluated)  # step 1 is not due
    assert calc.session.n_evaluated == 1
    calc.get_property("dH", atoms)[:] = 0
    np.testing.assert_array_equal(calc.get_property("dH", atoms), index.delta_entropy(atoms))


def test_results_can_be_exported_as_ever(session, tmp_path):
    atoms, alone = copper(), copper()
    atoms.calc = calc = MonitoredCalculator(EMT(), session())
    atoms.get_forces(), alone.get_forces()
    with ase.db.connect(tmp_path / "a.db") as db:
        db.write(atoms)
        assert db.get(calculator="emt").toatoms().get_potential_energy() == alone.get_potential_energy()
    for name in ("a.extxyz", "a.traj"):
        ase.io.write(tmp_path / name, atoms)
        read = ase.io.read(tmp_path / name)
        np.testing.assert_allclose(read.get_forces(), alone.get_forces(), atol=1e-8)
    single = SinglePointCalculator(atoms, **calc.results)
    np.testing.assert_array_equal(single.get_forces(atoms), alone.get_forces())
    np.testing.assert_array_equal(calc.export_properties()["forces"], alone.get_forces())
    mixed = SumCalculator([calc, EMT()])
    assert mixed.get_potential_energy(atoms) == pytest.approx(2 * alone.get_potential_energy())
    assert calc.session.n_evaluated == 1


def test_calculator_halts_with_complete_results(session):
    watched = session(halt=60.0, min_distance=0.3)
    atoms, alone = copper(0.3), copper(0.3)
    atoms.calc = calc = MonitoredCalculator(EMT(), watched)
    with pytest.raises(Halted, match=r"step 0: dH = .* is above halt = 60"):
        atoms.get_forces()
    np.testing.assert_array_equal(atoms.get_forces(), alone.get_forces())
    assert atoms.get_potential_energy() == calc.results["energy"] == alone.get_potential_energy()
    assert calc.dH.max() == watched.decision.maximum > 60.0
    np.testing.assert_array_equal(frames_of(watched.output)[0].arrays["model_forces"], alone.get_forces())
    atoms.positions[0] += 0.01
    for _ in range(2):
        with pytest.raises(Halted, match=r"acknowledge\(\)"):
            atoms.get_forces()
    watched.acknowledge()
    with pytest.raises(Halted, match="step 1: "):
        atoms.get_forces()
    watched.acknowledge()
    atoms.positions = copper().positions
    atoms.get_forces()
    assert columns_of(watched, "run", "step", "saved") == [(1, 0, 1), (1, 1, 1), (1, 2, 0)]
    watched.close()
    assert atoms.get_potential_energy() == copper().get_potential_energy()
    atoms.positions[0] += 0.01
    with pytest.raises(MonitorError, match="has ended"):
        atoms.get_potential_energy()


def test_md_with_the_calculator(index, session):
    watched, atoms, alone = session(select=-math.inf), copper(), copper()
    atoms.calc = MonitoredCalculator(EMT(), watched)
    for dyn in (langevin(atoms), langevin(alone)):
        dyn.run(5)
    np.testing.assert_array_equal(atoms.positions, alone.positions)
    np.testing.assert_array_equal(atoms.get_momenta(), alone.get_momenta())
    watched.close()
    assert columns_of(watched, "run", "step") == [(1, step) for step in range(6)]
    saved = frames_of(watched.output)
    np.testing.assert_array_equal(saved[-1].positions, alone.positions)
    np.testing.assert_array_equal(saved[-1].arrays["model_forces"], alone.get_forces())
    assert saved[-1].info["model_energy"] == alone.get_potential_energy()
    assert not any("momenta" in frame.arrays for frame in saved)  # they would be half a step off


def test_a_line_search_with_the_calculator(session):
    watched, atoms = session(), copper()
    atoms.calc = MonitoredCalculator(EMT(), watched)
    LBFGSLineSearch(atoms, logfile=None).run(fmax=0.05)
    steps = [step for (step,) in columns_of(watched, "step")]
    assert steps == list(range(len(steps)))


def test_md_stops_when_the_calculator_halts(session):
    watched, atoms = session(halt=20.0), copper(0.02, temperature=4000)
    atoms.calc = MonitoredCalculator(EMT(), watched)
    dyn = verlet(atoms)
    with pytest.raises(Halted):
        dyn.run(100)
    assert watched.decision.step == dyn.nsteps + 1 < 100
    np.testing.assert_array_equal(frames_of(watched.output)[-1].positions, atoms.positions)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("positions", math.nan, "not finite"),
        ("positions", copper().positions[4], "two atoms share a place"),
        ("numbers", 79, "ElementError: Au is not in the index"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Lennard-Jones divides by the distance
def test_calculator_at_a_frame_that_cannot_be_measured(session, array, value, message):
    watched, atoms = session(), copper()
    atoms.calc = MonitoredCalculator(LennardJones(), watched)
    atoms.arrays[array][3] = value
    broken = array == "positions"
    with pytest.raises(MonitorError, match=f"step 0: .*{message}"):
        atoms.get_forces()
    assert watched.status == "failed"
    assert (watched.output / "implausible.extxyz").exists() == broken
    atoms.positions[:] = copper(seed=4).positions
    with pytest.raises(MonitorError, match="has ended"):
        atoms.get_forces()


@pytest.mark.parametrize(("pbc", "cell"), [(False, None), (True, [3.0, 3.0, 3.0])])
def test_one_atom(index, session, pbc, cell):
    atoms = Atoms("Cu", [[0.1, 0.2, 0.3]], pbc=pbc, cell=cell)
    atoms.calc = MonitoredCalculator(EMT(), session(select=-math.inf))
    energy = atoms.get_potential_energy()
    (saved,) = frames_of(atoms.calc.session.output)
    assert saved.info["model_energy"] == energy
    np.testing.assert_array_equal(saved.arrays["dH"], index.delta_entropy(atoms))
    assert (saved.cell == atoms.cell).all()
    assert saved.pbc.tolist() == [pbc] * 3
