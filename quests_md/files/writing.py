"""Write files safely: a whole file (either the old or the new one exists), and records in a file that grows."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError

__all__ = ["open_atomically", "pack", "unpack", "write_atomically"]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`: either the old file or the whole new one exists.

    Raises
    ------
    OutputError
        The file cannot be written; nothing is left behind.
    """
    with open_atomically(path) as file:
        write(file)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, and move it to `path` when the block ends without an error; as `write_atomically`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_get_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- records -----------------------------------------------------------------------------------------------------------

_KINDS = "biuf"  # numpy's letters for bool, int, unsigned int and float


def pack(values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """Return a record in parts. JSON must be able to hold `values`; `arrays` are of numbers or truth values."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = [[name, array.dtype.str, list(array.shape)] for name, array in whole.items()]
    head = json.dumps({"values": values, "arrays": layout}).encode()
    parts = [head, *(array.tobytes() for array in whole.values())]
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    return [f"{len(head)} {sum(map(len, parts))} {check}\n".encode(), *parts]


def unpack(file: BinaryIO) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    """Yield the values and arrays of each record in a file, up to the first incomplete or damaged one."""
    while line := file.readline(80):
        try:
            n_head, n_bytes, check = map(int, line.split())
        except ValueError:
            return
        if not 0 <= n_head <= n_bytes:
            return
        body = file.read(n_bytes)
        if len(body) < n_bytes or zlib.crc32(body) != check:
            return
        head = json.loads(body[:n_head])
        arrays, first = {}, n_head
        for name, kind, shape in head["arrays"]:
            dtype = np.dtype(kind)
            if dtype.kind not in _KINDS:
                return
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(body, dtype, count, first).reshape(shape).copy()
            first += count * dtype.itemsize
        yield head["values"], arrays
