"""LAMMPS as host: ``attach`` for a Python-driven LAMMPS, three functions for input scripts."""

from __future__ import annotations

from ._attach import attach, quests_attach, quests_close, quests_step
from ._watch import Watch

__all__ = ["Watch", "attach", "quests_attach", "quests_close", "quests_step"]
