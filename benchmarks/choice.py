"""Which n structures of a training set to label: chosen by dH, farthest point, expected error or at random; trained on.

python -m benchmarks choice FOLDER, which holds Si_training.extxyz and Si_test.extxyz.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec, Frame, Index
from quests_md.index import find_known
from quests_md.information import log_kernel_sum
from quests_md.learning._choosing import Candidate, select
from quests_md.learning._residual_stage import Trained, add_residuals
from quests_md.learning._settings import SelectBy
from quests_md.training import Errors, PodTrainer, Trainer, errors

from .peer import BANDWIDTH
from .printing import head, spread

SIZES = (10, 20, 40, 80)
SEEDS = 5
FIRST = 10  # structures that a loop begins with: a cross-validation needs eight
TRAINER = PodTrainer(parameters={"rcut": 5.0, "rin": 1.0})

Choice = Callable[["Candidates", int, int], list[int]]  # of so many structures, for a seed


@dataclass
class Candidates:
    """The structures to choose from, and how near the environments of all are to those of each."""

    starts: NDArray[np.int64]  # of the environments of each structure
    sums: NDArray[np.float64]  # (structures, environments): ln of the kernel sum over a structure
    distances: NDArray[np.float64]  # (structures, environments): to the nearest environment of a structure
    means: NDArray[np.float64]  # (structures, d): mean descriptor
    structures: Sequence[Any]  # with labels; a choice may look at those of what it has taken

    @classmethod
    def of(cls, structures: Sequence[Any], rows: list[NDArray[np.float64]]) -> Candidates:
        """Compare all with all."""
        every = np.concatenate(rows)
        squares = (every**2).sum(axis=1)
        nearest = [(squares[:, None] + (r**2).sum(axis=1) - 2 * every @ r.T).min(axis=1) for r in rows]
        return cls(
            np.cumsum([0, *map(len, rows)])[:-1],
            np.array([log_kernel_sum(every, r, BANDWIDTH, threads=1) for r in rows]),
            np.sqrt(np.maximum(nearest, 0.0)),
            np.array([r.mean(axis=0) for r in rows]),
            structures,
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


def by_loop(by: SelectBy) -> Choice:
    """Return the choice of a loop, without its explorations: `FIRST` at random, then batches that double them."""

    def choose(candidates: Candidates, n: int, seed: int) -> list[int]:
        order = at_random(candidates, len(candidates), seed)
        taken = order[: min(FIRST, n)]
        while len(taken) < n:
            left, size = sorted(set(order) - set(taken)), min(len(taken), n - len(taken))
            offered = [Candidate("", Frame.from_atoms(candidates.structures[i], step=i)) for i in left]
            index = _learn([candidates.structures[i] for i in taken], seed, by)
            above = dict.fromkeys(index.elements, 0.0)
            chosen = [left[one.place] for one in select(index, offered, above, size, 1, by=by)]
            others = [i for i in order if i not in {*taken, *chosen}]  # if fewer are new than are wanted
            taken += chosen + others[: size - len(chosen)]
        return taken

    return choose


def _learn(structures: list[Any], seed: int, by: SelectBy) -> Index:
    """Return the index of structures and, unless `by` is "dH", what it says of a potential that is trained on them."""
    index = Index.build(structures, bandwidth=BANDWIDTH, threads=1)
    if by == "dH":
        return index
    with tempfile.TemporaryDirectory() as folder:
        potential = TRAINER.train(structures, Path(folder) / "all", seed=seed)
        trained = Trained("POD", potential, TRAINER, seed, True, Path(folder) / "fold")
        return add_residuals(index, structures, trained, print, lambda _: None)


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
    "loop, dH": by_loop("dH"),
    "loop, expected error": by_loop("error"),
    "loop, both": by_loop("both"),
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
    new = [atoms for atoms in test if not find_known(index, spec.compute(atoms), 1).all()]
    print(
        f"{options.element} of Zuo et al. (2020): {len(training)} structures to choose from; errors on the {len(new)} "
        f"of the {len(test)} of the test set that\nare not in the training set up to symmetry; POD with LAMMPS's "
        f"defaults, rcut 5 Å, rin 1 Å; h = {BANDWIDTH}. All but\nrandom are greedy from a first structure at random, "
        f"those of a loop from {FIRST} at random: mean ± deviation over {SEEDS} of these"
    )
    print(
        f"\n{'n':<4}{'chosen by':<26}{'atoms':>7}{'force rmse (eV/Å)':>20}{'largest':>9}{'energy rmse (meV/atom)':>25}"
    )
    candidates = Candidates.of(training, rows)
    # Each choice goes on from what it has, so the first n of the most are the choice of n.
    every = {name: [choose(candidates, max(SIZES), seed) for seed in range(SEEDS)] for name, choose in CHOICES.items()}
    for n in SIZES:
        for name, chosen in every.items():
            if n > FIRST or not name.startswith("loop"):  # a loop begins as random does
                _print_row(str(n), name, [_trained([training[i] for i in one[:n]], new) for one in chosen])
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
