"""What the page of a run says of the force errors that are to be expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..index import ADDED, LocalBound
from ..recording.reader import Rows
from ._drawings import LEGEND_ABOVE, NARROW, WIDE, draw_line, make_svg, pick_largest, shade_events, thin_line
from ._page import Card, Drawing, Quantity, Section
from ._pictures import BLUE, GREY, RED
from ._timeline import has_times

__all__ = [
    "EXPECTED",
    "NO_GUARANTEE",
    "describe_bound",
    "describe_errors",
    "has_errors",
    "make_error_cards",
    "show_run_errors",
]

NO_GUARANTEE = (
    "This is no guarantee. Under shift, where the reference has nothing like an environment, expected errors and "
    "bounds are too small, and nothing in them says so."
)
EXPECTED = Quantity(
    "expected error",
    "eV/Å",
    0.001,
    "Largest expected errors",
    ("Grey atoms are outside, or not watched: no error can be expected of them.",),
    digits=2,
)
_FAR = 12.0  # if the largest is so many times the median, the axis is logarithmic


def has_errors(rows: Rows) -> bool:
    """Return whether the evaluations of a run tell expected force errors, or that all atoms are outside."""
    return bool(np.isfinite(rows["expected_error"]).any() or (rows["n_outside"] > 0).any())


def _compute_outside(rows: Rows) -> NDArray[np.float64]:
    """Return the share of the watched atoms that is outside, in percent; nan for rows that tell no force errors."""
    told = (np.isfinite(rows["expected_error"]) | (rows["n_outside"] > 0)) & (rows["n"] > 0)
    return np.where(told, 100.0 * rows["n_outside"] / np.maximum(rows["n"], 1), np.nan)


def make_error_cards(rows: Rows) -> list[Card]:
    """Return the largest expected error of a run, and its largest share of atoms outside."""
    cards, errors, outside = [], rows["expected_error"], _compute_outside(rows)
    if np.isfinite(errors).any():
        at = int(np.argmax(np.where(np.isfinite(errors), errors, -np.inf)))
        cards.append(
            Card("Largest expected error", f"{errors[at]:.4g}", "eV/Å", f"of a force, at step {rows['step'][at]}")
        )
    if np.isfinite(outside).any():
        at = int(np.nanargmax(outside))
        where = f"at most, at step {rows['step'][at]}: no force error can be expected" if outside[at] else "at any step"
        cards.append(Card("Atoms outside", f"{outside[at]:.3g}", "%", where))
    return cards


def show_run_errors(rows: Rows, events: Sequence[Mapping[str, Any]], bound: LocalBound | None) -> Section:
    """Return the section of the force errors of a run. `bound` is the calibration of its index, if it is there."""
    text = [
        "The expected error of an atom's force is made of the potential's own errors on the references near it: half "
        "of the errors are below it. Outside are atoms about which the calibration says nothing: they have none.",
        NO_GUARANTEE,
    ]
    if (rows["values"] == "flagged").any():
        text.append("Values of this run are flagged: errors of atoms whose dH is not exact are estimates.")
    facts = [] if bound is None else describe_bound(bound)
    return Section("Expected force errors", text=text, drawings=[_draw_errors(rows, events)], facts=facts)


def describe_bound(bound: LocalBound) -> list[tuple[str, str]]:
    """Return facts about a calibration of local residuals."""
    where = "left out of the reference" if bound.errors == "left out" else "held out of the reference"
    found = f"{bound.covered:.1%} ({bound.low:.1%} to {bound.high:.1%})"
    facts = [
        ("potential", bound.potential or "not named"),
        ("calibrated with", f"{bound.environments:,} environments of {bound.structures:,} structures, {where}"),
        ("bound at", f"{bound.coverage:.0%}; it covered {found} of structures that it was not fitted to"),
    ]
    if bound.frames is not None:
        low, high = (ratio / bound.frames.median for ratio in (bound.frames.low, bound.frames.high))
        facts.append(("RMSE of a structure", f"nine of ten had {low:.2g} to {high:.2g} times the expected one"))
    facts.append(("expected at least", f"{min(f.median for f in bound.elements.values()) * ADDED:.2g} eV/Å"))
    return [*facts, *([("warning", bound.warning)] if bound.warning else [])]


def describe_errors(atoms: Any, worst: int) -> list[tuple[str, str]]:
    """Return facts about the force errors of a saved frame: the bound of an atom, and how many atoms are outside."""
    facts, bounds = [], atoms.arrays.get("force_error")
    if bounds is not None and bounds.ndim == 1 and bounds.dtype.kind in "fiu":
        facts.append(("bound", f"{bounds[worst]:.5g} eV/Å"))
        facts.append(("atoms outside", f"{int(np.isposinf(bounds).sum())}"))
    return facts if atoms.info.get("values", "exact") == "exact" else [*facts, ("values", "partly estimates")]


def _draw_errors(rows: Rows, events: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw the largest expected error and the RMSE along a run and, if there are any, the share of atoms outside."""
    timed, outside = has_times(rows), _compute_outside(rows)
    errors = {"largest of an atom": (rows["expected_error"], BLUE), "RMSE of the frame": (rows["force_rmse"], GREY)}
    errors = {name: one for name, one in errors.items() if np.isfinite(one[0]).any()}
    shares = {"outside": (outside, RED)} if np.nanmax(outside) > 0.0 or not errors else {}
    panels = [one for one in (errors, shares) if one]

    def draw(all_axes: Any) -> None:
        for axes, series in zip(all_axes[:, 0], panels, strict=True):
            for name, (values, colour) in series.items():
                draw_line(axes, *thin_line(rows, values, timed), color=colour, label=name)
            shade_events(axes, events, timed)
            if series is shares:
                axes.set_ylabel("outside (%)")
                axes.set_ylim(0.0, max(1.0, 1.05 * np.nanmax(outside)))
            else:
                axes.set_ylabel("force error (eV/Å)")
                _scale_errors(axes, [values for values, _ in errors.values()])
                axes.legend(**LEGEND_ABOVE, ncols=2)
        axes.set_xlabel("time (ps)" if timed else "step")

    every = pick_largest(outside)[1]
    caption = _write_caption(list(errors), bool(shares), bool(events), every)
    how: dict[str, Any] = {"squeeze": False, "sharex": True, "nrows": len(panels)}
    how |= {"height_ratios": (2, 1)} if len(panels) > 1 else {}
    taller = 0.9 if len(panels) > 1 else 0.0
    wide, narrow = ((width, height + taller) for width, height in (WIDE, NARROW))
    svg = make_svg(draw, wide, "errors-wide", **how)
    return Drawing(svg, caption, make_svg(draw, narrow, "errors-narrow", **how))


def _write_caption(errors: Sequence[str], has_shares: bool, has_events: bool, every: int) -> str:
    words = []
    if errors:
        words.append(f"Expected force errors of every evaluated frame: {' and '.join(errors)}.")
        if not has_shares:
            words.append("No atom was outside.")
        elif len(errors) > 1:
            words.append("A frame with an atom outside has no RMSE.")
    if has_shares:
        words.append("The share of watched atoms outside, of which no error can be expected.")
    if not errors:
        words.append("No watched atom was ever inside, so there is no expected error to draw.")
    words += ["Shaded: events."] if has_events else []
    words += [f"Of every {every} evaluations in a row, the largest of each is drawn."] if every > 1 else []
    return " ".join(words)


def _scale_errors(axes: Any, drawn: Sequence[NDArray[np.float64]]) -> None:
    """Begin the axis at 0; or make it logarithmic, if a few large values would press all others flat."""
    known = np.concatenate(drawn)
    known = known[np.isfinite(known) & (known > 0.0)]
    if len(known) and known.max() > _FAR * np.median(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    else:
        # matplotlib's own limit would leave half a dot above the axis, if there is one evaluation.
        axes.set_ylim(0.0, 1.08 * known.max() if len(known) else 1.0)
