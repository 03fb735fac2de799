"""Explorations, each in a process of its own. A crash ends only this exploration, and counts as its result."""

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
from typing import Any

import numpy as np

from ..errors import Halted, HostError, InputError, OutputError, QuestsError
from ..labelling._process import guard_command, name_signal
from ..machine import inherit_environment
from ..monitor import Band
from ..recording import LAST_COVERED
from ..recording.reader import count_frames, read_last_row, read_rows
from ._loop_folder import DONE, JOB, Exploration, Job
from ._settings import Explore

__all__ = ["CANNOT_RUN", "Exploration", "Explore", "Job", "conclude", "explore"]

CANNOT_RUN = 78  # exit code of an exploration without a result (EX_CONFIG of sysexits, which no library uses)
_LOG = "explorer.log"  # the output of the process
_LAMMPS_LOG = "log.lammps"
_CANDIDATES = "candidates.extxyz"
_TAIL = 20  # last lines of each log that a result holds

_LOOK = 0.1  # s between two looks at the processes
_GONE = 1.0  # s to wait for the end of killed processes; in a container without init some stay for ever as zombies
_SAY = 5.0  # s between two reports of the running explorations
# Signals by which a terminal or a batch system asks a process to end.
_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def explore(
    jobs: Sequence[Job], workers: int = 1, report: Callable[[int, str], object] | None = None
) -> list[Exploration]:
    """Run explorations, some at the same time, and return their results.

    An exploration that has its exploration.json is not run again. The folder of an unfinished one is cleared. When this
    function returns or raises, or this process ends in any way, all explorations end within two seconds, with all that
    they have started in their process groups. They end even while compiled code holds Python's lock.

    Parameters
    ----------
    jobs
        The explorations, each with a folder of its own.
    workers
        How many run at the same time, each in one process of one thread.
    report
        Called with the number of explorations that are done, and a text about the one that ended or those that run.

    Returns
    -------
    list
        The results, in the order of `jobs`.

    Raises
    ------
    InputError
        `workers` is less than 1, or two jobs have the same folder.
    HostError
        An exploration cannot begin. The message says what must be changed.
    Halted
        A signal from elsewhere asked an exploration to end. The results of finished ones stay.
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
                result = _finish(one)
                say(len(jobs) - len(waiting) - len(running), _describe_result(result))
            if not ended:
                if time.monotonic() - said > _SAY:
                    said = time.monotonic()
                    say(len(jobs) - len(waiting) - len(running), "; ".join(map(_describe_progress, running)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running[0].process.wait(_LOOK)
    finally:
        _kill(running)
    return [Exploration.read(job.folder) for job in jobs]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]  # the guard, which leads the process group and ends as the exploration does


def _start(job: Job) -> _Running:
    """Clear the folder of an exploration and start its process."""
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        path = job.write()
        with open(folder / _LOG, "wb") as log:
            process = subprocess.Popen(
                guard_command([sys.executable, "-m", "quests_md.learning._explorer", str(path)]),
                env=inherit_environment() | dict.fromkeys(_ONE_THREAD, "1"),
                stdin=subprocess.PIPE,  # it closes when this process ends, and the guard sees that
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used for an exploration: {error.strerror or error}") from error
    return _Running(job, process)


def _clear(folder: Path) -> None:
    """Remove the files of an unfinished exploration, but job.json: so the folder stays one of an exploration."""
    left = [path for path in folder.iterdir() if path.name != JOB]
    if not (folder / JOB).exists() and not all(path.name.endswith(".part") for path in left):
        raise OutputError(f"{folder} holds no exploration ({JOB}), so it is not cleared: remove it yourself")
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _finish(one: _Running) -> Exploration:
    """Return the result of an exploration whose process has ended. If it crashed, write its result."""
    _kill([one])  # processes that it has left
    job, code = one.job, one.process.returncode
    if (job.folder / DONE).exists():
        return Exploration.read(job.folder)
    name = f"exploration {job.name}"
    if -code in _ASKED or code - 128 in _ASKED:
        raise Halted(f"{name} was asked to end by {name_signal(abs(code) % 128)}; it begins anew the next time")
    if code == CANNOT_RUN or (code > 0 and not (job.folder / "run.json").exists()):
        said = _read_last_lines(job.folder / _LOG)[-1:] or ["its process printed nothing: is the disk full?"]
        raise HostError(f"{name} cannot be run: {said[0]} (all of it: {job.folder / _LOG})")
    how = f"killed by {name_signal(-code)}" if code < 0 else f"its process ended with exit code {code}"
    result = conclude(job, "crashed", how)
    result.write(job.folder)
    return result


def _kill(running: Sequence[_Running]) -> None:
    """Kill explorations with all that they have started, and wait until all these have ended."""
    for one in running:
        _signal(one, signal.SIGKILL)
    until = time.monotonic() + _GONE
    for one in running:
        one.process.wait()
        if one.process.stdin is not None:
            one.process.stdin.close()
        # The guard has ended, but others of its group may still run.
        while _signal(one, 0) and time.monotonic() < until:
            time.sleep(_LOOK / 10)


def _signal(one: _Running, number: int) -> bool:
    """Send a signal to an exploration and all that it has started; return whether any such process is there."""
    try:
        os.killpg(one.process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _describe_progress(one: _Running) -> str:
    """Return how far a running exploration is, from the last row of its monitor.csv."""
    row = None
    with contextlib.suppress(QuestsError):  # a report must not end the explorations
        row = read_last_row(one.job.folder / "monitor.csv")
    step = 0 if row is None else int(row["step"])
    return f"{one.job.name}: {step * one.job.settings.timestep / 1000.0:.2f} of {one.job.settings.time:g} ps"


def _describe_result(result: Exploration) -> str:
    why = f" ({result.reason})" if result.reason else ""
    return f"{result.name}: {result.status} after {result.time:g} ps, {result.n_candidates} candidates{why}"


# -- the result of an exploration --------------------------------------------------------------------------------------


def conclude(job: Job, status: Any, reason: str, steps: int | None = None) -> Exploration:
    """Return the result of an exploration, from the files that it left; its process may have been killed.

    Raises
    ------
    OutputError
        A file is damaged, and not only at its end.
    """
    path, candidates, last_covered = (job.folder / name for name in ("monitor.csv", _CANDIDATES, LAST_COVERED))
    rows, damaged = read_rows(path)
    if damaged:
        raise OutputError(f"{path}: line {damaged[0]} is damaged")
    is_broken, is_halt = rows["band"] == str(Band.IMPLAUSIBLE), rows["band"] == str(Band.HALT)
    n, above = (int(rows[name][~is_broken].sum()) for name in ("n", "n_select"))
    n_candidates = count_frames(candidates)
    if steps is None:
        steps = int(rows["step"][-1]) if len(rows) else 0
    is_covered = not n_candidates and not np.any((rows["event"] != 0) | is_broken | is_halt)
    logs = [line for name in (_LAMMPS_LOG, _LOG) for line in _read_last_lines(job.folder / name)]
    return Exploration(
        name=job.name,
        status=status,
        reason=reason,
        steps=steps,
        time=steps * job.settings.timestep / 1000.0,
        first_halt=float(rows["time"][is_halt][0]) if is_halt.any() else None,
        covered_share=(n - above) / n if n else 0.0,
        frames=len(rows),
        covered_to_end=status == "finished" and is_covered,
        candidates=candidates,
        n_candidates=n_candidates,
        last_covered=last_covered if last_covered.exists() else None,
        log="\n".join(logs) if status == "crashed" else "",
    )


def _read_last_lines(path: Path) -> list[str]:
    """Return the last lines of a log that are not empty; none if it cannot be read."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_TAIL:]
    return []
