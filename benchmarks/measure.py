"""What one process measures, at one number of threads. `__main__` starts one per number.

A process of its own, because the threads of numba and of the BLAS behind ``quests`` are best set by the
environment, before either is loaded.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from quests.descriptor import get_descriptors
from quests.entropy import delta_entropy as quests_delta_entropy

from quests_md import DescriptorSpec, Index, delta_entropy
from quests_md.frame import Frame

from .systems import System, systems

BANDWIDTH = 0.015
REPETITIONS = 7
REST = 0.05  # s; idle threads of OpenMP and OpenBLAS spin for a while, on the core that the next call needs
CALLS = 3  # timed in a row. A call before them, not timed, wakes the threads up
BATCHES = (64, 256, 1024, 20000)  # of quests; 20000 is its default


def main(threads: int) -> None:
    """Measure everything and print it as JSON."""
    result = {
        "flops": {"double": _peak_flops(np.float64), "single": _peak_flops(np.float32)},
        "bytes": _peak_bytes(),
        "systems": [_measure(system, threads) for system in systems()],
    }
    print(json.dumps(result))


def _measure(system: System, threads: int) -> dict[str, Any]:
    spec = DescriptorSpec()
    index = Index.build(system.reference, spec, BANDWIDTH, threads=threads)
    reference, query = spec.compute(system.reference, threads), spec.compute(system.query, threads)
    best = _best_batch(query, reference)
    # A descriptor is timed on a frame large enough that waking up after the rest is no part of it.
    large = system.query * (2, 2, 2)

    results, seconds = _alternate(
        {
            "descriptor": lambda: spec.compute(large, threads),
            "descriptor f32": lambda: spec._compute_one(Frame.from_atoms(large), threads, np.float32),
            "descriptor quests": lambda: _quests_descriptor(large),
            "dH": lambda: delta_entropy(query, reference, BANDWIDTH, threads=threads),
            "dH index": lambda: index.delta_entropy(query, threads),
            "dH index single": lambda: -index.log_kernel_sum(query, threads, precision="single"),
            "dH quests": lambda: quests_delta_entropy(query, reference, BANDWIDTH),
            "dH quests best": lambda: quests_delta_entropy(query, reference, BANDWIDTH, best),
        }
    )
    finite = np.isfinite(results["dH quests"])
    environments = {name: len(large) if name.startswith("descriptor") else len(query) for name in seconds}
    return {
        "name": system.name,
        "n_query": len(query),
        "n_large": len(large),
        "n_reference": len(reference),
        "batch": best,
        "microseconds": {name: 1e6 * value / environments[name] for name, value in seconds.items()},
        "agreement": {
            "descriptor": _difference(results["descriptor"], results["descriptor quests"]),
            "descriptor f32": _difference(results["descriptor f32"], results["descriptor quests"]),
            "dH": _difference(results["dH"][finite], results["dH quests"][finite]),
            "dH index": _difference(results["dH index"][finite], results["dH quests"][finite]),
            "dH index single": _difference(results["dH index single"][finite], results["dH index"][finite]),
        },
        "infinite": int(len(query) - finite.sum()),
    }


def _alternate(calls: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    """Call all in turn, several times: return their results and median seconds. The first turn warms up.

    The first call after a rest took up to twice as long with two threads, even with no other library's call before
    the rest. So a call that is not timed goes first, for all alike.
    """
    results = {name: call() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPETITIONS):
        for name, call in calls.items():
            time.sleep(REST)
            call()
            times[name] += [_seconds(call) for _ in range(CALLS)]
    return results, {name: statistics.median(values) for name, values in times.items()}


def _quests_descriptor(atoms: Atoms) -> Any:
    return get_descriptors([atoms], k=32, cutoff=5.0)


def _best_batch(query: Any, reference: Any) -> int:
    """Return the batch size at which quests computes dH fastest here."""
    seconds = {}
    for batch in BATCHES:
        call = partial(quests_delta_entropy, query, reference, BANDWIDTH, batch)
        seconds[batch] = min(_seconds(call) for _ in range(3))
    return min(seconds, key=seconds.__getitem__)


def _difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def _peak_flops(dtype: Any) -> float:
    """Return the operations per second of this process's best matrix product (all its threads)."""
    a = np.random.default_rng(0).random((1536, 1536)).astype(dtype)
    best = min(_seconds(lambda: a @ a) for _ in range(8))
    return 2.0 * len(a) ** 3 / best


def _peak_bytes() -> float:
    """Return the bytes per second at which one thread sums an array larger than the caches."""
    a = np.ones(1 << 25)
    return a.nbytes / min(_seconds(a.sum) for _ in range(5))


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1]))
