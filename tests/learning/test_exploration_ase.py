"""Explorations with ASE: real ones, of small cells of copper; what kills their processes is a result."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from dying import HELD
from explorations import NEVER, frames_of, one
from paths import ROOT, TESTS

from quests_md.errors import Halted, HostError
from quests_md.index import Index
from quests_md.learning._exploration import Explore, Job, explore
from quests_md.training import Potential

EMT = {"call": "ase.calculators.emt:EMT"}
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def crystal(scale, seed, n=2):
    atoms = bulk("Cu", cubic=True) * (n, n, n)
    atoms.rattle(scale, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with an index of warm crystals, and a crystal to start from."""
    place = tmp_path_factory.mktemp("parts")
    Index.build([crystal(0.03 + 0.02 * seed, seed) for seed in range(6)], bandwidth=0.03).save(place / "cu.qindex")
    ase.io.write(place / "start.xyz", crystal(0.02, 0))
    return place


@pytest.fixture
def job(parts, tmp_path, monkeypatch):
    """Return a function that makes a job of 40 steps, unless told otherwise, with a calculator."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(ROOT)]))

    def make(name="a", calculator=EMT, monitor=NEVER, **more):
        own = {key: more.pop(key) for key in list(more) if key in Job.__dataclass_fields__}
        settings = {"host": "ase", "start": "start.xyz", "temperature": [300.0], "time": 0.04, **more}
        folder = tmp_path / f"potential-{name}"
        folder.mkdir(exist_ok=True)
        Potential(folder, ("Cu",), calculator=calculator).save()
        values = {
            "potential": folder,
            "index": parts / "cu.qindex",
            "start": str(parts / "start.xyz"),
            "temperature": 300.0,
            "pressure": None,
            "seed": 7,
        }
        return Job(name, tmp_path / name, settings=Explore(**settings), monitor=monitor, **{**values, **own})

    return make


def test_one_that_stays_covered(job):
    result = one(job())
    assert (result.status, result.steps, result.frames, result.n_candidates) == ("finished", 40, 9, 0)
    assert (result.covered_share, result.covered_to_end) == (1.0, True)
    (last,) = frames_of(result.last_covered)
    assert last.info["step"] == 40
    assert last.get_temperature() > 50


def test_the_same_seed_gives_the_same_frames_and_another_one_others(job):
    monitor = NEVER | {"select": -5.0, "consecutive": 1, "novelty": False}
    jobs = [job(name, monitor=monitor, seed=seed) for name, seed in (("a", 7), ("b", 7), ("c", 8))]
    same, again, other = explore(jobs, workers=2)
    first, second, third = (frames_of(result.candidates) for result in (same, again, other))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())
    assert not np.array_equal(third[-1].positions, first[-1].positions)


def test_it_goes_on_with_the_velocities_of_the_last_covered_frame(job):
    half = one(job("half", time=0.02))
    rest = one(job("rest", time=0.001, start=str(half.last_covered), continues=True))
    (start,), (found,) = frames_of(half.last_covered), frames_of(rest.last_covered)
    assert found.info["step"] == 0
    np.testing.assert_array_equal(found.positions, start.positions)
    np.testing.assert_allclose(found.get_velocities(), start.get_velocities(), rtol=1e-12)
    drawn = one(job("drawn", time=0.001, start=str(half.last_covered)))
    assert np.abs(frames_of(drawn.last_covered)[0].get_velocities() - start.get_velocities()).max() > 1e-3


def test_a_pressure_moves_the_cell(job):
    squeezed, free = explore([job("p20", pressure=20.0, time=0.4), job("p0", pressure=0.0, time=0.4)], workers=2)
    volumes = [frames_of(result.last_covered)[0].get_volume() for result in (squeezed, free)]
    assert volumes[0] < 0.97 * volumes[1]


def test_a_halt_is_a_result(job):
    asked = job(monitor={"select": 2.0, "halt": 6.0, "every": 5}, temperature=4000.0, time=1.0)
    result = one(asked)
    assert result.status == "halted"
    assert result.first_halt == pytest.approx(result.time) == pytest.approx(result.steps / 1000.0)
    assert frames_of(result.candidates)[-1].info["step"] == result.steps


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("SIGSEGV", "killed by SIGSEGV"),
        ("SIGABRT", "killed by SIGABRT"),
        ("SIGKILL", "killed by SIGKILL"),
        ("exit", "its process ended with exit code 3"),
    ],
)
def test_what_kills_the_process_is_a_result_and_costs_no_other_run(job, what, reason):
    dies = {"call": "dying:Dying", "what": what, "at": 24}
    crashed, whole = explore([job("dies", dies), job("whole")], workers=2)
    assert (crashed.status, crashed.reason, whole.status) == ("crashed", reason, "finished")
    assert "these are my last words" in crashed.log
    assert (crashed.steps, crashed.frames, crashed.covered_share, crashed.covered_to_end) == (20, 5, 1.0, False)
    (last,) = frames_of(crashed.last_covered)
    assert last.info["step"] in (0, 5, 10, 15, 20)
    assert crashed.n_candidates == 0


def test_an_error_of_the_calculator_is_a_result_and_the_frame_before_it_a_candidate(job):
    result = one(job(calculator={"call": "dying:Dying", "what": "raise", "at": 24}))
    assert (result.status, result.reason, result.frames) == ("crashed", "the forces", 5)
    assert "RuntimeError" in result.log
    (candidate,) = frames_of(result.candidates)
    assert (candidate.info["step"], candidate.info["reason"]) == (20, "the last before the forces")


def test_a_calculator_that_cannot_be_made_is_an_error(job):
    with pytest.raises(HostError, match="gives no calculator"):
        one(job(calculator={"call": "dying:Dying"}))


# -- what ends it, while compiled code holds Python's lock ------------------------------------------

# A caller that SIGUSR1 ends without a word, and that SIGUSR2 lets fork: what it has forked shares all that it has open.
CALLER = """
import os, signal, sys, time
from pathlib import Path
from quests_md.learning._exploration import Job, explore

