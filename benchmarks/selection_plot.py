"""The picture of docs: coverage of what a melting run kept, beside other choices of as many frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#999999"


def draw(results: dict[str, list[dict[str, Any]]], choices: Sequence[str], path: Path) -> None:
    """Draw a point per seed and a line at the mean, for every choice and material."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        for place, choice in enumerate(choices):
            colour = _BLUE if choice == "kept" else _ORANGE if choice == "farthest point" else _GREY
            values = [100 * row["values"][choice] for row in rows]
            axes.plot(values, [place] * len(values), "o", color=colour, ms=6, mec="white", mew=0.6, alpha=0.8)
            mean = sum(values) / len(values)
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, lw=2.2)
        kept, flagged = (sum(row[key] for row in rows) / len(rows) for key in ("kept", "flagged"))
        axes.set_title(f"{name}: {kept:.0f} of {flagged:.0f} flagged frames", fontsize=10)
        axes.set_yticks(range(len(choices)), choices if axes.get_subplotspec().is_first_col() else [])
        axes.invert_yaxis()
        axes.set_xlabel("environments covered (%)")
        axes.grid(True, axis="x", color="#e4e4e4", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
