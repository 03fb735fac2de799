"""A program that `oracles.ByFiles` runs: PREFIX.in to PREFIX.out, by EMT."""

import json
import sys

import ase.io
from ase.calculators.emt import EMT

atoms = ase.io.read(f"{sys.argv[1]}.in", format="json")
atoms.calc = EMT()
labels = {"stress": atoms.get_stress().tolist(), "forces": atoms.get_forces().tolist()}
with open(f"{sys.argv[1]}.out", "w", encoding="utf-8") as file:
    json.dump({"energy": atoms.get_potential_energy(), **labels}, file)
