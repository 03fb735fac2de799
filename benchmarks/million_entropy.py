"""The entropy of a million environments of silicon, 300 to 3500 K: time, memory, and the pairs that are summed.

What 10⁶ environments cost is projected from a part of them: from its pairs per second, and from the share of all pairs
of the 10⁶ that the plans of some hundred queries do not leave out; measured where the projection is below --limit.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec
from quests_md.information import information, pack
from quests_md.kernels import kernel_sum, self_sum
from quests_md.kernels._simd_sum import ROWS

from .decision_data import Pool
from .environments import DIMENSION, OPERATIONS
from .measure import peak_flops
from .memory import peak_bytes
from .peer import BANDWIDTH
from .printing import cores, head, target
from .silicon import cache_folder, cached, frames_of

ALL = 1_000_000
SIZES = (10_000, 30_000, 100_000)
BLOCKS = 48  # whose plans are counted
MEMORY = 2.0  # GB, of a process that sums a mapped file
BATCH = 10  # frames


def main() -> None:
    """Measure the parts, project the whole, and measure it where that is soon done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=cache_folder(), help="keep made data here (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="environments of the parts")
    parser.add_argument("--limit", type=float, default=480.0, help="longest time for 10⁶ (%(default)g s)")
    options = parser.parse_args()
    head(f"Entropy of {ALL} environments of silicon at {BANDWIDTH} 1/Å, rows in a mapped file", "lammps")
    rows = cached(options.data, "million-rows", _rows, data=str(options.data), n=ALL)
    with tempfile.TemporaryDirectory(dir=options.data) as folder:
        _measure(rows, Path(folder), options)


def _rows(data: str, n: int) -> NDArray[np.float64]:
    """Return the descriptors (n, d) of environments drawn at random from the frames of `decision`."""
    pool = Pool(Path(data))
    out, first = np.empty((n, DIMENSION)), 0
    for begin in range(0, len(pool.positions), BATCH):
        some = slice(begin, begin + BATCH)
        part = DescriptorSpec().compute(frames_of(pool.positions[some], pool.rank[some] < n))
        out[first : first + len(part)] = part
        first += len(part)
    return out


def _measure(rows: NDArray[np.float64], folder: Path, options: Any) -> None:
    """Print the table."""
    peak = peak_flops(np.float64, cores())
    print(f"\n{cores()} threads; measured peak {peak / 1e9:.0f} Gflop/s in products")
    print("  environments   seconds   pairs summed   of all   10⁹ pairs/s   floor (s)   memory (GB)          H")
    rng, rate = np.random.default_rng(0), 0.0
    for n in sorted(options.sizes):
        told = _job(rows[np.sort(rng.choice(len(rows), n, replace=False))], folder)
        _print(n, told, peak)
        rate = told["share"] * n**2 / told["seconds"]
    share = share_of_pairs(rows)
    seconds = share * len(rows) ** 2 / rate
    print(f"  {len(rows):>12}{seconds:>10.0f}{share * len(rows) ** 2:>15.2e}{share:>9.3f}   (projected)", flush=True)
    if seconds > options.limit:
        print(f"  not measured: it would take longer than {options.limit:g} s (--limit)")
        return
    told = _job(rows, folder)
    _print(len(rows), told, peak)
    print(f"  measured / projected: {told['seconds'] / seconds:.2f}")
    target(f"memory for {len(rows)} environments", told["memory"] / 1e9, MEMORY, "GB")


def _print(n: int, told: dict[str, float], peak: float) -> None:
    pairs = told["share"] * n**2
    print(
        f"  {n:>12}{told['seconds']:>10.2f}{pairs:>15.2e}{told['share']:>9.3f}{pairs / told['seconds'] / 1e9:>14.3f}"
        f"{OPERATIONS * DIMENSION * pairs / peak:>12.2f}{told['memory'] / 1e9:>14.2f}{told['entropy']:>11.6f}",
        flush=True,
    )


def _job(rows: NDArray[np.float64], folder: Path) -> dict[str, float]:
    """Return what a process of its own tells, which maps these rows."""
    path = folder / "rows.npy"
    np.save(path, rows)
    command = [sys.executable, "-m", "benchmarks.million_entropy", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the job failed\n{done.stderr[-4000:]}")
    told: dict[str, float] = json.loads(done.stdout)
    return {**told, "share": share_of_pairs(rows)}


def share_of_pairs(x: NDArray[np.float64]) -> float:
    """Return the pairs that the self-sum of a dataset computes, over N², from the plans of some of its blocks.

    Every pair is computed once, and a block for six rows where one of them needs it.
    """
    rng = np.random.default_rng(1)
    blocks = pack(x, BANDWIDTH)
    n, drop = len(blocks.tiles), math.log2(blocks.negligible / len(x))
    share = np.mean([_needed(i, blocks, drop).mean() for i in rng.integers(n, size=BLOCKS)])
    return float(share) * (n + 1) / (2 * n)


def _needed(i: int, blocks: Any, drop: float) -> NDArray[np.bool_]:
    """Return which blocks (groups of six rows of block i, blocks) are summed."""
    rows = self_sum.GROUPS * ROWS
    queries, room = kernel_sum.make_queries(rows, blocks), kernel_sum.make_room(rows, blocks)
    self_sum.prepare(i, blocks, drop, queries, room)
    needed: NDArray[np.bool_] = (queries.way != kernel_sum.SKIP).reshape(self_sum.GROUPS, ROWS, -1).any(axis=1)
    return needed


def _alone(path: str) -> None:
    """Be the process that is measured."""
    x = np.load(path, mmap_mode="r")
    information(x[:500], BANDWIDTH)  # compiled before
    started = time.perf_counter()
    found = information(x, BANDWIDTH)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "memory": peak_bytes(), "entropy": found.entropy}))


if __name__ == "__main__":
    _alone(sys.argv[1])
