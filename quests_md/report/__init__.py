"""Pictures of what a run wrote."""

from ._timeline import timeline

__all__ = ["timeline"]
