"""The active-learning loop: explore, select, label, train, extend the index, and explore again."""

from __future__ import annotations

from ._config import LearnConfig
from ._loop import LearnResult, learn
from ._progress import Reporter

__all__ = ["LearnConfig", "LearnResult", "Reporter", "learn"]
