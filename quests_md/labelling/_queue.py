"""The queue of frames that wait for labels."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db.core import T2000, YEAR

from ..errors import InputError, QueueError
from ._database import Database, SQLite, Transaction, describe, hide_password
from ._entries import (
    STATES,
    Claim,
    Entry,
    digest,
    format_row,
    make_row,
    pick_searchable,
    read_entry,
    read_source,
    restore,
    to_line,
    to_plain,
)
from ._oracle_settings import Labels, Oracle

__all__ = ["Queue"]

_FRAMES = 100  # frames that are read at a time
_CHECKS = "quests_md_checks"  # in the metadata of the database: which oracle was checked on which day
_IDS = 1 << 63  # above the ids of every database


def _open_database(address: str | os.PathLike[str], timeout: float) -> Database:
    """Return the database of an address, which is not opened yet.

    Raises
    ------
    QueueError
        It is a database of another kind, in which two workers could claim the same frame.
    """
    text = os.fspath(address)
    if re.match(r"postgres(ql)?://", text):
        from ._postgresql import PostgreSQL  # it needs an optional package

        return PostgreSQL(text, timeout)
    if "://" not in text and Path(text).suffix == ".db":
        return SQLite(text, timeout)
    raise QueueError(
        f"{hide_password(text)}: a queue is a file that ends in .db (SQLite), or postgresql://user@host/database: "
        "in other databases of ASE two workers could claim the same frame"
    )


class Queue:
    """Frames that wait for labels, that have them, or that cannot get any, in an ``ase.db`` database.

    Many processes may use it at once. Each change is one transaction. A frame belongs to one worker alone, until its
    claim expires. A program that is killed at any moment leaves every frame in one of `STATES`.

    Parameters
    ----------
    address
        A file that ends in ``.db`` (SQLite), or ``postgresql://user:password@host:port/database``.
    tries
        How often a frame is claimed before it is given up.
    lease
        A claim expires after this number of seconds, unless `renew` prolongs it. SQLite goes by the clock of the
        worker's machine, PostgreSQL by that of the server.
    timeout
        Seconds to wait while the database is locked.
    create
        Make a new queue if there is none.

    Raises
    ------
    InputError
        A number is out of range.
    QueueError
        The database cannot be used, or holds something else than a queue.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        tries: int = 3,
        lease: float = 600.0,
        timeout: float = 60.0,
        create: bool = True,
    ) -> None:
        if tries < 1 or not lease > 0 or not 0 <= timeout < 1e6:
            raise InputError(f"a queue needs tries >= 1, lease > 0 and timeout >= 0, not {tries}, {lease}, {timeout}")
        self.tries = tries
        self.lease = lease
        self._database = _open_database(address, timeout)
        self._database.prepare(create)

    @property
    def name(self) -> str:
        """The address, without a password."""
        return self._database.name

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"

    # -- frames in -------------------------------------------------------------------------------------------------

    def add(self, atoms: Atoms, text: str = "", **source: str | int | float) -> tuple[int, bool]:
        """Add a frame, which waits for labels then. A frame that is in the queue, in any state, is not added again.

        Parameters
        ----------
        atoms
            The frame. Its arrays and info are kept, its calculator is not.
        text
            The frame as it stands in an extended XYZ file, if it comes from one: `format` gives back what is in it.
        source
            Where the frame comes from; kept for the record.

        Returns
        -------
        id
            Its number in the queue.
        is_new
            False if it was there already.

        Raises
        ------
        FrameError
            It has no atoms, or positions that are not finite.
        InputError
            Its info holds something that a database cannot hold.
        QueueError
            The database cannot be used.
        """
        row, data = make_row(atoms)
        if text:
            data["text"] = to_plain(text, "text")
        origin = read_source(atoms) | to_plain(source, "source")
        with self._database.transaction() as transaction:
            self._database.lock_additions(transaction)
            there = transaction.find(row.unique_id)
            if there is not None:
                return there, False
            now = self._database.now(transaction)
            data["queue"] = {"source": origin, "added": now, "history": [], "record": {}, "worker": "", "token": ""}
            pairs = {"state": "waiting", "tries": 0, "changed": now, **pick_searchable(origin)}
            row.ctime, row.user = _to_ase_time(now), os.environ.get("USER")
            return int(transaction.ase.write(row, pairs, data)), True

    # -- claims ----------------------------------------------------------------------------------------------------

    def claim(self, worker: str, *, skip: Collection[int] = ()) -> Claim | None:
        """Claim the waiting frame of lowest id, except `skip`; if none waits, one whose claim has expired.

        If the claims of a frame have expired as often as `tries` allows, it is put in quarantine instead: the frame
        itself may kill the workers.

        Returns
        -------
        Claim or None
            None if there is no such frame.
        """
        with self._database.transaction() as transaction:
            now = self._database.now(transaction)
            id = self._database.lock_next_waiting(transaction, skip)
            while id is None and (id := self._database.lock_next_expired(transaction, now)) is not None:
                row = self._row(transaction, id)
                silent = now - row.changed
                reason = f"nothing was heard of its worker for too long: its claim expired, {silent:.0f} s old"
                if row.tries >= self.tries:
                    self._put(transaction, row, "quarantined", now, "expired", reason)
                    id = None
                else:
                    self._put(transaction, row, "waiting", now, "expired", reason)
            if id is None:
                return None
            return self._give(transaction, self._row(transaction, id), worker, now)

    def claim_frame(self, id: int, worker: str) -> Claim | None:
        """Claim one frame, also if it has failed or is quarantined; None if it is done, or somebody has it."""
        with self._database.transaction() as transaction:
            row = self._row(transaction, id)
            if row.state in ("done", "running"):
                return None
            return self._give(transaction, row, worker, self._database.now(transaction))

    def _give(self, transaction: Transaction, row: Any, worker: str, now: float) -> Claim:
        """Give a frame to a worker."""
        claim = Claim(row.id, worker, secrets.token_hex(8), row.tries + 1, _drop_labels(self._restore(row)))
        queue = {**row.data["queue"], "worker": to_plain(worker, "worker"), "token": claim.token}
        pairs = {"state": "running", "tries": claim.tries, "worker": to_line(worker), "changed": now}
        transaction.ase.update(row.id, data={"queue": queue}, expires=now + self.lease, **pairs)
        return claim

    def renew(self, claim: Claim) -> None:
        """Prolong a claim until `lease` seconds from now; `QueueError` if it is lost."""
        with self._change_claimed(claim) as (transaction, row, now):
            transaction.ase.update(row.id, expires=now + self.lease)

    def holds(self, claim: Claim) -> bool:
        """Return whether a claim still holds. An expired one does until another worker claims the frame."""
        with self._database.transaction(write=False) as transaction:
            return _is_of(self._row(transaction, claim.id, lock=False), claim)

    def done(self, claim: Claim, labels: Labels, record: Mapping[str, Any]) -> None:
        """Store the labels of a frame.

        Parameters
        ----------
        claim
            The claim of the frame.
        labels
            They become energy, forces and stress of its row.
        record
            How they were made: code, version, settings, seconds, host. Lists show its `seconds`; ``ase db`` shows its
            `code` as the calculator.

        Raises
        ------
        InputError
            The number of forces is not that of the atoms, or the record holds something that a database cannot hold.
        QueueError
            The claim was lost, or the database cannot be used.
        """
        if len(labels.forces) != len(claim.atoms):
            raise InputError(f"{len(labels.forces)} forces for the {len(claim.atoms)} atoms of frame {claim.id}")
        kept = to_plain(dict(record), "record")
        with self._change_claimed(claim) as (transaction, row, now):
            fresh, data = make_row(_drop_labels(self._restore(row)), labels, str(kept.get("code", "")).lower())
            fresh.unique_id, fresh.ctime, fresh.user = row.unique_id, row.ctime, row.user
            data |= {"text": row.data["text"]} if "text" in row.data else {}
            data["queue"] = {**row.data["queue"], "record": kept, "token": ""}
            pairs = {key: value for key, value in row.key_value_pairs.items() if key not in ("expires", "reason")}
            pairs |= {"state": "done", "changed": now}
            if isinstance(kept.get("seconds"), (int, float)):
                pairs["seconds"] = float(kept["seconds"])
            transaction.ase.write(fresh, pairs, data, id=row.id)

    def fail(self, claim: Claim, reason: str) -> str:
        """Record a try that failed, and return the new state: waiting while tries are left, then failed."""
        with self._change_claimed(claim) as (transaction, row, now):
            state = "waiting" if row.tries < self.tries else "failed"
            self._put(transaction, row, state, now, "failed", reason)
            return state

    def release(self, claim: Claim) -> None:
        """Give a frame back, as if it had not been claimed."""
        with self._change_claimed(claim) as (transaction, row, now):
            self._put(transaction, row, "waiting", now, tries=row.tries - 1)

    def release_dead(self, is_dead: Callable[[str], bool]) -> int:
        """Give back the frames of dead workers, before their claims expire; no try is counted.

        Parameters
        ----------
        is_dead
            Takes the name of a worker, and returns whether it is dead.

        Returns
        -------
        int
            How many frames wait again.
        """
        with self._database.transaction() as transaction:
            now, count = self._database.now(transaction), 0
            for id in self._database.in_states(transaction, ["running"]):
                row = self._row(transaction, id)
                if row.state == "running" and is_dead(row.data["queue"]["worker"]):
                    self._put(transaction, row, "waiting", now, tries=row.tries - 1)
                    count += 1
            return count

    def quarantine(self, claim: Claim, reason: str) -> None:
        """Put a frame in quarantine: nobody trains on it or tries it again, until `retry` is called."""
        with self._change_claimed(claim) as (transaction, row, now):
            self._put(transaction, row, "quarantined", now, "quarantined", reason)

    def retry(self, ids: Iterable[int] | None = None, states: Sequence[str] = ("failed", "quarantined")) -> int:
        """Let frames wait again, with all their tries. The history of earlier tries is kept.

        Parameters
        ----------
        ids
            The frames; all by default. Those in other states than `states` stay as they are.
        states
            "failed", "quarantined" or both.

        Returns
        -------
        int
            How many frames wait again.

        Raises
        ------
        QueueError
            An id is not in the queue, or the database cannot be used.
        """
        if not set(states) <= {"failed", "quarantined"}:
            raise InputError(f"only failed and quarantined frames can be tried again, not {', '.join(states)}")
        with self._database.transaction() as transaction:
            now, count = self._database.now(transaction), 0
            for id in self._database.in_states(transaction, states) if ids is None else sorted(set(ids)):
                row = self._row(transaction, id)
                if row.state in states:
                    self._put(transaction, row, "waiting", now, "tried again", "", tries=0)
                    count += 1
            return count

    # -- looking ---------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the number of frames in each state."""
        with self._database.transaction(write=False) as transaction:
            found = transaction.counts()
        return {state: found.get(state, 0) for state in STATES}

    def entries(self, states: Iterable[str] | None = None) -> list[Entry]:
        """Return what is known of the frames in these states (default: all), ordered by id."""
        wanted = STATES if states is None else tuple(states)
        if not set(wanted) <= set(STATES):
            raise InputError(f"the states of a frame are {', '.join(STATES)}, not {', '.join(wanted)}")
        with self._database.transaction(write=False) as transaction:
            rows = [row for state in set(wanted) for row in self._select(transaction, state)]
            return [self._entry(row) for row in sorted(rows, key=lambda row: row.id)]

    def entry(self, id: int) -> Entry:
        """Return what is known of one frame; `QueueError` if there is no such frame."""
        with self._database.transaction(write=False) as transaction:
            return self._entry(self._row(transaction, id, lock=False))

    def find(self, atoms: Atoms) -> int | None:
        """Return the id of the frame with these elements, cell, periodicity and positions; None if there is none."""
        with self._database.transaction(write=False) as transaction:
            return transaction.find(digest(atoms))

    def atoms(self, id: int) -> Atoms:
        """Return a frame as it was added. Once it is done, it has its labels, in a ``SinglePointCalculator``."""
        with self._database.transaction(write=False) as transaction:
            return self._restore(self._row(transaction, id, lock=False))

    def format(self, id: int, with_id: bool = False, names: Mapping[str, str] | None = None) -> bytes:
        """Return a frame as extended XYZ: with its labels once it is done, and all else as it was added.

        What has the name of a label, `energy`, `free_energy`, `forces` or `stress`, is a label of this queue or is left
        out. `with_id` adds ``queue_id``, by which `import_labels` finds the frame. `names` says what labels are called
        for another program, ``{"energy": "REF_energy"}``; "virial" among them adds the virial in eV.
        """
        with self._database.transaction(write=False) as transaction:
            row = self._row(transaction, id, lock=False)
            with self._reading(id):
                return format_row(row, with_id, names)

    def labelled(self, ids: Iterable[int] | None = None) -> Iterator[Atoms]:
        """Iterate over the frames that are done, ordered by id; with `ids`, only over those among them."""
        with self._database.transaction(write=False) as transaction:
            done = self._database.in_states(transaction, ["done"])
        wanted = None if ids is None else set(ids)
        found = [id for id in done if wanted is None or id in wanted]
        for first in range(0, len(found), _FRAMES):  # no transaction is open while the caller works with a frame
            with self._database.transaction(write=False) as transaction:
                some = [self._row(transaction, id, lock=False) for id in found[first : first + _FRAMES]]
            yield from map(self._restore, some)

    # -- checks of the oracle --------------------------------------------------------------------------------------

    def is_checked(self, oracle: Oracle) -> bool:
        """Return whether this oracle has been checked against labels of the queue today, on this machine."""
        with self._database.transaction(write=False) as transaction:
            today, checks = _date(self._database.now(transaction)), transaction.metadata().get(_CHECKS, {})
        return bool(checks.get(_name_check(oracle)) == today)

    def mark_checked(self, oracle: Oracle) -> None:
        """Record that this oracle gives the labels of the queue, today and on this machine."""
        with self._database.transaction() as transaction:
            metadata, today = transaction.metadata(), _date(self._database.now(transaction))
            # Those of other days are dropped: they say nothing any more.
            checks = {name: day for name, day in metadata.get(_CHECKS, {}).items() if day == today}
            transaction.ase.metadata = {**metadata, _CHECKS: {**checks, _name_check(oracle): today}}

    # -- rows ------------------------------------------------------------------------------------------------------

    def _row(self, transaction: Transaction, id: int, lock: bool = True) -> Any:
        """Return the row of a frame; with `lock`, nobody else can change it until the transaction ends."""
        if 0 < id < _IDS and (not lock or self._database.lock(transaction, id)):
            with self._reading(id):
                rows = list(transaction.ase.select([("id", "=", int(id))]))
            for row in rows:
                self._entry(row)  # raises if the row is not one of the queue's
                return row
        raise QueueError(f"{self.name}: there is no frame {id}")

    def _select(self, transaction: Transaction, state: str) -> list[Any]:
        """Return the rows of a state. If one cannot be read, the error names it."""
        try:
            return list(transaction.ase.select(state=state))
        except self._database.failures:
            raise
        except Exception:
            for id in self._database.in_states(transaction, [state]):
                self._row(transaction, id, lock=False)
            raise

    def _entry(self, row: Any) -> Entry:
        with self._reading(row.id):
            return read_entry(row)

    def _restore(self, row: Any) -> Atoms:
        with self._reading(row.id):
            return restore(row)

    @contextmanager
    def _reading(self, id: int) -> Iterator[None]:
        """Name the row in an error. Another program may have written or changed it, so anything may be missing."""
        try:
            yield
        except self._database.failures:
            raise
        except Exception as error:
            raise QueueError(
                f"{self.name}: row {id} is not as the queue wrote it ({describe(error)}): remove it with "
                f"`ase db ... id={id} --delete`"
            ) from error

    @contextmanager
    def _change_claimed(self, claim: Claim) -> Iterator[tuple[Transaction, Any, float]]:
        """Run a block that changes the row of a claim; `QueueError` if the claim was lost."""
        with self._database.transaction() as transaction:
            row = self._row(transaction, claim.id)
            if not _is_of(row, claim):
                raise QueueError(
                    f"{self.name}: frame {claim.id} is no longer {claim.worker}'s: the claim expired, and it is "
                    f"{row.state} now. Renew claims more often than every {self.lease:g} s"
                )
            yield transaction, row, self._database.now(transaction)

    def _put(
        self,
        transaction: Transaction,
        row: Any,
        state: str,
        now: float,
        what: str = "",
        reason: str = "",
        tries: int | None = None,
    ) -> None:
        """Take a frame from its worker and give it another state. If there is a `what`, add it to the history."""
        queue = {**row.data["queue"], "token": ""}
        pairs: dict[str, Any] = {"state": state, "changed": now, "tries": row.tries if tries is None else tries}
        if what:
            event = {"at": now, "what": what, "worker": queue["worker"], "reason": to_plain(reason, "reason")}
            queue["history"] = [*queue["history"], event]
        if reason:
            pairs["reason"] = to_line(reason)
        transaction.ase.update(row.id, delete_keys=["expires"], data={"queue": queue}, **pairs)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _name_check(oracle: Oracle) -> str:
    text = json.dumps([oracle.settings, oracle.environment, platform.node()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_of(row: Any, claim: Claim) -> bool:
    return bool(row.state == "running" and row.data["queue"]["token"] == claim.token)


def _drop_labels(atoms: Atoms) -> Atoms:
    atoms.calc = None
    return atoms


def _to_ase_time(seconds: float) -> float:
    """Return a time, in seconds since 1970, as ase.db counts it: in years since 2000."""
    return float((seconds - T2000) / YEAR)
