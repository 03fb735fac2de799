"""Cross-validation: the forces of fits that have not seen the frame."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..labelling import digest
from ..sources import ReadForces
from ._model_forces import compute_forces
from ._trainer import Trainer

__all__ = ["FOLDS", "cross_validate"]

FOLDS = 4


def cross_validate(
    trainer: Trainer, labelled: Sequence[ReadForces], folder: Path, *, seed: int = 0, folds: int = FOLDS
) -> Iterator[ReadForces]:
    """Yield labelled frames with the forces of a potential that was trained without them.

    The frames are dealt to folds in turn, so that each fold has all kinds of frames. Copies are in one fold.

    Parameters
    ----------
    trainer
        What trains.
    labelled
        The frames, with labels that it can be trained on.
    folder
        Folder for the potentials, one after the other. It is removed at the end.
    seed
        Seed of the trainer.
    folds
        Number of folds: as many trainings.

    Yields
    ------
    ReadForces
        The frames of the first fold, then those of the second, ...

    Raises
    ------
    InputError
        There are fewer different frames than two in each fold; or a potential fails on a frame.
    TrainingError
        A training made no potential.
    """
    fold = _deal(labelled, folds)
    try:
        for number in range(folds):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            rest = [one.atoms for one, of in zip(labelled, fold, strict=True) if of != number]
            potential = trainer.train(rest, folder, seed=seed)
            yield from compute_forces(
                potential.as_oracle(), [one for one, of in zip(labelled, fold, strict=True) if of == number]
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deal(labelled: Sequence[ReadForces], folds: int) -> NDArray[np.int64]:
    """Return the fold of each frame."""
    number: dict[str, int] = {}
    for one in labelled:
        number.setdefault(digest(one.atoms), len(number))
    if len(number) < 2 * folds:
        raise InputError(f"{len(number)} different frames are too few for a cross-validation with {folds} folds")
    return np.array([number[digest(one.atoms)] % folds for one in labelled])
