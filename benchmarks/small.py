"""What an evaluation of 64, 512 and 4096 atoms costs, in time of the processor, on this one and with AVX2.

Each processor has a process of its own, because kernels are compiled for one when they are loaded. Its time is that of
the one thread, not of the clock: other programs on the machine take the processor away, and that is not counted. They
still share its caches and its memory. So each frame counts with the fastest of several passes, and a size with the
median of its frames.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import processors
from .live import REFERENCES
from .printing import head, target
from .silicon import cache_folder, md_index
from .small_case import NARROW, VALUES, stream
from .timing import THREADS

CELLS = (2, 4, 8)  # of the cubes of silicon, along each side
# µs per evaluation of 64 atoms, and per atom of the others.
TARGETS = {
    "": {64: (400.0, 1500.0), 512: (3.0, 10.0), 4096: (2.0, 9.0)},
    NARROW: {64: (600.0, 2500.0), 512: (5.0, 22.0), 4096: (3.3, 20.0)},
}
WITH_ERRORS, ESTIMATES = 1.15, 0.3  # ratio of exact values with force errors and without; µs per atom of flagged ones
SHARES = {"": 70.0, NARROW: 75.0}  # % of the product peak


def main() -> None:
    """Measure in a process for each processor; print tables and targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=cache_folder(), help="keep made data here (%(default)s)")
    parser.add_argument("--cells", type=int, nargs="+", default=list(CELLS), help="of 8 atoms, along each side")
    parser.add_argument("--passes", type=int, default=8, help="over the frames of every size (%(default)s)")
    options = parser.parse_args()
    head("Evaluations of small frames: covered silicon at 300 K, a frame every step", "lammps")
    index = md_index(options.data, "live", REFERENCES)
    for cells in options.cells:
        stream(options.data, cells)
    print(f"{len(index)} references; one thread, time of the processor; the fastest of {options.passes} passes")
    print("the floor is the multiply-adds of the exact sums, as fast as the best product (the peak)")
    for setting in ("", NARROW):
        if setting and not processors.can_run(setting):
            print(f"\n{setting}: this processor cannot")
            continue
        _print(setting, _measure(setting, options))


def _measure(setting: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a process measures that compiles for a setting; "" is the processor as it is."""
    cells = [str(each) for each in options.cells]
    command = [sys.executable, "-m", "benchmarks.small_case", str(options.data), str(options.passes), *cells]
    with tempfile.TemporaryDirectory() as cache:
        environment = processors.environment(setting, cache) if setting else dict(os.environ)
        environment |= dict.fromkeys(THREADS, "1")
        if setting:
            environment["OPENBLAS_CORETYPE"] = "Haswell"  # the product of matrices shall be one of AVX2, too
        done = subprocess.run(command, cwd=processors.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{setting or 'this processor'}: measuring ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _print(setting: str, found: dict[str, Any]) -> None:
    """Print the table of a setting, and its targets."""
    rows = found["rows"]
    kind = "" if rows[0]["bits"] == 512 else NARROW  # whose targets these are, however it came to be compiled for it
    print(f"\nvectors of {rows[0]['bits']} bits" + ("" if setting else ", as the processor has them"))
    print("  atoms   values    µs per evaluation   per atom   with errors   sums, single + double   floor, µs   of it")
    for row in rows:
        sums, times = f"{row['single']:.1f} + {row['double']:.1f}", row["us"] / row["floor"]
        print(
            f"  {row['atoms']:>5}   {row['values']:<8}{row['us']:>19.0f}{row['us'] / row['atoms']:>11.2f}"
            f"{row['us with errors'] / row['atoms']:>14.2f}{sums:>24}{row['floor']:>12.0f}{times:>8.1f}"
        )
    for precision, share in found["shares"].items():
        name = f"share of the product peak of sums in which nothing can be left out, {precision}"
        target(name, 100.0 * share, SHARES[kind], "%", least=True)
    for row in rows:
        limits = TARGETS[kind].get(row["atoms"])
        if limits is None:
            continue
        limit, name = limits[VALUES.index(row["values"])], f"{row['atoms']} atoms, {row['values']}"
        if row["atoms"] == 64:
            target(name, row["us"], limit, "µs per evaluation")
        else:
            target(name, row["us"] / row["atoms"], limit, "µs per atom-step")
        more = row["us with errors"]
        if row["values"] == "exact":
            target(f"{name}: with force errors / without", more / row["us"], WITH_ERRORS, "")
        elif row["atoms"] > 64:
            target(f"{name}: force errors more", (more - row["us"]) / row["atoms"], ESTIMATES, "µs per atom-step")
