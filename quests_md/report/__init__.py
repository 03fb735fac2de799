"""Pictures: of what a run or a loop wrote, and of what a dataset holds."""

from ._dataset import entropies, histogram, learning_curve, likelihood
from ._generations import generations
from ._thermo import entropy_comparison, entropy_states, entropy_windows, heat_entropies, phase_diagram
from ._timeline import timeline

__all__ = [
    "entropies",
    "entropy_comparison",
    "entropy_states",
    "entropy_windows",
    "generations",
    "heat_entropies",
    "histogram",
    "learning_curve",
    "likelihood",
    "phase_diagram",
    "timeline",
]
