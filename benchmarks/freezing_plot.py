"""The picture of `freezing`: the largest nucleus against time, by dH and by adaptive common-neighbour analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .structure import TYPES

__all__ = ["draw"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
_BLUE, _ORANGE, _GREY, _SKY, _RED = "#0072B2", "#E69F00", "#999999", "#56B4E9", "#D55E00"


def draw(runs: list[Any], variants: dict[str, Any], path: Path) -> None:
    """Draw the largest nucleus of every run, and dH of the atoms of each structure; of the first two variants."""
    from matplotlib.figure import Figure

    shown = dict(list(variants.items())[:2])
    figure = Figure(figsize=(9.2, 5.8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    above, below = upper.subplots(1, len(runs), sharey=True, squeeze=False)[0], lower.subplots(1, len(shown))
    for k, axes in enumerate(above):
        for (name, one), colour in zip(shown.items(), (_SKY, _BLUE), strict=True):
            found = one["results"][k]["by dH"]
            axes.plot(found.times, found.largest, color=colour, lw=1.3, label=name)
            other = one["results"][k]["by a-CNA"]
        axes.plot(other.times, other.largest, color=_ORANGE, lw=1.3, label="a-CNA: fcc, hcp, bcc")
        axes.set_yscale("log")
        axes.set(title=f"seed {runs[k].seed}", xlabel="time (ps)")
        axes.set_ylim(1, None)
    above[0].set_ylabel("atoms of the largest nucleus")
    above[-1].legend(frameon=False, fontsize=8, loc="lower right")
    for axes, (name, one) in zip(below, shown.items(), strict=True):
        dH = np.concatenate([r["dH"].ravel() for r in one["results"]])
        types = np.concatenate([r["cna"].ravel() for r in one["results"]])
        edges = np.linspace(*np.quantile(dH, (0.0005, 0.99)), 80)
        for number, colour in enumerate((_GREY, _BLUE, _RED, _ORANGE)):
            values, style = dH[types == number], {"histtype": "step", "lw": 1.3, "density": True}
            axes.hist(values, edges, color=colour, label=TYPES[number], **style)
        axes.axvline(one["threshold"], color="black", lw=0.9, ls="--")
        axes.set(xlabel=f"{name} (nats)", yticks=[])
    below[0].set_ylabel("atoms of each type")
    below[-1].legend(frameon=False, fontsize=8, title="type by a-CNA", title_fontsize=8)
    for axes in (*above, *below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
