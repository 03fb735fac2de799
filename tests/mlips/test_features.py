"""The features of the running model as own descriptors, live: MACE's and CHGNet's."""

from __future__ import annotations

import math

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.md.verlet import VelocityVerlet
from watched import agree

from benchmarks.potentials import copper
from quests_md import Frame, Index, Monitor, Session
from quests_md.hosts.ase import MonitorObserver
from quests_md.index import Described
from quests_md.information import likelihood_bandwidth

pytestmark = [pytest.mark.mlips, pytest.mark.filterwarnings("ignore")]


def atoms_of(frame):
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


def of_mace(calculator):
    return lambda frame: calculator.get_descriptors(atoms_of(frame))


def of_chgnet(calculator):
    from pymatgen.io.ase import AseAtomsAdaptor

    def describe(frame):
        structure = AseAtomsAdaptor.get_structure(atoms_of(frame))
        return calculator.model.predict_structure(structure, return_atom_feas=True)["atom_fea"]

    return describe


@pytest.mark.parametrize(("kind", "features"), [("mace", of_mace), ("chgnet", of_chgnet)])
def test_features_are_watched(kind, features, calculator, frames, empty):
    describe = features(calculator(kind))
    x = [np.asarray(describe(Frame.from_atoms(frame)), float) for frame in frames]
    rows = np.vstack(x)
    scale = float(np.linalg.norm(rows - rows.mean(axis=0), axis=1).mean())
    bandwidth = likelihood_bandwidth(rows, scale * np.geomspace(0.001, 1.0, 31)).bandwidth
    index = Index.from_descriptors(rows, bandwidth, frame_offsets=np.cumsum([0] + [len(r) for r in x]), name=kind)

    def run(session):
        atoms = copper(2)
        atoms.set_velocities(0.01 * np.random.default_rng(2).normal(size=(len(atoms), 3)))
        atoms.calc = calculator(kind)
        dyn = VelocityVerlet(atoms, 2 * ase.units.fs)
        observer = None
        if session is not None:
            observer = MonitorObserver(session, dyn)
            dyn.attach(observer)
        dyn.run(3)
        return atoms, observer

    monitor = Monitor(Described(index, describe, kind), select=1e6, halt=math.inf, precision="double")
    with Session(monitor, "uq") as session:
        atoms, observer = run(session)
    alone, _ = run(None)
    np.testing.assert_array_equal(atoms.positions, alone.positions)
    agree(observer.dH, index.delta_entropy(np.asarray(describe(Frame.from_atoms(atoms)), float)))
    strange = atoms.copy()
    strange.positions[3] += [0.8, 0.3, 0.1]
    dH = monitor.measure(Frame.from_atoms(strange))
    assert dH.argmax() == 3 or dH[3] > observer.dH.max()
    assert session.n_evaluated == 4
