"""Explorations, each in a process of its own: what crashes costs that run, and is a result."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Halted, HostError, InputError, OutputError, QuestsError
from ..labelling._process import guard_command
from ..machine import inherit_environment
from ..recording.reader import read_last_row
from ._job import CANNOT_RUN, DONE, JOB, LOG, Exploration, Explore, Job, last_lines, told

__all__ = ["Exploration", "Explore", "Job", "explore"]

_LOOK = 0.1  # s between two looks at the processes
_GONE = 1.0  # s in which killed processes end, but for those that nobody waits for: where a container has no init
_SAY = 5.0  # s between two reports of running ones
# Signals by which others, a terminal or a batch system, ask a process to end.
_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def explore(
    jobs: Sequence[Job], workers: int = 1, report: Callable[[int, str], object] | None = None
) -> list[Exploration]:
    """Run explorations, some at a time, and return what each came to.

    One that has its exploration.json is not run again. The folder of one that was not finished is cleared. When this
    function is left, or this process ends, however it does, the explorations end within two seconds, and with them all
    that they have started in their process groups; compiled code that holds Python's lock does not keep them.

    Parameters
    ----------
    jobs
        The explorations, each with a folder of its own.
    workers
        How many run at a time, each in one process of one thread.
    report
        Called with the number of explorations that are done, and a text about the one that ended or those that run.

    Returns
    -------
    list
        In the order of `jobs`.

    Raises
    ------
    HostError
        An exploration cannot begin: what must be set right is in the message.
    Halted
        One was asked to end by a signal from elsewhere. What has been finished stays.
    OutputError
        A folder holds something else than an exploration, or a file cannot be written.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    jobs = [job.absolute() for job in jobs]
    if len({job.folder for job in jobs}) < len(jobs):
        raise InputError("two explorations have the same folder")
    waiting = [job for job in jobs if not (job.folder / DONE).exists()]
    running: list[_Running] = []
    say, said = report or (lambda done, text: None), time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0)))
            ended = [one for one in running if one.process.poll() is not None]
            for one in ended:
                running.remove(one)
                result = _ended(one)
                say(len(jobs) - len(waiting) - len(running), _in_words(result))
            if not ended:
                if time.monotonic() - said > _SAY:
                    said = time.monotonic()
                    say(len(jobs) - len(waiting) - len(running), "; ".join(map(_progress, running)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running[0].process.wait(_LOOK)
    finally:
        _kill(running)
    return [Exploration.read(job.folder) for job in jobs]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]  # the guard, which leads the group of the exploration and ends as it does


def _start(job: Job) -> _Running:
    """Clear the folder of an exploration and start its process."""
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        path = job.write()
        with open(folder / LOG, "wb") as log:
            process = subprocess.Popen(
                guard_command([sys.executable, "-m", "quests_md.learning._explorer", str(path)]),
                env=_environment(),
                stdin=subprocess.PIPE,  # the guard sees by it that this process has ended
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used for an exploration: {error.strerror or error}") from error
    return _Running(job, process)


def _clear(folder: Path) -> None:
    """Remove what an exploration left that was not finished; job.json stays, so that this can be ended, too."""
    left = [path for path in folder.iterdir() if path.name != JOB]
    if not (folder / JOB).exists() and not all(path.name.endswith(".part") for path in left):
        raise OutputError(f"{folder} holds no exploration ({JOB}), so it is not cleared: remove it yourself")
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _environment() -> dict[str, str]:
    return inherit_environment() | dict.fromkeys(_ONE_THREAD, "1")


def _ended(one: _Running) -> Exploration:
    """Return what an exploration came to whose process has ended; of a crashed one, write it."""
    _kill([one])  # what it started and left
    job, code = one.job, one.process.returncode
    if (job.folder / DONE).exists():
        return Exploration.read(job.folder)
    name = f"exploration {job.name}"
    if code == CANNOT_RUN or (code > 0 and not (job.folder / "run.json").exists()):
        said = last_lines(job.folder / LOG)[-1:] or ["its process said nothing, as where the disk is full"]
        raise HostError(f"{name} cannot be run: {said[0]} (all of it: {job.folder / LOG})")
    if -code in _ASKED or code - 128 in _ASKED:
        raise Halted(f"{name} was asked to end by {signal.Signals(abs(code) % 128).name}; it begins anew the next time")
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
    result = told(job, "crashed", how)
    result.write(job.folder)
    return result


def _kill(running: Sequence[_Running]) -> None:
    """Kill explorations with all that they have started, and wait until nothing of them writes any more."""
    for one in running:
        _signal(one, signal.SIGKILL)
    until = time.monotonic() + _GONE
    for one in running:
        one.process.wait()
        if one.process.stdin is not None:
            one.process.stdin.close()
        # The end of a guard that was killed is not yet that of the others.
        while _signal(one, 0) and time.monotonic() < until:
            time.sleep(_LOOK / 10)


def _signal(one: _Running, number: int) -> bool:
    """Send a signal to an exploration with all that it has started; return whether anything of it is there."""
    try:
        os.killpg(one.process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _progress(one: _Running) -> str:
    """Return how far a running exploration is: the last row of monitor.csv says so."""
    row = None
    with contextlib.suppress(QuestsError):  # what is said on the way must not end the others
        row = read_last_row(one.job.folder / "monitor.csv")
    step = 0 if row is None else int(row["step"])
    return f"{one.job.name}: {step * one.job.settings.timestep / 1000.0:.2f} of {one.job.settings.time:g} ps"


def _in_words(result: Exploration) -> str:
    why = f" ({result.reason})" if result.reason else ""
    return f"{result.name}: {result.status} after {result.time:g} ps, {result.n_candidates} candidates{why}"
