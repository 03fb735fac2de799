"""What a descriptor and an exact dH cost per environment, in quests_md and in ``quests``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .printing import cores, head, target
from .timing import THREADS

DIMENSION = 63  # columns of the descriptor, 2k − 1
OPERATIONS = 2  # a product and a sum per column

HEAD = "µs per environment, medians"
# How many times as fast as quests a descriptor must be, in double and single precision, by the bits of a vector.
RATIOS = {256: (20, 30), 512: (29, 40)}
# (what it is, ours, theirs, precision of the arithmetic)
ROWS = [
    ("descriptor, float64 inside", "descriptor", "descriptor quests", "double"),
    ("descriptor, float32 inside", "descriptor f32", "descriptor quests", "single"),
    ("dH, float64 rows", "dH", "dH quests", "double"),
    ("  quests at its best", "dH", "dH quests best", "double"),
    ("dH, index, double", "dH index", "dH quests", "double"),
    ("  quests at its best", "dH index", "dH quests best", "double"),
    ("dH, index, single", "dH index single", "dH quests", "single"),
    ("  quests at its best", "dH index single", "dH quests best", "single"),
]


def main() -> None:
    """Measure with one thread and with all cores, and print a table for each."""
    head("Descriptors and exact dH", "quests")
    for threads in sorted({1, cores()}):
        _print(threads, _run(threads))


def _run(threads: int) -> dict[str, Any]:
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    command = [sys.executable, "-m", "benchmarks.measure", str(threads)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _print(threads: int, result: dict[str, Any]) -> None:
    peaks = " and ".join(f"{value / 1e9:.0f} ({name})" for name, value in result["flops"].items())
    memory = result["bytes"] / 1e9
    print(
        f"\n{threads} thread{'s' if threads > 1 else ''}; measured peaks: {peaks} Gflop/s in products, "
        f"{memory:.1f} GB/s (one thread)"
    )
    print(f"{HEAD:<36}{'quests_md':>11}{'quests':>11}{'ratio':>8}{'floor':>8}  max difference")
    for system in result["systems"]:
        micro = system["microseconds"]
        print(
            f"{system['name']}: descriptors of {system['n_large']} environments; "
            f"dH of {system['n_query']}, {system['n_reference']} references"
        )
        for row, ours, theirs, precision in ROWS:
            floor = f"{_floor(system, result, precision):.0f}" if ours.startswith("dH") else "—"
            label = f"{row}, batch {system['batch']}" if "best" in row else row
            print(
                f"  {label:<34}{micro[ours]:>11.2f}{micro[theirs]:>11.1f}{micro[theirs] / micro[ours]:>8.2f}"
                f"{floor:>8}  {system['agreement'][ours]:.1e}"
            )
        if system["infinite"]:
            print(f"  (quests: inf for {system['infinite']} environments; the difference is over the others)")
        _targets(threads, system, result["bits"])
    small = result["small"]
    print("a frame of 64 atoms, least µs: " + ", ".join(f"{n} of them {micro:.0f}" for n, micro in small.items()))
    if threads == 1:
        # What an atom costs in a large frame, and something for the frame.
        large = result["systems"][0]["microseconds"]["descriptor"]
        target("a frame of 64 atoms, all", small["64"], 64 * large + 50, "µs")
        target("a frame of 64 atoms, one", small["1"], 60, "µs")


def _targets(threads: int, system: dict[str, Any], bits: int) -> None:
    """Print what the descriptor must reach on one thread, and exact dH on two or more."""
    micro, differs = system["microseconds"], system["agreement"]
    double, single = RATIOS.get(bits, (15, 25))
    if threads == 1:
        for name, ratio, difference in (("descriptor", double, 1e-9), ("descriptor f32", single, 1e-7)):
            target(f"{name}, ratio", micro["descriptor quests"] / micro[name], ratio, "", least=True)
            target(f"{name}, max difference", differs[name], difference, "1/Å")
    else:
        for name, ratio in (("dH quests", 20), ("dH quests best", 12)):
            target(
                f"dH, index, single: ratio to {name[3:]}", micro[name] / micro["dH index single"], ratio, "", least=True
            )


def _floor(system: dict[str, Any], result: dict[str, Any], precision: str) -> float:
    """Return the µs per environment of a sum over all references, at the measured peaks.

    The larger of: 2·63·n_reference operations at the best rate of a product with the threads used, and
    reading the references once for all queries. The exponentials are not counted.
    """
    n = system["n_reference"]
    compute = OPERATIONS * DIMENSION * n / result["flops"][precision]
    read = 8 * DIMENSION * n / system["n_query"] / result["bytes"]
    return 1e6 * max(compute, read)
