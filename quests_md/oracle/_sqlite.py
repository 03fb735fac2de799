"""A queue in a file of SQLite."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ase.db

from ..errors import QueueError
from ._database import Database, Transaction

__all__ = ["SQLite"]


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
