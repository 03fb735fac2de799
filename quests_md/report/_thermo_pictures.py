"""Pictures of thermodynamics: entropies of states, a phase boundary, and one entropy against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..thermo import Boundary, Comparison, Entropies, HeatEntropy, Windows
from ._pictures import BARS, BLUE, GREY, LEGEND, ORANGE, RED, new_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "coupling_slopes",
    "entropy_comparison",
    "entropy_states",
    "entropy_windows",
    "heat_entropies",
    "phase_diagram",
]


def entropy_windows(found: Windows) -> Figure:
    """Draw the entropy of each window of a trajectory, and its upper limit.

    Parameters
    ----------
    found
        The result of `quests_md.thermo.window_entropies`.

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
    middle, half = (found.first + found.last) / 2, (found.last - found.first) / 2
    _draw_entropies(axes, middle, found.entropies, half)
    axes.set_xlabel("frame")
    return figure


def entropy_states(found: Entropies, names: Sequence[float] | Sequence[str]) -> Figure:
    """Draw the entropy of each state, and its upper limit.

    Parameters
    ----------
    found
        The result of `quests_md.thermo.state_entropies`.
    names
        Names of the states. Numbers are temperatures (K).

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
    if all(isinstance(name, (int, float)) for name in names):
        _draw_entropies(axes, names, found)
        axes.set_xlabel("temperature (K)")
    else:
        _draw_entropies(axes, range(len(names)), found)
        axes.set_xticks(range(len(names)), [str(name) for name in names], rotation=20, ha="right")
        axes.set_xlim(-0.5, len(names) - 0.5)
    return figure


def phase_diagram(found: Boundary, names: tuple[str, str] = ("first", "second")) -> Figure:
    """Draw the boundary of two phases, temperature against pressure, and its slope from Clapeyron's equation.

    Parameters
    ----------
    found
        The result of `quests_md.thermo.phase_boundary`.
    names
        Names of the two phases.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    InputError
        The free energies of the phases cross at no pressure.
    MissingExtraError
        matplotlib is not installed.
    """
    cross = np.isfinite(found.temperature)
    if not cross.any():
        raise InputError("the phases cross at no pressure: there is no boundary to draw")
    figure, axes = new_axes(4.2)
    P, T = found.pressure[cross], found.temperature[cross]
    axes.errorbar(P, T, np.nan_to_num(found.error[cross]), fmt="o", color=BLUE, **BARS, label="ΔG = 0")
    reach = 0.3 * (np.ptp(P) / max(len(P) - 1, 1) or 1.0)
    for i, slope in enumerate(found.clapeyron[cross]):
        ends = np.array([-reach, reach])
        axes.plot(P[i] + ends, T[i] + slope * ends, color=ORANGE, lw=1.4, zorder=0,
                  label=None if i else "slope ΔV/ΔS of the tables")  # fmt: skip
    for side, phase, place in ((found.stable_above, "above", 0.94), (found.stable_below, "below", 0.05)):
        here = {names[i] for i in side[cross]}
        if len(here) == 1:
            axes.text(0.03, place, f"{here.pop()} {phase} the boundary", transform=axes.transAxes, fontsize=9,
                      va="top" if place > 0.5 else "bottom")  # fmt: skip
    axes.set_xlabel("pressure (GPa)")
    axes.set_ylabel("temperature (K)")
    axes.margins(0.12, 0.18)
    axes.legend(**LEGEND, loc="lower right")
    return figure


def coupling_slopes(coupling: ArrayLike, slope: ArrayLike, error: ArrayLike | None = None) -> Figure:
    """Draw ⟨∂U/∂λ⟩ against λ, and the spline through the points. The area below it is the free energy.

    Parameters
    ----------
    coupling, slope, error
        λ (n,), its slopes (n,) and their standard errors, in eV per atom, as in `quests_md.thermo.coupling_entropy`.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    from scipy.interpolate import CubicSpline  # not above: verbs start without scipy

    figure, axes = new_axes(3.8)
    at, values = np.asarray(coupling, dtype=np.float64), np.asarray(slope, dtype=np.float64)
    fine = np.linspace(0.0, 1.0, 200)
    spline = CubicSpline(at, values)(fine)
    axes.plot(fine, spline, color=BLUE, lw=1.2)
    axes.fill_between(fine, 0.0, spline, color=BLUE, alpha=0.12, lw=0)
    axes.errorbar(at, values, error, fmt="o", color=BLUE, **BARS)
    axes.axhline(0.0, color=GREY, lw=0.9)
    axes.set_xlabel("λ")
    axes.set_ylabel("⟨∂U/∂λ⟩ (eV per atom)")
    return figure


