"""A folder that one program holds: its lock, and files in it that grow, shrink and are replaced without loss."""

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
            if self._process == os.getpid():  # forks have this lock, too: it must not last as long as they do
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


class HeldFolder:
    """The output folder of a run, held open: what is written goes to this folder, whatever its name leads to by then.

    Before every write the folder's name, and the file's, must still lead to what was written before: a folder that was
    renamed, removed or replaced, and a file that was taken out, emptied or written to by somebody else, is an error.
    So the files of two runs never mix, and nothing that is lost goes unnoticed.

    Parameters
    ----------
    path
        The folder. Nothing is touched before `claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None
        self._handle: int | None = None
        self._identity: tuple[int, int] | None = None
        self._known: dict[str, tuple[int, int]] = {}  # inode and size of every file that was written or taken over

    def claim(self) -> None:
        """Make the folder if it is not there, lock it, and hold it.

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
        """Hold a folder that is there, without its lock: another rank has that. `OSError` if it is not."""
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
        """Raise `OutputError` if the folder's name no longer leads here, or, if asked, a file is gone."""
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
            self._is_ours(name)

    # -- what is there ---------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        return self._stat(name) is not None

    def names(self) -> list[str]:
        """Return the names of all that is in the folder."""
        return os.listdir(self.path if self._handle is None else self._handle)

    def open(self, name: str) -> BinaryIO:
        """Open a file to read it; `OSError` if that cannot be done."""
        return os.fdopen(self._open(name, os.O_RDONLY), "rb")

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; 0 if it is not there."""
        found = self._stat(name)
        return 0 if found is None else found.st_size

    def adopt(self, name: str) -> None:
        """Take over a file that is there: from now on it must stay as this program leaves it."""
        found = self._stat(name)
        if found is not None:
            self._known[name] = found.st_ino, found.st_size

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, name: str, parts: Iterable[bytes], head: bytes = b"") -> int:
        """Add a record, given in parts, to a file; where it is the first one, `head` before it. Return its bytes.

        Raises
        ------
        OutputError
            It cannot be written, or the file is not as it was left: it is as it was before then, or not there.
        """
        self.check()
        try:
            known = self._known.get(name)
            # Not open(): its checks take longer than the writing of a row, and there may be a row for every step.
            make = os.O_CREAT | os.O_EXCL if known is None else 0
            file = self._open(name, os.O_WRONLY | os.O_APPEND | make)
            try:
                found = os.fstat(file)
                if known is not None and known != (found.st_ino, found.st_size):
                    raise OutputError(self._not_ours(name, found.st_ino == known[0]))
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
        """Make this the content of a file, atomically; `OutputError` as for `append`. The disk has it by then.

        Unless it `is_checked`, it is written where the folder is now: for the last word of a run.
        """
        if is_checked:
            self.check()
            if name in self._known:
                self._is_ours(name)
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
        """Keep the first `size` bytes of a file, and no empty one. Return how many were cut off.

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
        """Keep these pieces of a file, each from its first byte on so many, atomically; without any, no file."""
        whole, end = self.size(name), 0
        if pieces and all(first == end_before for (first, _), end_before in zip(pieces, _ends(pieces), strict=True)):
            end = sum(size for _, size in pieces)
        if end or not pieces:  # the beginning of it is kept
            self.cut(name, end)
        elif sum(size for _, size in pieces) < whole:
            with self.open(name) as old:
                self.replace(name, _pieces(old, pieces))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there; `OutputError` if that cannot be done."""
        self._known.pop(name, None)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._unlink(name)
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be removed: {error.strerror or error}") from error

    def rename(self, name: str, to: str) -> None:
        """Give a file another name, in the place of the one that has it."""
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

    def _is_ours(self, name: str) -> None:
        """Raise `OutputError` if a file that was written is gone, or another one."""
        found, (inode, size) = self._stat(name), self._known[name]
        if found is None:
            raise OutputError(f"{self.path / name}: the file was taken away while the run wrote to it")
        if stat.S_ISREG(found.st_mode) and (found.st_ino, found.st_size) != (inode, size):
            raise OutputError(self._not_ours(name, found.st_ino == inode))

    def _not_ours(self, name: str, is_same: bool) -> str:
        what = "was changed" if is_same else "was replaced"
        return f"{self.path / name}: the file {what} by somebody else while the run wrote to it"


def _write(file: int, parts: Iterable[bytes]) -> int:
    """Write all parts; return how many bytes they have."""
    written = 0
    for part in parts:
        rest = memoryview(part)
        while rest:  # one call writes at most 2 GiB, and less where the disk is nearly full
            done = os.write(file, rest)
            rest, written = rest[done:], written + done
    return written


def _ends(pieces: Sequence[tuple[int, int]]) -> list[int]:
    """Return where each piece would begin if they followed each other from the first byte on."""
    return [0, *itertools.accumulate(size for _, size in pieces[:-1])]


def _pieces(file: BinaryIO, pieces: Sequence[tuple[int, int]], most: int = 1 << 20) -> Iterable[bytes]:
    for first, size in pieces:
        file.seek(first)
        while size:
            part = file.read(min(size, most))
            if not part:
                break
            size -= len(part)
            yield part
