"""Running a program that trains: in its folder, with its log, killed with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import TrainingError

__all__ = ["run_logged", "tail"]

_LAUNCHER = ("PMI", "OMPI_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_", "SLURM_MPI")
_TAIL = 15  # lines of the log that an error shows


def run_logged(
    command: Sequence[str], folder: Path, log: Path, *, timeout: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run a program in a folder until it ends; what it prints goes to `log`.

    It gets a process group of its own, which is killed if the time is over or this program is interrupted. It gets no
    variables of an MPI launcher, or a program that uses MPI would believe to be one of this program's ranks.

    Raises
    ------
    TrainingError
        It cannot be started, took longer than `timeout` (s), or ended with an exit code other than 0; with the end of
        its log.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER)}
    variables.update(environment or {})
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise TrainingError(f"{command[0]}: cannot be started: {error.strerror or error}") from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TrainingError(f"{command[0]} took longer than {timeout:g} s and was killed; {tail(log)}") from None
        finally:
            _kill(process)
    if code != 0:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise TrainingError(f"{command[0]} {how}; {tail(log)}")


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error."""
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-_TAIL:]
    return f"{log} ends with:\n" + "\n".join(lines) if lines else f"{log} is empty"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group: also what outlived the program, which would go on writing to the folder."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
