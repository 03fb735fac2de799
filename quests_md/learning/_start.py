"""The frame that an exploration begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from ._job import Job

__all__ = ["start_of"]


def start_of(job: Job, elements: tuple[str, ...]) -> Any:
    """Return the start frame as ``ase.Atoms``, with velocities: its own where it goes on from there, else drawn.

    Raises
    ------
    SourceError
        It cannot be read, or holds an element that the potential does not know.
    """
    import ase.io

    path, selection = job.start, "0"
    if not Path(path).exists() and "@" in path:
        path, selection = path.rsplit("@", 1)
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file")
    try:
        # An index of one frame, so that this is no list.
        atoms = ase.io.read(path, int(selection), parallel=False, do_not_split_by_at_sign=True)
    except Exception as error:
        # What ASE's readers raise is as varied as the readers are.
        raise SourceError(f"{job.start}: ASE cannot read a frame: {type(error).__name__}: {error}") from error
    atoms.calc = None
    atoms.set_constraint()
    strange = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if strange:
        raise SourceError(f"{job.start} holds {', '.join(strange)}; the potential knows {', '.join(elements)}")
    if job.pressure is not None and not atoms.pbc.all():
        raise SourceError(f"{job.start}: a pressure needs a frame that is periodic in three directions")
    if not job.continues or "momenta" not in atoms.arrays:
        _draw(atoms, job.temperature, job.seed)
    return atoms


def _draw(atoms: Any, temperature: float, seed: int) -> None:
    """Give atoms velocities of a temperature (K), without motion of the whole."""
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.RandomState(seed))
    if len(atoms) > 1:  # one atom alone would be left without any
        Stationary(atoms)
