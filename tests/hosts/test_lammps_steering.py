"""A bias in real LAMMPS: its forces, energy and virial are those of the same frames in Python, on any ranks."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from lammps_runs import HOSTS, HOSTS_ONCE, configure, drive, dump, dumped, ok, rows_of, run_host, script

from quests_md import Index
from quests_md.bias import Bias
from quests_md.sources import read_frames

_BAR = 1.602176634e6  # in bar, 1 eV/Å³
_SETTINGS = {"tau": 0.05, "floor": -20.0, "ceiling": 40.0, "largest_force": 100.0}
_SEEN = """\
compute every all pressure NULL virial
compute pair all pressure NULL pair
thermo 1
thermo_style custom step vol f_quests c_every[1] c_pair[1] c_every[2] c_pair[2] c_every[4] c_pair[4]
thermo_modify format float %.15g norm no
"""
_LONG = 9  # words of a line of thermo


def _thermo(folder):
    lines = [line.split() for line in (folder / "log.lammps").read_text().splitlines()]
    return {int(words[0]): list(map(float, words[1:])) for words in lines if len(words) == _LONG and words[0].isdigit()}


@pytest.mark.parametrize("host", HOSTS)
def test_forces_energy_and_virial_are_those_of_python(host, folder):
    configure(folder, select=-1e6, halt=1e6, bias=_SETTINGS)
    commands = _SEEN + dump("out.dump", "element x y z fx fy fz") + "run 4\n"
    ok(run_host(host, folder, drive(commands), script(commands)))
    bias, saved = Bias(Index.open(folder / "si.qindex"), _SETTINGS), ase.io.read(folder / "uq/candidates.extxyz", ":")
    frames = dict(zip((step for step, _ in dumped(folder / "out.dump")), read_frames(folder / "out.dump"), strict=True))
    columns, seen, rows = (
        dict(dumped(folder / "out.dump")),
        _thermo(folder),
        {int(r["step"]): r for r in rows_of(folder)},
    )
    assert len(saved) >= 4
    for atoms in saved:
        step = int(atoms.info["step"])
        push = bias.push(frames[step], halt=1e6)
        assert push.largest > 0.01
        total = np.column_stack([columns[step][name] for name in ("fx", "fy", "fz")])
        order = np.argsort(atoms.arrays["id"])
        of_bias = total - atoms.arrays["model_forces"][order]
        np.testing.assert_allclose(of_bias, push.forces, atol=1e-9)
        volume, energy, *pressures = seen[step]
        assert energy == pytest.approx(push.energy, abs=1e-9)
        assert float(rows[step]["bias_energy"]) == pytest.approx(push.energy, abs=1e-9)
        assert atoms.info["bias_force"] == pytest.approx(push.largest, abs=1e-9)
        for i, (a, b) in enumerate(((0, 0), (1, 1), (0, 1))):
            more = (pressures[2 * i] - pressures[2 * i + 1]) * volume / _BAR
            assert more == pytest.approx(push.virial[a, b], abs=1e-6)


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_the_share_of_the_mean_force_is_reached_and_then_fixed(host, folder):
    configure(folder, bias={"strength": 0.2, "ceiling": 40.0, "warm_up": 4, "largest_force": 10.0})
    commands = dump("out.dump", "element x y z fx fy fz") + "run 8\n"
    ok(run_host(host, folder, drive(commands), script(commands)))
    taus = [float(row["bias_tau"]) for row in rows_of(folder)]
    assert 0.0 < taus[0] != taus[1]
    assert len(set(taus[4:])) == 1


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_without_a_bias_not_a_digit_changes(host, folder):
    commands = dump("out.dump", "x y z vx vy vz") + "run 5\n"
    configure(folder, bias={"tau": 0.02, "floor": 1e5, "ceiling": 1e6})  # nothing is above this floor
    ok(run_host(host, folder, drive(commands), script(commands)))
    pushed = (folder / "out.dump").read_bytes()
    configure(folder, output="other")
    ok(run_host(host, folder, drive(commands), script(commands)))
    assert pushed == (folder / "out.dump").read_bytes()


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_units_without_an_energy_are_refused(host, folder):
    configure(folder, bias={"tau": 0.02}, length_unit=1.0, check_masses=False, skin=0.3)
    before = "clear\nunits lj\nlattice sc 1.0\nregion all block 0 8 0 8 0 8\ncreate_box 1 all\ncreate_atoms 1 box\n"
    before += "mass 1 1.0\npair_style lj/cut 2.5\npair_coeff 1 1 1.0 1.0\ncomm_modify cutoff 6.0\n"
    finished = run_host(host, folder, drive("run 1\n", before), script("run 1\n", before))
    assert finished.returncode != 0
    assert "units lj have none" in finished.stdout + finished.stderr + (folder / "log.lammps").read_text()


@pytest.mark.parametrize("host", HOSTS_ONCE)
@pytest.mark.parametrize("bath", ["", "fix bath all langevin 300 300 0.1 7\n"])
def test_it_says_that_nothing_takes_up_the_heat(host, bath, folder):
    configure(folder, bias={"tau": 0.01, "ceiling": 40.0})
    finished = ok(run_host(host, folder, drive("run 1\n", bath), script("run 1\n", bath)))
    assert ("takes up the heat" in finished.stdout + finished.stderr) == (not bath)


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_a_second_bias_in_one_lammps_is_refused(host, folder):
    configure(folder, bias={"tau": 0.01, "ceiling": 40.0})
    twice = drive("run 1\n").replace("watch.close()", 'attach(lmp, "quests.toml", output="other")')
    finished = run_host(host, folder, twice, script("python quests_attach invoke\nrun 1\n"))
    assert finished.returncode != 0
    assert "already" in finished.stdout + finished.stderr + (folder / "log.lammps").read_text()
