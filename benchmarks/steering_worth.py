"""What steering is worth: as many labels from steered runs as from runs left alone, and the potentials trained on them.

Silicon. The Stillinger-Weber potential stands for DFT; POD is what learns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import ase.neighborlist
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from quests_md import DescriptorSpec, Index
from quests_md.compression import compress
from quests_md.hosts.lammps import attach
from quests_md.labelling import compute
from quests_md.training import PodTrainer, Potential, errors
from quests_md.training._potential import lammps_oracle

from .printing import head, spread
from .steering import CASES, CEILING, STRENGTH, Case, begin, positions_of

TRUTH = replace(CASES["silicon"], name="silicon, 64 atoms", make=lambda: bulk("Si", cubic=True).repeat(2))
ORACLE = lammps_oracle(TRUTH.potential.split("\n"), ["Si"])
TRAINER = PodTrainer(parameters={"rcut": 5.0, "rin": 1.0})
STARTS, LABELS, TESTS, LOOK = 10, 10, 8, 10  # frames: to begin with, added, to judge by; steps between evaluations
HALT = 200.0  # nats
SURVIVE = 2025.0  # K: 1.2 times the melting temperature
NEAREST = 1.6  # Å: a run whose atoms are nearer than this has failed


@dataclass(frozen=True)
class Way:
    """A way to find frames."""

    name: str
    temperature: float
    largest_force: float = 0.0  # of the bias in eV/Å; 0: no bias


WAYS = (
    Way("left alone, 600 K", 600.0),
    Way("left alone, 1200 K", 1200.0),
    Way("left alone, 2025 K", 2025.0),
    Way("steered, 600 K, 1 eV/Å", 600.0, 1.0),
    Way("steered, 600 K, 2 eV/Å", 600.0, 2.0),
    Way("steered, 1200 K, 2 eV/Å", 1200.0, 2.0),
)


def sample(case: Case, temperature: float, seed: int, count: int, apart: int) -> list[ase.Atoms]:
    """Return frames of a run of this case, `apart` steps from each other."""
    with tempfile.TemporaryDirectory() as folder:
        module = begin(case, temperature, seed, Path(folder))
        frames = []
        for _ in range(count):
            module.command(f"run {apart} post no")
            frames.append(case.make())
            frames[-1].positions = positions_of(module)
        module.close()
    return frames


def labelled(frames: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """Return the frames with the energies, forces and stresses of the truth."""
    done = []
    for atoms in frames:
        found = compute(ORACLE, atoms).labels
        assert found is not None
        done.append(atoms.copy())
        done[-1].calc = SinglePointCalculator(done[-1], energy=found.energy, forces=found.forces, stress=found.stress)
    return done


def melt() -> list[ase.Atoms]:
    """Return frames of a melt."""
    with tempfile.TemporaryDirectory() as folder:
        module, frames = begin(TRUTH, 3500.0, 41, Path(folder)), []
        module.command("run 4000 post no")
        module.command(f"fix bath all langevin {SURVIVE} {SURVIVE} 0.1 41")
        module.command("run 2000 post no")
        for _ in range(TESTS):
            module.command("run 500 post no")
            frames.append(TRUTH.make())
            frames[-1].positions = positions_of(module)
        module.close()
    return frames


def explore(potential: Potential, index: Index, way: Way, seed: int, steps: int) -> list[ase.Atoms]:
    """Run the crystal with a potential that has learned little, and return what was evaluated until it broke."""
    case, frames = replace(TRUTH, potential="\n".join(potential.commands())), []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        module = begin(case, way.temperature, 100 + seed, Path(folder))
        settings: dict[str, Any] = {"elements": ["Si"], "select": HALT, "halt": HALT, "output": f"{folder}/uq",
                                    "every": LOOK}  # fmt: skip
        if way.largest_force:
            settings["bias"] = {"strength": STRENGTH, "ceiling": CEILING, "largest_force": way.largest_force}
        watch = attach(module, index, **settings)
        with contextlib.suppress(Exception):  # the potential is bad on purpose: what LAMMPS ends with ends the run
            while len(frames) * LOOK < steps and not watch.halted:
                module.command(f"run {LOOK} post no")
                frames.append(case.make())
                frames[-1].positions = positions_of(module)
                if _nearest(frames[-1]) < NEAREST:
                    frames.pop()
                    break
            watch.close()
        module.close()
    return frames


def choose(frames: list[ase.Atoms], spec: DescriptorSpec, count: int) -> list[ase.Atoms]:
    """Return the frames that `compress` keeps."""
    rows = [spec.compute(atoms, 1) for atoms in frames]
    offsets = np.cumsum([0, *map(len, rows)])
    return [frames[i] for i in compress(np.concatenate(rows), offsets, count, bandwidth=TRUTH.bandwidth).selected]


def survive(potential: Potential, seed: int, steps: int) -> float:
    """Return how long a crystal at 1.2 times the melting temperature runs before it fails, in ps."""
    case, done = replace(TRUTH, potential="\n".join(potential.commands())), 0
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):  # a failure of LAMMPS is one, too
        module = begin(case, SURVIVE, 500 + seed, Path(folder))
        while done < steps:
            module.command("run 50 post no")
            atoms = case.make()
            atoms.positions = positions_of(module)
            if not _nearest(atoms) > NEAREST or not module.get_thermo("temp") < 3 * SURVIVE:
                break
            done += 50
        module.close()
    return done * case.timestep


def _nearest(atoms: ase.Atoms) -> float:
    """Return the smallest distance of two atoms in Å; nan if a position is."""
    if not np.isfinite(atoms.positions).all():
        return float("nan")
    return float(min(ase.neighborlist.neighbor_list("d", atoms, 2.2), default=2.2))


def try_once(
    seed: int, steps: int, long: int, tests: dict[str, list[ase.Atoms]], report: Callable[[str, list[float]], None]
) -> None:
    """Explore, label, train and judge in every way, from one start."""
    start = labelled(sample(TRUTH, 300.0, seed, STARTS, 100))
    with tempfile.TemporaryDirectory() as folder:
        first = TRAINER.train(start, Path(folder) / "start")
        index = Index.build(start, bandwidth=TRUTH.bandwidth, threads=1)
        potentials = {"(start)": first}
        for number, way in enumerate(WAYS):
            found = explore(first, index, way, seed, steps)
            if len(found) < LABELS:
                print(f"    seed {seed}, {way.name}: broke after {len(found) * LOOK} steps: too few frames", flush=True)
                continue
            frames = start + labelled(choose(found, index.spec, LABELS))
            potentials[way.name] = TRAINER.train(frames, Path(folder) / str(number))
        for name, potential in potentials.items():
            judged = [errors(potential, frames).force_rmse for frames in tests.values()]
            report(name, [*judged, survive(potential, seed, long)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", type=float, default=5.0, help="ps of every exploration")
    parser.add_argument(
        "--survive", type=float, default=20.0, help="ps of the runs at 1.2 times the melting temperature"
    )
    options = parser.parse_args()
    head("What steering is worth: the same number of labels", "lammps", "ase")
    tests = {
        "crystal, 600 K": labelled(sample(TRUTH, 600.0, 31, TESTS, 200)),
        "crystal, 1500 K": labelled(sample(TRUTH, 1500.0, 32, TESTS, 200)),
        "melt, 2025 K": labelled(melt()),
    }
    table: dict[str, list[list[float]]] = {}
    for seed in range(1, options.seeds + 1):
        try_once(
            seed, round(options.time / TRUTH.timestep), round(options.survive / TRUTH.timestep), tests,
            lambda name, values: table.setdefault(name, []).append(values),
        )  # fmt: skip
    print(f"\n{TRUTH.name}; Stillinger-Weber stands for DFT; POD, trained on {STARTS} frames at 300 K and {LABELS} of")
    print(f"{options.time:g} ps, chosen by compress; {options.seeds} seeds, mean ± deviation. Force errors: rmse, eV/Å")
    columns = [*tests, f"survived of {options.survive:g} ps"]
    print(f"  {'frames from':<26}" + "".join(f"{name:>22}" for name in columns))
    for name, rows in table.items():
        columns_of = zip(*rows, strict=True)
        cells = [spread(np.array(some), 3 if place < len(tests) else 1) for place, some in enumerate(columns_of)]
        print(f"  {name:<26}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
