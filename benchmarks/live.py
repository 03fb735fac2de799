"""What watching costs a LAMMPS of 4096 silicon atoms, evaluated at every step, on one rank and one thread.

Instances of LAMMPS in one process start from the same atoms: one is alone, each of the others is watched in its own
way. They run some steps in turn, and LAMMPS says how long its loop took.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from quests_md import Index
from quests_md.errors import QuestsError
from quests_md.hosts.lammps import attach

from .printing import head, target
from .silicon import Lammps, cache_folder, md_index

CELLS = 8  # 4096 atoms
ATOMS = 8 * CELLS**3
REFERENCES = {300: 4, 600: 3, 900: 3, 1200: 3}  # frames of 1000 atoms at each temperature (K), 50 fs apart
SELECT, HALT = 5.0, 1e6
NAMES = {"sw": "Stillinger-Weber", "snap": "SNAP, twojmax 8"}
STEPS = {"sw": 50, "snap": 8}  # of a turn; LAMMPS adds one to set up, outside of its loop
SHARE = {"exact": 8.0, "flagged": 2.0}  # % of a run with SNAP
BESIDE_SW = 6.0  # µs per atom-step, flagged
AGREEMENT = 0.2


class Run:
    """A LAMMPS, alone or watched, and what each of its turns took."""

    def __init__(self, folder: Path, potential: str, start: Any) -> None:
        folder.mkdir()
        self.log, self.output = folder / "log.lammps", folder / "uq"
        self.lammps = Lammps(CELLS, 300, 11, potential, str(self.log))
        for name, values in start.items():
            self.lammps.write(name, values)
        self.loop: list[float] = []  # µs per atom-step of LAMMPS's loop, a number for every turn
        self.own: list[float] = []  # what the monitor says it took
        self.watch: Any = None

    def attach(self, index: Index, keywords: dict[str, Any]) -> None:
        """Let it be watched at every step."""
        settings = {"elements": ["Si"], "select": SELECT, "halt": HALT, "output": self.output}
        self.watch = attach(self.lammps.module, index, **settings, **keywords)

    def turn(self, steps: int) -> None:
        """Run some steps."""
        seconds, evaluations = self._told()
        self.lammps.run(steps)
        loop = re.findall(r"Loop time of (\S+) on", self.log.read_text())[-1]
        self.loop.append(1e6 * float(loop) / steps / ATOMS)
        if self.watch is not None:
            after = self._told()
            self.own.append(1e6 * (after[0] - seconds) / (after[1] - evaluations) / ATOMS)

    def _told(self) -> tuple[float, int]:
        """Return the seconds and the evaluations in run.json."""
        if self.watch is None:
            return 0.0, 0
        run = json.loads((self.output / "run.json").read_text())
        return run["seconds"], run["evaluations"]

    def close(self) -> None:
        """End it, without the summary of the watch."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.lammps.close()


def main() -> None:
    """Measure beside both potentials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=cache_folder(), help="keep made data here (%(default)s)")
    parser.add_argument("--potentials", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--values", nargs="+", choices=list(SHARE), default=list(SHARE))
    parser.add_argument("--precisions", nargs="+", choices=["double", "single"], default=["double", "single"])
    parser.add_argument("--turns", type=int, default=5, help="of every run (%(default)s)")
    options = parser.parse_args()
    head("What watching costs LAMMPS: 4096 silicon atoms, 300 K, every step evaluated", "lammps")
    index = md_index(options.data, "live", REFERENCES)
    start = _start()
    print(f"one rank, one thread; {len(index)} references, select = {SELECT:g}; medians of {options.turns} turns")
    variants = _variants(options.values, options.precisions)
    for potential in options.potentials:
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder), potential, start, index, variants, options.turns)


def _start() -> dict[str, Any]:
    """Return positions and velocities at 300 K, by LAMMPS's names for them."""
    lammps = Lammps(CELLS, 300, 11)
    lammps.run(500)
    state = {name: lammps.read(name) for name in "xv"}
    lammps.close()
    return state


def _variants(values: list[str], precisions: list[str]) -> list[dict[str, Any]]:
    """Return the keywords of `attach` to measure; without a choice of precision there is one of it."""
    if "precision" not in inspect.signature(attach).parameters:
        return [{"values": value} for value in values]
    return [{"values": value, "precision": precision} for value in values for precision in precisions]


def _measure(folder: Path, potential: str, start: Any, index: Index, variants: list[Any], turns: int) -> None:
    """Run all variants in turn with LAMMPS alone; print a table and the targets."""
    alone = Run(folder / "alone", potential, start)
    watched: dict[str, Run] = {}
    for keywords in variants:
        name = ", ".join(keywords.values())
        run = Run(folder / name.replace(", ", "-"), potential, start)
        try:
            run.attach(index, keywords)
            watched[name] = run
        except QuestsError as error:
            run.close()
            print(f"  {name}: not available ({error})")
    for run in (alone, *watched.values()):
        run.lammps.run(1)  # what is laid out lazily
    for _ in range(turns):
        for run in (alone, *watched.values()):
            run.turn(STEPS[potential])
    base = statistics.median(alone.loop)
    print(f"\n{NAMES[potential]}: LAMMPS alone takes {base:.2f} µs per atom-step; turns of {STEPS[potential]} steps")
    print("  µs per atom-step    watched − alone   (quartiles)      monitor says   ratio   of the run   largest dH")
    for name, run in watched.items():
        _print(name, potential, run, alone)
    for run in (alone, *watched.values()):
        run.close()


def _print(name: str, potential: str, run: Run, alone: Run) -> None:
    """Print one row and its targets."""
    base = statistics.median(alone.loop)
    differences = [watched - unwatched for watched, unwatched in zip(run.loop, alone.loop, strict=True)]
    difference, own = statistics.median(differences), statistics.median(run.own)
    low, _, high = statistics.quantiles(differences, n=4)
    share = 100 * difference / (difference + base)
    print(
        f"  {name:<20}{difference:>15.2f}   ({low:.2f} to {high:.2f}){'':<2}{own:>12.2f}{own / difference:>10.2f}"
        f"{share:>11.2f} %{run.watch.decision.maximum:>13.1f}"
    )
    values = name.partition(",")[0]
    if potential == "sw":
        target(f"{name}: the two differ by", abs(own / difference - 1), AGREEMENT, "")
        if values == "flagged":
            target(f"{name}: watching", difference, BESIDE_SW, "µs per atom-step")
    elif name != "exact, double":  # which takes twice as long, and has to be asked for
        target(f"{name}: of the run", share, SHARE[values], "%")
