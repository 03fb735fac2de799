"""The process that calculates, seen from the program that wants labels: it may crash, hang, or start others."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OracleError
from ..machine import inherit_environment

__all__ = ["Child", "Died", "TimedOut", "describe_end", "get_child", "guard_command", "kill_children", "name_signal"]

_GUARD = Path(__file__).with_name("_guard.py")
_LOOK = 0.5  # seconds between two looks whether the process lives
_MOST = 1 << 20  # bytes of the output of a process that are kept


def guard_command(command: Sequence[str] = ()) -> list[str]:
    """Return a command that runs a program under the guard; without a program, the process that calculates.

    Start it in a session of its own.
    """
    return [sys.executable, str(_GUARD), *command]


class Died(Exception):
    """The process ended before it answered; the message says how."""


class TimedOut(Exception):
    """The process was killed, because it took too long."""


class Child:
    """One process group: the guard, the process that calculates, and all that this one starts. They end together.

    Parameters
    ----------
    environment
        Variables for it, added to those of this process. Variables of an MPI job are left out.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        if sys.platform == "win32":
            raise OracleError("labelling needs process groups and pipes of Unix: it does not run on Windows")
        self.environment = dict(environment)
        self._last_words = b""
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - the output of the process, which shares its position
            self._process = subprocess.Popen(
                guard_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={**inherit_environment(), **environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a name or a value that no environment can hold
            raise OracleError(f"no process for the calculator can be started: {error}") from error
        self.kill = weakref.finalize(self, _end, self._process, self._said)
        _CHILDREN.add(self)

    @property
    def alive(self) -> bool:
        """Whether the process can answer."""
        return bool(self.kill.alive) and self._process.poll() is None

    def ask(self, task: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """Send a task to the process and return its answer.

        Raises
        ------
        Died, TimedOut
            It ended, or did not answer within `limit` (s). The whole group is killed.
        """
        self._said.seek(0)
        self._said.truncate()
        try:
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(task).encode() + b"\n")
                self._process.stdin.flush()
                answer: dict[str, Any] = json.loads(self._line(limit))
            except (BrokenPipeError, EOFError):
                how = describe_end(self._process.wait())
                raise Died(f"its process {how}") from None
        except BaseException:
            self._last_words = self.said()
            self.kill()
            raise
        return answer

    def stop(self) -> None:
        """Kill the group. A thread that waits for an answer gets `Died`."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def said(self) -> bytes:
        """Return the end of what the process has printed since the last task."""
        if not self.kill.alive:
            return self._last_words
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), _MOST, max(size - _MOST, 0))

    def _line(self, limit: float) -> bytes:
        assert self._process.stdout is not None
        way, until, parts = self._process.stdout.fileno(), time.monotonic() + limit, [b""]
        poll = select.poll()
        poll.register(way, select.POLLIN)
        while not parts[-1].endswith(b"\n"):
            ended = self._process.poll() is not None
            left = until - time.monotonic()
            if not ended and left <= 0:
                raise TimedOut
            # Processes that it has forked hold the pipe open after its end.
            if not poll.poll(0 if ended else 1000 * min(left, _LOOK)):
                if ended:
                    raise EOFError
                continue
            parts.append(os.read(way, 1 << 20))
            if not parts[-1]:
                raise EOFError
        return b"".join(parts)


_CHILDREN: weakref.WeakSet[Child] = weakref.WeakSet()
_LOCAL = threading.local()


def get_child(environment: Mapping[str, str]) -> Child:
    """Return the process of this thread, which lives as long as the thread; a new one if it has ended."""
    child: Child | None = getattr(_LOCAL, "child", None)
    if child is None or not child.alive or child.environment != environment:
        if child is not None:
            child.kill()
        child = _LOCAL.child = Child(environment)
    return child


def kill_children() -> None:
    """Kill the processes of all threads. Those who wait for an answer get `Died`."""
    for child in list(_CHILDREN):
        child.stop()


def _end(process: subprocess.Popen[bytes], said: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # something could not be written to it any more
                pipe.close()
    said.close()


def describe_end(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by signal {-code} ({name_signal(-code)})"


def name_signal(number: int) -> str:
    """Return the name of a signal; some have none, such as those for real-time programs."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