def fork(*_):
    if os.fork() == 0:
        time.sleep(1000)
    Path(sys.argv[2]).touch()

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
signal.signal(signal.SIGUSR2, fork)
explore([Job.read(Path(sys.argv[1]))])
"""


def until(condition, limit):
    """Wait until something is so; return after how many seconds, or fail."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit
        time.sleep(0.02)
    return time.monotonic() - begun


def stat(pid):
    """Return what the system tells of a process: its state, its parent, its group, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"]


def ended(pids):
    return all(stat(pid)[0] in "ZX" for pid in pids)


@pytest.fixture
def holding(job, tmp_path):
    """Return a job that holds Python's lock, and a function that waits for the numbers of its processes."""
    told, pids = tmp_path / "pids", []

    def wait(caller=None):
        until(lambda: told.exists() or (caller and caller.poll() is not None), 300)  # kernels may have to be compiled
        pids.extend(map(int, told.read_text().split()))
        assert not ended(pids)
        return pids

    yield job(calculator={"call": "dying:Holding", "told": str(told), "at": 10}), wait
    for pid in pids:
        if not ended([pid]):
            os.kill(pid, signal.SIGKILL)


@PROC
@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGKILL,),
        (signal.SIGINT,),  # it is left by an exception
        (signal.SIGUSR1,),  # it ends by itself, without a `finally`
        (signal.SIGUSR2, signal.SIGKILL),  # what it has forked goes on
    ],
)
def test_it_ends_with_its_caller_though_the_lock_is_held(holding, tmp_path, numbers):
    asked, wait = holding
    asked.folder.mkdir()
    command = [sys.executable, "-c", CALLER, str(asked.write()), str(tmp_path / "forked")]
    caller = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        pids = wait(caller)
        for number in numbers:
            caller.send_signal(number)
            if number == signal.SIGUSR2:
                until((tmp_path / "forked").exists, 30)
        begun = time.monotonic()
        caller.wait(30)
        until(lambda: ended(pids), HELD / 6)
        assert time.monotonic() - begun < HELD / 6  # two seconds, on a machine that has nothing else to do
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(caller.pid, signal.SIGKILL)  # what it has forked
        caller.wait()
    assert not (asked.folder / "exploration.json").exists()


@PROC
@pytest.mark.parametrize("whom", ["guard", "process", "group"])
def test_it_can_be_asked_to_end_though_the_lock_is_held(holding, whom):
    asked, wait = holding
    pids, begun = [], []

    def ask():
        pids.extend(wait())
        pid = pids[0]
        parent, group = map(int, stat(pid)[1:3])
        begun.append(time.monotonic())
        os.kill({"guard": parent, "process": pid, "group": -group}[whom], signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(Halted, match="asked to end by SIGTERM"):
        explore([asked])
    assert time.monotonic() - begun[0] < HELD / 6
    thread.join()
    assert ended(pids)
    assert not (asked.folder / "exploration.json").exists()
