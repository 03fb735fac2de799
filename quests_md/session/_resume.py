"""What the files of a run tell a session that goes on with it: they are the truth, where run.json is older."""

from __future__ import annotations

import datetime
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm
from ..errors import InputError, OutputError, QuestsError
from ..monitor import Event
from ..sinks import RunFolder

__all__ = ["Past", "event_of", "find_past", "mode_of", "state_of_event"]

# Whose change makes another run of it: of run.json.
_DECIDING = (
    "select", "halt", "min_atoms", "min_fraction", "consecutive", "release", "every", "save_every", "min_distance",
    "implausible", "novelty", "budget",
)  # fmt: skip
_MOST_ATOMS = 1000  # ids of an event that are kept

Key = tuple[int, int]


@dataclass
class Past:
    """What was watched before.

    Attributes
    ----------
    state
        What run.json held that is in no other file.
    thresholds
        As they were resolved; None if that had not come.
    same
        Whether index and thresholds are those of the session that goes on.
    started, resumed
        When the run was begun, and when it was resumed, as text.
    consecutive, release
        What begins and ends events.
    keys
        (run, step) of the frames in candidates, history and implausible, by these names.
    rows, flagged
        Rows of monitor.csv, and those above `select` among them.
    last, saved
        (run, step) of the last row, and of the last one that was saved; or None.
    steps
        Steps of the rows of the last run, in order.
    events
        Events that have begun.
    event
        The last one, if it had not ended, with the atoms of all ranks; or the one that is yet to come.
    calm
        Frames in a row that may end it.
    is_written
        Whether the last line of events.jsonl is of that event.
    """

    state: dict[str, Any]
    thresholds: dict[str, Any] | None
    same: bool
    started: str
    resumed: list[str]
    consecutive: int
    release: float | None
    keys: dict[str, list[Key]]
    rows: int = 0
    flagged: int = 0
    last: Key | None = None
    saved: Key | None = None
    steps: NDArray[np.int64] | None = None
    events: int = 0
    event: Event | None = None
    calm: int = 0
    is_written: bool = False
    to_come: int = 0

    @property
    def run(self) -> int:
        """Number of the last run."""
        return 1 if self.last is None else self.last[0]

    @property
    def began(self) -> datetime.datetime:
        return datetime.datetime.fromisoformat(self.started)

    @property
    def saved_step(self) -> int | None:
        """Step at which the last run saved a frame for the last time; one that has no row yet may come again."""
        return self.saved[1] if self.saved is not None and self.saved[0] == self.run else None

    def has_row(self, key: Key) -> bool:
        """Return whether a step of the last run has its row."""
        if self.steps is None or key[0] != self.run:
            return False
        place = int(np.searchsorted(self.steps, key[1]))
        return place < len(self.steps) and int(self.steps[place]) == key[1]

    def holds(self, name: str, key: Key) -> bool:
        """Return whether the file of that name has a frame of this run and step."""
        return key in self.keys[name]

    def in_words(self) -> str:
        """Return the line that a resumed run begins with."""
        if self.last is None:
            return "it has no row yet"
        frames = len(self.keys["candidates"])
        return f"run {self.run} after step {self.last[1]}: {self.rows} evaluations, {frames} frames kept"


def mode_of(resume: Any, overwrite: bool) -> bool | str:
    """Check `resume`; `InputError` if it is none."""
    if resume not in (True, False, "anyway") or not isinstance(resume, (bool, str)):
        raise InputError(f'resume must be true, false or "anyway", not {resume!r}')
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other: go on with the run in the folder, or replace it")
    mode: bool | str = resume
    return mode


def find_past(
    files: RunFolder, on_root: Callable[[Callable[[], object]], None], comm: Comm, now: dict[str, Any], mode: bool | str
) -> Past | None:
    """Return what is to be resumed, None if there is nothing; torn ends of files are cut off. Collective.

    Raises
    ------
    OutputError
        Something that decides is not what it was (`now` is the new run.json) and the mode is not "anyway"; or a file
        cannot be read. On all ranks.
    """
    found: list[Past] = []

    def act() -> None:
        content = files.find()
        if content is None:
            return
        try:
            others = _differences(content, now)
            if others and mode != "anyway":
                raise OutputError(
                    f"{files.path} holds a run that was watched otherwise: {'; '.join(others)}. Choose another output, "
                    'or say resume = "anyway"'
                )
            found.append(_read(files, content, same=not {"index", "select", "halt"} & {o.split()[0] for o in others}))
        except QuestsError:
            files.release()
            raise

    on_root(act)
    past: Past | None = comm.broadcast(found[0] if found else None)
    return past


