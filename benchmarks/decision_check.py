"""Whether certified decisions are right: each is compared with dH in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quests_md import delta_entropy

from .decision_data import Pool
from .peer import BANDWIDTH
from .printing import target

__all__ = ["main"]

REFERENCES = (10_000, 100_000)
THRESHOLDS = (-3.0, 0.0, 5.0, 20.0)
FRAMES = 10  # of each stream, consecutive
NEAR = 1e-3  # nats from the threshold


def main(pool: Pool, queries: dict[int, Any], decide: Callable[..., Any]) -> None:
    """Print how many decisions are wrong, and how many were close."""
    thresholds = ", ".join(f"{t:g}" for t in THRESHOLDS)
    print(f"\nAre they right? {FRAMES} frames of each stream; thresholds {thresholds} and the median dH of the stream")
    print(f"  references  stream   decisions    above   within {NEAR:g}   wrong   wrong, bounds   exceeds: wrong")
    total = dict.fromkeys(("decisions", "near", "wrong", "below", "exceeds", "rounded"), 0)
    for n in REFERENCES:
        index, reference = pool.index(n)[0], pool.rows(n)
        for temperature, frames in queries.items():
            counts = _check(index, reference, frames[:FRAMES], decide)
            for name in total:
                total[name] += counts[name]
            share = 100 * counts["above"] / counts["decisions"]
            print(
                f"  {n:>10}{temperature:>6} K{counts['decisions']:>12}{share:>7.1f} %"
                f"{counts['near']:>15}{counts['wrong']:>8}{counts['below']:>16}{counts['exceeds']:>17}",
                flush=True,
            )
    print(f"  {total['rounded']} of {total['decisions']} would differ if the index kept its rows in double precision")
    target("decisions compared", total["decisions"], 50_000, "", least=True)
    target("wrong decisions, wrong bounds", total["wrong"] + total["below"] + total["exceeds"], 0, "")


def _check(index: Any, reference: Any, frames: Any, decide: Callable[..., Any]) -> dict[str, int]:
    """Count over the frames of a stream and all thresholds, one of which half of the atoms exceed.

    The truth is a sum in double precision over the rows that the index holds, which are float32; "rounded" counts
    where that decides otherwise than the descriptors in double precision do.
    """
    counts = dict.fromkeys(("decisions", "above", "near", "wrong", "below", "exceeds", "rounded"), 0)
    held = index.rows.astype(np.float64)
    flat = frames.reshape(-1, frames.shape[2])
    exact = delta_entropy(flat - index.centre, held, BANDWIDTH, threads=1).reshape(frames.shape[:2])
    unrounded = delta_entropy(flat, reference, BANDWIDTH, threads=1).reshape(frames.shape[:2])
    for threshold in (*THRESHOLDS, float(np.median(exact))):
        memory = np.full(frames.shape[1], -1, np.int32)
        for rows, truth, other in zip(frames, exact, unrounded, strict=True):
            bounds = decide(index, rows, threshold, memory)
            counts["decisions"] += len(rows)
            counts["above"] += np.count_nonzero(truth > threshold)
            counts["near"] += np.count_nonzero(abs(truth - threshold) < NEAR)
            counts["wrong"] += np.count_nonzero((bounds > threshold) != (truth > threshold))
            counts["below"] += np.count_nonzero(bounds < truth - 1e-9 * np.maximum(1.0, abs(truth)))
            counts["exceeds"] += np.count_nonzero(index.exceeds(rows, threshold, 1) != (truth > threshold))
            counts["rounded"] += np.count_nonzero((other > threshold) != (truth > threshold))
    return counts
