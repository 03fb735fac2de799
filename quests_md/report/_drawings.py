"""The pictures of a page, as SVG in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..index import Calibration
from ..recording.reader import Rows
from ._page import Drawing
from ._pictures import BLUE, GREY, ORANGE, RED
from ._timeline import has_times, list_thresholds, plot_run

__all__ = [
    "LEGEND_ABOVE", "NARROW", "SMALL", "WIDE", "Marks", "draw_histogram", "draw_line", "draw_maxima", "draw_survival",
    "draw_timeline", "find_alarm_thresholds", "make_svg", "pick_largest", "shade_events", "thin_line",
]  # fmt: skip

Marks = Sequence[tuple[str, float]]  # the name of a threshold, and its dH in nats

_POINTS = 600  # rows of a run that are drawn
_BINS = 60
WIDE, NARROW, SMALL = (10.4, 3.7), (4.2, 3.2), (4.2, 3.1)  # inches
_SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "quests_md", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.7, "figure.facecolor": "none",
    "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
# Above the axes: nothing is drawn there.
LEGEND_ABOVE: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "frameon": False, "fontsize": 8.5, "borderaxespad": 0.2,
    "columnspacing": 1.2, "handlelength": 1.4,
}  # fmt: skip

# -- a run against time ------------------------------------------------------------------------------------------------


def draw_timeline(run: dict[str, Any], rows: Rows, events: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw dH against time, with the events shaded."""
    few, every = _thin(rows)
    timed = has_times(rows)

    def draw(axes: Any) -> None:
        plot_run(axes, run, few, timed)
        axes.set_xlabel("time (ps)" if timed else "step")
        shade_events(axes, events, timed)
        _compress_high_values(axes, [value for _, _, value in list_thresholds(run)], few["max"])
        axes.legend(**LEGEND_ABOVE, ncols=4 if axes.figure.get_figwidth() > 6.0 else 2)

    caption = "dH of every evaluated frame: its maximum, its 99 % quantile and its median"
    caption += ". Shaded: events." if events else "."
    if every > 1:
        caption += f" Of every {every} evaluations in a row, the one with the largest dH is drawn."
    return Drawing(make_svg(draw, WIDE, "wide"), caption, make_svg(draw, NARROW, "narrow"))


def shade_events(axes: Any, events: Sequence[Mapping[str, Any]], timed: bool) -> None:
    """Shade the events of a run in a drawing against time or, if not `timed`, against steps."""
    for event in events[:200]:
        ends = [event.get(key) for key in (("start_time", "end_time") if timed else ("start", "end"))]
        if all(isinstance(end, (int, float)) for end in ends):
            axes.axvspan(*ends, color=ORANGE, alpha=0.10, lw=0, zorder=0)


def _thin(rows: Rows) -> tuple[Rows, int]:
    """Return few enough rows to draw, the worst one of each stretch, and the length of a stretch."""
    kept, every = pick_largest(rows["max"])
    return rows[kept], every


