"""Labelled frames: which of their labels may be trained on, and the extended XYZ file that programs read."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from ..errors import TrainingError
from ..files import write_atomically
from ..files.extxyz import format_columns, format_properties
from ..sources import name_what_is_there

__all__ = ["LabelledFrame", "list_elements", "read_labels", "refuse_cutouts", "write_training_file"]

_CORE_ONLY = "forces of core atoms only"


@dataclass(frozen=True)
class LabelledFrame:
    """A frame, and those of its labels that may be trained on.

    Parameters
    ----------
    atoms
        The frame.
    forces
        (n, 3), in eV/Å.
    core
        (n,) bool: atoms whose forces count. In a cut-out these are the core, in other frames all atoms.
    energy
        In eV; None if it does not count.
    stress
        (3, 3), in eV/Å³, with ASE's sign; None if there is none, or if it does not count.
    """

    atoms: ase.Atoms
    forces: NDArray[np.float64]
    core: NDArray[np.bool_]
    energy: float | None
    stress: NDArray[np.float64] | None

    @property
    def is_cutout(self) -> bool:
        """Whether some labels of this frame must be left out of a fit."""
        return self.energy is None

    def digest(self) -> str:
        """Return a hash of the frame and its labels: 32 hexadecimal digits."""
        atoms, parts = self.atoms, hashlib.sha256()
        arrays = [atoms.positions, np.asarray(atoms.cell), self.forces]
        arrays += [np.array([np.nan if self.energy is None else self.energy])]
        arrays += [] if self.stress is None else [self.stress]
        for kind, values in (("<i8", [atoms.numbers, atoms.pbc, self.core]), ("<f8", arrays)):
            for array in values:
                parts.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return parts.hexdigest()[:32]


def read_labels(frames: Sequence[ase.Atoms]) -> list[LabelledFrame]:
    """Read the labels of frames from their calculators, and find out which of them count.

    Raises
    ------
    TrainingError
        There are no frames; or one has no labels, has labels that are not finite, or is a cut-out without a core.
    """
    if not frames:
        raise TrainingError("there are no frames to train on")
    return [_read_one(atoms, f"frame {i} ({atoms.get_chemical_formula()})") for i, atoms in enumerate(frames)]


def list_elements(frames: Sequence[LabelledFrame]) -> tuple[str, ...]:
    """Return the symbols of the elements that occur, ordered by atomic number."""
    found = sorted({int(z) for frame in frames for z in frame.atoms.numbers})
    return tuple(ase.data.chemical_symbols[z] for z in found)


def _read_one(atoms: ase.Atoms, name: str) -> LabelledFrame:
    energy, forces, stress = _get_result(atoms, "energy"), _get_result(atoms, "forces"), None
    if energy is None or forces is None:
        raise TrainingError(f"{name} has no energy and forces: label it first. {name_what_is_there(atoms)}")
    if atoms.pbc.all():
        stress = _get_result(atoms, "stress")
    core = np.ones(len(atoms), dtype=bool)
    if atoms.info.get("fit") == _CORE_ONLY:
        if "core" not in atoms.arrays:
            raise TrainingError(f"{name} is a cut-out, but has no column core that says which forces may be trained on")
        core, energy, stress = np.asarray(atoms.arrays["core"], dtype=bool), None, None
    forces = np.asarray(forces, dtype=float)
    values = [forces[core], *(np.asarray(value) for value in (energy, stress) if value is not None)]
    if not all(np.isfinite(value).all() for value in values):
        raise TrainingError(f"{name} has labels that are not finite: label it again, or leave it out")
    matrix = None if stress is None else voigt_6_to_full_3x3_stress(np.asarray(stress, dtype=float))
    return LabelledFrame(atoms, forces, core, None if energy is None else float(energy), matrix)


def _get_result(atoms: ase.Atoms, name: str) -> Any:
    """Return a label that the calculator holds, or None. Nothing is calculated."""
    if atoms.calc is None:
        return None
    try:
        return atoms.calc.get_property(name, atoms, allow_calculation=False)
    except PropertyNotImplementedError:
        return None


def refuse_cutouts(frames: Sequence[LabelledFrame], advice: str) -> None:
    """Raise `TrainingError` if there are cut-outs; `advice` says what to do, besides labelling whole frames."""
    cut = [i for i, frame in enumerate(frames) if frame.is_cutout]
    if cut:
        what = f"frames {cut[:10]} are cut-outs, of which only core forces are fit to train on"
        raise TrainingError(f"{what}{advice}, or label whole frames")


def write_training_file(
    path: Path,
    frames: Sequence[LabelledFrame],
    *,
    energy: str = "energy",
    forces: str = "forces",
    stress: str | None = None,
    mask: str | None = None,
    excluded: bool = True,
    keys: Sequence[str] = (),
) -> None:
    """Write frames and labels as extended XYZ, with 17 digits. Labels that do not count are left out.

    Parameters
    ----------
    path
        The file. An older one is replaced.
    frames
        The frames to write.
    energy, forces, stress
        Names of the keys and of the column. The stress (nine numbers, eV/Å³) is written only if it has a name.
    mask
        Name of the column that says which forces do not count; None: no such column.
    excluded
        Value of `mask` for the forces that do not count. For all others it is the opposite.
    keys
        Other keys of ``atoms.info`` to write where a frame has them.
    """
    blocks = (_format_block(frame, energy, forces, stress, mask, excluded, keys) for frame in frames)
    write_atomically(path, lambda file: file.writelines(itertools.chain.from_iterable(blocks)))


def _format_block(
    frame: LabelledFrame,
    energy: str,
    forces: str,
    stress: str | None,
    mask: str | None,
    excluded: bool,
    keys: Sequence[str],
) -> Iterator[bytes]:
    atoms = frame.atoms
    # A force that does not count is written as zero: a program that ignores the mask must not learn noise from it.
    counted = np.where(frame.core[:, None], frame.forces, 0.0)
    columns = [("species", np.array(atoms.get_chemical_symbols())), ("pos", atoms.positions), (forces, counted)]
    if mask:
        columns.append((mask, frame.core != excluded))
    comment: dict[str, Any] = {"Lattice": np.asarray(atoms.cell)} if atoms.cell.any() else {}
    comment |= {"Properties": format_properties(columns), "pbc": np.asarray(atoms.pbc)}
    if frame.energy is not None:
        comment[energy] = frame.energy
    if stress and frame.stress is not None:
        comment[stress] = frame.stress
    comment |= {key: atoms.info[key] for key in keys if key in atoms.info}
    return format_columns(columns, comment)
