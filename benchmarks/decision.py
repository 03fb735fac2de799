"""What the certified decision "dH > threshold?" costs in MD, beside ``quests``; and that it is right."""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import Index

from . import decision_check, decision_plot, peer
from .decision_data import Pool, streams
from .pictures import parse_options, save_picture
from .printing import head, target
from .silicon import cache_folder
from .timing import alternate, median_of

REFERENCES = (10_000, 100_000, 1_000_000)
THRESHOLDS = (0.0, 5.0)
TIMED = (300, 1500)  # K
LIMIT = 10.0  # s; a stream that takes longer is cut short
EXACT_ROWS = 192  # that an exact sum is asked for
QUESTS_ROWS = {10_000: 256, 100_000: 64, 1_000_000: 32}


def decide(index: Index, rows: NDArray[np.float64], threshold: float, memory: NDArray[np.int32]) -> Any:
    """Return certified upper bounds of dH: the call that is measured."""
    return index.upper_bound(rows, threshold, memory, threads=1)


def main() -> None:
    """Measure, check, print; with --plot draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=cache_folder(), help="keep made data here (%(default)s)")
    parser.add_argument("--references", type=int, nargs="+", default=list(REFERENCES), metavar="N")
    parser.add_argument("--no-check", action="store_true", help="time only")
    options = parse_options(parser, decision_plot.draw)
    head("Certified decisions in MD: is dH above a threshold?", "quests", "lammps")
    made = time.perf_counter()
    pool, queries = Pool(options.data), streams(options.data)
    steps, atoms, _ = queries[300].shape
    print(f"data in {options.data}: {time.perf_counter() - made:.0f} s to make or read")
    print(
        f"one thread; {steps} steps of 1 fs, {atoms} atoms a frame: the first frame, and the median of all later ones"
    )
    _warm_up(pool, queries)
    _motion(pool.index(REFERENCES[0])[0], queries)
    result: dict[str, Any] = {"decisions": [], "sums": []}
    for n in options.references:
        _measure(pool, n, queries, result)
    _targets(result)
    if not options.no_check:
        decision_check.main(pool, queries, decide)
    save_picture(options.plot, result, decision_plot.draw)


def _warm_up(pool: Pool, queries: dict[int, Any]) -> None:
    """Compile, or load what is compiled: also what only decisions that are hard need."""
    index = pool.index(1000)[0]
    for frames in queries.values():
        for threshold in THRESHOLDS:
            decide(index, frames[0], threshold, np.full(len(frames[0]), -1, np.int32))


def _motion(index: Index, queries: dict[int, Any]) -> None:
    """Print how fast descriptors move, and how long the node that certified an atom does so again."""
    for t, frames in queries.items():
        moved = np.linalg.norm(np.diff(frames, axis=0), axis=2) / peer.BANDWIDTH
        memory = np.full(len(frames[0]), -1, np.int32)
        decide(index, frames[0], 5.0, memory)
        remembered = memory.copy()
        decide(index, frames[-1], 5.0, memory)
        kept = (remembered >= 0) & (memory == remembered)
        print(
            f"{t} K: a descriptor moves {np.median(moved):.2f} h per step (median); after {len(frames) - 1} steps "
            f"{100 * kept.mean():.1f} % of the atoms are still certified below 5 by the node that they remember"
        )


def _measure(pool: Pool, n: int, queries: dict[int, Any], result: dict[str, Any]) -> None:
    """Time decisions and sums against n references; print a table and add to `result`."""
    index, built = pool.index(n)
    if n > REFERENCES[1]:  # nothing is laid out for these, but they have a kernel of their own to compile
        index.log_kernel_sum(queries[300][0][:1], 1)
    print(f"\n{len(index)} references (index built in {built:.1f} s)")
    print("  µs per environment        threshold   first frame   later frames   slowest of them   above")
    for t in TIMED:
        for threshold in THRESHOLDS:
            row = {"references": n, "temperature": t, "threshold": threshold, **_stream(index, queries[t], threshold)}
            result["decisions"].append(row)
            numbers = f"{row['first']:>14.2f}{row['steady']:>15.3f}{row['slowest']:>18.2f}{100 * row['above']:>7.2f} %"
            print(f"  decision, {t:>4} K {threshold:>19g}{numbers}", flush=True)
    sums = {"references": n, **_sums(index, pool.rows(n), queries[300].reshape(-1, queries[300].shape[2]))}
    result["sums"].append(sums)
    ours = [("exact, double", "double"), ("exact, single", "single")]
    for name, key in (*ours, ("quests", "quests"), (f"quests at its best, batch {sums['batch']}", "best")):
        print(f"  {name:<40}{'':>13}{sums[key]:>15.1f}")
    steady = max(r["steady"] for r in result["decisions"] if r["references"] == n and r["temperature"] == 300)
    default, best = sums["quests"] / steady, sums["best"] / steady
    print(f"  quests / decision at 300 K: {default:.0f}, at its best {best:.0f}")


def _stream(index: Index, frames: Any, threshold: float) -> dict[str, float]:
    """Return µs per atom-step of a stream, frame by frame, each atom with what it remembers."""
    memory = np.full(len(frames[0]), -1, np.int32)
    taken, above = [], 0
    for rows in frames:
        started = time.perf_counter()
        bounds = decide(index, rows, threshold, memory)
        taken.append(time.perf_counter() - started)
        above += np.count_nonzero(bounds > threshold)
        if sum(taken) > LIMIT and len(taken) > 2:
            break
    share = above / (len(taken) * len(frames[0]))
    first, *later = (1e6 * t / len(frames[0]) for t in taken)
    return {"first": first, "steady": statistics.median(later), "slowest": max(later), "above": share}


def _sums(index: Index, reference: Any, rows: Any) -> dict[str, float]:
    """Return µs per environment of exact sums, ours and those of quests."""
    n, some = len(reference), rows[:: len(rows) // EXACT_ROWS][:EXACT_ROWS]
    micro = {}
    for precision in ("double", "single"):
        call = partial(index.log_kernel_sum, some, 1, precision=precision)
        call()  # lays out the references
        micro[precision] = 1e6 * median_of(call, 3) / len(some)
    few = some[: QUESTS_ROWS.get(n, 32)]
    repetitions = 3 if n <= REFERENCES[0] else 1
    batch = peer.best_batch(few, reference, repetitions)
    sizes = {"quests": peer.DEFAULT_BATCH, "best": batch}
    calls = {k: partial(peer.delta_entropy, few, reference, peer.BANDWIDTH, size) for k, size in sizes.items()}
    micro.update({name: 1e6 * taken / len(few) for name, taken in alternate(calls, 3)[1].items()})
    return {**micro, "best": min(micro["best"], micro["quests"]), "batch": batch}


def _targets(result: dict[str, Any]) -> None:
    """Print the targets of the issue; of two thresholds the slower counts."""
    worst: dict[tuple[int, int], float] = {}
    for row in result["decisions"]:
        key = row["temperature"], row["references"]
        worst[key] = max(worst.get(key, 0.0), row["steady"])
    print("\nTargets (later frames, the slower threshold)")
    sizes = sorted({n for _, n in worst})
    for n in sizes:
        target(f"300 K, {n} references", worst[300, n], 0.3, "µs per atom-step")
    if sizes[0] == REFERENCES[0] and sizes[-1] == REFERENCES[-1]:
        target("300 K, growth from 10⁴ to 10⁶ references", worst[300, sizes[-1]] / worst[300, sizes[0]], 2.0, "times")
    if sizes[0] == REFERENCES[0]:
        target("1500 K, 10000 references", worst[1500, sizes[0]], 2.5, "µs per atom-step")
