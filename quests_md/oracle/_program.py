"""Running a program that trains: in its folder, with its log, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import TrainingError
from ..processes import inherited
from ._process import ending, guarded

__all__ = ["run_logged", "tail"]

_TAIL = 15  # lines of the log that an error shows
_EARLY = 5
_TELLS = re.compile(r"\b(abort|error|fatal|exception)", re.IGNORECASE)


def run_logged(
    command: Sequence[str], folder: Path, log: Path, *, timeout: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run a program in a folder until it ends; what it prints goes to `log`.

    It gets a process group of its own, which is killed when the time is over, and when this program ends, however that
    happens.

    Raises
    ------
    TrainingError
        It cannot be started, took longer than `timeout` (s), or ended with an exit code other than 0; with the end of
        its log.
    """
    variables = {**inherited(), **(environment or {})}
    program = shutil.which(command[0], path=variables.get("PATH"))
    if program is None:
        raise TrainingError(f"{command[0]}: there is no such program")
    with open(log, "wb") as file:
        process = subprocess.Popen(
            guarded([os.path.abspath(program), *command[1:]]),
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,  # the guard sees by it that this program has ended
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TrainingError(f"{command[0]} took longer than {timeout:g} s and was killed; {tail(log)}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what outlived the program
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    if code != 0:
        raise TrainingError(f"{command[0]} {ending(code)}; {tail(log)}")


def tail(log: Path) -> str:
    """Return the last lines of a log for an error, after lines that tell of one.

    A program that keeps what it prints to itself until it ends has its message of an error before all else.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    if not lines:
        return f"{log} is empty"
    early = [line for line in lines[:-_TAIL] if _TELLS.search(line)][:_EARLY]
    said = f"{log} says:\n" + "\n".join(early) + "\nand " if early else f"{log} "
    return f"{said}ends with:\n" + "\n".join(lines[-_TAIL:])
