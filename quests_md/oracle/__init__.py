"""Whatever supplies labels, and what is made of them: the queue, labelling, trainers."""

from __future__ import annotations

from ._compute import Outcome, compute
from ._labels import Labels
from ._oracle import Oracle

__all__ = ["Labels", "Oracle", "Outcome", "compute"]
