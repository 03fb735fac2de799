"""What a bias finds, and what it costs: copper with a vacancy, crystalline silicon, in LAMMPS, beside unbiased runs."""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.io.lammpsdata import write_lammps_data
from numpy.typing import NDArray

from quests_md import Frame, Index
from quests_md.bias import Bias
from quests_md.descriptors import Environments
from quests_md.hosts.lammps import attach
from quests_md.recording import read_run

from .printing import head
from .silicon import Lammps, cache_folder, crystal, md_index

SELECT, HALT, CEILING = 2.0, 200.0, 20.0
STRENGTH = 0.3  # share of the mean force; the limit of the largest one decides more
EQUILIBRATE, LOOK = 1000, 50  # steps before a run is watched, and between looks at its atoms
FRAMES, APART = 25, 40  # of the index, and steps between them
SITE = 0.65  # of the distance of neighbours: an atom that is farther from its site than this has left it


@dataclass(frozen=True)
class Case:
    """A crystal, its potential, and the runs that are tried."""

    name: str
    make: Callable[[], Any]
    potential: str
    bandwidth: float
    temperature: float  # of the index, and of the biased runs (K)
    hotter: float  # of an unbiased run (K)
    timestep: float  # ps
    neighbour: float  # distance of neighbours in Å
    mass: float


def _copper() -> Any:
    atoms = bulk("Cu", cubic=True).repeat(3)
    del atoms[50]
    return atoms


CASES = {
    "copper": Case(
        "copper, 107 atoms with a vacancy, EAM", _copper,
        "pair_style eam/alloy\npair_coeff * * Cu_mishin1.eam.alloy Cu", 0.03, 600.0, 1000.0, 0.002, 2.556, 63.546,
    ),
    "silicon": Case(
        "silicon, 216 atoms, Stillinger-Weber", lambda: bulk("Si", cubic=True).repeat(3),
        "pair_style sw\npair_coeff * * Si.sw Si", 0.015, 1200.0, 1500.0, 0.001, 2.352, 28.085,
    ),
}  # fmt: skip


def begin(case: Case, temperature: float, seed: int, folder: Path) -> Any:
    """Return a LAMMPS that has come to equilibrium."""
    from lammps import lammps
    from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

    Lammps.set_potentials()
    atoms = case.make()
    symbol = atoms.get_chemical_symbols()[0]
    path = folder / "start.data"
    with open(path, "w", encoding="ascii") as file:
        write_lammps_data(file, atoms, specorder=[symbol], masses=True, units="metal")
    module = lammps(cmdargs=["-screen", "none", "-log", "none"])
    module.commands_string(f"""units metal
read_data {path}
{case.potential}
comm_modify cutoff 7.0
timestep {case.timestep}
velocity all create {2 * temperature} {seed} mom yes rot yes dist gaussian
fix move all nve
fix bath all langevin {temperature} {temperature} 0.1 {seed}
thermo 1000000
run {EQUILIBRATE}
reset_timestep 0
""")
    return module


def positions_of(module: Any) -> NDArray[np.float64]:
    arrays, n = module.numpy, module.extract_setting("nlocal")
    return np.array(arrays.extract_atom("x")[:n][np.argsort(arrays.extract_atom("id")[:n])])


def _reference(case: Case, folder: Path) -> Index:
    """Build the index of a run at the temperature of the biased ones."""
    module, atoms, frames = begin(case, case.temperature, 7, folder), case.make(), []
    for _ in range(FRAMES):
        module.command(f"run {APART}")
        frames.append(Frame(positions_of(module), atoms.numbers, atoms.cell.array, True))
    module.close()
    return Index.build(frames, bandwidth=case.bandwidth, threads=1)


def _count_moved(case: Case, positions: NDArray[np.float64]) -> int:
    """Return how many atoms are on no site of the crystal of their own: they have left it."""
    atoms = case.make()
    away = positions - atoms.positions
    fraction = away @ np.linalg.inv(atoms.cell.array)
    away = (fraction - np.round(fraction)) @ atoms.cell.array
    away -= np.median(away, axis=0)
    return int((np.linalg.norm(away, axis=1) > SITE * case.neighbour).sum())


def _explore(case: Case, index: Index, largest: float, temperature: float, seed: int, steps: int) -> dict[str, Any]:
    """Run once, and say what was found and when."""
    with tempfile.TemporaryDirectory() as folder:
        module = begin(case, temperature, 100 + seed, Path(folder))
        symbol = case.make().get_chemical_symbols()[0]
        settings: dict[str, Any] = {
            "elements": [symbol], "select": SELECT, "halt": HALT, "output": f"{folder}/uq", "implausible": "continue",
            "every": 5, "values": "flagged",
        }  # fmt: skip
        if largest:
            settings["bias"] = {"strength": STRENGTH, "ceiling": CEILING, "largest_force": largest}
        with contextlib.redirect_stdout(io.StringIO()):  # what a run says of its thresholds
            watch = attach(module, index, **settings)
        left, started = np.nan, time.perf_counter()
        for step in range(LOOK, steps + 1, LOOK):
            with contextlib.redirect_stdout(io.StringIO()):
                module.command(f"run {LOOK}")
            if np.isnan(left) and _count_moved(case, positions_of(module)):
                left = step * case.timestep
            if watch.halted:
                break
        moved, seconds = _count_moved(case, positions_of(module)), time.perf_counter() - started
        with contextlib.redirect_stdout(io.StringIO()):  # the summary of the run
            watch.close()
        module.close()
        rows = read_run(f"{folder}/uq").rows
    above = np.isin(rows["band"], ("candidate", "halt"))
    broken = rows["band"] == "implausible"
    first = rows["time"][above][0] - rows["time"][0] if above.any() else np.nan
    share = broken.sum() / max(1, above.sum() + broken.sum())
    return {
        "times": rows["time"] - rows["time"][0], "maxima": rows["max"],
        "largest dH": float(np.nanmax(rows["max"])), "first": float(first), "left": left, "moved": moved,
        "broken": float(share), "seconds": seconds,
    }  # fmt: skip


