"""The descriptor against its naive twin, the peer `quests`, and the symmetries it must have."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys

import naive
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import LIMIT
from scipy.spatial.transform import Rotation

from quests_md.descriptors import DescriptorSpec, Environments, minimum_distances
from quests_md.errors import FrameError, InputError
from quests_md.frame import Frame
from quests_md.kernels import descriptor_vector

SPEC = DescriptorSpec(species="ignore")
SEEDS = st.integers(0, 2**32 - 1)
ALL = ["si", "si_rattled", "fe", "cu", "mg", "nacl", "triclinic", "molten", "small", "sparse", "one"]


def spec(k=32, cutoff=5.0):
    return DescriptorSpec(k, cutoff, "ignore")


def assert_as_naive(atoms, k=32, cutoff=5.0):
    """Check rows to 1e-11 1/Å: what any way to compute them keeps to.

    Coordinates stay below 10³ Å and round by 1e-13 Å or less where they are shifted, subtracted and wrapped, some six
    times. No distance is below 1 Å, so no value changes by more than 2/Å² of that; sums of k values add k·u to it.
    """
    expected = naive.descriptors(atoms.positions, atoms.cell, atoms.pbc, k, cutoff)
    np.testing.assert_allclose(spec(k, cutoff).compute(atoms), expected, rtol=0, atol=1e-11)


# -- against the naive twin ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_periodic_frames_agree_with_the_naive_twin(structure, name):
    assert_as_naive(structure(name))


@pytest.mark.parametrize(("k", "cutoff"), [(2, 5.0), (5, 3.0), (16, 4.2), (40, 7.5), (32, 2.0), (32, 9.0), (5, 11.0)])
def test_every_k_and_cutoff_agrees_with_the_naive_twin(structure, k, cutoff):
    assert_as_naive(structure("triclinic"), k, cutoff)


@pytest.mark.parametrize("name", ["triclinic", "small", "molten", "sparse"])
@pytest.mark.parametrize("pbc", [(1, 1, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 0, 0)])
def test_mixed_boundaries_agree_with_the_naive_twin(structure, name, pbc):
    atoms = structure(name)
    atoms.pbc = pbc
    atoms.positions += np.where(atoms.pbc, 40.0, 0.0) @ np.asarray(atoms.cell)  # far outside, where that is allowed
    assert_as_naive(atoms)


@pytest.mark.parametrize("missing", [[2], [0], [0, 1], [1, 2], [0, 1, 2]])
def test_missing_cell_vectors_of_open_directions_are_no_obstacle(structure, missing):
    atoms = structure("triclinic")
    atoms.positions = atoms.positions[:, [2, 0, 1]]  # so that no axis is the normal of two cell vectors by luck
    cell = np.array(atoms.cell)[:, [2, 0, 1]]
    cell[missing] = 0.0
    atoms.set_cell(cell)
    atoms.pbc = [i not in missing for i in range(3)]
    assert_as_naive(atoms)


@pytest.mark.parametrize("name", ["si_rattled", "triclinic", "small"])
def test_left_handed_cells_give_what_right_handed_ones_give(structure, name):
    atoms = structure(name)
    right = SPEC.compute(atoms)
    atoms.set_cell(np.asarray(atoms.cell)[[1, 0, 2]])
    assert np.linalg.det(atoms.cell) < 0
    assert_as_naive(atoms)
    np.testing.assert_allclose(SPEC.compute(atoms), right, rtol=0, atol=1e-12)


def test_an_atom_alone_has_a_descriptor_of_zeros():
    alone = Atoms("Si", [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(SPEC.compute(alone), np.zeros((1, 63)))


def test_neighbours_at_the_cutoff_and_beyond_have_no_weight():
    beyond = Atoms("Si3", [[0, 0, 0], [5.0, 0, 0], [0, 5.1, 0]])
    np.testing.assert_array_equal(SPEC.compute(beyond)[0], np.zeros(63))
    two = SPEC.compute(Atoms("Si2", [[0, 0, 0], [2.5, 0, 0]]))
    np.testing.assert_allclose(two[:, 0], (1 - 0.25) ** 2 / 2.5)
    np.testing.assert_array_equal(two[:, 1:], 0.0)


@pytest.mark.parametrize("name", ["si_rattled", "small", "triclinic", "nacl"])
def test_ghosts_give_what_periodic_images_give(structure, name):
    atoms = structure(name)
    mine = np.arange(len(atoms))[::2]
    positions, rows = naive.with_ghosts(atoms, mine, 5.0)
    frame = Frame(positions, atoms.numbers[rows], atoms.cell, atoms.pbc, n_local=len(mine))
    np.testing.assert_allclose(SPEC.compute(frame), SPEC.compute(atoms)[mine], rtol=0, atol=1e-12)


def test_number_zero_is_neither_centre_nor_neighbour(structure):
    atoms = structure("molten")
    numbers = np.where(np.arange(len(atoms)) % 3 == 1, 0, atoms.numbers)
    frame = Frame(atoms.positions, numbers, np.asarray(atoms.cell), True)
    assert frame.centres.tolist() == np.flatnonzero(numbers).tolist()
    np.testing.assert_array_equal(SPEC.compute(frame), SPEC.compute(atoms[numbers != 0]))


def test_watched_atoms_are_the_rows_and_all_atoms_are_neighbours(structure):
    atoms = structure("molten")
    watched = np.arange(len(atoms)) % 4 == 0
    frame = Frame(atoms.positions, atoms.numbers, np.asarray(atoms.cell), True, watched=watched)
    np.testing.assert_array_equal(SPEC.compute(frame), SPEC.compute(atoms)[watched])
    frame.watched[:] = False
    assert SPEC.compute(frame).shape == (0, 63)


def test_many_frames_are_stacked_in_order(structure):
    frames = [structure(name) for name in ("si", "one", "small")]
    np.testing.assert_array_equal(SPEC.compute(frames), np.vstack([SPEC.compute(f) for f in frames]))
    assert SPEC.compute([]).shape == (0, SPEC.width)
    assert SPEC.compute(Frame(np.empty((0, 3)), np.empty(0, int))).shape == (0, SPEC.width)


@pytest.mark.parametrize(("name", "cutoff"), [("nacl", 5.0), ("nacl", 2.75), ("small", 5.0), ("sparse", 3.0)])
def test_minimum_distances_agree_with_the_naive_twin(structure, name, cutoff):
    atoms = structure(name)
    kinds = np.arange(len(atoms)) % 2
    out = np.full((2, 2), np.inf)
    minimum_distances(Frame.from_atoms(atoms), cutoff, kinds, out)
    expected = naive.minimum_distances(atoms.positions, atoms.cell, atoms.pbc, kinds, cutoff)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


# -- with vectors, and without -----------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch):
    """Force the path for processors without vectors."""
    monkeypatch.setattr("quests_md.kernels.descriptor_vector.available", lambda k: False)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ALL)
def test_the_path_without_vectors_agrees_with_the_naive_twin(structure, name):
    assert_as_naive(structure(name))


@pytest.mark.skipif(not descriptor_vector.available(32), reason="this processor has no vectors")
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cutoff", [3.2, 5.0])
def test_single_precision_inside_is_good_to_1e_7(structure, name, cutoff):
    atoms = structure(name)
    expected = naive.descriptors(atoms.positions, atoms.cell, atoms.pbc, 32, cutoff)
    single = spec(32, cutoff)._compute_one(Frame.from_atoms(atoms), 1, np.float32)
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-7)  # as `compute` promises


def hard(kind, seed):
    """Return a frame of about 4000 atoms in which single precision has a hard time, or as hard a time as in a run."""
    rng = np.random.default_rng(seed)
    if kind == "crystal":  # many equal distances, of which rounding makes one or the other the larger
        return bulk("Cu", cubic=True) * (10, 10, 10)
    if kind == "rattled":
        atoms = bulk("Si", cubic=True) * (8, 8, 8)
        atoms.rattle(rng.uniform(0.01, 0.4), seed=seed)
        return atoms
    if kind == "gas":  # any distances, most environments with less than k neighbours
        return Atoms("H4000", rng.uniform(0, 60, (4000, 3)), cell=[60] * 3, pbc=True)
    if kind == "pairs":  # each atom has another one very near it
        first = (bulk("Cu", "sc", a=3.3) * (12, 12, 12)).positions + rng.normal(0, 0.2, (1728, 3))
        second = first + rng.normal(size=(1728, 3)) * 10 ** rng.uniform(-6, -1, (1728, 1))
        return Atoms("Cu3456", np.concatenate([first, second]), cell=[39.6] * 3, pbc=True)
    # Shells of atoms just inside the cutoff, where weights are tiny.
    lattice = bulk("Cu", "sc", a=15.0) * (5, 5, 5)
    away = rng.normal(size=(125, 30, 3))
    away *= (5.0 - 10 ** rng.uniform(-9, -1, (125, 30, 1))) / np.linalg.norm(away, axis=2, keepdims=True)
    places = np.concatenate([lattice.positions, (lattice.positions[:, None] + away).reshape(-1, 3)])
    return Atoms(f"Cu{len(places)}", places, cell=lattice.cell, pbc=True)


@pytest.mark.parametrize(
    ("kind", "frames", "least"),
    [("crystal", 1, 1e-3), ("rattled", 8, 1e-2), ("gas", 3, 1e-2), ("pairs", 3, 1e-3), ("shells", 2, 1e-3)],
)
def test_the_error_of_single_precision_is_what_is_proven(kind, frames, least):
    """Each call tells one error for all its rows, so calls are of few rows, and of many."""
    worst, n = 0.0, 0
    for seed in range(frames):
        environments = Environments(SPEC, Frame.from_atoms(hard(kind, seed)))
        for size, last in ((1, 40), (64, 1280), (len(environments), len(environments))):
            for first in range(0, last, size):
                part = slice(first, first + size)
                rows, error = environments.compute_in_single(part, 1)
                found = np.linalg.norm(rows - environments.compute(part, 1), axis=1).max()
                assert found <= error
                worst, n = max(worst, found / error if error else 0.0), n + len(rows)
    assert n >= 3000 * frames
    assert worst >= least or not descriptor_vector.available(32)  # a bound that says nothing would hold, too


def test_single_precision_does_not_depend_on_threads_and_calls(structure):
    environments = Environments(SPEC, Frame.from_atoms(structure("molten") * (2, 2, 2)))
    rows, error = environments.compute_in_single(slice(None), 1)
    for threads in (2, 3):
        again, other = environments.compute_in_single(slice(None), threads)
        np.testing.assert_array_equal(again, rows)
        assert other == error
    parts = [environments.compute_in_single(slice(first, first + 50), 1) for first in range(0, len(environments), 50)]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), rows)
    assert max(other for _, other in parts) <= error


@pytest.mark.parametrize("apart", [1e-9, 1e-7, 1e-6])
def test_atoms_that_single_precision_cannot_tell_apart_are_computed_in_double(apart):
    places = [[0.0, 0.0, 0.0], [3.0, 0.1, 0.1], [3.0 + apart, 0.1, 0.1]]
    environments = Environments(SPEC, Frame(np.array(places), np.array([14, 14, 14])))
    rows, error = environments.compute_in_single(np.array([0]), 1)
    np.testing.assert_array_equal(rows, environments.compute(np.array([0]), 1))
    assert error == 0.0


def test_atoms_at_one_place_are_refused_in_single_precision_too():
    places = np.array([[0.0, 0.0, 0.0], [3.0, 0.1, 0.1], [3.0, 0.1, 0.1]])
    for which in (slice(0, 1), slice(1, 2), slice(None)):
        with pytest.raises(FrameError, match="share a place"):
            Environments(SPEC, Frame(places, np.array([14, 14, 14]))).compute_in_single(which, 1)


@pytest.mark.usefixtures("plain")
def test_without_vectors_single_precision_is_double_precision(structure):
    environments = Environments(SPEC, Frame.from_atoms(structure("si")))
    rows, error = environments.compute_in_single(slice(None), 1)
    np.testing.assert_array_equal(rows, environments.compute(slice(None), 1))
    assert error == 0.0


@pytest.mark.parametrize("path", ["vectors, where there are any", "plain"])
@pytest.mark.parametrize("name", ["molten", "small", "nacl"])
def test_a_row_does_not_depend_on_which_others_are_computed(request, structure, name, path):
    if path == "plain":
        request.getfixturevalue("plain")
    atoms = structure(name)
    frame = Frame.from_atoms(atoms, watched=np.arange(len(atoms)) % 4 != 1)
    rows = SPEC.compute(frame)
    environments = Environments(SPEC, frame)
    n = len(environments)
    assert n == len(rows) == np.count_nonzero(frame.watched)
    np.testing.assert_array_equal(environments.centres, frame.centres)
    for size in (1, 2, 7, n):
        parts = [environments.compute(slice(first, first + size), 1) for first in range(0, n, size)]
        np.testing.assert_array_equal(np.concatenate(parts), rows)
    some = np.random.default_rng(0).integers(0, n, 2 * n)
    np.testing.assert_array_equal(environments.compute(some, 2), rows[some])
    assert environments.compute(some[:0]).shape == (0, SPEC.width)


def test_positions_are_not_touched_and_may_be_read_only(structure):
    atoms = structure("molten")
    frame = Frame.from_atoms(atoms)
    frame.positions = np.asfortranarray(frame.positions + 100.0)
    frame.positions.flags.writeable = False
    np.testing.assert_allclose(SPEC.compute(frame), SPEC.compute(atoms), rtol=0, atol=1e-9)


def test_finite_positions_whose_sum_is_not_are_no_obstacle():
    far = Frame(np.array([[1e308, 0, 0], [1e308, 2, 0], [1e308, 0, 2]]), np.array([14, 14, 14]))
    assert np.isfinite(SPEC.compute(far)).all()
    # A place whose fractional coordinates overflow has no images, and does not make endless ones.
    far = Frame(np.array([[1e308, 0, 0], [0.1, 0.1, 0.1]]), np.array([14, 14]), 0.5 * np.eye(3), pbc=True)
    assert np.isfinite(SPEC.compute(far)).all()


@pytest.mark.parametrize("crystal", [bulk("Cu"), bulk("Si"), bulk("Fe"), bulk("Mg")], ids=lambda a: str(a.symbols))
@pytest.mark.parametrize(("k", "cutoff"), [(32, 5.0), (9, 5.0), (32, 9.0), (2, 4.0)])
def test_ties_are_broken_alike_with_vectors_and_without(request, crystal, k, cutoff):
    """With any host's rounding, and whether the neighbours are ranked or inserted one by one."""
    fast = spec(k, cutoff).compute(crystal * (2, 3, 1))
    request.getfixturevalue("plain")
    np.testing.assert_allclose(fast, spec(k, cutoff).compute(crystal * (2, 3, 1)), rtol=0, atol=1e-9)


