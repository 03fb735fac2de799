"""What the first frames of a compressed dataset hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..compression import Compression
from ..errors import MissingExtraError
from ._timeline import BLUE, ORANGE, RED

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
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'quests_md[plot]'") from error
    n = len(found.selected)
    numbers, style = range(1, n + 1), "o-" if n <= 60 else "-"
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(numbers, found.diversity, style, color=ORANGE, ms=3, label="diversity $D$")
    above.plot(numbers, found.entropy, style, color=BLUE, ms=3, label="entropy $H$")
    above.set_ylabel("of the chosen frames (nats)")
    above.legend(frameon=False, fontsize=9)
    below.plot(numbers, found.overlap, style, color=RED, ms=3)
    below.set_ylabel("overlap of all with these")
    below.set_ylim(0.0, 1.02)
    below.set_xlabel(f"frames chosen of {n_frames} ({found.method}, $h$ = {found.bandwidth:g} Å$^{{-1}}$)")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
