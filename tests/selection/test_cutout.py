"""Cut-outs: the core is as in the parent, and the boundaries are sound."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from cut_parents import CUTOFF, PARENTS, RADIUS, SPEC, atoms_of, cut_one, parents, rattled, smallest_distance
from rounding import assert_promised

from quests_md import DescriptorSpec, Frame, Index
from quests_md.selection import cutouts

# -- the core ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@pytest.mark.parametrize("name", PARENTS)
def test_the_core_has_the_descriptors_of_the_parent(name, shape):
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
def test_the_core_is_all_that_is_within_the_radius(name, shape):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH, shape=shape)
    i, j = neighbor_list("ij", atoms, RADIUS)
    expected = {0, *j[i == 0].tolist()}
    got = set(cut.frame.ids[cut.core].tolist())
    assert got == (set(range(len(atoms))) if "everything" in cut.info["fit"] else expected)
    assert ("everything" in cut.info["fit"]) == ((name, shape) == ("small", "cell"))
    assert cut.info["n_core"] == cut.core.sum()


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@pytest.mark.parametrize("name", PARENTS)
def test_all_within_radius_and_margin_is_as_it_was(name, shape):
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
        assert_promised(index.delta_entropy(cut.frame), cut.dH[cut.core])
        np.testing.assert_array_equal(cut.dH[cut.core], dH[cut.frame.ids[cut.core]])


# -- the boundaries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARENTS)
def test_nothing_overlaps_across_the_new_boundaries(name):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH)
    reach = 4.0
    assert smallest_distance(atoms_of(cut.frame), reach) >= 0.9 * smallest_distance(atoms, reach) - 1e-6


def test_an_index_says_what_overlaps():
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


def test_the_edges_meet_a_period_of_the_crystal():
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


def test_a_cell_holds_the_margin_and_the_density_of_a_liquid():
    atoms, frame, dH = parents("liquid")
    cut = cut_one(frame, dH)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cut.frame.cell), axis=0)
    assert (heights >= 2.0 * (RADIUS + CUTOFF)).all()
    assert (heights <= 1.25 * (2.0 * (RADIUS + CUTOFF) + 2.5)).all()
    density = len(cut.core) / abs(np.linalg.det(cut.frame.cell))
    assert density == pytest.approx(len(atoms) / atoms.get_volume(), rel=0.1)
    assert cut.info["removed"] > 0


@pytest.mark.parametrize("name", ["small", "one atom", "lone atom"])
def test_a_frame_that_is_not_larger_stays_whole(name):
    atoms, frame, dH = parents(name)
    cut = cut_one(frame, dH)
    assert cut.core.all()
    assert sorted(cut.frame.ids) == list(range(len(atoms)))
    assert cut.info["fit"] == "everything: nothing was cut"
    assert not any(key.startswith("config_") for key in cut.info)
    if atoms.pbc.all():
        np.testing.assert_array_equal(cut.frame.cell, frame.cell)
    assert (cut.frame.pbc == frame.pbc).all()


def test_a_cluster_is_whole_only_where_nothing_was_periodic():
    lone, spread = Atoms("Ar"), Atoms("Ar", cell=np.eye(3) * 20.0, pbc=True)
    fits = [cut_one(Frame.from_atoms(atoms), np.ones(1), shape="cluster").info["fit"] for atoms in (lone, spread)]
    assert fits == ["everything: nothing was cut", "forces of core atoms only"]


def test_a_direction_that_is_not_longer_stays_whole():
    _, frame, dH = parents("wire")
    cut = cut_one(frame, dH)
    np.testing.assert_array_equal(cut.frame.cell[:2], frame.cell[:2])
    assert cut.frame.cell[2, 2] == pytest.approx(3 * 5.43, abs=0.1)
    assert len(cut.core) == 2 * 2 * 3 * 8
    assert not cut.core.all()


@pytest.mark.parametrize("name", ["slab", "bent slab"])
def test_directions_without_periodicity_stay_so_and_have_vacuum(name):
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


def test_a_cluster_is_a_sphere_in_vacuum():
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


def test_a_cluster_of_a_small_cell_holds_images():
    _, frame, dH = parents("one atom")
    cut = cut_one(frame, dH, shape="cluster")
    assert (cut.frame.ids == 0).all()
    i = neighbor_list("i", PARENTS["one atom"](), RADIUS + CUTOFF)
    assert len(cut.core) == 1 + len(i)
