"""Silicon whose atoms forget where they were, and labelled frames: shared by the tests of calibrations."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from quests_md.frame import Frame
from quests_md.index import Residuals, calibrate, fit_local_bound

MEMORY = 8.0  # frames
RESIDUALS = {"name": "SW", "fingerprint": "0" * 64, "origin": "training"}


def moving(n, seed, scale=0.06, repeat=(1, 1, 2), memory=MEMORY, **more):
    """Return n frames of silicon: each atom moves about its place, and forgets exponentially where it was."""
    perfect = bulk("Si", cubic=True) * repeat
    rng, shape = np.random.default_rng(seed), perfect.positions.shape
    keep = math.exp(-1.0 / memory) if memory else 0.0
    at, frames = rng.normal(0.0, scale, shape), []
    for _ in range(n):
        frames.append(Frame(perfect.positions + at, perfect.numbers, np.array(perfect.cell), True, **more))
        at = keep * at + math.sqrt(1.0 - keep**2) * rng.normal(0.0, scale, shape)
    return frames


def labelled(frames, seed=0):
    """Return ``ase.Atoms`` of frames, with forces and those of a model that is wrong by about 0.1 eV/Å."""
    from ase import Atoms

    rng, out = np.random.default_rng(seed), []
    for frame in frames:
        atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        forces = rng.normal(0.0, 1.0, frame.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, forces=forces, energy=0.0)
        atoms.arrays["model_forces"] = forces + rng.normal(0.0, 0.06, forces.shape)
        out.append(atoms)
    return out


def with_errors(index, seed=0):
    """Return an index with residuals that grow with the distance from the mean, and a calibration of them."""
    size = np.linalg.norm(index.rows.astype(float), axis=1)
    errors = 0.5 * size * (0.5 + np.random.default_rng(seed).random(len(size)))
    index = index.with_residuals(Residuals(**RESIDUALS, values=errors))
    calibration = calibrate(index, threads=1)
    return dataclasses.replace(
        index, calibration=dataclasses.replace(calibration, local_error=fit_local_bound(index, coverage=0.8, threads=1))
    )
