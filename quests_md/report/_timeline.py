"""Pictures of what happened: dH of a run against time, and the generations of a learning loop."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..recording.reader import DEFAULTS, Rows, Run, read_run
from ._pictures import BLUE, GREY, LEGEND, ORANGE, RED, SKY, hide_box, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["generations", "has_times", "list_thresholds", "plot_run", "timeline"]

# -- a run -------------------------------------------------------------------------------------------------------------


def list_thresholds(run: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return the finite thresholds of a run: "select" or "halt", its label, and its value in nats.

    A threshold that is the same for all elements is listed once.
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


def timeline(
    run: str | Path | Run,
    *,
    temperature: tuple[ArrayLike, ArrayLike] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw dH of a watched run against time: median, 99 % quantile and maximum, thresholds, and saved frames.

    A run without times (a relaxation, a replayed file) is drawn against its steps.

    Parameters
    ----------
    run
        The run, or its output folder.
    temperature
        Times (ps) and temperatures (K), drawn in a panel above.
    marks
        Times (ps) to mark, by the name of what happened then.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    InputError
        The folder holds no run, or the run has no evaluations.
    MissingExtraError
        matplotlib is not installed.
    """
    run = run if isinstance(run, Run) else read_run(run)
    folder = run.folder
    if not (folder / "monitor.csv").exists():
        raise InputError(f"{folder}/monitor.csv: no such file: {folder} holds no run with evaluations")
    if not len(run.rows):
        raise InputError(f"{folder}/monitor.csv: no evaluations in it")
    timed = has_times(run.rows)
    figure = new_figure(5.2 if temperature else 3.8)
    if temperature is None:
        below = figure.subplots()
    else:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.9))
        above.plot(*(np.asarray(values) for values in temperature), color=RED, lw=1)
        above.set_ylabel("temperature (K)")
    plot_run(below, run.about, run.rows, timed)
    if temperature is not None:
        _mark(above, marks or {}, names=True)
    _mark(below, marks or {}, names=temperature is None)
    below.set_xlabel("time (ps)" if timed else "step")
    return figure


def has_times(table: Rows) -> bool:
    """Return whether all rows of a run have a time. If not, the run is drawn against steps."""
    return bool(np.isfinite(table["time"]).all())


def plot_run(axes: Any, run: dict[str, Any], table: Rows, timed: bool) -> None:
    """Draw dH of the rows of a run into axes, against time or against steps."""
    drawn = _with_gaps(table)
    time, worst = drawn["time" if timed else "step"], drawn["max"]
    single = {"marker": "o", "ms": 4} if len(worst) == 1 else {}  # one row makes no line
    axes.plot(time, worst, color=BLUE, lw=1.1, label="maximum", **single)
    axes.fill_between(time, drawn["q50"], drawn["q99"], color=SKY, alpha=0.35, lw=0, label="median to 99 %")
    axes.plot(time, drawn["q50"], color=GREY, lw=1.1, label="median", **single)
    saved = drawn["saved"] == 1
    dots = {"ms": 3.5, "color": ORANGE, "mec": "white", "mew": 0.3, "zorder": 3}
    axes.plot(time[saved], worst[saved], "o", **dots, label="saved frame")
    right = axes.get_yaxis_transform()
    for name, text, value in list_thresholds(run):
        axes.axhline(value, color="black", lw=0.9, ls="--" if name == "select" else "-")
        axes.text(0.008, value, text, transform=right, va="bottom", fontsize=9, parse_math=False, in_layout=False)
    axes.set_ylabel("dH (nats)")
    axes.set_xlim(np.nanmin(time), None)
    axes.legend(**LEGEND, loc="upper left", bbox_to_anchor=(0.06, 0.92))


def _with_gaps(table: Rows) -> dict[str, NDArray[np.float64]]:
    """Return the columns of numbers, with nan in place of inf. A row of nan is put before each new run."""
    cuts = np.flatnonzero(np.diff(table["run"])) + 1
    names = [name for name, default in DEFAULTS.items() if not isinstance(default, str)]
    gapped = {name: np.insert(table[name].astype(np.float64), cuts, np.nan) for name in names}
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in gapped.items()}


def _mark(axes: Any, marks: Mapping[str, float], names: bool) -> None:
    """Draw a line for every mark, and its name above the axes. Names that would overlap stand at different heights."""
    start, end = axes.get_xlim()
    level, before = 0, -np.inf
    for name, when in sorted(marks.items(), key=lambda mark: mark[1]):
        axes.axvline(when, color=GREY, lw=0.9, ls=":")
        level = level + 1 if when - before < 0.2 * (end - start) else 0
        before = when
        if names:
            axes.annotate(
                name, (when, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * level),
                textcoords="offset points", fontsize=9, va="bottom",
                ha="center" if when < start + 0.85 * (end - start) else "right",
            )  # fmt: skip


# -- a learning loop ---------------------------------------------------------------------------------------------------

_NUMBERS = ("generation", "labels", "force_rmse", "covered_share", "first_halt_ps", "shortest_ps")


def generations(folder: str | Path) -> Figure:
    """Draw the results of a learning loop against the generation.

    There are four panels: the smallest share of covered environments in an exploration, the force error on the held-out
    frames, the number of labels, and the time before the first halt of any exploration.

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
        The folder holds no loop, or the loop has no finished generation.
    MissingExtraError
        matplotlib is not installed.
    """
    table, stop = _read_generations(Path(folder))
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
    hide_box(*axes.flat)
    return figure


def _limit(axes: Any, value: float, text: str, below: bool = False) -> None:
    # The text stands on the left: there the loop is still far from its limits.
    axes.axhline(value, color="black", lw=0.9, ls="--")
    axes.annotate(
        text, (0.0, value), xycoords=("axes fraction", "data"), xytext=(3, -2 if below else 2),
        textcoords="offset points", fontsize=8, ha="left", va="top" if below else "bottom",
    )  # fmt: skip


def _draw_halts(axes: Any, table: dict[str, NDArray[np.float64]]) -> None:
    """Draw the time before the first halt. Without a halt, draw the time of the shortest exploration."""
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


def _read_generations(folder: Path) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    try:
        with open(folder / "learning.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        stop = json.loads((folder / "learning.json").read_text())["stop"]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file: {folder} holds no loop with a finished generation") from None
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder}/learning.json is not as a loop wrote it: {error!r}") from error
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in _NUMBERS}, stop
