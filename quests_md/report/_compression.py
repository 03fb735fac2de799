"""What the first frames of a compressed dataset hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..compression import Compression
from ._figure import BLUE, ORANGE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compression"]


def compression(found: Compression, n_frames: int) -> Figure:
    """Draw entropy, diversity and overlap of the chosen frames against their number.

    Parameters
    ----------
    found
        What `quests_md.compression.compress` returned.
    n_frames
        Of the dataset that was chosen from, for the axis.

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
    above.legend(frameon=False, fontsize=9)
    below.plot(numbers, growth.overlap, style, color=RED, ms=3)
    below.set_ylabel("overlap of all with these")
    below.set_ylim(0.0, 1.02)
    below.set_xlabel(f"frames chosen of {n_frames} ({found.method}, $h$ = {found.bandwidth:g} Å$^{{-1}}$)")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
