"""Reading the output folder of a run, whatever has become of the run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["COLUMNS", "levels", "read_events", "read_rows", "read_run"]

# Of monitor.csv: what is read as numbers. A column that an older version did not write is nan.
COLUMNS = (
    "run", "step", "time", "n", "max", "max_id", "mean", "q50", "q99", "n_select", "n_halt", "saved", "seconds",
    "event", "novelty", "force_error",
)  # fmt: skip

# Of run.json: what the pages count on, where it is there.
_KINDS: dict[str, Any] = {"saved": int, "events": int, "resumed": list | None}
_KINDS_OF_INDEX: dict[str, Any] = {
    "path": str | None, "elements": list | None, "k": int | None, "cutoff": int | float | None,
}  # fmt: skip

Rows = dict[str, NDArray[Any]]


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json; `InputError` if the folder holds no run."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        loop = f", but a loop: {folder}/learning.png shows it, and its explorations are runs"
        told = loop if (folder / "learning.json").exists() else ""
        raise InputError(f"{error.filename}: no such file: {folder} holds no run{told}") from None
    except ValueError as error:
        raise InputError(f"{folder}/run.json: not JSON: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("index"), dict):
        raise InputError(f"{folder}/run.json is not as a run wrote it: it says nothing of an index")
    _check(folder / "run.json", run)
    return run


def _check(path: Path, run: dict[str, Any]) -> None:
    """Raise `InputError` if what is read of run.json is not of the kind that a run writes."""
    for told, kinds in ((run, _KINDS), (run["index"], _KINDS_OF_INDEX)):
        for key, kind in kinds.items():
            if key in told and not isinstance(told[key], kind):
                raise InputError(f"{path} is not as a run wrote it: {key} is {told[key]!r}")
    try:
        levels(run)
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{path} is not as a run wrote it: thresholds are {run.get('thresholds')!r}") from None


def read_rows(folder: Path) -> tuple[Rows, int]:
    """Return monitor.csv as columns (`COLUMNS`, and `band` as text), and how many rows cannot be read.

    A run that is killed, or that goes on, may leave half a row. Without the file there are no rows.
    """
    path, good, bad = folder / "monitor.csv", [], 0
    if path.exists():
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                try:
                    values = [float(row.get(name, "nan")) for name in COLUMNS]
                    if not all(math.isfinite(values[COLUMNS.index(name)]) for name in ("step", "n")):
                        raise ValueError
                    good.append((values, row["band"] or ""))
                except (TypeError, ValueError, KeyError):
                    bad += 1
    numbers = np.array([values for values, _ in good], dtype=np.float64).reshape(-1, len(COLUMNS))
    rows: Rows = {name: numbers[:, c] for c, name in enumerate(COLUMNS)}
    return rows | {"band": np.array([band for _, band in good], dtype=str)}, bad


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of events.jsonl that are whole."""
    path, events = folder / "events.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def levels(run: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return the finite thresholds of a run, in nats: "select" or "halt", how to call it, and the number.

    One that is the same for all elements is named once.
    """
    found = []
    for name in ("select", "halt"):
        settled = (run.get("thresholds") or {}).get(name)
        if settled is None:
            settled = {"": run[name]} if isinstance(run.get(name), (int, float, str)) else {}
        values = {symbol: float(value) for symbol, value in settled.items()}
        if len(set(values.values())) == 1:
            values = {"": next(iter(values.values()))}
        found += [(name, f"{name} {symbol}".strip(), v) for symbol, v in values.items() if math.isfinite(v)]
    return found
