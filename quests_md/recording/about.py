"""run.json: what it says of a run, how it is written, and how a resumed run reads it."""

from __future__ import annotations

import datetime
import functools
import json
import math
import zlib
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pydantic

from ..errors import OutputError
from ..files import HeldFolder
from ..machine import find_versions
from ..monitor import Key, Monitor
from ..selection import Kept

__all__ = [
    "ABOUT",
    "begin_folder",
    "describe",
    "is_overwriting",
    "read_about_strictly",
    "to_json",
    "write_about",
]

ABOUT = "run.json"
FORMAT = 2  # of a run's folder; version 0.1.0 wrote format 1, without a number
_CHECKS = "checks"

# -- writing -----------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Return a value as JSON can hold it: infinite numbers become text, and nan becomes null."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return str(value) if isinstance(value, Key) else [to_json(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def write_about(folder: HeldFolder, content: dict[str, Any], is_checked: bool = True) -> None:
    """Replace run.json, atomically; `OutputError` if it cannot be written.

    The file ends with a checksum of every key. They show whether, and where, somebody or a disk changed the file.
    """
    whole = to_json({"format": FORMAT, **content})
    whole[_CHECKS] = {key: _compute_checksum(value) for key, value in whole.items()}
    text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
    folder.replace(ABOUT, [text.encode()], is_checked)


def begin_folder(folder: HeldFolder, names: tuple[str, ...], content: dict[str, Any], overwrite: bool) -> None:
    """Begin a new run in a folder: make it, write run.json, and remove the files `names` of an earlier run.

    Raises
    ------
    OutputError
        It holds an earlier run and `overwrite` is False, another run uses it, or it cannot be written.
    """
    folder.claim()
    try:
        old = [name for name in (*names, ABOUT) if folder.exists(name)]
        if old and not overwrite and not (old == [ABOUT] and _failed_at_once(folder)):
            raise OutputError(
                f"{folder.path} holds an earlier run ({old[0]}): choose another output, "
                "set resume = true to go on with it, or set overwrite = true"
            )
        others = [n for n in folder.names() if n in names or n.startswith("resume.") or n.endswith(".part")]
        marked = {**content, "state": {**content["state"], "overwrites": True}}
        try:  # before anything is removed: a folder that cannot be written keeps the earlier run
            write_about(folder, marked if others else content)
        except OutputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise OutputError(f"{folder.path}: cannot be used as output folder: {error.__cause__.strerror}") from error
        for name in others:
            folder.remove(name)
        if others:  # if the program is killed before this, `is_overwriting` tells the next one
            write_about(folder, content)
    except BaseException:
        folder.release()
        raise


def resume_folder(folder: HeldFolder, content: dict[str, Any], words: str) -> None:
    """Go on with the run in a folder that is held: remove what is half written, write run.json, and say so."""
    for name in folder.names():
        if name.endswith(".part"):
            folder.remove(name)
    folder.adopt(ABOUT)
    write_about(folder, content)
    print(f"quests_md: resumes {words}, in {folder.path}", flush=True)


def is_overwriting(folder: HeldFolder) -> bool:
    """Return whether a run was killed while it removed the files of an earlier one: there is nothing to resume."""
    return _holds(folder, lambda content: content["state"]["overwrites"])


def _failed_at_once(folder: HeldFolder) -> bool:
    """Return whether a run failed before it had evaluated anything: nothing is lost if another one begins."""
    return _holds(folder, lambda content: content["status"] == "failed" and content["evaluations"] == 0)


def _holds(folder: HeldFolder, look: Callable[[Any], object]) -> bool:
    """Return whether run.json is such; if there is none, or a damaged one, it is not."""
    try:
        with folder.open(ABOUT) as file:
            return bool(look(json.loads(file.read())))
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False  # `read_about_strictly` will say what is damaged


