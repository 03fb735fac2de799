"""Whatever supplies labels, and what is made of them: the queue, labelling, trainers."""

from __future__ import annotations

from ._compute import Outcome, compute
from ._labels import STATES, Claim, Entry, Labels
from ._oracle import Oracle
from ._queue import Queue
from ._rows import digest

__all__ = ["STATES", "Claim", "Entry", "Labels", "Oracle", "Outcome", "Queue", "compute", "digest"]
