"""What the loop's choice is worth: as many labels chosen by it, at random and evenly in time, from the same runs.

Silicon, as in lammps_examples/active_learning. All that is labelled or explored is kept in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import ase
import ase.io
import numpy as np
from numpy.typing import NDArray

from quests_md import Index
from quests_md.labelling import Queue, label, make_executor
from quests_md.labelling._label import is_dead
from quests_md.learning import LearnConfig
from quests_md.learning._choosing import Candidate, select
from quests_md.learning._exploration import Exploration, explore
from quests_md.learning._loop_folder import Folder, Labelled, State, read_file
from quests_md.learning._stages import (
    Silent,
    Work,
    extend_index,
    label_frames,
    make_jobs,
    prepare,
    run_explorations,
    select_frames,
    train_potential,
)
from quests_md.sources import read_frames, read_labelled
from quests_md.toml import read_toml
from quests_md.training import Errors, make_trainer

from .choice import errors_after
from .printing import head, spread
from .selection import even
from .silicon import cache_folder

EXAMPLE = Path(__file__).parents[1] / "lammps_examples" / "active_learning"
SIZES = (6, 12)
LOOP, RANDOM, EVEN = CHOICES = ("loop", "random", "even in time")
TESTS = ("held-out frames", "random of other seeds", "loop's of other seeds")
WORKERS = 2  # trainings at a time; the example says how many labels and explorations

Key = tuple[str, int]  # an exploration and a step of it


class Labels:
    """The oracle's labels: each frame is labelled once, and one that fails is not tried again."""

    def __init__(self, queue: Queue, config: LearnConfig, executor: Executor) -> None:
        self.queue, self.executor, self._oracle = queue, executor, config.oracle

    def __call__(self, frames: Iterable[ase.Atoms]) -> list[ase.Atoms | None]:
        """Return the frames with labels, None for one that has failed."""
        ids = [self.queue.add(atoms)[0] for atoms in frames]
        if any(self.queue.entry(number).state not in ("done", "failed", "quarantined") for number in ids):
            self.queue.release_dead(is_dead)  # what a benchmark that was ended had under way
            label(self.queue, self._oracle.oracle(), self.executor, workers=self._oracle.workers)
        return [next(self.queue.labelled([number]), None) for number in ids]


@dataclass
class Runs:
    """The explorations of a potential that the loop has trained once more, and the choices among their frames.

    Attributes
    ----------
    seed
        Of the loop.
    start
        The labelled frames that the potential was trained on.
    explorations, frames
        What they came to; and all evaluated frames, in the order of time, one exploration after the other.
    index, thresholds
        That they were judged by.
    labels
        The oracle's.
    """

    seed: int
    start: list[ase.Atoms]
    explorations: list[Exploration]
    frames: dict[Key, ase.Atoms]
    index: Index
    thresholds: dict[str, float]
    labels: Labels

    def choose(self, how: str, n: int, lost: set[Key]) -> list[Key]:
        """Return n frames, none of them of the lost; of the loop's there may be fewer."""
        every = list(self.frames)  # those lost are passed over, so that the others stay as they were
        if how == RANDOM:
            order = np.random.default_rng(self.seed).permutation(len(every))
            return [every[i] for i in order if every[i] not in lost][:n]
        if how == EVEN:
            return [next(key for key in every[i:] if key not in lost) for i in even(np.arange(len(every)), n)]
        proposed = [
            Candidate(exploration.name, frame)
            for exploration in self.explorations
            if exploration.n_candidates
            for frame in read_frames(exploration.candidates)
            if (exploration.name, frame.step) not in lost
        ]
        taken = [proposed[place] for place, *_ in select(self.index, proposed, self.thresholds, n, threads=1)]
        return [(candidate.name, candidate.frame.step) for candidate in taken]

    def chosen(self, n: int, lost: set[Key]) -> dict[str, list[ase.Atoms]]:
        """Return as many labelled frames by every choice. Where a label fails, it is `lost`, and all choose again."""
        while True:
            keys = {LOOP: self.choose(LOOP, n, lost)}
            keys |= {how: self.choose(how, len(keys[LOOP]), lost) for how in (RANDOM, EVEN)}
            every = list(dict.fromkeys(key for some in keys.values() for key in some))
            found = dict(zip(every, self.labels(self.frames[key] for key in every), strict=True))
            done = {key: atoms for key, atoms in found.items() if atoms is not None}
            if len(done) == len(found):
                return {how: [done[key] for key in some] for how, some in keys.items()}
            lost |= found.keys() - done.keys()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="loops, each with explorations of its own")
    parser.add_argument("--folder", type=Path, default=cache_folder(), help="where labels and runs are kept")
    options = parser.parse_args()
    head("The same number of labels, chosen by the loop, at random and evenly in time", "lammps", "tblite")
    folder = options.folder / f"learning-{_fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(folder, 1)
    with make_executor(config.oracle.executor, config.oracle.workers) as executor:
        labels = Labels(Queue(folder / "labels.db", tries=1), config, executor)
        begun(folder, labels)
        every = [made(seed, folder, labels) for seed in range(1, options.seeds + 1)]
        report(every, list(read_labelled(config.held_out[0])), config)


