"""The picture of `errors`: how well each measure tells the worst force errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
_SERIES = {
    "wheel": ("SNAP of the wheel, test set", "#0072B2", "o"),
    "refitted": ("refitted, test set", "#E69F00", "s"),
    "folds": ("refitted, five folds", "#009E73", "D"),
}


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw AUROC and Spearman with their intervals, for every measure and element."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    grid = figure.subplots(len(results), 2, sharex="col", sharey=True, squeeze=False)
    for row, (element, tables) in zip(grid, results.items(), strict=True):
        names = list(tables["wheel"])
        for axes, key, chance in zip(row, ("auroc", "spearman"), (0.5, 0.0), strict=True):
            for shift, (series, (label, colour, marker)) in enumerate(_SERIES.items()):
                values = [tables[series][name][key] for name in names]
                places = [place + 0.22 * (shift - 1) for place in range(len(names))]
                reach = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
                axes.errorbar(
                    [v for v, _, _ in values],
                    places,
                    xerr=reach,
                    fmt=marker,
                    color=colour,
                    ms=4.5,
                    lw=1.3,
                    label=label,
                )
            axes.axvline(chance, color="#666666", lw=0.8, ls=":")
            axes.set_yticks(range(len(names)), names)
            axes.grid(True, axis="x", color="#e4e4e4", lw=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_title(element, fontsize=10, loc="left")
    grid[0][0].invert_yaxis()
    grid[-1][0].set_xlabel("AUROC of the worst tenth of force errors")
    grid[-1][1].set_xlabel("Spearman with the force error")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
