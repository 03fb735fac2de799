"""Labels for frames: what supplies them (the oracle), the queue of frames that wait, and who works on it."""

from __future__ import annotations

from ._compute import EXECUTORS, Outcome, compute, make_executor
from ._label import Labelling, check_labels, label
from ._oracle import Labels, Oracle
from ._queue import Queue
from ._rows import STATES, Claim, Entry, digest

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
