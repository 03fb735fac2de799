"""JSON files that hold a pydantic model: how they are read and written; and the two files of a training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from ..errors import QuestsError, TrainingError
from ..files import write_atomically
from ..labelling._oracle_settings import check_call

__all__ = [
    "Errors", "PotentialRecord", "TrainedFrame", "TrainingErrors", "TrainingRecord", "read_record", "write_record",
]  # fmt: skip

_Record = TypeVar("_Record")


def read_record(
    kind: type[_Record], path: Path, what: str, advice: str = "", error: type[QuestsError] = TrainingError
) -> _Record:
    """Read a file that `write_record` wrote.

    Raises
    ------
    QuestsError
        Of class `error`: the file cannot be read, or it is not `what`. The message has the first wrong key, and advice.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise error(f"{path}: not {what}: {key}: {first['msg']}{advice}") from problem


def write_record(path: Path, record: Any) -> None:
    """Write a model or dataclass to a JSON file, atomically."""
    values = pydantic.TypeAdapter(type(record)).dump_python(record, mode="json")
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


# -- potential.json ----------------------------------------------------------------------------------------------------


class PotentialRecord(pydantic.BaseModel, frozen=True, extra="forbid"):
    """potential.json, in the folder of a potential."""

    format: Literal[1] = 1
    elements: tuple[str, ...]
    lammps: tuple[str, ...]
    calculator: Annotated[dict[str, Any] | None, pydantic.AfterValidator(check_call)]
    files: tuple[str, ...]


# -- training.json -----------------------------------------------------------------------------------------------------

# nan is null in a file: JSON lacks it.
_Measured = Annotated[
    float,
    pydantic.BeforeValidator(lambda value: math.nan if value is None else value),
    pydantic.PlainSerializer(lambda value: None if math.isnan(value) else value),
]


@dataclass(frozen=True)
class Errors:
    """Errors of a potential on labelled frames. Of cut-outs only the forces of the core count.

    Parameters
    ----------
    n_frames, n_energies, n_atoms
        Number of frames, of energies that count, and of atoms whose forces count.
    energy_mae, energy_rmse
        Mean absolute and root mean square error of the energy per atom, in eV; nan if no energy counts.
    force_mae, force_rmse
        The same of a component of a force, in eV/Å.
    """

    n_frames: int
    n_energies: int
    n_atoms: int
    energy_mae: _Measured
    energy_rmse: _Measured
    force_mae: _Measured
    force_rmse: _Measured

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: nan as None."""
        values: dict[str, Any] = pydantic.TypeAdapter(Errors).dump_python(self)
        return values


class TrainedFrame(pydantic.BaseModel, frozen=True):
    """A frame that was trained on: its digest, its atoms, those in its core, and where it comes from."""

    digest: str
    n_atoms: int
    n_core: int
    source: dict[str, Any]


class TrainingErrors(pydantic.BaseModel, frozen=True):
    """The errors on the frames trained on, and on the independent ones, if there are any."""

    training: Errors
    held_out: Errors | None


class TrainingRecord(pydantic.BaseModel, frozen=True):
    """training.json, in the folder of a potential: what trained, on which frames, with which errors."""

    trainer: str
    settings: dict[str, Any] | None
    seed: int
    frames: list[TrainedFrame]
    held_out: list[TrainedFrame]
    errors: TrainingErrors
    seconds: float
    versions: dict[str, str]
