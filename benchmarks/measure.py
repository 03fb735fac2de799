"""What one process measures, at one number of threads. `environments` starts one per number.

A process of its own, because the threads of numba and of the BLAS behind ``quests`` are best set by the
environment, before either is loaded.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import numba
import numpy as np
from ase import Atoms
from ase.build import bulk
from quests.descriptor import get_descriptors

from quests_md import DescriptorSpec, Index, delta_entropy
from quests_md.descriptors import Environments
from quests_md.frame import Frame
from quests_md.kernels._simd import BYTES
from quests_md.kernels._simd_panel import NORMS, add_panels, panel_width
from quests_md.kernels._simd_sum import ROWS
from quests_md.kernels.threads import over_rows

from .peer import BANDWIDTH, best_batch
from .peer import delta_entropy as quests_delta_entropy
from .systems import System, systems
from .timing import alternate, seconds

REPETITIONS = 7
SMALL = (1, 16, 64)  # atoms that are asked for, of a frame of 64
LARGE = 4096  # atoms, about, of the frame whose descriptors are timed


def main(threads: int) -> None:
    """Measure everything and print it as JSON."""
    result = {
        "flops": {"double": peak_flops(np.float64, threads), "single": peak_flops(np.float32, threads)},
        "bytes": _peak_bytes(),
        "systems": [_measure(system, threads) for system in systems()],
        "small": _measure_small(threads),
        "bits": 8 * BYTES,
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


def _measure_small(threads: int) -> dict[int, float]:
    """Return the µs of a new frame of 64 atoms of which some are asked for, by their number."""
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=0)
    spec, frame = DescriptorSpec(), Frame.from_atoms(atoms)

    def call(n: int) -> Any:
        return Environments(spec, frame).compute(np.arange(n), threads)

    return {n: 1e6 * min(seconds(partial(call, n)) for _ in range(2000)) for n in SMALL}


def _quests_descriptor(atoms: Atoms) -> Any:
    return get_descriptors([atoms], k=32, cutoff=5.0)


def _difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def peak_flops(dtype: Any, threads: int) -> float:
    """Return the operations per second of the better of two products: of matrices by numpy's BLAS, and of our panels.

    The panels have so many coordinates that the powers of two take no time beside them. With OPENBLAS_CORETYPE a BLAS
    takes the vectors of another processor, as NUMBA_CPU_NAME has numba do.
    """
    rng = np.random.default_rng(0)
    a = rng.random((1536, 1536)).astype(dtype)
    blas = 2.0 * len(a) ** 3 / min(seconds(lambda: a @ a) for _ in range(8))
    width, groups, d, times = panel_width(a.itemsize), 8, 256, 1000
    queries, tile = rng.random((groups, ROWS * d)).astype(dtype), rng.random((1, NORMS + d, width)).astype(dtype)
    numbers = np.zeros((groups, 3, ROWS))
    numbers[:, 2] = -1000.0

    def task(first: int, last: int) -> None:
        sums, active = np.zeros((groups, ROWS * width // 2), dtype), np.ones(groups, np.int8)
        _multiply(queries, active, numbers, tile, sums, times * (last - first))

    shares = 4 * threads
    ours = min(seconds(lambda: over_rows(task, shares, threads, 1)) for _ in range(8))
    return max(blas, 2.0 * shares * times * groups * ROWS * width * d / ours)


@numba.njit(nogil=True)
def _multiply(queries: Any, active: Any, numbers: Any, tile: Any, sums: Any, times: int) -> None:
    for _ in range(times):
        add_panels(queries, active, numbers, tile, tile.shape[1] - NORMS, sums, None, None, 0)


def _peak_bytes() -> float:
    """Return the bytes per second at which one thread sums an array larger than the caches."""
    a = np.ones(1 << 25)
    return a.nbytes / min(seconds(a.sum) for _ in range(5))


if __name__ == "__main__":
    main(int(sys.argv[1]))
