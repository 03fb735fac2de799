"""The queue of frames that wait for labels, in SQLite and in PostgreSQL."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from queueing import Clock, frame_of, has_labels, labels_of, same, states_of

from quests_md.errors import FrameError, InputError, QueueError
from quests_md.labelling import Labels, Queue, digest


@pytest.fixture
def queue(address):
    return Queue(address)


# -- frames --------------------------------------------------------------------------------------------------------


def test_nothing_of_a_frame_is_lost(queue):
    atoms = frame_of(1, reason="covered", cutout=True, text="nan", none=None, nested={"a": [1, 2.5, {"b": "c"}]})
    atoms.info |= {"Origin": np.array([0.1, np.nan, np.inf]), "matrix": np.arange(6).reshape(2, 3), "word": "a\nb"}
    atoms.arrays["core"] = np.arange(8) < 3
    atoms.arrays["names"] = np.array(["a", "bcd"] * 4)
    atoms.arrays["words"] = np.array(["a", "bcd"] * 4, dtype=object)
    atoms.arrays["tensor"] = np.random.default_rng(1).random((8, 3, 3))
    atoms.arrays["small"] = np.arange(8, dtype=np.float32) / 3
    atoms.arrays["large"] = np.arange(8) + 2**60
    atoms.set_tags(np.arange(8) + 2**40)
    atoms.set_masses([27.9769265325] * 8)
    atoms.set_initial_magnetic_moments(np.random.default_rng(2).normal(size=(8, 3)))
    atoms.set_constraint(FixAtoms([2, 5]))
    atoms.pbc = [True, False, True]
    id, is_new = queue.add(atoms, file="uq/candidates.extxyz", frame=3)
    assert is_new
    same(queue.atoms(id), atoms)
    claim = queue.claim("worker")
    same(claim.atoms, atoms)
    assert list(claim.atoms.constraints[0].index) == [2, 5]
    queue.done(claim, labels_of(1), {"code": "GPAW", "seconds": 2.5})
    (labelled,) = queue.labelled()
    same(labelled, atoms)
    has_labels(labelled, labels_of(1))


def test_a_frame_is_added_once_in_whatever_state_it_is(queue):
    assert queue.add(frame_of(1)) == (1, True)
    assert queue.add(frame_of(2)) == (2, True)
    again = frame_of(1, step=77, dH_max=9.0)
    again.positions[again.positions == 0] = -0.0
    assert queue.add(again) == (1, False)
    queue.quarantine(queue.claim("worker"), "bad")
    assert queue.add(frame_of(1)) == (1, False)
    assert queue.entry(1).state == "quarantined"
    assert queue.entry(1).source == {"run": 1, "step": 1, "dH_max": 2.5, "band": "candidate", "event": 1}
    other = frame_of(1)
    other.positions[3, 1] += 1e-15
    assert queue.add(other) == (3, True)
    for change in ("numbers", "pbc", "cell"):
        other = frame_of(1)
        setattr(
            other, change, {"numbers": [14] * 7 + [6], "pbc": [True, True, False], "cell": [5.43, 5.43, 5.44]}[change]
        )
        assert queue.add(other)[1]


def test_labels_that_a_frame_has_are_not_taken_for_the_oracles(queue):
    from ase.calculators.emt import EMT

    atoms = Atoms("Cu", calculator=EMT())
    atoms.get_potential_energy()
    queue.add(atoms)
    assert queue.atoms(1).calc is None
    assert queue.claim("worker").atoms.calc is None


@pytest.mark.parametrize("broken", ["empty", "nan", "info", "names"])
def test_a_frame_that_cannot_be_kept_is_refused(tmp_path, broken):
    queue, atoms = Queue(tmp_path / "queue.db"), frame_of(1)
    if broken == "empty":
        atoms = Atoms()
    elif broken == "nan":
        atoms.positions[2, 2] = np.nan
    else:
        atoms.info |= {"what": object()} if broken == "info" else {3: "three"}
    with pytest.raises(InputError if broken in ("info", "names") else FrameError):
        queue.add(atoms)
    assert sum(queue.counts().values()) == 0


def test_ase_db_shows_the_rows(tmp_path, address):
    queue = Queue(address)
    for seed in (1, 2, 3):
        queue.add(frame_of(seed), file="x.xyz")
    queue.done(queue.claim("node 7"), labels_of(1), {"code": "Espresso", "seconds": 2.0})
    queue.fail(queue.claim("12345"), "nan")
    command = [
        sys.executable,
        "-m",
        "ase",
        "db",
        address,
        "-c",
        "id,state,tries,worker,step,run,dH_max,band,energy,reason",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = [[cell.strip() for cell in line.split("|")] for line in shown.splitlines()[:4]]
    energy = f"{labels_of(1).energy:.3f}"
    assert table[1:] == [
        ["1", "done", "1", "node 7", "1", "1", "2.500", "candidate", energy, ""],
        ["2", "waiting", "1", "'12345'", "2", "1", "2.500", "candidate", "", "'nan'"],
        ["3", "waiting", "0", "", "3", "1", "2.500", "candidate", "", ""],
    ]
    atoms = ase.db.connect(address).get_atoms(state="done")
    assert atoms.get_potential_energy() == labels_of(1).energy
    assert np.array_equal(atoms.get_forces(), labels_of(1).forces)
    assert np.array_equal(atoms.get_stress(), labels_of(1).stress)
    assert ase.db.connect(address).get(state="done").calculator == "espresso"


# -- claims --------------------------------------------------------------------------------------------------------


def test_frames_are_claimed_by_id_and_by_one_worker(queue):
    for seed in range(3):
        queue.add(frame_of(seed))
    claims = [queue.claim(f"worker {number}") for number in range(4)]
    assert [claim and (claim.id, claim.worker, claim.tries) for claim in claims] == [
        (1, "worker 0", 1), (2, "worker 1", 1), (3, "worker 2", 1), None,
    ]  # fmt: skip
    assert queue.counts() == {"waiting": 0, "running": 3, "done": 0, "failed": 0, "quarantined": 0}
    assert queue.entry(2).worker == "worker 1"


def test_the_reasons_of_all_failed_tries_are_kept(queue):
    queue.add(frame_of(1))
    reasons = ["not converged\nafter 100 steps", "out of \0 memory \ud800", "x" * 5000]
    states = [queue.fail(queue.claim(f"worker {count}"), reason) for count, reason in enumerate(reasons)]
    assert states == ["waiting", "waiting", "failed"]
    assert queue.claim("worker") is None
    entry = queue.entry(1)
    kept = [(event["what"], event["worker"], event["reason"]) for event in entry.history]
    cleaned = [reasons[0], "out of ? memory ?", reasons[2]]
    assert kept == [("failed", f"worker {count}", reason) for count, reason in enumerate(cleaned)]
    assert (entry.state, entry.tries, entry.reason) == ("failed", 3, reasons[2])
    assert queue.retry() == 1
    assert queue.entry(1).tries == 0
    queue.done(queue.claim("worker"), labels_of(1), {})
    entry = queue.entry(1)
    assert [event["what"] for event in entry.history] == ["failed"] * 3 + ["tried again"]
    assert (entry.state, entry.tries, entry.reason, entry.seconds) == ("done", 1, "", None)


def test_a_released_frame_has_not_been_tried(queue):
    queue.add(frame_of(1))
    for _ in range(5):
        claim = queue.claim("worker")
        assert claim.tries == 1
        queue.release(claim)
    assert (queue.entry(1).state, queue.entry(1).tries, queue.entry(1).history) == ("waiting", 0, ())


def test_a_claim_expires_unless_it_is_renewed(address):
    queue = Queue(address, lease=60)
    clock = Clock(queue)
    for seed in (1, 2):
        queue.add(frame_of(seed))
    lost, kept = queue.claim("dead"), queue.claim("alive")
    clock.time += 50
    queue.renew(kept)
    assert queue.claim("next") is None
    clock.time += 20
    again = queue.claim("next")
    assert (again.id, again.tries) == (lost.id, 2)
    assert queue.claim("next") is None
    for act in (queue.renew, queue.release, lambda c: queue.fail(c, ""), lambda c: queue.quarantine(c, ""),
                lambda c: queue.done(c, labels_of(1), {})):  # fmt: skip
        with pytest.raises(QueueError, match=r"frame 1 is no longer dead's: the claim expired, and it is running now"):
            act(lost)
    queue.done(again, labels_of(1), {})
    with pytest.raises(QueueError, match="it is done now"):
        queue.renew(again)
    (event,) = queue.entry(1).history
    assert (event["what"], event["worker"]) == ("expired", "dead")
    assert "70 s" in event["reason"]


def test_a_late_worker_whose_frame_nobody_took_loses_nothing(address):
    queue = Queue(address, lease=60)
    clock = Clock(queue)
    queue.add(frame_of(1))
    claim = queue.claim("slow")
    clock.time += 1000
    queue.done(claim, labels_of(1), {})
    assert queue.entry(1).state == "done"


def test_a_frame_that_kills_its_workers_is_quarantined(address):
    queue = Queue(address, lease=60, tries=2)
    clock = Clock(queue)
    for seed in (1, 2):
        queue.add(frame_of(seed))
    for tries in (1, 2):
        claim = queue.claim("victim")
        assert (claim.id, claim.tries) == (1, tries)
        if tries == 1:
            queue.done(queue.claim("other"), labels_of(2), {})
        clock.time += 61
    assert queue.claim("victim") is None
    assert states_of(queue) == {1: "quarantined", 2: "done"}
    assert [event["what"] for event in queue.entry(1).history] == ["expired", "expired"]
    assert queue.retry([1]) == 1
    assert queue.claim("victim").id == 1


def test_what_is_tried_again_can_be_chosen(queue):
    for seed in range(4):
        queue.add(frame_of(seed))
    one_try = Queue(queue._database.address, tries=1)
    assert one_try.fail(one_try.claim("worker"), "no") == "failed"
    queue.quarantine(queue.claim("worker"), "bad")
    queue.done(queue.claim("worker"), labels_of(2), {})
    with pytest.raises(QueueError, match="there is no frame 9"):
        queue.retry([1, 9])
    assert states_of(queue) == {1: "failed", 2: "quarantined", 3: "done", 4: "waiting"}
    assert queue.retry([1, 2, 3, 4], states=["failed"]) == 1
    assert states_of(queue) == {1: "waiting", 2: "quarantined", 3: "done", 4: "waiting"}
    with pytest.raises(InputError, match="only failed and quarantined"):
        queue.retry(states=["done"])
    assert [entry.id for entry in queue.entries(["done", "quarantined"])] == [2, 3]
    with pytest.raises(InputError, match="states of a frame"):
        queue.entries(["finished"])


def test_labelled_frames_come_by_id(queue, monkeypatch):
    monkeypatch.setattr("quests_md.labelling._queue._FRAMES", 2)
    for seed in range(6):
        queue.add(frame_of(seed))
    claims = [queue.claim("worker") for _ in range(6)]
    for claim in claims[::-1]:
        if claim.id != 3:
            queue.done(claim, labels_of(claim.atoms.info["step"]), {})
    for ids, wanted in ((None, [0, 1, 3, 4, 5]), ([6, 3, 1], [0, 5])):
        frames = list(queue.labelled(ids))
        assert [atoms.info["step"] for atoms in frames] == wanted
        for atoms in frames:
            has_labels(atoms, labels_of(atoms.info["step"]))


@pytest.mark.parametrize(
    "labels",
    [
        lambda: Labels(np.nan, np.zeros((8, 3))),
        lambda: Labels(0.0, np.full((8, 3), np.inf)),
        lambda: Labels(0.0, np.zeros(24)),
        lambda: Labels(0.0, np.zeros((8, 3)), np.zeros((3, 3))),
        lambda: Labels(0.0, np.zeros((7, 3))),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels):
    queue = Queue(tmp_path / "queue.db")
    queue.add(frame_of(1))
    claim = queue.claim("worker")
    with pytest.raises(InputError, match=r"finite|shape|forces for the 8 atoms"):
        queue.done(claim, labels(), {})
    queue.renew(claim)


def test_nothing_that_a_worker_does_searches_all_rows(tmp_path, monkeypatch):
    from quests_md.labelling._database import SQLite

    queue, said, begin = Queue(tmp_path / "queue.db", lease=1e-9), [], SQLite._begin

    def traced(self, write):
        transaction = begin(self, write)
        transaction.ase.connection.set_trace_callback(said.append)
        return transaction

    monkeypatch.setattr(SQLite, "_begin", traced)
    for seed in (1, 2):
        queue.add(frame_of(seed))
    queue.fail(queue.claim("worker"), "no")
    for _ in range(2):
        queue.claim("dead")
    claim = queue.claim("worker")
    queue.renew(claim)
    queue.done(claim, labels_of(1), {})
    connection = sqlite3.connect(tmp_path / "queue.db")
    statements = {line for line in said if line.split()[0] in ("SELECT", "UPDATE", "DELETE")}
    steps = [step[3] for line in statements for step in connection.execute(f"EXPLAIN QUERY PLAN {line}")]
    connection.close()
    assert any("quests_md_state" in step for step in steps)
    small = ("information", "sqlite_master", "sqlite_sequence")
    assert [step for step in steps if step.startswith("SCAN") and not any(name in step for name in small)] == []


def test_the_digest_is_that_of_the_frame():
    one = frame_of(1)
    assert re.fullmatch("[0-9a-f]{32}", digest(one))
    assert digest(one) == digest(Atoms(one.numbers, one.positions, cell=one.cell, pbc=True))
    assert digest(one) != digest(frame_of(2))
