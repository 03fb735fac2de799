"""What the tests of sessions and hosts share: copper, more or less rattled, and readers of a run's files."""

from __future__ import annotations

import csv
import inspect
import json
import math

import ase.io
import ase.units
import naive
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from quests_md import Frame, Index, Monitor, Session

SELECT, HALT = 2.0, 30.0
COVERED, CANDIDATE, HALTING = 0.05, 0.08, 0.2  # rattling (Å) that puts a frame into that band


def atoms_of(scale, seed=3):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    return atoms


def copper(scale=COVERED, seed=3, temperature=300.0):
    """Return atoms with velocities and a calculator."""
    atoms = atoms_of(scale, seed)
    thermal = np.sqrt(ase.units.kB * temperature / atoms.get_masses())
    atoms.set_velocities(thermal[:, None] * np.random.default_rng(seed).normal(size=(32, 3)))
    atoms.calc = EMT()
    return atoms


def verlet(atoms, **more):
    return VelocityVerlet(atoms, 2 * ase.units.fs, **more)


def langevin(atoms, **more):
    friction, rng = 0.05 / ase.units.fs, np.random.default_rng(5)
    return Langevin(atoms, 2 * ase.units.fs, temperature_K=600, friction=friction, fixcm=False, rng=rng, **more)


def frame_of(step, scale=COVERED, **more):
    return Frame.from_atoms(atoms_of(scale), step, 0.001 * step, **more)


def build_index():
    return Index.build([atoms_of(COVERED, seed) for seed in range(4)], threads=1)


OF_SESSION = set(inspect.signature(Session).parameters)


def session_of(index, folder, *, comm=None, select=SELECT, halt=HALT, **more):
    """Return a session; every frame above `select` is saved at once, unless `novelty` or `consecutive` is given."""
    # In double precision two ways to the same dH can be compared to the last digits.
    session = {"novelty": False} | {name: more.pop(name) for name in list(more) if name in OF_SESSION}
    options = {"precision": "double", "consecutive": 1, **more}
    watching = Monitor(index, select=select, halt=halt, comm=comm, **options)
    return Session(watching, folder, **session)


def sessions(index, tmp_path):
    """Yield, once, a function that makes sessions; close them afterwards."""
    made = []

    def make(name="uq", select=SELECT, halt=math.inf, **monitor):
        made.append(session_of(index, tmp_path / name, select=select, halt=halt, **monitor))
        return made[-1]

    yield make
    for session in made:
        session.close()


def rows_of(folder):
    with open(folder / "monitor.csv", newline="") as file:
        return list(csv.DictReader(file))


def columns_of(session, *columns):
    """Return columns of a session's monitor.csv as numbers, a tuple for each row."""
    return [tuple(float(row[column]) for column in columns) for row in rows_of(session.output)]


def frames_of(folder, name="candidates"):
    path = folder / f"{name}.extxyz"
    return ase.io.read(path, ":") if path.exists() else []


def steps_of(folder, name="candidates"):
    return [atoms.info["step"] for atoms in frames_of(folder, name)]


def run_of(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


def block(path):
    """Put a folder in the place of a file: nobody can write that, not even root."""
    path.unlink(missing_ok=True)
    (path / "x").mkdir(parents=True)


def has_dH_of(index, atoms):
    """Return whether a saved frame holds the dH that is computed from it: to 1e-10·max(1, |dH|)."""
    wanted = index.delta_entropy(atoms)
    return bool(np.all(np.abs(atoms.arrays["dH"] - wanted) <= 1e-10 * np.maximum(1, np.abs(wanted))))


def part_of(step, scale, comm, idle=None):
    """Return what a rank holds of a frame, in an order of its own: every `size`-th atom and their ghosts."""
    atoms = atoms_of(scale)
    working = [rank for rank in range(comm.size) if rank != idle]
    owners = np.resize(working, len(atoms))
    mine = np.flatnonzero(owners == comm.rank)[::-1]
    positions, rows = naive.with_ghosts(atoms, mine, 5.0)
    velocities, forces = MODEL[:, mine]
    return Frame(
        positions, atoms.numbers[rows], np.asarray(atoms.cell), True, ids=rows + 1, step=step,
        time=0.5 * step, n_local=len(mine), velocities=velocities, forces=forces, energy=-1.5,
    )  # fmt: skip


MODEL = np.random.default_rng(0).normal(size=(2, 32, 3))


def agree(values, expected):
    """Fail unless dH computed in two ways is the same: to 1e-10·max(1, |dH|)."""
    np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-10)
