"""Nuclei: the environments of a dH that lie together, how they grow, and what classical nucleation theory says."""

from ._fit import SPHERE, Nucleation, nucleation
from ._nuclei import Nuclei, NucleiSeries, Threshold, linked_mean, nuclei, threshold_between

__all__ = [
    "SPHERE",
    "Nucleation",
    "Nuclei",
    "NucleiSeries",
    "Threshold",
    "linked_mean",
    "nucleation",
    "nuclei",
    "threshold_between",
]
