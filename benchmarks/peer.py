"""The package ``quests``, as the benchmarks call it."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from numba.core.errors import NumbaPerformanceWarning
from quests.entropy import delta_entropy

from .silicon import BANDWIDTH
from .timing import seconds

__all__ = ["BANDWIDTH", "DEFAULT_BATCH", "best_batch", "delta_entropy"]

warnings.simplefilter("ignore", NumbaPerformanceWarning)  # of quests, which multiplies slices of arrays

DEFAULT_BATCH = 20000
BATCHES = (64, 256, 1024, DEFAULT_BATCH)


def best_batch(query: Any, reference: Any, repetitions: int = 3) -> int:
    """Return the batch size at which quests computes dH fastest here."""
    taken = {}
    for batch in BATCHES:
        call = partial(delta_entropy, query, reference, BANDWIDTH, batch)
        taken[batch] = min(seconds(call) for _ in range(repetitions))
    return min(taken, key=taken.__getitem__)
