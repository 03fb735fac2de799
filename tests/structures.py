"""Structures that tests share, by name, and a dense packing at random."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk


def packing(n, cell, smallest, seed, numbers=14, pbc=True):
    """Return n atoms put one by one at random, none nearer than `smallest` (Å) to another or to its image."""
    rng, cell = np.random.default_rng(seed), np.asarray(cell, float)
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3) @ cell
    positions = np.empty((0, 3))
    for _ in range(100_000):
        candidate = rng.random(3) @ cell
        if not (np.linalg.norm(positions[:, None] + shifts - candidate, axis=-1) < smallest).any():
            positions = np.vstack([positions, candidate])
            if len(positions) == n:
                return Atoms(np.broadcast_to(numbers, n), positions, cell=cell, pbc=pbc)
    raise AssertionError("the packing is too dense")


def _rattled(atoms):
    """Move atoms, so that no two neighbours tie: a tie at the k-th has no answer of its own."""
    atoms.rattle(0.05, seed=7)
    return atoms


STRUCTURES = {
    "si": lambda: bulk("Si", cubic=True),
    "si_rattled": lambda: _rattled(bulk("Si", cubic=True) * (2, 2, 2)),
    "fe": lambda: _rattled(bulk("Fe", cubic=True) * (2, 2, 2)),
    "cu": lambda: _rattled(bulk("Cu", cubic=True) * (2, 2, 2)),
    "mg": lambda: _rattled(bulk("Mg") * (3, 2, 2)),
    "nacl": lambda: _rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True)),
    "triclinic": lambda: packing(14, [[7.0, 0.0, 0.0], [2.5, 6.5, 0.0], [-1.8, 2.9, 7.2]], 2.0, 3),
    "molten": lambda: packing(45, np.eye(3) * 9.6, 2.0, 5),
    "small": lambda: packing(3, [[3.1, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.6, 0.9, 4.2]], 1.5, 1),
    "sparse": lambda: packing(5, [[7.0, 0.0, 0.0], [0.4, 8.0, 0.0], [0.0, 0.3, 9.0]], 2.0, 2),
    "one": lambda: packing(1, [[2.6, 0.0, 0.0], [0.3, 2.9, 0.0], [0.2, -0.4, 3.3]], 1.0, 4),
}
