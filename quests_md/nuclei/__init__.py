"""Nuclei: groups of environments that lie together, their growth, and a fit of classical nucleation theory."""

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