def _summarise(values: list[float], digits: int) -> str:
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "none"
    text = f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f}–{max(known):.{digits}f})"
    return text if len(known) == len(values) else f"{text}, {len(known)} of {len(values)}"


def _find(case: Case, limits: list[float], seeds: int, time_limit: float) -> dict[str, list[dict[str, Any]]]:
    """Print what a bias of each limit finds, and return it by the name of the run."""
    with tempfile.TemporaryDirectory() as folder:
        index = _reference(case, Path(folder))
    steps = round(time_limit / case.timestep)
    print(f"\n{case.name}: index of {FRAMES} frames at {case.temperature:g} K; {time_limit:g} ps, {seeds} seeds")
    print(f"h = {case.bandwidth}; candidates above {SELECT:g} nats, ceiling {CEILING:g}, strength {STRENGTH:g}")
    print("median (least–most) of the seeds; the limit is that of the largest force of the bias on an atom")
    print(f"  {'run':<26}{'largest dH':>22}{'first candidate, ps':>26}{'first atom left, ps':>26}{'left at end':>16}"
          f"{'implausible':>12}{'s':>6}")  # fmt: skip
    every: dict[str, list[dict[str, Any]]] = {}
    runs = [(0.0, case.temperature), (0.0, case.hotter), *((limit, case.temperature) for limit in limits)]
    for limit, temperature in runs:
        found = [_explore(case, index, limit, temperature, seed, steps) for seed in range(1, seeds + 1)]
        column = {name: [one[name] for one in found] for name in found[0]}
        name = f"at most {limit:g} eV/Å" if limit else "no bias"
        every[f"{name}, {temperature:g} K"] = found
        print(f"  {f'{name}, {temperature:g} K':<26}{_summarise(column['largest dH'], 1):>22}"
              f"{_summarise(column['first'], 2):>26}{_summarise(column['left'], 2):>26}"
              f"{_summarise(column['moved'], 0):>16}{100 * statistics.mean(column['broken']):>10.1f} %"
              f"{statistics.mean(column['seconds']):>6.0f}", flush=True)  # fmt: skip
    return every


def _draw(found: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Draw the largest dH along the runs, one panel for each crystal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(found), 3.8), layout="constrained")
    for axes, (name, runs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for color, (run, seeds) in enumerate(runs.items()):
            for number, one in enumerate(seeds):
                label = run if number == 0 else None
                axes.plot(one["times"], one["maxima"], color=f"C{color}", lw=0.8, alpha=0.8, label=label)
        axes.axhline(SELECT, color="0.5", lw=0.8, ls="--")
        axes.set(title=name, xlabel="time (ps)", ylabel="largest dH (nats)", yscale="symlog")
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))  # below: curves fill the axes
    figure.savefig(path, dpi=130)


def _cost(folder: Path) -> None:
    """Print what a push costs beside dH, and beside potentials."""
    index = md_index(folder, "steering", {300: 4, 600: 3, 900: 3, 1200: 3})
    frame = crystal(6, 0.1, 3)[0]
    environments, n = Environments(index.spec, frame), len(frame.positions)
    which, rows = np.arange(n), index.spec.compute(frame, 1)
    _, gradient = index.differentiate(rows, 1)
    bias = Bias(index, {"tau": 0.01, "ceiling": 1e6, "floor": -1e6})
    calls: dict[str, Callable[[], Any]] = {
        "descriptors": lambda: environments.compute(which, 1),
        "exact dH, single precision": lambda: index.delta_entropy(rows, 1, precision="single"),
        "exact dH, double precision": lambda: index.delta_entropy(rows, 1),
        "dH and its derivatives by descriptors": lambda: index.differentiate(rows, 1),
        "from these to positions": lambda: environments.pull_back(which, gradient, 1),
        "a push, every atom above the floor": lambda: bias.push(frame),
    }
    best = dict.fromkeys(calls, np.inf)
    for _ in range(5):
        for name, call in calls.items():
            started = time.thread_time()
            call()
            best[name] = min(best[name], time.thread_time() - started)
    print(f"\nµs per atom, {n} atoms of silicon, {len(index)} references, one thread, time of the processor")
    for name, seconds in best.items():
        print(f"  {name:<40}{1e6 * seconds / n:>8.1f}")
    double = best["exact dH, double precision"] + best["descriptors"]
    single = best["exact dH, single precision"] + best["descriptors"]
    push = best["a push, every atom above the floor"]
    print(f"  a push / exact dH with its descriptors: {push / double:.1f} (double), {push / single:.1f} (single)")
    for potential in ("sw", "snap"):
        lammps = Lammps(6, 300, 11, potential)
        lammps.run(2)
        steps, started = (50, time.thread_time()) if potential == "sw" else (5, time.thread_time())
        lammps.run(steps)
        print(f"  {f'a step of {potential.upper()}':<40}{1e6 * (time.thread_time() - started) / (steps + 1) / n:>8.1f}")
        lammps.close()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--limits", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="largest forces, eV/Å")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", type=float, default=2.0, help="ps of every run")
    parser.add_argument("--plot", type=Path, help="draw the largest dH along the runs here (.png)")
    options = parser.parse_args()
    head("Steering: what a bias finds, and what it costs", "lammps", "ase")
    _cost(cache_folder())
    found = {name: _find(CASES[name], options.limits, options.seeds, options.time) for name in options.cases}
    if options.plot is not None:
        _draw(found, options.plot)
