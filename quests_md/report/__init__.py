"""Pictures of what a run or a loop wrote."""

from ._generations import generations
from ._nuclei import nuclei_picture
from ._timeline import timeline

__all__ = ["generations", "nuclei_picture", "timeline"]
