"""The stage after the training: the residuals of the new potential go into the index of its generation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..errors import InputError, OracleError, TrainingError
from ..index import Index, Residuals, match_residuals
from ..sources import ReadForces, to_frame
from ..training import Potential, make_trainer
from ..training._cross_validation import cross_validate
from ..training._model_forces import compute_forces, fingerprint_potential
from ..training._records import TrainingRecord
from ._loop_folder import read_file
from ._stages import Work, list_frames

__all__ = ["fill_residuals"]

# Seconds of a training beyond which it is not repeated for each fold: an exploration takes some minutes.
_FAST = 300.0


def fill_residuals(work: Work, generation: int) -> None:
    """Write into the index of a generation how wrong its potential is on each environment.

    The residuals are cross-validated if the trainer says that it is quick, and it was: each is that of a fit without
    the frame. Otherwise, and if a fit of a fold fails, they are those of the potential on what it was trained on. If
    these fail, too, the index has none: the loop does not need them.
    """
    path = work.folder.index(generation)
    potential, index = Potential.open(work.folder.training(generation)), Index.open(path)
    name, digest = work.folder.generation(generation).name, fingerprint_potential(potential)
    if [(one.name, one.fingerprint) for one in index.residuals] == [(name, digest)]:
        return
    labelled = _read(work, generation)
    started = work.begin(generation, "residuals", len(labelled))
    found = []
    for origin in ["cross-validated", "training"] if _is_fast(work, generation) else ["training"]:
        try:
            forces = _count(work, _compute(work, generation, potential, labelled, origin))
            found = [_match(index, forces, name, digest, origin)]
            break
        except (InputError, OracleError, TrainingError) as error:
            work.report.step(0, f"no residuals ({origin}): {' '.join(str(error).split())}")
    index.with_residuals(*found).save(path)
    work.end(generation, "residuals", started)


def _read(work: Work, generation: int) -> list[ReadForces]:
    """Return the labelled frames of a generation that have environments in its index."""
    labelled = []
    for number, atoms in enumerate(list_frames(work, generation)):
        frame = to_frame(atoms)
        oracle = np.asarray(atoms.get_forces(apply_constraint=False), np.float64)[frame.centres]
        if len(oracle):
            labelled.append(ReadForces(f"labelled frame {number}", frame, atoms, oracle, None))
    return labelled


def _is_fast(work: Work, generation: int) -> bool:
    seconds = read_file(TrainingRecord, work.folder.trained(generation)).seconds
    return getattr(make_trainer(work.config.trainer), "quick", False) and seconds < _FAST


def _compute(
    work: Work, generation: int, potential: Potential, labelled: Sequence[ReadForces], origin: str
) -> Iterator[ReadForces]:
    """Yield the frames with the forces of the potential, or of fits that lack them."""
    if origin == "training":
        return compute_forces(potential.as_oracle(), labelled)
    folder, seed = work.folder.generation(generation) / "fold", work.seed(generation, 0)
    return cross_validate(make_trainer(work.config.trainer), labelled, folder, seed=seed)


def _count(work: Work, forces: Iterable[ReadForces]) -> Iterator[ReadForces]:
    for done, one in zip(itertools.count(1), forces):
        work.report.step(done)
        yield one


def _match(index: Index, forces: Iterable[ReadForces], name: str, fingerprint: str, origin: str) -> Residuals:
    read = list(forces)
    errors, where = [(one.frame, one.errors()) for one in read], [one.where for one in read]
    return match_residuals(index, errors, name=name, fingerprint=fingerprint, origin=origin, where=where)
