"""Model-free, on-the-fly uncertainty for LAMMPS and ASE, by the QUESTS differential entropy.

The public names are loaded when they are first used, so ``import quests_md`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .descriptors import DescriptorSpec
    from .frame import Frame
    from .index import Index
    from .information import delta_entropy, diversity, entropy
    from .monitor import Decision, Monitor
    from .recording import Run, Session, read_run

__version__ = "0.2.0"  # the one place: pyproject.toml and the manual read it

__all__ = [
    "Decision",
    "DescriptorSpec",
    "Frame",
    "Index",
    "Monitor",
    "Run",
    "Session",
    "delta_entropy",
    "diversity",
    "entropy",
    "read_run",
]

_HOME = {
    "Decision": "monitor",
    "DescriptorSpec": "descriptors",
    "Frame": "frame",
    "Index": "index",
    "Monitor": "monitor",
    "Run": "recording",
    "Session": "recording",
    "delta_entropy": "information",
    "diversity": "information",
    "entropy": "information",
    "read_run": "recording",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
