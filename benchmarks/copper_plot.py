"""The picture of `copper`: entropies of descriptors against that of thermodynamics, and what is off the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
_COLOURS = ("#56B4E9", "#0072B2", "#E69F00")
_GREY = "#666666"


def draw(results: Sequence[Any], path: Path) -> None:
    """Draw a column for every bandwidth: entropies above, what is off the lines below."""
    from matplotlib.figure import Figure

    bandwidths = sorted({found.bandwidth for found in results})
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(bandwidths), sharex=True, sharey="row", height_ratios=(2, 1), squeeze=False)
    for h, above, below in zip(bandwidths, *grid, strict=True):
        here = [found for found in results if found.bandwidth == h]
        _draw(above, below, [found for found in here if found.size])
        (normal,) = (found.total for found in here if not found.size)
        above.plot(normal.reference, normal.entropy, color=_GREY, lw=1, ls=":", label="n → ∞, if normal")
        above.set_title(f"h = {h:.3f} 1/Å", fontsize=10)
        above.set_ylim(0, 15.5)
        above.legend(frameon=False, fontsize=8, loc="upper left")
        below.set_xlabel("S − S(300 K), ∫ C$_p$/T dT (k$_B$ per atom)")
    grid[0, 0].set_ylabel("H of the descriptors (nats)")
    grid[1, 0].set_ylabel("off the line (nats)")
    figure.savefig(path, dpi=160)


def _draw(above: Any, below: Any, results: Sequence[Any]) -> None:
    for found, colour in zip(results, _COLOURS, strict=False):
        line = found.total
        label = f"n = {found.size}: slope {line.slope:.2f}, r = {line.correlation:.4f}"
        above.errorbar(line.reference, line.entropy, found.error, fmt="o", color=colour, ms=4, lw=1, label=label)
        above.plot(line.reference, line.intercept + line.slope * line.reference, color=colour, lw=1)
        above.axhline(found.ceiling, color=colour, lw=0.8, ls="--")
        above.annotate(
            f"ln {found.size}", (0.0, found.ceiling), xycoords=("axes fraction", "data"), xytext=(3, 2),
            textcoords="offset points", color=colour, fontsize=8,
        )  # fmt: skip
        below.plot(line.reference, line.residual, "o-", color=colour, ms=3.5, lw=1)
    below.axhline(0, color="black", lw=0.8)
    for axes in (above, below):
        axes.grid(True, color="#e4e4e4", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
