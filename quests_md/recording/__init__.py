"""What a run records: rows, events, frames, and how it ended; going on with it; and reading it."""

from .commands import HOOKS
from .covered import LAST_COVERED, LastCovered
from .live_reference import reference_of
from .reader import Run, read_run
from .recorder import Moment, Place, Recorder
from .session import Session

__all__ = [
    "HOOKS",
    "LAST_COVERED",
    "LastCovered",
    "Moment",
    "Place",
    "Recorder",
    "Run",
    "Session",
    "read_run",
    "reference_of",
]
