"""Make the frames that the loop begins with, without labels: crystal, held_out and start, of 8 atoms each.

    python frames.py [--small]

A crystal whose atoms are moved at random: little at first (0.05 Å), more for the test (0.12 Å).
"""

from __future__ import annotations

import sys

import ase.io
import numpy as np
from ase.build import bulk

LATTICE = 5.46  # Å: where the stress of this functional and cutoff is zero


def rattled(size: float, seed: int, strain: float) -> ase.Atoms:
    atoms = bulk("Si", cubic=True, a=LATTICE * (1 + strain))
    atoms.positions += np.random.default_rng(seed).normal(0, size, atoms.positions.shape)
    return atoms


def main() -> None:
    small = "--small" in sys.argv
    strains = (-0.01, 0.0, 0.01)
    made = {
        "crystal_frames.xyz": [rattled(0.05, seed, strains[seed % 3]) for seed in range(4 if small else 16)],
        "held_out_frames.xyz": [rattled(0.12, 100 + seed, strains[seed % 3]) for seed in range(2 if small else 6)],
        "start.xyz": [rattled(0.0, 0, strain) for strain in strains],
    }
    for name, frames in made.items():
        ase.io.write(name, frames, format="extxyz")
        print(f"{name}: {len(frames)} frames of {len(frames[0])} atoms")


if __name__ == "__main__":
    main()
