"""What a queue does with addresses and files that are none, damaged, full or written by others."""

from __future__ import annotations

import json
import re
import sqlite3

import ase.db
import numpy as np
import pytest
from ase.db.core import T2000, YEAR
from ase.db.row import AtomsRow
from queueing import frame_of, labels_of, states_of

from quests_md.errors import InputError, QueueError
from quests_md.labelling import Queue


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


@pytest.mark.parametrize(
    ("statement", "values", "said"),
    [
        ("UPDATE systems SET key_value_pairs = ?", ("no json",), "row 1 is not as the queue wrote it"),
        ("UPDATE systems SET key_value_pairs = ?", ('{"a":' * 5000 + "1" + "}" * 5000,), "row 1 is not"),
        ("UPDATE systems SET positions = ?", (b"x",), "row 1 is not"),
        ("UPDATE systems SET positions = ?", (np.full(24, np.nan).tobytes(),), "row 1 is not .* not finite"),
        ("UPDATE systems SET data = ?", (b"x",), "row 1 is not"),
        ("UPDATE systems SET energy = NULL", (), "row 1 is not"),
        ("UPDATE systems SET forces = ?", (np.full(24, np.nan).tobytes(),), "row 1 is not .* must be finite"),
        ("UPDATE information SET value = '['", (), "it is damaged"),
        ("UPDATE information SET value = 'x' WHERE name = 'version'", (), "it is damaged"),
        ("DROP TABLE number_key_values", (), "no such table"),
        ("ALTER TABLE systems RENAME COLUMN unique_id TO other", (), "it is damaged|no such column|row 1"),
    ],
)
def test_what_others_have_damaged_is_refused_in_words(tmp_path, statement, values, said):
    queue = Queue(tmp_path / "queue.db")
    queue.add(frame_of(1))
    queue.done(queue.claim("worker"), labels_of(1), {})
    with sqlite3.connect(tmp_path / "queue.db") as database:
        database.execute(statement, values)
    database.close()
    refused = []
    for call in (Queue.entries, Queue.counts, lambda queue: queue.atoms(1), lambda queue: queue.format(1),
                 lambda queue: queue.claim("worker"), lambda queue: list(queue.labelled()),
                 lambda queue: queue.add(frame_of(2))):  # fmt: skip
        try:
            call(Queue(tmp_path / "queue.db"))
        except QueueError as error:
            refused.append(str(error))
    assert any(re.search(rf"queue\.db: .*({said})", text) for text in refused), refused


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


def test_the_insides_of_ase_are_those_that_a_queue_uses(tmp_path):
    """A newer ASE that changes them fails here, by name: its tables, and whose connection it writes to and commits."""
    commits = []

    class Connection(sqlite3.Connection):
        def commit(self):
            commits.append(1)

    database = ase.db.connect(str(tmp_path / "ase.db"), type="db", use_lock_file=False, serial=True)
    connection = sqlite3.connect(tmp_path / "ase.db", isolation_level=None, factory=Connection)
    connection.execute("BEGIN IMMEDIATE")
    database.connection, database.change_count = connection, 0
    row = AtomsRow(frame_of(1))
    row.unique_id, row.ctime, row.user = "a" * 32, 25.0, "somebody"
    database.metadata = {"title": "insides"}
    assert database.write(row, {"state": "waiting", "expires": 2.5}, {"queue": {"token": "b"}}) == 1
    columns = {
        "systems": {"id", "unique_id", "key_value_pairs"}, "information": {"name", "value"},
        "text_key_values": {"key", "value", "id"}, "number_key_values": {"key", "value", "id"},
        "keys": {"key", "id"}, "species": {"Z", "id"},
    }  # fmt: skip
    for table, names in columns.items():
        assert names <= {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}, table
    for sql, wanted in (
        ("SELECT id, unique_id FROM systems", [(1, "a" * 32)]),
        ("SELECT id, value FROM text_key_values WHERE key = 'state'", [(1, "waiting")]),
        ("SELECT id, value FROM number_key_values WHERE key = 'expires'", [(1, 2.5)]),
    ):
        assert connection.execute(sql).fetchall() == wanted
    assert json.loads(connection.execute("SELECT value FROM information WHERE name = 'metadata'").fetchone()[0]) == {
        "title": "insides"
    }
    database.update(1, delete_keys=["expires"], data={"queue": {"token": ""}}, state="running")
    (found,) = database.select(state="running")
    assert (found.unique_id, found.ctime, found.data["queue"], "expires" in found) == (
        "a" * 32,
        25.0,
        {"token": ""},
        False,
    )
    assert connection.execute("SELECT id FROM number_key_values WHERE key = 'expires'").fetchall() == []
    assert database.connection is connection
    assert commits
    connection.execute("ROLLBACK")  # nothing of it was committed behind the back of the connection
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    assert (T2000, YEAR) == (946681200.0, 31557600.0)
