"""After a training: the residuals of the new potential go into the index of its generation, with what they mean."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import ase
import numpy as np

from ..errors import CalibrationError, InputError, LearningError, OracleError, TrainingError
from ..index import Index, Residuals, calibrate, fit_local_bound, match_residuals
from ..sources import ReadForces, to_frame
from ..training import Potential, Trainer, make_trainer
from ..training._cross_validation import cross_validate
from ..training._model_forces import compute_forces, fingerprint_potential
from ..training._records import TrainingRecord
from ._loop_folder import read_file
from ._stages import Work, list_frames

__all__ = ["Trained", "add_residuals", "fill_residuals", "is_fast"]

# Seconds of a training beyond which it is not repeated for each fold: an exploration takes some minutes.
_FAST = 300.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A potential, and how it was trained.

    Attributes
    ----------
    name
        What its residuals are called.
    potential
        The potential.
    trainer, seed
        What trained it.
    is_fast
        Whether the training may be repeated for each fold of a cross-validation.
    folder
        A folder for these potentials, which is removed again.
    """

    name: str
    potential: Potential
    trainer: Trainer
    seed: int
    is_fast: bool
    folder: Path


def fill_residuals(work: Work, generation: int) -> None:
    """Write into the index of a generation how wrong its potential is on each environment.

    Raises
    ------
    LearningError
        There are no residuals, and the loop needs them to select.
    """
    path = work.folder.index(generation)
    potential, index = Potential.open(work.folder.training(generation)), Index.open(path)
    name = work.folder.generation(generation).name
    if [(one.name, one.fingerprint) for one in index.residuals] == [(name, fingerprint_potential(potential))]:
        return
    frames, why = list_frames(work, generation), list[str]()
    started = work.begin(generation, "residuals", len(frames))

    def say(text: str) -> None:
        why.append(text)
        work.report.step(0, text)

    trainer, seed = make_trainer(work.config.trainer), work.seed(generation, 0)
    seconds = read_file(TrainingRecord, work.folder.trained(generation)).seconds
    folder = work.folder.generation(generation) / "fold"
    trained = Trained(name, potential, trainer, seed, is_fast(trainer, seconds, _FAST), folder)
    made = add_residuals(index, frames, trained, say, work.report.step)
    made.save(path)
    work.end(generation, "residuals", started)
    by = work.config.select_by
    if by != "dH" and not made.residuals:
        raise LearningError(
            f'generation {generation}: select_by = "{by}" needs the force errors of the potential on its training '
            f"frames, and they cannot be had: {'; '.join(why)}. Correct that and start the loop again; or select by "
            '"dH", in another output'
        )


def is_fast(trainer: Trainer, seconds: float, limit: float) -> bool:
    """Return whether a trainer says that it is quick, and the training took less than `limit` seconds."""
    return bool(getattr(trainer, "quick", False)) and seconds < limit


def add_residuals(
    index: Index,
    frames: Sequence[ase.Atoms],
    trained: Trained,
    say: Callable[[str], None],
    count: Callable[[int], None],
) -> Index:
    """Return an index with the residuals of a potential alone, and with what they say of errors if that can be fitted.

    The residuals are cross-validated if the training is fast: each is that of a fit without the frame. Otherwise, and
    if a fit of a fold fails, they are those of the potential on what it was trained on. If these fail, too, there are
    none.

    Parameters
    ----------
    index
        The index; it does not change.
    frames
        The labelled frames that the potential was trained on. All must be in the index.
    trained
        The potential, and how it was trained.
    say
        Is told why there are no residuals.
    count
        Is told how many frames are done.
    """
    labelled = list(_read(frames))
    for origin in ["cross-validated", "training"] if trained.is_fast else ["training"]:
        try:
            residuals = _match(index, _count(_compute(trained, labelled, origin), count), trained, origin)
        except (InputError, OracleError, TrainingError) as error:
            say(f"no residuals ({origin}): {' '.join(str(error).split())}")
        else:
            return _calibrate(index.with_residuals(residuals))
    return index.with_residuals()


def _calibrate(index: Index) -> Index:
    """Fit what the residuals of an index say of errors, if there are structures enough for that."""
    try:
        calibration = index.calibration or calibrate(index)
        index.calibration = dataclasses.replace(calibration, local_error=fit_local_bound(index))
    except CalibrationError:
        pass  # local residuals rank errors without it, too
    return index


def _read(frames: Iterable[ase.Atoms]) -> Iterator[ReadForces]:
    """Yield the labelled frames that have environments in an index."""
    for number, atoms in enumerate(frames):
        frame = to_frame(atoms)
        oracle = np.asarray(atoms.get_forces(apply_constraint=False), np.float64)[frame.centres]
        if len(oracle):
            yield ReadForces(f"labelled frame {number}", frame, atoms, oracle, None)


def _compute(trained: Trained, labelled: Sequence[ReadForces], origin: str) -> Iterator[ReadForces]:
    """Yield the frames with the forces of the potential, or of fits that lack them."""
    if origin == "training":
        return compute_forces(trained.potential.as_oracle(), labelled)
    return cross_validate(trained.trainer, labelled, trained.folder, seed=trained.seed)


def _count(forces: Iterable[ReadForces], count: Callable[[int], None]) -> Iterator[ReadForces]:
    for done, one in zip(itertools.count(1), forces):
        count(done)
        yield one


def _match(index: Index, forces: Iterable[ReadForces], trained: Trained, origin: str) -> Residuals:
    read = list(forces)
    errors, where = [(one.frame, one.errors()) for one in read], [one.where for one in read]
    digest = fingerprint_potential(trained.potential)
    return match_residuals(index, errors, name=trained.name, fingerprint=digest, origin=origin, where=where)
