"""A `Comm` on an mpi4py communicator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError

__all__ = ["MpiComm"]


class MpiComm:
    """A communicator of several ranks.

    Parameters
    ----------
    comm
        An ``mpi4py.MPI.Comm``, or the Fortran handle of one (an int).

    Raises
    ------
    MissingExtraError
        mpi4py is not installed.
    """

    def __init__(self, comm: Any) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise MissingExtraError("several ranks need mpi4py: pip install 'quests_md[mpi]'") from error
        self._comm = MPI.Comm.f2py(comm) if isinstance(comm, int) else comm
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()

    def allgather(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        vector = np.ascontiguousarray(vector, dtype=np.float64)
        out = np.empty((self.size, len(vector)))
        self._comm.Allgather(vector, out)
        return out

    def gather(self, item: Any) -> list[Any] | None:
        gathered: list[Any] | None = self._comm.gather(item, root=0)
        return gathered

    def broadcast(self, item: Any) -> Any:
        return self._comm.bcast(item, root=0)
