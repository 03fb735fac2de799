"""Make the frames to train on: a copper crystal at 300, 600 and 900 K, labelled by EMT: python frames.py training.xyz.

EMT, a fast potential of ASE, stands for DFT.
"""

from __future__ import annotations

import sys

import ase.io
import ase.units
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin

TEMPERATURES = (300, 600, 900)  # K
FRAMES = 25  # at each, 100 fs apart


def make_frames(temperature: float, n: int, seed: int) -> list[ase.Atoms]:
    """Return n labelled frames of 32 atoms, after 0.5 ps at a temperature."""
    atoms = bulk("Cu", cubic=True, a=3.61 * (1 + 1.7e-5 * temperature)) * (2, 2, 2)  # it expands
    atoms.calc, rng = EMT(), np.random.default_rng(seed)
    thermal = np.sqrt(ase.units.kB * temperature / atoms.get_masses())
    atoms.set_velocities(thermal[:, None] * rng.normal(size=(len(atoms), 3)))
    friction = 0.02 / ase.units.fs
    dyn = Langevin(atoms, 5 * ase.units.fs, temperature_K=temperature, friction=friction, rng=rng, fixcm=False)
    dyn.run(100)
    frames = []
    for _ in range(n):
        dyn.run(20)
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frames.append(frame)
    return frames


def main() -> None:
    """Write the file that the command line names."""
    frames = [frame for seed, t in enumerate(TEMPERATURES) for frame in make_frames(t, FRAMES, seed)]
    ase.io.write(sys.argv[1], frames, format="extxyz")
    print(f"{sys.argv[1]}: {len(frames)} frames of {len(frames[0])} atoms")


if __name__ == "__main__":
    main()
