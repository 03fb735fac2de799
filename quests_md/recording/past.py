"""What the files of a run tell the session that resumes it. The rows decide: what has no row did not happen."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, on_root
from ..errors import InputError, OutputError, QuestsError
from ..files import HeldFolder
from ..monitor import POOLED, Evaluations, Key, Part
from ..selection import SKIPPED
from .about import ABOUT, Base, ResumeState, read_about_strictly
from .reader import DEFAULTS, Rows, read_events, read_rows

__all__ = ["Past", "check_mode", "find_past"]

# Keys of run.json that decide: the run cannot be resumed if one of them has changed.
_DECIDING = (
    "select", "halt", "min_atoms", "min_fraction", "consecutive", "release", "every", "save_every", "min_distance",
    "implausible", "novelty", "budget", "bias",
)  # fmt: skip
_COLUMNS = ",".join(DEFAULTS)
# The heads of older files: the columns before these names. The first is that of format 1.
_OLDER = [_COLUMNS.partition(f",{name}")[0] for name in ("repeat", "n_sample", "expected_error", "bias_energy")]
_PIECE = 1 << 16


@dataclass
class Past:
    """The earlier part of a run.

    Attributes
    ----------
    format
        Format of the folder.
    state
        What run.json holds that is in no other file.
    status
        Status of the run in run.json.
    thresholds
        The resolved thresholds; None if they were not resolved yet.
    same
        Whether the session that resumes has the same index and the same thresholds.
    began_at, resumed
        When the run was begun, and when it was resumed (as text).
    evaluations
        The evaluations that have a row.
    rows, flagged
        Number of rows, and how many of them are above `select`.
    last, last_event
        Key and event of the last row; None and 0 without rows.
    saved
        Run and step of the last saved frame; or None.
    open_rows, events_before
        The last rows, in which an event may be open; and how many events began before them.
    considered, at_rows
        The rows whose frames the selection judged or skipped; and their numbers.
    samples
        Run, step and sample of the last evaluations that have one, as many as a pool may need.
    began, since
        Number of the event that began last, and number of rows since then, its first row included; 0 without events.
    halts
        Keys of the rows that halted the run, without `unseen_halt`.
    unseen_halt
        Key of the last row, if it halted the run but the program ended before the host knew this; else None.
    base, base_rows
        State of the selection after the first `base_rows` rows, if these rows do not contain it (format 1); else None.
    is_broken
        Whether the last row is of a broken frame.
    tau
        τ of the bias (eV per nat) in the last row; nan without one.
    events
        Lines of events.jsonl.
    rows_end, lacks_columns
        Size of the complete rows of monitor.csv in bytes, and the columns that the file of an older version lacks.
    """

    format: int
    state: ResumeState
    status: str
    thresholds: dict[str, Any] | None
    same: bool
    began_at: datetime.datetime
    resumed: list[str]
    evaluations: Evaluations
    open_rows: Rows
    considered: Rows
    at_rows: NDArray[np.int64]
    samples: list[tuple[int, int, Part]] = field(default_factory=list)
    rows: int = 0
    flagged: int = 0
    last: Key | None = None
    last_event: int = 0
    saved: tuple[int, int] | None = None
    events_before: int = 0
    began: int = 0
    since: int = 0
    halts: set[Key] = field(default_factory=set)
    unseen_halt: Key | None = None
    is_broken: bool = False
    base: Base | None = None
    base_rows: int = 0
    rows_end: int = 0
    lacks_columns: tuple[str, ...] = ()
    tau: float = math.nan
    events: list[dict[str, Any]] = field(default_factory=list)

    def has_row(self, key: Key) -> bool:
        """Return whether an evaluation has its row."""
        return self.evaluations.holds(key)

    def in_words(self, n_candidates: int) -> str:
        """Return what is resumed, for the first line that a resumed run prints."""
        if self.last is None:
            return "it has no row yet"
        return f"run {self.last.run} after step {self.last.step}: {self.rows} evaluations, {n_candidates} frames kept"


def check_mode(resume: Any, overwrite: bool) -> bool | str:
    """Return `resume` if it is a valid choice; else raise `InputError`."""
    if resume not in (True, False, "anyway") or not isinstance(resume, (bool, str)):
        raise InputError(f'resume must be true, false or "anyway", not {resume!r}')
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other: go on with the run in the folder, or replace it")
    mode: bool | str = resume
    return mode


def find_past(
    folder: HeldFolder, names: tuple[str, ...], comm: Comm, now: dict[str, Any], mode: bool | str
) -> Past | None:
    """Return the run in a folder that is to be resumed, or None if there is none; change nothing. Collective.

    Parameters
    ----------
    names
        Names of a run's files besides run.json.
    now
        The content of the new run.json.

    Raises
    ------
    OutputError
        A key that decides has changed and the mode is not "anyway"; or a file cannot be read. On all ranks.
    """

    def find() -> Past | None:
        if not folder.path.is_dir():
            return None
        folder.claim()
        try:
            return _find(folder, names, now, mode)
        except InputError as error:  # the file was not written by a run
            folder.release()
            raise OutputError(str(error)) from error
        except QuestsError:
            folder.release()
            raise

    past = on_root(comm, find)
    shared: Past | None = comm.broadcast(past)
    return shared


def _find(folder: HeldFolder, names: tuple[str, ...], now: dict[str, Any], mode: bool | str) -> Past | None:
    found = read_about_strictly(folder)
    if found is None:
        if any(folder.exists(name) for name in names):
            raise OutputError(f"{folder.path}: run.json is missing or damaged: what is there cannot be resumed")
        return None
    about, content = found
    others = _find_differences(content, now)
    if others and mode != "anyway":
        raise OutputError(
            f"{folder.path} holds a run that was watched otherwise: {'; '.join(others)}. Choose another output, "
            'or say resume = "anyway"'
        )
    path, head = folder.path / "monitor.csv", _read_head(folder)
    if head not in ("", _COLUMNS, *_OLDER):
        raise OutputError(f"{path} has other columns: it is of another version, and cannot be resumed")
    rows, damaged = read_rows(path)
    events, damaged_events = read_events(folder.path / "events.jsonl")
    for name, lines in ((path, damaged), (folder.path / "events.jsonl", damaged_events)):
        if lines:
            raise OutputError(f"{name}: line {lines[0]} is damaged: no run wrote it")
    began_at = _parse_date(folder.path / ABOUT, about.started)
    stamp = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    is_considered = ~np.isnan(rows["novelty"]) | (rows["n_novel"] == SKIPPED)
    past = Past(
        format=about.format,
        state=about.state,
        status=about.status,
        thresholds=about.thresholds,
        same=not {"index", "select", "halt"} & {other.split()[0] for other in others},
        began_at=began_at,
        resumed=[*about.resumed, stamp],
        evaluations=Evaluations(
            rows["run"], rows["step"], rows["repeat"], _parse_marks(rows["configuration"]), rows["max"]
        ),
        open_rows=rows,
        considered=rows[is_considered],
        at_rows=np.flatnonzero(is_considered),
        samples=_parse_samples(path, rows),
        rows_end=_find_end_of_lines(folder, "monitor.csv"),
        lacks_columns=tuple(DEFAULTS)[head.count(",") + 1 :] if head in _OLDER else (),
        events=events,
        tau=float(rows["bias_tau"][-1]) if len(rows) else math.nan,
    )
    _count(past, rows)
    _find_base(past, rows)
    return past


def _find_base(past: Past, rows: Rows) -> None:
    """Find the selection of a run that was begun in format 1, whose run.json has it."""
    state = past.state
    past.base = state.base
    if past.format == 1 and state.selection is not None:
        candidates = [(Key(run, step), ordinal) for run, step, ordinal in state.candidates]
        past.base = Base(rows=0, selection=state.selection, candidates=candidates)
        if state.row is not None:
            known = np.flatnonzero((rows["run"] == state.row[0]) & (rows["step"] == state.row[1]))
            past.base.rows = int(known[-1]) + 1 if len(known) else 0
    past.base_rows = 0 if past.base is None else past.base.rows


def _read_head(folder: HeldFolder) -> str:
    if not folder.exists("monitor.csv"):
        return ""
    with folder.open("monitor.csv") as file:
        line = file.readline()
    return line.decode(errors="replace").rstrip("\n") if line.endswith(b"\n") else ""


def _parse_date(path: Path, started: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(started)
    except ValueError:
        raise OutputError(f"{path}: started: {started!r} is no date") from None


def _find_differences(content: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the keys that decide and have changed, in words that begin with the key."""
    before, index = content["index"], now["index"]
    others = []
    compared = set(index) - {"path", "generation", "describe"}
    if before.get("describe") != index.get("describe"):
        others.append(f"describe was {before.get('describe')}, now {index.get('describe')}")
    if content.get("reference") == "live" and before.get("hash") is None:  # killed before run.json had the index
        compared = {"k", "cutoff", "species"}
    if any(before.get(key) != index[key] for key in compared):
        others.append(f"index was {before.get('path')} ({before.get('hash')}), now {index['path']} ({index['hash']})")
    return others + [
        f"{key} was {content.get(key)!r}, now {now[key]!r}" for key in _DECIDING if content.get(key) != now[key]
    ]


