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
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from queueing import frame_of, has_labels, labels_of, same

from quests_md.errors import FrameError, InputError, QueueError
from quests_md.oracle import Labels, Queue, digest


class Clock:
    """The clock of a queue, that goes when it is told to."""

    def __init__(self, queue):
        self.time = 1e9
        queue._database.now = lambda transaction: self.time


@pytest.fixture
def queue(address):
    return Queue(address)


def states_of(queue):
    return {entry.id: entry.state for entry in queue.entries()}


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
    monkeypatch.setattr("quests_md.oracle._queue._FRAMES", 2)
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
    from quests_md.oracle._sqlite import SQLite

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


# -- the states, against a twin --------------------------------------------------------------------------------------


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


# -- files ---------------------------------------------------------------------------------------------------------


def test_an_address_that_cannot_be_a_queue_is_refused(tmp_path):
    for address in ("queue.json", "queue", "mysql://me:sesame@host/db", "queue.aselmdb"):
        with pytest.raises(QueueError, match="two workers could claim the same frame") as caught:
            Queue(address)
        assert "sesame" not in str(caught.value)
    with pytest.raises(QueueError, match=r"absent.db: no such file"):
        Queue(tmp_path / "absent.db", create=False)
    with pytest.raises(QueueError, match=r"queue.db: .*is the folder there"):
        Queue(tmp_path / "absent" / "queue.db")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(QueueError, match=r"folder.db: "):
        Queue(tmp_path / "folder.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.db"]
    for wrong in ({"tries": 0}, {"lease": 0}, {"lease": float("nan")}, {"timeout": -1}):
        with pytest.raises(InputError, match="a queue needs"):
            Queue(tmp_path / "queue.db", **wrong)


def test_a_file_that_is_no_queue_is_refused_and_left_alone(tmp_path):
    (tmp_path / "text.db").write_text("frames, a lot of them\n" * 100)
    ase.db.connect(tmp_path / "ase.db").write(frame_of(1))
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    Queue(tmp_path / "newer.db")
    database = ase.db.connect(tmp_path / "newer.db")
    database.metadata = {**database.metadata, "quests_md_queue": 2}
    wanted = {"text": "file is not a database", "ase": "an ase.db, but not a queue", "other": "not those of an ase.db",
              "newer": "format 2; .* reads 1"}  # fmt: skip
    for name, message in wanted.items():
        path = tmp_path / f"{name}.db"
        before = path.read_bytes()
        with pytest.raises(QueueError, match=f"{re.escape(str(path))}: .*{message}"):
            Queue(path)
        assert path.read_bytes() == before


def test_a_truncated_file_is_refused(tmp_path):
    queue = Queue(tmp_path / "queue.db")
    for seed in range(40):
        queue.add(frame_of(seed))
    whole = (tmp_path / "queue.db").read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, len(whole) - 100, 1000, 10):
        (tmp_path / "cut.db").write_bytes(whole[:size])
        with pytest.raises(QueueError, match=r"cut.db: .*(malformed|not a database|truncated)"):
            Queue(tmp_path / "cut.db").entries()
    (tmp_path / "queue.db").unlink()
    with pytest.raises(QueueError, match=r"queue.db: unable to open"):
        queue.claim("worker")
    assert not (tmp_path / "queue.db").exists()


def test_an_empty_file_becomes_a_queue(tmp_path):
    (tmp_path / "queue.db").touch()
    assert Queue(tmp_path / "queue.db").add(frame_of(1)) == (1, True)


def test_a_row_that_another_program_wrote_is_named(address):
    queue = Queue(address)
    queue.add(frame_of(1))
    database = ase.db.connect(address)
    database.write(frame_of(2))  # without a state it is none of the queue's business
    database.write(frame_of(3), state="waiting")
    assert queue.claim("worker").id == 1
    with pytest.raises(QueueError, match="row 3 is not as the queue wrote it"):
        queue.claim("worker")
    database.delete([3])
    assert queue.claim("worker") is None
    database.update(1, state="lost")
    with pytest.raises(QueueError, match="row 1 is not as the queue wrote it"):
        queue.entry(1)


def test_a_full_disk_costs_nothing_that_was_there(tmp_path):
    resource = pytest.importorskip("resource")
    queue = Queue(tmp_path / "queue.db")
    queue.add(frame_of(1))
    claim = queue.claim("worker")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "queue.db").stat().st_size, hard))
    try:
        large = frame_of(2)
        large.info["ballast"] = np.zeros(100_000)
        with pytest.raises(QueueError, match=r"queue.db: (disk I/O error|database or disk is full)"):
            queue.add(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    queue.done(claim, labels_of(1), {})
    assert queue.add(large) == (2, True)
    assert states_of(queue) == {1: "done", 2: "waiting"}


def test_the_digest_is_that_of_the_frame():
    one = frame_of(1)
    assert re.fullmatch("[0-9a-f]{32}", digest(one))
    assert digest(one) == digest(Atoms(one.numbers, one.positions, cell=one.cell, pbc=True))
    assert digest(one) != digest(frame_of(2))
