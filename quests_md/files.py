"""Writing so that nothing is lost: files whole or append-safely, and a folder by one program at a time."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError

if sys.platform != "win32":
    import fcntl


__all__ = ["AppendOnly", "FolderLock", "write_atomically"]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there: there is the old file or the whole new one.

    Raises
    ------
    OutputError
        The file cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class FolderLock:
    """Keeps other programs from writing to a folder, until `release` or the end of this one, however it ends.

    The system's own lock of the folder, so nothing is left behind by a program that was killed. Where there is no such
    lock (some network file systems, systems that are not Unix) nothing is locked.

    Parameters
    ----------
    path
        The folder, which is there.

    Raises
    ------
    OutputError
        Somebody else has the lock.
    """

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        if sys.platform == "win32":
            return
        try:
            self._handle = os.open(path, os.O_RDONLY)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise OutputError(f"{path} is the output of another run that goes on: choose another output") from None
        except OSError:
            self.release()

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


class AppendOnly:
    """A file that grows by whole records and is made by the first one.

    A record that cannot be written in full (a full disk) is cut off again, so what was written before stays
    readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, size: int) -> int:
        """Keep the first `size` bytes, and no empty file. Return how many were cut off.

        Raises
        ------
        OutputError
            The file cannot be changed.
        """
        try:
            rest = self.path.stat().st_size - size if self.path.exists() else 0
            if rest > 0:
                os.truncate(self.path, size)
            if rest >= 0 and size == 0:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be cut: {error.strerror or error}") from error
        return rest

    def append(self, parts: Iterable[bytes], head: bytes = b"") -> int:
        """Add a record, given in parts; where it is the first one, `head` before it. Return how many bytes it took.

        Raises
        ------
        OutputError
            It cannot be written; the file is as it was before, or not there.
        """
        try:
            # Not open(): its checks take longer than the writing of a row, and there may be a row for every step.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            file = os.open(self.path, flags, 0o666)
            try:
                size = end = os.fstat(file).st_size
                try:
                    for part in itertools.chain([head] if size == 0 else [], parts):
                        rest = memoryview(part)
                        while rest:  # one call writes at most 2 GiB, and less where the disk is nearly full
                            written = os.write(file, rest)
                            rest, end = rest[written:], end + written
                except BaseException:
                    os.ftruncate(file, size)
                    if size == 0:
                        os.unlink(self.path)
                    raise
            finally:
                os.close(file)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        return end - size
