"""A run of ASE that goes on from its last frame, and what ends it."""

from __future__ import annotations

import math
import os
import signal

import ase.io
import numpy as np
import pytest
from watched import CANDIDATE, atoms_of, copper, frames_of, rows_of, run_of, session_of, steps_of, verlet

from quests_md.errors import Halted, MonitorError
from quests_md.hosts.ase import MonitoredCalculator, MonitorObserver

SETTINGS = {"every": 3, "select": -2.0, "halt": math.inf, "consecutive": 2, "novelty": True}


def dynamics():
    return verlet(copper(CANDIDATE, temperature=900))


def restarted(path):
    """Return a dynamics that goes on from a saved frame."""
    last, dyn = ase.io.read(path), dynamics()
    dyn.atoms.positions, dyn.nsteps = last.positions, last.info["step"]
    dyn.atoms.set_momenta(last.get_momenta())
    return dyn


def watch(session, dyn, steps):
    dyn.attach(MonitorObserver(session, dyn))
    dyn.run(steps)


def numbers_of(folder):
    return [[float(row[key]) for key in ("run", "step", "time", "max", "event", "saved")] for row in rows_of(folder)]


@pytest.mark.parametrize("how", ["finished", "SIGTERM", "wall time"])
def test_from_its_last_frame_a_run_goes_on_as_if_it_had_not_stopped(index, tmp_path, how):
    with session_of(index, tmp_path / "whole", **SETTINGS) as session:
        watch(session, dynamics(), 60)
    folder, dyn = tmp_path / "uq", dynamics()
    session = session_of(index, folder, wall_time="1:00:00", **SETTINGS)
    if how == "SIGTERM":
        dyn.attach(lambda: dyn.nsteps == 28 and os.kill(os.getpid(), signal.SIGTERM))
    if how == "wall time":
        dyn.attach(lambda: dyn.nsteps == 28 and setattr(session._ending, "_end", 0.0))
    watch(session, dyn, 31 if how == "finished" else 1000)
    session.close()
    assert (session.status, run_of(folder)["last_step"]) == ("finished" if how == "finished" else "halted", 30)
    assert steps_of(folder, "last") == [30]
    with session_of(index, folder, resume=True, **SETTINGS) as session:
        watch(session, restarted(folder / "last.extxyz"), 30)
    np.testing.assert_allclose(numbers_of(folder), numbers_of(tmp_path / "whole"), rtol=1e-6, atol=1e-6)
    assert steps_of(folder) == steps_of(tmp_path / "whole")
    assert len(steps_of(folder)) > 1


def test_a_calculator_counts_on_after_a_halt(index, tmp_path):
    folder = tmp_path / "uq"

    def configurations(scales):
        session = session_of(index, folder, resume=True)
        atoms = copper()
        atoms.calc = MonitoredCalculator(atoms.calc, session)
        try:
            for scale in scales:
                atoms.positions = atoms_of(scale).positions
                atoms.get_potential_energy()
        finally:
            session.close()

    with pytest.raises(Halted):
        configurations([0.05, 0.06, 0.2])
    configurations([0.07, 0.04])
    assert [row["step"] for row in rows_of(folder)] == list("01234")
    assert run_of(folder)["status"] == "finished"


@pytest.mark.parametrize("name", ["on_select", "on_event", "on_halt"])
def test_what_a_function_of_the_user_raises_ends_the_run(index, tmp_path, name):
    def broken(*arguments):
        raise KeyError("mine")

    dyn = dynamics()
    more = {name: broken, "novelty": False, "select": -9.0, "halt": -5.0 if name == "on_halt" else math.inf}
    session = session_of(index, tmp_path / "uq", **more)
    with pytest.raises(MonitorError, match=f"{name} failed: KeyError: 'mine'"):
        watch(session, dyn, 50)
    assert (session.status, dyn.nsteps) == ("failed", 0)
    assert run_of(tmp_path / "uq")["status"] == "failed"
    assert len(frames_of(tmp_path / "uq")) == 1  # of the first frame, which is whole


@pytest.mark.parametrize("host", ["observer", "calculator"])
def test_a_run_may_go_on_without_being_watched(index, tmp_path, host, capsys):
    session = session_of(index, tmp_path / "uq", select=-9.0, halt=math.inf, on_select=["/no/such"], on_error="warn")
    dyn = dynamics()
    if host == "observer":
        watched = MonitorObserver(session, dyn)
        dyn.attach(watched)
    else:
        watched = dyn.atoms.calc = MonitoredCalculator(dyn.atoms.calc, session)
    dyn.run(10)
    session.close()
    assert dyn.nsteps == 10
    np.testing.assert_array_equal(watched.dH, np.full(32, math.inf))
    assert run_of(tmp_path / "uq")["status"] == "failed"
    assert capsys.readouterr().err.count("WARNING: watching failed") == 1
    alone = dynamics()
    alone.run(10)
    np.testing.assert_array_equal(dyn.atoms.positions, alone.atoms.positions)
