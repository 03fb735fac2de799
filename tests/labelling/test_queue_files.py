"""What a queue does with addresses and files that are none, damaged, full or written by others."""

from __future__ import annotations

import re
import sqlite3

import ase.db
import numpy as np
import pytest
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
