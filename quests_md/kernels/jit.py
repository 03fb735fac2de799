"""The flags of the compiler and its cache, in this one place; and the notice that something compiles."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import event

# Plain fastmath=True also promises "no inf, no nan". But the logarithm of an empty kernel sum, -inf, is an answer.
_FLAGS = {"nsz", "arcp", "contract", "afn", "reassoc"}

# Seconds that compiling takes before a watched run, roughly. `python -m benchmarks start` measures them.
_COMPILING = 20
_kept = True  # whether a folder keeps the compiled code


@lru_cache(maxsize=1)
def _stamp() -> str:
    """Return a short hash of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function`, and keep the machine code on disk if a folder is writable."""
    # numba names the kept code after the function. It checks whether the file of the function has changed, but not the
    # files of the kernels that it calls. With the hash of all of them in the name, old code never runs.
    function.__qualname__ += f"-{_stamp()}"
    options: dict[str, Any] = {"nogil": True, "fastmath": _FLAGS, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError as error:  # numba's word for "no writable folder for the cache"
        if "cannot cache" not in str(error):
            raise
        global _kept
        _kept = False
        return numba.njit(**options)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` part of the kernels that call it.

    This is for small functions with many arrays in a hot loop: a call counts references to each array, up and down.
    """
    return numba.njit(inline="always")(function)


class _Announcer(event.Listener):  # type: ignore[misc] # numba has no types
    """Says once that a kernel will be compiled. numba calls it when the cache has no code that fits."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, happening: Any) -> None:
        ours = happening.data["dispatcher"].py_func.__module__.startswith(f"{__package__}.")
        if not ours or self._said:
            return
        self._said = True
        text = f"compiling once for this machine, about {_COMPILING} s ..."
        if not _kept:
            text = f"compiling, about {_COMPILING} s; NUMBA_CACHE_DIR can name a folder that keeps the result ..."
        print(f"quests_md: {text}", file=sys.stderr, flush=True)

    def on_end(self, happening: Any) -> None:
        pass


@lru_cache(maxsize=1)
def announce_compiling() -> None:
    """From now on, say on stderr that a kernel has to be compiled. Say it once: kernels compile one after the other."""
    event.register("numba:compile", _Announcer())
