"""How ranks talk: the protocol ``Comm``, and ``Serial`` for a program of one rank.

The core never imports mpi4py: ``hosts.mpi`` makes a ``Comm`` of an MPI communicator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import MonitorError

__all__ = [
    "Comm",
    "Serial",
    "choose_threads",
    "deal_frames",
    "join",
    "on_root",
    "raise_together",
    "share_rows",
    "share_text",
    "together",
]

_Result = TypeVar("_Result")


class Comm(Protocol):
    """The communicator that the monitor and the session need. Every call is collective."""

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
    """Raise on all ranks if any rank has an error; return on all ranks if none has. Collective.

    So no rank waits, in a later collective call, for one that has left. A rank with an error raises that error; the
    others raise `MonitorError` with the text of the first one. With `where`, which says what the ranks were doing, all
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
    """Return the result of `work`, which must call no other rank; raise on all ranks if it fails on any. Collective."""
    if comm.size == 1 and not where:
        return work()
    done: list[_Result] = []
    error: Exception | None = None
    try:
        done.append(work())
    except Exception as failure:  # noqa: BLE001 - the other ranks must learn it before they wait for this one
        error = failure
    raise_together(comm, error, where)
    return done[0]


def on_root(comm: Comm, work: Callable[[], _Result]) -> _Result | None:
    """Return the result of `work` on rank 0, None elsewhere; raise on all ranks if it fails. Collective."""
    return together(comm, lambda: work() if comm.rank == 0 else None)


def share_text(comm: Comm, rank: int, text: str | None) -> str:
    """Return the text of `rank` on every rank. Collective."""
    texts = comm.gather(text)
    shared: str = comm.broadcast(None if texts is None else texts[rank])
    return shared


# -- work that ranks share ---------------------------------------------------------------------------------------------


def choose_threads(comm: Comm, threads: int | None) -> int | None:
    """Return the threads of each rank: one if nothing is asked for and there are several ranks."""
    return 1 if threads is None and comm.size > 1 else threads


def deal_frames(offsets: NDArray[np.int64], least: int) -> list[tuple[int, int]]:
    """Return first and last frame of parts of a dataset that have `least` environments or a few more.

    Part k is for rank k % size. `offsets` (n_frames + 1,) says which environment is the first of every frame.
    """
    out, first = [], 0
    for frame in range(1, len(offsets)):
        if offsets[frame] - offsets[first] >= least or frame == len(offsets) - 1:
            out.append((first, frame))
            first = frame
    return out


def share_rows(comm: Comm, out: NDArray[np.float64], parts: Sequence[tuple[int, int]]) -> None:
    """Give the rows that each rank has computed to the others, one part of each at a time. Collective.

    `out` (n, d) holds on every rank the rows of its own parts; `parts` are first and last row of every part, of which
    number k is of rank k % size.
    """
    if comm.size == 1:
        return
    for begin in range(0, len(parts), comm.size):
        now = parts[begin : begin + comm.size]
        mine = np.zeros(max(last - first for first, last in now) * out.shape[1])
        if comm.rank < len(now):
            rows = out[slice(*now[comm.rank])]
            mine[: rows.size] = rows.ravel()
        for (first, last), values in zip(now, comm.allgather(mine), strict=False):
            out[first:last] = values[: (last - first) * out.shape[1]].reshape(-1, out.shape[1])


def join(comm: Comm, own: NDArray[np.float64], places: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Put the values of all ranks together, on all ranks. Collective.

    `own` are the values of this rank; `places` says for each rank where in the result its values belong.
    """
    out = np.empty(sum(map(len, places)))
    padded = np.zeros(max(map(len, places)))
    padded[: len(own)] = own
    for rows, values in zip(places, comm.allgather(padded), strict=True):
        out[rows] = values[: len(rows)]
    return out
