"""The tables that `quests-md thermo` reads: CSV with a line of names."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError

__all__ = ["Table", "read_table", "same_temperatures"]

Table = dict[str, NDArray[np.float64]]


def read_table(path: Path, needed: Mapping[str, str], optional: tuple[str, ...] = ()) -> Table:
    """Read columns of a CSV file; others are not looked at.

    Parameters
    ----------
    path
        The file. Its first line has the names of the columns; a line that begins with # is none.
    needed
        Names of columns that must be there, and what each holds.
    optional
        Names of columns that are read where they are there.

    Raises
    ------
    SourceError
        There is no such file or it has no rows, a column is missing or there twice, or a cell that is
        needed is no finite number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in file if line.strip() and not line.startswith("#")]
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a table: {error}") from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if not rows:
        raise SourceError(f"{path}: nothing in it: a table has the names of its columns in the first line")
    names, rows = rows[0], rows[1:]
    for name, what in needed.items():
        if name not in names:
            raise SourceError(f"{path}: no column {name} ({what}) in its first line, which has: {', '.join(names)}")
    if not rows:
        raise SourceError(f"{path}: no rows in it")
    wanted = [name for name in (*needed, *optional) if name in names]
    if any(names.count(name) > 1 for name in wanted):
        raise SourceError(f"{path}: a column is there twice: {', '.join(names)}")
    found = {name: np.array([_number(path, names, row, i, name) for i, row in enumerate(rows)]) for name in wanted}
    for name in needed:
        if not np.isfinite(found[name]).all():
            row = int(np.argmin(np.isfinite(found[name]))) + 1
            raise SourceError(
                f"{path}: row {row}, column {name}: a finite number is expected, not {found[name][row - 1]}"
            )
    return found


def _number(path: Path, names: list[str], row: list[str], i: int, name: str) -> float:
    try:
        return float(row[names.index(name)])
    except (IndexError, ValueError):
        found = row[names.index(name)] if len(row) > names.index(name) else "nothing"
        raise SourceError(f"{path}: row {i + 1}, column {name}: a number is expected, not {found!r}") from None


def same_temperatures(paths: tuple[Path, Path], tables: tuple[Table, Table]) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of two tables that have the same T, in the order of T.

    Raises
    ------
    SourceError
        A temperature is twice in a table, or they have fewer than two in common.
    """
    columns = [table["T"] for table in tables]
    for path, T in zip(paths, columns, strict=True):
        if len(np.unique(T)) < len(T):
            raise SourceError(f"{path}: a temperature is there twice")
    one, two = np.nonzero(np.isclose(columns[0][:, None], columns[1], rtol=1e-6, atol=0))
    if len(one) < 2:
        raise SourceError(f"{paths[0]} and {paths[1]} have fewer than two temperatures T in common")
    order = np.argsort(columns[0][one])
    return one[order], two[order]
