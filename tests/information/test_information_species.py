"""Information of datasets of several elements: as `quests` computes it, and as an obvious twin does."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from structures import packing

from quests_md import DescriptorSpec, Index, delta_entropy, diversity, entropy

H = 0.03
ELEMENTS = {"salt": ["Na", "Cl"], "three": ["O", "Si", "Cu"]}


def frames(name, structure, seeds=(0, 1, 2)):
    """Return a dataset of frames that are periodic in three directions."""
    made = []
    for seed in seeds:
        if name == "salt":
            atoms = structure("nacl") * (2, 1, 1)
            atoms.rattle(0.05, seed=seed)
        else:
            atoms = packing(18, [[8.0, 0, 0], [1.0, 7.5, 0], [0.5, -0.7, 8.2]], 1.9, seed)
            atoms.set_chemical_symbols(np.resize(ELEMENTS[name], len(atoms)).tolist())
        made.append(atoms)
    return made


@pytest.fixture(params=ELEMENTS)
def dataset(request, structure):
    """Return the elements, the frames of a dataset, and those of a query."""
    return ELEMENTS[request.param], frames(request.param, structure), frames(request.param, structure, (7,))


@pytest.mark.parametrize("species", ["ignore", "full"])
def test_information_is_that_of_quests(dataset, quests, species):
    """Of the rows of `get_descriptors_multicomponent`, or of `get_descriptors`, which tells no elements."""
    elements, reference, query = dataset

    def theirs(some):
        if species == "full":
            return np.vstack([quests.multicomponent(atoms, 32, 5.0, sorted(elements)) for atoms in some])
        return np.vstack([quests.descriptors(atoms, 32, 5.0) for atoms in some])

    spec = DescriptorSpec(species=species, elements=elements if species == "full" else None)
    x, y = spec.compute(reference), theirs(reference)
    assert entropy(x, H) == pytest.approx(quests.entropy(y, h=H), rel=1e-6)
    assert diversity(x, H) == pytest.approx(quests.diversity(y, h=H), rel=1e-6)
    expected = quests.delta_entropy(theirs(query), y, h=H)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(delta_entropy(spec.compute(query), x, H), expected, rtol=1e-6, atol=1e-6)
    index = Index.build(reference, DescriptorSpec(species=species), H)
    np.testing.assert_allclose(index.delta_entropy(query), expected, rtol=1e-5, atol=2e-5)


def by_element(query, reference):
    """Return ln K (n_query,) over the rows of the same element; the first column holds its number."""
    log_sums = np.empty(len(query))
    for i, row in enumerate(query):
        same = reference[reference[:, 0] == row[0]]
        log_sums[i] = naive.log_kernel_sum(row[None, 1:], same[:, 1:], H)[0]
    return log_sums


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_information_by_centre_is_that_of_the_naive_twin(dataset, species):
    """K of an environment runs over those of its own element; the entropy over all environments."""
    elements, reference, query = dataset
    spec = DescriptorSpec(species=species, elements=elements if species == "neighbours" else None)
    x, q = spec.compute(reference), spec.compute(query)
    log_sums = by_element(x, x)
    assert entropy(x, H) == pytest.approx(np.log(len(x)) - np.mean(log_sums), rel=1e-10)
    assert diversity(x, H) == pytest.approx(np.log(np.sum(np.exp(-log_sums))), rel=1e-10)
    np.testing.assert_allclose(delta_entropy(q, x, H), -by_element(q, x), rtol=1e-9, atol=1e-9)
