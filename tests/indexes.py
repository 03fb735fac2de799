"""A small index of silicon, and files for it: shared by the tests of the index."""

from __future__ import annotations

import numpy as np
from ase.build import bulk

from quests_md.index import Index


def silicon_frames():
    """Return eight rattled silicon frames of 8 and 16 atoms."""
    made = [bulk("Si", cubic=True) * (1, 1, 1 + seed % 2) for seed in range(8)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.02 + 0.02 * seed, seed=seed)
    return made


def silicon_index():
    return Index.build(silicon_frames(), sources=[{"file": "si.xyz", "sha256": "ab"}])


def written(folder, content):
    path = folder / "si.qindex"
    path.write_bytes(content)
    return path


MODES = ["ignore", "full", "centre", "neighbours"]


H = 0.03


def alloy(seed, n=3, symbols=("Cu", "Zr"), rattle=0.15):
    """Return a rattled bcc alloy of 2·n³ atoms, elements at random."""
    atoms = bulk("Cu", "bcc", a=3.3, cubic=True) * n
    rng = np.random.default_rng(seed)
    atoms.set_chemical_symbols(rng.choice(symbols, len(atoms), p=[0.7, 0.3]).tolist())
    atoms.rattle(rattle, rng=rng)
    return atoms
