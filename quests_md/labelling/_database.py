"""Transactions around an ``ase.db``, which has none of its own; and a queue in a file of SQLite."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.db

from ..errors import QueueError

__all__ = ["Database", "SQLite", "Transaction", "open_database"]

_KEY = "quests_md_queue"  # of the metadata: the number of the format
_FORMAT = 1

# ase.db deletes by id and has no index for it; what is claimed next must not be searched among all rows.
_INDICES = (
    *(f"CREATE INDEX quests_md_{table} ON {table} (id)" for table in ("keys", "text_key_values", "number_key_values")),
    "CREATE INDEX quests_md_species ON species (id)",
    "CREATE INDEX quests_md_state ON text_key_values (value, id) WHERE key = 'state'",
)


def open_database(address: str | os.PathLike[str], timeout: float) -> Database:
    """Return the database of an address; nothing is opened yet.

    Raises
    ------
    QueueError
        It is of a kind in which no frame can be claimed by one worker alone.
    """
    text = os.fspath(address)
    if re.match(r"postgres(ql)?://", text):
        from ._postgresql import PostgreSQL

        return PostgreSQL(text, timeout)
    if "://" not in text and Path(text).suffix == ".db":
        return SQLite(text, timeout)
    raise QueueError(
        f"{hide_password(text)}: a queue is a file that ends in .db (SQLite), or postgresql://user@host/database: "
        "in other databases of ASE two workers could claim the same frame"
    )


def hide_password(address: str) -> str:
    """Return an address as it may be printed."""
    address = re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", address)
    return re.sub(r"(password=)[^&]*", r"\1***", address)


class Transaction:
    """What is read and written together.

    Parameters
    ----------
    ase
        The ``ase.db`` database, on the connection of this transaction.
    connection
        That connection.
    """

    def __init__(self, ase: Any, connection: Any) -> None:
        self.ase = ase
        self._connection = connection

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """Return the rows that a statement gives; ? stands for a value."""
        cursor = self._connection.cursor()
        cursor.execute(sql, values)
        return list(cursor.fetchall())

    def execute(self, sql: str, *values: Any) -> None:
        """Run a statement that gives no rows."""
        self._connection.cursor().execute(sql, values)

    def find(self, unique_id: str) -> int | None:
        """Return the id of the row with that unique id."""
        found = self.rows("SELECT id FROM systems WHERE unique_id = ?", unique_id)
        return int(found[0][0]) if found else None

    def counts(self) -> dict[str, int]:
        """Return how many rows there are of each state."""
        return dict(self.rows("SELECT value, COUNT(*) FROM text_key_values WHERE key = 'state' GROUP BY value"))

    def metadata(self) -> dict[str, Any]:
        """Return what the database says of itself."""
        found = self.rows("SELECT value FROM information WHERE name = 'metadata'")
        metadata = json.loads(found[0][0]) if found else {}
        return metadata if isinstance(metadata, dict) else {}


class Database(ABC):
    """A database that can hold a queue.

    Parameters
    ----------
    address
        Where it is.
    timeout
        Seconds to wait for it while it is locked.
    """

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self.name = hide_password(address)

    # -- what the kinds differ in ----------------------------------------------------------------------------------

    @abstractmethod
    def errors(self) -> Any:
        """Return a context in which what goes wrong becomes a `QueueError`."""

    @abstractmethod
    def _begin(self, write: bool) -> Transaction:
        """Connect, and begin a transaction."""

    @abstractmethod
    def _end(self, transaction: Transaction, keep: bool) -> None:
        """End it, whatever it has come to, and the connection."""

    @abstractmethod
    def tables(self, transaction: Transaction) -> set[str]:
        """Return the names of the tables there are."""

    @abstractmethod
    def now(self, transaction: Transaction) -> float:
        """Return seconds since 1970, by the clock that all workers go by."""

    @abstractmethod
    def lock_additions(self, transaction: Transaction) -> None:
        """Let others add nothing until the transaction ends."""

    @abstractmethod
    def lock(self, transaction: Transaction, id: int) -> bool:
        """Let others leave that row alone until the transaction ends. Return whether it is there."""

    @abstractmethod
    def next_waiting(self, transaction: Transaction) -> int | None:
        """Return the lowest id of a frame that waits and that nobody else has locked; lock it."""

    @abstractmethod
    def next_expired(self, transaction: Transaction, now: float) -> int | None:
        """Return the id of a running frame whose claim has expired and that nobody else has locked; lock it."""

    @abstractmethod
    def in_states(self, transaction: Transaction, states: Sequence[str]) -> list[int]:
        """Return the ids of the frames in these states, in order."""

    # -- what they share -------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, write: bool = True) -> Iterator[Transaction]:
        """Let a block read and write, all of it or nothing.

        Raises
        ------
        QueueError
            The database cannot be used, or was locked for too long.
        """
        with self.errors():
            transaction, done = self._begin(write), False
            try:
                yield transaction
                done = True
            finally:
                self._end(transaction, done)

    def prepare(self, create: bool) -> None:
        """Check that this is a queue, or make it one if it is empty.

        Raises
        ------
        QueueError
            It is something else, of a newer version, or absent and not to be made.
        """
        with self.transaction(write=False) as transaction:
            if self.tables(transaction):
                self.check(transaction)
                return
        if not create:
            raise QueueError(f"{self.name}: there is no queue in it")
        with self.transaction() as transaction:
            self.lock_additions(transaction)
            if self.tables(transaction):  # another process was faster
                self.check(transaction)
                return
            transaction.ase.metadata = {_KEY: _FORMAT, "title": "Frames for an oracle"}
            for statement in self.indices():
                transaction.execute(statement)

    def indices(self) -> Sequence[str]:
        """Return the statements that make the indices."""
        return _INDICES

    def check(self, transaction: Transaction) -> None:
        """Raise `QueueError` if this is something else than a queue of a known format."""
        if not {"systems", "information"} <= self.tables(transaction):
            raise QueueError(f"{self.name}: there are tables in it, and they are not those of an ase.db")
        version = transaction.metadata().get(_KEY)
        if version is None:
            raise QueueError(
                f"{self.name}: an ase.db, but not a queue: give the queue a database of its own, "
                "and add these frames with `quests-md queue add`"
            )
        if not isinstance(version, int) or version > _FORMAT:
            raise QueueError(
                f"{self.name}: a queue of format {version!r}; this version of quests_md reads {_FORMAT}: update it"
            )


class _Connection(sqlite3.Connection):
    def commit(self) -> None:
        """Do nothing: ase.db commits when it has made its tables, and now and then; the transaction is ours."""


class SQLite(Database):
    """A file. A transaction that writes has all of it to itself, from its beginning (BEGIN IMMEDIATE)."""

    def prepare(self, create: bool) -> None:
        path = Path(self.address)
        if not create and not path.exists():
            raise QueueError(f"{self.name}: no such file")
        if create:
            with self.errors():
                # Not left to the first transaction: a file that is removed later must not be made anew by the next.
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=rwc", uri=True).close()
        super().prepare(create)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
            if "locked" in said or "busy" in said:
                said = f"locked by another program for more than {self.timeout:g} s: try again, or end that program"
            elif "unable to open" in said:
                said += ": is the folder there, and may it be written to?"
            raise QueueError(f"{self.name}: {said}") from error
        except OSError as error:  # ase.db's own word for a newer format
            raise QueueError(f"{self.name}: {error}") from error

    def _begin(self, write: bool) -> Transaction:
        path = Path(self.address).absolute()
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=self.timeout, isolation_level=None, factory=_Connection
        )
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            # serial: else its methods are collective over the ranks of MPI.
            database = ase.db.connect(str(path), type="db", use_lock_file=False, serial=True)
            database.connection, database.change_count = connection, 0
        except BaseException:
            connection.close()
            raise
        return Transaction(database, connection)

    def _end(self, transaction: Transaction, keep: bool) -> None:
        connection = transaction.ase.connection
        try:
            if keep:
                connection.execute("COMMIT")
        finally:
            connection.close()  # and what was not committed is gone

    def check(self, transaction: Transaction) -> None:
        super().check(transaction)
        # SQLite reads zeros where a page is missing in part. Nobody writes while the transaction has read something.
        pages, size = (transaction.rows(f"PRAGMA page_{what}")[0][0] for what in ("count", "size"))
        found = Path(self.address).stat().st_size
        if found < pages * size:
            raise QueueError(f"{self.name}: truncated: it has {found} bytes of {pages * size}; use a copy of it")

    def tables(self, transaction: Transaction) -> set[str]:
        return {name for (name,) in transaction.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def now(self, transaction: Transaction) -> float:
        return time.time()

    def lock_additions(self, transaction: Transaction) -> None:
        """Do nothing: the transaction has the whole file."""

    def lock(self, transaction: Transaction, id: int) -> bool:
        return bool(transaction.rows("SELECT id FROM text_key_values WHERE id = ? AND key = 'state'", id))

    def next_waiting(self, transaction: Transaction) -> int | None:
        found = transaction.rows(
            "SELECT id FROM text_key_values WHERE key = 'state' AND value = 'waiting' ORDER BY id LIMIT 1"
        )
        return found[0][0] if found else None

    def next_expired(self, transaction: Transaction, now: float) -> int | None:
        found = transaction.rows(
            "SELECT id FROM number_key_values WHERE key = 'expires' AND value < ? ORDER BY value, id LIMIT 1", now
        )
        return found[0][0] if found else None

    def in_states(self, transaction: Transaction, states: Sequence[str]) -> list[int]:
        marks = ", ".join("?" * len(states))
        sql = f"SELECT id FROM text_key_values WHERE key = 'state' AND value IN ({marks}) ORDER BY id"
        return [id for (id,) in transaction.rows(sql, *states)]
