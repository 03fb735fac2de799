"""What is the same configuration, and which key an evaluation gets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import ranks
from ase.build import bulk, fcc111
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md import Frame
from quests_md.kernels.tally import add_mark
from quests_md.monitor import Evaluations, Key, Visits
from quests_md.monitor._decision import compute_cell_mark, compute_mark, is_same

seeds = st.integers(0, 2**32 - 1)


def atoms_of(seed, pbc=(True, True, True)):
    """Return an alloy in a cell without right angles, a bit rattled."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0.0, 0.05, (32, 3))
    atoms.numbers[::5] = 79
    atoms.pbc = pbc
    return atoms


def frame_of(atoms, order=None, ids=None):
    n = len(atoms)
    order = np.arange(n) if order is None else order
    ids = np.arange(n) * 3 + 1 if ids is None else ids
    return Frame(atoms.positions[order], atoms.numbers[order], np.asarray(atoms.cell), atoms.pbc, ids=ids[order])


def mark(frame):
    one, other = compute_mark(frame) + compute_cell_mark(frame)
    return float(one), float(other)


def naive_mark(frame):
    """Add up what each atom brings, one after the other: the slow, obvious twin of orthogonal periodic cells."""
    total = [0.0, 0.0]
    for (x, y, z), number, ident in zip(frame.positions, frame.numbers, frame.ids, strict=True):
        bytes_ = []
        for whole in (2 * int(ident), 2 * int(ident) + 1):
            mixed = whole * 0x9E3779B97F4A7C15 % 2**64
            mixed ^= mixed >> 29
            mixed = mixed * 0xBF58476D1CE4E5B9 % 2**64
            mixed ^= mixed >> 32
            bytes_.append([0.5 + ((mixed >> 8 * b) & 255) / 256 for b in range(8)])
        even, odd = bytes_
        for axis, value in enumerate((x, y, z)):
            s = value / frame.cell[axis, axis] % 1.0
            bump, wave = s * (1 - s), s * (1 - s) * (1 - 2 * s)
            total[0] += even[2 * axis] * bump + odd[2 * axis] * wave
            total[1] += even[2 * axis + 1] * bump - odd[2 * axis + 1] * wave
        total[0] += even[6] * number / 16
        total[1] += even[7] * number / 16
    return total


def test_the_mark_is_that_of_the_naive_twin():
    atoms = bulk("Cu", cubic=True) * (2, 1, 3)
    atoms.rattle(0.1, seed=1)
    frame = frame_of(atoms)
    np.testing.assert_allclose(compute_mark(frame), naive_mark(frame), rtol=1e-12)


@settings(deadline=None)
@given(seeds, st.sampled_from([(True,) * 3, (True, True, False), (False, True, False), (False,) * 3]))
def test_order_ranks_and_whole_cell_vectors_change_nothing(seed, pbc):
    atoms, rng = atoms_of(seed, pbc), np.random.default_rng(seed + 1)
    known, order = mark(frame_of(atoms)), rng.permutation(32)
    moved = atoms.copy()
    moved.positions += (rng.integers(-3, 4, (32, 3)) * np.array(pbc)) @ np.asarray(atoms.cell)
    assert is_same(known, mark(frame_of(moved, order)), 32)
    ids = np.arange(32) * 3 + 1
    parts = [order[rank::3] for rank in range(3)]
    total = sum(compute_mark(frame_of(moved, part, ids)) for part in parts) + compute_cell_mark(frame_of(moved))
    assert is_same(known, tuple(total.tolist()), 32)


@settings(deadline=None)
@given(
    seeds, st.integers(0, 31), st.sampled_from([1e-6, 1e-4, 0.1]), st.sampled_from([(True,) * 3, (False, True, True)])
)
def test_the_move_of_one_atom_is_another_configuration(seed, atom, length, pbc):
    atoms, rng = atoms_of(seed, pbc), np.random.default_rng(seed + 1)
    known, direction = mark(frame_of(atoms)), rng.normal(size=3)
    atoms.positions[atom] += length * direction / np.linalg.norm(direction)
    assert not is_same(known, mark(frame_of(atoms)), 32)


