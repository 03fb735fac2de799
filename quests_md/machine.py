"""The process and where it runs: versions in use, Ctrl-C, and the environment of programs that this one starts."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["find_extras", "find_versions", "hold_interrupt", "inherit_environment"]


def find_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results can depend on."""
    found = {"python": platform.python_version()}
    for package in ("quests_md", "numpy", "numba", "ase"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found


_FOR_DEVELOPERS = ("dev", "docs", "test")  # extras that nobody needs who only uses quests_md


def find_extras() -> dict[str, dict[str, str]]:
    """Return what each extra brings: its packages, and their versions; an empty text for one that is not installed."""
    found: dict[str, dict[str, str]] = {}
    try:
        lines = requires("quests_md") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        return found
    for line in lines:
        match = re.fullmatch(r"([\w.-]+).*;.*\bextra == ['\"](\w+)['\"].*", line)
        if match and match.group(2) not in _FOR_DEVELOPERS:
            package, extra = match.groups()
            try:
                known = version(package)
            except PackageNotFoundError:
                known = ""
            found.setdefault(extra, {})[package] = known
    return found


# The beginnings of the variables of an MPI job. A program that inherits such variables takes itself for a rank of this
# job. Variables by which a user sets up an MPI library begin with other letters, and are passed on.
_OF_MPI = (
    "PMI", "MPI_LOCAL", "MPIEXEC", "HYDI", "HYDRA", "OMPI_COMM_WORLD", "OMPI_UNIVERSE", "OMPI_APP_CTX", "OMPI_MCA_ess",
    "OMPI_MCA_orte",
)  # fmt: skip


def inherit_environment() -> dict[str, str]:
    """Return the environment variables of this process, without those of the MPI job that it belongs to."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OF_MPI)}


def _end_at_next() -> None:
    """Let the next Ctrl-C end the program at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def hold_interrupt(tell: Callable[[], object] = _end_at_next) -> Iterator[None]:
    """Raise KeyboardInterrupt after the block, not in it: compiled code, or who called it, may lose it there.

    `tell` is called at once, at each Ctrl-C. If the program handles SIGINT itself, nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    held = False

    def hold(number: int, frame: object) -> None:
        nonlocal held
        held = True
        tell()

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt
