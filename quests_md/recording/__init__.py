"""What a run records (rows, events, frames, and how it ended), how a run is resumed, and how it is read."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .reader import Run, read_run

if TYPE_CHECKING:
    from .commands import HOOKS
    from .last import LAST_COVERED, LastCovered
    from .live_reference import reference_of
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

# These are loaded when they are needed, so that a program that only reads a run does not wait for them.
_HOME = {
    "HOOKS": "commands",
    "LAST_COVERED": "last",
    "LastCovered": "last",
    "Moment": "recorder",
    "Place": "recorder",
    "Recorder": "recorder",
    "Session": "session",
    "reference_of": "live_reference",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
