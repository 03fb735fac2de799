"""ASE as host: real dynamics and optimisers with the observer."""

from __future__ import annotations

import math

import ase.io
import numpy as np
import pytest
from ase.filters import FrechetCellFilter
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from watched import columns_of, copper, frames_of, langevin, verlet

from quests_md.errors import Halted, InputError, MonitorError
from quests_md.hosts.ase import MonitorObserver


def bfgs(atoms, **more):
    return BFGS(atoms, logfile=None, **more)


def fire(atoms, **more):
    return FIRE(atoms, logfile=None, **more)


DYNAMICS = [verlet, langevin]
OPTIMISERS = [bfgs, fire]


def run(dyn, steps):
    return dyn.run(fmax=1e-6, steps=steps) if hasattr(dyn, "fmax") else dyn.run(steps)


@pytest.mark.parametrize("make", DYNAMICS + OPTIMISERS)
def test_observer_evaluates_multiples_of_every(index, session, make):
    with session(select=-math.inf, every=3) as watched:
        atoms = copper()
        dyn = make(atoms)
        observer = MonitorObserver(watched, dyn)
        dyn.attach(observer)
        states = []
        dyn.attach(lambda: states.append((atoms.copy(), atoms.get_potential_energy(), atoms.get_forces())))
        run(dyn, 4)
        run(dyn, 3)
    times = [0.0, 0.006, 0.012] if make in DYNAMICS else [math.nan] * 3
    np.testing.assert_allclose(
        columns_of(watched, "run", "step", "time"), list(zip([1] * 3, [0, 3, 6], times, strict=True))
    )
    assert watched.host == f"ase {type(dyn).__name__}"
    for saved, (atoms, energy, forces) in zip(frames_of(watched.output), states[::3], strict=True):
        np.testing.assert_array_equal(saved.positions, atoms.positions)
        np.testing.assert_allclose(saved.get_velocities(), atoms.get_velocities(), rtol=1e-14)
        np.testing.assert_array_equal(saved.arrays["model_forces"], forces)
        assert saved.info["model_energy"] == energy
        np.testing.assert_allclose(saved.arrays["dH"], index.delta_entropy(atoms), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(observer.dH, saved.arrays["dH"])


@pytest.mark.parametrize("make", DYNAMICS + OPTIMISERS)
def test_observer_changes_nothing(session, make):
    def end(watch):
        atoms = copper()
        dyn = make(atoms)
        if watch:
            dyn.attach(MonitorObserver(session(every=2), dyn))
        run(dyn, 10)
        return atoms.positions, atoms.get_momenta(), atoms.get_forces()

    for watched, alone in zip(end(True), end(False), strict=True):
        np.testing.assert_array_equal(watched, alone)


@pytest.mark.parametrize("make", DYNAMICS + OPTIMISERS)
@pytest.mark.parametrize("halts_at", [0, 4])
def test_observer_halts_as_if_the_last_step_were_reached(session, tmp_path, make, halts_at):
    watched = session(halt=20.0, every=2)
    atoms = copper(0.02, temperature=100)
    dyn = make(atoms, trajectory=tmp_path / "md.traj")
    dyn.attach(MonitorObserver(watched, dyn))

    kicks = [1]  # another kick at step 0, where each run begins, would be another configuration, which halts again

    def kick():
        if dyn.nsteps == halts_at and kicks:
            kicks.pop()
            atoms.positions[7] += [0.4, 0.1, 0.2]
            atoms.get_forces()

    dyn.insert_observer(kick)
    run(dyn, 10)
    assert (dyn.nsteps, watched.status) == (halts_at, "halted")
    frames = ase.io.read(tmp_path / "md.traj", ":")
    assert len(frames) == halts_at + 1
    (saved,) = frames_of(watched.output)
    assert saved.info["step"] == halts_at
    np.testing.assert_array_equal(saved.positions, frames[-1].positions)

    with pytest.raises(Halted, match=f"step {halts_at}: dH = .* of atom 7"):
        run(dyn, 10)
    assert dyn.nsteps <= halts_at + 1  # not only at the next step that is due
    watched.acknowledge()
    last = dyn.nsteps
    run(dyn, 1)
    assert dyn.nsteps == last + 1
    watched.close()


def test_observer_watches_the_atoms_of_a_filter(session):
    with session() as watched:
        atoms = copper()
        opt = bfgs(FrechetCellFilter(atoms))
        opt.attach(MonitorObserver(watched, opt))
        opt.run(fmax=1e-6, steps=2)
    (last,) = frames_of(watched.output, "last")
    np.testing.assert_array_equal(last.positions, atoms.positions)
    np.testing.assert_array_equal(last.cell, atoms.cell)


def test_observer_asks_which_image_of_a_band(session):
    images = [copper(), copper(), copper()]
    neb = NEB(images, method="improvedtangent")
    opt = bfgs(neb)
    with pytest.raises(InputError, match=r"dyn is a str, which moves no atoms: MonitorObserver\(session, dyn\)"):
        MonitorObserver(None, "the session")
    with pytest.raises(InputError, match=r"BFGS moves no single ase.Atoms: say which to watch, atoms="):
        MonitorObserver(session(), opt)
    assert MonitorObserver(session(name="middle"), opt, images[1]).atoms is images[1]


def test_observer_computes_nothing(session):
    atoms = copper()
    dyn = verlet(atoms)
    with session(select=-math.inf) as watched:
        MonitorObserver(watched, dyn)()
        assert atoms.calc.results == {}
        dyn.nsteps, atoms.calc = 1, None
        MonitorObserver(watched, dyn)()
    for saved in frames_of(watched.output):
        assert "model_energy" not in saved.info
        assert "model_forces" not in saved.arrays


def test_observer_at_a_breakdown(session):
    watched, atoms = session(), copper()
    dyn = verlet(atoms)
    observer = MonitorObserver(watched, dyn)
    dyn.attach(observer)
    dyn.run(2)
    atoms.positions[3], dyn.nsteps = math.nan, 3
    with pytest.raises(MonitorError, match=r"failed at step 3: .*not finite"):
        observer()
    assert watched.status == "failed"
    (broken,) = frames_of(watched.output, "implausible")
    assert np.isnan(broken.positions[3]).all()
    atoms.positions[3] = 0.0
    with pytest.raises(MonitorError, match=r"has ended \(failed\)"):
        dyn.run(1)
