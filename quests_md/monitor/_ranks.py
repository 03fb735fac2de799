"""Ranks that do the same thing, and stop together where one of them cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np

from ..comm import Comm
from ..errors import MonitorError

__all__ = ["Work", "agree", "fail_together", "text_of"]

_T = TypeVar("_T")


class Work:
    """Does one thing after the other until one fails, and keeps that error: the other ranks must hear of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def do(self, act: Callable[[], _T]) -> _T | None:
        """Return what comes of `act`; None if it, or something before it, failed."""
        if self.error is None:
            try:
                return act()
            except Exception as caught:  # noqa: BLE001 - whatever it is
                self.error = caught
        return None


def text_of(comm: Comm, rank: int, text: str | None) -> str:
    """Return on every rank what `rank` brings. Collective."""
    texts = comm.gather(text)
    told: str = comm.broadcast(None if texts is None else texts[rank])
    return told


def fail_together(comm: Comm, first: int, step: int, error: Exception | None) -> NoReturn:
    """Raise the same error on all ranks, that of the rank `first`. Collective."""
    text = text_of(comm, first, None if error is None else f"{type(error).__name__}: {error}")
    where = f" on rank {first} of {comm.size}" if comm.size > 1 else ""
    raise MonitorError(f"watching failed at step {step}{where}: {text}") from error


def agree(comm: Comm, step: int, error: Exception | None) -> None:
    """Raise the same error on all ranks, if any brings one. Collective."""
    failed = np.flatnonzero(comm.allgather(np.array([error is not None], dtype=np.float64)))
    if len(failed):
        fail_together(comm, int(failed[0]), step, error)
