"""Reference and query frames, made in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk, diamond100, diamond111
from scipy.spatial import cKDTree

FRAMES = 26  # of about 500 atoms: about 13 000 references


@dataclass
class System:
    """A reference, and frames of the same kind to ask about: about 500 atoms."""

    name: str
    reference: list[Atoms]
    query: list[Atoms]


def systems() -> list[System]:
    """Make the four systems; the same ones every time."""
    silicon = bulk("Si", cubic=True) * (4, 4, 4)
    copper = bulk("Cu", cubic=True) * (5, 5, 5)
    return [
        _system("Si, diamond, rattled 0.10 Å", lambda seed: _rattled(silicon, 0.10, seed)),
        _system("Cu, fcc, rattled 0.10 Å", lambda seed: _rattled(copper, 0.10, seed)),
        _system("Si, molten (random, none nearer than 2.2 Å)", _molten),
        _mixed(),
    ]


def _system(name: str, make: Callable[[int], Atoms]) -> System:
    return System(name, [make(seed) for seed in range(1, FRAMES + 1)], [make(0)])


def _mixed() -> System:
    """Return what a set for training is made of: small cells of many kinds, and a few of each to ask about."""
    frames = [_of_a_set(seed) for seed in range(8 * (FRAMES + 1))]
    return System("Si, mixed (as a training set)", frames[8:], frames[:8])


def _of_a_set(seed: int) -> Atoms:
    """Return a cell of about 64 atoms: thermal, strained, with a vacancy, a surface, or molten, by turns."""
    rng, kind = np.random.default_rng(seed), seed % 8
    cell = bulk("Si", cubic=True) * (2, 2, 2)
    if kind < 2:  # from cold to close to melting
        return _rattled(cell, rng.uniform(0.03, 0.25), seed)
    if kind < 4:
        strain = rng.uniform(-0.1, 0.1) * np.eye(3) if kind == 2 else np.diag(rng.uniform(-0.06, 0.06, 3))
        shear = np.triu(rng.uniform(-0.06, 0.06, (3, 3)), 1) * (kind == 3)
        cell.set_cell(cell.cell.array @ (np.eye(3) + strain + shear), scale_atoms=True)
        return _rattled(cell, rng.uniform(0.0, 0.1), seed)
    if kind == 4:
        del cell[int(rng.integers(len(cell)))]
        return _rattled(cell, rng.uniform(0.05, 0.2), seed)
    if kind == 5:
        make, layers = (diamond100, 8) if rng.random() < 0.5 else (diamond111, 6)
        return _rattled(make("Si", (3, 3, layers), vacuum=6.0, periodic=True), rng.uniform(0.03, 0.15), seed)
    return _molten(seed, n=64, density=rng.uniform(0.048, 0.060))


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
