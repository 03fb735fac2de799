"""A small loop that really runs: copper, labelled by EMT, POD, a fraction of a picosecond. Shared by its tests."""

from __future__ import annotations

import ase.io
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from paths import ROOT, TESTS

from quests_md.config import _toml
from quests_md.learning import LearnConfig


def copper(rattle, seed, strain=1.0):
    """Return 32 labelled atoms."""
    atoms = bulk("Cu", cubic=True, a=3.6 * strain) * (2, 2, 2)
    atoms.rattle(rattle, seed=seed)
    atoms.calc = EMT()
    atoms.calc = SinglePointCalculator(
        atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces(), stress=atoms.get_stress()
    )
    return atoms


def write_frames(folder):
    """Write the files that a loop begins with."""
    ase.io.write(folder / "training.xyz", [copper(0.02 + 0.005 * (i % 4), i) for i in range(10)])
    ase.io.write(folder / "held_out.xyz", [copper(0.06 + 0.01 * i, 100 + i) for i in range(5)])
    ase.io.write(folder / "start.xyz", bulk("Cu", cubic=True, a=3.6) * (2, 2, 2))


def settings(folder, **changes):
    """Return what learn.toml says; `changes` by table, or top-level keys."""
    values = {
        "training": str(folder / "training.xyz"),
        "held_out": str(folder / "held_out.xyz"),
        "output": str(folder / "out"),
        "seed": 5,
        "budget": 4,
        "index": {"bandwidth": 0.02},
        "oracle": {
            "calculator": "counted:Counted",
            "keywords": {"log": str(folder / "calls")},
            "environment": {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"},
        },
        "trainer": {
            "kind": "pod",
            "parameters": {
                "rin": 1.0,
                "rcut": 4.5,
                "bessel_polynomial_degree": 3,
                "inverse_polynomial_degree": 4,
                "twobody_number_radial_basis_functions": 4,
                "threebody_number_radial_basis_functions": 2,
                "threebody_angular_degree": 2,
                "fourbody_number_radial_basis_functions": 0,
                "fourbody_angular_degree": 0,
            },
        },
        "explore": {
            "start": str(folder / "start.xyz"),
            "temperature": [300.0, 900.0],
            "time": 0.2,
            "timestep": 2.0,
            "workers": 2,
        },
        "monitor": {"select": 0.0, "halt": 30.0, "every": 5, "consecutive": 1, "novelty": False},
        "stop": {"force_error": 0.06, "covered": 0.98, "generations": 6},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if both else value
    return values


def config(folder, **changes):
    """Return such a configuration, its files written."""
    if not (folder / "training.xyz").exists():
        write_frames(folder)
    return LearnConfig.make(settings(folder, **changes))


def calls(folder):
    """Return the digests of the frames that the oracle has calculated."""
    path = folder / "calls"
    return path.read_text().split() if path.exists() else []


def written(folder, **changes):
    """Write learn.toml, and the files that it names; return its path."""
    write_frames(folder)
    path, values = folder / "learn.toml", settings(folder, **changes)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for table, of in values.items():
        if isinstance(of, dict):
            lines += [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in of.items())]
    path.write_text("\n".join(lines) + "\n")
    return path