def settings(folder: Path, seed: int) -> LearnConfig:
    """Return what the example is told, for a loop of this folder."""
    values = read_toml(EXAMPLE / "learn.toml")
    values |= {name: str(folder / values[name]) for name in ("training", "held_out")}
    values["explore"] |= {"start": str(folder / values["explore"]["start"])}
    return LearnConfig.make({**values, "output": str(folder / f"seed-{seed}"), "seed": seed}, "learn.toml")


def _fingerprint() -> str:
    """Return what stands for the example's settings in the name of the folder."""
    told = settings(Path(), 1).model_dump(mode="json", exclude={"stop"})
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


# -- the runs ---------------------------------------------------------------------------------------------------------


def begun(folder: Path, labels: Labels) -> None:
    """Make the example's frames, and label those that are to be trained and judged on."""
    config = settings(folder, 1)
    subprocess.run([sys.executable, str(EXAMPLE / "frames.py")], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for path in (Path(config.training[0]), Path(config.held_out[0])):
        frames = labels(ase.io.read(path.with_name(f"{path.stem}_frames.xyz"), ":"))
        ase.io.write(path, [atoms for atoms in frames if atoms is not None], format="extxyz")


def made(seed: int, folder: Path, labels: Labels) -> Runs:
    """Let a loop learn once, and its next potential explore."""
    config = settings(folder, seed)
    place = Folder(Path(config.output))
    place.path.mkdir(exist_ok=True)
    state = State.open(place.path, config)
    work = Work(config, place, state, labels.queue, Silent(), lambda: labels.executor)
    prepare(work)
    train_potential(work, 0)
    label_frames(work, 0, select_frames(work, 0, run_explorations(work, 0)))
    extend_index(work, 0)
    train_potential(work, 1)
    explorations, frames = _explored(work)
    told = ", ".join(f"{one.status} after {one.time:g} ps, {one.n_candidates} candidates" for one in explorations)
    print(f"seed {seed}: {told}", flush=True)
    learned = labels.queue.labelled(read_file(Labelled, place.labelled(0)).done)
    start = [*read_labelled(config.training[0]), *learned]
    thresholds = work.thresholds["select"]
    return Runs(seed, start, explorations, frames, Index.open(place.index(1)), thresholds, labels)


def _explored(work: Work) -> tuple[list[Exploration], dict[Key, ase.Atoms]]:
    """Run the explorations of generation 1 as the loop does, while LAMMPS dumps all that the monitor evaluates."""
    folder, every = work.folder.generation(1), work.config.monitor["every"]
    jobs = []
    for job in make_jobs(work, 1, "explore"):
        setup = folder / f"{job.name}.in"
        setup.write_text(
            f'dump every all custom {every} "{folder / job.name}.dump" id type x y z\n'
            "dump_modify every sort id format float %.17g\n"
        )
        jobs.append(replace(job, settings=job.settings.model_copy(update={"setup": str(setup)})))
    explorations = explore(jobs, work.config.explore.workers)
    frames = {}
    for job in jobs:
        read = ase.io.read(folder / f"{job.name}.dump", ":", format="lammps-dump-text", specorder=["Si"])
        for number, atoms in enumerate(read[1:], start=1):  # the first is the same for all seeds
            bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
            frames[job.name, number * every] = bare
    return explorations, frames


# -- the table --------------------------------------------------------------------------------------------------------


def report(every: list[Runs], held_out: list[ase.Atoms], config: LearnConfig) -> None:
    """Train on every choice, and print the errors."""
    lost: list[set[Key]] = [set() for _ in every]
    chosen = {n: [runs.chosen(n, missing) for runs, missing in zip(every, lost, strict=True)] for n in SIZES}
    # What was chosen of the runs of all other loops: where such a potential goes, and what the monitor flags there.
    largest = chosen[max(SIZES)]
    tests = [
        [
            held_out,
            *([atoms for other in largest if other is not one for atoms in other[how]] for how in (RANDOM, LOOP)),
        ]
        for one in largest
    ]
    rows: dict[tuple[int, str], list[list[ase.Atoms]]] = {(0, "(start)"): [runs.start for runs in every]}
    for n, of_seeds in chosen.items():
        for how in CHOICES:
            rows[n, how] = [runs.start + one[how] for runs, one in zip(every, of_seeds, strict=True)]
    rows[0, "(all of these)"] = [runs.start + _union(chosen, i) for i, runs in enumerate(every)]
    trainer = make_trainer(config.trainer)
    with ThreadPoolExecutor(WORKERS) as pool:
        under_way = {
            key: [pool.submit(errors_after, trainer, frames, *of) for frames, of in zip(some, tests, strict=True)]
            for key, some in rows.items()
        }
        results = {key: [future.result() for future in some] for key, some in under_way.items()}
    _print_head(every, [len(test) for test in tests[0]], sum(map(len, lost)), config)
    for key, found in results.items():
        n_new = [len(frames) - len(runs.start) for frames, runs in zip(rows[key], every, strict=True)]
        _print_row(n_new, key[1], found)
    _print_differences(results)


def _union(chosen: dict[int, list[dict[str, list[ase.Atoms]]]], i: int) -> list[ase.Atoms]:
    """Return all frames that any choice has taken of the runs of one loop, each once."""
    every = (atoms for of_seeds in chosen.values() for some in of_seeds[i].values() for atoms in some)
    return list({atoms.positions.tobytes(): atoms for atoms in every}.values())


def _print_head(every: list[Runs], n_tests: list[int], n_lost: int, config: LearnConfig) -> None:
    explore, monitor, oracle = config.explore, config.monitor, config.oracle
    n_start, n_frames = (_range([len(getattr(runs, what)) for runs in every]) for what in ("start", "frames"))
    print(
        f"\n64 Si at {explore.temperature[0]:g} K, {oracle.keywords['method']}, POD; select {monitor['select']:g}, "
        f"halt {monitor['halt']:g} nats. Start: {n_start} frames, of the crystal and of generation 0. To\nchoose from: "
        f"{n_frames} frames that generation 1 visits, for each of {len(every)} seeds; {n_lost} of those chosen got no "
        f"label, and were replaced.\nJudged on {n_tests[0]} held-out frames of the example (hot crystal and melt, by "
        f"another potential), and on what was chosen of the\nruns of the other seeds: {n_tests[1]} frames at random, "
        f"{n_tests[2]} by the loop. Forces in eV/Å, energies in meV/atom: rmse, mean ± deviation over seeds"
    )
    print(f"\n{'':<21}" + "".join(f"{name:>29}" for name in TESTS))
    print(f"{'labels':<7}{'chosen by':<14}" + f"{'force':>16}{'energy':>13}" * len(TESTS))


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}-{high}"


