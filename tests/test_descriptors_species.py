"""How elements enter the descriptor: against the naive twin, the peer `quests`, and the symmetries it must have."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from quests_md.descriptors import DescriptorSpec, Environments
from quests_md.errors import ElementError, InputError
from quests_md.frame import Frame
from quests_md.information import entropy

MODES = ["ignore", "full", "centre", "neighbours"]
SEEDS = st.integers(0, 2**32 - 1)
STRUCTURES = ["nacl", "molten", "triclinic", "small", "sparse", "si_rattled", "cu"]
ELEMENTS = {1: ["Si"], 2: ["O", "Si"], 3: ["O", "Si", "Cu"]}


def mixed(atoms, n=2, seed=3):
    """Give atoms one of n elements each, at random."""
    symbols = np.random.default_rng(seed).choice(ELEMENTS[n], len(atoms))
    atoms.set_chemical_symbols(symbols.tolist())
    return atoms


def spec(species, elements, k=32, cutoff=5.0):
    return DescriptorSpec(k, cutoff, species, elements if species in ("full", "neighbours") else None)


def assert_as_naive(atoms, species, elements, k=32, cutoff=5.0):
    numbers = [Atoms(e).numbers[0] for e in elements]
    expected = naive.species(atoms, k, cutoff, species, numbers)
    rows = spec(species, elements, k, cutoff).compute(atoms)
    assert rows.shape[1] == spec(species, elements, k, cutoff).width
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-11)


@pytest.fixture
def plain(monkeypatch):
    """Force the path for processors without vectors."""
    monkeypatch.setattr("quests_md.kernels.descriptor_vector.available", lambda k: False)


# -- against the naive twin ------------------------------------------------------------------------


@pytest.mark.parametrize("species", MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", STRUCTURES)
def test_blocks_agree_with_the_naive_twin(structure, name, n, species):
    assert_as_naive(mixed(structure(name), n), species, ELEMENTS[n])


@pytest.mark.parametrize("species", ["full", "neighbours"])
@pytest.mark.parametrize(("k", "cutoff"), [(2, 5.0), (5, 3.0), (16, 4.2), (40, 6.0), (32, 6.2)])
@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_every_k_cutoff_and_boundary_agrees_with_the_naive_twin(structure, k, cutoff, pbc, species):
    atoms = mixed(structure("triclinic"), 2)
    atoms.pbc = pbc
    assert_as_naive(atoms, species, ELEMENTS[2], k, cutoff)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("species", MODES)
@pytest.mark.parametrize("name", ["nacl", "molten", "small"])
def test_the_path_without_vectors_agrees_with_the_naive_twin(structure, name, species):
    assert_as_naive(mixed(structure(name), 3), species, ELEMENTS[3])


def test_an_element_that_no_frame_holds_has_blocks_of_zeros(structure):
    atoms = mixed(structure("molten"))
    with_copper = spec("neighbours", ELEMENTS[3]).compute(atoms)
    np.testing.assert_array_equal(with_copper[:, :127], spec("neighbours", ELEMENTS[2]).compute(atoms))
    np.testing.assert_array_equal(with_copper[:, 127:], 0.0)


@pytest.mark.parametrize("species", MODES)
def test_ghosts_give_what_periodic_images_give(structure, species):
    atoms, one = mixed(structure("triclinic"), 2), spec(species, ELEMENTS[2])
    mine = np.arange(len(atoms))[::2]
    positions, rows = naive.with_ghosts(atoms, mine, 5.0)
    frame = Frame(positions, atoms.numbers[rows], atoms.cell, atoms.pbc, n_local=len(mine))
    np.testing.assert_allclose(one.compute(frame), one.compute(atoms)[mine], rtol=0, atol=1e-12)


@pytest.mark.parametrize("species", MODES)
def test_number_zero_and_atoms_that_are_not_watched(structure, species):
    atoms, one = mixed(structure("molten"), 2), spec(species, ELEMENTS[2])
    numbers = np.where(np.arange(len(atoms)) % 3 == 1, 0, atoms.numbers)
    watched = np.arange(len(atoms)) % 4 == 0
    frame = Frame(atoms.positions, numbers, np.asarray(atoms.cell), True, watched=watched)
    expected = one.compute(atoms[numbers != 0])[watched[numbers != 0]]
    np.testing.assert_array_equal(one.compute(frame), expected)


# -- against the peer ------------------------------------------------------------------------------


PERIODIC = ["nacl", "molten", "triclinic", "si_rattled", "sparse"]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("cutoff", [3.2, 5.0])
@pytest.mark.parametrize("k", [16, 32])
@pytest.mark.parametrize("name", PERIODIC)
def test_full_is_what_quests_computes_for_several_elements(structure, quests, name, k, cutoff, n):
    """As distances between rows: its columns come in another order than it promises, which changes none.

    For one element it raises an error.
    """
    atoms = mixed(structure(name), n)
    elements = sorted(set(atoms.get_chemical_symbols()))
    ours = spec("full", elements, k, cutoff).compute(atoms)
    theirs = quests.multicomponent(atoms, k, cutoff, elements)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(cdist(ours, ours), cdist(theirs, theirs), rtol=0, atol=1e-7)
    np.testing.assert_allclose(np.sort(ours, axis=1), np.sort(theirs, axis=1), rtol=0, atol=1e-9)


# -- symmetries ------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, species=st.sampled_from(MODES), name=st.sampled_from(["molten", "triclinic", "small"]))
def test_permutation_rotation_and_translation_change_nothing(structure, seed, species, name):
    rng, atoms, one = np.random.default_rng(seed), mixed(structure(name), 2), spec(species, ELEMENTS[2])
    order = rng.permutation(len(atoms))
    before = one.compute(atoms)[order]
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    atoms = atoms[order]
    atoms.set_cell(np.asarray(atoms.cell) @ turn)
    atoms.positions = atoms.positions @ turn + rng.uniform(-50, 50, 3)
    np.testing.assert_allclose(one.compute(atoms), before, rtol=0, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(threads=st.integers(2, 9), seed=SEEDS, species=st.sampled_from(MODES))
def test_threads_and_batches_change_no_bit(structure, threads, seed, species):
    frame, one = Frame.from_atoms(mixed(structure("molten") * (3, 2, 1), 2)), spec(species, ELEMENTS[2])
    rows = one.compute(frame, 1)
    np.testing.assert_array_equal(one.compute(frame, threads), rows)
    some = np.random.default_rng(seed).integers(0, len(rows), 50)
    np.testing.assert_array_equal(Environments(one, frame).compute(some, 1), rows[some])


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, species=st.sampled_from(["full", "neighbours"]))
def test_ties_at_the_last_neighbour_are_broken_alike_everywhere(seed, species):
    """Perfect rocksalt within 9 Å: the 16th neighbour of either element is one of several as far away."""
    rng, one = np.random.default_rng(seed), spec(species, ["Na", "Cl"], 16, 9.0)
    perfect = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    expected = {z: one.compute(perfect)[perfect.numbers == z][0] for z in (11, 17)}
    moved = perfect * (2, 1, 1)
    moved.positions += rng.uniform(-1e3, 1e3, 3)
    moved = moved[rng.permutation(len(moved))]
    np.testing.assert_allclose(one.compute(moved), [expected[z] for z in moved.numbers], rtol=0, atol=1e-9)


# -- what a row says -------------------------------------------------------------------------------


@pytest.mark.parametrize("species", MODES)
@pytest.mark.parametrize("r", [2.3, 2.6, 4.9, 5.0])
def test_the_nearest_neighbour_is_told_from_the_row(structure, species, r):
    for name in ("molten", "small", "sparse"):
        atoms = mixed(structure(name), 2)
        points, _ = naive.images(atoms.positions, atoms.cell, atoms.pbc, 5.0)
        nearest = [np.sort(np.linalg.norm(points - x, axis=1))[1] for x in atoms.positions]
        environments = Environments(spec(species, ELEMENTS[2]), Frame.from_atoms(atoms))
        told = environments.is_nearer(environments.compute(slice(None)), r)
        np.testing.assert_array_equal(told, np.array(nearest) < r)


def test_a_distance_beyond_the_cutoff_cannot_be_told(structure):
    environments = Environments(DescriptorSpec(), Frame.from_atoms(structure("si")))
    for r in (0.0, -1.0, 5.1, float("nan")):
        with pytest.raises(InputError, match=r"a distance up to the cutoff of 5\.0 Å can be told"):
            environments.is_nearer(environments.compute(slice(None)), r)


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_the_first_column_separates_elements_in_the_information_of_a_dataset(structure, species):
    atoms = mixed(structure("molten") * (2, 1, 1), 2)
    rows = spec(species, ELEMENTS[2]).compute(atoms)
    np.testing.assert_array_equal(rows[:, 0], atoms.numbers)
    shares = [(atoms.numbers == z).mean() for z in (8, 14)]
    apart = [entropy(rows[atoms.numbers == z][:, 1:]) for z in (8, 14)]
    # Of a mixture of parts that share no environment: the mean of theirs, and the entropy of the mixing.
    expected = sum(p * (H - np.log(p)) for p, H in zip(shares, apart, strict=True))
    assert entropy(rows) == pytest.approx(expected, abs=1e-10)


# -- the spec --------------------------------------------------------------------------------------


def test_elements_are_put_in_the_order_of_their_numbers():
    one = DescriptorSpec(species="neighbours", elements=["Cl", "Na"])
    assert one.elements == ("Na", "Cl")
    assert one == DescriptorSpec(species="neighbours", elements=("Na", "Cl"))
    assert hash(one) == hash(DescriptorSpec(species="neighbours", elements=("Na", "Cl")))
    widths = {s: (spec(s, ["Na", "Cl"]).width, spec(s, ["Na", "Cl"]).by_centre) for s in MODES}
    assert widths == {"ignore": (63, False), "full": (189, False), "centre": (64, True), "neighbours": (127, True)}


@pytest.mark.parametrize("elements", ["Si", [], ["Si", "Si"], ["X"], ["si"], [14], 14, [["Si"]]])
def test_elements_that_are_none_are_refused(elements):
    with pytest.raises(InputError, match="elements must be a list of different chemical symbols"):
        DescriptorSpec(species="full", elements=elements)


@pytest.mark.parametrize("species", [None, "ignore", "centre"])
def test_elements_are_refused_where_they_mean_nothing(species):
    with pytest.raises(InputError, match="elements are the blocks of full and neighbours"):
        DescriptorSpec(species=species, elements=["Si"])


@pytest.mark.parametrize("species", ["full", "neighbours"])
def test_elements_that_are_missing_or_lack_one_are_named(structure, species):
    with pytest.raises(InputError, match=f'species="{species}" needs the elements'):
        DescriptorSpec(species=species).compute(structure("nacl"))
    for elements in (["Na"], ["Na", "Si"]):
        with pytest.raises(ElementError, match="Cl is not among the elements of the descriptor, Na"):
            DescriptorSpec(species=species, elements=elements).compute(structure("nacl"))
        with pytest.raises(ElementError, match="Cl is not among"):
            Environments(DescriptorSpec(species=species, elements=elements), Frame.from_atoms(structure("nacl")))
