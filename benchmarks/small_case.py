"""What one process measures of small frames, with kernels for the processor that its environment names."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame, Index, Monitor
from quests_md.index import Calibration, LocalBound, LocalFactors, Residuals
from quests_md.kernels import _simd

from .measure import peak_flops
from .silicon import cached, frames_of, sample

NARROW = "256 bits"  # AVX2, by the name that `processors` has for it
VALUES = ("flagged", "exact")
STEPS = 40
FIRST = 3  # steps that are not counted: nothing is remembered yet, and the first sample is large
LARGE = 1000  # atoms; larger frames are timed for few steps
SELECT, HALT = 5.0, 1e6


class Counting:
    """A reference that counts the exact sums that it is asked for."""

    def __init__(self, index: Index) -> None:
        self._index, self.asked = index, {"single": 0, "double": 0}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def log_kernel_sum(self, query: NDArray[Any], threads: int | None = None, *, precision: Any = "double") -> Any:
        """Ask the index."""
        self.asked[precision] += len(query)
        return self._index.log_kernel_sum(query, threads, precision=precision)


def stream(folder: Path, cells: int) -> NDArray[np.float64]:
    """Return positions of consecutive steps of 1 fs."""
    return cached(folder, "small", sample, cells=cells, temperature=300, seed=11, n=STEPS, apart=1)


def main() -> None:
    """Measure all sizes and print them as JSON."""
    folder, passes, cells = Path(sys.argv[1]), int(sys.argv[2]), [int(each) for each in sys.argv[3:]]
    index, peaks = Index.open(folder / "live.qindex"), {p: peak_flops(t, 1) for p, t in _TYPES.items()}
    result = []
    for size in cells:
        frames = frames_of(stream(folder, size))
        for step, frame in enumerate(frames):
            frame.step = step
        if len(frames[0].positions) > LARGE:
            frames = frames[: 3 * FIRST]
        for values in VALUES:
            row = _measure(index, frames, values, passes, peaks)
            row["us with errors"] = 1e6 * _time(_with_errors(index), frames, values, passes)
            result.append(row)
    shares = {precision: _find_share(index, frames[0], precision, peak) for precision, peak in peaks.items()}
    print(json.dumps({"rows": result, "shares": shares}))


_TYPES = {"single": np.float32, "double": np.float64}


def _find_share(index: Index, frame: Frame, precision: Any, peak: float) -> float:
    """Return the share of the product peak of exact sums of which nothing can be left out."""
    query, best = index.spec.compute(frame, 1), np.inf
    for _ in range(8):
        started = time.thread_time()
        index.log_kernel_sum(query, 1, precision=precision)
        best = min(best, time.thread_time() - started)
    return 2.0 * len(query) * len(index) * index.spec.width / best / peak


def _measure(index: Index, frames: list[Frame], values: str, passes: int, peaks: dict[str, float]) -> dict[str, Any]:
    """Return what an evaluation of these frames costs."""
    seconds = _time(index, frames, values, passes)
    counting = Counting(index)
    monitor = Monitor(counting, select=SELECT, halt=HALT, values=values)
    for i, frame in enumerate(frames):
        monitor.observe(frame, whole=False)
        if i == FIRST - 1:
            counting.asked = dict.fromkeys(counting.asked, 0)
    sums = {precision: n / (len(frames) - FIRST) for precision, n in counting.asked.items()}
    floor = sum(2.0 * n * len(index) * index.spec.width / peaks[precision] for precision, n in sums.items())
    n = len(frames[0].positions)
    return {"bits": 8 * _simd.BYTES, "atoms": n, "values": values, "us": 1e6 * seconds, "floor": 1e6 * floor, **sums}


def _time(index: Index, frames: list[Frame], values: str, passes: int) -> float:
    """Return the seconds of the processor that an evaluation of these frames takes."""
    best = np.full(len(frames), np.inf)
    for _ in range(passes):
        monitor = Monitor(index, select=SELECT, halt=HALT, values=values)
        monitor.warm_up()
        for i, frame in enumerate(frames):
            started = time.thread_time()
            decision = monitor.observe(frame, whole=False)
            best[i] = min(best[i], time.thread_time() - started)
            assert decision.band.value == "covered"
    return statistics.median(best[FIRST:])


def _with_errors(index: Index) -> Index:
    """Return the index with residuals, and a calibration of them. The numbers are made up: they cost the same."""
    errors = np.random.default_rng(0).gamma(2.0, 0.05, len(index))
    index = index.with_residuals(Residuals("made up", "0" * 64, "training", errors.astype(np.float32)))
    factors = LocalFactors(0.8, 2.0, SELECT, 1, 1, 1.0, 1.0, 1.0)
    bound = LocalBound({"Si": factors}, 0.9, 1.0, 1.0, 1.0, 1, 1, "made up", "0" * 64, "left out", 1.0, 1.0, 1.0, "")
    nothing = np.zeros((1, 1), np.int64), np.zeros((1, 1))
    return replace(index, calibration=Calibration(("Si",), *nothing, 1, 1, 0, 0.0, 0.0, local_error=bound))


if __name__ == "__main__":
    main()
