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
from quests_md.kernels import tally
from quests_md.monitor import Band, Monitor
from quests_md.monitor._flagged import Flagged
from quests_md.monitor._measure import CHUNK, POOLED, Part, Window

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
    return np.array(ids), np.array(frames), select, halt, np.array(owners), draw(st.sampled_from([0.0, 0.2, 1.0, 30.0]))


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
            monitor._flagged.share = share  # of few atoms all would be in the first sample
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


def samples_of(ids, steps):
    """Which atoms are in the sample at each step of a run of this many atoms, as documented."""
    n = len(ids)
    return [Window.at(POOLED / n, step, is_first=step == 0).mark(ids) for step in range(steps)]


@pytest.mark.parametrize("select", [-1.0, 3.0, 9.0, 1e3, INF])
def test_mean_and_quantiles_are_those_of_the_last_samples(many, select):
    ids, dH = many
    steps = 14
    drift = np.linspace(0.0, 1.0, steps)[:, None]
    frames = dH[: len(ids)] + drift
    references = [Loose(frame) for frame in frames]
    monitor = Monitor(references[0], select=select, halt=INF, values="flagged")
    samples, pooled = samples_of(ids, steps), []
    for step, (exact, sample) in enumerate(zip(frames, samples, strict=True)):
        monitor.index = references[step]
        decision = monitor.observe(pairs(np.arange(len(ids)), ids, 10 * step))
        check_published(decision, exact, select, is_exact=sample)
        assert decision.values == ("exact" if decision.save else "flagged")
        pooled.append(exact[sample])
        while sum(map(len, pooled[1:])) >= POOLED:
            pooled.pop(0)
        values = np.concatenate(pooled)
        assert (decision.n_sample, decision.sample_age) == (len(values), 10 * (len(pooled) - 1))
        assert decision.mean == pytest.approx(values.mean(), rel=1e-12)
        for value, q in [(decision.q50, 0.5), (decision.q99, 0.99)]:
            wanted = np.quantile(values, q, method="inverted_cdf")
            assert abs(value - wanted) <= 0.07 * (1 + abs(wanted))
    assert 5 < len(pooled) < steps  # the large first sample has left


def test_exact_values_are_all_the_sample(many):
    ids, dH = many
    for decision, exact in zip(watch(Loose(dH), ids, 1e3, values="exact", **DOUBLE), dH.reshape(2, -1), strict=True):
        assert (decision.n_sample, decision.sample_age) == (len(ids), 0)
        assert decision.mean == pytest.approx(exact.mean(), rel=1e-12)


def test_the_first_sample_of_few_atoms_is_all_of_them(many):
    ids, dH = many
    first, second = (np.copy(some) for some in dH.reshape(2, -1)[:, :100])
    one, two = watch(Loose(np.concatenate([first, second])), ids[:100], 1e3)
    np.testing.assert_array_equal(one.dH, first)
    assert one.mean == pytest.approx(first.mean())
    assert (one.n_sample, one.sample_age) == (100, 0)
    sample = samples_of(ids[:100], 2)[1]
    assert 0 < sample.sum() < 20
    assert two.mean == pytest.approx(np.concatenate([first, second[sample]]).mean())
    assert (two.n_sample, two.sample_age) == (100 + sample.sum(), 1)


