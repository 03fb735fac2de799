"""The monitor: bands, cadences, quantiles, and the same decision on every rank."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pytest
import ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quests_md.comm import Serial, raise_together
from quests_md.errors import ElementError, FrameError, InputError, MonitorError
from quests_md.frame import Frame
from quests_md.monitor import Band, Monitor
from quests_md.monitor._measure import Pool, combine, summarise
from quests_md.recording import Session

INF = float("inf")


@pytest.fixture
def atoms(structure):
    """64 silicon atoms, some of them far from the reference."""
    atoms = structure("si_rattled")
    atoms.rattle(0.15, seed=11)
    return atoms


@pytest.fixture
def frame(atoms):
    return Frame.from_atoms(atoms, step=20, ids=np.arange(64) * 3 + 5)


def observe(index, frame, **options):
    return Monitor(index, **{"select": 1e9, "halt": 1e9, "precision": "double", "consecutive": 1} | options).observe(
        frame
    )


# -- one rank --------------------------------------------------------------------------------------


def test_a_decision_holds_the_dH_of_the_index(index, frame):
    decision = observe(index, frame, select=2.0, halt=8.0)
    dH = index.delta_entropy(frame)
    assert np.array_equal(decision.dH, dH)
    assert (decision.step, decision.evaluated, decision.n) == (20, True, 64)
    assert (decision.maximum, decision.max_id) == (dH.max(), 3 * dH.argmax() + 5)
    assert decision.mean == pytest.approx(dH.mean())
    assert decision.n_select == np.count_nonzero(dH > 2.0) > decision.n_halt
    assert decision.n_halt == np.count_nonzero(dH > 8.0) > 0
    assert decision.seconds > 0


def test_bands_are_strictly_above_their_thresholds(index, frame):
    dH = index.delta_entropy(frame)
    top = dH.max()
    below = np.nextafter(top, -INF)
    for select, halt, band in [
        (top, INF, Band.COVERED),
        (below, INF, Band.CANDIDATE),
        (below, top, Band.CANDIDATE),
        (below, below, Band.HALT),
        (-INF, below, Band.HALT),
        (top, top, Band.COVERED),
    ]:
        decision = observe(index, frame, select=select, halt=halt)
        assert decision.band is band
        assert decision.stop == (band is Band.HALT)
        assert decision.save == (band is not Band.COVERED)
        assert decision.n_select == np.count_nonzero(dH > select)
        assert decision.n_halt == np.count_nonzero(dH > halt)
        assert len(decision.reasons) == decision.save


def test_the_reason_names_the_atom_and_the_threshold(index, frame):
    decision = observe(index, frame, select=1.0, halt=2.0)
    expected = f"dH = {decision.maximum:.6g} of atom {decision.max_id} is above halt = 2"
    assert decision.reasons == (expected,)


def test_atoms_in_place_of_a_frame_are_told_how_to_become_one(index, atoms, tmp_path):
    monitor = Monitor(index, select=1e9, halt=1e9)
    with pytest.raises(FrameError, match=r"not Atoms: Frame\.from_atoms\(atoms, step\)"):
        monitor.observe(atoms)
    with Session(monitor, tmp_path / "uq") as session:
        with pytest.raises(FrameError, match=r"not Atoms: Frame\.from_atoms\(atoms, step\)"):
            session.observe(atoms)
        assert session.observe(Frame.from_atoms(atoms, step=0)).evaluated


def test_frames_are_due_at_multiples_of_every_whatever_the_first_step(index, frame):
    monitor = Monitor(index, select=0.0, halt=1e9, every=10)
    due = []
    for frame.step in range(7, 41):
        decision = monitor.observe(frame)
        assert decision.evaluated == monitor.due(frame.step)
        assert decision.evaluated or (decision.n, decision.save, decision.band) == (0, False, Band.COVERED)
        due += [frame.step] * decision.evaluated
    assert due == [10, 20, 30, 40]
    assert monitor.due(0)


def test_candidates_are_saved_at_most_every_so_many_steps(index, frame):
    monitor = Monitor(index, select=0.0, halt=1e9, every=5, save_every=20, consecutive=1)
    saved = []
    for frame.step in [5, 10, 10, 20, 25, 25, 30, 45, 50, 10, 15, 30]:  # steps repeat, and go backwards
        saved += [frame.step] * monitor.observe(frame).save
    assert saved == [5, 25, 45, 10, 30]


def test_a_frame_that_halts_is_always_saved(index, frame):
    monitor = Monitor(index, select=0.0, halt=1.0, save_every=1000)
    assert all(monitor.observe(frame).save for frame.step in range(3))


def test_only_watched_atoms_are_judged(index, frame):
    dH = index.delta_entropy(frame)
    frame.watched = dH < np.median(dH)
    decision = observe(index, frame)
    assert np.array_equal(decision.dH, np.where(frame.watched, dH, np.nan), equal_nan=True)
    assert (decision.n, decision.maximum) == (32, dH[frame.watched].max())
    assert decision.max_id == frame.ids[np.flatnonzero(dH == decision.maximum)[0]]


def test_without_watched_atoms_nothing_is_wrong(index, frame):
    frame.watched[:] = False
    decision = observe(index, frame, select=-INF)
    assert (decision.evaluated, decision.band, decision.save) == (True, Band.COVERED, False)
    assert (decision.n, decision.maximum, decision.max_id) == (0, -INF, -1)
    assert np.isnan([decision.mean, decision.q50, decision.q99]).all()


def vector_of(dH, ids):
    """The vector of a rank, with thresholds 1 and 2."""
    tables = np.full(2, 1.0), np.full(2, 2.0)
    return summarise(np.array(dH, float), np.array(ids, np.int64), np.zeros(len(dH), np.uint8), tables)


def statistics_of(summary):
    pool = Pool(0)
    pool.add(summary.part, 1, 0)
    return pool.describe(0)


def test_of_equal_maxima_the_smallest_id_is_named():
    parts = [([2.0, 1.0, 2.0], [9, 1, 7]), ([2.0], [4]), ([], [])]
    vectors = [vector_of(dH, ids) for dH, ids in parts]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert combine(np.stack([vectors[i] for i in order])).max_id == 4
    assert combine(vectors[0][None]).max_id == 7


@pytest.mark.parametrize("ids", [[2**63 - 1, 2**63 - 2, 2**63 - 3], [-3, -2, 5], [2**53 + 1, 2**53 + 2, 2**53]])
def test_an_id_keeps_all_its_bits(ids):
    dH = np.array([1.0, 2.0, 2.0])
    vectors = [vector_of(dH[part], np.array(ids)[part]) for part in ([0, 1], [2], [])]
    assert combine(np.stack(vectors)).max_id == min(ids[1:])
    assert combine(vectors[0][None]).max_id == ids[1]


def test_warming_up_leaves_no_trace(index, frame):
    monitor = Monitor(index, select=1.0, halt=2.0)
    monitor.warm_up()
    assert monitor.observe(frame).band is Band.HALT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.nan}, "not finite"),
        ({"positions": 1.0}, "share a place"),
        ({"cell": 0.0}, "singular"),
    ],
)
def test_a_frame_without_descriptors_is_implausible(index, frame, change, message):
    for name, value in change.items():
        setattr(frame, name, np.full_like(getattr(frame, name), value))
    for implausible in ("stop", "continue"):
        decision = observe(index, frame, implausible=implausible, select=-INF)
        assert decision.band is Band.IMPLAUSIBLE
        assert (decision.save, decision.stop) == (False, implausible == "stop")
        assert (decision.dH == INF).all()
        assert len(decision.dH) == 64
        assert re.search(message, decision.reasons[0])


def test_what_cannot_be_measured_is_a_monitor_error(index, frame):
    frame.numbers[:] = 29
    message = "^watching failed at step 20: ElementError: .*Cu is not in the index, which knows Si"
    with pytest.raises(MonitorError, match=message) as caught:
        observe(index, frame)
    assert isinstance(caught.value.__cause__, ElementError)


def test_a_reference_without_an_answer_is_a_monitor_error(index, frame):
    class Vague(type(index)):
        def log_kernel_sum(self, query, threads=None, *, precision="double"):
            return np.full(len(query), np.nan)

    vague = Vague(**{f.name: getattr(index, f.name) for f in fields(index)})
    with pytest.raises(MonitorError, match="not a number"):
        observe(vague, frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": 3.0, "halt": 2.0}, "select = 3.0 lies above halt = 2.0"),
        ({"select": float("nan")}, "select must be a number"),
        ({"halt": "20"}, "halt must be a number"),
        ({"halt": True}, "halt must be a number"),
        ({"every": 0}, "every must be a whole number"),
        ({"every": 2.0}, "every must be a whole number"),
        ({"save_every": True}, "save_every must be a whole number"),
        ({"values": "approximate"}, "values must be"),
        ({"precision": "half"}, "precision must be"),
    ],
)
def test_impossible_options_are_refused(index, options, message):
    with pytest.raises(InputError, match=message):
        Monitor(index, **{"select": 1.0, "halt": 5.0} | options)


# -- quantiles -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(dH=hnp.arrays(float, st.integers(1, 300), elements=st.floats(-25.0, 7e4)), parts=st.integers(1, 4))
def test_quantiles_are_as_near_as_documented(dH, parts):
    ids = np.arange(len(dH))
    cuts = np.array_split(np.arange(len(dH)), parts)
    statistics = statistics_of(combine(np.stack([vector_of(dH[cut], ids[cut]) for cut in cuts])))
    for value, q in [(statistics.q50, 0.5), (statistics.q99, 0.99)]:
        expected = np.quantile(dH, q, method="inverted_cdf")
        assert abs(value - expected) <= 0.07 * (1 + abs(expected))
        assert value <= dH.max()


def test_infinite_and_huge_values_do_not_break_the_summary():
    dH = np.array([1.0, 1e9, INF])
    summary = combine(vector_of(dH, [4, 5, 6])[None])
    statistics = statistics_of(summary)
    assert (summary.maximum, summary.max_id, statistics.mean) == (INF, 6, INF)
    assert (summary.n, summary.n_select, summary.n_halt) == (3, 2, 2)
    assert statistics.q99 == pytest.approx(8.1e4, rel=0.01)


# -- several ranks ---------------------------------------------------------------------------------


OWNERS = {
    "two halves": (2, lambda x: (x[:, 0] > 5.4).astype(int)),
    "four quarters": (4, lambda x: (x[:, 0] > 5.4) * 2 + (x[:, 2] > 5.4)),
    "anyhow": (3, lambda x: np.arange(len(x)) % 3),
    "an idle rank": (3, lambda x: (x[:, 1] > 5.4) * 2),
    "one has all": (2, lambda x: np.ones(len(x), int)),
}


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("share", [0.5, 1 + 1e-9])  # not the maximum itself: ranks round differently
def test_all_ranks_decide_what_one_rank_decides(index, atoms, frame, name, share):
    size, owner = OWNERS[name]
    owners = owner(atoms.positions)
    dH = index.delta_entropy(frame)
    options = {"select": np.median(dH), "halt": share * dH.max() + (1 - share) * np.median(dH)}
    alone = observe(index, frame, **options)
    decisions = ranks.run(
        size,
        lambda comm: observe(index, ranks.part_of(atoms, frame, owners, comm.rank), comm=comm, **options),
    )
    for rank, decision in enumerate(decisions):
        np.testing.assert_allclose(decision.dH, dH[owners == rank], rtol=1e-9)
        for field in ("band", "save", "stop", "max_id", "n", "n_select", "n_halt", "step"):
            assert getattr(decision, field) == getattr(alone, field), field
        for field in ("maximum", "mean", "q50", "q99"):
            assert getattr(decision, field) == pytest.approx(getattr(alone, field), rel=1e-10)
            assert getattr(decision, field) == getattr(decisions[0], field)
        assert decision.reasons == decisions[0].reasons


def fail_on(victim, spoil, index, frame, size=3):
    """Return what `size` ranks say of a frame that `spoil` broke on the rank `victim`."""

    def work(comm):
        mine = frame.copy()
        error = spoil(mine) if comm.rank == victim else None
        return Monitor(index, select=1.0, halt=2.0, comm=comm).observe(mine, error=error)

    return ranks.run(size, work)


def spoil_positions(frame):
    frame.positions[3] = np.nan


def spoil_numbers(frame):
    frame.numbers[3] = 29


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_numbers, "ElementError: Cu is not in the index"),
        (lambda frame: KeyError("host"), "KeyError: 'host'"),
    ],
)
def test_one_failing_rank_fails_all(index, frame, victim, spoil, message):
    results = fail_on(victim, spoil, index, frame)
    assert all(isinstance(result, MonitorError) for result in results)
    assert len({str(result) for result in results}) == 1
    assert str(results[0]).startswith(f"watching failed at step 20 on rank {victim} of 3: {message}")
    assert [result.__cause__ is not None for result in results] == [rank == victim for rank in range(3)]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_frame_that_is_broken_on_one_rank_is_implausible_on_all(index, frame, victim):
    for result in fail_on(victim, spoil_positions, index, frame):
        assert result.band is Band.IMPLAUSIBLE
        assert result.reasons[0].startswith("1 atoms have positions that are not finite")
        assert (result.dH == INF).all()


def test_a_frame_that_could_not_be_made_fails_all(index, frame):
    def work(comm):
        monitor = Monitor(index, select=1.0, halt=2.0, every=10, comm=comm)
        broken = {"step": 20, "error": ValueError("no ids")} if comm.rank else {}
        return monitor.observe(None if comm.rank else frame, **broken)

    assert [str(result) for result in ranks.run(2, work)] == [
        "watching failed at step 20 on rank 1 of 2: ValueError: no ids"
    ] * 2


def test_warming_up_together(index):
    assert ranks.run(3, lambda comm: Monitor(index, select=1.0, halt=2.0, comm=comm).warm_up()) == [None] * 3


def test_raising_together():
    def work(comm):
        raise_together(comm, None)
        raise_together(comm, OSError("disk full") if comm.rank == 1 else None)

    results = ranks.run(3, work)
    assert isinstance(results[1], OSError)
    assert [str(results[r]) for r in (0, 2)] == ["rank 1 failed: OSError: disk full"] * 2
    assert all(isinstance(results[r], MonitorError) for r in (0, 2))
    raise_together(Serial(), None)
    with pytest.raises(OSError, match="disk full"):
        raise_together(Serial(), OSError("disk full"))