def test_a_processor_without_vectors_takes_the_other_path_by_itself(structure):
    """Numba compiles for such a processor in a process of its own; the numbers are the same."""
    script = """
import sys
import numpy as np
from quests_md import DescriptorSpec
from quests_md.frame import Frame
from quests_md.kernels import descriptor_vector

available = descriptor_vector.available(32)
positions = np.array(sys.argv[1].split(","), float).reshape(-1, 3)
rows = DescriptorSpec().compute(Frame(positions, np.full(len(positions), 14)), 1)
print(int(available), *(repr(float(x)) for x in rows.ravel()))
"""
    atoms = structure("si_rattled")
    atoms.pbc = False
    generic = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", script, ",".join(repr(float(x)) for x in atoms.positions.ravel())]
    done = subprocess.run(command, env=generic, stdout=subprocess.PIPE, check=True, text=True)
    available, *rows = done.stdout.split()
    assert int(available) == (platform.machine().lower() in ("aarch64", "arm64"))
    np.testing.assert_allclose(np.array(rows, float), SPEC.compute(atoms).ravel(), rtol=0, atol=1e-12)


# -- against the peer ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cutoff", [3.2, 5.0, 5.4])
@pytest.mark.parametrize("k", [16, 32])
def test_parity_with_quests(structure, quests, name, cutoff, k):
    atoms = structure(name)
    np.testing.assert_allclose(spec(k, cutoff).compute(atoms), quests.descriptors(atoms, k, cutoff), rtol=0, atol=1e-9)


