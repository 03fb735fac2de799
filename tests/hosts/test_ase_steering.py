"""BiasedCalculator: what ASE sees of a bias, and what the files of the run say of it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.fd import FiniteDifferenceCalculator
from ase.md.verlet import VelocityVerlet
from watched import frames_of, langevin, rows_of

from quests_md import DescriptorSpec, Frame, Index, Monitor, Session
from quests_md.errors import InputError, QuestsError
from quests_md.hosts.ase import BiasedCalculator, MonitoredCalculator, MonitorObserver
from quests_md.hosts.replay import replay
from quests_md.recording import read_run

BIAS = {"tau": 0.05, "floor": -10.0, "ceiling": 30.0, "largest_force": 100.0}


def _copper(seed=3, size=0.05):
    atoms = bulk("Cu", cubic=True).repeat(2)
    del atoms[5]
    atoms.rattle(size, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def index():
    # Few neighbours within the cutoff: where one more than k comes in, dH has a kink.
    return Index.build([_copper(seed, 0.08) for seed in range(12)], DescriptorSpec(k=60, cutoff=4.5), bandwidth=0.03)


def _session(index, folder, **keys):
    monitor = Monitor(index, select=keys.pop("select", 1e6), halt=1e6, consecutive=1)
    return Session(monitor, output=folder / "uq", bias=BIAS, novelty=False, **keys)


def test_energy_forces_and_stress_are_consistent(index, tmp_path):
    atoms = _copper()
    plain = _copper()
    plain.calc = EMT()
    with _session(index, tmp_path, select=-1e6) as session:
        calc = atoms.calc = BiasedCalculator(EMT(), session)
        forces, stress = atoms.get_forces(), atoms.get_stress()
        push = calc.push
        np.testing.assert_allclose(forces, plain.get_forces() + push.forces, atol=1e-12)
        assert atoms.get_potential_energy() == pytest.approx(plain.get_potential_energy() + push.energy)
        assert push.largest > 0.1
    with _session(index, tmp_path / "moved") as other:
        numeric = FiniteDifferenceCalculator(BiasedCalculator(EMT(), other), eps_disp=1e-5, eps_strain=1e-5)
        atoms.calc = numeric
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(stress, atoms.get_stress(), atol=1e-6)
    saved, row = frames_of(session.output)[0], rows_of(session.output)[0]
    np.testing.assert_allclose(saved.arrays["model_forces"], plain.get_forces(), atol=1e-12)
    assert saved.info["model_energy"] == pytest.approx(plain.get_potential_energy())
    assert saved.info["bias_energy"] == pytest.approx(push.energy)
    assert float(row["bias_force"]) == pytest.approx(push.largest)
    assert read_run(session.output).rows["bias_tau"][0] == BIAS["tau"]


def test_energy_is_conserved_the_better_the_shorter_the_step(index, tmp_path):
    spread = []
    for number, step in enumerate((2.0, 1.0)):
        atoms = _copper()
        with _session(index, tmp_path / str(number)) as session:
            atoms.calc = BiasedCalculator(EMT(), session)
            dyn, energies = VelocityVerlet(atoms, step * units.fs), []
            dyn.attach(lambda atoms=atoms, energies=energies: energies.append(atoms.get_total_energy()))
            dyn.run(int(60 / step))
            assert atoms.calc.push.largest > 0.05
        spread.append(np.ptp(energies))
    assert spread[1] < 0.5 * spread[0]  # forces jump a little where two entries of a sorted list change places


def test_asking_for_more_properties_does_not_push_twice(index, tmp_path):
    atoms = _copper()
    with _session(index, tmp_path) as session:
        calc = atoms.calc = BiasedCalculator(EMT(), session)
        energy = atoms.get_potential_energy()
        atoms.get_stress()
        assert atoms.get_potential_energy() == energy
        assert session.n_evaluated == 1
        assert "energies" not in calc.implemented_properties


def test_a_run_from_a_configuration_resumes_with_its_tau(index, tmp_path):
    index.save(tmp_path / "cu.qindex")
    keys = {"index": str(tmp_path / "cu.qindex"), "select": 1e6, "halt": 1e6, "output": str(tmp_path / "uq")}
    keys["bias"] = {"strength": 0.2, "floor": -10.0, "ceiling": 30.0, "warm_up": 2}
    taus = []
    for resume in (False, True):
        atoms = _copper()
        atoms.calc = BiasedCalculator(EMT(), {**keys, "resume": resume})
        langevin(atoms).run(4)
        atoms.calc.close()
        taus.append(read_run(tmp_path / "uq").rows["bias_tau"])
    assert len(set(taus[0][2:])) == 1
    assert set(taus[1][len(taus[0]) :]) <= {taus[0][-1]}
    with pytest.raises(QuestsError, match="bias"):
        BiasedCalculator(EMT(), {**keys, "resume": True, "bias": {"tau": 1.0}}).get_potential_energy(_copper())


def test_hosts_that_add_no_forces_refuse_a_bias(index, tmp_path):
    atoms = _copper()
    with _session(index, tmp_path) as session:
        with pytest.raises(InputError, match="BiasedCalculator"):
            MonitoredCalculator(EMT(), session)
        with pytest.raises(InputError, match="BiasedCalculator"):
            MonitorObserver(session, VelocityVerlet(atoms, 1.0))
        with pytest.raises(InputError, match="adds no forces"):
            next(replay(session, [Frame.from_atoms(atoms)]))
    with (
        Session(Monitor(index, select=1e6, halt=1e6), output=tmp_path / "plain") as plain,
        pytest.raises(InputError, match="needs a session with a bias"),
    ):
        BiasedCalculator(EMT(), plain)


def test_a_bias_without_an_end_is_refused(index, tmp_path):
    monitor = Monitor(index, select=1.0, halt=np.inf)
    with pytest.raises(InputError, match="needs a ceiling"):
        Session(monitor, output=tmp_path / "uq", bias={"tau": 0.1})
    assert not (tmp_path / "uq").exists()
    atoms = _copper()
    with Session(monitor, output=tmp_path / "uq", bias={"tau": 0.1, "floor": -10.0, "ceiling": 20.0}) as session:
        atoms.calc = BiasedCalculator(EMT(), session)
        atoms.get_forces()
        assert atoms.calc.push.off == ""


def test_flagged_values_and_a_bias_go_together(index, tmp_path):
    atoms = _copper()
    monitor = Monitor(index, select=1e6, halt=1e6, values="flagged")
    with Session(monitor, output=tmp_path / "uq", bias=BIAS) as session:
        atoms.calc = BiasedCalculator(EMT(), session)
        forces = atoms.get_forces()
    with _session(index, tmp_path / "exact") as session:
        atoms.calc = BiasedCalculator(EMT(), session)
        np.testing.assert_array_equal(atoms.get_forces(), forces)
