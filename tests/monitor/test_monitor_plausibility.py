"""Broken frames are told from interesting ones."""

from __future__ import annotations

import numpy as np
import pytest
import ranks
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md import DescriptorSpec, Frame, Index, Monitor
from quests_md.monitor import Band


def cell(scale=0.05, seed=1, kind="Si"):
    atoms = bulk("Si", cubic=True) if kind == "Si" else bulk("NaCl", "rocksalt", 5.64, cubic=True)
    atoms *= (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def index():
    return Index.build([cell(seed=seed) for seed in range(4)], threads=1)


def monitor_of(index, **options):
    return Monitor(index, **{"select": 1e6, "halt": 1e6, "implausible": "continue"} | options)


def pushed(atoms, distance, i=5):
    """Return atoms of which atom i is so near (Å) to its nearest neighbour."""
    atoms = atoms.copy()
    near = np.argsort(atoms.get_distances(i, range(len(atoms)), mic=True))[1]
    vector = atoms.get_distance(near, i, mic=True, vector=True)
    atoms.positions[i] = atoms.positions[near] + vector / np.linalg.norm(vector) * distance
    return atoms


@pytest.mark.parametrize("values", ["exact", "flagged"])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_atoms_too_near_each_other_break_a_frame(index, values, precision):
    smallest = float(index.pair_distances[0, 0])
    monitor = monitor_of(index, values=values, precision=precision, min_distance=0.6)
    for factor, broken in [(1.0, False), (0.601, False), (0.599, True), (0.1, True), (1.0, False)]:
        decision = monitor.observe(Frame.from_atoms(pushed(cell(), factor * smallest)))
        assert (decision.band is Band.IMPLAUSIBLE) == broken
        assert (decision.save, decision.stop) == (False, False)
        if broken:
            known = f"the reference's smallest is {smallest:.3g} Å"
            assert decision.reasons == (f"two atoms Si-Si are {factor * smallest:.3g} Å apart ({known})",)
            assert (decision.dH == np.inf).all()


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0.05, 0.95), factor=st.floats(0.05, 1.2), i=st.integers(0, 63), seed=st.integers(0, 5))
def test_overlaps_are_those_of_all_distances(index, share, factor, i, seed):
    atoms = pushed(cell(seed=seed), factor * float(index.pair_distances[0, 0]), i)
    distances = atoms.get_all_distances(mic=True)
    nearest = distances[distances > 0].min()
    limit = share * float(index.pair_distances[0, 0])
    decision = monitor_of(index, min_distance=share).observe(Frame.from_atoms(atoms))
    if abs(nearest - limit) > 1e-9:
        assert (decision.band is Band.IMPLAUSIBLE) == (nearest < limit)


def test_each_pair_of_elements_has_its_own_distance():
    frames = [cell(kind="NaCl", seed=seed) for seed in range(3)]
    index = Index.build(frames, DescriptorSpec(species="ignore"), threads=1)
    distances = {pair: index.pair_distances[pair] for pair in [(0, 0), (0, 1), (1, 1)]}
    assert distances[0, 1] < 0.8 * distances[0, 0]
    # Two Na as near as a Na and a Cl of the reference: an overlap for them alone.
    atoms = cell(kind="NaCl")
    na, cl = np.flatnonzero(atoms.numbers == 11)[0], np.flatnonzero(atoms.numbers == 17)
    near = cl[np.argmin(atoms.get_distances(na, cl, mic=True))]
    share = float(0.5 * (1.0 + atoms.get_distance(na, near, mic=True) / distances[0, 0]))
    assert monitor_of(index, min_distance=share).observe(Frame.from_atoms(atoms)).band is Band.COVERED
    atoms.numbers[near] = 11
    decision = monitor_of(index, min_distance=share).observe(Frame.from_atoms(atoms))
    assert decision.band is Band.IMPLAUSIBLE
    assert decision.reasons[0].startswith("two atoms Na-Na are ")


def test_zero_judges_no_distance(index):
    decision = monitor_of(index, min_distance=0.0).observe(Frame.from_atoms(pushed(cell(), 0.3)))
    assert decision.band is Band.COVERED


@pytest.mark.parametrize(("factor", "broken"), [(1.9, False), (2.1, True), (0.51, False), (0.49, True)])
def test_a_cell_that_explodes_or_collapses_breaks_a_frame(index, factor, broken):
    monitor, atoms = monitor_of(index, min_distance=0.0), cell()
    assert monitor.observe(Frame.from_atoms(atoms)).band is Band.COVERED
    atoms.set_cell(atoms.cell * factor, scale_atoms=True)
    decision = monitor.observe(Frame.from_atoms(atoms, 1))
    assert (decision.band is Band.IMPLAUSIBLE) == broken
    if broken:
        assert decision.reasons == (f"the cell has {factor**3:.3g} times its first volume",)


@pytest.mark.parametrize("size", [1, 3])
def test_lost_atoms_break_a_frame(index, size):
    atoms = cell()

    def work(comm):
        monitor = monitor_of(index, comm=comm)
        bands = []
        for step, (n, expected) in enumerate([(64, 64), (64, None), (62, 62), (61, 64), (61, 64), (60, 64)]):
            mine = np.arange(n)[comm.rank :: comm.size]
            frame = Frame(
                np.vstack([atoms.positions[mine], atoms.positions]), np.full(len(mine) + 64, 14), atoms.cell, True,
                n_local=len(mine), step=step, n_expected=expected,
            )  # fmt: skip
            frame.positions[len(mine) :] += 100.0  # ghosts far away: only the counts matter here
            decision = monitor.observe(frame)
            bands.append(str(decision.band))
        return bands, decision.reasons

    for bands, reasons in ranks.run(size, work):
        assert bands == ["covered"] * 3 + ["implausible", "covered", "implausible"]
        assert reasons == ("4 of 64 atoms are lost",)
