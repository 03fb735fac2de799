"""What the page of a run says of the bias that pushed its atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..recording.reader import Rows
from ._drawings import NARROW, WIDE, draw_line, make_svg, pick_largest, shade_events, thin_line
from ._page import Drawing, Section
from ._pictures import BLUE, ORANGE
from ._timeline import has_times

__all__ = ["has_bias", "show_bias"]

_TEXT = (
    "A bias pushed atoms towards environments with a larger dH. A biased run is no equilibrium: take nothing from it "
    "but candidates."
)


def has_bias(rows: Rows) -> bool:
    """Return whether a bias was asked for in any evaluation of a run."""
    return bool(np.isfinite(rows["bias_energy"]).any())


def show_bias(run: Mapping[str, Any], rows: Rows, events: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section of the bias: its energy and its largest force along the run, and what was asked for."""
    told = np.isfinite(rows["bias_energy"])
    forces, tau = rows["bias_force"][told], rows["bias_tau"][told]
    off = float((forces == 0.0).mean())
    facts = [
        ("settings", ", ".join(f"{name} = {value}" for name, value in (run.get("bias") or {}).items())),
        ("largest force", f"{np.max(forces):.3g} eV/Å"),
        ("energy", f"{np.min(rows['bias_energy'][told]):.4g} to {np.max(rows['bias_energy'][told]):.4g} eV"),
        ("τ at the end", f"{tau[-1]:.4g} eV per nat"),
        ("pushed nothing in", f"{off:.1%} of the evaluated frames"),
    ]
    return Section("The bias", text=[_TEXT], drawings=[_draw(rows, events)], facts=facts)


def _draw(rows: Rows, events: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw the energy and the largest force of the bias along a run."""
    timed = has_times(rows)
    panels = [("energy (eV)", -rows["bias_energy"], -1.0, BLUE), ("force (eV/Å)", rows["bias_force"], 1.0, ORANGE)]

    def draw(all_axes: Any) -> None:
        for axes, (label, values, sign, colour) in zip(all_axes, panels, strict=True):
            x, y = thin_line(rows, values, timed)
            draw_line(axes, x, sign * y, color=colour)
            shade_events(axes, events, timed)
            axes.set_ylabel(label)
        all_axes[1].set_ylim(bottom=0.0)
        all_axes[1].set_xlabel("time (ps)" if timed else "step")

    every = pick_largest(rows["bias_force"])[1]
    caption = "The energy of the bias, and its largest force on an atom." + (" Shaded: events." if events else "")
    if every > 1:
        caption += f" Of every {every} evaluations in a row, the lowest energy and the largest force are drawn."
    how: dict[str, Any] = {"sharex": True, "nrows": 2}
    wide = make_svg(draw, WIDE, "bias-wide", **how)
    return Drawing(wide, caption, make_svg(draw, NARROW, "bias-narrow", **how))
