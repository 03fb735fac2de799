"""The monitor: one frame in, one decision out. No files, no MPI library, no host."""

from ._decision import Band, Decision, Evaluations, Key, Mark, Proposal, Visits, mark_of
from ._monitor import Monitor
from ._rules import Event, Events

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
