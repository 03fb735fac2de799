"""The guard of a program: it ends as the program ends, hands signals on, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from quests_md.labelling._process import guard_command

LIMIT = 60


def start(code):
    """Start a guarded Python program; it has said a line when this returns."""
    process = started([sys.executable, "-c", "import os, signal, sys, time\n" + code])
    process.said = process.stdout.readline().strip()
    return process


def started(program):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(guard_command(program), start_new_session=True, text=True, **pipes)


def end(process):
    """Wait for the end of a guard whose pipe is open; return its code and what the program has said."""
    code, said, complaints = process.wait(LIMIT), process.stdout.read(), process.stderr.read()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    return code, said, complaints


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("", 0),
        ("sys.exit(78)", 78),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_it_ends_as_its_program(last, code):
    assert end(start(f"print(flush=True)\n{last}"))[0] == code


def test_a_signal_that_is_blocked_is_still_its_end():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        process = start("signal.pthread_sigmask(signal.SIG_SETMASK, [])\nos.kill(os.getpid(), signal.SIGTERM)")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert end(process)[0] == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["missing", "folder", "text"])
def test_a_program_that_cannot_be_started_is_told(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_bytes(b"\x00 no program")
        path.chmod(0o755)
    code, _, complaints = end(started([str(path)]))
    assert code == 127
    assert complaints.startswith(f"{path}: cannot be started: ")


def test_its_program_reads_from_nowhere_and_ignores_no_signal_that_python_does():
    process = started(["sh", "-c", "cat; kill -PIPE $$"])
    assert end(process)[0] == -signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_handed_on_and_the_program_may_take_its_time(number):
    code = f"""
def last_words(*_):
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(5)
signal.signal({number:d}, last_words)
print(flush=True)
time.sleep(30)
"""
    before = signal.signal(number, signal.SIG_DFL)  # a background job of a shell ignores SIGINT
    try:
        process = start(code)
    finally:
        signal.signal(number, before)
    process.send_signal(number)
    assert end(process)[:2] == (5, "saved\n")


def test_a_program_that_hears_no_signal_ends_with_the_pipe():
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(30)")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.stdin.close()
    assert process.wait(LIMIT) == -signal.SIGKILL
    assert process.stdout.read() == ""  # nobody holds the other end any more
    process.stdout.close()
    process.stderr.close()


def test_what_its_parent_ignores_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("print(signal.getsignal(signal.SIGHUP), flush=True)\ntime.sleep(30)")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.said in ("1", "Handlers.SIG_IGN")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
