"""Information of datasets: kernel sums, dH, entropy, diversity, overlap, learning curves, and the choice of bandwidth.

All take descriptors (n, d) as arrays and return nats. Source of the formulas: arXiv:2404.12367.

Rows may begin with the atomic number of their centre (``DescriptorSpec.by_centre``): it is one more column. Rows of
different elements are then at least 1 apart. If the bandwidth is far below 1, their kernel exp(−1/2h²) is negligible.
"""

from ._bandwidth import BandwidthChoice, bandwidth_from_volume, likelihood_bandwidth, suggest_bandwidth
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

# A name with itself as its alias is for the other rooms of the package. It is not public.
from ._sums import DEFAULT_BANDWIDTH, delta_entropy, log_kernel_sum
from ._sums import ERRORS as ERRORS
from ._sums import Blocks as Blocks
from ._sums import Precision as Precision
from ._sums import Report as Report
from ._sums import check_bandwidth as check_bandwidth
from ._sums import check_reach as check_reach
from ._sums import check_rows as check_rows
from ._sums import find_undecided as find_undecided
from ._sums import local_residuals as local_residuals
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
    "suggest_bandwidth",
]
