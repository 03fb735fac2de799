"""The derivatives of dH: by descriptors beside the plain twin, by positions and strain beside finite differences."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md import DescriptorSpec, Index
from quests_md.descriptors import Environments
from quests_md.frame import Frame

_STEP = 1e-5  # Å


def _rattled(make, seed, size=0.15):
    atoms = make()
    atoms.rattle(size, seed=seed)
    return atoms


def _silicon():
    return bulk("Si", cubic=True).repeat((2, 1, 1))


def _strained():
    """Return one cell without equal lattice vectors: a sorted list of equal distances has a kink."""
    atoms = bulk("Si")
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + np.random.default_rng(5).normal(0.0, 0.04, (3, 3))), scale_atoms=True
    )
    return atoms


def _salt():
    return bulk("NaCl", "rocksalt", a=5.6, cubic=True)


def _open_salt():
    atoms = _salt()
    atoms.pbc = [True, False, True]
    return atoms


CASES = {
    "one element": (_silicon, {}, 0.03),
    "smaller than the cutoff": (_strained, {}, 0.05),
    "ignore": (_salt, {"species": "ignore"}, 0.05),
    "centre": (_salt, {"species": "centre", "k": 20}, 0.05),
    "full": (_salt, {"species": "full"}, 0.05),
    "neighbours": (_salt, {"species": "neighbours"}, 0.05),
    "a slab": (_open_salt, {"species": "neighbours", "cutoff": 4.5}, 0.05),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    make, keys, h = CASES[request.param]
    index = Index.build([_rattled(make, seed, 0.1) for seed in range(12)], DescriptorSpec(**keys), bandwidth=h)
    return index, _rattled(make, 99)


def _slopes(index, atoms, weights, threads=None):
    environments = Environments(index.spec, Frame.from_atoms(atoms))
    which = np.arange(len(environments))
    _, gradient = index.differentiate(environments.compute(which), threads)
    return environments.pull_back(which, gradient * weights[:, None], threads)


def test_by_descriptors_as_the_plain_twin_says(case):
    index, atoms = case
    rows = index.spec.compute(atoms)
    dH, gradient = index.differentiate(rows)
    np.testing.assert_allclose(dH, index.delta_entropy(rows), rtol=1e-9, atol=1e-9)
    references, first = index.rows.astype(float) + index.centre, int(index.spec.by_centre)
    for row, found in zip(rows, gradient, strict=True):
        own = references[index.numbers == row[0]] if first else references
        expected = naive.delta_entropy_gradient(row[first:], own, index.bandwidth)
        np.testing.assert_allclose(found[first:], expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
        assert not found[:first].any()


def test_by_positions_and_strain_as_finite_differences_say(case):
    index, atoms = case
    weights = np.random.default_rng(0).uniform(0.2, 1.0, len(atoms))

    def total(positions, cell):
        moved = atoms.copy()
        moved.positions[:], moved.cell[:] = positions, cell
        return float(weights @ index.delta_entropy(Frame.from_atoms(moved)))

    slopes, strain = _slopes(index, atoms, weights)
    scale, cell = np.abs(slopes).max(), atoms.cell.array
    for i in range(len(atoms)):
        for c in range(3):
            ends = []
            for step in (_STEP, -_STEP):
                positions = atoms.positions.copy()
                positions[i, c] += step
                ends.append(total(positions, cell))
            assert (ends[0] - ends[1]) / (2 * _STEP) == pytest.approx(slopes[i, c], abs=2e-5 * scale)
    for a in range(3):
        for b in range(3):
            ends = []
            for step in (_STEP, -_STEP):
                change = np.eye(3)
                change[a, b] += step
                ends.append(total(atoms.positions @ change.T, cell @ change.T))
            found = (ends[0] - ends[1]) / (2 * _STEP)
            if atoms.pbc.all():
                assert found == pytest.approx(strain[b, a], abs=1e-4 * np.abs(strain).max())
    np.testing.assert_allclose(slopes.sum(axis=0), 0.0, atol=1e-9 * scale)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_forces_turn_with_the_atoms_and_no_torque_is_left(seed):
    rng = np.random.default_rng(seed)
    cluster = bulk("Si", cubic=True).repeat(2)
    cluster = cluster[rng.choice(len(cluster), 20, replace=False)]
    cluster.pbc, cluster.cell = False, np.zeros((3, 3))
    cluster.rattle(0.1, seed=seed)
    index = Index.build([_rattled(_silicon, 1)], bandwidth=0.1)
    ones = np.ones(len(cluster))
    slopes, strain = _slopes(index, cluster, ones)
    torque = np.cross(cluster.positions, slopes).sum(axis=0)
    np.testing.assert_allclose(torque, 0.0, atol=1e-8 * np.abs(slopes).max())
    np.testing.assert_allclose(strain, strain.T, atol=1e-8 * np.abs(strain).max())
    turned, order = cluster.copy(), rng.permutation(len(cluster))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned.positions = turned.positions @ turn.T + rng.normal(size=3)
    again, _ = _slopes(index, turned[order], ones)
    np.testing.assert_allclose(again, slopes[order] @ turn.T, atol=1e-7 * np.abs(slopes).max())


def test_threads_and_batches_change_no_digit(case):
    index, atoms = case
    many = atoms.repeat((3, 3, 2))
    ones = np.ones(len(many))
    one, two = _slopes(index, many, ones, 1), _slopes(index, many, ones, 2)
    np.testing.assert_array_equal(one[0], two[0])
    rows = index.spec.compute(many)
    _, together = index.differentiate(rows, 1)
    _, alone = index.differentiate(rows[7:8], 1)
    np.testing.assert_array_equal(together[7:8], alone)
