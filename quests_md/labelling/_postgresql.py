"""A queue in a PostgreSQL database, by ase-db-backends."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import MissingExtraError, QueueError
from ._database import Database, Transaction

__all__ = ["PostgreSQL"]

try:
    import psycopg2
    from ase_db_backends.postgresql import Connection, PostgreSQLDatabase
except ImportError as error:
    raise MissingExtraError(
        "a queue in PostgreSQL needs ase-db-backends: pip install 'quests_md[postgresql]'"
    ) from error

_LOCK = 0x7175657374734D44  # of pg_advisory_xact_lock: "questsMD"

_STATE = "key_value_pairs ->> 'state'"

# FOR UPDATE locks the rows that a query reads, so the state is read from the rows of the frames themselves.
_INDEX = f"CREATE INDEX quests_md_claims ON systems (({_STATE}), id)"


class _Connection(Connection):  # type: ignore[misc]
    def commit(self) -> None:
        """Do nothing: only `Database.transaction` may commit."""


class _Database(PostgreSQLDatabase):  # type: ignore[misc]
    def get_last_id(self, cur: Any) -> int:
        """Return the last id of this connection. That of ase-db-backends is the last one of any connection."""
        cur.execute("SELECT currval('systems_id_seq')")
        return int(cur.fetchone()[0])


class PostgreSQL(Database):
    """A database of a server. It locks single rows (FOR UPDATE SKIP LOCKED): no worker waits for another one."""

    failures = (psycopg2.Error,)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg2.errors.LockNotAvailable as error:
            said = f"locked by another program for more than {self.timeout:g} s: try again, or end that program"
            raise QueueError(f"{self.name}: {said}") from error
        except psycopg2.Error as error:
            lines = str(error).strip().splitlines()
            raise QueueError(f"{self.name}: {lines[0] if lines else type(error).__name__}") from error

    def _begin(self, write: bool) -> Transaction:
        try:
            psycopg2.extensions.parse_dsn(self.address)
        except psycopg2.ProgrammingError:
            # The message of the library may hold a part of the password.
            raise QueueError(f"{self.name}: not an address as postgresql://user:password@host:port/database") from None
        raw = psycopg2.connect(self.address, connect_timeout=max(2, math.ceil(self.timeout)))
        try:
            with raw.cursor() as cursor:
                cursor.execute("SET extra_float_digits = 3")  # servers before version 12 cut floats to 15 digits
                cursor.execute(f"SET lock_timeout = {max(1, round(1000 * self.timeout))}")
            connection = _Connection(raw)
            database = _Database(self.address, serial=True)
            database.connection, database.change_count = connection, 0
        except BaseException:
            raw.close()
            raise
        return Transaction(database, connection)

    def _end(self, transaction: Transaction, keep: bool) -> None:
        raw = transaction.ase.connection.con
        try:
            if keep:
                raw.commit()
        finally:
            raw.close()  # what was not committed is dropped

    def tables(self, transaction: Transaction) -> set[str]:
        sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        return {name for (name,) in transaction.rows(sql)}

    def indices(self) -> Sequence[str]:
        return [*super().indices(), _INDEX]

    def now(self, transaction: Transaction) -> float:
        return float(transaction.rows("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    def lock_additions(self, transaction: Transaction) -> None:
        transaction.execute("SELECT pg_advisory_xact_lock(?)", _LOCK)

    def lock(self, transaction: Transaction, id: int) -> bool:
        return bool(transaction.rows(f"SELECT id FROM systems WHERE id = ? AND {_STATE} IS NOT NULL FOR UPDATE", id))

    def lock_next_waiting(self, transaction: Transaction, skip: Collection[int] = ()) -> int | None:
        sql = f"SELECT id FROM systems WHERE {_STATE} = 'waiting' AND NOT id = ANY (?)"
        found = transaction.rows(f"{sql} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED", list(skip))
        return found[0][0] if found else None

    def lock_next_expired(self, transaction: Transaction, now: float) -> int | None:
        sql = (
            f"SELECT id FROM systems WHERE {_STATE} = 'running' AND (key_value_pairs ->> 'expires')::float8 < ? "
            "ORDER BY (key_value_pairs ->> 'expires')::float8, id LIMIT 1 FOR UPDATE SKIP LOCKED"
        )
        found = transaction.rows(sql, now)
        return found[0][0] if found else None

    def in_states(self, transaction: Transaction, states: Sequence[str]) -> list[int]:
        sql = f"SELECT id FROM systems WHERE {_STATE} = ANY (?) ORDER BY id"
        return [id for (id,) in transaction.rows(sql, list(states))]
