"""events.jsonl: one line per event; and, while an event goes on, a file with the ids of its atoms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..monitor import Band, Event, Events, Key
from .about import to_json
from .past import Past
from .reader import Rows
from .recorder import Moment, Place, Recorder, say_cut

__all__ = ["EVENTS", "EventLines", "replay_events"]

EVENTS = "events.jsonl"
_ATOMS = "resume.atoms"  # ids of the atoms of the event that goes on, or may begin
_MOST_ATOMS = 1000  # the largest number of ids in the line of an event


class EventLines(Recorder):
    """Write the line of an event when the event is over or the run ends.

    The ids of atoms are written to disk when they join an event, with the key of the evaluation. So after a kill in the
    middle of an event, its line still names all atoms.
    """

    files = (EVENTS, _ATOMS)

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known = np.empty(0, np.int64)  # atoms of the open event that are on disk; on rank 0
        self._event: Event | None = None  # that event

    def see(self, moment: Moment) -> None:
        """Write the line of an event that ends with this evaluation, and the atoms that join one."""
        events, decision = self._place.monitor.events, moment.decision
        if decision.ends:
            assert events.ended is not None
            self._write(events.ended, decision.run)
        elif decision.band in (Band.CANDIDATE, Band.HALT) and events.open is not None:
            self._join(events.open, moment.key)

    def _join(self, event: Event, key: Key) -> None:
        parts = self._place.comm.gather(event.atoms)
        is_new = event is not self._event
        self._event = event

        def act() -> None:
            atoms = np.unique(np.concatenate(parts or []))
            joined = atoms if is_new else np.setdiff1d(atoms, self._known, assume_unique=True)
            self._known = atoms
            if is_new:
                self._place.folder.replace(_ATOMS, [_format_joined(key, joined)])
            elif len(joined):
                self._place.folder.append(_ATOMS, [_format_joined(key, joined)])

        self._place.on_root(act)

    def close(self) -> None:
        """Write the line of an event that is not over."""
        event = self._place.monitor.events.current
        if event is not None:
            self._write(event, self._place.monitor.visits.run)

    def _write(self, event: Event, run: int) -> None:
        parts = self._place.comm.gather(event.atoms)

        def act() -> None:
            line = _make_line(event, np.unique(np.concatenate(parts or [])), run)
            self._place.folder.append(EVENTS, [json.dumps(to_json(line), allow_nan=False).encode() + b"\n"])

        self._place.on_root(act)

    # -- resuming --------------------------------------------------------------------------------------------------

    def resume(self, past: Past) -> None:
        """Remove the lines of events that are not over according to the rows, and read the atoms of the open event."""
        events = self._place.monitor.events
        atoms = self._place.on_root(lambda: self._mend(past, events))
        event = events.open
        if event is not None:
            self._event = event
            event.atoms = np.empty(0, np.int64) if atoms is None else atoms  # rank 0 has those of all
            self._known = event.atoms

    def _mend(self, past: Past, events: Events) -> NDArray[np.int64]:
        folder, event = self._place.folder, events.open
        lines: list[bytes] = []
        if folder.exists(EVENTS):
            with folder.open(EVENTS) as file:
                lines = file.readlines()
        over = events.count - (events.current is not None)
        sizes = [len(line) for line, entry in zip(lines, past.events, strict=False) if _is_over(entry, over)]
        is_torn = bool(lines) and not lines[-1].endswith(b"\n")
        if is_torn:
            say_cut(folder.path / EVENTS, len(lines[-1]), "a line")
        folder.cut(EVENTS, sum(sizes))
        folder.adopt(EVENTS)
        if event is None:
            folder.remove(_ATOMS)
            return np.empty(0, np.int64)
        found = [np.array(entry["atoms"], np.int64) for entry in self._read_joined() if _is_of_open(entry, past)]
        if not found:
            assert past.last is not None
            found = [np.unique(np.array(_find_atoms_of_format_1(past, event), np.int64))]
            folder.replace(_ATOMS, [_format_joined(past.last, found[0])])
        folder.adopt(_ATOMS)
        return np.unique(np.concatenate(found))

    def _read_joined(self) -> Iterator[dict[str, Any]]:
        folder = self._place.folder
        if not folder.exists(_ATOMS):
            return
        whole = 0
        with folder.open(_ATOMS) as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    _ = Key.parse(entry["key"]), np.array(entry["atoms"], np.int64)
                except (ValueError, TypeError, KeyError):
                    if line.endswith(b"\n"):
                        path = folder.path / _ATOMS
                        raise OutputError(f"{path}: byte {whole}: no run wrote this line") from None
                    break
                whole += len(line)
                yield entry
        folder.cut(_ATOMS, whole)


def _format_joined(key: Key, atoms: NDArray[np.int64]) -> bytes:
    """Return the line for atoms that join an event at an evaluation."""
    return json.dumps({"key": str(key), "atoms": atoms.tolist()}).encode() + b"\n"


def _is_over(line: dict[str, Any], over: int) -> bool:
    """Return whether the line tells the end of one of the first `over` events."""
    number = line.get("event")
    return bool(line.get("over")) and isinstance(number, int) and number <= over


def _is_of_open(entry: dict[str, Any], past: Past) -> bool:
    """Return whether the atoms of an entry joined the open event, at an evaluation that has a row."""
    key = Key.parse(entry["key"])
    rows = past.open_rows
    return bool(np.any((rows["run"] == key.run) & (rows["step"] == key.step) & (rows["repeat"] == key.repeat)))


def _find_atoms_of_format_1(past: Past, event: Event) -> list[int]:
    """Return the known atoms of an open event in format 1, which did not write them when they joined the event."""
    for line in reversed(past.events):
        if line.get("event") == event.number and event.number:
            return list(line.get("atoms", []))
    known = past.state.event
    joined = [] if known is None or known.number != event.number else known.atoms
    above = np.isin(past.open_rows["band"], ("candidate", "halt"))
    return [*joined, *past.open_rows["max_id"][above].tolist()]


def _make_line(event: Event, atoms: NDArray[np.int64], run: int) -> dict[str, Any]:
    return {
        "event": event.number,
        "run": run,
        "start": event.start,
        "start_time": event.start_time,
        "end": event.end,
        "end_time": event.end_time,
        "worst": event.worst,
        "max": event.maximum,
        "max_id": event.max_id,
        "n_frames": event.n_frames,
        "over": event.over,
        "n_atoms": len(atoms),
        "atoms": atoms[:_MOST_ATOMS].tolist(),
    }


def replay_events(events: Events, rows: Rows, before: int) -> None:
    """Give rows to `events` once more, without atoms; `before` events have begun before these rows."""
    nothing = np.empty(0, np.int64)
    events.count = before
    for row in rows:
        if row["band"] in ("candidate", "halt"):
            step, time, maximum = int(row["step"]), float(row["time"]), float(row["max"])
            events.see_above(step, time, maximum, int(row["max_id"]), nothing, row["band"] == "halt")
        elif row["band"] == "covered":
            events.see_below(float(row["max"]))
