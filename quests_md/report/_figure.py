"""What all pictures have in common: an empty figure, and the colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "ORANGE", "RED", "SKY", "new_figure"]

# Okabe and Ito's colours, told apart by readers of any colour vision.
BLUE, SKY, ORANGE, RED, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#666666"


def new_figure(height: float, width: float = 7.2) -> Figure:
    """Return an empty figure of this size in inches, which no window shows.

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
