"""Runs of `freezing`: crystals of silver at a temperature, and melts that are quenched to it until they freeze."""

from __future__ import annotations

import hashlib
import inspect
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame

__all__ = ["CELLS", "EVERY", "TEMPERATURE", "Run", "frames_of", "hold_crystals", "make_runs"]

TEMPERATURE = 680  # K; the crystal melts near 1170 K
CELLS = 8  # cubic cells along each edge
EVERY = 0.5  # ps between frames
_TIMESTEP = 0.005  # ps
_HOT = 2200  # K
_LONGEST = 260.0  # ps
_AFTER = 25.0  # ps, that a run goes on after it has frozen half
_SETUP = """\
units metal
lattice {lattice}
region box block 0 {x} 0 {y} 0 {z}
create_box 1 box
create_atoms 1 box
mass 1 107.87
pair_style eam
pair_coeff * * Ag_u3.eam
velocity all create {twice} {seed} mom yes rot yes dist gaussian loop geom
timestep 0.005
thermo 1000000
"""
_LATTICES = {"fcc": ("fcc 4.13", (5, 5, 5)), "hcp": ("hcp 2.92", (6, 4, 5))}


@dataclass(frozen=True)
class Run:
    """One melt: times (ps), energy (eV per atom) of each frame and of the crystal, boxes and positions (Å)."""

    seed: int
    times: NDArray[np.float64]
    energy: NDArray[np.float64]
    crystal_energy: float
    boxes: NDArray[np.float64]
    positions: NDArray[np.float64]


def frames_of(run: Run) -> list[Frame]:
    """Return the frames of a run."""
    numbers = np.full(run.positions.shape[1], 47)
    steps = np.round(run.times / _TIMESTEP).astype(int)
    rows = zip(run.positions, run.boxes, steps.tolist(), run.times.tolist(), strict=True)
    return [Frame(x, numbers, np.diag(box), True, step=step, time=time) for x, box, step, time in rows]


def hold_crystals(folder: Path) -> dict[str, list[Frame]]:
    """Return frames of each crystal at the temperature, 1 ps apart."""
    crystals = {}
    for kind in _LATTICES:
        found = _kept(folder, _hold, kind)
        numbers = np.full(found["positions"].shape[1], 47)
        rows = zip(found["positions"], found["boxes"], strict=True)
        crystals[kind] = [Frame(x, numbers, np.diag(box), True) for x, box in rows]
    return crystals


def make_runs(folder: Path, seeds: list[int], longest: float = _LONGEST) -> list[Run]:
    """Return a run for each seed, two at a time; what was made before is kept."""
    crystal = float(_kept(folder, _hold, "fcc")["energy"].mean())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_kept, folder, _freeze, seed, crystal, longest) for seed in seeds]
        found = [job.result() for job in jobs]
    return [
        Run(seed, one["times"], one["energy"], crystal, one["boxes"], one["positions"])
        for seed, one in zip(seeds, found, strict=True)
    ]


def _kept(folder: Path, make: Any, *arguments: Any) -> dict[str, NDArray[np.float64]]:
    """Return ``make(*arguments)``, from a file in `folder` if it was made before."""
    text = repr((_SETUP, _LATTICES, inspect.getsource(make), TEMPERATURE, CELLS, EVERY, _HOT, _AFTER, arguments))
    path = folder / f"freezing-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(part, **make(*arguments))
        part.replace(path)
    with np.load(path) as file:
        return dict(file)


def _hold(kind: str) -> dict[str, NDArray[np.float64]]:
    """Hold a crystal at the temperature: 16 frames, 1 ps apart."""
    module = _start(kind, TEMPERATURE, 11, _LATTICES[kind][1])
    module.command(f"fix move all npt temp {TEMPERATURE} {TEMPERATURE} 0.2 aniso 0 0 1")
    module.command("run 2000")
    rows = [_step(module, 200) for _ in range(16)]
    module.close()
    return _columns(rows)


def _freeze(seed: int, crystal: float, longest: float) -> dict[str, NDArray[np.float64]]:
    """Melt, quench in 10 ps, and hold until the energy has fallen half way to the crystal's, and some time more."""
    module = _start("fcc", _HOT, seed, (CELLS,) * 3)
    module.command(f"fix move all npt temp {_HOT} {_HOT} 0.2 iso 0 0 1")
    module.command("run 2000")
    module.command(f"fix move all npt temp {_HOT} {TEMPERATURE} 0.2 iso 0 0 1")
    module.command("run 2000")
    module.command(f"fix move all npt temp {TEMPERATURE} {TEMPERATURE} 0.2 iso 0 0 1")
    rows: list[Any] = []
    left = longest
    while EVERY * len(rows) < left:
        rows.append(_step(module, round(EVERY / _TIMESTEP)))
        energy = [row[0] for row in rows]
        if left == longest and len(rows) > 50 and np.mean(energy[-10:]) < (np.mean(energy[20:40]) + crystal) / 2:
            left = min(longest, EVERY * len(rows) + _AFTER)
    module.close()
    return _columns(rows)


def _step(module: Any, steps: int) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Run, and return energy per atom, box and positions; atoms by id."""
    module.command(f"run {steps} post no")
    low, high = (np.array(corner) for corner in module.extract_box()[:2])
    n = module.extract_setting("nlocal")
    order = np.argsort(module.numpy.extract_atom("id")[:n])
    return module.get_thermo("pe") / n, high - low, module.numpy.extract_atom("x")[:n][order] - low


def _columns(rows: list[Any]) -> dict[str, NDArray[np.float64]]:
    energy, boxes, positions = (np.array(column) for column in zip(*rows, strict=True))
    times = EVERY * np.arange(1, len(rows) + 1)
    return {"times": times, "energy": energy, "boxes": boxes, "positions": positions}


def _start(kind: str, temperature: int, seed: int, cells: tuple[int, ...]) -> Any:
    from .melting import start_lammps

    x, y, z = cells
    lattice = _LATTICES[kind][0]
    return start_lammps(_SETUP.format(lattice=lattice, x=x, y=y, z=z, twice=2 * temperature, seed=seed))