def _count(past: Past, rows: Rows) -> None:
    """Set what follows from the rows."""
    past.rows = len(rows)
    if not len(rows):
        return
    last = rows[-1]
    past.last, past.last_event = Key(int(last["run"]), int(last["step"]), int(last["repeat"])), int(last["event"])
    past.flagged = int(np.isin(rows["band"], ("candidate", "halt")).sum())
    past.is_broken = bool(last["band"] == "implausible")
    saved = np.flatnonzero(rows["saved"])
    past.saved = (int(rows["run"][saved[-1]]), int(rows["step"][saved[-1]])) if len(saved) else None
    before = np.maximum.accumulate(np.concatenate([[0], rows["event"]]))
    begins = np.flatnonzero(rows["event"] > before[:-1])
    if len(begins):
        past.began, past.since = int(rows["event"][begins[-1]]), len(rows) - int(begins[-1])
    # At a covered row outside of events, no event is open.
    calm = np.flatnonzero((rows["band"] == "covered") & (rows["event"] == 0))
    first = int(calm[-1]) + 1 if len(calm) else 0
    past.open_rows, past.events_before = rows[first:], int(before[first])
    is_old = past.format == 1  # which does not record whether the host knows of the halt
    is_seen = last["band"] != "halt" or past.state.halted == past.last or (is_old and past.status == "halted")
    past.unseen_halt = None if is_seen else past.last
    halts = rows[rows["band"] == "halt"]
    keys = zip(halts["run"].tolist(), halts["step"].tolist(), halts["repeat"].tolist(), strict=True)
    past.halts = {Key(*key) for key in keys} - {past.unseen_halt}


