"""The picture of docs: what a decision costs against the number of references, beside ``quests``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

__all__ = ["draw"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
_BLUE, _SKY, _ORANGE, _GREY = "#0072B2", "#56B4E9", "#E69F00", "#666666"
_APART = 0.075  # of the height of the axes: least distance between two names of lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the numbers that `decision` measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    n = [row["references"] for row in result["sums"]]
    lines = [
        ("quests, exact dH", [row["best"] for row in result["sums"]], _GREY, "s"),
        ("quests_md, exact dH", [row["double"] for row in result["sums"]], _BLUE, "o"),
        ("decision, 1500 K", [_slower(result["decisions"], 1500, size) for size in n], _ORANGE, "^"),
        ("decision, 300 K", [_slower(result["decisions"], 300, size) for size in n], _SKY, "v"),
    ]
    for _, values, colour, marker in lines:
        axes.plot(n, values, marker=marker, color=colour, lw=1.6, ms=6.5, mec="white", mew=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(n) / 1.4, max(n) * 1.4)
    axes.set_ylim(*_decades([value for _, values, _, _ in lines for value in values]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _name(axes, lines)
    axes.set_xlabel("references in the index")
    axes.set_ylabel("µs per atom and step, one thread")
    axes.grid(True, which="major", color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def _name(axes: Any, lines: list[Any]) -> None:
    """Write the name of every line at its right end, and none over another."""
    low, high = (math.log10(y) for y in axes.get_ylim())
    below = -math.inf
    for name, values, colour, _ in sorted(lines, key=lambda line: line[1][-1]):
        height = max((math.log10(values[-1]) - low) / (high - low), below + _APART)
        below = height
        axes.text(1.015, height, name, transform=axes.transAxes, color=colour, fontsize=10, va="center")


def _decades(values: list[float]) -> tuple[float, float]:
    """Return powers of ten around the values."""
    return 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))


def _slower(rows: list[dict[str, Any]], temperature: int, references: int) -> float:
    """Return the cost of later frames at the slower threshold."""
    return max(r["steady"] for r in rows if r["temperature"] == temperature and r["references"] == references)