def heat_entropies(found: HeatEntropy) -> Figure:
    """Draw the entropy from enthalpies against the temperature, with and without the part of the momenta.

    Parameters
    ----------
    found
        The result of `quests_md.thermo.heat_entropy`.

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
    T = found.temperature
    axes.errorbar(T, found.entropy, found.error, fmt="o-", color=RED, **BARS, label="∫ C$_p$/T dT")
    label = "less 3/2 ln(T/T$_0$), the momenta"
    axes.errorbar(T, found.configurational, found.error, fmt="s-", color=BLUE, **BARS, label=label)
    axes.set_xlabel("temperature (K)")
    axes.set_ylabel("S − S(T$_0$) (k$_B$ per atom)")
    axes.legend(**LEGEND)
    return figure


def entropy_comparison(found: Comparison, temperature: ArrayLike, error: ArrayLike | None = None) -> Figure:
    """Draw entropies of descriptors against those of thermodynamics, the fitted line, and the residuals.

    Parameters
    ----------
    found
        The result of `quests_md.thermo.compare`.
    temperature
        (n,) temperatures of the states, in K.
    error
        (n,) standard errors of the entropies, in nats. Default: no error bars.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; ``savefig`` writes it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = new_figure(5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    x, y, off = found.reference, found.entropy, found.residual
    bars = None if error is None else np.asarray(error)
    label = f"slope {found.slope:.3g} nats per k$_B$, r = {found.correlation:.4f}"
    above.plot(x, y - off, color=GREY, lw=1.1, label=label)
    above.errorbar(x, y, bars, fmt="o", color=BLUE, **BARS)
    for i in (0, len(x) - 1):
        above.annotate(f"{np.asarray(temperature)[i]:g} K", (x[i], y[i]), xytext=(0, -14), textcoords="offset points",
                       fontsize=8, ha="center")  # fmt: skip
    above.margins(0.06, 0.12)
    above.set_ylabel("H of the descriptors (nats)")
    above.legend(**LEGEND, loc="upper left")
    below.axhline(0, color=GREY, lw=1.1)
    below.errorbar(x, off, bars, fmt="o", color=BLUE, **BARS)
    below.set_ylabel("off the line (nats)")
    below.set_xlabel("S of thermodynamics (k$_B$ per atom)")
    return figure


def _draw_entropies(axes: Any, x: Any, found: Entropies, half: Any = None) -> None:
    """Draw entropies with their errors, and the ceiling where they come near it."""
    axes.errorbar(x, found.entropy, np.nan_to_num(found.error), half, fmt="o", color=BLUE, **BARS)
    if found.entropy.max() > 0.6 * found.ceiling:
        axes.axhline(found.ceiling, color=GREY, lw=0.9, ls="--")
        axes.annotate(
            f"ln {found.size}: no two alike", (1.0, found.ceiling), xycoords=("axes fraction", "data"), xytext=(-2, -3),
            textcoords="offset points", color=GREY, fontsize=9, ha="right", va="top",
        )  # fmt: skip
    axes.set_ylabel(f"entropy H (nats), h = {found.bandwidth:g} 1/Å")
