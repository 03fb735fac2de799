"""Information of datasets: kernel sums, dH, entropy, diversity, overlap, learning curves, and the choice of bandwidth.

All take descriptors (n, d) as arrays and return nats. Source of the formulas: arXiv:2404.12367.

Rows that begin with the atomic number of their centre (``DescriptorSpec.by_centre``) are taken as they are: rows of
other elements are at least 1 away, and exp(−1/2h²) is nothing as long as the bandwidth is far below 1.
"""

from ._bandwidth import BandwidthChoice, bandwidth_from_volume, likelihood_bandwidth
from ._entropy import (
    Information,
    LearningCurve,
    Sampled,
    diversity,
    entropy,
    information,
    information_at,
    learning_curve,
    overlap,
    sample_entropy,
)

# Names with themselves as their alias are for the package: not public, and not hidden from it.
from ._sums import DEFAULT_BANDWIDTH, delta_entropy, log_kernel_sum
from ._sums import Blocks as Blocks
from ._sums import Precision as Precision
from ._sums import check_bandwidth as check_bandwidth
from ._sums import check_reach as check_reach
from ._sums import check_rows as check_rows
from ._sums import log_kernel_sum_of_few as log_kernel_sum_of_few
from ._sums import pack as pack

__all__ = [
    "DEFAULT_BANDWIDTH",
    "BandwidthChoice",
    "Information",
    "LearningCurve",
    "Sampled",
    "bandwidth_from_volume",
    "delta_entropy",
    "diversity",
    "entropy",
    "information",
    "information_at",
    "learning_curve",
    "likelihood_bandwidth",
    "log_kernel_sum",
    "overlap",
    "sample_entropy",
]
