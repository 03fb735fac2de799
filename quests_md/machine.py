"""What this program runs on: the versions that it uses, and what a program that it starts may know."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["find_versions", "inherit_environment"]


def find_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a number can depend on."""
    found = {"python": platform.python_version()}
    for package in ("quests_md", "numpy", "numba", "ase"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found


# What makes a program believe that it is a rank of the MPI job which this process belongs to. Settings that a user
# gives to an MPI library are handed on.
_OF_MPI = (
    "PMI", "MPI_LOCAL", "MPIEXEC", "HYDI", "HYDRA", "OMPI_COMM_WORLD", "OMPI_UNIVERSE", "OMPI_APP_CTX", "OMPI_MCA_ess",
    "OMPI_MCA_orte",
)  # fmt: skip


def inherit_environment() -> dict[str, str]:
    """Return the variables of this process, less those of an MPI job that it belongs to."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OF_MPI)}
