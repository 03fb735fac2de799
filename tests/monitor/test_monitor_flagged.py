"""values="flagged" and precision="single" decide what exact values in double precision decide."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import ranks
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from loose import MOST, Loose, check_published, pairs
from watched import frames_of, rows_of, run_of, steps_of

from quests_md import Session
from quests_md.errors import MonitorError
from quests_md.frame import Frame
from quests_md.monitor import Band, Monitor
from quests_md.monitor._measure import CHUNK, Flagged, is_sampled

INF = math.inf
DOUBLE = {"precision": "double"}
MODES = [{"values": "flagged"}, {"precision": "single"}, {"values": "flagged", **DOUBLE}]
DECIDED = ("step", "evaluated", "band", "save", "stop", "reasons", "maximum", "max_id", "n", "n_select", "n_halt")

_VALUES = st.one_of(
    st.sampled_from([-3.0, 0.0, 1.0, 2.0, 2.0 + 1e-12, 2.00005, 1e3, INF]),
    st.floats(-30.0, 100.0),
    st.floats(-1e9, 1e9),
)


@st.composite
def runs(draw):
    """Draw ids, dH of several frames, thresholds, who owns what, and a share."""
    n = draw(st.integers(1, 40))
    ids = draw(st.lists(st.integers(-5, 2**63 - 1), min_size=n, max_size=n, unique=True))
    frames = draw(st.lists(st.lists(_VALUES, min_size=n, max_size=n), min_size=1, max_size=4))
    near = [x for dH in frames for x in dH]
    near += [-INF, INF, *np.nextafter(near, -INF).tolist(), *(x + d for x in near for d in (-5e-5, 2e-5, 5e-4))]
    select, halt = sorted(draw(st.lists(st.sampled_from(near), min_size=2, max_size=2)))
    owners = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return np.array(ids), np.array(frames), select, halt, np.array(owners), draw(st.sampled_from([0.0, 0.2, 1.0]))


@settings(max_examples=150, deadline=None)
@given(runs(), st.sampled_from([1, 2, 4]), st.randoms(use_true_random=False))
def test_all_modes_decide_the_same(run, size, random):
    ids, frames, select, halt, owners, share = run
    owners, n = owners % size, len(ids)
    reference = Loose(frames.ravel())
    rng = np.random.default_rng(random.getrandbits(32))

    def observe(comm, mode, orders):
        monitor = Monitor(reference, select=select, halt=halt, save_every=2, comm=comm, **mode)
        if monitor._flagged is not None:
            monitor._flagged.share = share  # few atoms would all be the sample
        decisions = []
        for step, order in enumerate(orders):
            mine = order[owners[order] == comm.rank]
            if monitor._flagged is not None:
                monitor._flagged.hints[:] = rng.integers(-(2**31), 2**31, len(monitor._flagged.hints))
            decision = monitor.observe(pairs(step * n + mine, ids[mine], step))
            check_published(decision, frames[step][mine], select)
            decisions.append(decision)
        return decisions

    def on_ranks(mode):
        orders = [rng.permutation(n) for _ in frames]
        results = ranks.run(size, lambda comm: observe(comm, mode, orders))
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    (expected, *_) = on_ranks(DOUBLE)
    for mode in MODES:
        for decisions in on_ranks(mode):
            for decision, wanted in zip(decisions, expected, strict=True):
                assert {x: getattr(decision, x) for x in DECIDED} == {x: getattr(wanted, x) for x in DECIDED}


# -- what flagged values cost, and where their statistics come from -----------------------------------------


@pytest.fixture
def many():
    """3000 atoms with ids that have gaps, and their dH at two steps that differ little."""
    rng = np.random.default_rng(5)
    dH = rng.gamma(3.0, 1.0, MOST // 2)
    return 7 * rng.permutation(3000)[: MOST // 2] + 10**9, np.concatenate([dH, dH + rng.normal(0, 0.01, MOST // 2)])


def watch(reference, ids, select, steps=2, **options):
    monitor = Monitor(reference, select=select, halt=INF, **({"values": "flagged"} | options))
    return [monitor.observe(pairs(step * len(ids) + np.arange(len(ids)), ids, step)) for step in range(steps)]


@pytest.mark.parametrize("select", [-1.0, 3.0, 9.0, 1e3, INF])
def test_mean_and_quantiles_are_those_of_a_fixed_sample(many, select):
    ids, dH = many
    sample = is_sampled(ids, 128 / len(ids))
    assert 90 < sample.sum() < 170
    for decision, exact in zip(watch(Loose(dH), ids, select), dH.reshape(2, -1), strict=True):
        check_published(decision, exact, select, is_exact=sample)
        assert decision.values == ("exact" if decision.save else "flagged")
        assert decision.mean == pytest.approx(exact[sample].mean(), rel=1e-12)
        for value, q in [(decision.q50, 0.5), (decision.q99, 0.99)]:
            wanted = np.quantile(exact[sample], q, method="inverted_cdf")
            assert abs(value - wanted) <= 0.07 * (1 + abs(wanted))


def test_few_atoms_are_all_the_sample(many):
    ids, dH = many
    (decision,) = watch(Loose(dH), ids[:128], 1e3, steps=1)
    np.testing.assert_array_equal(decision.dH, dH[:128])
    assert decision.mean == pytest.approx(dH[:128].mean())


def test_few_sums_are_computed(many):
    ids, dH = many
    n = len(ids)
    sample = is_sampled(ids, 128 / n)
    dH[:n][sample], dH[n:][sample] = 3.5, 3.5  # many are above: the first evaluation knows no better
    reference = Loose(dH)
    for decision in watch(reference, ids, select=1e3):
        assert not decision.save
    first, second = reference.asked.reshape(2, -1)
    assert sample.sum() + 300 < first.sum() <= np.count_nonzero(dH[:n] >= 3.5)
    assert second.sum() <= sample.sum() + 16 + 3
    assert reference.most <= 2 * CHUNK


@pytest.mark.parametrize("select", [-INF, 1e-3])
def test_where_nothing_can_be_bounded_every_sum_is_computed_once(many, select):
    ids, dH = many
    reference = Loose(dH)
    watch(reference, ids, select)
    assert reference.asked.max() == 1
    assert reference.most <= 2 * CHUNK


def test_atoms_that_are_all_the_same_are_all_candidates_for_the_maximum(many):
    ids = many[0]
    for dH in (2.0, 0.0, -4.0, 1e5, INF):
        for decision in watch(Loose(np.full(MOST, dH)), ids, INF):
            assert (decision.maximum, decision.max_id) == (dH, ids.min())
    nearly = 2.0 + 1e-15 * np.arange(MOST)  # the last bits differ
    for decision, exact in zip(watch(Loose(nearly), ids, INF), nearly.reshape(2, -1), strict=True):
        assert (decision.maximum, decision.max_id) == (exact.max(), ids[exact == exact.max()].min())


def test_the_sample_is_spread_over_any_ids():
    rng = np.random.default_rng(0)
    for ids in (np.arange(10**5), np.arange(10**5) * 64 + 2**40, -np.arange(10**5), rng.integers(0, 2**63, 10**5)):
        assert 80 < is_sampled(ids, 128 / 10**5).sum() < 180
        assert is_sampled(ids, 1.0).all()
        order = rng.permutation(len(ids))
        np.testing.assert_array_equal(is_sampled(ids[order], 0.01), is_sampled(ids, 0.01)[order])
    assert is_sampled(np.arange(1, 4097), 1 / 32).reshape(8, -1).sum(axis=1).min() > 5


def test_hints_are_found_again_when_the_table_has_grown():
    kept = Flagged()
    rng = np.random.default_rng(1)
    ids = rng.choice(10**5, 10, replace=False)
    slots = kept._find_slots(ids)
    kept.hints[slots] = np.arange(10)
    before = kept.hints[kept._find_slots(ids)]
    more = np.concatenate([ids, 10**5 + np.arange(50_000)])
    slots = kept._find_slots(more)
    np.testing.assert_array_equal(kept.hints[slots[:10]], before)
    assert 2 * len(more) <= len(kept.hints) <= 32 * len(more)
    dense = Flagged()
    assert len(np.unique(dense._find_slots(np.arange(1000) * 9))) == 1000  # as of one rank of nine
    assert dense._find_slots(np.array([2**63 - 1, -1, 0])).max() < len(dense.hints) <= 2**14


def test_a_frame_may_lose_and_gain_atoms(many):
    ids, dH = many
    monitor = Monitor(Loose(dH), select=INF, halt=INF, values="flagged")
    for step, kinds in enumerate([np.arange(0), np.arange(1), np.arange(0), np.arange(2000), np.arange(1500, 2000)]):
        decision = monitor.observe(pairs(kinds, ids[kinds], step))
        assert (decision.n, decision.maximum) == (len(kinds), dH[kinds].max(initial=-INF))
    assert monitor._flagged.share == 1.0  # of the first frame that had an atom


# -- silicon, with an index ------------------------------------------------------------------------------------


def silicon(scale=0.0, seed=0):
    atoms = bulk("Si", cubic=True) * (3, 3, 3)
    if scale:
        atoms.rattle(scale, seed=seed)
    return atoms


def owners_of(atoms, size):
    length = atoms.cell[0, 0]
    return (atoms.positions[:, 0] // (length / min(size, 2)) % 2 * 2 + atoms.positions[:, 2] // (length / 2) % 2) % size


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("quantile", [-INF, -0.1, 0.5, 0.99, 1.0, 1.1, INF])
def test_silicon_in_all_modes(index, mode, size, quantile):
    steps = [silicon(0.05, 1), silicon(0.05, 2), silicon(0.15, 3), silicon(0.05, 1)]
    known = index.delta_entropy(steps[0])
    select = np.quantile(known, quantile) if 0 <= quantile <= 1 else 100 * quantile
    options = {"select": select, "halt": max(select, known.max() + 5.0), "save_every": 3}

    def watch(comm, **mode):
        monitor = Monitor(index, comm=comm, **options, **mode)
        monitor.warm_up()
        decisions, rng = [], np.random.default_rng(comm.rank)
        for step, atoms in enumerate(steps):
            whole = Frame.from_atoms(atoms, ids=np.arange(216) + 1, step=step)
            if step == 2 and monitor._flagged is not None:  # hints are full of garbage
                monitor._flagged.hints[:] = rng.integers(-(2**31), 2**31, len(monitor._flagged.hints))
            decisions.append(monitor.observe(ranks.part_of(atoms, whole, owners_of(atoms, size), comm.rank)))
        return decisions

    exact = ranks.run(size, lambda comm: watch(comm, **DOUBLE))
    for ours, theirs in zip(ranks.run(size, lambda comm: watch(comm, **mode)), exact, strict=True):
        for decision, wanted in zip(ours, theirs, strict=True):
            for name in DECIDED:
                assert getattr(decision, name) == getattr(wanted, name), name
            check_published(decision, wanted.dH, select)


@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_crystal(index, mode):
    atoms, rng = silicon(), np.random.default_rng(2)
    for _ in range(3):
        frame = Frame.from_atoms(atoms[rng.permutation(216)], ids=rng.choice(10**17, 216, replace=False))
        watched = rng.random(216) < 0.9
        for frame.watched in (np.ones(216, bool), watched):
            ours, exact = (Monitor(index, select=INF, halt=INF, **m) for m in (mode, DOUBLE))
            if ours._flagged is not None:
                ours._flagged.share = 0.1
            wanted = exact.observe(frame)
            for _ in range(2):
                decision = ours.observe(frame)
                assert (decision.maximum, decision.max_id, decision.n) == (wanted.maximum, wanted.max_id, wanted.n)
                np.testing.assert_array_equal(np.isnan(decision.dH), ~frame.watched)


def test_measure_is_exact_in_all_modes(index):
    frame = Frame.from_atoms(silicon(0.08, 4))
    for mode in MODES:
        np.testing.assert_array_equal(
            Monitor(index, select=0, halt=1, **mode).measure(frame), index.delta_entropy(frame)
        )


@pytest.mark.parametrize("mode", [DOUBLE, *MODES])
def test_rows_are_not_kept(index, mode):
    atoms = bulk("Si", cubic=True) * (12, 12, 12)
    atoms.rattle(0.03, seed=1)
    frame = Frame.from_atoms(atoms)
    reference = Loose(np.random.default_rng(0).normal(size=MOST))
    reference.spec, reference.find = index.spec, lambda rows: np.rint(1e6 * rows[:, 0]).astype(int) % MOST
    monitor = Monitor(reference, select=INF, halt=INF, **mode)
    monitor.observe(frame)
    tracemalloc.start()
    monitor.observe(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * len(atoms) * 8 * index.spec.width


# -- failures --------------------------------------------------------------------------------------------------


class Fails(Loose):
    """Has no answer for one environment, when asked for its exact dH."""

    def __init__(self, dH, kind):
        super().__init__(dH)
        self.kind = kind

    def log_kernel_sum(self, query, threads=None, *, precision="double"):
        if (self.find(query) == self.kind).any():
            raise MemoryError("no room")
        return super().log_kernel_sum(query, threads, precision=precision)


@pytest.fixture
def low(many):
    """An atom that is bounded at every step: not of the sample, and with a low dH."""
    ids, dH = many
    return int(np.flatnonzero(~is_sampled(ids, 128 / len(ids)) & (dH[: len(ids)] < 1.0))[0])


@pytest.mark.parametrize("victim", [0, 2])
def test_a_failure_while_a_frame_is_made_whole_fails_all(many, low, victim, tmp_path):
    ids, dH = many
    owners = np.resize([0, 1, 2], len(ids))
    owners[low] = victim

    def work(comm):
        reference = Fails(dH.copy(), low)
        monitor = Monitor(reference, select=20.0, halt=2e3, comm=comm, values="flagged", consecutive=1)
        with Session(monitor, tmp_path / "uq") as session:
            mine = np.flatnonzero(owners == comm.rank)
            session.observe(pairs(mine, ids[mine], 0))
            reference.dH[dH[: len(ids)].argmax()] = 50.0
            session.observe(pairs(mine, ids[mine], 1))

    results = ranks.run(3, work)
    assert {str(result) for result in results} == {
        f"watching failed at step 1 on rank {victim} of 3: MemoryError: no room"
    }
    assert [type(result) for result in results] == [MonitorError] * 3
    assert not frames_of(tmp_path / "uq")
    assert steps_of(tmp_path / "uq", "last") == [0]
    assert run_of(tmp_path / "uq")["status"] == "failed"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_failure_at_the_first_evaluation_leaves_the_share_open(many, victim):
    ids, dH = many

    def work(comm):
        monitor = Monitor(Loose(dH), select=INF, halt=INF, comm=comm, values="flagged")
        mine = np.arange(comm.rank, len(ids), 2)
        broken = pairs(mine, ids[mine])
        if comm.rank == victim:
            broken.positions[0] = np.nan
        assert monitor.observe(broken).band is Band.IMPLAUSIBLE
        with pytest.raises(MonitorError, match=f"on rank {victim} of 2: KeyError: 'host'"):
            monitor.observe(pairs(mine, ids[mine]), error=KeyError("host") if comm.rank == victim else None)
        assert monitor._flagged.share is None
        return monitor.observe(pairs(mine, ids[mine])).max_id

    assert ranks.run(2, work) == [ids[dH[: len(ids)].argmax()]] * 2


# -- what a session makes of it ----------------------------------------------------------------------------------


def test_files_say_which_values_they_hold(many, tmp_path):
    ids, dH = many
    n = len(ids)
    halves = dH.copy()
    halves[n] = 50.0  # at the second step
    for mode in ({"values": "flagged"}, DOUBLE):
        folder = tmp_path / mode.get("values", "exact")
        with Session(
            Monitor(Loose(halves), select=20.0, halt=INF, consecutive=1, **mode), folder, novelty=False
        ) as session:
            for step in (0, 1, 2):
                session.observe(pairs(step % 2 * n + np.arange(n), ids, step))
        (saved,), (last,) = frames_of(folder), frames_of(folder, "last")
        order = np.argsort(ids)
        assert (saved.info["step"], saved.info["values"]) == (1, "exact")
        np.testing.assert_array_equal(saved.arrays["dH"], halves[n:][order])
        assert (last.info["step"], last.info["values"]) == (2, folder.name)
        assert np.array_equal(last.arrays["dH"], halves[:n][order]) == (mode == DOUBLE)
        assert [row["values"] for row in rows_of(folder)] == [folder.name] * 3
        run = run_of(folder)
        assert (run["values"], run["precision"]) == (folder.name, mode.get("precision", "single"))
    for ours, theirs in zip(rows_of(tmp_path / "flagged"), rows_of(tmp_path / "exact"), strict=True):
        for column in ("max", "max_id", "n", "n_select", "n_halt", "band", "saved"):
            assert ours[column] == theirs[column]
