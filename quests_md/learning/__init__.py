"""The active-learning loop: explore, select, label, train, extend the index, and explore again."""

from __future__ import annotations

from ._config import LearnConfig
from ._inline import Inline, InlineCalculator
from ._inline_lammps import run_lammps
from ._loop import LearnResult, learn
from ._progress import Reporter

__all__ = ["Inline", "InlineCalculator", "LearnConfig", "LearnResult", "Reporter", "learn", "run_lammps"]
