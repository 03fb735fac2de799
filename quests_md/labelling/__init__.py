"""Labels for frames: what supplies them (the oracle), the queue of frames that wait, and who works on it."""

from __future__ import annotations

from ._compute import EXECUTORS, Outcome, compute, make_executor
from ._entries import STATES, Claim, Entry, digest
from ._label import Labelling, check_labels, label
from ._oracle_settings import Labels, Oracle
from ._queue import Queue

__all__ = [
    "EXECUTORS",
    "STATES",
    "Claim",
    "Entry",
    "Labelling",
    "Labels",
    "Oracle",
    "Outcome",
    "Queue",
    "check_labels",
    "compute",
    "digest",
    "label",
    "make_executor",
]
