"""The active-learning loop: explore, select, label, train, extend the index, and explore again."""

from __future__ import annotations

from ._inline import Inline, InlineCalculator, run_lammps
from ._loop import LearnResult, learn
from ._settings import LearnConfig
from ._stages import Reporter

__all__ = ["Inline", "InlineCalculator", "LearnConfig", "LearnResult", "Reporter", "learn", "run_lammps"]
