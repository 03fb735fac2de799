"""The database of a queue: transactions around an ``ase.db``, which has none of its own; and the kind that is a file.

All that is used of the insides of ase.db is here and in ``_postgresql``: the attributes `connection` and
`change_count` of its databases; the tables `systems` (its columns `id` and `unique_id`), `text_key_values`,
`number_key_values`, `keys`, `species` and `information`; in PostgreSQL also the column `key_value_pairs` of `systems`.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.db

from ..errors import QuestsError, QueueError

__all__ = ["Database", "SQLite", "Transaction", "describe", "hide_password"]

_KEY = "quests_md_queue"  # in the metadata of the database; its value is the number of the format
_FORMAT = 1
_WIDTH = 200  # letters of an exception in a message

# ase.db deletes by id, but has no index for that. The last index finds the next frame without a search of all rows.
_INDICES = (
    *(f"CREATE INDEX quests_md_{table} ON {table} (id)" for table in ("keys", "text_key_values", "number_key_values")),
    "CREATE INDEX quests_md_species ON species (id)",
    "CREATE INDEX quests_md_state ON text_key_values (value, id) WHERE key = 'state'",
)


# What reading a value raises that is not what was written.
_OF_VALUES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


def describe(error: Exception) -> str:
    """Return type and text of an exception in one line, not too long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def hide_password(address: str) -> str:
    """Return an address without its password, so that it can be printed."""
    address = re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", address)
    return re.sub(r"(password=)[^&]*", r"\1***", address)


class Transaction:
    """An open transaction, and the statements that a queue runs in it.

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
        """Run a statement and return the rows that it gives; each ? stands for one of the values."""
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
        """Return the number of rows in each state."""
        return dict(self.rows("SELECT value, COUNT(*) FROM text_key_values WHERE key = 'state' GROUP BY value"))

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the database."""
        found = self.rows("SELECT value FROM information WHERE name = 'metadata'")
        metadata = json.loads(found[0][0]) if found else {}
        return metadata if isinstance(metadata, dict) else {}


