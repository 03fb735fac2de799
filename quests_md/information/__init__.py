"""Information of datasets: kernel sums, dH, entropy, diversity, overlap, learning curves, and the choice of bandwidth.

All take descriptors (n, d) as arrays and return nats. Source of the formulas: arXiv:2404.12367.

Rows that begin with the atomic number of their centre (``DescriptorSpec.by_centre``) are taken as they are: rows of
other elements are at least 1 away, and exp(−1/2h²) is nothing as long as the bandwidth is far below 1.
"""

from ._bandwidth import BandwidthChoice, bandwidth_from_volume, likelihood_bandwidth
from ._information import Information, diversity, entropy, information, information_at, overlap
from ._sampling import LearningCurve, Sampled, learning_curve, sample_entropy
from ._sums import (
    DEFAULT_BANDWIDTH,
    Blocks,
    Precision,
    check_bandwidth,
    delta_entropy,
    log_kernel_sum,
    log_kernel_sum_of_few,
    pack,
)

__all__ = [
    "DEFAULT_BANDWIDTH",
    "BandwidthChoice",
    "Blocks",
    "Information",
    "LearningCurve",
    "Precision",
    "Sampled",
    "bandwidth_from_volume",
    "check_bandwidth",
    "delta_entropy",
    "diversity",
    "entropy",
    "information",
    "information_at",
    "learning_curve",
    "likelihood_bandwidth",
    "log_kernel_sum",
    "log_kernel_sum_of_few",
    "overlap",
    "pack",
    "sample_entropy",
]
