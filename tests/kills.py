"""Every file operation of a program in a folder as a moment at which it may be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

# What changes a folder; os.open where it may make a file.
_OPERATIONS = ("open", "write", "replace", "rename", "truncate", "ftruncate", "unlink", "remove", "mkdir")
_write = os.write


@dataclass
class Killed:
    """What is left of a program that was killed, before which moment, and what the program said of itself then."""

    folder: Path
    n: int
    before: str
    said: str

    def __str__(self):
        return f"{self.n}: killed before {self.before}, at {self.said}"


@contextlib.contextmanager
def seen(folder, act):
    """Call ``act(n, what)`` before every file operation in `folder`, n = 1, 2, ..., and in the middle of every write.

    Nobody reads a file that is to replace another one before it has that name: writing to it is left out. Operations of
    several threads come one after the other. What `act` does itself is not seen.
    """
    lock, count, busy = threading.RLock(), [0], [False]

    def tell(what):
        count[0] += 1
        busy[0] = True
        try:
            act(count[0], what)
        finally:
            busy[0] = False

    def seeing(name, real):
        def call(*args, **keywords):
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **keywords)
            path = _path(args[0], keywords.get("dir_fd", keywords.get("src_dir_fd")))
            if not path.startswith(str(folder)):
                return real(*args, **keywords)
            with lock:
                if busy[0]:
                    return real(*args, **keywords)
                target = args[1] if name in ("replace", "rename") else path
                if name == "write" and path.endswith(".part"):  # nobody reads it before it has its name
                    return real(*args, **keywords)
                tell(f"{name} {Path(target).name}")
                if name != "write" or len(args[1]) < 2:
                    return real(*args, **keywords)
                half = real(args[0], args[1][: len(args[1]) // 2])
                tell(f"the second half of {Path(path).name}")
                return half + real(args[0], args[1][half:])

        return call

    real = {name: getattr(os, name) for name in _OPERATIONS}
    try:
        for name in _OPERATIONS:
            setattr(os, name, seeing(name, real[name]))
        yield
    finally:
        for name in _OPERATIONS:
            setattr(os, name, real[name])


def _path(path, folder):
    """Return the path that a function of `os` was given: it may be a file's number, or relative to a folder's."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    path = os.fspath(path)
    return path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)


def copied(folder, copies, work, say, wanted):
    """Do ``work()``; return what kills at the `wanted` moments would leave: copies of the folder as it is then.

    ``say()`` returns what the program says of itself.
    """
    found = []

    def act(n, what):
        if wanted(n):
            found.append(Killed(copies / f"{n}", n, what, say()))
            if folder.exists():
                shutil.copytree(folder, found[-1].folder)

    with seen(folder, act):
        work()
    return found


def killed(folder, work, say, at):
    """Do ``work()`` in a forked process and SIGKILL it at moment `at`; return what is left, None if it ends before."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)

            def act(n, what):
                if n == at:
                    _write(writing, f"{what}\n{say()}".encode())
                    os.kill(os.getpid(), signal.SIGKILL)

            with seen(folder, act):
                work()
            os._exit(0)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        told = file.read().decode()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        before, said = told.split("\n")
        return Killed(folder, at, before, said)
    assert os.WEXITSTATUS(status) == 0, "the program failed before it was killed"
    return None