def _print_row(n_new: list[int], how: str, of_seeds: list[list[Errors]]) -> None:
    cells = [
        f"{spread(_values(of_seeds, place, 'force_rmse'), 3):>16}"
        f"{spread(1000 * _values(of_seeds, place, 'energy_rmse'), 1):>13}"
        for place in range(len(TESTS))
    ]
    print(f"{_range(n_new):<7}{how:<14}{''.join(cells)}", flush=True)


def _print_differences(results: dict[tuple[int, str], list[list[Errors]]]) -> None:
    """Print the loop's force errors less those of the others, seed by seed: they share the start and the runs."""
    print("\nforce error of the loop's choice less that of another: each seed | mean (below 0: the loop's is better)")
    print(f"{'labels':<7}{'less':<14}" + "".join(f"{name:>29}" for name in TESTS))
    for n in SIZES:
        for how in (RANDOM, EVEN):
            cells = []
            for place in range(len(TESTS)):
                less = _values(results[n, LOOP], place, "force_rmse") - _values(results[n, how], place, "force_rmse")
                cells.append(f"{' '.join(f'{value:+.3f}' for value in less)}|{less.mean():+.3f}")
            print(f"{n:<7}{how:<14}" + "".join(f"{cell:>29}" for cell in cells))


def _values(of_seeds: list[list[Errors]], place: int, name: str) -> NDArray[np.float64]:
    return np.array([getattr(found[place], name) for found in of_seeds])
