"""Forces on ghost atoms go to the atoms that they are copies of, on whatever rank these are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm
from ..errors import FrameError
from ..frame import Frame

__all__ = ["collect_forces"]


def collect_forces(frame: Frame, forces: NDArray[np.float64], comm: Comm) -> NDArray[np.float64]:
    """Return the forces on this rank's atoms (n_local, 3), of forces on all rows of its frame (n, 3). Collective.

    Every rank hears of the forces on all ghosts: with many ranks that is many numbers, but LAMMPS has no way to send
    them to the owners alone after its own forces have been computed.

    Raises
    ------
    FrameError
        A ghost belongs to no atom of any rank. On all ranks.
    """
    n_local = frame.n_local or 0
    own = forces[:n_local].copy()
    if not frame.has_ghosts:
        return own
    assert frame.ids is not None
    ghosts = n_local + np.flatnonzero(np.any(forces[n_local:] != 0.0, axis=1))
    sent = np.column_stack([frame.ids[ghosts].astype(np.float64), forces[ghosts]])
    if comm.size > 1:
        longest = int(comm.allgather(np.array([float(len(sent))])).max())
        padded = np.full((longest, 4), -1.0)
        padded[: len(sent)] = sent
        sent = comm.allgather(padded.ravel()).reshape(-1, 4)
        sent = sent[sent[:, 0] >= 0.0]
    ids = frame.ids[:n_local]
    order = np.argsort(ids)
    places = np.searchsorted(ids[order], sent[:, 0])
    found = places < n_local
    found[found] = ids[order][places[found]] == sent[found, 0]
    np.add.at(own, order[places[found]], sent[found, 1:])
    taken = comm.allgather(np.array([float(found.sum())]))[:, 0].sum() if comm.size > 1 else found.sum()
    if int(taken) != len(sent):
        raise FrameError(f"step {frame.step}: {len(sent) - int(taken)} ghost atoms have the id of no atom")
    return own
