"""The session of a host: a given one, or one that is opened from a configuration in the process that runs.

A host that holds a configuration can be pickled. In each process that unpickles it, the first frame opens a session.
Processes of a pool end without ``atexit``; so this file sees to their end, too.
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

__all__ = ["FIELDS", "Opening", "check_steering"]

# The fields that `output` may hold in braces, with a value of each to try.
FIELDS: dict[str, Any] = {"pid": 4711, "host": "node1", "n": 0}


class Opening:
    """A session, or the configuration from which one is opened when it is needed.

    A pickle holds the configuration alone: an unpickled object opens a session of its own, and so does a child of
    ``fork``. All who share this object share the session.

    Parameters
    ----------
    given
        A Session, or a configuration: a RunConfig, the path of a quests.toml, or a mapping of its keys. Its `output`
        may hold the fields {pid} and {host}, the id of the process and the name of the computer that open the session,
        and {n}, the number of sessions that this process has opened by this `output` before.
    host
        Name of the program that moves the atoms, for run.json.
    steers
        Whether the host adds the forces of a bias: others refuse a session or configuration that has one.
    joins
        Use the session that this process already has open in the same folder by the same configuration. Only for hosts
        that take their steps from ``session.counter``: the steps of others would mix.

    Attributes
    ----------
    config
        The configuration, or None.

    Raises
    ------
    ConfigError
        The configuration is wrong, or a field of `output` is unknown.
    InputError
        `given` is something else.
    """

    def __init__(self, given: Any, host: str, *, joins: bool, steers: bool = False) -> None:
        self._session: Session | None = None
        self.config: RunConfig | None = None
        self._opened: _Opened | None = None
        self._host, self._joins, self._steers = host, joins, steers
        if isinstance(given, Session):
            check_steering(given.steering is not None, steers)
            given.host = host
            self._session = given
        else:
            self.config = _make_config(given)
            check_steering(self.config.bias is not None, steers)
            self._fields = _read_fields(self.config.output)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was given. A session refuses that."""
        return _open_again, (self._session or self.config, self._host, self._joins, self._steers)

    @property
    def current(self) -> Session | None:
        """The session if it is open; this does not open one."""
        opened = self._find_opened()
        return self._session if opened is None else opened.session

    @contextlib.contextmanager
    def watching(self, by: object) -> Iterator[Session]:
        """Yield the session, and open it for `by` if it is not open yet. Nothing ends it in the meantime.

        Raises
        ------
        QuestsError
            It cannot be opened: what ``Session.from_config`` raises.
        """
        if self._session is not None:
            yield self._session
            return
        with _hold_end():
            with _process.lock:
                opened = self._find_opened()
                if opened is None:
                    opened = self._opened = self._open(by)
            with opened.lock:  # a worker of Dask has several threads
                yield opened.session

    def close(self, by: object) -> None:
        """End the session if `by` has opened it and it has not ended yet."""
        opened = self._find_opened()
        if opened is not None and opened.opener() is by:
            with _hold_end():
                opened.end()

    def _find_opened(self) -> _Opened | None:
        """Return what this process has open, or None. A closed session, and one of the parent process, do not count."""
        opened = self._opened
        if opened is not None and (opened.is_over or opened.pid != os.getpid()):
            opened = self._opened = None
        return opened

    def _open(self, by: object) -> _Opened:
        assert self.config is not None
        pattern, n = self.config.output, _process.counts.get(self.config.output, 0)
        # Absolute, so that it is found again after the program has changed its working folder.
        folder = Path(pattern.format(pid=os.getpid(), host=socket.gethostname(), n=n)).absolute()
        known = _process.kept.get(folder)
        if known is not None and self._joins and known.config == self.config and known.can_go_on():
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
            raise OutputError(f"{error}; {_suggest_fields(pattern)}") from error
        _process.counts[pattern] = n + 1
        opened = _Opened(session, self.config, folder, by)
        if self._joins and "n" not in self._fields:
            _process.kept[folder] = opened  # until its opener closes it: the next task of a worker goes on with it
        return opened


def _open_again(given: Any, host: str, joins: bool, steers: bool) -> Opening:
    return Opening(given, host, joins=joins, steers=steers)


def check_steering(has_bias: bool, steers: bool) -> None:
    """Raise `InputError` if there is a bias that nobody would add, or none that a host could."""
    if has_bias and not steers:
        raise InputError("this host adds no forces, and the session has a bias: take BiasedCalculator, or leave it out")
    if steers and not has_bias:
        raise InputError("BiasedCalculator needs a session with a bias: bias = { strength = 0.1, ceiling = 10.0 }")


