"""DeePMD, MACE, CHGNet and SevenNet, watched: the run stays as it is, and dH is the same wherever it is asked for."""

from __future__ import annotations

import math
import os
from pathlib import Path

import ase.io
import ase.units
import numpy as np
import pytest
from ase.md.verlet import VelocityVerlet
from lammps_runs import ok, run_json, run_wheel, table_of
from watched import agree

from benchmarks.potentials import KINDS, copper
from quests_md import Monitor, Session
from quests_md.errors import Halted
from quests_md.hosts.ase import MonitoredCalculator, MonitorObserver
from quests_md.hosts.replay import replay
from quests_md.sources import read_frames

pytestmark = [pytest.mark.mlips, pytest.mark.filterwarnings("ignore")]
STEPS = 4
every_kind = pytest.mark.parametrize("kind", KINDS)


def moving(calculator):
    atoms = copper(2)
    thermal = np.sqrt(ase.units.kB * 900.0 / atoms.get_masses())
    atoms.set_velocities(thermal[:, None] * np.random.default_rng(1).normal(size=(len(atoms), 3)))
    atoms.calc = calculator
    return atoms


def dynamics(atoms):
    return VelocityVerlet(atoms, 2 * ase.units.fs)


def session(index, folder, **more):
    return Session(Monitor(index, halt=math.inf, **{"precision": "double", "consecutive": 1, **more}), folder)


def state(atoms):
    return atoms.positions.copy(), atoms.get_momenta(), atoms.get_forces(), atoms.get_potential_energy()


def children():
    """Return the processes that this one has started and that are there still."""
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


@every_kind
def test_a_watched_run_is_the_unwatched_one(kind, index, calculator, empty):
    alone = moving(calculator(kind))
    dynamics(alone).run(STEPS)
    expected, keys, before = state(alone), set(alone.calc.results), children()

    observed = moving(calculator(kind))
    dyn = dynamics(observed)
    watched = session(index, "observer", select=math.inf)
    dyn.attach(MonitorObserver(watched, dyn))
    dyn.run(STEPS)
    assert all(np.array_equal(a, b) for a, b in zip(state(observed), expected, strict=True))
    watched.close()

    with session(index, "calculator", select=math.inf) as watched:
        wrapped = moving(MonitoredCalculator(calculator(kind), watched))
        dynamics(wrapped).run(STEPS)
        assert all(np.array_equal(a, b) for a, b in zip(state(wrapped), expected, strict=True))
        assert set(wrapped.calc.results) == keys
    assert watched.n_evaluated == STEPS + 1
    assert sorted(path.name for path in empty.iterdir()) == ["calculator", "observer"]
    for folder in ("observer", "calculator"):
        assert sorted(path.name for path in (empty / folder).iterdir()) == ["last.extxyz", "monitor.csv", "run.json"]
    assert children() == before


@every_kind
def test_the_same_dH_by_observer_calculator_and_replay(kind, index, calculator, empty):
    atoms = moving(calculator(kind))
    dyn, trajectory = dynamics(atoms), []
    with session(index, "uq", select=-1e9) as watched:
        observer = MonitorObserver(watched, dyn)
        dyn.attach(observer)
        dyn.attach(lambda: trajectory.append((atoms.copy(), observer.dH.copy())))
        dyn.run(STEPS)
    assert len(trajectory) == STEPS + 1
    assert len({dH.max() for _, dH in trajectory}) == STEPS + 1
    wrapped = MonitoredCalculator(calculator(kind), session(index, "calculator", select=1e9))
    for frame, dH in trajectory:
        agree(dH, index.delta_entropy(frame))
        frame.calc = wrapped
        frame.get_potential_energy()
        agree(wrapped.dH, dH)
    wrapped.session.close()
    ase.io.write("md.traj", [frame for frame, _ in trajectory])
    with session(index, "replayed", select=1e9) as again:
        for decision, (_, dH) in zip(replay(again, read_frames("md.traj")), trajectory, strict=True):
            agree(decision.dH, dH)


@every_kind
def test_a_calculator_of_a_configuration_halts(kind, index, calculator, empty):
    """The settings of a file, and a frame that is far away from the reference."""
    settings = {"index": str(index.path), "select": 5.0, "halt": 20.0, "output": "uq"}
    atoms = copper(2)
    atoms.calc = MonitoredCalculator(calculator(kind), settings)
    atoms.get_forces()
    atoms.rattle(0.4, seed=7)
    with pytest.raises(Halted, match="is above halt = 20"):
        atoms.get_forces()
    atoms.calc.close()
    assert run_json(empty)["status"] == "halted"
    (saved,) = ase.io.read("uq/candidates.extxyz", ":")
    assert np.isfinite(saved.arrays["model_forces"]).all()


@pytest.mark.parametrize("kind", ["deepmd", "mace"])
def test_a_command_trains_it(kind, trained, frames):
    """By the program of DeePMD, and by that of MACE: what the loop of learning needs of a trainer."""
    potential, record = trained(kind)
    assert potential.elements == ("Cu",)
    errors = record["errors"]["held_out"]
    assert 0.0 < errors["force_rmse"] < 1.0
    atoms = frames[-1].copy()
    atoms.calc = potential.ase_calculator()
    measured = np.sqrt(np.mean((atoms.get_forces() - frames[-1].get_forces()) ** 2))
    assert 0.0 < measured < 1.0


CELL = """\
units metal
atom_modify map yes
read_data cu.data
mass 1 63.546
{potential}
comm_modify cutoff 7.0
velocity all create 900 3 mom yes rot yes dist gaussian
fix move all nve
"""
DUMP = """\
{dH}
dump out all custom 1 {name}.dump id type x y z vx vy vz{column}
dump_modify out sort id format float %.17g
run 4
undump out
"""


@pytest.mark.lammps
def test_deepmd_in_lammps(trained, index, empty, tmp_path):
    potential, _ = trained("deepmd")
    atoms = copper(2)
    ase.io.write("cu.data", atoms, format="lammps-data", atom_style="atomic")
    cell = CELL.format(potential="\n".join(potential.commands()))
    code = f"""\
import deepmd.lmp
for name in ("alone", "watched"):
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string('''{cell}''')
    column = ""
    if name == "watched":
        how = dict(elements=["Cu"], select=1e9, halt=1e9, precision="double")
        watch = attach(lmp, {str(index.path)!r}, **how)
        column = " d_dH"
    lmp.commands_string('''{DUMP}'''.format(name=name, column=column, dH=""))
    if name == "watched":
        watch.close()
    lmp.close()
"""
    ok(run_wheel(empty, code))
    alone, watched = table_of(empty / "alone.dump", len(atoms)), table_of(empty / "watched.dump", len(atoms))
    np.testing.assert_array_equal(watched[:, :8], alone)
    assert np.abs(alone[:, 2:5] - atoms.positions).max() > 0.001
    for frame in ase.io.read("watched.dump", ":", format="lammps-dump-text"):
        frame.set_atomic_numbers([29] * len(frame))
        agree(frame.arrays["d_dH"].ravel(), index.delta_entropy(frame))
    assert run_json(empty)["evaluations"] == 5
    assert sorted(p.name for p in empty.iterdir()) == ["alone.dump", "cu.data", "drive.py", "uq", "watched.dump"]
