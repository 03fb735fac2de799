"""Folders that are moved, files that vanish, forks, damaged run.json, resources that run out: each fault for real."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import ranks
from limits import LIMIT, wait_until
from paths import TESTS
from watched import (
    CANDIDATE,
    COVERED,
    HALTING,
    frame_of,
    frames_of,
    names_of,
    part_of,
    rows_of,
    run_of,
    session_of,
    steps_of,
)

from quests_md.errors import InputError, MonitorError, OutputError, QuestsError

EVENTFUL = {
    "consecutive": 2,
    "history": 2,
    "after": 1,
    "novelty": True,
    "budget": 3,
    "cutout": {"radius": 2.0, "most": 1},
}
SCALES = [COVERED, 0.075, 0.08, COVERED, COVERED, COVERED, 0.1, 0.12, 0.15]


def watch(session, first, last):
    for step in range(first, last):
        session.observe(frame_of(step, SCALES[step % len(SCALES)]))


# -- the folder ------------------------------------------------------------------------------------------------------


def rename(folder):
    folder.rename(folder.parent / "elsewhere")


def remove(folder):
    shutil.rmtree(folder)


def replace_it(folder):
    folder.rename(folder.parent / "elsewhere")
    folder.mkdir()


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("harm", [rename, remove, replace_it, empty])
def test_a_folder_that_is_moved_away_ends_the_watching(index, folder, harm):
    session = session_of(index, folder)
    watch(session, 0, 4)
    harm(folder)
    with pytest.raises(OutputError, match=r"was renamed, removed or replaced|was taken away"):
        session.observe(frame_of(4))
    assert session.status == "failed"
    kept = folder.parent / "elsewhere"
    if kept.exists():  # what was found is where the folder is, and it knows how it ended
        assert [row["step"] for row in rows_of(kept)] == list("0123")
        assert (run_of(kept)["status"], steps_of(kept)) == ("failed", [1, 2])
    if folder.exists() and harm is not empty:
        assert names_of(folder) == []


def test_a_run_whose_folder_is_moved_away_may_go_on_without_being_watched(index, folder, capsys):
    session = session_of(index, folder, on_error="warn")
    watch(session, 0, 4)
    rename(folder)
    for step in (4, 5):
        assert session.observe(frame_of(step)).maximum == float("inf")
    assert "WARNING: watching failed" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["unlink", "truncate", "append", "replace"])
@pytest.mark.parametrize(
    "name", ["monitor.csv", "candidates.extxyz", "cutouts.extxyz", "history.extxyz", "events.jsonl", "run.json"]
)
def test_a_file_that_somebody_else_takes_or_changes_is_noticed(index, folder, name, how):
    session = session_of(index, folder, **EVENTFUL)
    watch(session, 0, 6)
    path = folder / name
    if how == "unlink":
        path.unlink()
    elif how == "truncate":
        os.truncate(path, 0)
    elif how == "append":
        with open(path, "ab") as file:
            file.write(b"x\n")
    else:
        twin = path.with_suffix(".twin")
        shutil.copy(path, twin)
        twin.replace(path)

    def go_on():
        watch(session, 6, 9)
        session.close()

    with pytest.raises(OutputError, match=rf"{name}: the file was (taken away|changed|replaced)"):
        go_on()
    assert session.status == "failed"


def test_a_second_run_in_the_old_place_is_left_alone(index, folder):
    first = session_of(index, folder)
    watch(first, 0, 3)
    rename(folder)
    with session_of(index, folder) as second:
        watch(second, 0, 2)
        with pytest.raises(OutputError):
            first.observe(frame_of(3))
        watch(second, 2, 4)
    assert [row["step"] for row in rows_of(folder)] == list("0123")
    assert run_of(folder)["status"] == "finished"


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_hear_of_a_folder_that_is_gone(index, folder, size):
    def work(comm):
        session = session_of(index, folder, comm=comm)
        for step in range(3):
            session.observe(part_of(step, COVERED, comm))
        if comm.rank == 0:
            rename(folder)
        comm.allgather([0.0])
        for step in range(3, 6):  # within one evaluation
            session.observe(part_of(step, COVERED, comm))

    results = ranks.run(size, work)
    assert all(isinstance(result, QuestsError) and "was renamed" in str(result) for result in results)


# -- processes -------------------------------------------------------------------------------------------------------


def in_a_fork(work):
    """Return the exit code of a forked child that does some work and then ends as programs do."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = work() or 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_does_not_touch_the_run_of_its_parent(index, folder):
    session = session_of(index, folder, on_select=["sleep", "0"])
    watch(session, 0, 3)
    before = {name: (folder / name).read_bytes() for name in names_of(folder) if name != "commands.log"}

    def child():
        for act in (session.close, session._at_exit, lambda: session.fail(ValueError("mine"))):
            act()
        try:
            session.observe(frame_of(3))
        except MonitorError as error:
            return 0 if "not to its fork" in str(error) else 3
        return 2

    assert in_a_fork(child) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    watch(session, 3, 5)  # it has its lock and its files
    with pytest.raises(OutputError, match="another run that goes on"):
        session_of(index, folder, resume=True)
    session.close()
    assert [row["step"] for row in rows_of(folder)] == list("01234")