def test_the_sample_goes_through_all_atoms(many):
    ids = many[0]
    n = len(ids)
    seen = np.zeros(n, int)
    for sample in samples_of(ids, n // 16)[1:]:  # without the first, which is larger
        assert sample.sum() < 40
        seen += sample
    assert np.count_nonzero(seen == 1) > 0.97 * n
    assert seen.max() <= 2


def test_a_repeated_evaluation_adds_nothing(many):
    ids, dH = many
    monitor = Monitor(Loose(dH), select=INF, halt=INF, values="flagged")
    frame = pairs(np.arange(len(ids)), ids)
    first, again = monitor.observe(frame), monitor.observe(frame)
    assert again.again
    named = ("mean", "q50", "q99", "n_sample", "sample_age")
    assert [getattr(first, name) for name in named] == [getattr(again, name) for name in named]
    assert monitor._flagged.count == 1


def test_a_new_run_begins_a_new_pool(many):
    ids, dH = many
    monitor = Monitor(Loose(dH), select=INF, halt=INF, values="flagged")
    for step in (10, 20, 5):
        decision = monitor.observe(pairs(np.arange(step, len(ids)), ids[step:], step))
    assert (decision.run, decision.sample_age) == (2, 0)
    assert 0 < decision.n_sample < 40


def test_few_sums_are_computed(many):
    ids, dH = many
    n = len(ids)
    samples = samples_of(ids, 2)
    dH[:n][samples[0]] = 3.5  # hundreds are above: the first evaluation knows no better
    reference = Loose(dH)
    for decision in watch(reference, ids, select=1e3):
        assert not decision.save
    first, second = reference.asked.reshape(2, -1)
    assert np.count_nonzero(dH[:n] > 3.5) > 600
    assert samples[0].sum() < first.sum() < samples[0].sum() + 100
    assert second.sum() <= samples[1].sum() + 2 + 3
    assert reference.most <= 2 * CHUNK


class Guessing(Loose):
    """A reference that also guesses, rather badly, how large dH is that it does not bound."""

    def search(self, query, threshold, memory, threads=None):
        bounds = self.upper_bound(query, threshold, memory, threads)
        kinds = self.find(query)
        open_ = ~(bounds <= threshold)
        bounds[open_ & (kinds % 2 == 0)] = np.nan  # undecided
        return bounds, self.dH[kinds] + np.cos(1e3 * kinds)


@pytest.mark.parametrize("select", [2.0, 9.0, INF])
def test_guesses_spare_sums_and_change_nothing(many, select):
    ids, dH = many
    exact = dH[: len(ids)]
    plain, guessing = (watch(kind(dH), ids, select) for kind in (Loose, Guessing))
    for ours, theirs in zip(plain, guessing, strict=True):
        assert {x: getattr(ours, x) for x in DECIDED} == {x: getattr(theirs, x) for x in DECIDED}
        assert (ours.mean, ours.n_sample) == (theirs.mean, theirs.n_sample)
    check_published(guessing[0], exact, select)
    reference = Guessing(np.where(samples_of(ids, 1)[0], 0.0, exact))  # the first maximum is far too low
    watch(reference, ids, INF, steps=1)
    assert reference.asked.sum() < POOLED + 150


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
        assert 80 < Window.at(POOLED / 10**5, 0, is_first=True).mark(ids).sum() < 180
        assert 0 < np.mean([Window.at(POOLED / 10**5, i).mark(ids).sum() for i in range(20)]) < 25
        assert Window.at(1.0, 3, is_first=True).mark(ids).all()
        order = rng.permutation(len(ids))
        window = Window.at(1.0, 123)
        np.testing.assert_array_equal(window.mark(ids[order]), window.mark(ids)[order])
    first = Window.at(1 / 32, 0, is_first=True).mark(np.arange(1, 4097))
    assert first.reshape(8, -1).sum(axis=1).min() > 5


@pytest.mark.parametrize(("n", "some"), [(1, 1), (3, 3), (4, 4), (64, 4), (256, 4), (512, 8), (1024, 16), (10**6, 16)])
def test_the_sample_of_an_evaluation_has_its_size(n, some):
    window = Window.at(POOLED / n, 0)
    assert n * window.width / 2**32 == pytest.approx(some, rel=1e-3)
    assert Window.at(0.0, 5).width == 0


def test_hints_are_found_again_when_the_table_has_grown():
    kept = Flagged()
    rng = np.random.default_rng(1)
    ids = rng.choice(10**5, 10, replace=False)

    def recall(ids):
        kept._make_room(len(ids), int(ids.max()))
        memory = np.empty(len(ids), np.int32)
        tally.recall(ids, kept.hints, memory)
        return memory

    recall(ids)
    kept.hints[ids & (len(kept.hints) - 1)] = np.arange(10)
    before = recall(ids)
    more = np.concatenate([ids, 10**5 + np.arange(50_000)])
    np.testing.assert_array_equal(recall(more)[:10], before)
    assert 2 * len(more) <= len(kept.hints) <= 32 * len(more)
    dense = Flagged()
    dense._make_room(1000, 9 * 999)
    assert len(np.unique(9 * np.arange(1000) & (len(dense.hints) - 1))) == 1000  # as of one rank of nine
    dense._make_room(3, 2**63 - 1)
    assert len(dense.hints) <= 2**14


def test_a_frame_may_lose_and_gain_atoms(many):
    ids, dH = many
    monitor = Monitor(Loose(dH), select=INF, halt=INF, values="flagged")
    for step, kinds in enumerate([np.arange(0), np.arange(1), np.arange(0), np.arange(2000), np.arange(1500, 2000)]):
        decision = monitor.observe(pairs(kinds, ids[kinds], step))
        assert (decision.n, decision.maximum) == (len(kinds), dH[kinds].max(initial=-INF))
    assert monitor._flagged.share == POOLED  # of the first frame that had an atom


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
                ours._flagged.share = 0.1  # few of them in the sample
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
    return int(np.flatnonzero(~np.any(samples_of(ids, 2), axis=0) & (dH[: len(ids)] < 1.0))[0])


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


@given(st.dictionaries(st.integers(0, 255), st.integers(1, 10**6), max_size=20), st.floats(allow_nan=False))
def test_a_sample_is_read_back_from_its_row(counts, total):
    histogram = np.zeros(256)
    for place, count in counts.items():
        histogram[place] = count
    part = Part(int(histogram.sum()), total, 3.0, histogram)
    again = Part.parse(str(part), 3.0)
    assert (again.n, again.total, again.maximum) == (part.n, part.total, 3.0)
    np.testing.assert_array_equal(again.histogram, histogram)