# -- symmetries ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_permuting_atoms_permutes_rows(structure, seed):
    atoms = structure("molten")
    order = np.random.default_rng(seed).permutation(len(atoms))
    np.testing.assert_allclose(SPEC.compute(atoms[order]), SPEC.compute(atoms)[order], rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, name=st.sampled_from(["molten", "triclinic", "small"]))
def test_rotating_and_translating_change_nothing(structure, seed, name):
    rng, atoms = np.random.default_rng(seed), structure(name)
    before = SPEC.compute(atoms)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    atoms.set_cell(np.asarray(atoms.cell) @ turn)
    atoms.positions = atoms.positions @ turn + rng.uniform(-50, 50, 3)
    np.testing.assert_allclose(SPEC.compute(atoms), before, rtol=0, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(repeats=st.tuples(*[st.integers(1, 3)] * 3), name=st.sampled_from(["triclinic", "small", "si_rattled"]))
def test_repeating_the_cell_repeats_the_rows(structure, repeats, name):
    atoms = structure(name)
    expected = np.tile(SPEC.compute(atoms), (np.prod(repeats), 1))
    np.testing.assert_allclose(SPEC.compute(atoms * repeats), expected, rtol=0, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_ties_at_the_last_neighbour_are_broken_alike_everywhere(seed):
    """Perfect fcc: neighbours 19 to 42 are all as far away, and the descriptor holds 32 of them."""
    rng, perfect = np.random.default_rng(seed), bulk("Cu", cubic=True) * (3, 3, 2)
    expected = SPEC.compute(bulk("Cu"))[0]
    perfect.positions += rng.uniform(-1e3, 1e3, 3)
    rows = SPEC.compute(perfect[rng.permutation(len(perfect))])
    np.testing.assert_allclose(rows, np.tile(expected, (len(rows), 1)), rtol=0, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(threads=st.integers(2, 9))
def test_threads_change_no_bit(structure, threads):
    atoms = structure("molten") * (3, 2, 1)
    np.testing.assert_array_equal(SPEC.compute(atoms, threads), SPEC.compute(atoms, 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_work_in_a_forked_process(structure):
    atoms = structure("molten") * (3, 1, 1)
    SPEC.compute(atoms, 2)  # starts the threads, which a fork does not copy
    child = multiprocessing.get_context("fork").Process(target=SPEC.compute, args=(atoms, 2))
    child.start()
    child.join(LIMIT)
    child.kill()
    assert child.exitcode == 0


def test_a_whole_number_of_angstrom_is_the_same_cutoff(structure):
    whole = DescriptorSpec(32, 5, "ignore")
    assert whole == SPEC
    np.testing.assert_array_equal(whole.compute(structure("small")), SPEC.compute(structure("small")))


# -- what has no descriptor ------------------------------------------------------------------------


CUBE = np.eye(3) * 8.0


def frame(positions, numbers=None, cell=CUBE, pbc=True, **more):
    numbers = np.full(len(positions), 14) if numbers is None else np.asarray(numbers)
    return Frame(np.array(positions), numbers, cell, pbc, **more)


PAIR = [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
BROKEN = {
    "nan": (frame([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]], ids=[7, 9]), "not finite numbers .*id 9"),
    "inf": (frame([[0.0, 0.0, 0.0], [np.inf, 0.0, 0.0]], pbc=False), "not finite numbers"),
    "no cell": (frame(PAIR, cell=None), "singular"),
    "flat cell": (frame(PAIR, cell=[[8, 0, 0], [0, 8, 0], [8, 8, 0.0]]), "singular"),
    "nan cell": (frame(PAIR, cell=np.full((3, 3), np.nan)), "not finite"),
    "collapsed cell": (frame(PAIR, cell=np.eye(3) * 1e-4), "collapsed"),
    "one place": (
        frame([[1.0, 1.0, 1.0], [4.0, 4.0, 4.0], [4.0, 4.0, 4.0]], ids=[5, 6, 7]),
        "share a place.*id",
    ),
    "one place, of an image": (frame([[1.0, 1.0, 1.0], [1.0, 9.0, 1.0]]), "share a place"),
    "neighbours at one place": (
        frame([[1.0, 1.0, 1.0], [3.0, 1.0, 1.0], [3.0, 1.0, 1.0]], watched=[True, False, False]),
        "share a place",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames_are_refused(name):
    broken, message = BROKEN[name]
    broken.step = 12
    with pytest.raises(FrameError, match=f"step 12: .*{message}"):
        SPEC.compute(broken)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Frame(np.zeros((2, 2)), [14, 14]),
        lambda: frame(PAIR, numbers=[14]),
        lambda: frame(PAIR, numbers=[14, 119]),
        lambda: frame(PAIR, numbers=[14, -1]),
        lambda: frame(PAIR, numbers=[14.0, 14.0]),
        lambda: frame(PAIR, n_local=3),
        lambda: frame(PAIR, n_local=-1),
        lambda: frame(PAIR, n_local=1, watched=[True, True]),
        lambda: frame(PAIR, cell=np.eye(2)),
        lambda: frame(PAIR, velocities=np.zeros((3, 3))),
        lambda: SPEC.compute(3),
        lambda: SPEC.compute(["Si"]),
    ],
)
def test_what_is_no_frame_is_refused(make):
    with pytest.raises(FrameError):
        make()


def test_two_elements_need_a_choice_of_species(structure):
    with pytest.raises(InputError, match="2 elements, and species was not given"):
        DescriptorSpec().compute(structure("nacl"))
    with pytest.raises(InputError, match="2 elements"):
        DescriptorSpec().compute([structure("si"), structure("cu")])
    assert DescriptorSpec().compute(frame(PAIR, numbers=[14, 0])).shape == (1, 63)


@pytest.mark.parametrize(
    "values",
    [{"k": k} for k in (1, 0, -3, 2.5, True, "32", None)]
    + [{"cutoff": c} for c in (0, -1.0, float("nan"), float("inf"), True, "5", None)]
    + [{"species": s} for s in ("Si", "", 3, ["ignore"], "neighbors")],
)
def test_impossible_specs_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        DescriptorSpec(**values)
