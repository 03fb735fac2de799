"""How verbs show and write results: tables and facts, JSON and CSV, pictures."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import MissingExtraError, OutputError
from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Outputs",
    "add_options",
    "check_outputs",
    "format_facts",
    "format_table",
    "result_options",
    "save_picture",
    "to_plain",
    "write_result",
]

# -- options and files -------------------------------------------------------------------------------------------------

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PICTURES = (".png", ".svg", ".pdf")
_WIDEST = 1_000_000  # columns of a table; rich would wrap it at the width of the terminal, 80 in a pipe


def add_options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds several options, in this order."""
    return lambda command: functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@dataclass(frozen=True)
class Outputs:
    """Where a verb writes its result, by the options -o, --plot and --overwrite.

    Attributes
    ----------
    output, plot
        The file of the result and that of the picture; None if they are not wanted.
    overwrite
        Whether files that exist are replaced.
    suffixes
        What the name of `output` may end with.
    """

    output: Path | None
    plot: Path | None
    overwrite: bool
    suffixes: tuple[str, ...]

    def check(self) -> None:
        """Raise before anything is computed if the result could not be written, as `check_outputs` does."""
        check_outputs(self.output, self.plot, self.overwrite, self.suffixes)

    def deliver(
        self, shown: Sequence[Mapping[str, Any]], write: Callable[[Path], None], draw: Callable[[], Figure]
    ) -> None:
        """Write a result where `output` says, draw it where `plot` says, and print `shown` as a table.

        The table is printed last, and also if writing fails. So the files are there even if nobody reads the table any
        more, and the numbers are printed even if the disk is full.
        """
        try:
            if self.output is not None:
                write(self.output)
            if self.plot is not None:
                save_picture(draw(), self.plot)
        finally:
            click.echo(format_table(shown))


def result_options(*suffixes: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds -o, for names with these suffixes, --plot and --overwrite.

    The command gets what they say as `outputs`. Without suffixes they are .json and .csv.
    """
    known = suffixes or (".json", ".csv")
    path = click.Path(path_type=Path)
    options = add_options(
        click.option("-o", "--output", type=path, help=f"Write the result here: {_join(known)}."),
        click.option("--plot", type=path, help="Draw it here: .png, .svg or .pdf (pip install 'quests_md[plot]')."),
        click.option("--overwrite", is_flag=True, help="Replace files that exist."),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*, output: Path | None, plot: Path | None, overwrite: bool, **values: Any) -> Any:
            return command(outputs=Outputs(output, plot, overwrite, known), **values)

        return options(run)

    return decorate


def _join(suffixes: Sequence[str]) -> str:
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"


def check_outputs(
    output: Path | None, plot: Path | None, overwrite: bool, suffixes: Sequence[str] = (".json", ".csv")
) -> None:
    """Raise before anything is computed if its result could not be written.

    Raises
    ------
    OutputError
        A file exists, or its name ends in no known format.
    MissingExtraError
        A picture is asked for, and matplotlib is not installed.
    """
    for path, known in ((output, suffixes), (plot, _PICTURES)):
        if path is None:
            continue
        if path.suffix not in known:
            raise OutputError(f"{path}: the name must end with {' or '.join(known)}")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: choose another name, or give --overwrite")
    if plot is not None:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("--plot needs matplotlib: pip install 'quests_md[plot]'") from error


def write_result(path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a result: the whole into a .json, or its table `rows` into a .csv. Numbers keep all digits.

    In JSON a value that is not finite is null: the format has no other.
    """
    if path.suffix == ".json":
        text = json.dumps(to_plain(result), indent=2, allow_nan=False) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    write_atomically(path, lambda file: file.write(text.encode()))


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's name."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=150))


# -- tables and facts --------------------------------------------------------------------------------------------------


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an aligned table without lines: numbers, to six digits, on the right and texts on the left.

    The table is as wide as it must be, on a terminal too: programs read it.
    """
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    columns = []
    for name in rows[0]:
        cells = [_format_cell(row[name]) for row in rows]
        is_number = name != "id" and all(map(_is_number, cells))  # an id begins its line: scripts look for it there
        grid.add_column(justify="right" if is_number else "left", no_wrap=True)
        columns.append(Text("\n".join([name, *cells])))
    grid.add_row(*columns)  # a cell for each column: with a row for each row rich takes twice as long
    console = Console(file=io.StringIO(), width=_WIDEST, color_system=None)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    # Names come from files: a line break would break the table, and control characters may steer a terminal.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _is_number(cell: str) -> bool:
    """Return whether a cell holds a number, or stands for a missing one."""
    try:
        float(cell or "nan")
    except ValueError:
        return cell == "-"
    return True


def format_facts(facts: Mapping[str, object]) -> str:
    """Return a line for each fact, with its name before it. All verbs align them alike."""
    return "\n".join(f"  {name:<18} {value}" for name, value in facts.items())


def to_plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
