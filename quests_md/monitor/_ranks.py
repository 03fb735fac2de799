"""What one rank says, told to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from ..comm import Comm
from ..errors import MonitorError

__all__ = ["compute_together", "fail_together", "text_of"]


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


def compute_together(comm: Comm, step: int, compute: Callable[[], object]) -> None:
    """Let `compute` do what calls no other rank; if it fails on any, raise the same error on all. Collective."""
    failure = None
    try:
        compute()
    except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        failure = caught
    failed = np.flatnonzero(comm.allgather(np.array([failure is not None], np.float64))[:, 0])
    if len(failed):
        fail_together(comm, int(failed[0]), step, failure)
