"""The one place that owns the flags of the compiler, its cache, and the threads.

Kernels are compiled once for one thread and release the interpreter's lock; threads are ours, over ranges of rows.
So a result never depends on the number of threads, and nothing has to be compiled twice.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import event

# Plain fastmath=True also promises "no inf, no nan", but the logarithm of an empty kernel sum, -inf, is an answer.
_FLAGS = {"nsz", "arcp", "contract", "afn", "reassoc"}

# Seconds that compiling takes before a watched run, roughly; `python -m benchmarks start` measures it.
_COMPILING = 20
_kept = True  # whether there is a folder that keeps what is compiled


@lru_cache(maxsize=1)
def _stamp() -> str:
    """Return a short hash of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function`, and keep the machine code on disk where a folder is writable."""
    # numba names what it keeps after the function and asks whether the file of that function has changed, not those
    # of the kernels compiled into it. With this in the name, no code of an earlier version is ever run.
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

    For small functions of a hot loop that take many arrays: a call counts references to each of them, up and down.
    """
    return numba.njit(inline="always")(function)


class _Announcer(event.Listener):  # type: ignore[misc] # numba has no types
    """Says, once, that a kernel is about to be compiled: numba tells when none is kept that fits."""

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
    """Say on stderr, from now on, when a kernel has to be compiled; only once, for they are compiled in a row."""
    event.register("numba:compile", _Announcer())


def all_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="quests_md")


if hasattr(os, "register_at_fork"):  # a forked child has none of the parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def over_rows(task: Callable[[int, int], None], n: int, threads: int | None, block: int) -> None:
    """Call ``task(first, last)`` over the rows 0..n in blocks, on `threads` threads (None: all cores)."""
    threads = all_cores() if threads is None else threads
    if threads <= 1 or n <= block:
        if n > 0:
            task(0, n)
        return
    # A few blocks per thread even out unequal rows, about `block` or more, so that few tiles are cut up; and as many
    # for every thread.
    count = min(4, -(-n // (block * threads))) * threads
    step = -(-n // count)
    bounds = [(first, min(first + step, n)) for first in range(0, n, step)]
    for _ in _pool(threads).map(lambda ends: task(*ends), bounds):
        pass
