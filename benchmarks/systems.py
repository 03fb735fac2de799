"""Reference and query frames, made in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from scipy.spatial import cKDTree

FRAMES = 26  # of about 500 atoms: about 13 000 references


@dataclass
class System:
    """A reference, and one frame of the same kind to ask about."""

    name: str
    reference: list[Atoms]
    query: Atoms


def systems() -> list[System]:
    """Make the three systems; the same ones every time."""
    silicon = bulk("Si", cubic=True) * (4, 4, 4)
    copper = bulk("Cu", cubic=True) * (5, 5, 5)
    return [
        _system("Si, diamond, rattled 0.10 Å", lambda seed: _rattled(silicon, 0.10, seed)),
        _system("Cu, fcc, rattled 0.10 Å", lambda seed: _rattled(copper, 0.10, seed)),
        _system("Si, molten (random, none nearer than 2.2 Å)", _molten),
    ]


def _system(name: str, make: Callable[[int], Atoms]) -> System:
    return System(name, [make(seed) for seed in range(1, FRAMES + 1)], make(0))


def _rattled(atoms: Atoms, scale: float, seed: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(scale, seed=seed)
    return atoms


def _molten(seed: int, n: int = 512, density: float = 0.0555, closest: float = 2.2) -> Atoms:
    """Return random atoms at the density of molten silicon (1/Å³), pushed apart until none is too close."""
    length = (n / density) ** (1 / 3)
    x = np.random.default_rng(seed).random((n, 3)) * length
    for _ in range(1000):
        pairs = cKDTree(x, boxsize=length).query_pairs(closest, output_type="ndarray")
        if not len(pairs):
            break
        apart = x[pairs[:, 0]] - x[pairs[:, 1]]
        apart -= length * np.round(apart / length)
        distance = np.linalg.norm(apart, axis=1, keepdims=True)
        push = 0.5 * (closest + 0.02 - distance) * apart / distance
        np.add.at(x, pairs[:, 0], push)
        np.add.at(x, pairs[:, 1], -push)
        x %= length
    return Atoms(f"Si{n}", x, cell=np.eye(3) * length, pbc=True)
