"""How ranks talk: the protocol ``Comm``, and ``Serial`` for a program of one rank.

The core never imports mpi4py: ``hosts.mpi`` puts a ``Comm`` on an MPI communicator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import MonitorError

__all__ = ["Comm", "Serial", "on_root", "raise_together", "share_text", "together"]

_Result = TypeVar("_Result")


class Comm(Protocol):
    """What the monitor and the session need of a communicator. Every call is collective."""

    rank: int
    size: int

    def allgather(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (size, n) array of every rank's vector of length n."""
        ...

    def gather(self, item: Any) -> list[Any] | None:
        """Return the list of every rank's item on rank 0, and None elsewhere."""
        ...

    def broadcast(self, item: Any) -> Any:
        """Return rank 0's item on every rank."""
        ...


class Serial:
    """A communicator of one rank."""

    rank = 0
    size = 1

    def allgather(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(vector, dtype=np.float64)[None, :]

    def gather(self, item: Any) -> list[Any] | None:
        return [item]

    def broadcast(self, item: Any) -> Any:
        return item


def raise_together(comm: Comm, error: Exception | None, where: str = "") -> None:
    """Raise on all ranks if any rank brings an error; return on all ranks if none does.

    A rank with an error of its own raises that; the others raise `MonitorError` with the text of the first one.
    So no rank waits in a later collective call for one that has left. With `where`, what the ranks were at, all of them
    raise the same `MonitorError`.
    """
    flags = comm.allgather(np.array([error is not None], dtype=np.float64))[:, 0]
    if not flags.any():
        return
    texts = comm.gather(None if error is None else f"{type(error).__name__}: {error}")
    texts = comm.broadcast(texts)
    first = int(np.flatnonzero(flags)[0])
    if where:
        of_ranks = f" on rank {first} of {comm.size}" if comm.size > 1 else ""
        raise MonitorError(f"{where}{of_ranks}: {texts[first]}") from error
    if error is not None:
        raise error
    raise MonitorError(f"rank {first} failed: {texts[first]}")


def together(comm: Comm, work: Callable[[], _Result], where: str = "") -> _Result:
    """Return what `work`, which calls no other rank, gives on this one; raise on all ranks if it fails on any."""
    if comm.size == 1 and not where:
        return work()
    done: list[_Result] = []
    error: Exception | None = None
    try:
        done.append(work())
    except Exception as failure:  # noqa: BLE001 - the other ranks must hear of it before they wait for this one
        error = failure
    raise_together(comm, error, where)
    return done[0]


def on_root(comm: Comm, work: Callable[[], _Result]) -> _Result | None:
    """Return what `work` gives on rank 0, None elsewhere; raise on all ranks if it fails."""
    return together(comm, lambda: work() if comm.rank == 0 else None)


def share_text(comm: Comm, rank: int, text: str | None) -> str:
    """Return on every rank what `rank` brings. Collective."""
    texts = comm.gather(text)
    told: str = comm.broadcast(None if texts is None else texts[rank])
    return told
