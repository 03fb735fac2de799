"""What one process measures, at one number of threads. `environments` starts one per number.

A process of its own, because the threads of numba and of the BLAS behind ``quests`` are best set by the
environment, before either is loaded.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from ase import Atoms
from quests.descriptor import get_descriptors

from quests_md import DescriptorSpec, Index, delta_entropy
from quests_md.frame import Frame

from .peer import BANDWIDTH, best_batch
from .peer import delta_entropy as quests_delta_entropy
from .systems import System, systems
from .timing import alternate, seconds

REPETITIONS = 7
LARGE = 4096  # atoms, about, of the frame whose descriptors are timed


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
    best = best_batch(query, reference)
    # A descriptor is timed on a frame large enough that waking up after the rest is no part of it.
    large = system.query[0] * ((round((LARGE / len(system.query[0])) ** (1 / 3)),) * 3)

    results, medians = alternate(
        {
            "descriptor": lambda: spec.compute(large, threads),
            "descriptor f32": lambda: spec._compute_one(Frame.from_atoms(large), threads, np.float32),
            "descriptor quests": lambda: _quests_descriptor(large),
            "dH": lambda: delta_entropy(query, reference, BANDWIDTH, threads=threads),
            "dH index": lambda: index.delta_entropy(query, threads),
            "dH index single": lambda: -index.log_kernel_sum(query, threads, precision="single"),
            "dH quests": lambda: quests_delta_entropy(query, reference, BANDWIDTH),
            "dH quests best": lambda: quests_delta_entropy(query, reference, BANDWIDTH, best),
        },
        REPETITIONS,
    )
    finite = np.isfinite(results["dH quests"])
    environments = {name: len(large) if name.startswith("descriptor") else len(query) for name in medians}
    return {
        "name": system.name,
        "n_query": len(query),
        "n_large": len(large),
        "n_reference": len(reference),
        "batch": best,
        "microseconds": {name: 1e6 * value / environments[name] for name, value in medians.items()},
        "agreement": {
            "descriptor": _difference(results["descriptor"], results["descriptor quests"]),
            "descriptor f32": _difference(results["descriptor f32"], results["descriptor quests"]),
            "dH": _difference(results["dH"][finite], results["dH quests"][finite]),
            "dH index": _difference(results["dH index"][finite], results["dH quests"][finite]),
            "dH index single": _difference(results["dH index single"][finite], results["dH index"][finite]),
        },
        "infinite": int(len(query) - finite.sum()),
    }


def _quests_descriptor(atoms: Atoms) -> Any:
    return get_descriptors([atoms], k=32, cutoff=5.0)


def _difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def _peak_flops(dtype: Any) -> float:
    """Return the operations per second of this process's best matrix product (all its threads)."""
    a = np.random.default_rng(0).random((1536, 1536)).astype(dtype)
    best = min(seconds(lambda: a @ a) for _ in range(8))
    return 2.0 * len(a) ** 3 / best


def _peak_bytes() -> float:
    """Return the bytes per second at which one thread sums an array larger than the caches."""
    a = np.ones(1 << 25)
    return a.nbytes / min(seconds(a.sum) for _ in range(5))


if __name__ == "__main__":
    main(int(sys.argv[1]))
