"""Which frames a run keeps: novelty against its twin, ranks, budgets, copies, resuming."""

from __future__ import annotations

import json
from dataclasses import dataclass

import naive
import numpy as np
import pytest
import ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import InputError, MonitorError
from quests_md.information import log_kernel_sum
from quests_md.selection import SKIPPED, Kept, Selection, _selection

H = 0.02
SPEC = DescriptorSpec(k=4)


class Rows:
    """A reference of some rows: what a selection needs of an index."""

    spec, bandwidth = SPEC, H

    def __init__(self, rows):
        self.rows = rows

    def delta_entropy(self, query):
        return -log_kernel_sum(query, self.rows, H)


@dataclass
class Part:
    """A rank's part of a frame: a `Proposal` of rows that are known."""

    step: int
    ids: np.ndarray
    dH: np.ndarray
    select: float
    all_rows: np.ndarray

    def rows(self, which):
        return self.all_rows[which]


def reference(rng=None):
    rng = np.random.default_rng(0) if rng is None else rng
    return Rows(rng.normal(0.0, H / 3, (50, SPEC.width)))


def frames_of(n, atoms=12, seed=1, spread=0.1):
    """Return frames of environments away from the reference, farther and farther."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0.0, spread * (1 + t) / n, (atoms, SPEC.width)) for t in range(n)]


def part(index, rows, step, select=0.0, mine=None):
    """Return what is above `select` of the rows of a frame, or of those that a rank has."""
    mine = np.arange(len(rows)) if mine is None else mine
    dH = index.delta_entropy(rows[mine])
    up = dH > select
    return Part(step, mine[up] + 1, dH[up], select, rows[mine][up])


def verdicts(selection, index, frames, select=0.0, first=0):
    return [selection.consider(part(index, rows, first + t, select)) for t, rows in enumerate(frames)]


@given(st.integers(0, 2**31), st.sampled_from([-3.0, 0.0, 4.0]), st.sampled_from([None, 2]))
@settings(max_examples=25, deadline=None)
def test_novelty_is_that_of_the_twin(seed, select, budget) -> None:
    index, frames = reference(), frames_of(25, seed=seed)
    selection, kept = Selection(index, budget=budget, spare=1), {}
    for t, rows in enumerate(frames):
        verdict = selection.consider(part(index, rows, t, select))
        novelty, novel = naive.novelty(rows, index.rows, list(kept.values()), select, H)
        assert verdict.novelty == pytest.approx(novelty.max(initial=-np.inf), abs=1e-9)
        assert verdict.n_novel == novel
        if verdict.keep:
            kept.pop(verdict.drop, None)
            kept[verdict.ordinal] = rows[index.delta_entropy(rows) > select]
    assert [record.ordinal for record in selection.kept] == list(kept)


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]), st.sampled_from([None, 3]))
@settings(max_examples=15, deadline=None)
def test_ranks_decide_the_same_however_atoms_are_distributed(seed, size, budget) -> None:
    index, frames = reference(), frames_of(20, seed=seed)
    alone = verdicts(Selection(index, budget=budget, spare=2), index, frames)
    owners = [np.random.default_rng(seed + t).integers(0, size, len(rows)) for t, rows in enumerate(frames)]

    def work(comm):
        selection = Selection(index, budget=budget, spare=2, comm=comm)
        parts = [part(index, rows, t, mine=np.flatnonzero(owners[t] == comm.rank)) for t, rows in enumerate(frames)]
        return [selection.consider(mine) for mine in parts]

    assert ranks.run(size, work) == [alone] * size


def test_the_first_candidate_is_kept_and_a_covered_frame_is_not() -> None:
    index, rows = reference(), frames_of(1)[0]
    selection = Selection(index)
    nothing = selection.consider(part(index, index.rows, 0))
    assert (nothing.keep, nothing.novelty, nothing.n_novel, nothing.reason) == (False, -np.inf, 0, "copy")
    first = selection.consider(part(index, rows, 1))
    assert (first.keep, first.ordinal, first.reason) == (True, 0, "new")
    assert first.novelty == index.delta_entropy(rows).max()


@pytest.mark.parametrize("select", [-40.0, 0.0, 5.0])
def test_a_copy_is_never_kept_twice(select) -> None:
    index, rows = reference(), frames_of(1, atoms=6)[0]
    made = verdicts(Selection(index, spare=1), index, [rows] * 30, select)
    assert [verdict.keep for verdict in made] == [True] + [False] * 29
    assert {verdict.reason for verdict in made[1:]} == {"copy"}


def test_of_frames_that_are_all_alike_fewer_and_fewer_are_kept() -> None:
    index, rng = reference(), np.random.default_rng(3)
    frames = rng.normal(0.0, 1.0, (1000, 8, SPEC.width))  # far from each other: always novel
    made = verdicts(Selection(index), index, frames)
    assert all(verdict.n_novel == 8 for verdict in made)
    kept = np.flatnonzero([verdict.keep for verdict in made])
    # one of ten for the first ten, then one of as many as are kept: n²/2 frames for n
    assert len(kept) == pytest.approx(np.sqrt(2 * 1000 - 100), abs=2)
    assert np.diff(np.diff(kept)).min() >= 0


def watch(selection, index, frames, select=0.0, first=0):
    """Return the verdict on each frame as a run takes them; None if it is skipped."""
    made = []
    for t, rows in enumerate(frames, first):
        one = part(index, rows, t, select)
        skips = selection.skips(len(one.ids), one.dH.max(initial=-np.inf) - select)
        made.append(None if skips else selection.consider(one))
    return made


def test_the_more_a_run_has_kept_the_fewer_frames_it_judges_and_it_keeps_as_many() -> None:
    index, rng = reference(), np.random.default_rng(3)
    frames = rng.normal(0.0, 1.0, (3000, 8, SPEC.width))
    selection = Selection(index)
    made = watch(selection, index, frames)
    work = kept = 0  # judged frames, each as often as frames were kept before it
    for verdict in made:
        work += kept * (verdict is not None)
        kept += verdict is not None and verdict.keep
    assert kept == pytest.approx(np.sqrt(2 * 3000 - 100), abs=5)
    assert work < 9 * len(frames)  # of as many as 77; with fewer than ten all are judged
    bigger = rng.normal(0.0, 1.0, (33, SPEC.width))
    assert [verdict and verdict.reason for verdict in watch(selection, index, [*frames[:3], bigger])][-1] == "new"


@pytest.mark.parametrize("stop", [10, 57, 200])
def test_what_was_skipped_is_known_to_a_resumed_run(stop) -> None:
    index, rng = reference(), np.random.default_rng(4)
    frames = rng.normal(0.0, 1.0, (400, 4, SPEC.width))
    whole = watch(Selection(index, spare=2), index, frames)
    assert None in whole[:stop]
    after, kept = Selection(index, spare=2), []
    for t, verdict in enumerate(whole[:stop]):
        if verdict is not None and verdict.keep:
            kept.append((t, Kept(verdict.ordinal, t, verdict.information)))
    rows = [(SKIPPED, np.nan, False) if v is None else (v.n_novel, v.excess, v.keep) for v in whole[:stop]]
    after.recall(*(np.array(column) for column in zip(*rows, strict=True)))
    for t, one in kept:
        after.add(part(index, frames[t], t), one)
    assert watch(after, index, frames[stop:], first=stop) == whole[stop:]


def test_something_bigger_is_kept_at_once() -> None:
    index, rng = reference(), np.random.default_rng(3)
    small, big = rng.normal(0.0, 1.0, (5, 2, SPEC.width)), rng.normal(0.0, 1.0, (1, 9, SPEC.width))
    made = verdicts(Selection(index), index, [*small, *big])
    assert [verdict.keep for verdict in made] == [True, False, False, False, False, True]
    assert made[-1].reason == "new"


def test_the_first_frame_of_an_event_is_kept_if_anything_in_it_is_novel() -> None:
    index, rng = reference(), np.random.default_rng(3)
    frames = rng.normal(0.0, 1.0, (4, 3, SPEC.width))
    selection = Selection(index)
    made = [
        selection.consider(part(index, rows, t), first=first)
        for t, (rows, first) in enumerate(zip([*frames, frames[2]], [True, False, True, False, True], strict=True))
    ]
    assert [verdict.keep for verdict in made] == [True, False, True, False, False]  # the last is a copy
    assert [verdict.reason for verdict in made] == ["new", "copy", "new", "copy", "copy"]


def test_something_far_stranger_is_kept_at_once() -> None:
    index, rng = reference(), np.random.default_rng(3)
    near = rng.normal(0.0, 0.1, (5, 3, SPEC.width))
    made = verdicts(Selection(index), index, [*near, near[-1][:1] + 5.0])
    assert [verdict.keep for verdict in made] == [True, False, False, False, False, True]
    assert (made[-1].n_novel, made[-1].reason) == (1, "new")


def test_a_full_budget_keeps_the_most_informative() -> None:
    index, rng = reference(), np.random.default_rng(3)
    frames = [rng.normal(0.0, 1.0, (n, SPEC.width)) for n in (1, 5, 30, 300, 4)]
    selection = Selection(index, budget=2, spare=1)
    made = verdicts(selection, index, frames)
    assert [(v.keep, v.drop) for v in made] == [(True, None), (True, None), (True, 0), (True, 1), (False, None)]
    assert [(record.ordinal, record.information) for record in selection.kept] == [(2, 30.0), (3, 300.0)]
    again = selection.consider(part(index, frames[1], 9), must=True)  # what was dropped is novel again
    assert (again.n_novel, again.keep, again.drop, again.reason) == (5, True, None, "must")
    assert len(selection.kept) == 3  # what must be saved is outside of the budget


@given(st.integers(0, 2**31), st.integers(1, 29), st.sampled_from([None, 3]))
@settings(max_examples=20, deadline=None)
def test_a_resumed_run_decides_as_an_uninterrupted_one(seed, stop, budget) -> None:
    index, frames = reference(), frames_of(30, seed=seed)
    whole = verdicts(Selection(index, budget=budget, spare=2), index, frames)
    before = Selection(index, budget=budget, spare=2)
    verdicts(before, index, frames[:stop])
    state = json.loads(json.dumps(before.state()))
    after = Selection(index, budget=budget, spare=2)
    after.restore(state)
    for record in state["kept"]:
        after.add(part(index, frames[record["step"]], record["step"]), record)
    assert after.kept == before.kept
    assert verdicts(after, index, frames[stop:], first=stop) == whole[stop:]


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="start a new folder"):
        Selection(reference()).restore({"next": 3})


@pytest.mark.parametrize("values", [{"budget": 0}, {"budget": True}, {"budget": 2.0}, {"spare": 0}])
def test_counts_are_whole_numbers(values) -> None:
    with pytest.raises(InputError, match=f"{next(iter(values))} must be a whole number"):
        Selection(reference(), **values)


def test_a_large_frame_is_judged_by_a_sample_that_no_distribution_changes(monkeypatch) -> None:
    monkeypatch.setattr(_selection, "MOST_ROWS", 200)
    index, rng = reference(), np.random.default_rng(5)
    rows = rng.normal(0.0, 1.0, (2000, SPEC.width))

    def work(comm):
        selection = Selection(index, comm=comm)
        mine = np.flatnonzero(np.arange(len(rows)) % comm.size == comm.rank)
        first = selection.consider(part(index, rows, 0, mine=mine))
        return first, selection.consider(part(index, rows, 1, mine=mine)), len(selection._provisional)

    first, again, n = ranks.run(1, work)[0]
    assert ranks.run(3, work) == [(first, again, n)] * 3
    assert 150 < n < 250
    assert first.n_novel == 2000
    assert first.novelty == index.delta_entropy(rows).max()
    assert (again.keep, again.n_novel) == (False, 0)


def test_a_rank_that_fails_stops_all_ranks() -> None:
    index, rows = reference(), frames_of(1)[0]

    def work(comm):
        selection, mine = Selection(index, comm=comm), part(index, rows, 0)
        if comm.rank == 1:
            mine.all_rows = mine.all_rows[:, :3]  # as no descriptor is
        return selection.consider(mine, must=True)

    good, bad = ranks.run(2, work)
    assert isinstance(good, MonitorError)
    assert "rank 1 failed" in str(good)
    assert type(bad) is not MonitorError
    assert isinstance(bad, InputError)


def test_rows_are_laid_out_again_and_again_and_sums_stay_right() -> None:
    index, rng = reference(), np.random.default_rng(6)
    frames = rng.normal(0.0, 1.0, (9, 400, SPEC.width))
    selection = Selection(index, budget=6, spare=1)
    for t, rows in enumerate(frames):
        selection.consider(part(index, rows, t), must=t % 2 == 0)
    query = rng.normal(0.0, 1.0, (50, SPEC.width))
    rows = np.concatenate([frames[record.step] for record in selection.kept])
    sums = selection._provisional.log_kernel_sum(query, 1)
    np.testing.assert_allclose(sums, naive.log_kernel_sum(query, rows, H), rtol=1e-10)


def test_a_record_of_a_kept_frame_is_what_json_gives_back() -> None:
    record = Kept(ordinal=3, step=40, information=7.0)
    assert Kept(**json.loads(json.dumps(record.__dict__))) == record
