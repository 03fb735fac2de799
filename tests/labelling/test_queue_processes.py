"""Many processes at one queue: none waits for ever, none is given what another one has, and any may be killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter

import pytest
from limits import LIMIT
from paths import TESTS
from queueing import WORKERS, frame_of, has_labels, labels_of

from quests_md.errors import QueueError
from quests_md.labelling import Queue

KILLS = int(os.environ.get("QUESTS_MD_KILLS", "12"))


def run(what, *arguments):
    program = [sys.executable, str(TESTS / "queueing.py"), what, *map(str, arguments)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=LIMIT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not ended.stderr
    return ended.stdout


def test_eight_processes_are_given_every_frame_once(address):
    queue = Queue(address)
    for seed in range(60):
        queue.add(frame_of(seed))
    given = [line.split() for line in run("work", address).splitlines()]
    assert Counter(id for _, id in given) == Counter({str(id): 1 for id in range(1, 61)})
    assert len({worker for worker, _ in given}) == WORKERS
    assert queue.counts()["done"] == 60
    for atoms in queue.labelled():
        has_labels(atoms, labels_of(atoms.info["step"]))
    for entry in queue.entries():
        assert (str(entry.id), entry.tries) in [(id, 1) for worker, id in given if entry.worker == f"worker {worker}"]


def test_workers_that_are_killed_lose_and_double_nothing(address):
    queue = Queue(address, lease=1e-6, tries=10**9)
    for seed in range(12):
        queue.add(frame_of(seed))
    assert int(run("kill", address, KILLS, 7).split()[0]) > 0
    queue.retry()
    while (claim := queue.claim("heir")) is not None:
        queue.done(claim, labels_of(claim.atoms.info["step"]), {})
    assert queue.counts()["done"] == 12
    for atoms in queue.labelled():
        has_labels(atoms, labels_of(atoms.info["step"]))
    if not address.startswith("postgresql"):
        connection = sqlite3.connect(address)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def test_a_queue_that_is_killed_while_it_is_made(tmp_path):
    """A process dies between any two writes of the file that it makes: what it leaves is made a queue by the next."""
    code = """
import os, signal, sys
from quests_md.labelling import Queue
from quests_md.labelling._database import Transaction
left = int(sys.argv[2])
execute = Transaction.execute
def dying(self, *arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    execute(self, *arguments)
Transaction.execute = dying
Queue(sys.argv[1])
"""
    for left in (0, 2, 4):
        path = tmp_path / f"{left}.db"
        ended = subprocess.run([sys.executable, "-c", code, str(path), str(left)], timeout=LIMIT)
        assert ended.returncode == -9
        assert Queue(path).add(frame_of(1)) == (1, True)


@pytest.fixture
def locked(address):
    """Return a queue, and a function that lets go of the lock that another connection has on all of it."""
    queue = Queue(address, timeout=0.2)
    queue.add(frame_of(1))
    if address.startswith("postgresql"):
        import psycopg2

        connection = psycopg2.connect(address)
        connection.cursor().execute("LOCK TABLE systems IN ACCESS EXCLUSIVE MODE")
    else:
        connection = sqlite3.connect(address, check_same_thread=False)
        connection.execute("BEGIN EXCLUSIVE")
    yield queue, connection.rollback
    connection.close()


def test_a_database_that_stays_locked_is_an_error(locked):
    queue, unlock = locked
    name = queue.name
    for act in (lambda: queue.claim("worker"), lambda: queue.add(frame_of(2)), queue.entries):
        with pytest.raises(QueueError, match=r"locked by another program for more than 0.2 s") as caught:
            act()
        assert str(caught.value).startswith(f"{name}: ")
    unlock()
    assert queue.claim("worker").id == 1


def test_a_lock_that_goes_away_in_time_is_waited_for(locked):
    queue, unlock = locked
    queue._database.timeout = LIMIT
    gone = []
    timer = threading.Timer(0.3, lambda: (gone.append(True), unlock()))
    timer.start()
    assert queue.claim("worker").id == 1
    assert gone
    timer.join()


def test_who_may_not_write_can_look(tmp_path):
    queue = Queue(tmp_path / "queue.db")
    queue.add(frame_of(1))
    (tmp_path / "queue.db").chmod(0o444)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    counts, *errors = run("read", tmp_path / "queue.db").splitlines()
    assert counts == "1 1"
    said = f"{tmp_path / 'queue.db'}: attempt to write a readonly database: give the file and its folder the right to"
    assert errors == [f"{said} be written to"] * 2


def test_threads_may_share_a_queue(address):
    queue, given = Queue(address), []
    for seed in range(20):
        queue.add(frame_of(seed))

    def work():
        while (claim := queue.claim(threading.current_thread().name)) is not None:
            given.append(claim.id)
            queue.done(claim, labels_of(claim.atoms.info["step"]), {})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 21))
