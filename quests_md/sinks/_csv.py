"""monitor.csv: one row per evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import AppendOnly

__all__ = ["CsvSink"]


class CsvSink:
    """A table that grows by rows. Numbers are written so that reading gives the same double.

    Parameters
    ----------
    path
        The file; made, with its header, by the first row.
    columns
        Names of the columns.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        self._file = AppendOnly(path)
        self._columns = columns
        self._head = (",".join(columns) + "\n").encode()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; `OutputError` if it cannot be written, and the file is as it was."""
        text = ",".join(_cell(row[name]) for name in self._columns) + "\n"
        self._file.append([text.encode()], head=self._head)


def _cell(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)