def pick_largest(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """Return the places of few enough values to draw, the largest one of each stretch, and the length of a stretch."""
    n = len(values)
    every = -(-n // _POINTS)
    if every <= 1:
        return np.arange(n), 1
    sizes = np.where(np.isfinite(values), values, -np.inf)
    return np.array([first + int(np.argmax(sizes[first : first + every])) for first in range(0, n, every)]), every


def thin_line(rows: Rows, values: NDArray[np.float64], timed: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return times (or steps) and the largest value of each stretch, with a gap before each new run."""
    kept = pick_largest(values)[0]
    few = rows[kept]
    cuts = np.flatnonzero(np.diff(few["run"])) + 1
    x, y = few["time" if timed else "step"].astype(np.float64), np.asarray(values[kept], np.float64)
    x, y = np.insert(x, cuts, np.nan), np.insert(y, cuts, np.nan)
    return x, np.where(np.isfinite(y), y, np.nan)


def draw_line(axes: Any, x: NDArray[np.float64], y: NDArray[np.float64], **style: Any) -> None:
    """Draw a line, and a dot for each point that has no neighbour to draw a line to."""
    axes.plot(x, y, lw=1.1, **style)
    gaps = np.r_[True, np.isnan(y), True]
    alone = ~np.isnan(y) & gaps[:-2] & gaps[2:]
    axes.plot(x[alone], y[alone], "o", ms=3.0, color=style["color"])


def _compress_high_values(axes: Any, thresholds: Sequence[float], values: NDArray[np.float64]) -> None:
    """Make the axis logarithmic above the thresholds, if a few large values would press all others flat."""
    finite = np.abs(values[np.isfinite(values)])
    if not len(finite):
        return
    usual = max([10.0, float(np.quantile(finite, 0.75)), *map(abs, thresholds)])
    if finite.max() > 10.0 * usual:
        axes.set_yscale("symlog", linthresh=usual, linscale=2.0)


# -- distributions of dH -----------------------------------------------------------------------------------------------


def draw_histogram(
    sets: Mapping[str, NDArray[np.float64]], label: str, caption: str, marks: Marks = (), name: str = "histogram"
) -> Drawing:
    """Draw histograms of one or more sets of values in one picture, each as shares of its set."""
    finite = {key: values[np.isfinite(values)] for key, values in sets.items()}
    low, high = _range(np.concatenate([*finite.values(), [value for _, value in marks]]))
    edges = np.linspace(low, high, min(_BINS, 10 + int(np.sqrt(max(map(len, finite.values()))))) + 1)

    def draw(axes: Any) -> None:
        for (key, values), colour in zip(finite.items(), (BLUE, ORANGE, GREY), strict=False):
            if len(values):
                # Values beyond the last edge count in the last bin, so that the shares of every set add up to one.
                weights = np.full(len(values), 1.0 / len(sets[key]))
                inside = np.clip(values, low, high)
                axes.hist(inside, edges, weights=weights, color=colour, alpha=0.30, histtype="stepfilled")
                axes.hist(inside, edges, weights=weights, color=colour, histtype="step", lw=1.3, label=key)
        _mark(axes, marks)
        for text, value in marks:
            axes.text(value, 1.0, f" {text}", transform=axes.get_xaxis_transform(), rotation=90, va="top", ha="right",
                      fontsize=8.5, parse_math=False, in_layout=False)  # fmt: skip
        axes.set_xlabel(label)
        axes.set_ylabel("share")
        axes.set_xlim(low, high)
        if len(finite) > 1:
            axes.legend(**LEGEND_ABOVE)

    return Drawing(make_svg(draw, SMALL, name), caption)


def draw_maxima(
    frames: tuple[str, NDArray[np.float64]], n_atoms: float, calibration: Calibration, marks: Marks
) -> Drawing:
    """Draw the largest dH of frames of `n_atoms` atoms, beside the left-out dH of the reference's own frames.

    `frames` holds two things: the name of the frames, and the largest dH of each.
    """
    name, maxima = frames
    sets = {name: maxima, "left-out frames of the reference": calibration.maxima.max(axis=1)}
    caption = (
        f"Largest dH of each of the {name} ({n_atoms:.0f} atoms), and of each of the reference's own frames "
        f"({np.median(calibration.sizes.sum(axis=1)):.0f} atoms) against the index without their group. It grows with "
        "the number of atoms."
    )
    return draw_histogram(sets, "largest dH of a frame (nats)", caption, marks, "maxima")


def draw_survival(dH: NDArray[np.float64], expected: Sequence[tuple[float, float]], marks: Marks) -> Drawing:
    """Draw the share of frames above every dH, beside the share that the calibration expects of covered frames.

    Parameters
    ----------
    dH
        Largest dH of every frame, in nats.
    expected
        Pairs of a false-alarm rate and its threshold (nats), for frames of as many atoms.
    marks
        The thresholds of the run.
    """
    ordered = np.sort(dH[np.isfinite(dH)])
    above = 1.0 - np.arange(len(ordered)) / len(ordered)
    pick = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _POINTS)).astype(int))
    rates, thresholds = zip(*expected, strict=True)

    def draw(axes: Any) -> None:
        axes.step(ordered[pick], above[pick], color=BLUE, lw=1.4, where="pre", label="this run")
        axes.plot(thresholds, rates, "o-", color=RED, ms=4, lw=1.0, label="expected if covered")
        _mark(axes, marks)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.set_ylim(0.5 * min(above[-1], *rates), 1.4)
        axes.set_xlim(*_range(np.concatenate([ordered, thresholds, [value for _, value in marks]])))
        axes.set_xlabel("t (nats)")
        axes.set_ylabel("share of frames with dH above t")
        axes.legend(**LEGEND_ABOVE)

    caption = (
        "The share of frames whose largest dH is above t, and the false-alarm rate that the calibration gives for a "
        "covered frame of as many atoms. Where the run lies far above it, it has left what the reference covers."
    )
    return Drawing(make_svg(draw, SMALL, "survival"), caption)


def find_alarm_thresholds(
    calibration: Calibration, rates: Sequence[float], counts: Mapping[str, int]
) -> list[tuple[float, float]]:
    """Return pairs of a false-alarm rate and its threshold (nats) for frames of `counts` atoms of each element.

    The list ends before the first rate that the calibration cannot resolve. It is empty if no atoms are known.
    """
    found: list[tuple[float, float]] = []
    for rate in rates if any(n > 0 for n in counts.values()) else ():
        try:
            found.append((rate, max(calibration.false_alarm(rate, counts).values())))
        except CalibrationError:
            break
    return found


def _mark(axes: Any, marks: Marks) -> None:
    for text, value in marks:
        axes.axvline(value, color="black", lw=0.9, ls="-" if "halt" in text else "--")


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the limits of the axis of a distribution. Far outliers lie beyond them."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    far = float(np.quantile(values, 0.99))
    middle = float(np.quantile(values, 0.5))
    high = min(high, far + 2.0 * (far - middle)) if far > middle else high
    pad = 0.03 * (high - low) or 0.5
    return low - pad, high + pad


# -- SVG ---------------------------------------------------------------------------------------------------------------


def make_svg(draw: Callable[[Any], None], size: tuple[float, float], name: str, **panels: Any) -> str:
    """Return a drawing as SVG for a page: `name` makes its ids unique, and black becomes the colour of the text.

    `draw` is given the axes, or several of them as `panels` says: keywords of ``Figure.subplots``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(**panels))
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", text)
    return text.replace("#000000", "currentColor")
