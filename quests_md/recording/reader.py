"""Read the output folder of a run, which may be over, still going on, or killed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError, QuestsError
from ..notebook import make_dataframe, to_html

__all__ = [
    "DEFAULTS",
    "Rows",
    "Run",
    "count_frames",
    "iterate_frames",
    "read_about",
    "read_events",
    "read_last_row",
    "read_rows",
    "read_run",
]

Rows = NDArray[Any]

# The columns of the rows, with a default for a column that a file of an older version lacks. The default also gives the
# type of the column.
DEFAULTS: dict[str, int | float | bool | str] = {
    "run": 1,
    "step": 0,
    "time": math.nan,
    "n": 0,
    "max": math.nan,
    "max_id": -1,
    "mean": math.nan,
    "q50": math.nan,
    "q99": math.nan,
    "n_select": 0,
    "n_halt": 0,
    "band": "",
    "saved": False,
    "values": "",
    "seconds": math.nan,
    "event": 0,
    "novelty": math.nan,
    "force_error": math.nan,
    "repeat": 0,
    "configuration": "",
    "n_novel": 0,
    "excess": math.nan,
    "dropped": "",
    "n_sample": 0,
    "sample_age": 0,
    "sample": "",
    "expected_error": math.nan,
    "n_outside": 0,
    "force_rmse": math.nan,
    "bias_energy": math.nan,
    "bias_force": math.nan,
    "bias_tau": math.nan,
}
_ESSENTIAL = ("run", "step", "n", "max", "band")

# Types of those keys of run.json that readers rely on.
_KINDS: dict[str, Any] = {"status": str, "saved": int, "events": int, "resumed": list | None}
_KINDS_OF_INDEX: dict[str, Any] = {
    "path": str | None, "elements": list | None, "k": int | None, "cutoff": int | float | None,
}  # fmt: skip

_PIECE = 4 << 20  # bytes of monitor.csv that are parsed at a time
_TAIL = 1 << 16  # bytes at the end of monitor.csv that surely hold a row
_WIDTH = 32  # characters of a text cell, at the first try


class Run:
    """A run's output folder, as `read_run` opens it.

    Each file is read when it is first needed, and `rows` and `events` do not change after that: call `read_run` again
    to see how a run has gone on. Every iteration over frames reads the file again, one frame at a time. It opens the
    file once, so changes that the run makes meanwhile do not mix with it. Half a frame at the end of a file, which a
    running or killed run leaves, is ignored.

    Attributes
    ----------
    folder
        The folder.
    about
        The content of run.json.
    rows
        The rows of monitor.csv: a structured array with a field for each column. Numbers are int64 or float64, `saved`
        is bool, texts are str. A column that an older version did not write has its default.
    n_damaged
        Number of rows that cannot be read and are left out. Half a row at the end is not counted.
    events
        The lines of events.jsonl, as dictionaries; an incomplete line is left out.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        about: dict[str, Any] = {}
        with contextlib.suppress(QuestsError):  # a repr must not fail where run.json is missing or damaged
            about = self.about
        keys = ("evaluations", "flagged", "saved", "events")
        told = [about.get("status", "no readable run.json"), *(f"{about[key]} {key}" for key in keys if key in about)]
        return f"<Run in {self.folder}: {', '.join(told)}>"

    def _repr_html_(self) -> str:
        keys = ("status", "reason", "host", "evaluations", "flagged", "saved", "events", "started", "updated")
        return to_html(f"Run in {self.folder}", {key: self.about[key] for key in keys if key in self.about})

    @cached_property
    def about(self) -> dict[str, Any]:
        """The content of run.json."""
        return read_about(self.folder / "run.json")

    @property
    def status(self) -> str:
        """ "running", "finished", "halted" or "failed"; of a killed run it is still "running"."""
        return str(self.about.get("status", ""))

    @cached_property
    def _table(self) -> tuple[Rows, list[int]]:
        return read_rows(self.folder / "monitor.csv")

    @property
    def rows(self) -> Rows:
        """The rows of monitor.csv as a structured array."""
        return self._table[0]

    @property
    def n_damaged(self) -> int:
        """Number of rows that cannot be read and are left out."""
        return len(self._table[1])

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The whole lines of events.jsonl."""
        return read_events(self.folder / "events.jsonl")[0]

    def to_pandas(self) -> Any:
        """Return `rows` as a ``pandas.DataFrame``.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        return self.to_dataframe()

    def to_dataframe(self) -> Any:
        """Return `rows` as a ``pandas.DataFrame``, as all results that have a table do.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        return make_dataframe({name: self.rows[name] for name in DEFAULTS})

    def candidates(self) -> Iterator[Any]:
        """Iterate over the frames of candidates.extxyz as ``ase.Atoms``; `OutputError` at a damaged one."""
        return iterate_frames(self.folder / "candidates.extxyz")

    def cutouts(self) -> Iterator[Any]:
        """Iterate over the frames of cutouts.extxyz, as `candidates` does."""
        return iterate_frames(self.folder / "cutouts.extxyz")

    def history(self) -> Iterator[Any]:
        """Iterate over the frames of history.extxyz, as `candidates` does."""
        return iterate_frames(self.folder / "history.extxyz")

    def implausible(self) -> Iterator[Any]:
        """Iterate over the frames of implausible.extxyz, as `candidates` does."""
        return iterate_frames(self.folder / "implausible.extxyz")

    def last(self) -> Any:
        """Return the frame of last.extxyz as ``ase.Atoms``; None if there is none."""
        return next(iterate_frames(self.folder / "last.extxyz"), None)


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Open the output folder of a watched run to read what it wrote.

    The run may be over, still going on, or killed. Nothing in the folder is changed.

    Parameters
    ----------
    folder
        The `output` of the run.

    Raises
    ------
    InputError
        The folder holds no run, or run.json is not as a run wrote it; the message names the key.
    """
    run = Run(folder)
    _ = run.about  # read now, so that a folder without a run is refused here
    return run


