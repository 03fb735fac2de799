"""The choice among the candidates of all explorations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase.build import bulk

from quests_md import Frame, Index
from quests_md.errors import InputError
from quests_md.index import calibrate, fit_local_bound, match_residuals
from quests_md.learning._choosing import Candidate, select

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
    return {(candidates[i].name, candidates[i].frame.step) for i, *_ in select(index, candidates, SELECT, budget, 1)}


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
    kept = {candidates[i].frame.step for i, *_ in select(index, candidates, select_at, 3, 1)}
    assert kept == {10, 11, 12}


def test_the_order_of_the_explorations_changes_nothing(index):
    candidates = [candidate(name, step, 0.1 + 0.05 * step, step) for name in "ab" for step in range(5)]
    found = chosen(index, candidates, 4)
    assert len(found) == 4
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(candidates))
        assert chosen(index, [candidates[i] for i in order], 4) == found


# -- by the force error to be expected ---------------------------------------------------------------------------------


def strained(rattle, seed, strain):
    atoms = copper(rattle, seed)
    atoms.set_cell(atoms.cell * strain, scale_atoms=True)
    return atoms


def wide(name, step, rattle, seed):
    return Candidate(name, Frame.from_atoms(strained(rattle, seed, 1.06), step=step))


@pytest.fixture(scope="module")
def with_residuals():
    """An index of two kinds of frames: on the crystal the potential is right, on the strained one it is wrong."""
    right = [Frame.from_atoms(copper(0.05, seed)) for seed in range(10)]
    wrong = [Frame.from_atoms(strained(0.05, seed, 1.06)) for seed in range(10)]
    rng = np.random.default_rng(0)
    made = Index.build([*right, *wrong], bandwidth=0.03, threads=1)
    size = [0.05] * len(right) + [0.6] * len(wrong)
    errors = [(f, s * rng.uniform(0.8, 1.2, len(f.positions))) for f, s in zip(right + wrong, size, strict=True)]
    made = made.with_residuals(match_residuals(made, errors, name="A", fingerprint="a" * 64, threads=1))
    made.calibration = calibrate(made, threads=1)
    return made


@pytest.fixture(scope="module")
def calibrated(with_residuals):
    made = with_residuals.with_residuals(*with_residuals.residuals)
    bound = fit_local_bound(made, coverage=0.8, threads=1)
    made.calibration = dataclasses.replace(made.calibration, local_error=bound)
    return made


def picked(index, candidates, budget, by, threshold=-1.0):
    found = select(index, candidates, {"Cu": threshold}, budget, 1, by=by)
    return [(candidates[one.place].name, candidates[one.place].frame.step) for one in found]


def test_by_error_the_frames_come_first_where_the_potential_is_wrong(with_residuals):
    candidates = [candidate("far", 0, 0.15, 1), candidate("far", 10, 0.15, 2), wide("wrong", 20, 0.12, 7)]
    new = [int((with_residuals.delta_entropy(one.frame) > -1.0).sum()) for one in candidates]
    assert min(new[:2]) > new[2] > 0  # so by dH the strained frame is the last
    assert "wrong" not in dict(picked(with_residuals, candidates, 2, "dH"))
    (one,) = select(with_residuals, candidates, {"Cu": -1.0}, 1, 1, by="error")
    assert candidates[one.place].name == "wrong"
    np.testing.assert_allclose(one.errors, with_residuals.local_residuals(candidates[2].frame, 1)[1], atol=1e-6)


def test_where_it_is_calibrated_the_expected_error_ranks(calibrated):
    candidates = [candidate("right", 0, 0.05, 1), wide("wrong", 10, 0.05, 2)]
    (one,) = select(calibrated, candidates, {"Cu": -7.0}, 1, 1, by="error")
    assert candidates[one.place].name == "wrong"
    dH, s = calibrated.local_residuals(candidates[1].frame, 1)
    expected = calibrated.calibration.local_error.expected(dH, s, candidates[1].frame.numbers)
    assert not np.isnan(expected).any()
    np.testing.assert_allclose(one.errors, expected, atol=1e-6)


def test_what_is_outside_counts_as_the_most_wrong(calibrated):
    candidates = [wide("wrong", 0, 0.06, 1), candidate("outside", 10, 0.5, 2)]
    found = select(calibrated, candidates, {"Cu": -1.0}, 1, 1, by="error")
    assert candidates[found[0].place].name == "outside"
    assert np.isnan(found[0].errors).any()


def test_both_counts_how_many_environments_are_new_and_how_wrong_they_are(with_residuals):
    # 29 new environments of 0.05 eV/Å; 7 of 0.6 eV/Å; 18 of 0.6 eV/Å: so neither the number nor the size decides alone.
    candidates = [candidate("many", 0, 0.18, 7), wide("few", 10, 0.12, 10), wide("some", 20, 0.15, 7)]
    assert [name for name, _ in picked(with_residuals, candidates, 3, "both")] == ["some", "few", "many"]
    assert dict(picked(with_residuals, candidates, 1, "dH")) == {"many": 0}


@pytest.mark.parametrize("by", ["error", "both"])
def test_ranks_do_not_depend_on_the_order_and_copies_are_labelled_once(calibrated, by):
    candidates = [wide(name, step, 0.13 + 0.01 * step, step) for name in "ab" for step in range(4)]
    found = picked(calibrated, candidates, 3, by)
    assert len(found) == 3
    assert {name for name, _ in found} == {"a"}  # those of b are the same frames: equal, and later by their name
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(candidates))
        assert picked(calibrated, [candidates[i] for i in order], 3, by) == found


def test_without_residuals_there_is_no_error_to_rank_by(index):
    with pytest.raises(InputError, match="has no residuals"):
        select(index, [candidate("hot", 20, 0.3, 1)], SELECT, 1, 1, by="both")
