"""Pictures of what a dataset holds: entropies, learning curves, bandwidths, dH, compression, nuclei."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..compression import Compression
from ..errors import InputError, MissingExtraError
from ..information import BandwidthChoice, Information, LearningCurve, Sampled
from ..nuclei import Nucleation, NucleiSeries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BARS",
    "BLUE",
    "GREY",
    "LEGEND",
    "ORANGE",
    "RED",
    "SKY",
    "compression",
    "entropies",
    "hide_box",
    "histogram",
    "learning_curve",
    "likelihood",
    "new_axes",
    "new_figure",
    "nuclei_picture",
]

# -- what all pictures share -------------------------------------------------------------------------------------------

# The colours of Okabe and Ito: readers with any colour vision can tell them apart.
BLUE, SKY, ORANGE, RED, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#666666"
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}
BARS: dict[str, Any] = {"ms": 4, "lw": 1.2, "capsize": 2}  # of points with error bars


def new_figure(height: float, width: float = 7.2) -> Figure:
    """Return an empty figure of this size in inches. No window shows it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'quests_md[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(height: float) -> tuple[Figure, Any]:
    """Return an empty figure of this height in inches, and its only axes."""
    figure = new_figure(height)
    return figure, figure.subplots()


def hide_box(*panels: Any) -> None:
    """Hide the upper and the right edge of axes."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


_COLOURS = (BLUE, ORANGE, RED, SKY, GREY)


def _spread_bandwidths(axes: Any) -> None:
    """Make the horizontal axis one of bandwidths: logarithmic, with round numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda h, _: f"{h:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bandwidth h (1/Å)")


# -- dH ----------------------------------------------------------------------------------------------------------------

_BINS = 60
_LINEAR = 60.0  # nats; if dH goes beyond, the axis is logarithmic far from 0
_WIDTH = 5.0  # nats; below it, such an axis is nearly linear


