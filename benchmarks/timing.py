"""Seconds of calls, taken in turn, so that a busy machine is unfair to all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

__all__ = ["REST", "THREADS", "alternate", "median_of", "seconds"]

# What sets the threads of numba and of the BLAS behind numpy, if it is set before they are loaded.
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

REST = 0.05  # s; idle threads of OpenMP and OpenBLAS spin for a while, on the core that the next call needs
CALLS = 3  # timed in a row


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_of(call: Callable[[], Any], repetitions: int) -> float:
    """Return the median seconds of a call."""
    return statistics.median(seconds(call) for _ in range(repetitions))


def alternate(calls: dict[str, Callable[[], Any]], repetitions: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Call all in turn, several times: return their results and median seconds. The first turn warms up.

    The first call after a rest takes up to twice as long with two threads: they wake up. So a call that is not timed
    goes first, for all alike.
    """
    results = {name: call() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            time.sleep(REST)
            call()
            times[name] += [seconds(call) for _ in range(CALLS)]
    return results, {name: statistics.median(values) for name, values in times.items()}
