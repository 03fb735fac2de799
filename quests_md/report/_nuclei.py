"""Nuclei against time, how many there are of each size, and the fit of classical nucleation theory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..nuclei import Nucleation, NucleiSeries
from ._figure import BLUE, GREY, ORANGE, SKY, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["nuclei_picture"]


def nuclei_picture(series: NucleiSeries, fit: Nucleation | None = None) -> Figure:
    """Draw the largest nucleus and all that is in nuclei against time, and how many there are of each size.

    Parameters
    ----------
    series
        The nuclei along a trajectory; drawn against its steps where it has no times.
    fit
        The fit of classical nucleation theory: its window is shaded, and ΔG(n) is drawn in place of the numbers.

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
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
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
    axes.legend(frameon=False, fontsize=9)


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
    axes.legend(frameon=False, fontsize=9, loc="lower right")