def _compute_checksum(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


# -- reading, to resume ------------------------------------------------------------------------------------------------


def _parse_key(value: Any) -> Any:
    return Key.parse(value) if isinstance(value, str) else value


_Key = Annotated[Key, pydantic.BeforeValidator(_parse_key)]
_Thresholds = dict[str, dict[str, float]]


class _SelectionState(pydantic.BaseModel):
    next: int
    pace: dict[str, float]
    kept: list[Kept]


class Base(pydantic.BaseModel):
    """State of the selection after the first `rows` rows of a run in format 1: these rows do not contain it."""

    rows: int
    selection: _SelectionState
    candidates: list[tuple[_Key, int | None]]


class _OpenEvent(pydantic.BaseModel):
    number: int
    start: int
    atoms: list[int]


class ResumeState(pydantic.BaseModel):
    """The key "state": what a resumed run needs and no other file holds. The keys after `base` are of format 1 only.

    Attributes
    ----------
    overwrites
        Whether the other files in the folder belong to an earlier run, and are being removed.
    """

    overwrites: bool = False
    volume: float | None = None
    sample: float | None = None
    halted: _Key | None = None
    learned: _Key | None = None
    base: Base | None = None
    row: tuple[int, int] | None = None
    event: _OpenEvent | None = None
    candidates: list[tuple[int, int, int | None]] = []
    selection: _SelectionState | None = None


class About(pydantic.BaseModel):
    """The checked keys of run.json that resuming needs."""

    format: int = 1
    status: str
    reference: str = "index"
    index: dict[str, Any]
    thresholds: _Thresholds | None
    consecutive: int
    release: float | None
    started: str
    resumed: list[str]
    state: ResumeState


def read_about_strictly(folder: HeldFolder) -> tuple[About, dict[str, Any]] | None:
    """Return run.json, checked and unchecked; None if it does not exist or is empty.

    Raises
    ------
    OutputError
        It cannot be read, or is not as a run wrote it; the message names the key.
    """
    path = folder.path / ABOUT
    try:
        if not folder.size(ABOUT):
            return None
        with folder.open(ABOUT) as file:
            content: Any = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise OutputError(f"{path}: run.json is missing or damaged: it holds no table")
    if content.get("format", 1) != 1 or _CHECKS in content:
        _verify(path, content)
    if not isinstance(content.get("state"), dict):
        raise OutputError(f"{path}: state: it is of another version of quests_md: the run cannot be resumed")
    try:
        return About.model_validate(content), content
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise OutputError(
            f"{path}: {key}: {problem['msg']}, not {problem['input']!r}: no run wrote that; give it back what it was, "
            "or choose another output"
        ) from None


def _verify(path: Any, content: dict[str, Any]) -> None:
    """Raise `OutputError` for the first key that was changed."""
    if content.get("format") != FORMAT:
        raise OutputError(
            f"{path}: format: this version of quests_md reads 1 and {FORMAT}, not {content.get('format')!r}"
        )
    checks = content.get(_CHECKS)
    if not isinstance(checks, dict):
        raise OutputError(f"{path}: {_CHECKS}: the checksums are missing: the file was changed, or is damaged")
    rest = {key: value for key, value in content.items() if key != _CHECKS}
    for key in [*checks, *(key for key in rest if key not in checks)]:
        if key not in rest or checks.get(key) != _compute_checksum(rest[key]):
            how = (
                "is missing" if key not in rest else f"is {json.dumps(rest[key])[:100]}, which no run has written there"
            )
            raise OutputError(
                f"{path}: {key}: {how}: the file was changed, or is damaged; give it back what it was, or choose "
                "another output"
            )


# -- content -----------------------------------------------------------------------------------------------------------

_find_versions = functools.cache(find_versions)


def describe(
    monitor: Monitor,
    ended: dict[str, Any],
    settings: dict[str, Any],
    counts: dict[str, Any],
    state: dict[str, Any],
    learning: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of run.json.

    Parameters
    ----------
    monitor
        The monitor of the run.
    ended
        Status, reason and host of the run.
    settings
        Settings of the session.
    counts
        Dates and counts.
    state
        What resuming needs that is in no other file.
    learning
        Progress of a live reference; None for an index.
    """
    thresholds = monitor.thresholds
    return {
        **ended,
        "reference": "index" if learning is None else "live",
        "learning": learning,
        "index": monitor.index.describe(),
        "select": thresholds.given["select"],
        "halt": thresholds.given["halt"],
        "thresholds": thresholds.resolved,
        "min_atoms": thresholds.min_atoms,
        "min_fraction": thresholds.min_fraction,
        "consecutive": monitor.events.consecutive,
        "release": monitor.events.release,
        "every": monitor.every,
        "save_every": monitor.schedule.save_every,
        "min_distance": monitor.plausibility.fraction,
        "implausible": monitor.implausible,
        "values": monitor.values,
        "precision": monitor.precision,
        **settings,
        "ranks": monitor.comm.size,
        "threads": monitor.threads,
        "updated": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **counts,
        "events": monitor.events.count,
        "versions": _find_versions(),
        "state": state,
    }