def _parse_marks(texts: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return the marks (n, 2) of the configurations; nan where the text is no mark."""
    marks = np.full((len(texts), 2), np.nan)
    for place in np.flatnonzero(texts != ""):
        one, _, other = str(texts[place]).partition("/")
        try:
            marks[place] = float(one), float(other)
        except ValueError:
            continue
    return marks


def _parse_samples(path: Path, rows: Rows) -> list[tuple[int, int, Part]]:
    """Return run, step and sample of the last rows that have a sample. Each has at least one value."""
    samples = []
    for row in rows[np.flatnonzero(rows["sample"] != "")[-POOLED:]]:
        run, step = int(row["run"]), int(row["step"])
        try:
            samples.append((run, step, Part.parse(str(row["sample"]), float(row["max"]))))
        except ValueError:
            raise OutputError(f"{path}: sample of run {run}, step {step}: {str(row['sample'])!r} is none") from None
    return samples


def _find_end_of_lines(folder: HeldFolder, name: str) -> int:
    """Return the size of a file up to its last line end; 0 if it does not exist."""
    if not folder.exists(name):
        return 0
    with folder.open(name) as file:
        end = file.seek(0, 2)
        while end:
            first = max(0, end - _PIECE)
            file.seek(first)
            place = file.read(end - first).rfind(b"\n")
            if place >= 0:
                return first + place + 1
            end = first
    return 0
