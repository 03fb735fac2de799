"""Pictures: of what a run or a loop wrote, and of what a dataset holds."""

from ._compression import compression
from ._dataset import entropies, histogram, learning_curve, likelihood
from ._generations import generations
from ._timeline import timeline

__all__ = ["compression", "entropies", "generations", "histogram", "learning_curve", "likelihood", "timeline"]
