"""What starting costs: importing, the first evaluation with kept and without kept machine code, and each kernel.

Every measurement is a process of its own. "Cold" has an empty folder for what numba keeps, "warm" the same folder
once more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .printing import head, target

IMPORT, WARM, COLD = 0.2, 2.0, 30.0  # s
CELLS = 2  # 64 atoms
VALUES = ("exact", "flagged")
TURNS = 7
PARTS = ("import", "open", "warm_up", "first", "all", "cpu")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", nargs="+", choices=list(VALUES), default=list(VALUES))
    parser.add_argument("--kernels", type=int, default=15, help="how many kernels to list (%(default)s)")
    options = parser.parse_args()
    head("Starting: seconds in a fresh interpreter")
    bare, imported = (_import(statement) for statement in ("pass", "import quests_md"))
    print(
        f"\nimport quests_md: {1e3 * (imported - bare):.0f} ms, beside {1e3 * bare:.0f} ms of Python itself (medians)"
    )
    target("import quests_md", imported - bare, IMPORT, "s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "si.qindex"
        _child("save", str(path), "", Path(folder) / "cache")
        for values in options.values:
            _measure(path, values, Path(folder) / values, options.kernels)


def _import(statement: str) -> float:
    """Return the median seconds of a process that does nothing else."""
    taken = []
    for _ in range(TURNS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, env=_environment())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])  # the first writes the .pyc files


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | more


def _measure(index: Path, values: str, cache: Path, kernels: int) -> None:
    """Print the first evaluation, cold and warm, and what compiling took."""
    cold, said = _child("first", str(index), values, cache)
    if "refused" in cold:
        print(f"\n{values}: not available ({cold['refused']})")
        return
    turns = [_child("first", str(index), values, cache)[0] for _ in range(TURNS)]
    warm = {name: statistics.median(turn[name] for turn in turns) for name in PARTS}
    print(f"\n{values}: first evaluation of 64 atoms, index opened from a file; seconds")
    print("          importing   opening   warm_up   evaluating   all, from the start of Python   of the processor")
    for name, part in (("cold", cold), ("warm", warm)):
        numbers = [part[key] for key in PARTS]
        print(
            f"  {name:<8}{numbers[0]:>9.2f}{numbers[1]:>10.3f}{numbers[2]:>10.2f}{numbers[3]:>13.4f}{numbers[4]:>12.2f}"
        )
    print(f"  said on stderr, cold: {said!r}")
    target(f"{values}, warm", warm["all"], WARM, "s")
    target(f"{values}, cold", cold["all"], COLD, "s")
    compiled = sorted(cold["kernels"], key=lambda kernel: -kernel[1])
    total = sum(own for _, own, _ in compiled)
    print(f"  compiled: {len(compiled)} functions in {total:.1f} s of the processor; alone, with what they call:")
    for name, own, whole in compiled[:kernels]:
        print(f"  {own:>8.2f}{whole:>8.2f}   {name}")


def _child(what: str, index: str, values: str, cache: Path) -> tuple[dict[str, Any], str]:
    """Return what a fresh process tells, and what it said on stderr."""
    command = [sys.executable, "-m", "benchmarks.start", what, index, values, str(time.time())]
    environment = _environment(NUMBA_CACHE_DIR=str(cache))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), done.stderr.strip()


# -- in the child: nothing but what a first evaluation needs is imported --------------------------------------------


def _save(index: str) -> dict[str, Any]:
    """Save an index, and the frame to evaluate."""
    import numpy as np

    from quests_md import Index

    from .silicon import crystal

    Index.build(crystal(5, 0.08, 1), threads=1).save(index)
    frame = crystal(CELLS, 0.08, 2)[0]
    np.savez(index + ".npz", positions=frame.positions, numbers=frame.numbers, cell=frame.cell)
    return {}


def _first(index: str, values: str, began: float) -> dict[str, Any]:
    """Evaluate a frame for the first time."""
    clock = [time.perf_counter()]
    import numpy as np

    from quests_md import Frame, Index, Monitor
    from quests_md.errors import QuestsError

    atoms = dict(np.load(index + ".npz"))
    compiled = _listen()
    clock.append(time.perf_counter())
    opened = Index.open(index)
    clock.append(time.perf_counter())
    try:
        monitor = Monitor(opened, select=5.0, halt=1e6, values=values)
    except QuestsError as error:
        return {"refused": str(error)}
    monitor.warm_up()
    clock.append(time.perf_counter())
    monitor.observe(Frame(**atoms, pbc=True))
    clock.append(time.perf_counter())
    parts = [after - before for before, after in itertools.pairwise(clock)]
    told = zip(PARTS, [*parts, time.time() - began, time.process_time()], strict=True)
    return {**dict(told), "kernels": compiled}


def _listen() -> list[tuple[str, float, float]]:
    """Return a list that grows by what is compiled: name, CPU seconds without and with what it calls."""
    from numba.core import event

    compiled: list[tuple[str, float, float]] = []

    class Listener(event.Listener):
        def __init__(self) -> None:
            self.open: list[list[float]] = []  # start, and seconds of those that it called

        def on_start(self, happening: Any) -> None:
            self.open.append([time.process_time(), 0.0])

        def on_end(self, happening: Any) -> None:
            started, called = self.open.pop()
            whole = time.process_time() - started
            if self.open:
                self.open[-1][1] += whole
            function = happening.data["dispatcher"].py_func
            name = f"{function.__module__}.{function.__name__}"
            compiled.append((name.removeprefix("quests_md.kernels."), whole - called, whole))

    event.register("numba:compile", Listener())
    return compiled


if __name__ == "__main__":
    what, where, chosen, when = sys.argv[1:]
    print(json.dumps(_save(where) if what == "save" else _first(where, chosen, float(when))))
