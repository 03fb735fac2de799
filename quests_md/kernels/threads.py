"""Threads over ranges of rows.

Kernels are compiled for one thread, and release the interpreter's lock. So nothing is compiled twice, and no result
depends on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

__all__ = ["all_cores", "over_rows"]


def all_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="quests_md")


if hasattr(os, "register_at_fork"):  # a forked child has none of the parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def over_rows(task: Callable[[int, int], None], n: int, threads: int | None, block: int) -> None:
    """Call ``task(first, last)`` for blocks of the rows 0..n, on `threads` threads (None: all cores).

    A task must give the same results for any blocks. `block` is about the least number of rows that are worth a thread.
    """
    threads = all_cores() if threads is None else threads
    if threads <= 1 or n <= block:
        if n > 0:
            task(0, n)
        return
    # Each thread gets the same number of blocks. A few of them even out rows that take different times; they have about
    # `block` rows or more, so that few tiles are cut.
    count = min(4, -(-n // (block * threads))) * threads
    step = -(-n // count)
    bounds = [(first, min(first + step, n)) for first in range(0, n, step)]
    for _ in _pool(threads).map(lambda ends: task(*ends), bounds):
        pass
