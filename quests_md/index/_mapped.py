"""Rows of an index that are a map of its file, and whether the file is still the same."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexFileError

__all__ = ["MappedFile", "State", "read_state"]

_CHUNK = 1 << 20  # bytes that are hashed at a time


class State(NamedTuple):
    """What tells one state of a file from another: it changes when the file is overwritten or truncated."""

    device: int
    inode: int
    size: int
    changed: int  # time of the last change, ns


def read_state(file: int) -> State:
    """Return the state of an open file."""
    found = os.fstat(file)
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class MappedFile:
    """An index file that is open as long as its rows are mapped, and tells whether it is still the same.

    The pages of a map are those of the file: who overwrites the file changes the rows. (A file that is moved or removed
    stays what it is.) A truncated file has no pages, and whoever reads them is killed by the system.

    Parameters
    ----------
    path
        The file, for messages.
    file
        Its descriptor, which may be closed later.
    first, size
        Where its rows are, in bytes.
    digest
        The SHA-256 of the rows.
    """

    def __init__(self, path: Path, file: int, first: int, size: int, digest: str) -> None:
        self._path, self._first, self._size, self._digest = path, first, size, digest
        self._file = os.dup(file)
        weakref.finalize(self, os.close, self._file)
        self._state = read_state(self._file)

    def __reduce__(self) -> Any:
        return type(None), ()  # an index that is pickled or copied holds its rows itself

    def map(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the rows, mapped."""
        try:
            with os.fdopen(os.dup(self._file), "rb") as file:
                return np.memmap(file, dtype, "r", self._first, shape).view(np.ndarray)
        except ValueError:  # the file is shorter than it was
            raise self._changed() from None

    def hash(self) -> str:
        """Return the SHA-256 of the rows, which are read and not mapped: so a truncated file does no harm."""
        digest, at, end = hashlib.sha256(), self._first, self._first + self._size
        while at < end and (part := os.pread(self._file, min(_CHUNK, end - at), at)):
            digest.update(part)
            at += len(part)
        return digest.hexdigest()

    def check(self) -> None:
        """Raise `IndexFileError` unless the rows are what they were. If only the time has changed, read them again."""
        state = read_state(self._file)
        if state == self._state:
            return
        if state.size != self._state.size or self.hash() != self._digest:
            raise self._changed()
        self._state = state

    def _changed(self) -> IndexFileError:
        return IndexFileError(
            f"{self._path}: the file was overwritten or truncated while it was in use: restore it from a copy, or "
            "build the index again, and start again. Replace an index file (mv), and never overwrite it (cp, rsync "
            "--inplace)"
        )
