"""Writing so that nothing is lost: whole files atomically, growing files append-safely."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError

__all__ = ["AppendOnly", "write_atomically"]


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


class AppendOnly:
    """A file that grows by whole records and is made by the first one.

    A record that cannot be written in full (a full disk) is cut off again, so what was written before stays
    readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