class Database(ABC):
    """A database that can hold a queue.

    Parameters
    ----------
    address
        A file, or the address of a server.
    timeout
        Seconds to wait while the database is locked.
    """

    failures: tuple[type[Exception], ...]  # what the library of the database raises

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self.name = hide_password(address)

    # -- what each kind does in its own way --------------------------------------------------------------------------

    @abstractmethod
    def errors(self) -> Any:
        """Return a context that turns errors of the database into `QueueError`."""

    @abstractmethod
    def _begin(self, write: bool) -> Transaction:
        """Connect, and begin a transaction."""

    @abstractmethod
    def _end(self, transaction: Transaction, keep: bool) -> None:
        """End a transaction and its connection; `keep` says whether its changes are kept."""

    @abstractmethod
    def tables(self, transaction: Transaction) -> set[str]:
        """Return the names of all tables."""

    @abstractmethod
    def now(self, transaction: Transaction) -> float:
        """Return seconds since 1970, by the clock that all workers use."""

    @abstractmethod
    def lock_additions(self, transaction: Transaction) -> None:
        """Let nobody else add a frame until the transaction ends."""

    @abstractmethod
    def lock(self, transaction: Transaction, id: int) -> bool:
        """Let nobody else change a row until the transaction ends; return whether there is such a row."""

    @abstractmethod
    def lock_next_waiting(self, transaction: Transaction, skip: Collection[int] = ()) -> int | None:
        """Lock the waiting frame of lowest id, except `skip`, that nobody else has locked; return its id."""

    @abstractmethod
    def lock_next_expired(self, transaction: Transaction, now: float) -> int | None:
        """Lock a running frame whose claim has expired and that nobody else has locked; return its id."""

    @abstractmethod
    def in_states(self, transaction: Transaction, states: Sequence[str]) -> list[int]:
        """Return the ids of the frames in these states, in order."""

    # -- what they share -------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, write: bool = True) -> Iterator[Transaction]:
        """Run a block in a transaction: all that it writes is kept, or nothing of it.

        Raises
        ------
        QueueError
            The database cannot be used, is locked for too long, or holds what no queue has written.
        """
        with self.errors(), self._finding_damage():
            transaction, done = self._begin(write), False
            try:
                yield transaction
                done = True
            finally:
                self._end(transaction, done)

    @contextmanager
    def _finding_damage(self) -> Iterator[None]:
        """Turn what values of other programs lead to, in ase.db or here, into `QueueError`."""
        try:
            yield
        except QuestsError:
            raise
        except _OF_VALUES as error:
            raise QueueError(
                f"{self.name}: it is damaged, or another program has written to it ({describe(error)}): use a copy of "
                "it, or export what can be read and begin a new queue"
            ) from error

    def prepare(self, create: bool) -> None:
        """Check that the database is a queue; with `create`, make an empty database a queue.

        Raises
        ------
        QueueError
            The database holds something else, or a queue of a newer version; or there is none and `create` is False.
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
        """Raise `QueueError` if the database is not a queue of a known format."""
        if not {"systems", "information"} <= self.tables(transaction):
            raise QueueError(f"{self.name}: its tables are not those of an ase.db")
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
        """Do nothing. ase.db commits in the midst of its work, but only `Database.transaction` may do so."""


class SQLite(Database):
    """A file of SQLite. A transaction that writes locks all of it, from its beginning (BEGIN IMMEDIATE)."""

    failures = (sqlite3.Error, OSError)

    def prepare(self, create: bool) -> None:
        path = Path(self.address)
        if not create and not path.exists():
            raise QueueError(f"{self.name}: no such file")
        if create:
            with self.errors():
                # Transactions do not create the file: if somebody removes it later, the next one must fail.
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
            elif "readonly" in said:
                said += ": give the file and its folder the right to be written to"
            raise QueueError(f"{self.name}: {said}") from error
        except OSError as error:  # ase.db raises it for a newer format
            raise QueueError(f"{self.name}: {error}") from error

    def _begin(self, write: bool) -> Transaction:
        path = Path(self.address).absolute()
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=self.timeout, isolation_level=None, factory=_Connection
        )
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            # serial=True: otherwise its methods are collective over the ranks of MPI.
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
            connection.close()  # what was not committed is dropped

    def check(self, transaction: Transaction) -> None:
        super().check(transaction)
        # SQLite reads zeros where a part of a page is missing. Nobody else writes while this transaction reads.
        pages, size = (transaction.rows(f"PRAGMA page_{what}")[0][0] for what in ("count", "size"))
        found = Path(self.address).stat().st_size
        if found < pages * size:
            raise QueueError(f"{self.name}: truncated: it has {found} bytes of {pages * size}; use a copy of it")

    def tables(self, transaction: Transaction) -> set[str]:
        return {name for (name,) in transaction.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def now(self, transaction: Transaction) -> float:
        return time.time()

    def lock_additions(self, transaction: Transaction) -> None:
        """Do nothing: the transaction has locked the whole file."""

    def lock(self, transaction: Transaction, id: int) -> bool:
        return bool(transaction.rows("SELECT id FROM text_key_values WHERE id = ? AND key = 'state'", id))

    def lock_next_waiting(self, transaction: Transaction, skip: Collection[int] = ()) -> int | None:
        marks = ", ".join("?" * len(skip))
        sql = f"SELECT id FROM text_key_values WHERE key = 'state' AND value = 'waiting' AND id NOT IN ({marks})"
        found = transaction.rows(f"{sql} ORDER BY id LIMIT 1", *skip)
        return found[0][0] if found else None

    def lock_next_expired(self, transaction: Transaction, now: float) -> int | None:
        found = transaction.rows(
            "SELECT id FROM number_key_values WHERE key = 'expires' AND value < ? ORDER BY value, id LIMIT 1", now
        )
        return found[0][0] if found else None

    def in_states(self, transaction: Transaction, states: Sequence[str]) -> list[int]:
        marks = ", ".join("?" * len(states))
        sql = f"SELECT id FROM text_key_values WHERE key = 'state' AND value IN ({marks}) ORDER BY id"
        return [id for (id,) in transaction.rows(sql, *states)]
