"""Scratch folders: each calculation has one; those of failures are kept, and those of killed programs removed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from ..errors import OracleError

if sys.platform != "win32":
    import fcntl

__all__ = ["Scratch"]

# A folder in use is locked, and its name says on which machine: a lock may hold on one machine only.
_NODE = re.sub(r"[^\w.]", "_", platform.node())
_NEW, _RUNNING, _KEPT = "quests-md-new-", f"quests-md-running-{_NODE}-", "quests-md-"
# Wavefunctions, densities and what else is large and tells nobody why a calculation failed.
_HEAVY = (
    "*.save", "*.wfc*", "*.mix*", "*.hub*", "*.igk*",  # Quantum ESPRESSO
    "WAVECAR", "CHG", "CHGCAR", "TMPCAR", "WAVEDER", "LOCPOT",  # VASP
    "*_WFK", "*_DEN", "*_POT", "*_1WF*", "*_GSR.nc", "*_WFK.nc", "*_DEN.nc",  # ABINIT
    "*.wfn*", "*.kp*", "*.gpw", "*.gbw", "*.tmp", "*.DM", "*.HSX", "*.RHO", "*.check", "*.castep_bin", "charges.bin",
)  # fmt: skip
_CLEANED: set[str] = set()
_LOCK = threading.Lock()


class Scratch:
    """A new folder for one calculation. The first one of a process removes those that killed programs have left.

    Parameters
    ----------
    parent
        Where it is made; None for the system's folder for temporary files.

    Raises
    ------
    OracleError
        No folder can be made there.
    """

    def __init__(self, parent: str | None) -> None:
        where = os.path.abspath(parent or tempfile.gettempdir())
        with _LOCK:
            if where not in _CLEANED:
                _CLEANED.add(where)
                _remove_abandoned(Path(where))
        try:
            made = Path(tempfile.mkdtemp(prefix=_NEW, dir=where))
        except OSError as error:
            raise OracleError(f"scratch: no folder can be made in {parent or where}: {error.strerror}") from error
        self._lock = _lock(made)
        # Only now may others look whether it is locked.
        self.path = made.rename(made.with_name(made.name.replace(_NEW, _RUNNING, 1)))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def keep(self, output: bytes, everything: bool) -> Path | None:
        """Keep the folder under another name, and return that; None if there is nothing in it.

        Parameters
        ----------
        output
            What the calculation has printed, which becomes ``output.txt``.
        everything
            Keep wavefunctions and densities, too.
        """
        kept = self.path.with_name(self.path.name.replace(_RUNNING, _KEPT, 1))
        with contextlib.suppress(OSError):  # the disk may be full
            if not everything:
                _remove_heavy(self.path)
            if output:
                (self.path / "output.txt").write_bytes(output)
        try:
            if any(self.path.iterdir()):
                return self.path.rename(kept)
        except OSError:  # something else has removed it
            pass
        finally:
            self._unlock()
        shutil.rmtree(self.path, ignore_errors=True)
        return None

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(folder: Path) -> int | None:
    """Lock a folder and return the descriptor that holds the lock; None if another program has it, or nobody can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders that were in use by programs of this machine that have ended."""
    for folder in parent.glob(f"{_RUNNING}*"):
        descriptor = _lock(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _remove_heavy(folder: Path) -> None:
    for pattern in _HEAVY:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
