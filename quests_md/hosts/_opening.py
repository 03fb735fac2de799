"""The session of a host: one that it was given, or one that is opened from a configuration in the process that runs.

What holds a configuration can be pickled: whoever unpickles it, in whatever process, opens a session of its own when
the first frame comes. Processes of a pool end without Python's own end (``atexit``), so theirs is followed here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import string
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import ConfigError, Halted, InputError, MonitorError, OutputError, QuestsError
from ..recording import Session

__all__ = ["FIELDS", "Opening"]

# What `output` may hold in braces, and what it might be.
FIELDS: dict[str, Any] = {"pid": 4711, "host": "node1", "n": 0}


class Opening:
    """A session, or the configuration that one is opened from when it is needed.

    A pickle holds the configuration alone, and what is unpickled opens a session of its own. So does a child of
    ``fork``. Whoever shares this object shares the session.

    Parameters
    ----------
    given
        A Session, or a configuration: a RunConfig, the path of a quests.toml, or a mapping of its keys. Its `output`
        may hold the fields {pid}, {host} and {n}: the id of the process and the name of the computer that open the
        session, and how many have been opened by this `output` in that process before, from 0.
    host
        What run.json names as the program that moves the atoms.
    joins
        Take part in the session that this process has open in the same folder by the same configuration. For
        hosts that take their steps from ``session.counter``: of others the steps would mix.

    Attributes
    ----------
    config
        The configuration, or None.

    Raises
    ------
    ConfigError
        The configuration is wrong, or a field of `output` unknown.
    InputError
        `given` is something else.
    """

    def __init__(self, given: Any, host: str, *, joins: bool) -> None:
        self._session: Session | None = None
        self.config: RunConfig | None = None
        self._opened: _Opened | None = None
        self._host, self._joins = host, joins
        if isinstance(given, Session):
            given.host = host
            self._session = given
        else:
            self.config = _config_of(given)
            self._fields = _fields_of(self.config.output)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was given: a session refuses."""
        return _open_again, (self._session or self.config, self._host, self._joins)

    @property
    def current(self) -> Session | None:
        """The session, if there is one by now; asking opens none."""
        opened = self._valid()
        return self._session if opened is None else opened.session

    @contextlib.contextmanager
    def watching(self, by: object) -> Iterator[Session]:
        """Yield the session, opened for `by` if it is not there yet. Nothing ends it meanwhile.

        Raises
        ------
        QuestsError
            It cannot be opened: what ``Session.from_config`` raises.
        """
        if self._session is not None:
            yield self._session
            return
        with _whole():
            with _process.lock:
                opened = self._valid()
                if opened is None:
                    opened = self._opened = self._open(by)
            with opened.lock:  # workers of Dask have several threads
                yield opened.session

    def close(self, by: object) -> None:
        """End the session if `by` has opened it, and it has not ended yet."""
        opened = self._valid()
        if opened is not None and opened.opener() is by:
            with _whole():
                opened.end()

    def _valid(self) -> _Opened | None:
        """Return what is open; neither what was closed nor what the parent of this process has."""
        opened = self._opened
        if opened is not None and (opened.is_over or opened.pid != os.getpid()):
            opened = self._opened = None
        return opened

    def _open(self, by: object) -> _Opened:
        assert self.config is not None
        pattern, n = self.config.output, _process.counts.get(self.config.output, 0)
        # Absolute: so it is known again after the program has changed its folder.
        folder = Path(pattern.format(pid=os.getpid(), host=socket.gethostname(), n=n)).absolute()
        known = _process.kept.get(folder)
        if known is not None and self._joins and known.config == self.config and known.goes_on():
            return known
        _follow_end()
        was_there = folder.exists()
        try:
            config = self.config.model_copy(update={"output": str(folder)})
            session = Session.from_config(config, host=self._host)
        except OutputError as error:
            missing = [field for field in ("pid", "n") if field not in self._fields]
            if not was_there or not missing:
                raise
            raise OutputError(f"{error}; {_hint(pattern)}") from error
        _process.counts[pattern] = n + 1
        opened = _Opened(session, self.config, folder, by)
        if self._joins and "n" not in self._fields:
            _process.kept[folder] = opened  # until its opener closes it: the next task of a worker goes on with it
        return opened


def _open_again(given: Any, host: str, joins: bool) -> Opening:
    return Opening(given, host, joins=joins)


