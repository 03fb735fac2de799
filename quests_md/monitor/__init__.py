"""The monitor: one frame in, one decision out. No files, no MPI library, no host."""

from ._decision import Band, Decision, Proposal
from ._events import Event, Events
from ._history import History, Moment
from ._monitor import Monitor

__all__ = ["Band", "Decision", "Event", "Events", "History", "Moment", "Monitor", "Proposal"]
