"""What the tests of cut-outs cut from, and how they look at it."""

from __future__ import annotations

import functools
import math

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.neighborlist import neighbor_list
from structures import packing

from quests_md import DescriptorSpec, Frame
from quests_md.selection import cutouts

CUTOFF = 4.0
SPEC = DescriptorSpec(k=32, cutoff=CUTOFF, species="ignore")


def rattled(atoms, scale=0.1, seed=3):
    atoms.rattle(scale, seed=seed)
    return atoms


def slab():
    atoms = rattled(fcc111("Cu", (11, 12, 3), vacuum=None, orthogonal=True))
    atoms.cell[2] = 0.0  # no vector where nothing is periodic
    return atoms


def bent_slab():
    """A thick slab, cut in all directions: the one without periodicity is not upright."""
    atoms = bulk("Cu", cubic=True) * (8, 8, 12)
    atoms.cell[2] = [3.0, 1.0, 60.0]
    atoms.pbc = (True, True, False)
    return rattled(atoms)


def film():
    """A slab whose vacuum is periodic, too: a face of the cell lies in it, the other one in the metal."""
    atoms = bulk("Cu", cubic=True) * (7, 7, 6)
    atoms.cell[2, 2] = 60.0
    return rattled(atoms)


def wire():
    """Larger than the cut-out along one direction only."""
    return rattled(bulk("Si", cubic=True) * (2, 2, 8))


PARENTS = {
    "crystal": lambda: rattled(bulk("Si", cubic=True) * (6, 6, 6)),
    "perfect crystal": lambda: bulk("Cu", cubic=True) * (8, 8, 8),
    "liquid": lambda: packing(430, np.eye(3) * 22.0, 2.2, 5),
    "triclinic": lambda: rattled(bulk("Si") * (7, 8, 9), 0.3),
    "salt": lambda: rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (6, 6, 6)),
    "slab": slab,
    "bent slab": bent_slab,
    "film": film,
    "wire": wire,
    "small": lambda: rattled(bulk("Si", cubic=True)),
    "one atom": lambda: Atoms("Ar", cell=[[2.6, 0.0, 0.0], [0.3, 2.9, 0.0], [0.2, -0.4, 3.3]], pbc=True),
    "lone atom": lambda: Atoms("Ar"),
    "cluster": lambda: packing(300, np.eye(3) * 20.0, 2.2, 6, pbc=False),
}
RADIUS = 2.5


@functools.cache
def parents(name):
    """Return a parent by name, its frame, and a dH that makes the atom 0, at a corner of the cell, the worst."""
    atoms = PARENTS[name]()
    dH = -np.linalg.norm(atoms.positions - atoms.positions[0], axis=1) / 10.0
    return atoms, Frame.from_atoms(atoms, step=70, time=0.35), dH


def cut_one(frame, dH, **more):
    (cut,) = cutouts(frame, dH, CUTOFF, **{"threshold": -1e6, "radius": RADIUS, "most": 1, **more})
    return cut


def atoms_of(frame):
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


def smallest_distance(atoms, reach):
    lengths = neighbor_list("d", atoms, reach)
    return lengths.min() if len(lengths) else math.inf