def histogram(
    dH: ArrayLike,
    thresholds: Sequence[float] = (),
    *,
    frame_offsets: NDArray[np.int64] | None = None,
    against: str = "",
) -> Figure:
    """Draw the distribution of dH over environments. For two frames or more, draw dH frame by frame, too.

    Parameters
    ----------
    dH
        (n_env,), in nats. Infinite values count in the shares but are not drawn.
    thresholds
        In nats. Each is drawn with the share of environments above it.
    frame_offsets
        (n_frames + 1,) the first environment of every frame. With it, a second panel shows the maximum, the 99 %
        quantile and the median of each frame.
    against
        The name of the reference, for the axis.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    InputError
        There is no finite dH.
    MissingExtraError
        matplotlib is not installed.
    """
    values = np.asarray(dH, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise InputError("there is no dH to draw: no environments, or none with a finite dH")
    by_frame = frame_offsets is not None and len(frame_offsets) > 2
    figure = new_figure(5.4 if by_frame else 3.6)
    above, *below = figure.subplots(2 if by_frame else 1, 1, squeeze=False).ravel().tolist()
    _draw_histogram(above, finite, values, thresholds)
    above.set_xlabel(f"dH against {against} (nats)" if against else "dH (nats)")
    if below:
        assert frame_offsets is not None
        _draw_frames(below[0], values, thresholds, frame_offsets)
    return figure


def _draw_histogram(axes: Any, finite: NDArray[Any], values: NDArray[Any], thresholds: Sequence[float]) -> None:
    ends = np.array([*finite, *thresholds])
    low, high = float(ends.min()), float(ends.max())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    if max(-low, high) > _LINEAR:
        axes.set_xscale("asinh", linear_width=_WIDTH)
        edges = _WIDTH * np.sinh(np.linspace(np.arcsinh(low / _WIDTH), np.arcsinh(high / _WIDTH), _BINS + 1))
        edges[[0, -1]] = low, high
    else:
        edges = np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(finite, edges)
    axes.stairs(100 * counts / len(values), edges, color=BLUE, fill=True, alpha=0.8)
    axes.set_ylabel("environments (%)")
    tall = axes.get_xaxis_transform()
    for height, threshold in zip(itertools.cycle((0.97, 0.86, 0.75, 0.64)), sorted(thresholds), strict=False):
        axes.axvline(threshold, color="black", lw=0.9, ls="--")
        share = 100 * float(np.mean(values > threshold))
        left = threshold > (axes.get_xlim()[0] + 3 * high) / 4
        axes.annotate(
            f"{share:.3g} % above {threshold:g}", (threshold, height), xycoords=tall, xytext=(-4 if left else 4, 0),
            textcoords="offset points", ha="right" if left else "left", va="top", fontsize=9,
        )  # fmt: skip


def _draw_frames(axes: Any, values: NDArray[Any], thresholds: Sequence[float], offsets: NDArray[np.int64]) -> None:
    finite = [values[a:b][np.isfinite(values[a:b])] for a, b in itertools.pairwise(offsets.tolist())]
    number = [f for f, frame in enumerate(finite) if len(frame)]
    quantiles = np.array([np.quantile(finite[f], (0.5, 0.99, 1.0)) for f in number])
    axes.plot(number, quantiles[:, 2], color=BLUE, lw=1.1, label="maximum")
    axes.fill_between(number, quantiles[:, 0], quantiles[:, 1], color=SKY, alpha=0.35, lw=0, label="median to 99 %")
    axes.plot(number, quantiles[:, 0], color=GREY, lw=1.1, label="median")
    for threshold in thresholds:
        axes.axhline(threshold, color="black", lw=0.9, ls="--")
    if np.abs(quantiles).max() > _LINEAR:
        axes.set_yscale("asinh", linear_width=_WIDTH)
    axes.set_xlabel("frame")
    axes.set_ylabel("dH (nats)")
    axes.set_xlim(min(number), max(max(number), min(number) + 1))
    axes.legend(**LEGEND, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)


# -- entropies and bandwidths ------------------------------------------------------------------------------------------


def entropies(results: Mapping[str, Sequence[Information | Sampled]]) -> Figure:
    """Draw entropies against the bandwidth; for a single bandwidth, draw a bar for each dataset or group.

    Each has its diversity and its limit, ln N, beside it. The error bar of samples is their standard deviation.

    Parameters
    ----------
    results
        The results of each dataset or group, by its name: one result for each bandwidth, in ascending order.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    InputError
        There are no results.
    MissingExtraError
        matplotlib is not installed.
    """
    if not results or not all(results.values()):
        raise InputError("there are no entropies to draw")
    if max(map(len, results.values())) > 1:
        figure = new_figure(4.2)
        _draw_against_bandwidth(figure.subplots(), results)
    else:
        figure = new_figure(1.3 + 0.36 * len(results))
        _draw_bars(figure.subplots(), {name: result[0] for name, result in results.items()})
    return figure


def _draw_against_bandwidth(axes: Any, results: Mapping[str, Sequence[Information | Sampled]]) -> None:
    # A colour and a marker for each; the colours change first.
    styles = itertools.cycle([{"color": colour, "marker": marker} for marker in "os^v" for colour in _COLOURS])
    for style, (name, one) in zip(styles, results.items(), strict=False):
        h = [result.bandwidth for result in one]
        entropy, error, diversity, most = _numbers(one)
        axes.errorbar(h, entropy, error if error.any() else None, ms=4, lw=1.3, capsize=2, label=name, **style)
        axes.plot(h, diversity, lw=1.0, ls=":", ms=3.5, mfc="white", color=style["color"], marker=style["marker"])
        edge = axes.get_yaxis_transform()
        axes.plot([1.0, 1.015], [most[0]] * 2, transform=edge, clip_on=False, color=style["color"])  # a tick outside
    axes.plot([], [], "-", color="black", label="entropy H")
    axes.plot([], [], ":", color="black", label="diversity D")
    axes.plot([], [], "_", color="black", label="at the edge: ln N")
    _spread_bandwidths(axes)
    axes.set_ylabel("nats")
    axes.set_ylim(0, None)
    axes.legend(**LEGEND, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)


def _draw_bars(axes: Any, results: Mapping[str, Information | Sampled]) -> None:
    entropy, error, diversity, most = _numbers(results.values())
    place = np.arange(len(results))
    axes.barh(place, most, color=SKY, alpha=0.35, height=0.7, label="ln N: no two alike")
    axes.barh(
        place, entropy, xerr=error if error.any() else None, color=BLUE, height=0.45, label="entropy H",
        error_kw={"capsize": 2, "lw": 1},
    )  # fmt: skip
    axes.plot(diversity, place, "D", color=ORANGE, mec="white", ms=6, ls="none", label="diversity D")
    axes.set_yticks(place, list(results))
    axes.invert_yaxis()
    axes.set_xlabel("nats")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.1)


