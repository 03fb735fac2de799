"""Training with any program, which is told the names of files in its arguments."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import ase
import pydantic

from ..errors import TrainingError
from ..labelling._oracle_settings import FOLDER, check_call
from ..labelling._process import describe_end, guard_command
from ..machine import inherit_environment
from ..toml import Seconds
from ._labelled import list_elements, read_labels, refuse_cutouts, write_training_file
from ._potential import Potential, check_commands

__all__ = ["CommandTrainer", "read_tail", "run_logged"]

# -- programs and their logs -------------------------------------------------------------------------------------------

_TAIL = 15  # last lines of the log that an error shows
_EARLY = 5  # earlier lines that it shows, if they tell of an error
_TELLS = re.compile(r"\b(abort|error|fatal|exception)", re.IGNORECASE)


def run_logged(
    command: Sequence[str], folder: Path, log: Path, *, timeout: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run a program in a folder until it ends; its output goes to `log`.

    It has a process group of its own. The group is killed after `timeout`, and when this program ends in any way.

    Raises
    ------
    TrainingError
        It cannot be started, takes longer than `timeout` (s), or ends with an exit code other than 0. The message has
        the end of its log.
    """
    variables = {**inherit_environment(), **(environment or {})}
    program = shutil.which(command[0], path=variables.get("PATH"))
    if program is None:
        raise TrainingError(f"{command[0]}: there is no such program")
    with open(log, "wb") as file:
        process = subprocess.Popen(
            guard_command([os.path.abspath(program), *command[1:]]),
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,  # it closes when this program ends, and the guard sees that
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            what = f"took longer than {timeout:g} s and was killed"
            raise TrainingError(f"{command[0]} {what}; {read_tail(log)}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # processes that the program has left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    if code != 0:
        raise TrainingError(f"{command[0]} {describe_end(code)}; {read_tail(log)}")


def read_tail(log: Path) -> str:
    """Return the last lines of a log, for an error message; before them, earlier lines that tell of an error.

    Some programs print their buffered output only when they end: then the error stands before all of it.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    if not lines:
        return f"{log} is empty"
    early = [line for line in lines[:-_TAIL] if _TELLS.search(line)][:_EARLY]
    said = f"{log} says:\n" + "\n".join(early) + "\nand " if early else f"{log} "
    return f"{said}ends with:\n" + "\n".join(lines[-_TAIL:])


# -- the trainer -------------------------------------------------------------------------------------------------------

_LOG = "train.log"
_Texts = Annotated[tuple[str, ...], pydantic.Strict(False)]


def _check_lammps(commands: tuple[str, ...]) -> tuple[str, ...]:
    try:
        check_commands(commands)
    except TrainingError as error:
        raise ValueError(str(error)) from error
    return commands


class CommandTrainer(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Trains with a program that reads extended XYZ and writes files.

    In the arguments ``{training}`` stands for the file of the labelled frames; ``{folder}`` for the folder of the
    training, which is the working folder; ``{seed}`` for the seed; ``{elements}`` for the symbols, separated by spaces.
    All other braces stay as they are. No shell is used.

    Attributes
    ----------
    command
        The program and its arguments.
    files
        Names of the files in the folder that are the potential. The program must have written them.
    lammps
        Commands of the potential for LAMMPS; ``{folder}`` and ``{elements}`` as above.
    calculator
        The ASE calculator of the potential, as for `Potential`; ``{folder}`` as above.
    energy_key, forces_column, stress_key
        Names in the training file. A stress is nine numbers in eV/Å³; it is written only if it has a name.
    mask_column
        Name of a column of T and F that tells the program which forces to leave out of the fit. Without it cut-outs
        are refused. Energies and stresses of cut-outs are not written.
    mask_excludes
        True: T marks the forces that are left out, as for gap_fit. False: T marks those that are fitted.
    keys
        Other keys of the frames to write to the file: weights, types of configurations.
    environment
        Variables of the program.
    timeout
        Seconds, or "hh:mm:ss", after which the program and all that it started are killed.
    """

    name: ClassVar[str] = "command"

    command: Annotated[_Texts, pydantic.Field(min_length=1)]
    files: Annotated[_Texts, pydantic.Field(min_length=1)]
    lammps: Annotated[_Texts, pydantic.AfterValidator(_check_lammps)] = ()
    calculator: Annotated[dict[str, Any] | None, pydantic.AfterValidator(check_call)] = None
    energy_key: str = "energy"
    forces_column: str = "forces"
    stress_key: str | None = None
    mask_column: str | None = None
    mask_excludes: bool = True
    keys: _Texts = ()
    environment: dict[str, str] = {}
    timeout: Seconds = 86400.0

    @pydantic.model_validator(mode="after")
    def _check(self) -> CommandTrainer:
        if not self.lammps and self.calculator is None:
            raise ValueError("lammps or calculator must say how to use the potential")
        if not any("{training}" in argument for argument in self.command):
            raise ValueError("no argument of command holds {training}, the file with the frames")
        return self

    @property
    def masks(self) -> bool:
        """Whether the program can leave forces out of the fit."""
        return self.mask_column is not None

    def train(self, frames: Sequence[ase.Atoms], folder: Path, *, seed: int = 0) -> Potential:
        """Run the program. The folder gets its files, the training file and train.log.

        Raises
        ------
        TrainingError
            A frame has no labels, or is a cut-out and cannot be masked; the program failed or took too long; or it did
            not write one of `files`.
        """
        labelled = read_labels(frames)
        if not self.masks:
            refuse_cutouts(labelled, f": give mask_column, if {self.command[0]} can leave forces out (docs/cutouts.md)")
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        training, elements = folder / "training.xyz", list_elements(labelled)
        write_training_file(
            training,
            labelled,
            energy=self.energy_key,
            forces=self.forces_column,
            stress=self.stress_key,
            mask=self.mask_column,
            excluded=self.mask_excludes,
            keys=self.keys,
        )
        values = {
            "{training}": str(training),
            FOLDER: str(folder),
            "{seed}": str(seed),
            "{elements}": " ".join(elements),
        }
        command = [_fill(argument, values) for argument in self.command]
        log = folder / _LOG
        run_logged(command, folder, log, timeout=self.timeout, environment=self.environment)
        missing = [name for name in self.files if not (folder / name).is_file()]
        if missing:
            raise TrainingError(f"{command[0]} ended, but did not write {', '.join(missing)}; {read_tail(log)}")
        lines = tuple(line.replace("{elements}", values["{elements}"]) for line in self.lammps)
        potential = Potential(folder, elements, lines, self.calculator, self.files)
        potential.save()
        return potential


def _fill(argument: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        argument = argument.replace(name, value)
    return argument
