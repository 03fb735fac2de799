"""What a learning loop has come to, generation by generation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ._figure import BLUE, GREY, ORANGE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["generations"]

_NUMBERS = ("generation", "labels", "force_rmse", "covered_share", "first_halt_ps", "shortest_ps")


def generations(folder: str | Path) -> Figure:
    """Draw what a loop has come to against the generation.

    Four panels: the share of environments that are covered in the exploration where fewest are, the force error on the
    held-out frames, the number of labels, and the time before the first halt of any exploration.

    Parameters
    ----------
    folder
        The output folder of the loop.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    InputError
        The folder holds no loop, or one without a finished generation.
    MissingExtraError
        matplotlib is not installed.
    """
    table, stop = _read(Path(folder))
    figure = new_figure(5.0)
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(2, 2, sharex=True)
    (covered, wrong), (labels, halt) = axes
    number = table["generation"]
    covered.plot(number, table["covered_share"], "o-", color=BLUE, ms=4)
    _limit(covered, stop["covered"], "must be covered", below=True)
    covered.set_ylabel("least covered share")
    wrong.plot(number, table["force_rmse"], "o-", color=RED, ms=4)
    _limit(wrong, stop["force_error"], "limit")
    wrong.set_ylabel("held-out force error (eV/Å)")
    wrong.set_ylim(0, None)
    labels.bar(number, table["labels"], color=ORANGE, width=0.6)
    labels.set_ylabel("labels")
    labels.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _draw_halts(halt, table)
    for below in (labels, halt):
        below.set_xlabel("generation")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _limit(axes: Any, value: float, text: str, below: bool = False) -> None:
    # The text is on the left, where a loop is far from its limits.
    axes.axhline(value, color="black", lw=0.9, ls="--")
    axes.annotate(
        text, (0.0, value), xycoords=("axes fraction", "data"), xytext=(3, -2 if below else 2),
        textcoords="offset points", fontsize=8, ha="left", va="top" if below else "bottom",
    )  # fmt: skip


def _draw_halts(axes: Any, table: dict[str, NDArray[np.float64]]) -> None:
    """Draw the time before the first halt; where there was none, the time that all explorations ran at least."""
    number, first = table["generation"], table["first_halt_ps"]
    none = np.isnan(first)
    if not none.all():
        axes.plot(number[~none], first[~none], "o", color=BLUE, ms=5, label="first halt")
    if none.any():
        shortest = table["shortest_ps"][none]
        axes.plot(number[none], shortest, "^", color=BLUE, mfc="white", ms=6, label="no halt until here")
    axes.plot(number, np.where(none, table["shortest_ps"], first), color=GREY, lw=0.9, zorder=0)
    axes.set_ylabel("MD before the first halt (ps)")
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=8)


def _read(folder: Path) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    try:
        with open(folder / "learning.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        stop = json.loads((folder / "learning.json").read_text())["stop"]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file: {folder} holds no loop with a finished generation") from None
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder}/learning.json is not as a loop wrote it: {error!r}") from error
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in _NUMBERS}, stop
