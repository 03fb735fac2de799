"""A `Comm` on an mpi4py communicator, and the ranks that a launcher has started."""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial
from ..errors import HostError, MissingExtraError

__all__ = ["MpiComm", "launched_rank", "world"]

# Environment variables in which launchers give the number of ranks and the rank of this process: MPICH and Intel MPI,
# Open MPI, SLURM.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")

_PATIENCE = 5.0  # seconds that a leaving rank waits for the others to leave, too


class MpiComm:
    """A communicator of several ranks: a private duplicate of the given one. Collective.

    When the program of a rank ends by an exception, it ends the job, unless the other ranks end, too: they would wait
    for that rank for ever.

    Parameters
    ----------
    comm
        An ``mpi4py.MPI.Comm``, or its Fortran handle (an int).

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
        # A duplicate, because LAMMPS may free its own before Python ends (-partition), and because our messages must
        # not be mixed with its messages.
        self._comm = (MPI.Comm.f2py(comm) if isinstance(comm, int) else comm).Dup()
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        atexit.register(self._at_exit)

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

    def free(self) -> None:
        """Give the communicator back; a second call does nothing. Collective."""
        atexit.unregister(self._at_exit)
        if self._comm:
            self._comm.Free()

    def leave(self, reason: str) -> None:
        """Return if all ranks call this within some seconds; if not, end the job."""
        request = self._comm.Ibarrier()  # polled below, for MPI itself would wait without a limit
        end = time.monotonic() + _PATIENCE
        while not request.Test():
            if time.monotonic() > end:
                self.abort(reason)
            time.sleep(0.01)

    def abort(self, reason: str) -> NoReturn:
        """End all ranks, with exit code 1."""
        text = f"quests_md: the job ends, for rank {self.rank} of {self.size} has failed alone: {reason}"
        print(text, file=sys.stderr, flush=True)
        self._comm.Abort(1)
        raise SystemExit(1)

    def _at_exit(self) -> None:
        # The exception that has ended the program; at a prompt it has ended nothing.
        error = getattr(sys, "last_value", None)
        if error is not None and not hasattr(sys, "ps1"):
            self.leave(type(error).__name__)


def world() -> Comm:
    """Return the ranks that a launcher (``mpiexec``, ``mpirun``, ``srun``) has started; `Serial` without one.

    Raises
    ------
    MissingExtraError
        Several ranks, and mpi4py is not installed.
    HostError
        The ranks do not see each other: mpi4py uses another MPI library than the launcher.
    """
    started = max(int(os.environ.get(name) or 1) for name in _SIZES)
    if started == 1:
        return Serial()  # mpi4py is not loaded: it would start MPI
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtraError(f"{started} ranks need mpi4py: pip install 'quests_md[mpi]'") from error
    if MPI.COMM_WORLD.Get_size() == 1:
        raise HostError(
            f"{started} ranks were started, and each sees itself alone: use the launcher of the MPI library that "
            f"mpi4py was built for ({MPI.Get_library_version().splitlines()[0].strip()}); quests-md doctor shows both"
        )
    return MpiComm(MPI.COMM_WORLD)


def launched_rank() -> int:
    """Return the rank of this process as its launcher says it, without starting MPI; 0 without a launcher."""
    return max(int(os.environ.get(name) or 0) for name in _RANKS)
