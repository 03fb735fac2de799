"""Pictures of what a run or a loop wrote and of what a dataset holds; and pages of runs and datasets."""

from ._compression import compression
from ._dataset import entropies, histogram, learning_curve, likelihood
from ._generations import generations
from ._html_dataset import dataset_page
from ._html_run import run_page
from ._nuclei import nuclei_picture
from ._thermo import coupling_slopes, entropy_comparison, entropy_states, entropy_windows, heat_entropies, phase_diagram
from ._timeline import timeline

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
