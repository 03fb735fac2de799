"""Which n structures of a training set to label: chosen by dH, by farthest point or at random, and trained on.

python -m benchmarks choice FOLDER, which holds Si_training.extxyz and Si_test.extxyz.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec, Index
from quests_md.index._force_error import is_known
from quests_md.information import log_kernel_sum
from quests_md.training import Errors, PodTrainer, Trainer, errors

from .peer import BANDWIDTH
from .printing import head, spread

SIZES = (10, 20, 40, 80)
SEEDS = 5
TRAINER = PodTrainer(parameters={"rcut": 5.0, "rin": 1.0})

Choice = Callable[["Candidates", int, int], list[int]]  # of so many structures, for a seed


@dataclass
class Candidates:
    """The structures to choose from, and how near the environments of all are to those of each."""

    starts: NDArray[np.int64]  # of the environments of each structure
    sums: NDArray[np.float64]  # (structures, environments): ln of the kernel sum over a structure
    distances: NDArray[np.float64]  # (structures, environments): to the nearest environment of a structure
    means: NDArray[np.float64]  # (structures, d): mean descriptor

    @classmethod
    def of(cls, rows: list[NDArray[np.float64]]) -> Candidates:
        """Compare all with all."""
        every = np.concatenate(rows)
        squares = (every**2).sum(axis=1)
        nearest = [(squares[:, None] + (r**2).sum(axis=1) - 2 * every @ r.T).min(axis=1) for r in rows]
        return cls(
            np.cumsum([0, *map(len, rows)])[:-1],
            np.array([log_kernel_sum(every, r, BANDWIDTH, threads=1) for r in rows]),
            np.sqrt(np.maximum(nearest, 0.0)),
            np.array([r.mean(axis=0) for r in rows]),
        )

    def __len__(self) -> int:
        return len(self.starts)


def by_dH(candidates: Candidates, n: int, seed: int) -> list[int]:
    """Take the structure whose worst environment has the largest dH against what was taken, again and again."""
    return _greedy(
        candidates, n, seed, candidates.sums, np.logaddexp, lambda known: np.maximum.reduceat(-known, candidates.starts)
    )


def by_mean_dH(candidates: Candidates, n: int, seed: int) -> list[int]:
    """Take the structure with the largest mean dH against what was taken, again and again."""
    sizes = np.diff([*candidates.starts, candidates.sums.shape[1]])
    return _greedy(
        candidates,
        n,
        seed,
        candidates.sums,
        np.logaddexp,
        lambda known: np.add.reduceat(-known, candidates.starts) / sizes,
    )


def by_farthest_environment(candidates: Candidates, n: int, seed: int) -> list[int]:
    """Take the structure with the environment that is farthest from all of what was taken, again and again."""
    return _greedy(
        candidates, n, seed, candidates.distances, np.minimum, lambda near: np.maximum.reduceat(near, candidates.starts)
    )


def by_farthest_mean(candidates: Candidates, n: int, seed: int) -> list[int]:
    """Take the structure whose mean descriptor is farthest from those of what was taken, again and again."""
    between = np.linalg.norm(candidates.means[:, None] - candidates.means, axis=-1)
    return _greedy(candidates, n, seed, between, np.minimum, lambda near: near)


def at_random(candidates: Candidates, n: int, seed: int) -> list[int]:
    """Take any."""
    return np.random.default_rng(seed).permutation(len(candidates))[:n].tolist()


def _greedy(
    candidates: Candidates, n: int, seed: int, table: NDArray[np.float64], join: Any, score: Callable[[Any], Any]
) -> list[int]:
    """Return a structure that the seed draws, then those with the highest score against what was taken."""
    taken = at_random(candidates, 1, seed)
    known = table[taken[0]].copy()
    while len(taken) < n:
        scores = np.array(score(known), dtype=float)
        scores[taken] = -np.inf
        taken.append(int(scores.argmax()))
        known = join(known, table[taken[-1]])
    return taken


CHOICES: dict[str, Choice] = {
    "dH, worst environment": by_dH,
    "dH, mean": by_mean_dH,
    "farthest environment": by_farthest_environment,
    "farthest mean descriptor": by_farthest_mean,
    "random": at_random,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files are; they are not in the repository")
    parser.add_argument("--element", default="Si", help="Si or Ge; default Si")
    options = parser.parse_args()
    paths = [options.folder / f"{options.element}_{name}.extxyz" for name in ("training", "test")]
    if not all(path.exists() for path in paths):
        raise SystemExit(f"{options.folder}: needs the data of Zuo et al. (2020): see benchmarks/README.md")
    training, test = (ase.io.read(path, ":") for path in paths)
    head("Structures of a training set, chosen in several ways and trained on", "lammps")
    spec = DescriptorSpec()
    rows = [spec.compute(atoms) for atoms in training]
    index = Index.build(training, spec, bandwidth=BANDWIDTH, threads=1)
    new = [atoms for atoms in test if not is_known(index, spec.compute(atoms), 1)]
    print(
        f"{options.element} of Zuo et al. (2020): {len(training)} structures to choose from; errors on the {len(new)} "
        f"of the {len(test)} of the test set that\nare not in the training set up to symmetry; POD with LAMMPS's "
        f"defaults, rcut 5 Å, rin 1 Å; h = {BANDWIDTH}. All but\nrandom are greedy from a first structure at random: "
        f"mean ± deviation over {SEEDS} of these"
    )
    print(
        f"\n{'n':<4}{'chosen by':<26}{'atoms':>7}{'force rmse (eV/Å)':>20}{'largest':>9}{'energy rmse (meV/atom)':>25}"
    )
    candidates = Candidates.of(rows)
    for n in SIZES:
        for name, choose in CHOICES.items():
            taken = [choose(candidates, n, seed) for seed in range(SEEDS)]
            _print_row(str(n), name, [_trained([training[i] for i in one], new) for one in taken])
    _print_row(str(len(training)), "all", [_trained(training, new)])


def _trained(frames: list[Any], test: list[Any]) -> tuple[int, Errors]:
    """Return the number of atoms to label, and the errors on the test set."""
    return sum(map(len, frames)), errors_after(TRAINER, frames, test)[0]


def errors_after(trainer: Trainer, frames: list[Any], *tests: list[Any]) -> list[Errors]:
    """Return the errors on each test set of a potential that is trained on frames."""
    with tempfile.TemporaryDirectory() as folder:
        potential = trainer.train(frames, Path(folder))
        return [errors(potential, test) for test in tests]


def _print_row(n: str, name: str, results: list[tuple[int, Errors]]) -> None:
    forces = np.array([found.force_rmse for _, found in results])
    energies = 1000 * np.array([found.energy_rmse for _, found in results])
    print(
        f"{n:<4}{name:<26}{np.mean([atoms for atoms, _ in results]):>7.0f}{spread(forces, 3):>20}{forces.max():>9.3f}"
        f"{spread(energies, 1):>25}",
        flush=True,
    )
