"""The states of frames in a queue, against a twin: a dictionary that is what it should be."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from queueing import Clock, frame_of, labels_of

from quests_md.errors import QueueError
from quests_md.labelling import Queue


class States(RuleBasedStateMachine):
    """A queue, and a dictionary that is what it should be."""

    make = None  # returns an address
    LEASE, TRIES = 100.0, 2

    def __init__(self):
        super().__init__()
        self.address = type(self).make()
        self.queue = Queue(self.address, lease=self.LEASE, tries=self.TRIES)
        self.clock = Clock(self.queue)
        self.twin = {}  # id: [state, tries, end of the claim, token, number of reasons]
        self.ids, self.claims = {}, []

    @rule(seed=st.integers(0, 4))
    def add(self, seed):
        id, is_new = self.queue.add(frame_of(seed))
        assert is_new == (seed not in self.ids)
        assert self.ids.setdefault(seed, id) == id
        self.twin.setdefault(id, ["waiting", 0, None, None, 0])

    @rule()
    def claim(self):
        wanted = min((id for id, row in self.twin.items() if row[0] == "waiting"), default=None)
        expired = [id for id, row in self.twin.items() if row[0] == "running" and row[2] < self.clock.time]
        for id in sorted(expired, key=lambda id: (self.twin[id][2], id)) if wanted is None else []:
            self.twin[id][4] += 1
            if self.twin[id][1] < self.TRIES:
                wanted = id
                break
            self.twin[id][0] = "quarantined"
        claim = self.queue.claim("worker")
        assert (claim and claim.id) == wanted
        if claim:
            row = self.twin[claim.id]
            row[:4] = ["running", row[1] + 1, self.clock.time + self.LEASE, claim.token]
            assert claim.tries == row[1]
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), deed=st.sampled_from(["renew", "release", "done", "fail", "quarantine"]))
    def settle(self, data, deed):
        claim = data.draw(st.sampled_from(self.claims))
        row = self.twin[claim.id]
        act = {
            "done": lambda: self.queue.done(claim, labels_of(claim.id), {}),
            "fail": lambda: self.queue.fail(claim, "no"),
            "quarantine": lambda: self.queue.quarantine(claim, "bad"),
        }.get(deed, lambda: getattr(self.queue, deed)(claim))
        if row[0] != "running" or row[3] != claim.token:
            with pytest.raises(QueueError, match="no longer"):
                act()
            return
        act()
        if deed == "renew":
            row[2] = self.clock.time + self.LEASE
            return
        failed = "waiting" if row[1] < self.TRIES else "failed"
        row[0] = {"release": "waiting", "done": "done", "fail": failed, "quarantine": "quarantined"}[deed]
        row[1] -= deed == "release"
        row[4] += deed in ("fail", "quarantine")

    @rule(only=st.none() | st.sets(st.integers(1, 3)))
    def retry(self, only):
        only = None if only is None else only & set(self.twin)
        again = [
            id for id, row in self.twin.items() if row[0] in ("failed", "quarantined") and (only is None or id in only)
        ]
        assert self.queue.retry(only) == len(again)
        for id in again:
            self.twin[id][0], self.twin[id][1] = "waiting", 0

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds):
        self.clock.time += seconds

    @invariant()
    def agrees(self):
        entries = self.queue.entries()
        assert {entry.id: (entry.state, entry.tries) for entry in entries} == {
            id: (row[0], row[1]) for id, row in self.twin.items()
        }
        for entry in entries:
            assert sum(bool(event["reason"]) for event in entry.history) == self.twin[entry.id][4]
        counts = self.queue.counts()
        for state, count in counts.items():
            assert count == sum(row[0] == state for row in self.twin.values())
        assert len(list(self.queue.labelled())) == counts["done"]


def check_states(make, examples):
    machine = type("Machine", (States,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_states_are_those_of_a_dictionary(tmp_path):
    names = iter(range(10**6))
    check_states(lambda: tmp_path / f"{next(names)}.db", 25)
