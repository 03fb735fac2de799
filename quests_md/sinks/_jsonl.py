"""events.jsonl: one JSON object per line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..files import AppendOnly
from ._lines import end_of_lines

__all__ = ["JsonLinesSink", "json_value"]


class JsonLinesSink:
    """A file of JSON objects, one per line, made by the first one.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = AppendOnly(path)

    def write(self, values: dict[str, Any]) -> None:
        """Add an object; `OutputError` if it cannot be written, and the file is as it was."""
        text = json.dumps({key: json_value(value) for key, value in values.items()}, allow_nan=False)
        self._file.append([text.encode() + b"\n"])

    def resume(self) -> int:
        """Cut off an object that was not written in full; return how many bytes of it there were."""
        return self._file.cut(end_of_lines(self.path))

    def read(self) -> list[dict[str, Any]]:
        """Return the objects; `OutputError` where a line holds none."""
        objects: list[dict[str, Any]] = []
        for number, line in enumerate(self.path.read_bytes().splitlines() if self.path.exists() else (), start=1):
            try:
                objects.append(dict(json.loads(line)))
            except ValueError as error:
                raise OutputError(f"{self.path}: line {number} is damaged: {error}") from error
        return objects

    def remove_last(self) -> None:
        """Take the last object out of the file."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        self._file.cut(sum(map(len, lines[:-1])))


def json_value(value: Any) -> Any:
    """Return what JSON can hold of a value: an infinite number is text, and nan is null."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
