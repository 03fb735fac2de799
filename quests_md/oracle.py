"""The former name of two rooms: it offers all that `quests_md.labelling` and `quests_md.training` offer."""

from __future__ import annotations

from typing import Any

from . import labelling, training

__all__ = sorted([*labelling.__all__, *training.__all__])


def __getattr__(name: str) -> Any:
    for room in (labelling, training):
        if name in room.__all__:
            return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
