"""How few layers one evaluation passes, from a frame's positions to ln K."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

import quests_md
from quests_md.descriptors import DescriptorSpec, Environments
from quests_md.elements import check_elements
from quests_md.frame import Frame
from quests_md.index import Index
from quests_md.kernels import descriptor_vector

PACKAGE = Path(quests_md.__file__).parent


def silicon(seed):
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=seed)
    return Frame.from_atoms(atoms)


@pytest.fixture(scope="module")
def index():
    return Index.build([silicon(seed) for seed in range(3)], threads=1)


def in_single_then_some_in_double(index, frame):
    environments = Environments(index.spec, frame)
    for which, precision in ((np.arange(64), "single"), (np.arange(3), "double")):
        rows = environments.compute(which, 1)
        index.log_kernel_sum(rows, 1, precision=precision)


def bounds(index, frame):
    environments, memory = Environments(index.spec, frame), np.full(64, -1, np.int32)
    index.search(environments.compute(np.arange(64), 1), 50.0, memory, 1)


def calls_of(work, index):
    """Return how often Python calls which functions of the package, once all that is kept is there."""
    frame, found = silicon(9), Counter()
    frame = Frame(frame.positions, frame.numbers, n_local=64)  # as a host gives it: no images are made

    def tracer(called, event, _):
        if event == "call" and Path(called.f_code.co_filename).is_relative_to(PACKAGE):
            found[str(Path(called.f_code.co_filename).relative_to(PACKAGE)), called.f_code.co_name] += 1

    work(index, frame)
    sys.setprofile(tracer)
    try:
        work(index, frame)
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.skipif(not descriptor_vector.available(32), reason="this processor has no vectors")
@pytest.mark.parametrize(("work", "most"), [(in_single_then_some_in_double, 20), (bounds, 13)])
def test_one_evaluation_goes_straight_from_descriptors_and_index_to_the_kernels(index, work, most):
    found = calls_of(work, index)
    ways = {file for file, _ in found} - {"frame.py"}
    assert {file for file in ways if not file.startswith("kernels/")} == {
        "descriptors.py",
        "index/_data.py",
        "index/_parts.py",
    }
    assert len(ways) == 6
    assert found.total() <= most, found


def test_a_frame_of_known_elements_is_checked_without_a_loop(index):
    spec = DescriptorSpec(species="neighbours", elements=("Si", "O"))
    frame_of_both = np.array([8, 14])
    check_elements(index.elements, np.array([14]))
    found = calls_of(lambda *_: (spec.check_elements({0, 8, 14}), check_elements(("O", "Si"), frame_of_both)), index)
    assert found == {("descriptors.py", "check_elements"): 1, ("elements.py", "check_elements"): 1}


def test_what_a_spec_knows_of_itself_is_no_part_of_it():
    spec, other = DescriptorSpec(species="centre"), DescriptorSpec(species="centre")
    assert (spec.width, spec.n_blocks, spec.by_centre) == (64, 1, True)
    assert spec == other
    assert hash(spec) == hash(other)
    assert repr(spec) == repr(other)


def test_no_query_has_no_sum(index):
    nothing = np.empty((0, 63))
    for threads in (1, 2):
        assert index.log_kernel_sum(nothing, threads).shape == (0,)
        assert index.upper_bound(nothing, 3.0, threads=threads).shape == (0,)
        assert Environments(index.spec, silicon(1)).compute(np.arange(0), threads).shape == (0, 63)