@settings(deadline=None)
@given(seeds)
def test_other_elements_ids_and_cells_are_another_configuration(seed):
    atoms = atoms_of(seed)
    known = mark(frame_of(atoms))
    swapped = atoms.copy()
    swapped.numbers[[0, 1]] = swapped.numbers[[1, 0]]
    renamed = frame_of(atoms, ids=np.roll(np.arange(32) * 3 + 1, 1))
    strained = atoms.copy()
    strained.set_cell(atoms.cell * (1 + 1e-6), scale_atoms=True)
    for other in (frame_of(swapped), renamed, frame_of(strained)):
        assert not is_same(known, mark(other), 32)


def test_where_a_direction_is_free_the_cell_there_does_not_matter():
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    slab.pbc = (True, True, False)
    known = mark(frame_of(slab))
    slab.cell[2, 2] += 3.0  # as LAMMPS draws a shrink-wrapped box anew
    assert is_same(known, mark(frame_of(slab)), len(slab))
    slab.cell[2] = 0.0
    assert is_same(known, mark(frame_of(slab)), len(slab))
    slab.positions[:, 2] += 1e-4
    assert not is_same(known, mark(frame_of(slab)), len(slab))


@pytest.mark.parametrize("axis", range(3))
def test_along_a_wire_every_direction_counts(axis):
    """Cell vectors need not lie along the axes of their number."""
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = (True, False, False)
    atoms.cell[:] = [[0.0, 0.0, 3.6], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]
    known = mark(frame_of(atoms))
    atoms.positions[1, axis] += 1e-4
    assert not is_same(known, mark(frame_of(atoms)), len(atoms))


def test_broken_frames_are_alike():
    atoms = atoms_of(1)
    atoms.positions[3] = math.nan
    known = mark(frame_of(atoms))
    atoms.positions[5] += 1.0
    assert is_same(known, mark(frame_of(atoms)), 32)
    assert not is_same(known, mark(frame_of(atoms_of(1))), 32)
    atoms = atoms_of(1)
    atoms.cell[0] = math.nan
    assert math.isnan(mark(frame_of(atoms))[0])


def test_arrays_of_any_kind_are_compiled_for_once():
    """A run would stand still for seconds."""
    atoms = atoms_of(0)
    numbers, ids, cell = atoms.numbers, np.arange(32), np.asarray(atoms.cell)
    wanted = mark(Frame(atoms.positions, numbers, cell, True, ids=ids))
    compiled = len(add_mark.signatures)
    fixed = atoms.positions.copy()
    fixed.flags.writeable = ids.flags.writeable = False
    for positions in (fixed, np.asfortranarray(fixed), np.repeat(fixed, 2, axis=0)[::2]):
        for each in (ids, ids.astype(np.int32), np.repeat(ids, 2)[::2]):
            for pbc in (True, (True, True, True), np.broadcast_to(True, 3)):
                assert mark(Frame(positions, numbers.astype(np.uint8), cell.T.copy().T, pbc, ids=each)) == wanted
    assert len(add_mark.signatures) == compiled


def test_a_frame_without_atoms_has_a_mark():
    assert compute_mark(Frame(np.empty((0, 3)), np.empty(0, np.int64))).tolist() == [0.0, 0.0]


# -- keys ------------------------------------------------------------------------------------------------------------

A, B, C, D = ((float(i), 2.0 * i) for i in range(4))


def keys_of(visits, made):
    return [(str(key), again) for key, again in (visits.visit(step, mark, 8) for step, mark in made)]


def test_the_same_is_found_again_and_another_one_is_counted():
    made = [(0, A), (0, A), (0, B), (0, A), (1, A), (1, C), (0, C), (5, A)]
    assert keys_of(Visits(), made) == [
        ("1:0:0", False), ("1:0:0", True), ("1:0:1", False), ("1:0:0", True),
        ("1:1:0", False), ("1:1:1", False), ("2:0:0", False), ("2:5:0", False),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([A, B, C])), max_size=12), st.integers(0, 12))
