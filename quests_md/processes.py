"""What processes that are started may know of this one."""

from __future__ import annotations

import os

__all__ = ["inherited"]

# What makes a program believe that it is a rank of the MPI job which this process belongs to. Settings that a user
# gives to an MPI library are handed on.
_OF_MPI = (
    "PMI", "MPI_LOCAL", "MPIEXEC", "HYDI", "HYDRA", "OMPI_COMM_WORLD", "OMPI_UNIVERSE", "OMPI_APP_CTX", "OMPI_MCA_ess",
    "OMPI_MCA_orte",
)  # fmt: skip


def inherited() -> dict[str, str]:
    """Return the variables of this process, less those of an MPI job that it belongs to."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OF_MPI)}
