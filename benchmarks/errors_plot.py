"""The pictures of `errors`: how well each measure tells the worst force errors, and where expected errors fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors_shift import DRAWN

__all__ = ["draw"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
_SERIES = {
    "wheel": ("SNAP of the wheel, test set", "#0072B2", "o"),
    "refitted": ("refitted, test set", "#E69F00", "s"),
    "folds": ("refitted, five folds", "#009E73", "D"),
}


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw both pictures; the second one beside the first, with `_shift` in its name."""
    _draw_measures(results, path)
    _draw_shift(results["Si"]["shift"], path.with_stem(f"{path.stem}_shift"))


def _draw_measures(results: dict[str, dict[str, Any]], path: Path) -> None:
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


_REACH = (0.01, 3.0)  # eV/Å
_WRONG, _RIGHT = "#D55E00", "#0072B2"


def _draw_shift(points: dict[str, Any], path: Path) -> None:
    """Draw real against expected errors with the bound: where the data have the kind of structures, and where not."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.3), layout="constrained")
    titles = ("Structures like the data", "Surfaces, none in the data")
    for axes, kind, title in zip(figure.subplots(1, 2, sharey=True), DRAWN, titles, strict=True):
        known = [
            (expected, bound, error)
            for expected, bound, error in zip(*(points[kind][n] for n in ("expected", "bound", "errors")), strict=True)
            if expected is not None
        ]
        expected, bound, error = np.array(known).T
        above = error > bound
        axes.plot(expected[~above], error[~above], ".", ms=4, color=_RIGHT, alpha=0.5, mew=0)
        axes.plot(expected[above], error[above], ".", ms=5, color=_WRONG, alpha=0.8, mew=0, label="above the limit")
        reach = np.array(_REACH)
        slope = float(np.median(bound / expected))
        axes.plot(reach, slope * reach, color="black", lw=1.8, label="usual limit")
        axes.plot(reach, reach, color="#666666", lw=1.2, ls="--", label="as expected")
        axes.set(xscale="log", yscale="log", xlim=_REACH, ylim=_REACH)
        axes.set_aspect("equal")
        axes.set_title(f"{title}:\n{100 * points[kind]['covered']:.0f} % below the limit", fontsize=13)
        axes.set_xlabel("expected error (eV/Å)", fontsize=13)
        axes.tick_params(labelsize=12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("real error (eV/Å)", fontsize=13)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=12)
    figure.savefig(path, dpi=160)
