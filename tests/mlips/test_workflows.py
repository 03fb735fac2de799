"""Programs around a simulation: torch-sim, jobflow, DP-GEN and dpdata."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
from ase.io.jsonio import decode, encode
from click.testing import CliRunner
from watched import CANDIDATE, COVERED, HALTING, agree, atoms_of, build_index, frame_of, frames_of, rows_of, session_of

from quests_md.cli import main
from quests_md.errors import Halted, InputError
from quests_md.labelling import Labels, Queue

pytestmark = [pytest.mark.mlips, pytest.mark.filterwarnings("ignore")]


def need(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module}: scripts/test-mlips makes an environment with it")


# -- torch-sim -------------------------------------------------------------------------------------------------


def lennard_jones():
    need("torch_sim")
    import torch
    from torch_sim.models.lennard_jones import LennardJonesModel

    return LennardJonesModel(
        sigma=2.27, epsilon=0.4, cutoff=5.0, dtype=torch.float64, device=torch.device("cpu"), compute_forces=True
    )


def integrate(systems, reporter, steps=6):
    import torch
    import torch_sim

    torch.manual_seed(0)
    return torch_sim.integrate(
        systems,
        lennard_jones(),
        integrator=torch_sim.Integrator.nve if hasattr(torch_sim, "Integrator") else torch_sim.nve,
        n_steps=steps,
        temperature=300.0,
        timestep=0.002,
        trajectory_reporter=reporter,
    )


def test_a_session_for_each_system_of_a_batch(empty):
    need("torch_sim")
    from quests_md.hosts.torch_sim import SessionReporter

    index = build_index()
    index.save("cu.qindex")
    systems = [atoms_of(COVERED), atoms_of(COVERED, 4), atoms_of(COVERED, 5)]
    alone = integrate(systems, None)
    settings = {
        "index": "cu.qindex", "select": -1e9, "halt": 1e9, "every": 2, "consecutive": 1, "output": "uq-{n}",
        "novelty": False, "precision": "double",
    }  # fmt: skip
    with SessionReporter(settings) as reporter:
        watched = integrate(systems, reporter)
    assert (watched.positions == alone.positions).all()
    assert (watched.momenta == alone.momenta).all()
    for number in range(3):
        saved = frames_of(empty / f"uq-{number}")
        assert [one.info["step"] for one in saved] == [2, 4, 6]
        for one in saved:
            agree(one.arrays["dH"], index.delta_entropy(one))
            assert np.isfinite(one.arrays["model_forces"]).all()
        places = watched.positions[watched.system_idx == number].numpy()
        np.testing.assert_array_equal(saved[-1].positions, places)


def test_one_system_of_a_batch_is_halted_and_held(empty):
    need("torch_sim")
    from quests_md.hosts.torch_sim import SessionReporter

    index = build_index()
    systems = [atoms_of(COVERED), atoms_of(HALTING), atoms_of(COVERED, 5)]
    sessions = [session_of(index, empty / str(n), select=math.inf, halt=math.inf) for n in (0, 2)]
    sessions.insert(1, session_of(index, empty / "1", select=5.0, halt=10.0))
    reporter = SessionReporter(sessions)
    last = integrate(systems, reporter)
    assert reporter.halted == [1]
    (saved,) = frames_of(empty / "1")
    np.testing.assert_array_equal(saved.positions, last.positions[last.system_idx == 1].numpy())
    assert [len(rows_of(empty / str(n))) for n in range(3)] == [6, 1, 6]
    alone = integrate(systems, None)
    for number in (0, 2):
        which = last.system_idx == number
        assert (last.positions[which] == alone.positions[which]).all()
    for session in sessions:
        session.close()


def test_a_batch_of_which_all_are_halted_ends(empty):
    need("torch_sim")
    from quests_md.hosts.torch_sim import SessionReporter

    index = build_index()
    sessions = [session_of(index, empty / str(n), select=1.0, halt=2.0) for n in range(2)]
    with pytest.raises(Halted, match=r"all systems are halted: .*is above halt = 2"):
        integrate([atoms_of(HALTING), atoms_of(HALTING, 4)], SessionReporter(sessions))
    with pytest.raises(InputError, match="2 systems, and there are 1 sessions"):
        integrate([atoms_of(COVERED), atoms_of(COVERED, 4)], SessionReporter(sessions[:1]))
    with pytest.raises(InputError, match=r"put \{n\} into it"):
        SessionReporter({"index": "cu.qindex", "select": 1.0, "halt": 2.0})


# -- jobflow ---------------------------------------------------------------------------------------------------


def relax(atoms, settings):
    """Compute the forces of a frame, given as JSON, watched; this is the body of a job."""
    from ase.calculators.emt import EMT

    from quests_md.hosts.ase import MonitoredCalculator

    atoms = decode(atoms)
    atoms.calc = MonitoredCalculator(EMT(), settings)
    forces = atoms.get_forces()
    dH = atoms.calc.dH
    atoms.calc.close()
    return {"largest": float(dH.max()), "force": float(np.abs(forces).max())}


def test_calculators_of_a_configuration_under_jobflow(empty):
    need("jobflow")
    from jobflow import Flow, job, run_locally

    index = build_index()
    index.save("cu.qindex")
    settings = {"index": str(empty / "cu.qindex"), "select": 1e6, "halt": 1e6, "output": str(empty / "uq-{pid}-{n}")}
    systems = [atoms_of(COVERED, seed) for seed in range(3)]
    jobs = [job(relax)(encode(atoms), settings) for atoms in systems]
    done = run_locally(Flow(jobs), create_folders=True, ensure_success=True, log=False)
    for atoms, each in zip(systems, jobs, strict=True):
        agree(done[each.uuid][1].output["largest"], index.delta_entropy(atoms).max())
    runs = sorted(empty.glob("uq-*"))
    assert len(runs) == 3
    assert {json.loads((run / "run.json").read_text())["status"] for run in runs} == {"finished"}


# -- DP-GEN and dpdata -----------------------------------------------------------------------------------------


def test_dpgen_reads_a_run_as_a_model_deviation(empty):
    need("dpgen")
    from dpgen.generator.run import _read_model_devi_file, _select_by_model_devi_standard

    scales = [COVERED, CANDIDATE, HALTING, COVERED]
    with session_of(build_index(), empty / "uq", select=2.0, halt=1e9, every=10) as session:
        for number, scale in enumerate(scales):
            session.observe(frame_of(10 * number, scale))
    (empty / "task").mkdir()
    done = CliRunner().invoke(main, ["export", "model-devi", "uq", "-o", "task/model_devi.out"])
    assert done.exit_code == 0, done.output
    table = _read_model_devi_file("task")
    maxima = [float(row["max"]) for row in rows_of(empty / "uq")]
    np.testing.assert_array_equal(table[:, 0], [0, 10, 20, 30])
    np.testing.assert_allclose(table[:, 4], maxima, rtol=1e-6)
    halt = (maxima[1] + maxima[2]) / 2
    counts = _select_by_model_devi_standard(["task"], 2.0, halt, 1e10, 1e10, None, "lammps")[-1]
    assert dict(counts) == {"candidate": 1, "failed": 1, "accurate": 2}


def test_dpdata_reads_the_labels_of_a_queue(empty):
    need("dpdata")
    import dpdata
    from ase.calculators.emt import EMT

    queue = Queue("queue.db")
    for seed in range(2):
        queue.add(atoms_of(COVERED, seed))
    expected = []
    while (claim := queue.claim("here")) is not None:
        atoms = claim.atoms
        atoms.calc = EMT()
        labels = Labels(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
        expected.append(labels)
        queue.done(claim, labels, {})
    keys = ["--forces-key", "force", "--virial-key", "virial"]
    done = CliRunner().invoke(main, ["queue", "export", "queue.db", "-o", "labelled.xyz", *keys])
    assert done.exit_code == 0, done.output
    read = dpdata.MultiSystems.from_file("labelled.xyz", fmt="quip/gap/xyz")
    (system,) = read.systems.values()
    for number, labels in enumerate(expected):
        np.testing.assert_allclose(system["energies"][number], labels.energy)
        np.testing.assert_allclose(system["forces"][number], labels.forces)
    volume = atoms_of(COVERED).get_volume()
    full = [[labels.stress[i] for i in row] for labels in expected for row in ([0, 5, 4], [5, 1, 3], [4, 3, 2])]
    np.testing.assert_allclose(system["virials"].reshape(-1, 3), -volume * np.array(full), atol=1e-8)
