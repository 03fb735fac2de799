"""The choice among the candidates of all explorations."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from quests_md import Frame, Index
from quests_md.learning._stages import Candidate, select

SELECT = {"Cu": 0.0}


def copper(rattle, seed):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(rattle, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def index():
    return Index.build([copper(0.02, seed) for seed in range(4)], bandwidth=0.03, threads=1)


def candidate(name, step, rattle, seed):
    return Candidate(name, Frame.from_atoms(copper(rattle, seed), step=step))


def chosen(index, candidates, budget=100):
    return {(candidates[i].name, candidates[i].frame.step) for i, _ in select(index, candidates, SELECT, budget, 1)}


def test_what_two_explorations_propose_alike_is_labelled_once(index):
    candidates = [candidate("hot", 20, 0.3, 1), candidate("cold", 10, 0.3, 1), candidate("hot", 30, 0.3, 2)]
    assert chosen(index, candidates) == {("cold", 10), ("hot", 30)}


def test_what_is_covered_is_not_labelled(index):
    candidates = [candidate("hot", 20, 0.3, 1), candidate("hot", 10, 0.02, 2)]
    below = index.delta_entropy(candidates[1].frame).max()
    (kept,) = select(index, candidates, {"Cu": float(below)}, 10, 1)
    assert kept[0] == 0
    np.testing.assert_allclose(kept[1], index.delta_entropy(candidates[0].frame), rtol=0, atol=1e-9)


def test_a_budget_keeps_the_frames_with_more_novel_environments(index):
    few = copper(0.0, 0)
    few.positions[0] += 0.3
    candidates = [Candidate("a", Frame.from_atoms(few, step=0)), *(candidate("a", 10 + i, 0.3, i) for i in range(3))]
    select_at = {"Cu": float(index.delta_entropy(Frame.from_atoms(copper(0.0, 0))).max()) + 1.0}
    kept = {candidates[i].frame.step for i, _ in select(index, candidates, select_at, 3, 1)}
    assert kept == {10, 11, 12}


def test_the_order_of_the_explorations_changes_nothing(index):
    candidates = [candidate(name, step, 0.1 + 0.05 * step, step) for name in "ab" for step in range(5)]
    found = chosen(index, candidates, 4)
    assert len(found) == 4
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(candidates))
        assert chosen(index, [candidates[i] for i in order], 4) == found
