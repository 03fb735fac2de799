"""How wrong a potential is on labelled frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
import numpy as np

from ..errors import OracleError, TrainingError
from ._compute import compute
from ._labelled import read_labels
from ._potential import Potential

__all__ = ["Errors", "errors"]


@dataclass(frozen=True)
class Errors:
    """Errors of a potential on labelled frames. Of cut-outs only the forces of the core count.

    Parameters
    ----------
    n_frames, n_energies, n_atoms
        Number of frames, of energies that count, and of atoms whose forces count.
    energy_mae, energy_rmse
        Mean absolute and root mean square error of the energy per atom, in eV; nan where no energy counts.
    force_mae, force_rmse
        The same of a component of a force, in eV/Å.
    """

    n_frames: int
    n_energies: int
    n_atoms: int
    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: nan as None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def errors(potential: Potential, frames: Sequence[ase.Atoms]) -> Errors:
    """Return the errors of a potential on frames with labels, calculated in a process that may die.

    Raises
    ------
    TrainingError
        A frame has no labels, or the potential fails on it.
    """
    labelled = read_labels(frames)
    energies, forces = [], []
    oracle = potential.as_oracle()
    for i, frame in enumerate(labelled):
        try:
            outcome = compute(oracle, frame.atoms)
        except OracleError as error:
            raise TrainingError(f"{potential.folder}: the potential cannot be used: {error}") from error
        if outcome.labels is None:
            raise TrainingError(f"{potential.folder}: the potential fails on frame {i}: {outcome.reason}")
        forces.append((outcome.labels.forces - frame.forces)[frame.core].ravel())
        if frame.energy is not None:
            energies.append((outcome.labels.energy - frame.energy) / len(frame.core))
    of_energies, of_forces = np.array(energies), np.concatenate(forces)
    return Errors(
        len(labelled),
        len(of_energies),
        len(of_forces) // 3,
        *_mae_rmse(of_energies),
        *_mae_rmse(of_forces),
    )


def _mae_rmse(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    return float(np.abs(values).mean()), float(np.sqrt((values**2).mean()))