# -- run.json ----------------------------------------------------------------------------------------------------------


def read_about(path: Path) -> dict[str, Any]:
    """Return the content of a run.json; `InputError` if there is none, or if it is not as a run wrote it."""
    folder = path.parent
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        loop = f", but a loop: {folder}/learning.png shows it, and its explorations are runs"
        hint = loop if (folder / "learning.json").exists() else ""
        raise InputError(f"{path}: no such file: {folder} holds no run{hint}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("index"), dict):
        raise InputError(f"{path} is not as a run wrote it: it says nothing of an index")
    for values, kinds in ((about, _KINDS), (about["index"], _KINDS_OF_INDEX)):
        for key, kind in kinds.items():
            if key in values and (isinstance(values[key], bool) or not isinstance(values[key], kind)):
                raise InputError(f"{path} is not as a run wrote it: {key} is {values[key]!r}")
    _check_thresholds(path, about)
    return about


def _check_thresholds(path: Path, about: dict[str, Any]) -> None:
    settled = about.get("thresholds")
    values = settled.values() if isinstance(settled, dict) else ()
    if settled is not None and not (
        isinstance(settled, dict)
        and all(each is None or (isinstance(each, dict) and all(map(_is_number, each.values()))) for each in values)
    ):
        raise InputError(f"{path} is not as a run wrote it: thresholds are {settled!r}")
    for name in ("select", "halt"):
        if name in about and not (isinstance(about[name], dict) or _is_number(about[name])):
            raise InputError(f"{path} is not as a run wrote it: {name} is {about[name]!r}")


def _is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number; infinite ones are texts there."""
    try:
        return isinstance(value, (int, float, str)) and not isinstance(value, bool) and float(value) == float(value)
    except ValueError:
        return False


# -- events.jsonl ------------------------------------------------------------------------------------------------------


def read_events(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the events of an events.jsonl, and the numbers of damaged lines. Without the file there are none.

    What follows the last line end is ignored.
    """
    events: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(_read_whole_lines(path), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            damaged.append(number)
    return events, damaged


def _read_whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error


# -- monitor.csv -------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> tuple[Rows, list[int]]:
    """Return the rows of a monitor.csv, and the numbers of damaged lines. Without the file there are no rows.

    What follows the last line end is ignored.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    rows
        A structured array with the fields `DEFAULTS`. Other columns, of a later version, are left out.
    damaged
        Numbers (from 1) of the lines that are no rows and are left out.

    Raises
    ------
    InputError
        The file lacks an essential column.
    OutputError
        The file cannot be read.
    """
    parts: list[Rows] = []
    damaged: list[int] = []
    try:
        with open(path, "rb") as file:
            columns = _parse_head(path, file.readline())
            first, rest = 2, b""
            while columns and (piece := file.read(_PIECE)):
                whole, end, rest = (rest + piece).rpartition(b"\n")
                lines = whole.decode(errors="replace").split("\n") if end else []
                for part, bad in _parse_lines(lines, columns, first):
                    damaged += bad
                    parts += [part] if len(part) else []
                first += len(lines)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    return _join(parts), damaged


def read_last_row(path: Path) -> np.void | None:
    """Return the last whole row of a monitor.csv without reading the others; None if there is none or it is damaged.

    Raises
    ------
    InputError, OutputError
        As `read_rows`.
    """
    try:
        with open(path, "rb") as file:
            columns = _parse_head(path, file.readline())
            begin = file.tell()
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    if not columns or not lines:
        return None
    rows = _join([part for part, _ in _parse_lines([lines[-1].decode(errors="replace")], columns, 0)])
    return rows[0] if len(rows) else None


def _parse_head(path: Path, head: bytes) -> list[str]:
    """Return the names of the columns, "" for an unknown one; an empty list if the first line is incomplete.

    Raises
    ------
    InputError
        An essential column is missing.
    """
    if not head.endswith(b"\n"):
        return []
    names = head.decode(errors="replace").strip().split(",")
    names = [name if name in DEFAULTS and name not in names[:c] else "" for c, name in enumerate(names)]
    missing = [name for name in _ESSENTIAL if name not in names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)} in its first line: it is not as a run wrote it")
    return names


def _parse_lines(lines: Sequence[str], columns: Sequence[str], first: int) -> Iterator[tuple[Rows, list[int]]]:
    """Yield parsed rows and the numbers of damaged lines; `first` is the number of the first line.

    numpy only says that some line is damaged. So the halves are tried again, until that line is found.
    """
    if not lines:
        return
    rows = _parse_table(lines, columns)
    if rows is not None:
        yield rows, []
    elif len(lines) == 1:
        yield np.empty(0, []), [first]
    else:
        half = len(lines) // 2
        yield from _parse_lines(lines[:half], columns, first)
        yield from _parse_lines(lines[half:], columns, first + half)


def _parse_table(lines: Sequence[str], columns: Sequence[str]) -> Rows | None:
    """Return lines as rows; None if any line is not a row."""
    width = _WIDTH
    while True:
        # An unknown column is read as one letter: a row must have it, whatever it holds.
        kinds = [(name or f"_{c}", _get_kind(name, width) if name else "U1") for c, name in enumerate(columns)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy only warns of 1.5 as a whole number
                rows = np.loadtxt(lines, dtype=kinds, delimiter=",", comments=None, quotechar='"', ndmin=1)
        except (ValueError, OverflowError, Warning):
            return None
        if len(rows) != len(lines):  # numpy skips empty lines
            return None
        if "saved" in columns and not np.isin(rows["saved"], (0, 1)).all():
            return None
        texts = [rows[name] for name in columns if isinstance(DEFAULTS.get(name), str)]
        if all(_find_longest(text) < width for text in texts):
            return rows
        width *= 8  # a text may have been cut


def _find_longest(texts: NDArray[np.str_]) -> int:
    """Return the length of the longest text; numpy's own function goes text by text and is ten times slower."""
    codes = np.ascontiguousarray(texts).view(np.uint32).reshape(len(texts), -1)
    used = np.flatnonzero(codes.any(axis=0))
    return int(used[-1]) + 1 if len(used) else 0


def _get_kind(name: str, width: int) -> str:
    """Return the type of a column as it is parsed."""
    default = DEFAULTS[name]
    if isinstance(default, str):
        return f"U{width}"
    return "f8" if isinstance(default, float) else "i8"  # truth values are 0 and 1


def _join(parts: list[Rows]) -> Rows:
    """Join the parts to one table. The list is emptied on the way, because the rows of a long run take much memory."""
    kinds: list[tuple[str, str]] = []
    for name, default in DEFAULTS.items():
        if isinstance(default, str):
            found = [_find_longest(part[name]) for part in parts if name in (part.dtype.names or ())]
            kinds.append((name, f"U{max([1, *found])}"))
        else:
            kinds.append((name, "?" if isinstance(default, bool) else _get_kind(name, 0)))
    rows = np.empty(sum(map(len, parts)), dtype=kinds)
    end = len(rows)
    while parts:
        part = parts.pop()
        for name, default in DEFAULTS.items():
            rows[name][end - len(part) : end] = part[name] if name in (part.dtype.names or ()) else default
        end -= len(part)
    return rows


# -- frames ------------------------------------------------------------------------------------------------------------


def iterate_frames(path: Path) -> Iterator[Any]:
    """Iterate over the whole frames of an extxyz file of a run as ``ase.Atoms``. Without the file there are none.

    Yields
    ------
    ase.Atoms
        One frame after the other. The file is opened once, and half a frame at its end is ignored.

    Raises
    ------
    OutputError
        The file is damaged before its end, or cannot be read.
    """
    import ase.io

    for number, (first, lines) in enumerate(_iterate_blocks(path)):
        text = io.TextIOWrapper(io.BytesIO(b"".join(lines)), encoding="utf-8")
        try:
            # parallel=False: one rank reads, and ASE would read collectively under MPI.
            atoms = ase.io.read(text, index=0, format="extxyz", parallel=False)
        except Exception as error:
            # ASE raises many types of exceptions for a malformed frame.
            what = f"{type(error).__name__}: {error}"
            raise OutputError(f"{path}: frame {number}, at byte {first}, is damaged: {what}") from error
        yield atoms


def count_frames(path: Path) -> int:
    """Return how many whole frames an extxyz file of a run holds; `OutputError` as `iterate_frames`."""
    return sum(1 for _ in _iterate_blocks(path))


def _iterate_blocks(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the first byte and the lines of every whole frame."""
    try:
        with open(path, "rb") as file:
            yield from _iterate_blocks_of(file, path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error


def _iterate_blocks_of(file: BinaryIO, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    first = 0
    for number in itertools.count():
        count = file.readline()
        if not count.endswith(b"\n"):
            return
        if not count.strip().isdigit():
            raise OutputError(f"{path}: damaged at byte {first}: frame {number} does not begin with a number of atoms")
        lines = [count, *itertools.islice(file, int(count) + 1)]
        if len(lines) < int(count) + 2 or not lines[-1].endswith(b"\n"):
            if any(b"Properties=" in line for line in lines[2:]):  # another frame begins before this one ends
                raise OutputError(f"{path}: frame {number}, at byte {first}, is damaged: it has not {int(count)} atoms")
            return
        yield first, lines
        first += sum(map(len, lines))
