"""monitor.csv: one row per evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..files import AppendOnly
from ._lines import end_of_lines

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

    def resume(self) -> int:
        """Cut off a row that was not written in full; return how many bytes of it there were.

        Raises
        ------
        OutputError
            The file cannot be read, or holds other columns.
        """
        cut = self._file.cut(end_of_lines(self.path))
        if self.path.exists():
            with open(self.path, "rb") as file:
                if file.readline() != self._head:
                    raise OutputError(f"{self.path} has other columns: it is of another version, and cannot be resumed")
        return cut

    def read(self) -> Iterator[dict[str, str]]:
        """Yield the rows as text; `OutputError` where one cannot be one."""
        if not self.path.exists():
            return
        with open(self.path, encoding="ascii", errors="replace") as file:
            next(file)
            for number, line in enumerate(file, start=2):
                cells = line.rstrip("\n").split(",")
                if len(cells) != len(self._columns):
                    raise OutputError(f"{self.path}: line {number} is damaged: it has {len(cells)} columns")
                yield dict(zip(self._columns, cells, strict=True))


def _cell(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)
