"""The monitor: one frame in, one decision out. No files, no MPI library, no host."""

from ._decision import Above, Band, Decision, Evaluations, Key, Visits
from ._measure import POOLED, Part
from ._monitor import Monitor
from ._rules import Event, Events
from ._self_test import Check, self_test

__all__ = [
    "POOLED",
    "Above",
    "Band",
    "Check",
    "Decision",
    "Evaluations",
    "Event",
    "Events",
    "Key",
    "Monitor",
    "Part",
    "Visits",
    "self_test",
]