class _Opened:
    """A session that this process has opened; it is closed when nobody holds this any more."""

    def __init__(self, session: Session, config: RunConfig, folder: Path, by: object) -> None:
        self.session, self.config, self._folder = session, config, folder
        self.opener = weakref.ref(by)
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.is_over = False
        _process.opened.add(self)
        # Not at the exit of a program: there the session itself knows whether it has failed.
        weakref.finalize(self, _close, session, self.pid).atexit = False

    def goes_on(self) -> bool:
        """Return whether the session has not ended; a halted one has not."""
        try:
            self.session.check_running()
        except Halted:
            return True
        except MonitorError:
            return False
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Close the session, or end it for an error that ends its process."""
        self.is_over = True
        if _process.kept.get(self._folder) is self:
            del _process.kept[self._folder]
        if error is None:
            self.session.close()
        else:
            self.session.fail(error)


def _close(session: Session, pid: int) -> None:
    if pid == os.getpid():
        with _whole(), contextlib.suppress(QuestsError):  # the session has printed that it failed
            session.close()


# -- the configuration -----------------------------------------------------------------------------------


def _config_of(given: Any) -> RunConfig:
    if isinstance(given, RunConfig):
        return given
    if isinstance(given, str | Path):
        return RunConfig.read(given)
    if isinstance(given, Mapping):
        return RunConfig.make(dict(given), where="the configuration")
    raise InputError(
        "session must be a Session or a configuration (a RunConfig, the path of a quests.toml, or a mapping of its "
        f"keys), not {type(given).__name__}"
    )


def _fields_of(pattern: str) -> set[str]:
    """Return the fields of `output`; `ConfigError` for one that is unknown."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
        pattern.format(**FIELDS)
    except (KeyError, IndexError, ValueError, AttributeError):
        fields = {""}
    if not fields <= FIELDS.keys():
        raise ConfigError(f"output: {pattern!r}: the fields are {', '.join(f'{{{name}}}' for name in FIELDS)}")
    return fields


def _hint(pattern: str) -> str:
    return (
        f"output = {pattern!r} is one folder for all, where {{pid}} names one for each process and {{n}} one for each "
        f'calculator or observer of a process, as in output = "uq-{{pid}}-{{n}}"'
    )


# -- the end of a process --------------------------------------------------------------------------------


class _Process:
    """What this process has opened, and how it ends; a child begins with nothing."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.opened: weakref.WeakSet[_Opened] = weakref.WeakSet()
        self.kept: dict[Path, _Opened] = {}
        self.counts: dict[str, int] = {}
        self.is_followed = False
        self.pipe: tuple[int, int] | None = None  # tells a thread of signals
        self.quiet = threading.Condition()
        self.busy, self.is_ending = 0, False
        self.thread = threading.local()


_process = _Process()


def _forget() -> None:
    global _process
    pipe, _process = _process.pipe, _Process()
    if pipe is not None:  # the parent would end at a signal for this child
        if signal.getsignal(signal.SIGTERM) is _on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for end in pipe:
            os.close(end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Let the end by SIGTERM wait: files are written whole."""
    process = _process  # a child that is forked meanwhile has another one
    depth = getattr(process.thread, "depth", 0)
    process.thread.depth = depth + 1
    if not depth:
        with process.quiet:
            process.quiet.wait_for(lambda: not process.is_ending)  # for ever: the process ends
            process.busy += 1
    try:
        yield
    finally:
        if not depth:
            with process.quiet:
                process.busy -= 1
                process.quiet.notify_all()
        process.thread.depth = depth


def _follow_end() -> None:
    """Let the end of a process that multiprocessing has started end what it has opened.

    It leaves by ``os._exit``, so that ``atexit`` does nothing. And a pool ends its workers by a single SIGTERM and
    waits for them: a session that only stops at its next evaluation would let it wait for ever.
    """
    if multiprocessing.parent_process() is None:
        return
    if not _process.is_followed:
        _process.is_followed = True
        multiprocessing.util.Finalize(None, _end_all, exitpriority=10)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and _process.pipe is None and sys.platform != "win32":
        handler = signal.getsignal(signal.SIGTERM)
        # A handler of ours is that of a session which the parent had at the fork.
        if handler is signal.SIG_DFL or (getattr(handler, "__module__", None) or "").startswith("quests_md."):
            _listen()


def _end_all() -> None:
    error = sys.exc_info()[1]  # what ends the process, if it is that
    if isinstance(error, SystemExit) and not error.code:
        error = None
    with _whole():  # a pool that is left sends SIGTERM to workers that are ending anyway
        _end_opened(error)


def _end_opened(error: BaseException | None = None) -> None:
    for opened in list(_process.opened):
        if not opened.is_over:
            with contextlib.suppress(QuestsError):  # the session has printed that it failed
                opened.end(error)


def _listen() -> None:
    """Let a thread end what is open at SIGTERM.

    Python calls handlers in the main thread, between two steps of it: not in a worker that has just begun to wait for
    its next task when the signal comes. What the system calls at once writes to a pipe.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    if before != -1:  # of an event loop
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
        return
    _process.pipe = read, write
    signal.signal(signal.SIGTERM, _on_signal)
    threading.Thread(target=_end_at_signal, args=(_process, read), name="quests_md SIGTERM", daemon=True).start()


def _on_signal(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait


def _end_at_signal(process: _Process, read: int) -> None:
    while os.read(read, 1) != bytes([signal.SIGTERM]):
        pass
    process.thread.depth = 1  # what is collected meanwhile is closed, too
    is_working = _is_working(sys._current_frames().get(threading.main_thread().ident or 0))
    with process.quiet:
        process.is_ending = True
        process.quiet.wait_for(lambda: not process.busy)
    for opened in list(process.opened):
        session = opened.session
        if is_working and session.status == "running":
            session.status, session.reason = "halted", "SIGTERM"
    _end_opened()
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(128 + signal.SIGTERM)  # the main thread has not yet come to call the handler


def _is_working(frame: Any) -> bool:
    """Return whether a signal has interrupted a simulation: an idle worker has finished what it had."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("ase.") or name == "quests_md.hosts.ase":
            return True
        frame = frame.f_back
    return False
