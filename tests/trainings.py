"""Labelled frames, and trainers that need no more than they do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

# A POD potential that is fitted in a moment.
SMALL = {
    "rcut": 5.0,
    "rin": 1.0,
    "twobody_number_radial_basis_functions": 6,
    "threebody_number_radial_basis_functions": 4,
    "threebody_angular_degree": 3,
    "fourbody_number_radial_basis_functions": 0,
    "fourbody_angular_degree": 0,
}


def with_labels(atoms: Atoms, energy: float, forces: Any, stress: Any = None) -> Atoms:
    """Return a copy that holds these labels."""
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces, stress=stress)
    return copy


def labelled(atoms: Atoms) -> Atoms:
    """Return a copy with the labels of EMT."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())


def copper(seed: int, silver: bool = False, amplitude: float = 0.1) -> Atoms:
    """Return eight labelled atoms of rattled copper, or of copper and silver."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    if silver:
        atoms.numbers[seed % 3 :: 3] = 47
    atoms.rattle(amplitude, seed=seed)
    return labelled(atoms)


def cut_out(atoms: Atoms, core: Any, garbage: int | None = None) -> Atoms:
    """Return a labelled frame as a cut-out; with a seed, all labels that must not be trained on are wrong."""
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    if garbage is not None:
        rng = np.random.default_rng(garbage)
        forces = np.where(np.asarray(core)[:, None], forces, rng.normal(0, 30, forces.shape))
        energy += rng.normal(0, 30)
    cut = with_labels(atoms, energy, forces, np.full(6, 0.0 if garbage is None else 9.0))
    cut.info.update(fit="forces of core atoms only", cutout=True)
    cut.arrays["core"] = np.asarray(core)
    return cut


def python(code: str, **more: Any) -> dict[str, Any]:
    """Return settings of a trainer that is a line of Python: it gets the training file and the folder."""
    settings = {
        "kind": "command",
        "command": [sys.executable, "-c", code, "{training}", "{folder}", "{seed}", "{elements}", "{other} {x:1}"],
        "files": ["out.txt"],
        "calculator": {"call": "ase.calculators.emt:EMT"},
    }
    return settings | more


GAP = {
    "kind": "command",
    "command": [
        str(Path(sys.executable).with_name("gap_fit")),
        "atoms_filename={training}",
        "gap={soap l_max=3 n_max=4 cutoff=4.5 cutoff_transition_width=0.8 atom_sigma=0.5 delta=1.0"
        " covariance_type=dot_product zeta=2 n_sparse=50 sparse_method=cur_points}",
        "default_sigma={0.001 0.02 0.05 0.0}",
        "e0=0.0",
        "force_parameter_name=forces",
        "force_mask_parameter_name=force_mask",
        "gp_file=gap.xml",
        "rnd_seed={seed}",
        "do_copy_atoms_file=F",
        "sparse_separate_file=F",
    ],
    "files": ["gap.xml"],
    "calculator": {"call": "quippy.potential:Potential", "param_filename": "{folder}/gap.xml"},
    "mask_column": "force_mask",
    "environment": {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
}
