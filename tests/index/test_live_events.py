"""A rare event: a crystal learns its own vibration, and loses an atom. In ASE and in both builds of LAMMPS."""

from __future__ import annotations

import ase.io
import ase.units
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from lammps_runs import (
    DEBIAN_2,
    HOSTS_ONCE,
    PUBLISHED,
    WHEEL_1,
    WHEEL_2,
    drive,
    dump,
    ok,
    published,
    run_host,
    run_json,
    script,
)
from lammps_runs import rows_of as rows_in
from watched import rows_of

from quests_md import Index, Session
from quests_md.config import RunConfig
from quests_md.hosts.ase import MonitoredCalculator, MonitorObserver

RATE = 0.05
LEARN = {
    "consecutive": 1,
    "reference": "live",
    "skip": 200,
    "span": 1600,
    "select": {"false_alarm": RATE},
    "halt": float("inf"),
}


def flagged(rows, first, last):
    """Return how many of the rows of some steps are not covered, and how many there are."""
    bands = [row["band"] for row in rows if first < int(row["step"]) <= last]
    return sum(band != "covered" for band in bands), len(bands)


def langevin(atoms, rng, nsteps=0):
    friction = 0.02 / ase.units.fs
    dyn = Langevin(atoms, 6 * ase.units.fs, temperature_K=600, friction=friction, fixcm=False, rng=rng)
    dyn.nsteps = nsteps
    return dyn


@pytest.mark.parametrize("values", ["exact", "flagged"])
def test_a_vacancy_in_copper(tmp_path, values):
    config = RunConfig.make({**LEARN, "every": 10, "values": values, "output": str(tmp_path / "uq"), "novelty": False})
    rng = np.random.default_rng(1)
    atoms = bulk("Cu", cubic=True, a=3.66) * (2, 2, 2)
    atoms.set_velocities(rng.normal(0.0, np.sqrt(2 * ase.units.kB * 600 / atoms.get_masses()[0]), (32, 3)))
    atoms.calc = EMT()
    with Session.from_config(config) as session:
        dyn = langevin(atoms, rng)
        observer = MonitorObserver(session, dyn)
        dyn.attach(observer)
        dyn.run(1800)
        assert observer.dH is None
        dyn.run(500)
        del atoms[17]
        dyn = langevin(atoms, rng, nsteps=2300)
        observer = MonitorObserver(session, dyn)
        dyn.attach(observer)
        dyn.run(500)
        assert len(observer.dH) == 31
    rows = rows_of(tmp_path / "uq")
    assert [int(row["step"]) for row in rows] == list(range(1810, 2801, 10))
    false_alarms, n = flagged(rows, 1800, 2300)
    assert n == 50
    assert false_alarms <= 3 * RATE * n
    found, n = flagged(rows, 2350, 2800)
    assert found >= 0.9 * n
    assert session.n_saved == false_alarms + flagged(rows, 2300, 2800)[0]


CONTROL = "run 2800"
VACANCY = """\
group gone id 20
delete_atoms group gone compress no
run 1000
"""
LIVE_TOML = """\
reference = "live"
skip = 200
span = 2000
every = 10
select = { false_alarm = 0.05 }
halt = inf
elements = ["Si"]
output = "uq"
novelty = false
consecutive = 1
"""


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_a_vacancy_in_silicon(host, tmp_path):
    values = "exact" if host in ("wheel-1", "debian-2") else "flagged"
    (tmp_path / "quests.toml").write_text(LIVE_TOML + f'values = "{values}"\nprecision = "double"\n')
    commands = PUBLISHED + dump("out.dump", "element x y z d_dH", 10) + CONTROL + "\n" + VACANCY
    finished = ok(run_host(host, tmp_path, drive(commands), script(commands)))
    first = 0 if host.startswith("wheel") else 10  # fix python/invoke is not called at step 0
    end = first + 2200
    assert f"learned 201 frames (12864 environments) of steps {first + 200} to {end}" in finished.stdout
    rows = rows_in(tmp_path)
    # The library's host sees step 2800 once more, without the atom: that is another configuration.
    again = [row for row in rows if row["repeat"] != "0"]
    assert [int(row["step"]) for row in again] == ([2800] if host.startswith("wheel") else [])
    rows = [row for row in rows if row["repeat"] == "0"]
    assert [int(row["step"]) for row in rows] == list(range(end + 10, 3801, 10))
    for row in published(tmp_path):
        is_ready = row["step"] >= end + 10
        assert row["evaluated"] == (row["step"] // 10 * 10 if is_ready else -1)
        assert is_ready or row["reduced"] == row["max"] == 0.0
    run = run_json(tmp_path)
    assert run["learning"]["ready"]
    false_alarms, n = flagged(rows, end, 2800)
    assert false_alarms <= 3 * RATE * n
    found, n = flagged(rows, 2800, 3800)
    assert found >= 0.9 * n

    frames = ase.io.read(tmp_path / "out.dump", format="lammps-dump-text", index=":")
    offline = Index.build([atoms for i, atoms in enumerate(frames) if first + 200 <= 10 * i <= end])
    saved = ase.io.read(tmp_path / "uq" / "candidates.extxyz", index=-1)
    expected = offline.delta_entropy(saved)
    assert np.all(np.abs(saved.arrays["dH"] - expected) <= 1e-10 * np.maximum(1, np.abs(expected)))


@pytest.mark.parametrize("host", [WHEEL_2, DEBIAN_2])
def test_a_span_that_is_too_short_ends_the_run_on_all_ranks(host, tmp_path):
    (tmp_path / "quests.toml").write_text(LIVE_TOML.replace("2000", "150"))
    finished = run_host(host, tmp_path, drive("run 1000"), script("run 1000"))
    assert finished.returncode != 0
    assert "the span of 150 steps holds 16 frames, and a live reference needs 20" in finished.stdout + finished.stderr
    assert run_json(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("host", [WHEEL_1])
def test_attach_takes_the_keys_without_an_index(host, tmp_path):
    attach = """attach(lmp, reference="live", span=300, every=10, select=1e6, halt=1e6, elements=["Si"])"""
    ok(run_host(host, tmp_path, drive("run 400").replace('attach(lmp, "quests.toml")', attach), ""))
    assert [int(row["step"]) for row in rows_in(tmp_path)] == list(range(310, 401, 10))


def test_a_calculator_has_no_dH_while_it_learns(tmp_path):
    config = RunConfig.make({**LEARN, "skip": 0, "span": 30, "select": 1e6, "output": str(tmp_path / "uq")})
    atoms, rng = bulk("Cu", cubic=True), np.random.default_rng(3)
    places = atoms.positions.copy()
    with Session.from_config(config) as session:
        atoms.calc = MonitoredCalculator(EMT(), session)
        for step in range(32):
            atoms.positions = places + rng.normal(0.0, 0.05, places.shape)
            atoms.get_potential_energy()
            assert (atoms.calc.dH is None) == (step <= 30)
    assert np.allclose(atoms.calc.dH, session.monitor.index.index.delta_entropy(atoms))
