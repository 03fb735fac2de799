"""What a queue in PostgreSQL has of its own; what it shares with SQLite is in the tests beside this one."""

from __future__ import annotations

import ase.db
import pytest
from limits import LIMIT
from queueing import frame_of, labels_of
from test_queue_states import check_states

from quests_md.errors import MissingExtraError, QueueError
from quests_md.labelling import Queue

pytestmark = pytest.mark.postgresql


@pytest.fixture
def address(postgresql_server):
    return postgresql_server.make()


def test_states_are_those_of_a_dictionary(postgresql_server):
    check_states(postgresql_server.make, 4)


def test_no_password_is_printed(address, postgresql_server):
    queue = Queue(address)
    assert "tester:***@" in queue.name
    messages = [repr(queue)]
    for wrong in (
        postgresql_server.address("absent"),
        address.replace("host=/", "host=/nowhere/"),
        "postgresql://me:ses/ame@host/db",
        "postgresql://me:sesame@host:port/db",
        f"{address}&password=sesame&oops",
        "postgresql://me:sesame@nowhere.invalid/db",
    ):
        with pytest.raises(QueueError) as caught:
            Queue(wrong, timeout=60)
        messages.append(str(caught.value))
    assert "absent" in messages[1]
    for message in messages:
        assert "ame@" not in message
        assert "sesame" not in message


def test_a_database_with_something_else_is_refused(postgresql_server):
    import psycopg2

    address = postgresql_server.make()
    ase.db.connect(address).write(frame_of(1))
    with pytest.raises(QueueError, match=r"an ase\.db, but not a queue"):
        Queue(address)
    address = postgresql_server.make()
    with pytest.raises(QueueError, match="there is no queue in it"):
        Queue(address, create=False)
    connection = psycopg2.connect(address)
    connection.cursor().execute("CREATE TABLE birds (name TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(QueueError, match=r"not those of an ase\.db"):
        Queue(address)


def test_ids_are_those_of_the_own_rows_while_others_write(address):
    """ase-db-backends returns the id that was given last, to whomever."""
    import psycopg2

    queue = Queue(address)
    queue.add(frame_of(1))
    connection = psycopg2.connect(address)
    with queue._database.transaction() as transaction:
        find = transaction.ase.get_last_id

        def late(cursor):
            connection.cursor().execute("SELECT nextval('systems_id_seq')")  # another writer, at the worst moment
            return find(cursor)

        transaction.ase.get_last_id = late
        id = transaction.ase.write(frame_of(2), state="waiting")
    connection.close()
    assert id == 2
    assert [row.id for row in ase.db.connect(address).select(state="waiting")] == [1, 2]


def test_a_worker_takes_the_next_frame_while_another_one_takes_the_first(address):
    queue = Queue(address, timeout=LIMIT)
    for seed in (1, 2):
        queue.add(frame_of(seed))
    with queue._database.transaction() as transaction:
        assert queue._database.lock_next_waiting(transaction) == 1
        assert queue.claim("worker").id == 2
        assert queue.claim("worker") is None  # the first one is locked, though it waits


def test_a_server_that_breaks_down_loses_nothing(address, postgresql_server):
    queue = Queue(address, timeout=LIMIT)
    for seed in (1, 2):
        queue.add(frame_of(seed))
    claim = queue.claim("worker")

    def interrupted():
        with queue._database.transaction() as transaction:
            transaction.ase.update(2, state="done")
            postgresql_server.restart()

    with pytest.raises(QueueError, match=r"tester:\*\*\*@"):
        interrupted()
    queue.done(claim, labels_of(1), {})
    assert [entry.state for entry in queue.entries()] == ["done", "waiting"]


def test_without_the_package_the_line_to_type_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ase_db_backends.postgresql", None)
    monkeypatch.delitem(sys.modules, "quests_md.labelling._postgresql", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'quests_md\[postgresql\]'"):
        Queue("postgresql://host/db")