def _numbers(results: Iterable[Information | Sampled]) -> Iterator[NDArray[np.float64]]:
    """Return the entropies, their standard deviations, the diversities and ln N, each (n,)."""
    rows = [
        (result.mean, np.nan_to_num(result.std), result.mean_diversity, math.log(result.size))
        if isinstance(result, Sampled)
        else (result.entropy, 0.0, result.diversity, math.log(result.n_env))
        for result in results
    ]
    return map(np.array, zip(*rows, strict=True))


def learning_curve(curve: LearningCurve) -> Figure:
    """Draw the entropy of samples against their size: each run, mean and standard deviation, and ln n.

    Where the curve is flat, more data of the same kind add nothing. Where it follows ln n, every environment is new.

    Parameters
    ----------
    curve
        The result of `quests_md.information.learning_curve`.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure, axes = new_axes(4.0)
    for sample in curve.samples:
        axes.plot([sample.size] * len(sample.entropies), sample.entropies, ".", color=ORANGE, ms=5, zorder=3)
    sizes, spread = curve.sizes, np.nan_to_num(curve.std)
    axes.errorbar(sizes, curve.mean, spread, color=BLUE, marker="o", **BARS, label="entropy H")
    all_sizes = np.linspace(sizes.min(), sizes.max(), 200)
    axes.plot(all_sizes, np.log(all_sizes), color=GREY, lw=0.9, ls="--", label="ln n: no two alike")
    axes.set_xlabel("environments in the sample, n")
    axes.set_ylabel("nats")
    axes.legend(**LEGEND)
    return figure


def likelihood(choice: BandwidthChoice, others: Mapping[str, float] | None = None) -> Figure:
    """Draw the likelihood of bandwidths. Each environment is compared with all the others, and not with itself.

    Parameters
    ----------
    choice
        The result of `quests_md.information.likelihood_bandwidth`.
    others
        Other bandwidths (1/Å) to mark: for the name of each rule its bandwidth.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure, axes = new_axes(3.8)
    axes.plot(choice.bandwidths, choice.log_likelihood, "o-", color=BLUE, ms=4, lw=1.2)
    _spread_bandwidths(axes)
    marks = {"likelihood": choice.bandwidth, **(others or {})}
    for colour, (name, h) in zip(itertools.cycle(_COLOURS), marks.items(), strict=False):
        axes.axvline(h, color=colour, lw=0.9, ls="--", label=f"{name}: {h:.4g}")
    best = float(np.max(choice.log_likelihood))
    finite = choice.log_likelihood[np.isfinite(choice.log_likelihood)]
    axes.set_ylim(max(float(finite.min()), best - 60.0), None)
    axes.set_ylabel("log-likelihood per environment (nats)")
    axes.legend(**LEGEND)
    return figure


# -- a choice of frames ------------------------------------------------------------------------------------------------