def _differences(content: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what decides and is not as it was, in words that begin with its name."""
    if not isinstance(content.get("state"), dict):
        raise OutputError("its run.json is of another version of quests_md: the run cannot be resumed")
    before, index = content.get("index") or {}, now["index"]
    others = []
    compared = set(index) - {"path", "generation"}
    if content.get("reference") == "live" and before.get("hash") is None:  # killed before it said what it had learned
        compared = {"k", "cutoff", "species"}
    if any(before.get(key) != index[key] for key in compared):
        others.append(f"index was {before.get('path')} ({before.get('hash')}), now {index['path']} ({index['hash']})")
    return others + [
        f"{key} was {content.get(key)!r}, now {now[key]!r}" for key in _DECIDING if content.get(key) != now[key]
    ]


def _read(files: RunFolder, content: dict[str, Any], same: bool) -> Past:
    """Read the files of a run, mended."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    keys = files.mend()
    started, resumed = content.get("started") or now, [*content.get("resumed", []), now]
    past = Past(
        content["state"],
        content.get("thresholds"),
        same,
        started,
        resumed,
        int(content["consecutive"]),
        content["release"],
        keys,
    )
    lines = files.events.read()
    try:
        _add_rows(past, files, lines)
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{files.path}: a file of the run is damaged: {type(error).__name__}: {error}") from error
    return past


def _add_rows(past: Past, files: RunFolder, lines: list[dict[str, Any]]) -> None:
    """Take over what monitor.csv and events.jsonl hold."""
    told = past.state.get("row")
    tail = deque[dict[str, str]](maxlen=past.consecutive)
    newer, in_event, steps = 0, list[dict[str, str]](), list[int]()
    for row in files.rows.read():
        key = (int(row["run"]), int(row["step"]))
        if past.last is not None and key[0] != past.last[0]:
            steps = []
        steps.append(key[1])
        past.rows, past.last = past.rows + 1, key
        past.flagged += row["band"] in ("candidate", "halt")
        past.saved = key if row["saved"] == "1" else past.saved
        past.events = max(past.events, int(row["event"]))
        newer += 1
        if row["band"] != "implausible":
            tail.append(row)
        if row["event"] != "0":
            in_event.append(row)
        if told is not None and key == tuple(told):  # run.json knows all up to here
            newer, in_event = 0, []
    past.steps = np.unique(np.array(steps, np.int64)) if steps else None
    past.to_come = max(0, int(past.state.get("to_come", 0)) - newer)
    past.events = max([past.events, *(int(line["event"]) for line in lines)])
    if not tail:
        return
    number, state = int(tail[-1]["event"]), past.state.get("event")
    if not number:
        coming = _last(tail, lambda row: row["band"] == "candidate")
        past.event = _event(0, state, coming) if newer or state is None else event_of(state)
        return
    line = next((line for line in reversed(lines) if line["event"] == number), None)
    if line is not None and line["over"]:
        return
    past.is_written = line is not None and line is lines[-1]
    release = math.inf if past.release is None else past.release
    past.calm = len(_last(tail, lambda row: row["band"] == "covered" and float(row["max"]) <= release))
    if line is not None and past.is_written:
        past.event = event_of({**line, "number": number, "maximum": line["max"]})
    else:
        past.event = _event(number, state, [row for row in in_event if int(row["event"]) == number])


def _last(rows: Iterable[dict[str, str]], fits: Callable[[dict[str, str]], bool]) -> list[dict[str, str]]:
    """Return the last rows, as far back as they fit."""
    return list(itertools.takewhile(fits, reversed(list(rows))))[::-1]


def _event(number: int, state: dict[str, Any] | None, rows: list[dict[str, str]]) -> Event | None:
    """Return the event that goes on, from what run.json told of it and from the rows after that."""
    event = event_of(state) if number and state is not None and state["number"] == number else None
    for row in rows:
        if row["band"] in ("candidate", "halt"):
            step, time, atom = int(row["step"]), float(row["time"]), int(row["max_id"])
            event = event or Event(step, time, number)
            event.see(step, time, float(row["max"]), atom, np.array([atom]))
    return event


def state_of_event(event: Event | None) -> dict[str, Any] | None:
    """Return an event that goes on as JSON can hold it, with the first ids of this rank's atoms."""
    if event is None:
        return None
    return {**vars(event), "atoms": event.atoms[:_MOST_ATOMS].tolist()}


def event_of(state: dict[str, Any]) -> Event:
    """Return the event of such a state."""
    values: dict[str, Any] = {name: state[name] for name in ("number", "start", "end", "worst", "max_id", "n_frames")}
    for name in ("start_time", "end_time"):
        values[name] = float("nan" if state[name] is None else state[name])
    return Event(**values, maximum=float(state["maximum"]), atoms=np.array(state["atoms"], np.int64))
