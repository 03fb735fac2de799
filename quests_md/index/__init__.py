"""The index: the persisted reference with its descriptor, bandwidth and provenance."""

from ._index import Index
from ._reference import Reference
from ._thresholds import check_threshold, resolve_threshold

__all__ = ["Index", "Reference", "check_threshold", "resolve_threshold"]
