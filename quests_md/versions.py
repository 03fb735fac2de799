"""Which versions wrote a file: part of every provenance."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a number can depend on."""
    found = {"python": platform.python_version()}
    for package in ("quests_md", "numpy", "numba", "ase"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found