def compression(found: Compression, n_frames: int) -> Figure:
    """Draw entropy, diversity and overlap of the chosen frames against their number.

    Parameters
    ----------
    found
        The result of `quests_md.compression.compress`.
    n_frames
        Number of frames in the whole dataset, for the axis.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    growth, n = found.growth(), len(found.selected)
    numbers, style = range(1, n + 1), "o-" if n <= 60 else "-"
    figure = new_figure(4.8)
    from matplotlib.ticker import MaxNLocator

    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(numbers, growth.diversity, style, color=ORANGE, ms=3, label="diversity $D$")
    above.plot(numbers, growth.entropy, style, color=BLUE, ms=3, label="entropy $H$")
    above.set_ylabel("of the chosen frames (nats)")
    above.legend(**LEGEND)
    below.plot(numbers, growth.overlap, style, color=RED, ms=3)
    below.set_ylabel("overlap of all with these")
    below.set_ylim(0.0, 1.02)
    below.set_xlabel(f"frames chosen of {n_frames} ({found.method}, $h$ = {found.bandwidth:g} Å$^{{-1}}$)")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    hide_box(above, below)
    return figure


# -- nuclei ------------------------------------------------------------------------------------------------------------


def nuclei_picture(series: NucleiSeries, fit: Nucleation | None = None) -> Figure:
    """Draw the largest nucleus and the environments in all nuclei against time, and the number of nuclei of each size.

    Parameters
    ----------
    series
        The nuclei along a trajectory. Without times, it is drawn against its steps.
    fit
        A fit of classical nucleation theory. Its window is shaded, and ΔG(n) is drawn instead of the numbers.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    InputError
        The series holds no frames.
    MissingExtraError
        matplotlib is not installed.
    """
    if not len(series):
        raise InputError("a series of nuclei without frames cannot be drawn")
    figure = new_figure(3.4, 7.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_time(left, series, fit)
    if fit is None:
        _draw_numbers(right, series)
    else:
        _draw_energy(right, fit)
    hide_box(left, right)
    return figure


def _draw_time(axes: Any, series: NucleiSeries, fit: Nucleation | None) -> None:
    has_times = bool(np.isfinite(series.times).all())
    time = series.times if has_times else series.steps
    if fit is not None:
        window = [float(time[np.searchsorted(series.steps, step)]) for step in (fit.first, fit.last)]
        axes.axvspan(*window, color=SKY, alpha=0.2, lw=0, label="fitted")
    axes.plot(time, series.n_inside, color=GREY, lw=1, label="in all nuclei")
    axes.plot(time, series.largest, color=BLUE, lw=1.4, label="largest nucleus")
    axes.set_ylim(0, None if series.n_inside.any() else 1)
    axes.set_xlabel("time (ps)" if has_times else "step")
    axes.set_ylabel("environments")
    axes.legend(**LEGEND)


def _draw_numbers(axes: Any, series: NucleiSeries) -> None:
    sizes, number = series.distribution()
    axes.plot(sizes, number, "o", ms=3.5, color=BLUE, mec="white", mew=0.3)
    if len(sizes):
        axes.set(xscale="log", yscale="log")
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no nuclei", ha="center", transform=axes.transAxes)
    axes.set_xlabel("size of nucleus n")
    axes.set_ylabel("nuclei per frame")


def _draw_energy(axes: Any, fit: Nucleation) -> None:
    error = np.nan_to_num(fit.free_energy_error)
    style = {"fmt": "o", "ms": 3.5, "color": BLUE, "ecolor": SKY, "elinewidth": 1.2, "label": "−ln(Nₙ/N₁)"}
    axes.errorbar(fit.sizes, fit.free_energy, error, **style)
    used = fit.sizes >= fit.smallest
    axes.plot(fit.sizes[used], fit.fitted[used], color=ORANGE, lw=1.6, zorder=3, label="classical theory")
    axes.plot(fit.sizes, fit.fitted, color=ORANGE, lw=1, ls=":")
    axes.set_title(f"γ = {fit.gamma:.3g} ± {fit.gamma_error:.1g} mJ/m²", fontsize=10)
    axes.set_xlabel("size of nucleus n")
    axes.set_ylabel("ΔG(n) (k$_\\mathrm{B}$T)")
    axes.legend(**LEGEND, loc="lower right")
