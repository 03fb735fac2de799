"""The stages of a generation. Each can be done again, and is passed over where its last file is there."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, Environments
from ..elements import SYMBOLS
from ..errors import CalibrationError, ConfigError, IndexFileError, LearningError, OracleError, SourceError
from ..frame import Frame
from ..index import Index, calibrate, resolve_threshold
from ..labelling import Entry, Labelling, Queue, label
from ..monitor import Above
from ..recording.reader import iterate_frames
from ..selection import Selection, cutouts
from ..sources import describe_source, read_frames, read_labelled, to_frame
from ..training import make_trainer, train
from ._exploration import explore
from ._job import Exploration, Job
from ._settings import LearnConfig
from ._state import Folder, Reporter, State, read_json, write_json

__all__ = [
    "Candidate",
    "Work",
    "explored",
    "extended",
    "is_covered",
    "is_dead",
    "labelled",
    "labels_before",
    "prepared",
    "select",
    "selected",
    "start_of",
    "trained",
    "verified",
]


def start_of(job: Job, elements: tuple[str, ...]) -> Any:
    """Return the start frame as ``ase.Atoms``, with velocities: its own where it goes on from there, else drawn.

    Raises
    ------
    SourceError
        It cannot be read, or holds an element that the potential does not know.
    """
    import ase.io

    path, selection = job.start, "0"
    if not Path(path).exists() and "@" in path:
        path, selection = path.rsplit("@", 1)
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file")
    try:
        # An index of one frame, so that this is no list.
        atoms = ase.io.read(path, int(selection), parallel=False, do_not_split_by_at_sign=True)
    except Exception as error:
        # What ASE's readers raise is as varied as the readers are.
        raise SourceError(f"{job.start}: ASE cannot read a frame: {type(error).__name__}: {error}") from error
    atoms.calc = None
    atoms.set_constraint()
    strange = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if strange:
        raise SourceError(f"{job.start} holds {', '.join(strange)}; the potential knows {', '.join(elements)}")
    if job.pressure is not None and not atoms.pbc.all():
        raise SourceError(f"{job.start}: a pressure needs a frame that is periodic in three directions")
    if not job.continues or "momenta" not in atoms.arrays:
        _draw(atoms, job.temperature, job.seed)
    return atoms


def _draw(atoms: Any, temperature: float, seed: int) -> None:
    """Give atoms velocities of a temperature (K), without motion of the whole."""
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.RandomState(seed))
    if len(atoms) > 1:  # one atom alone would be left without any
        Stationary(atoms)


def is_dead(worker: str) -> bool:
    """Return whether the name of a worker, "NODE-PID-TOKEN", is that of a process that this machine no longer has."""
    node, _, rest = worker.partition(f"{platform.node()}-")
    pid, _, token = rest.partition("-")
    if node or not pid.isdigit() or not token:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


_WAIT = 1.0  # seconds between looks at frames that other workers label


def labelled(work: Work, generation: int, ids: list[int]) -> None:
    """Label what was selected. A frame whose labelling fails costs that frame.

    What failed in a generation before and has its labels by now, as somebody let it wait again, counts as one of this.

    Raises
    ------
    OracleError
        More than the share [stop] failed of them have no labels.
    """
    path = work.folder.labelled(generation)
    if path.exists():
        return
    started = work.begin(generation, "label", len(ids))
    entries = _label_all(work, ids)
    lost = [entry for entry in entries if entry.state != "done"]
    if len(lost) > work.config.stop.failed * len(ids):
        reasons = "; ".join(f"frame {entry.id}: {entry.reason}" for entry in lost[:3])
        raise OracleError(
            f"{len(lost)} of {len(ids)} frames of generation {generation} have no labels, more than failed = "
            f"{work.config.stop.failed:g} allows: {reasons}. See: quests-md queue list {work.folder.queue}; "
            f"when the oracle is right again: quests-md queue retry {work.folder.queue}, and start the loop again"
        )
    states = {
        state: [entry.id for entry in entries if entry.state == state] for state in ("done", "failed", "quarantined")
    }
    states["done"] = sorted({*states["done"], *_late(work, generation)})
    write_json(path, states)
    work.end(generation, "label", started)


def _late(work: Work, generation: int) -> list[int]:
    """Return the ids of frames of generations before that have got their labels since."""
    before = [read_json(work.folder.labelled(g)) for g in range(generation)]
    lost = {number for states in before for state in ("failed", "quarantined") for number in states[state]}
    known = set(labels_before(work, generation))
    return [entry.id for entry in work.queue.entries(["done"]) if entry.id in lost - known]


def _label_all(work: Work, ids: list[int]) -> list[Entry]:
    """Label until none of these frames waits; what other workers calculate is waited for."""
    table, told = work.config.oracle, [(0, "")]

    def report(counts: Labelling) -> None:
        event = counts.ended, counts.last  # the same may happen to a frame twice
        text, told[0] = (counts.last if event != told[0] else ""), event
        work.report.step(counts.done + counts.failed + counts.quarantined, text)

    # With the lock of the folder, claims of a loop that was killed are known to be nobody's.
    work.queue.release_dead(is_dead)
    while True:
        label(work.queue, table.oracle(), work.executor(), workers=table.workers, report=report)
        entries = [work.queue.entry(number) for number in ids]
        if all(entry.state not in ("waiting", "running") for entry in entries):
            return entries
        time.sleep(_WAIT)  # no database tells when another program has changed it


@dataclass(frozen=True)
class Candidate:
    """A frame that an exploration proposes.

    Attributes
    ----------
    name
        The exploration.
    frame
        What it proposes.
    """

    name: str
    frame: Frame


def _find_above(
    frame: Frame, index: Index, select: Mapping[str, float], threads: int | None
) -> tuple[Above, NDArray[np.float64]]:
    """Return the environments of a frame that lie above `select`, and dH (n_env,) of all its environments, in nats."""
    environments = Environments(index.spec, frame)
    centres, ids = environments.centres, frame.ids
    dH = index.delta_entropy(environments.compute(np.arange(len(centres)), threads), threads)
    thresholds = np.array([select[SYMBOLS[z]] for z in frame.numbers[centres].tolist()])
    above = np.flatnonzero(dH > thresholds)
    assert ids is not None

    def rows(which: NDArray[np.int64]) -> NDArray[np.float64]:
        return environments.compute(above[which], threads)

    return Above(frame.step, np.asarray(ids)[centres[above]], dH[above], thresholds[above], rows), dH


def select(
    index: Index,
    candidates: Sequence[Candidate],
    thresholds: Mapping[str, float],
    budget: int,
    threads: int | None = None,
) -> list[tuple[int, NDArray[np.float64]]]:
    """Choose the candidates that are labelled.

    They pass the selection of a watched run in the order of their steps, as if one run had made them all: a frame is
    kept if any of its environments is novel against the index and the frames that are kept, and a full budget lets
    the one with the fewest novel environments go for one with more.

    Parameters
    ----------
    index
        Of this generation.
    candidates
        Of all explorations.
    thresholds
        `select` of every element, in nats.
    budget
        The most frames.
    threads
        Threads to use; None takes all cores.

    Returns
    -------
    list of (int, ndarray)
        Places in `candidates`, in the order of their steps; and the dH (n_env,) of each frame's environments, in nats.
    """
    order = sorted(range(len(candidates)), key=lambda i: (candidates[i].frame.step, candidates[i].name))
    selection, kept = Selection(index, budget=budget, threads=threads), dict[int, tuple[int, NDArray[np.float64]]]()
    for place in order:
        above, dH = _find_above(candidates[place].frame, index, thresholds, threads)
        verdict = selection.consider(above, first=True)
        if verdict.drop is not None:
            del kept[verdict.drop]
        if verdict.ordinal is not None:
            kept[verdict.ordinal] = (place, dH)
    return list(kept.values())


@dataclass
class Work:
    """What the stages work with.

    Attributes
    ----------
    config, folder, state, queue, report
        Of the loop.
    executor
        Returns the executor of the oracle, which the first call starts and checks.
    """

    config: LearnConfig
    folder: Folder
    state: State
    queue: Queue
    report: Reporter
    executor: Callable[[], Executor]

    def seed(self, generation: int, kind: int, number: int = 0) -> int:
        """Return the seed of a training (kind 0) or of exploration `number` (1; 2 of the confirmation): 1 to 9·10⁸.

        LAMMPS takes no larger one. It depends on [seed], the generation, kind and number, and on nothing else.
        """
        entropy = [self.config.seed, generation, kind, number]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % 900_000_000 + 1

    def begin(self, generation: int, stage: str, total: int | None = None) -> float:
        """Say that a stage begins, and return when it did."""
        self.state.save(generation=generation, stage=stage)
        self.report.stage(generation, stage, total)
        return time.perf_counter()

    def end(self, generation: int, stage: str, started: float) -> None:
        """Keep how long a stage took."""
        self.state.took(generation, stage, time.perf_counter() - started)


def prepared(work: Work) -> None:
    """Build the index of generation 0, and settle what the thresholds come to for good."""
    if "thresholds" in work.state.data:
        return
    _build(work)
    config, index, counts = work.config, Index.open(work.folder.index(0)), _counts(work.config)
    for frame in _starts(config):
        index.check_elements(frame.numbers)
    thresholds = {name: resolve_threshold(name, config.monitor[name], index, counts) for name in ("select", "halt")}
    for symbol, nats in thresholds["select"].items():
        halt = thresholds["halt"][symbol]
        if nats > halt:
            raise ConfigError(
                f"[monitor]: select = {nats:g} lies above halt = {halt:g} ({symbol}): candidates lie between them"
            )
    work.state.save(watched=counts, thresholds=thresholds, bandwidth=index.bandwidth)


def _build(work: Work) -> None:
    """Build the index of generation 0."""
    config, started = work.config, work.begin(0, "index")
    spec = DescriptorSpec(config.index.k, config.index.cutoff, config.index.species)
    frames = [frame for file in config.training for frame in read_frames(file, config.index.group_key)]
    described = [describe_source(file) for file in config.training]
    _save(Index.build(frames, spec, config.index.bandwidth, sources=described), work.folder.index(0))
    work.end(0, "index", started)


def _starts(config: LearnConfig) -> list[Frame]:
    return list(read_frames(config.explore.start))


def _counts(config: LearnConfig) -> dict[str, int]:
    """Return the watched atoms of the largest frame that explorations start from, by symbol."""
    largest = max(_starts(config), key=lambda frame: len(frame.centres))
    numbers, counts = np.unique(largest.numbers[largest.centres], return_counts=True)
    return {SYMBOLS[z]: int(n) for z, n in zip(numbers, counts, strict=True)}


def verified(work: Work, generation: int) -> None:
    """Hash the index of a generation, as it may lie there for long; make one that was removed again.

    Raises
    ------
    IndexFileError
        It is damaged.
    """
    path = work.folder.index(generation)
    if not path.exists():
        extended(work, generation - 1) if generation else _build(work)
    try:
        Index.verify(path)
    except IndexFileError as error:
        raise IndexFileError(f"{error}. Remove it, and start the loop again: it makes it anew") from error


def _save(index: Index, path: Path) -> None:
    """Calibrate an index, where that can be done, and save it."""
    try:
        index.calibration = calibrate(index)
    except CalibrationError:
        index.calibration = None  # thresholds that need one have said so when they were settled
    index.save(path)


# -- train -----------------------------------------------------------------------------------------------------------


def trained(work: Work, generation: int) -> None:
    """Train on all frames that are labelled before this generation."""
    folder = work.folder.training(generation)
    if not work.folder.trained(generation).exists():
        frames = [atoms for file in work.config.training for atoms in read_labelled(file)]
        frames += _frames(work, labels_before(work, generation))
        held_out = [atoms for file in work.config.held_out for atoms in read_labelled(file)]
        started = work.begin(generation, "train", len(frames))
        train(make_trainer(work.config.trainer), frames, held_out, folder, seed=work.seed(generation, 0))
        work.end(generation, "train", started)


def labels_before(work: Work, generation: int) -> list[int]:
    """Return the ids of the frames that were labelled in the generations before."""
    return [i for g in range(generation) for i in read_json(work.folder.labelled(g))["done"]]


def _frames(work: Work, ids: list[int]) -> list[ase.Atoms]:
    """Return labelled frames, by id; `LearningError` where some have lost their labels."""
    frames = list(work.queue.labelled(ids))
    if len(frames) < len(ids):
        lost = sorted(set(ids) - {entry.id for entry in work.queue.entries(["done"])})
        raise LearningError(
            f"{work.queue.name}: frames {', '.join(map(str, lost[:10]))} had labels, and have none now: somebody has "
            "changed the queue. Bring it back as it was, or begin in another output"
        )
    return frames


# -- explore ---------------------------------------------------------------------------------------------------------


def explored(work: Work, generation: int) -> list[Exploration]:
    """Run the explorations of a generation, each with a seed of its own.

    Where some went on from a frame of the generation before and all stay covered, they run once more, from the start:
    only that says that a run of this potential stays covered.
    """
    jobs = _jobs(work, generation, "explore")
    found = _run(work, generation, jobs)
    share = work.config.stop.covered
    if all(is_covered(exploration, share) for exploration in found):
        again = _jobs(work, generation, "confirm")
        if [job.start for job in again] != [job.start for job in jobs]:
            found += _run(work, generation, again)
    return found


def is_covered(exploration: Exploration, share: float) -> bool:
    """Return whether an exploration came to its end, and this share of its environments is covered."""
    return exploration.status == "finished" and exploration.covered_share >= share


def _run(work: Work, generation: int, jobs: list[Job]) -> list[Exploration]:
    started = work.begin(generation, jobs[0].folder.parent.name, len(jobs))
    found = explore(jobs, work.config.explore.workers, work.report.step)
    work.end(generation, "explore", started)
    return found


def _jobs(work: Work, generation: int, kind: str) -> list[Job]:
    """Return the explorations of a generation: every temperature, pressure and seed, with the starts in turn."""
    settings, folder = work.config.explore, work.folder.generation(generation) / kind
    starts = _start_frames(settings.start)
    # Cut-outs are made of what is selected, and not of all that is proposed.
    monitor = {name: value for name, value in work.config.monitor.items() if name != "cutout"}
    monitor |= {name: _threshold(of) for name, of in work.state.data["thresholds"].items()}
    jobs = []
    for number, (name, temperature, pressure) in enumerate(settings.state_points()):
        went_on = None if kind == "confirm" else _last_covered(work, generation, name)
        jobs.append(
            Job(
                name=name,
                folder=folder / name,
                potential=work.folder.training(generation),
                index=work.folder.index(generation),
                start=str(went_on or starts[number % len(starts)]),
                temperature=temperature,
                pressure=pressure,
                seed=work.seed(generation, 1 if kind == "explore" else 2, number),
                settings=settings.explore(),
                monitor=monitor,
                continues=went_on is not None,
            )
        )
    return jobs


def _start_frames(start: str) -> list[str]:
    """Return each frame of `start`, a file with or without a selection, as "file@number"."""
    source = describe_source(start)
    path, selection = source["file"], source["selection"]
    every = range(sum(1 for _ in read_frames(path)))
    if ":" not in selection:
        return [f"{path}@{every[int(selection)]}"]
    parts = [int(part) if part else None for part in selection.split(":")]
    return [f"{path}@{number}" for number in every[slice(*parts)]]


def _threshold(of: dict[str, float]) -> float | dict[str, float]:
    """Return a threshold as a watched run takes it: one number where all elements have the same."""
    values = set(of.values())
    return values.pop() if len(values) == 1 else of


def _last_covered(work: Work, generation: int, name: str) -> Path | None:
    """Return the last covered frame of the generation before, unless that was covered to its end."""
    if generation == 0 or work.config.explore.restart == "start":
        return None
    before = Exploration.read(work.folder.generation(generation - 1) / "explore" / name)
    return None if is_covered(before, work.config.stop.covered) else before.last_covered


# -- select ----------------------------------------------------------------------------------------------------------


def selected(work: Work, generation: int, explorations: list[Exploration]) -> list[int]:
    """Choose among the candidates of all explorations, and add them to the queue; return their ids."""
    path = work.folder.selected(generation)
    if not path.exists():
        config, index = work.config, Index.open(work.folder.index(generation))
        candidates = [
            Candidate(exploration.candidates.parent.relative_to(work.folder.generation(generation)).as_posix(), frame)
            for exploration in explorations
            if exploration.n_candidates
            for frame in map(to_frame, iterate_frames(exploration.candidates))
        ]
        started = work.begin(generation, "select", len(candidates))
        thresholds = work.state.data["thresholds"]["select"]
        budget = config.budget
        if config.stop.labels is not None:
            budget = min(budget, config.stop.labels - len(labels_before(work, generation)))
        chosen = select(index, candidates, thresholds, budget)
        cuts = [[(place, dH, atoms) for atoms in _to_label(work, index, candidates[place], dH)] for place, dH in chosen]
        rows: dict[int, dict[str, Any]] = {}
        # The worst cut-out of each frame, then the second one, ...: so many are labelled as the budget says.
        in_turn = (cut for turn in itertools.zip_longest(*cuts) for cut in turn if cut is not None)
        for place, dH, atoms in itertools.islice(in_turn, budget):
            candidate = candidates[place]
            source: dict[str, str | int | float] = {
                "generation": generation,
                "exploration": candidate.name,
                "step": candidate.frame.step,
            }
            number, _ = work.queue.add(atoms, **source)
            if work.queue.entry(number).source.get("generation") == generation:
                rows.setdefault(number, {"id": number, **source, "dH": float(dH.max())})
        if not rows:
            return []
        write_json(path, {"candidates": len(candidates), "frames": list(rows.values())})
        work.end(generation, "select", started)
    return [row["id"] for row in read_json(path)["frames"]]


def _to_label(work: Work, index: Index, candidate: Candidate, dH: Any) -> Iterable[ase.Atoms]:
    """Yield the frame, or its cut-outs where [monitor] says how to make them."""
    frame, options = candidate.frame, work.config.monitor.get("cutout")
    if options is None:
        per_atom = np.full(len(frame.positions), np.nan)
        per_atom[frame.centres] = dH
        yield _atoms_of(frame, {"dH": per_atom}, {})
        return
    threshold = min(work.state.data["thresholds"]["select"].values())
    for cut in cutouts(frame, dH, index.spec.cutoff, threshold=threshold, index=index, **options):
        yield _atoms_of(cut.frame, {"dH": cut.dH, "core": cut.core}, cut.info)


def _atoms_of(frame: Frame, arrays: dict[str, Any], info: dict[str, Any]) -> ase.Atoms:
    atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    for name, values in {"id": frame.ids, **arrays}.items():
        atoms.set_array(name, np.asarray(values))
    atoms.info |= info
    return atoms


# -- extend ----------------------------------------------------------------------------------------------------------


def extended(work: Work, generation: int) -> None:
    """Add the labelled frames to the index, as its next generation, and calibrate that."""
    path = work.folder.index(generation + 1)
    if path.exists():
        return
    ids = read_json(work.folder.labelled(generation))["done"]
    started = work.begin(generation, "extend", len(ids))
    frames = []
    for number, atoms in zip(sorted(ids), _frames(work, ids), strict=True):
        name = f"generation-{generation:03d}/{work.queue.entry(number).source['exploration']}"
        frames.append(to_frame(atoms, group=None if work.config.index.group_key is None else name))
    source = {"file": "queue.db", "selection": ",".join(map(str, ids))}
    _save(Index.open(work.folder.index(generation)).extend(frames, sources=[source]), path)
    work.end(generation, "extend", started)