def test_a_fork_hears_sigterm_as_any_process(index, folder):
    session = session_of(index, folder)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"x")
        while True:
            time.sleep(60)
    os.read(reading, 1)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert not session.observe(frame_of(0)).stop
    session.close()


@pytest.mark.parametrize("copies", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_session_is_not_copied(index, folder, copies):
    with session_of(index, folder) as session:
        with pytest.raises(
            InputError, match=r"cannot be pickled or copied.* a configuration .* in place of the session"
        ):
            copies(session)
        watch(session, 0, 2)


# -- run.json ----------------------------------------------------------------------------------------------------------


def damaged(value):
    """Return what a hand, or a disk, might make of a value."""
    yield from (None, [], {}, "x", -1, 0.5, True)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value + 1
    if isinstance(value, str):
        yield value + " "
    if isinstance(value, dict) and value:
        name = next(iter(value))
        yield {key: item for key, item in value.items() if key != name}
        yield {**value, name: "x"}
        yield {**value, "more": 1}
    if isinstance(value, list) and value:
        yield value[:-1]


@pytest.mark.parametrize("mode", [True, "anyway"])
def test_any_change_of_run_json_is_refused_and_named(index, folder, mode):
    with session_of(index, folder, **EVENTFUL) as session:
        watch(session, 0, 9)
    before = {name: (folder / name).read_bytes() for name in names_of(folder)}
    whole = json.loads(before["run.json"])
    changes = [(key, other) for key, value in whole.items() for other in damaged(value) if other != value or
               type(other) is not type(value)]  # fmt: skip
    assert len(changes) > 200
    for key, value in changes:
        text = json.dumps({**whole, key: value})
        (folder / "run.json").write_text(text)
        named = r"\w+" if key == "checks" else f"({key}|format)"
        with pytest.raises(OutputError, match=rf"run\.json: {named}: "):
            session_of(index, folder, resume=mode, **EVENTFUL)
        assert (folder / "run.json").read_text() == text
    for key in whole:
        (folder / "run.json").write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        with pytest.raises(OutputError, match=rf"run\.json: ({key}|checks|format)\b"):
            session_of(index, folder, resume=mode, **EVENTFUL)
    for name in before.keys() - {"run.json"}:  # nothing is overwritten before it is understood
        assert (folder / name).read_bytes() == before[name], name
    (folder / "run.json").write_bytes(before["run.json"])
    session_of(index, folder, resume=mode, **EVENTFUL).close()


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_flips_bits_of_run_json_is_found(index, folder, seed):
    with session_of(index, folder, **EVENTFUL) as session:
        watch(session, 0, 9)
    content, rng = (folder / "run.json").read_bytes(), np.random.default_rng(seed)
    told = json.loads(content)
    for _ in range(60):
        place = int(rng.integers(len(content)))
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        (folder / "run.json").write_bytes(flipped)
        try:
            is_same = json.loads(flipped) == told  # a blank between two keys, say
        except ValueError:
            is_same = False
        if not is_same:
            with pytest.raises(OutputError, match=r"run\.json"):
                session_of(index, folder, resume=True, **EVENTFUL)


def test_a_run_json_of_a_later_version_is_refused(index, folder):
    session_of(index, folder).close()
    told = {**run_of(folder), "format": 3}
    (folder / "run.json").write_text(json.dumps(told))
    with pytest.raises(OutputError, match=r"run\.json: format: this version of quests_md reads 1 and 2, not 3"):
        session_of(index, folder, resume=True)


def test_a_frame_that_the_rows_tell_of_and_that_is_gone_is_missed(index, folder):
    with session_of(index, folder, **EVENTFUL) as session:
        watch(session, 0, 9)
    assert steps_of(folder)
    (folder / "candidates.extxyz").unlink()
    with pytest.raises(
        OutputError, match=r"candidates\.extxyz: the frame 1:\d+:0 .* is gone, but monitor\.csv has its row"
    ):
        session_of(index, folder, resume=True, **EVENTFUL)


# -- resources ---------------------------------------------------------------------------------------------------------


def test_without_a_free_file_descriptor_the_error_is_ours_and_files_are_whole(index, folder):
    session = session_of(index, folder)
    watch(session, 0, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OutputError, match="Too many open files"):
            session.observe(frame_of(3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert session.status == "failed"
    assert [row["step"] for row in rows_of(folder)] == list("012")
    session_of(index, folder, resume=True).close()


SCRIPT = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from watched import *
from quests_md.errors import QuestsError
session = session_of(Index.open("cu.qindex"), Path("uq"), novelty=True)
session.observe(frame_of(0))
large = Frame.from_atoms(bulk("Cu", cubic=True) * (40, 40, 40), 1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
try:
    session.observe(large)
except QuestsError as error:
    print("ours:", error)
"""


def test_without_memory_the_error_is_ours_and_files_are_whole(index, folder):
    index.save(folder.parent / "cu.qindex")
    script = SCRIPT.format(tests=str(TESTS))
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=folder.parent, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert "ours: watching failed at step 1: " in ended.stdout, ended.stdout + ended.stderr
    assert [row["step"] for row in rows_of(folder)] == ["0"]
    assert run_of(folder)["status"] in ("failed", "running")


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands_run_a_few_at_a_time_and_all_of_them(index, folder):
    """Each says when it began and ended; of three at most two run at once."""
    log = folder.parent / "log"
    command = ["sh", "-c", f"echo + >> {log}; sleep 0.2; echo - >> {log}"]
    with session_of(index, folder, on_select=command, commands_at_once=2) as session:
        for step in range(6):
            session.observe(frame_of(step, CANDIDATE))
        assert len(session._commands._running) <= 2
    wait_until(lambda: log.read_text().count("-") == 6, "not all commands have ended")
    running = [log.read_text().split()[:n].count("+") - log.read_text().split()[:n].count("-") for n in range(13)]
    assert max(running) <= 2


def test_a_command_that_fails_is_told_of_while_the_run_goes_on(index, folder, capsys):
    flag = folder.parent / "flag"
    command = ["sh", "-c", f"while [ ! -e {flag} ]; do sleep 0.01; done; exit 7"]
    session = session_of(index, folder, on_select=command)
    session.observe(frame_of(0, CANDIDATE))
    ((_, process),) = session._commands._running
    flag.touch()
    process.wait()
    session.observe(frame_of(1))
    assert "quests_md: on_select: exit code 7" in capsys.readouterr().err
    assert not session._commands.is_busy
    session.close()


@pytest.mark.parametrize("most", [0, True, 1.5])
def test_how_many_commands_there_may_be(index, folder, most):
    with pytest.raises(InputError, match="commands_at_once must be a whole number of at least 1"):
        session_of(index, folder, commands_at_once=most)


# -- halts -------------------------------------------------------------------------------------------------------------


def test_a_halt_stays_passed_however_many_jobs_start_from_the_same_restart(index, folder):
    def job(first, last):
        session = session_of(index, folder, resume=True)
        for step in range(first, last):
            if session.observe(frame_of(step, HALTING if step in (3, 6) else COVERED)).stop:
                session.close()
                return step
        session.fail(RuntimeError("killed"))
        return None

    assert [job(0, 5), job(3, 5), job(3, 5), job(3, 8), job(3, 9), job(3, 10)] == [3, None, None, 6, None, None]
    assert steps_of(folder) == [3, 6]
    assert len(rows_of(folder)) == 10


def test_a_halt_that_nobody_was_told_of_halts_when_it_comes_again(index, folder, monkeypatch):
    session = session_of(index, folder)
    session.observe(frame_of(0))
    twin = folder.parent / "twin"
    halt = session._halt

    def killed(moment):  # what a program leaves that is killed between the row and the halt
        shutil.copytree(folder, twin)
        halt(moment)

    monkeypatch.setattr(session, "_halt", killed)
    assert session.observe(frame_of(1, HALTING)).stop
    session.close()
    assert (rows_of(twin)[-1]["band"], run_of(twin)["status"]) == ("halt", "running")
    for is_told in (False, True):
        session = session_of(index, twin, resume=True)
        assert session.observe(frame_of(1, HALTING)).stop == (not is_told)
        session.close()
    assert steps_of(twin) == [1]


def test_a_halt_of_a_path_that_was_given_up_does_not_hide_another_one(index, folder):
    with session_of(index, folder) as session:
        watch(session, 0, 3)
    session = session_of(index, folder, resume=True)
    assert session.observe(frame_of(0, HALTING)).stop  # no row tells of it
    session.close()
    assert [(row["step"], row["repeat"], row["band"]) for row in rows_of(folder)][-1] == ("0", "1", "halt")
    assert frames_of(folder)[-1].info["repeat"] == 1
