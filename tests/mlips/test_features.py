"""The features of the running model as own descriptors, live: MACE's and CHGNet's."""

from __future__ import annotations

import math

import ase.units
import numpy as np
import pytest
from ase.md.verlet import VelocityVerlet
from watched import agree

from benchmarks.potentials import copper, index_features, make_describe
from quests_md import Frame, Monitor, Session
from quests_md.hosts.ase import MonitorObserver
from quests_md.index import Described

pytestmark = [pytest.mark.mlips, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("kind", ["mace", "chgnet"])
def test_features_are_watched(kind, calculator, frames, empty):
    describe = make_describe(kind, calculator(kind))
    index = index_features(describe, frames, kind)

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