def test_the_same_visits_find_their_rows_after_a_resume(made, known):
    """However many of them had been made before: nothing is doubled, and what is new is new."""
    whole, before = Visits(), Visits()
    expected, rows = keys_of(whole, made), {}
    for step, mark in made[:known]:
        key, again = before.visit(step, mark, 8)
        if not again:
            rows[key] = mark
    after = Visits()
    after.resume(past_of(rows))
    found = keys_of(after, made)
    if len({key.run for key in rows}) <= 1:  # of several runs with the same configurations it is the last one
        assert [key for key, _ in found] == [key for key, _ in expected]
        assert [again for _, again in found] == [again or Key.parse(key) in rows for key, again in expected]


def past_of(rows):
    columns = np.array([list(key) for key in rows], np.int64).reshape(-1, 3).T
    return Evaluations(*columns, np.array(list(rows.values()), float).reshape(-1, 2), np.full(len(rows), -3.0))


def test_a_step_with_one_row_is_that_row_though_the_dynamics_came_elsewhere():
    visits = Visits()
    visits.resume(past_of({Key(1, 5): A, Key(1, 6): B}))
    assert keys_of(visits, [(5, D), (5, D), (5, C), (6, C), (7, C)]) == [
        ("1:5:0", True), ("1:5:0", True), ("1:5:1", False), ("1:6:0", True), ("1:7:0", False),
    ]  # fmt: skip


def test_a_frame_above_select_is_no_row_of_a_covered_one():
    visits = Visits()
    visits.resume(past_of({Key(1, 5): A, Key(1, 6): B, Key(1, 7): C}))
    assert visits.visit(5, D, 8, 40.0, is_covered=False) == (Key(1, 5, 1), False)
    assert visits.visit(5, A, 8, -3.0) == (Key(1, 5, 0), True)
    assert visits.visit(6, D, 8, -3.01, is_covered=False) == (Key(1, 6, 0), True)  # where select is low
    assert visits.visit(7, D, 8, -2.5) == (Key(1, 7, 0), True)


def test_of_several_rows_each_is_found_by_what_it_is():
    visits = Visits()
    visits.resume(past_of({Key(1, 0, 0): A, Key(1, 0, 1): B}))
    assert keys_of(visits, [(0, C), (0, B), (0, A), (0, D)]) == [
        ("1:0:2", False), ("1:0:1", True), ("1:0:0", True), ("1:0:3", False),
    ]  # fmt: skip


def test_rows_without_marks_are_met_in_their_order():
    unknown = (math.nan, math.nan)
    visits = Visits()
    visits.resume(past_of({Key(1, 0, 0): unknown, Key(1, 3, 0): unknown}))
    assert keys_of(visits, [(3, A), (3, A), (3, B), (4, A)]) == [
        ("1:3:0", True), ("1:3:0", True), ("1:3:1", False), ("1:4:0", False),
    ]  # fmt: skip


def test_a_script_that_starts_again_goes_through_its_earlier_run():
    visits = Visits()
    visits.resume(past_of({Key(1, 0): A, Key(1, 1): B, Key(2, 0): C, Key(2, 1): D}))
    made = [(0, A), (1, B), (0, C), (1, D), (2, A)]
    assert keys_of(visits, made) == [
        ("1:0:0", True), ("1:1:0", True), ("2:0:0", True), ("2:1:0", True), ("2:2:0", False),
    ]  # fmt: skip


def test_many_configurations_of_one_step_take_no_time_to_find():
    visits = Visits()
    for i in range(3000):
        assert visits.visit(0, (float(i), -float(i)), 8) == (Key(1, 0, i), False)
    assert visits.visit(0, (7.0, -7.0), 8) == (Key(1, 0, 7), True)
    assert max(map(len, visits._buckets.values())) == 1


def test_every_rank_gives_the_same_keys():
    def work(comm):
        visits = Visits()
        frames = [frame_of(atoms_of(seed), np.arange(32)[comm.rank :: comm.size]) for seed in (1, 1, 2)]
        found = []
        for frame in frames:
            total = comm.allgather(compute_mark(frame)).sum(axis=0) + compute_cell_mark(frame)
            found.append(visits.visit(0, tuple(total.tolist()), 32))
        return found

    results = ranks.run(2, work)
    assert results[0] == results[1] == [(Key(1, 0, 0), False), (Key(1, 0, 0), True), (Key(1, 0, 1), False)]
