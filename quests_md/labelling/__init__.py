"""Labels for frames: what supplies them (the oracle), the queue of frames that wait, and who works on it."""

from __future__ import annotations

from ._compute import EXECUTORS, Outcome, compute, make_executor
from ._entries import STATES, Claim, Entry, digest
from ._imports import Imported, import_labels
from ._label import Labelling, check_labels, label
from ._oracle_settings import Labels, Oracle
from ._queue import Queue
from ._trial import Trial, try_frame

__all__ = [
    "EXECUTORS",
    "STATES",
    "Claim",
    "Entry",
    "Imported",
    "Labelling",
    "Labels",
    "Oracle",
    "Outcome",
    "Queue",
    "Trial",
    "check_labels",
    "compute",
    "digest",
    "import_labels",
    "label",
    "make_executor",
    "try_frame",
]
