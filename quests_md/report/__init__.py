"""Pictures of what a run or a loop wrote."""

from ._generations import generations
from ._timeline import timeline

__all__ = ["generations", "timeline"]
