"""The monitor: one frame in, one decision out. No files, no MPI library, no host."""

from ._decision import Band, Decision, Proposal
from ._events import Event, Events
from ._identity import Evaluations, Key, Mark, Visits, mark_of
from ._monitor import Monitor

__all__ = [
    "Band",
    "Decision",
    "Evaluations",
    "Event",
    "Events",
    "Key",
    "Mark",
    "Monitor",
    "Proposal",
    "Visits",
    "mark_of",
]
