"""How the cost of an evaluation grows with the atoms, and what an index of 10⁵ and 10⁶ references costs.

One thread. Building is measured in a process of its own, for its peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quests_md import Frame, Index, Monitor

from .memory import peak_bytes
from .peer import BANDWIDTH
from .printing import head, target
from .silicon import crystal
from .timing import seconds

CELLS = (5, 11, 23, 50)  # along each side: 10³, 10⁴, 10⁵ and 10⁶ atoms
ROUNDS = 4
TURNS = {5: 20, 11: 6, 23: 3, 50: 1}  # of each size, in every round
RATTLE = 0.08  # Å
SELECT = 1e6  # nats
FEW = 2000  # references of the growing frames
VALUES = ("exact", "flagged")
LINEAR = 1.3
BUILDS = {100_000: (10.0, "s"), 1_000_000: (180.0, "s")}
MEMORY, BYTES, OPENING = 4.0, 300.0, 0.5  # GB, bytes per reference, s


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip", choices=["atoms", "index"], help="leave out one of the two")
    parser.add_argument("--references", type=int, nargs="+", default=list(BUILDS), metavar="N")
    options = parser.parse_args()
    head("Growth: evaluations of 10³ to 10⁶ atoms, and indexes of 10⁵ and 10⁶ references")
    if options.skip != "atoms":
        _atoms()
    if options.skip != "index":
        _indexes(options.references)


def _atoms() -> None:
    """Print the cost of an evaluation per atom."""
    index = Index.build(crystal(5, RATTLE, 1, n=FEW // 1000), bandwidth=BANDWIDTH, threads=1)
    frames = {cells: crystal(cells, RATTLE, cells)[0] for cells in CELLS}
    print(f"\nMonitor.observe, one thread, {len(index)} references, silicon rattled by {RATTLE} Å; medians")
    sizes = "".join(f"{len(frame.positions):>12}" for frame in frames.values())
    print(f"  µs per atom{sizes}   highest / lowest   fixed part of an evaluation")
    for values in VALUES:
        # A monitor for each size, for it remembers atoms. None is above `select`: what is saved is computed in whole.
        monitors = {cells: Monitor(index, select=SELECT, halt=SELECT, values=values) for cells in CELLS}
        micro = _grow(monitors, frames)
        ratio = max(micro.values()) / min(micro.values())
        # What does not grow with the atoms: Python, and the sample of flagged values.
        small, large = (len(frames[cells].positions) for cells in (CELLS[0], CELLS[-1]))
        fixed = (micro[CELLS[0]] - micro[CELLS[-1]]) / (1 / small - 1 / large) / 1000
        print(f"  {values:<11}{''.join(f'{micro[cells]:>12.3f}' for cells in CELLS)}{ratio:>19.2f}{fixed:>23.2f} ms")
        target(f"{values}: cost per atom, highest / lowest", ratio, LINEAR, "")
        target(f"{values}: cost per atom, {large} / {small} atoms", micro[CELLS[-1]] / micro[CELLS[0]], LINEAR, "")


def _grow(monitors: dict[int, Monitor], frames: dict[int, Frame]) -> dict[int, float]:
    """Return median µs per atom of evaluations; frames of all sizes in turn."""
    taken: dict[int, list[float]] = {cells: [] for cells in frames}
    for round_ in range(1 + ROUNDS):
        for cells, frame in frames.items():
            for _ in range(TURNS[cells]):
                frame.step += 1
                taken[cells].append(seconds(partial(monitors[cells].observe, frame)))
            if round_ == 0:  # warms up
                taken[cells].clear()
    return {cells: 1e6 * statistics.median(t) / len(frames[cells].positions) for cells, t in taken.items()}


def _indexes(references: list[int]) -> None:
    """Print what building, keeping and opening an index costs."""
    print("\nIndexes of rattled silicon, each built and asked in a process of its own")
    print("  references   build (s)   peak (GB)   bytes per reference   open (s)   first 1000 atoms after that (s)")
    for n in references:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "si.qindex")
            built, asked = _child("build", str(n), path), _child("ask", path)
        print(
            f"  {n:>10}{built['seconds']:>12.1f}{built['peak']:>12.2f}{built['bytes']:>22.1f}{asked['open']:>11.3f}"
            f"{asked['first']:>34.2f}"
        )
        target(f"{n}: build", built["seconds"], *BUILDS.get(n, (180.0, "s")))
        if n == max(BUILDS):
            target(f"{n}: peak memory of the process that builds", built["peak"], MEMORY, "GB")
            target(f"{n}: open", asked["open"], OPENING, "s")
        target(f"{n}: file", built["bytes"], BYTES, "bytes per reference")


def _child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _build(n: int, path: str) -> dict[str, float]:
    """Build an index of n references and save it."""
    frames = _reference(n)
    Index.build(frames[:1], bandwidth=BANDWIDTH, threads=1)  # compile, or load what is compiled
    made: list[Any] = []
    taken = seconds(lambda: made.append(Index.build(frames, bandwidth=BANDWIDTH, threads=1)))
    made[0].save(path)
    return {"seconds": taken, "peak": peak_bytes() / 1e9, "bytes": Path(path).stat().st_size / n}


def _reference(n: int) -> list[Frame]:
    """Return frames of 4096 atoms, rattled by 0.02 to 0.20 Å, in which n atoms are watched."""
    count = -(-n // 4096)
    frames = [crystal(8, scale, seed)[0] for seed, scale in enumerate(np.linspace(0.02, 0.20, count))]
    frames[-1].watched = np.arange(4096) < n - 4096 * (count - 1)
    return frames


def _ask(path: str) -> dict[str, float]:
    """Open an index, and observe a frame with it for the first time."""
    _warm_up()
    made: list[Any] = []
    opening = seconds(lambda: made.append(Index.open(path)))
    frame = crystal(5, RATTLE, 7)[0]
    return {"open": opening, "first": seconds(lambda: Monitor(made[0], select=SELECT, halt=SELECT).observe(frame))}


def _warm_up() -> None:
    """Load the kernels: compiling, or loading what is compiled, is no part of opening (see `start`)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.qindex"
        Index.build(crystal(1, RATTLE, 1), bandwidth=BANDWIDTH, threads=1).save(path)
        Monitor(Index.open(path), select=SELECT, halt=SELECT).warm_up()


if __name__ == "__main__":
    print(json.dumps(_build(int(sys.argv[2]), sys.argv[3]) if sys.argv[1] == "build" else _ask(sys.argv[2])))
