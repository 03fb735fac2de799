"""The index: the persisted reference with its descriptor, bandwidth, provenance and calibration."""

from ._build import mean_volume, volume_per_atom
from ._calibration import calibrate
from ._data import Reference
from ._described import Described
from ._force_error import fit_error_bound
from ._index import Index
from ._live import Learned, Lesson, Live
from ._local_bound import ADDED, HELD_OUT, FrameFactors, LocalBound, LocalFactors
from ._local_fit import fit_local_bound
from ._matching import find_known, match_residuals
from ._meaning import Meaning, explain_threshold
from ._residuals import ORIGINS, Residuals
from ._thresholds import Calibration, ErrorBin, ErrorBound, check_threshold, resolve_threshold

__all__ = [
    "ADDED",
    "HELD_OUT",
    "ORIGINS",
    "Calibration",
    "Described",
    "ErrorBin",
    "ErrorBound",
    "FrameFactors",
    "Index",
    "Learned",
    "Lesson",
    "Live",
    "LocalBound",
    "LocalFactors",
    "Meaning",
    "Reference",
    "Residuals",
    "calibrate",
    "check_threshold",
    "explain_threshold",
    "find_known",
    "fit_error_bound",
    "fit_local_bound",
    "match_residuals",
    "mean_volume",
    "resolve_threshold",
    "volume_per_atom",
]
