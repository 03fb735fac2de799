"""Pictures of what a run or a loop wrote and of what a dataset holds; and pages of runs and datasets."""

from ._dataset_page import dataset_page
from ._pictures import compression, entropies, histogram, learning_curve, likelihood, nuclei_picture
from ._run_page import run_page
from ._thermo_pictures import (
    coupling_slopes,
    entropy_comparison,
    entropy_states,
    entropy_windows,
    heat_entropies,
    phase_diagram,
)
from ._timeline import generations, timeline

__all__ = [
    "compression",
    "coupling_slopes",
    "dataset_page",
    "entropies",
    "entropy_comparison",
    "entropy_states",
    "entropy_windows",
    "generations",
    "heat_entropies",
    "histogram",
    "learning_curve",
    "likelihood",
    "nuclei_picture",
    "phase_diagram",
    "run_page",
    "timeline",
]