class _Opened:
    """A session that this process has opened. It is closed when nobody holds this object any more."""

    def __init__(self, session: Session, config: RunConfig, folder: Path, by: object) -> None:
        self.session, self.config, self._folder = session, config, folder
        self.opener = weakref.ref(by)
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.is_over = False
        _process.opened.add(self)
        # Not when the program ends: there the session itself knows whether it has failed.
        weakref.finalize(self, _close, session, self.pid).atexit = False

    def can_go_on(self) -> bool:
        """Return whether the session can go on: it runs, or it was halted."""
        try:
            self.session.check_running()
        except Halted:
            return True
        except MonitorError:
            return False
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Close the session; with an error that ends its process, let it fail."""
        self.is_over = True
        if _process.kept.get(self._folder) is self:
            del _process.kept[self._folder]
        if error is None:
            self.session.close()
        else:
            self.session.fail(error)


def _close(session: Session, pid: int) -> None:
    if pid == os.getpid():
        with _hold_end(), contextlib.suppress(QuestsError):  # the session has printed that it failed
            session.close()


# -- the configuration -------------------------------------------------------------------------------------------------


def _make_config(given: Any) -> RunConfig:
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


def _read_fields(pattern: str) -> set[str]:
    """Return the fields of `output`; `ConfigError` for one that is unknown."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
        pattern.format(**FIELDS)
    except (KeyError, IndexError, ValueError, AttributeError):
        fields = {""}
    if not fields <= FIELDS.keys():
        raise ConfigError(f"output: {pattern!r}: the fields are {', '.join(f'{{{name}}}' for name in FIELDS)}")
    return fields


def _suggest_fields(pattern: str) -> str:
    return (
        f"output = {pattern!r} is one folder for all; {{pid}} names one for each process and {{n}} one for each "
        f'calculator or observer of a process, as in output = "uq-{{pid}}-{{n}}"'
    )


# -- the end of a process ----------------------------------------------------------------------------------------------


class _Process:
    """What this process has opened, and the state of its end. A child begins with an empty one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.opened: weakref.WeakSet[_Opened] = weakref.WeakSet()
        self.kept: dict[Path, _Opened] = {}
        self.counts: dict[str, int] = {}
        self.is_followed = False
        self.pipe: tuple[int, int] | None = None  # through which a thread hears of signals
        self.quiet = threading.Condition()
        self.busy, self.is_ending = 0, False
        self.thread = threading.local()


_process = _Process()


def _forget() -> None:
    global _process
    pipe, _process = _process.pipe, _Process()
    if pipe is not None:  # a signal for this child would end the parent
        if signal.getsignal(signal.SIGTERM) is _handle_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for end in pipe:
            os.close(end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _hold_end() -> Iterator[None]:
    """Let the end by SIGTERM wait until this block is done, so that files are written whole."""
    process = _process  # a child that is forked in the block has another one
    depth = getattr(process.thread, "depth", 0)
    process.thread.depth = depth + 1
    if not depth:
        with process.quiet:
            process.quiet.wait_for(lambda: not process.is_ending)  # waits until the process ends
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
    """Make sure that the open sessions are closed when this process ends, if multiprocessing has started it.

    Such a process ends by ``os._exit``, which does not call ``atexit``. A pool ends its workers by one SIGTERM and then
    waits for them. A session alone would stop only at its next evaluation, and the pool would wait for ever.
    """
    if multiprocessing.parent_process() is None:
        return
    if not _process.is_followed:
        _process.is_followed = True
        multiprocessing.util.Finalize(None, _end_all, exitpriority=10)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and _process.pipe is None and sys.platform != "win32":
        handler = signal.getsignal(signal.SIGTERM)
        # A handler of ours is left from a session that the parent had at the fork.
        if handler is signal.SIG_DFL or (getattr(handler, "__module__", None) or "").startswith("quests_md."):
            _listen()


def _end_all() -> None:
    error = sys.exc_info()[1]  # the error that ends the process, if there is one
    if isinstance(error, SystemExit) and not error.code:
        error = None
    with _hold_end():  # the pool may send SIGTERM to a worker that is ending anyway
        _end_opened(error)


def _end_opened(error: BaseException | None = None) -> None:
    for opened in list(_process.opened):
        if not opened.is_over:
            with contextlib.suppress(QuestsError):  # the session has printed that it failed
                opened.end(error)


def _listen() -> None:
    """Let a thread close what is open when SIGTERM comes.

    Python calls its handlers in the main thread, between two steps of it. A worker that waits for its next task makes
    no step. So the thread waits at a pipe, to which the system writes as soon as the signal comes.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    if before != -1:  # that of an event loop, which keeps it
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
        return
    _process.pipe = read, write
    signal.signal(signal.SIGTERM, _handle_signal)
    threading.Thread(target=_end_at_signal, args=(_process, read), name="quests_md SIGTERM", daemon=True).start()


def _handle_signal(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal does not wait


def _end_at_signal(process: _Process, read: int) -> None:
    while os.read(read, 1) != bytes([signal.SIGTERM]):
        pass
    process.thread.depth = 1  # this thread may close what is garbage by now, and must not wait for itself
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
    os._exit(128 + signal.SIGTERM)  # if the main thread has not called the handler yet


def _is_working(frame: Any) -> bool:
    """Return whether a signal has interrupted a simulation; if not, the worker was idle."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("ase.") or name == "quests_md.hosts.ase":
            return True
        frame = frame.f_back
    return False
