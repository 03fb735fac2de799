"""What is recorded of every generation: generation.json, and its row of learning.csv."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from pathlib import Path
from typing import Any

from ..errors import CalibrationError
from ..files import write_atomically
from ..index import Index
from ._folder import Folder
from ._job import Exploration
from ._stages import Work, labels_before
from ._state import read_json, write_json

__all__ = ["COLUMNS", "recorded"]

COLUMNS = (
    "generation", "training_frames", "labels", "labels_new", "failed", "quarantined", "force_rmse", "energy_rmse",
    "covered_share", "first_halt_ps", "shortest_ps", "select", "halt", "select_at_10", "select_at_1", "index_size",
    "seconds_train", "seconds_explore", "seconds_select", "seconds_label", "seconds_extend",
)  # fmt: skip
_RATES = {"select_at_10": 0.1, "select_at_1": 0.01}


def recorded(work: Work, generation: int, explorations: list[Exploration], ended: str | None) -> dict[str, Any]:
    """Write generation.json and learning.csv; return the row."""
    folder = work.folder
    labels: dict[str, list[int]] = {"done": [], "failed": [], "quarantined": []}
    if folder.labelled(generation).exists():
        labels = read_json(folder.labelled(generation))
    training = read_json(folder.trained(generation))
    record = {
        "generation": generation,
        "ended": ended,
        "thresholds": work.state.data["thresholds"],
        "training": training,
        "explorations": [_told(folder, exploration) for exploration in explorations],
        "labels": labels,
        "files": _hashes(folder, generation),
        "seconds": work.state.data["seconds"].get(str(generation), {}),
    }
    record["row"] = row = _row(work, generation, record, explorations)
    write_json(folder.record(generation), record)
    _write_table(folder, generation)
    return row


def _row(work: Work, generation: int, record: dict[str, Any], explorations: list[Exploration]) -> dict[str, Any]:
    before, labels = len(labels_before(work, generation)), record["labels"]
    held_out, index = record["training"]["errors"]["held_out"], Index.open(work.folder.index(generation))
    halts = [exploration.first_halt for exploration in explorations if exploration.first_halt is not None]
    return {
        "generation": generation,
        "training_frames": len(record["training"]["frames"]),
        "labels": before + len(labels["done"]),
        "labels_new": len(labels["done"]),
        "failed": len(labels["failed"]),
        "quarantined": len(labels["quarantined"]),
        "force_rmse": held_out["force_rmse"],
        "energy_rmse": held_out["energy_rmse"],
        "covered_share": min(exploration.covered_share for exploration in explorations),
        "first_halt_ps": min(halts, default=None),
        "shortest_ps": min(exploration.time for exploration in explorations),
        **{name: max(record["thresholds"][name].values()) for name in ("select", "halt")},
        **{name: _at_rate(index, rate, work.state.data["watched"]) for name, rate in _RATES.items()},
        "index_size": len(index),
        **{column: record["seconds"].get(column[8:]) for column in COLUMNS if column.startswith("seconds_")},
    }


def _at_rate(index: Index, rate: float, watched: dict[str, int]) -> float | None:
    """Return the threshold that a false-alarm rate comes to in this index; None where it cannot be told."""
    try:
        found = None if index.calibration is None else index.calibration.false_alarm(rate, watched)
    except CalibrationError:
        return None
    return None if found is None else max(found.values())


def _told(folder: Folder, exploration: Exploration) -> dict[str, Any]:
    """Return an exploration with its paths relative to the folder."""
    values = dataclasses.asdict(exploration)
    return {name: folder.relative(value) if isinstance(value, Path) else value for name, value in values.items()}


def _hashes(folder: Folder, generation: int) -> dict[str, str]:
    """Return the SHA-256 of what the generation is made of, by path."""
    paths = [
        folder.index(generation),
        folder.index(generation + 1),
        folder.selected(generation),
        folder.labelled(generation),
    ]
    paths += sorted(path for path in folder.training(generation).rglob("*") if path.is_file())
    return {folder.relative(path): _sha256(path) for path in paths if path.exists()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_table(folder: Folder, generation: int) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for g in range(generation + 1):
        row = read_json(folder.record(g))["row"]
        writer.writerow([_cell(row[name]) for name in COLUMNS])
    write_atomically(folder.table, lambda file: file.write(text.getvalue().encode()))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
