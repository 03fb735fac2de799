"""Train a small DeePMD model on the labelled frames of a file: python train.py training.xyz FOLDER SEED [--steps N].

The folder gets graph.pb, which LAMMPS (pair_style deepmd) and ASE (deepmd.calculator.DP) read. The model is tiny: it
learns in seconds what a copper crystal needs, and is no model to publish with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np


def write_data(frames: list, folder: Path, elements: list[str]) -> list[str]:
    """Write frames as DeePMD reads them, a system for each composition; return the folders."""
    systems: dict[str, list] = {}
    for atoms in frames:
        order = np.argsort(atoms.numbers, kind="stable")
        systems.setdefault(atoms[order].get_chemical_formula("reduce"), []).append((atoms, order))
    names = []
    for name, some in systems.items():
        system = folder / name
        (system / "set.000").mkdir(parents=True, exist_ok=True)
        atoms, order = some[0]
        np.savetxt(system / "type.raw", [elements.index(s) for s in atoms[order].symbols], fmt="%d")
        (system / "type_map.raw").write_text("\n".join(elements) + "\n")
        values = {
            "coord": [atoms.positions[order].ravel() for atoms, order in some],
            "box": [atoms.cell.array.ravel() for atoms, _ in some],
            "energy": [atoms.get_potential_energy() for atoms, _ in some],
            "force": [atoms.get_forces(apply_constraint=False)[order].ravel() for atoms, order in some],
        }
        for key, value in values.items():
            np.save(system / "set.000" / f"{key}.npy", np.array(value))
        names.append(str(system))
    return names


def settings(systems: list[str], elements: list[str], seed: int, steps: int) -> dict:
    """Return the input of `dp train`."""
    return {
        "model": {
            "type_map": elements,
            "descriptor": {
                "type": "se_e2_a", "sel": [80] * len(elements), "rcut_smth": 2.0, "rcut": 4.5,
                "neuron": [8, 16], "axis_neuron": 4, "seed": seed,
            },
            "fitting_net": {"neuron": [32, 32], "seed": seed},
        },
        "learning_rate": {"type": "exp", "start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": max(1, steps // 20)},
        "loss": {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 1000.0, "limit_pref_f": 1.0},
        "training": {
            "training_data": {"systems": systems, "batch_size": 4},
            "numb_steps": steps, "seed": seed, "disp_freq": max(1, steps // 5), "save_freq": steps,
        },
    }  # fmt: skip


def main() -> None:
    """Train, and freeze."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("training", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    frames = ase.io.read(options.training, ":")
    elements = sorted({symbol for atoms in frames for symbol in atoms.symbols})
    systems = write_data(frames, options.folder.absolute() / "data", elements)
    content = settings(systems, elements, options.seed, options.steps)
    (options.folder / "input.json").write_text(json.dumps(content, indent=1))
    dp = str(Path(sys.executable).parent / "dp")
    for arguments in (["train", "input.json"], ["freeze", "-o", "graph.pb"]):
        subprocess.run([dp, "--tf", *arguments], cwd=options.folder, check=True)


if __name__ == "__main__":
    main()
