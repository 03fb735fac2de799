"""The index: the persisted reference with its descriptor, bandwidth and provenance."""

from ._index import Index
from ._reference import Reference

__all__ = ["Index", "Reference"]
