"""The monitor: one frame in, one decision out. No files, no MPI library, no host."""

from ._decision import Band, Decision
from ._monitor import Monitor

__all__ = ["Band", "Decision", "Monitor"]
