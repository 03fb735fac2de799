"""Events: what begins one, what ends it, and what it remembers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import ranks
from hypothesis import given
from hypothesis import strategies as st
from loose import INF, Loose, pairs

from quests_md.errors import InputError
from quests_md.monitor import Band, Monitor

SELECT, HALT = 5.0, 50.0
DH = np.array([0.0, 4.0, 6.0, 9.0, 60.0])  # of the environments number 0 to 4: covered twice, candidates, halt


def at_once(**options):
    """Return a monitor for which every frame above `select` is an event."""
    return Monitor(Loose(DH), select=SELECT, halt=HALT, **{"consecutive": 1, "min_distance": 0.0} | options)


def watch(kinds, *, comm=None, **options):
    """Return the decisions on frames of two atoms; the first has the environment that `kinds` says."""
    monitor = at_once(comm=comm, **options)
    return monitor, [monitor.observe(pairs([kind, 0], [7, 3], step)) for step, kind in enumerate(kinds)]


def naive(maxima, consecutive, release):
    """Return (first, confirmed, last) of every event, from the whole series: the slow, obvious twin."""
    n, events, at = len(maxima), [], 0
    while at < n:
        high = next((i for i in range(at, n) if maxima[i] > SELECT), None)
        if high is None:
            break
        length = next((i for i in range(high, n) if not maxima[i] > SELECT), n) - high
        confirmed = next(
            (i for i in range(high, high + length) if i - high + 1 >= consecutive or maxima[i] > HALT), None
        )
        if confirmed is None:
            at = high + length
            continue
        calm, last, over = 0, confirmed, n
        for i in range(confirmed + 1, n):
            if maxima[i] > SELECT:
                calm, last = 0, i
            else:
                calm = calm + 1 if maxima[i] <= release else 0
            if calm == consecutive:
                over = i
                break
        events.append((high, confirmed, last, over))
        at = over + 1
    return events


@given(
    kinds=st.lists(st.integers(0, 4), max_size=25), consecutive=st.integers(1, 4), release=st.sampled_from([None, 2.0])
)
def test_events_are_those_of_the_whole_series(kinds, consecutive, release):
    monitor, decisions = watch(kinds, consecutive=consecutive, release=release)
    expected = naive(DH[kinds], consecutive, SELECT if release is None else release)
    assert [d.step for d in decisions if d.begins] == [confirmed for _, confirmed, _, _ in expected]
    assert [d.step for d in decisions if d.ends] == [over for *_, over in expected if over < len(kinds)]
    for number, (_, confirmed, _, over) in enumerate(expected, start=1):
        assert all(decisions[i].event == number for i in range(confirmed, min(over + 1, len(kinds))))
    inside = {i for _, confirmed, _, over in expected for i in range(confirmed, over)}
    assert {d.step for d in decisions if d.save} == {i for i in inside if DH[kinds[i]] > SELECT}
    assert all(d.stop == (d.band is Band.HALT) for d in decisions)
    last = monitor.events.current or monitor.events.ended
    if expected:
        first, _, end, over = expected[-1]
        worst = first + int(np.argmax(DH[kinds[first : end + 1]]))
        assert (last.start, last.end, last.worst, last.maximum) == (first, end, worst, DH[kinds[worst]])
        assert last.atoms.tolist() == [7]
        assert last.n_frames == sum(DH[kind] > SELECT for kind in kinds[first : end + 1])
        assert last.over == (over < len(kinds))
    else:
        assert last is None


def test_debounce_delays_saving_and_no_halt():
    _, decisions = watch([2, 0, 2, 2, 2, 0, 0, 0, 4], consecutive=3)
    assert [d.save for d in decisions] == [False] * 4 + [True] + [False] * 3 + [True]
    assert [d.event for d in decisions] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert (decisions[-1].begins, decisions[-1].stop) == (True, True)


def test_a_step_that_is_seen_again_counts_once():
    monitor = Monitor(Loose(DH), select=SELECT, halt=HALT, consecutive=2, min_distance=0.0)
    decisions = [monitor.observe(pairs([2, 0], [7, 3], step)) for step in (1, 1, 1, 2, 2)]
    assert [d.event for d in decisions] == [0, 0, 0, 1, 1]
    assert monitor.events.current.n_frames == 2


def test_an_implausible_frame_neither_begins_nor_ends_an_event():
    monitor = Monitor(Loose(DH), select=SELECT, halt=HALT, consecutive=2, min_distance=0.0, implausible="continue")
    for step, kind in enumerate([2, None, 2, 0, None, 0, 0]):
        frame = pairs([kind or 0, 0], [7, 3], step)
        if kind is None:
            frame.positions[0] = np.nan
        decision = monitor.observe(frame)
        assert decision.begins == (step == 2)
        assert decision.ends == (step == 5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_follows_the_same_events(size):
    kinds = [0, 2, 3, 1, 0, 4, 2, 0]

    def work(comm):
        monitor = Monitor(Loose(DH), select=SELECT, halt=HALT, consecutive=2, comm=comm, min_distance=0.0)
        seen = []
        for step, kind in enumerate(kinds):
            mine = np.arange(comm.rank, 5, size)
            decision = monitor.observe(pairs(np.where(mine == 1, kind, 0), 10 + mine, step))
            seen.append((decision.event, decision.begins, decision.ends, decision.save))
        return seen, monitor.events.ended.atoms.tolist() if monitor.events.ended else []

    results = ranks.run(size, work)
    assert all(seen == results[0][0] for seen, _ in results)
    assert sorted(atom for _, atoms in results for atom in atoms) == [11]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consecutive": 0}, "consecutive must be a whole number of at least 1, not 0"),
        ({"consecutive": 1.5}, "consecutive must be a whole number"),
        ({"release": "low"}, "release must be a number of nats, not 'low'"),
        ({"min_atoms": 0}, "min_atoms must be a whole number of at least 1, not 0"),
        ({"min_fraction": 1.5}, "min_fraction must be between 0 and 1, not 1.5"),
        ({"min_distance": -0.1}, "min_distance must be a share between 0 and 1, not -0.1"),
        ({"implausible": "halt"}, 'implausible must be "stop" or "continue", not \'halt\''),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Monitor(Loose(DH), select=SELECT, halt=HALT, **options)


# -- how many atoms it takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["exact", "flagged"])
@pytest.mark.parametrize(
    ("options", "bands"),
    [
        ({}, ["covered", "candidate", "candidate", "halt"]),
        ({"min_atoms": 2}, ["covered", "covered", "candidate", "candidate"]),
        ({"min_fraction": 0.5}, ["covered", "covered", "covered", "covered"]),
        ({"min_fraction": 0.3}, ["covered", "covered", "candidate", "candidate"]),
        ({"min_atoms": 3, "min_fraction": 0.01}, ["covered", "covered", "candidate", "candidate"]),
    ],
)
def test_so_many_atoms_must_lie_above(options, bands, values):
    frames = [[0] * 9, [2] + [0] * 8, [2, 3, 2] + [0] * 6, [4, 3, 2] + [0] * 6]
    monitor = Monitor(Loose(DH), select=SELECT, halt=HALT, values=values, min_distance=0.0, **options)
    decisions = [monitor.observe(pairs(kinds, np.arange(9), step)) for step, kinds in enumerate(frames)]
    assert [str(d.band) for d in decisions] == bands
    assert [d.n_select for d in decisions] == [0, 1, 3, 3]
    if options:
        assert decisions[2].reasons[:1] in ((), ("3 of 9 atoms are above select = 5; the largest dH is 9 of atom 1",))


class Geometry(Loose):
    """A reference that does not see which atom is which."""

    spec = dataclasses.replace(Loose.spec, species="ignore")


def test_thresholds_of_elements_judge_each_by_its_own():
    reference = Geometry(DH)
    limits = {"select": {"Si": 5.0, "H": 8.0}, "halt": {"Si": 7.0, "H": INF}}
    for values in ("exact", "flagged"):
        monitor = Monitor(reference, values=values, min_distance=0.0, **limits)
        # Environment 2 has 6 nats: above select of Si, below that of H; environment 3 has 9: above halt of Si.
        for kind, number, band in [(2, 14, "candidate"), (2, 1, "covered"), (3, 1, "candidate"), (3, 14, "halt")]:
            frame = pairs([kind, 0], [7, 3], step=kind)
            frame.numbers[:] = [number, 14, 14, 14]
            decision = monitor.observe(frame)
            assert str(decision.band) == band
            assert decision.maximum == DH[kind]
        assert monitor.thresholds.resolved == limits


def test_an_element_that_comes_later_has_the_lowest_threshold():
    monitor = Monitor(Geometry(DH), select={"Si": 5.0}, halt=HALT, min_distance=0.0)
    frame = pairs([2, 0], [7, 3])
    assert monitor.observe(frame).band is Band.CANDIDATE
    frame.numbers[0] = 1
    assert monitor.observe(frame).band is Band.CANDIDATE


def test_select_must_not_lie_above_halt_for_any_element():
    with pytest.raises(InputError, match=r"select = 9\.0 lies above halt = 8\.0"):
        Monitor(Loose(DH), select={"Si": 9.0}, halt=8.0).observe(pairs([0, 0], [7, 3]))


def test_a_stop_that_one_rank_asks_for_reaches_all():
    def work(comm):
        monitor = Monitor(Loose(DH), select=SELECT, halt=HALT, comm=comm, min_distance=0.0)
        if comm.rank == 1:
            monitor.request_stop("the time is over")
        return monitor.observe(pairs([0], [comm.rank]))

    for decision in ranks.run(3, work):
        assert (decision.stop, decision.band, decision.save) == (True, Band.COVERED, False)
        assert decision.reasons == ("the time is over",)


def test_a_frame_is_proposed_with_what_lies_above_select():
    monitor, proposals = at_once(), []
    for step, kinds in enumerate([[0, 3, 2], [3, 0, 0], [1, 0, 0], [4, 0, 0]]):
        decision = monitor.observe(pairs(kinds, [7, 3, 9], step))
        assert decision.save == (step != 2)
        if decision.save:
            proposal = monitor.propose(decision)
            rows = proposal.rows(np.arange(len(proposal.ids)))
            proposals.append((proposal.step, proposal.ids.tolist(), proposal.dH.tolist(), len(rows), proposal.must))
    assert proposals == [
        (0, [3, 9], [9.0, 6.0], 2, False),
        (1, [7], [9.0], 1, False),
        (3, [7], [60.0], 1, True),
    ]


def test_a_refused_frame_does_not_count_for_the_spacing():
    monitor = at_once(save_every=10)
    proposed, saved = [], []
    for step in range(15):
        if monitor.observe(pairs([2, 0], [7, 3], step)).save:
            proposed.append(step)
            if step < 3:
                monitor.not_saved()
            else:
                saved.append(step)
    assert (proposed, saved) == ([0, 1, 2, 3, 13], [3, 13])


def test_time_is_that_of_the_frames():
    monitor = at_once()
    for step, kind in enumerate([0, 2, 3, 0]):
        monitor.observe(pairs([kind, 0], [7, 3], step, time=0.5 * step))
    event = monitor.events.ended
    assert (event.start_time, event.end_time, event.number, math.isinf(event.maximum)) == (0.5, 1.0, 1, False)
