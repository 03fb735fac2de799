"""A folder that belongs to one program: its lock, and files that are extended, shortened and replaced without loss."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError

if sys.platform != "win32":
    import fcntl

__all__ = ["FolderLock", "HeldFolder"]

_BINARY = getattr(os, "O_BINARY", 0)


class FolderLock:
    """Keep other programs from writing to a folder, until `release` or any end of this program.

    This is a lock of the operating system, so a killed program leaves nothing behind. Some network file systems and
    systems other than Unix have no such lock; there nothing is locked.

    Parameters
    ----------
    path
        An existing folder.

    Raises
    ------
    OutputError
        Another program has the lock.
    """

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        self._process = os.getpid()
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
            if self._process == os.getpid():  # closing is not enough: a fork has the lock, too, and would keep it
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


class HeldFolder:
    """The output folder of a run, held open, so that its files are written to it even after it was renamed.

    Before every write, the folder's name and the file's name must still lead to what was written before. It is an error
    if somebody has renamed, removed or replaced the folder, or has removed, emptied or changed a file. So the files of
    two runs never mix, and a loss is always noticed.

    Parameters
    ----------
    path
        The folder. Nothing is done before `claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None
        self._handle: int | None = None
        self._identity: tuple[int, int] | None = None
        self._known: dict[str, tuple[int, int]] = {}  # inode and size of every file that was written or adopted

    def claim(self) -> None:
        """Make the folder if it does not exist, lock it, and hold it.

        Raises
        ------
        OutputError
            Another program has the lock, or the folder cannot be used.
        """
        if self._identity is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
            self.hold()
        except OSError as error:
            self.release()
            raise OutputError(f"{self.path}: cannot be used as output folder: {error.strerror or error}") from error

    def hold(self) -> None:
        """Hold an existing folder without its lock, which another rank has; `OSError` if it does not exist."""
        if os.open in os.supports_dir_fd:
            self._handle = os.open(self.path, os.O_RDONLY)
        found = os.stat(self.path)
        self._identity = found.st_dev, found.st_ino

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        self._identity = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __del__(self) -> None:
        self.release()

    def check(self, every_file: bool = False) -> None:
        """Raise `OutputError` if the folder's name no longer leads here; with `every_file`, also if a file is gone."""
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise OutputError(
                f"{self.path}: the folder was renamed, removed or replaced while the run wrote to it: it must stay as "
                "it is until the run has ended. What was written is where the folder is now"
            )
        for name in self._known if every_file else ():
            self._check_file(name)

    # -- reading ---------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Return whether the file exists."""
        return self._stat(name) is not None

    def names(self) -> list[str]:
        """Return the names of everything in the folder."""
        return os.listdir(self.path if self._handle is None else self._handle)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; `OSError` if that fails."""
        return os.fdopen(self._open(name, os.O_RDONLY), "rb")

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; 0 if it does not exist."""
        found = self._stat(name)
        return 0 if found is None else found.st_size

    def adopt(self, name: str) -> None:
        """Take over a file, if it exists: from now on nobody else may change it."""
        found = self._stat(name)
        if found is not None:
            self._known[name] = found.st_ino, found.st_size

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, name: str, parts: Iterable[bytes], head: bytes = b"") -> int:
        """Append the parts of a record to a file; a new file gets `head` first. Return the number of bytes.

        Raises
        ------
        OutputError
            The record cannot be written, or somebody has changed the file. The file is then as it was before.
        """
        self.check()
        try:
            known = self._known.get(name)
            # os.open, because the checks of open() take longer than writing a row, and there may be a row every step.
            make = os.O_CREAT | os.O_EXCL if known is None else 0
            file = self._open(name, os.O_WRONLY | os.O_APPEND | make)
            try:
                found = os.fstat(file)
                if known is not None and known != (found.st_ino, found.st_size):
                    raise OutputError(self._say_changed(name, found.st_ino == known[0]))
                size = found.st_size
                try:
                    written = _write(file, itertools.chain([head] if size == 0 else (), parts))
                except BaseException:
                    os.ftruncate(file, size)
                    if known is None:
                        self._unlink(name)
                    raise
                self._known[name] = found.st_ino, size + written
            finally:
                os.close(file)
        except FileNotFoundError:
            raise OutputError(f"{self.path / name}: the file was taken away while the run wrote to it") from None
        except FileExistsError:
            raise OutputError(f"{self.path / name}: somebody else has made this file while the run went on") from None
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be written: {error.strerror or error}") from error
        return written

    def replace(self, name: str, parts: Iterable[bytes], is_checked: bool = True) -> None:
        """Replace the content of a file atomically, and wait for the disk; `OutputError` as for `append`.

        With ``is_checked=False`` the file is written even if somebody has moved the folder, or has changed the file.
        """
        if is_checked:
            self.check()
            if name in self._known:
                self._check_file(name)
        part = f"{name}.{os.getpid()}.part"
        try:
            file = self._open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                try:
                    size = _write(file, parts)
                    os.fsync(file)
                    inode = os.fstat(file).st_ino
                finally:
                    os.close(file)
                os.replace(self._name(part), self._name(name), src_dir_fd=self._handle, dst_dir_fd=self._handle)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._unlink(part)
                raise
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be written: {error.strerror or error}") from error
        self._known[name] = inode, size

    def cut(self, name: str, size: int) -> int:
        """Keep the first `size` bytes of a file, and remove an empty one. Return how many bytes were cut off.

        Raises
        ------
        OutputError
            The file cannot be changed.
        """
        rest = self.size(name) - size
        try:
            if size == 0:
                self.remove(name)
            elif rest > 0:
                file = self._open(name, os.O_WRONLY)
                try:
                    os.ftruncate(file, size)
                finally:
                    os.close(file)
                self.adopt(name)
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be cut: {error.strerror or error}") from error
        return max(rest, 0)

    def keep(self, name: str, pieces: Sequence[tuple[int, int]]) -> None:
        """Keep only these pieces of a file, atomically: (first byte, size) of each. Without pieces remove the file."""
        sizes = [size for _, size in pieces]
        if [first for first, _ in pieces] == [0, *itertools.accumulate(sizes[:-1])][: len(sizes)]:
            self.cut(name, sum(sizes))  # they are the beginning of the file
        elif sum(sizes) < self.size(name):
            with self.open(name) as old:
                self.replace(name, _read_pieces(old, pieces))

    def remove(self, name: str) -> None:
        """Remove a file, if it exists; `OutputError` if that fails."""
        self._known.pop(name, None)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._unlink(name)
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be removed: {error.strerror or error}") from error

    def rename(self, name: str, to: str) -> None:
        """Rename a file; a file that has the new name is replaced."""
        self.check()
        try:
            os.replace(self._name(name), self._name(to), src_dir_fd=self._handle, dst_dir_fd=self._handle)
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be renamed: {error.strerror or error}") from error
        self._known.pop(name, None)
        self.adopt(to)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _name(self, name: str) -> str:
        return name if self._handle is not None else str(self.path / name)

    def _open(self, name: str, flags: int) -> int:
        return os.open(self._name(name), flags | _BINARY, 0o666, dir_fd=self._handle)

    def _unlink(self, name: str) -> None:
        os.unlink(self._name(name), dir_fd=self._handle)

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(self._name(name), dir_fd=self._handle)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _check_file(self, name: str) -> None:
        """Raise `OutputError` if a file is gone, or somebody has changed or replaced it."""
        found, (inode, size) = self._stat(name), self._known[name]
        if found is None:
            raise OutputError(f"{self.path / name}: the file was taken away while the run wrote to it")
        if stat.S_ISREG(found.st_mode) and (found.st_ino, found.st_size) != (inode, size):
            raise OutputError(self._say_changed(name, found.st_ino == inode))

    def _say_changed(self, name: str, is_same: bool) -> str:
        what = "was changed" if is_same else "was replaced"
        return f"{self.path / name}: the file {what} by somebody else while the run wrote to it"


def _write(file: int, parts: Iterable[bytes]) -> int:
    """Write all parts; return their number of bytes."""
    written = 0
    for part in parts:
        rest = memoryview(part)
        while rest:  # one call writes at most 2 GiB, and less if the disk is nearly full
            done = os.write(file, rest)
            rest, written = rest[done:], written + done
    return written


def _read_pieces(file: BinaryIO, pieces: Sequence[tuple[int, int]], most: int = 1 << 20) -> Iterable[bytes]:
    for first, size in pieces:
        file.seek(first)
        while size:
            part = file.read(min(size, most))
            if not part:
                break
            size -= len(part)
            yield part
