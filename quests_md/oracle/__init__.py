"""Whatever supplies labels, and what is made of them: the queue, labelling, trainers."""

from __future__ import annotations

from ._checks import check_labels
from ._compute import Outcome, compute
from ._executors import EXECUTORS, make_executor
from ._label import Labelled, label
from ._labels import STATES, Claim, Entry, Labels
from ._oracle import Oracle
from ._queue import Queue
from ._rows import digest

__all__ = [
    "EXECUTORS",
    "STATES",
    "Claim",
    "Entry",
    "Labelled",
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
