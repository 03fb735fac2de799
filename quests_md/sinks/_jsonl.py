"""events.jsonl: one JSON object per line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..files import AppendOnly

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


def json_value(value: Any) -> Any:
    """Return what JSON can hold of a value: an infinite number is text, and nan is null."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
