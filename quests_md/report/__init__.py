"""Pictures: of what a run or a loop wrote, and of what a dataset holds."""

from ._dataset import entropies, histogram, learning_curve, likelihood
from ._generations import generations
from ._timeline import timeline

__all__ = ["entropies", "generations", "histogram", "learning_curve", "likelihood", "timeline"]
