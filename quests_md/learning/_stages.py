"""The stages of a generation. A stage whose last file is there is skipped; any other can be done again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ase
import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec
from ..elements import SYMBOLS
from ..errors import CalibrationError, ConfigError, IndexFileError, LearningError, OracleError
from ..frame import Frame
from ..index import Index, calibrate, resolve_threshold
from ..labelling import Entry, Labelling, Queue, label
from ..labelling._label import is_dead
from ..recording.reader import iterate_frames
from ..selection import cutouts
from ..sources import describe_source, read_frames, read_labelled, to_frame
from ..training import make_trainer, train
from ..training._records import write_record
from ._choosing import Candidate, Chosen, ErrorMeasure, select
from ._exploration import explore
from ._loop_folder import Exploration, Folder, Job, Labelled, Selected, SelectedFrame, State, Thresholds, read_file
from ._settings import Explore, LearnConfig

__all__ = [
    "Reporter", "Silent", "Work", "extend_index", "is_covered", "label_frames", "list_frames", "list_labels_before",
    "make_jobs", "prepare", "run_explorations", "select_frames", "train_potential", "verify_index",
]  # fmt: skip


class Reporter(Protocol):
    """Listens to the progress of a loop."""

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Hear that a stage begins. `total` is its number of frames or explorations, None if unknown."""

    def step(self, done: int, text: str = "") -> None:
        """Hear how many of them are done. `text` says what happened, if anything did."""

    def row(self, row: dict[str, Any]) -> None:
        """Hear that a generation has ended. `row` is its row in learning.csv, which has just been written."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, *of: object, **more: object) -> None:
        """Say nothing."""

    step = row = stage


@dataclass
class Work:
    """What the stages work with.

    Attributes
    ----------
    config, folder, state, queue, report
        Those of the loop.
    executor
        Returns the executor of the oracle. The first call starts it, and checks the oracle.
    """

    config: LearnConfig
    folder: Folder
    state: State
    queue: Queue
    report: Reporter
    executor: Callable[[], Executor]

    def seed(self, generation: int, kind: int, number: int = 0) -> int:
        """Return the seed of a training (kind 0), an exploration (kind 1) or its confirmation (kind 2): 1 to 9·10⁸.

        LAMMPS takes no larger one. It depends only on the `seed` of the loop, the generation, the kind and the number.
        """
        entropy = [self.config.seed, generation, kind, number]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % 900_000_000 + 1

    def begin(self, generation: int, stage: str, total: int | None = None) -> float:
        """Report that a stage begins, and return the time."""
        self.state.save(generation=generation, stage=stage)
        self.report.stage(generation, stage, total)
        return time.perf_counter()

    def end(self, generation: int, stage: str, started: float) -> None:
        """Record how long a stage took."""
        self.state.add_seconds(generation, stage, time.perf_counter() - started)

    @property
    def thresholds(self) -> Thresholds:
        """`select` and `halt`, in nats for each element; `prepare` fixes them."""
        assert self.state.thresholds is not None
        return self.state.thresholds


# -- the first index ---------------------------------------------------------------------------------------------------


def prepare(work: Work) -> None:
    """Build the index of generation 0, and fix the thresholds in nats for all generations."""
    if work.state.thresholds is not None:
        return
    _build_index(work)
    explore = work.config.explore
    index, starts = Index.open(work.folder.index(0)), list(read_frames(explore.start, elements=explore.elements))
    for frame in starts:
        index.check_elements(frame.numbers)
    counts, monitor = _count_watched(starts), work.config.monitor
    thresholds = {name: resolve_threshold(name, monitor[name], index, counts) for name in ("select", "halt")}
    for symbol, nats in thresholds["select"].items():
        halt = thresholds["halt"][symbol]
        if nats > halt:
            raise ConfigError(
                f"[monitor]: select = {nats:g} lies above halt = {halt:g} ({symbol}): candidates lie between them"
            )
    work.state.save(watched=counts, thresholds=thresholds, bandwidth=index.bandwidth)


def _build_index(work: Work) -> None:
    """Build the index of generation 0."""
    config, started = work.config, work.begin(0, "index")
    spec = DescriptorSpec(config.index.k, config.index.cutoff, config.index.species)
    frames = [frame for file in config.training for frame in read_frames(file, config.index.group_key)]
    described = [describe_source(file) for file in config.training]
    _save_index(Index.build(frames, spec, config.index.bandwidth, sources=described), work.folder.index(0))
    work.end(0, "index", started)


def _count_watched(starts: Iterable[Frame]) -> dict[str, int]:
    """Return the number of watched atoms of each element, in the largest of the start frames."""
    largest = max(starts, key=lambda frame: len(frame.centres))
    numbers, counts = np.unique(largest.numbers[largest.centres], return_counts=True)
    return {SYMBOLS[z]: int(n) for z, n in zip(numbers, counts, strict=True)}


def verify_index(work: Work, generation: int) -> None:
    """Check the hash of the index of a generation, which may be an old file. If it was removed, make it again.

    Raises
    ------
    IndexFileError
        It is damaged.
    """
    path = work.folder.index(generation)
    if not path.exists():
        extend_index(work, generation - 1) if generation else _build_index(work)
    try:
        Index.verify(path)
    except IndexFileError as error:
        raise IndexFileError(f"{error}. Remove it, and start the loop again: it makes it anew") from error


def _save_index(index: Index, path: Path) -> None:
    """Calibrate an index, if that is possible, and save it."""
    try:
        index.calibration = calibrate(index)
    except CalibrationError:
        index.calibration = None  # a threshold that needs one has raised this error before
    index.save(path)


# -- train -----------------------------------------------------------------------------------------------------------


def train_potential(work: Work, generation: int) -> None:
    """Train on all frames that were labelled before this generation."""
    if work.folder.trained(generation).exists():
        return
    keys = work.config.oracle.label_keys()
    frames = list_frames(work, generation)
    held_out = [atoms for file in work.config.held_out for atoms in read_labelled(file, **keys)]
    started, seed = work.begin(generation, "train", len(frames)), work.seed(generation, 0)
    train(make_trainer(work.config.trainer), frames, held_out, work.folder.training(generation), seed=seed)
    work.end(generation, "train", started)


def list_frames(work: Work, generation: int) -> list[ase.Atoms]:
    """Return the labelled frames that the potential of a generation is trained on, and its index is made of."""
    keys = work.config.oracle.label_keys()
    frames = [atoms for file in work.config.training for atoms in read_labelled(file, **keys)]
    return frames + _fetch_frames(work, list_labels_before(work, generation))


def list_labels_before(work: Work, generation: int) -> list[int]:
    """Return the ids of the frames that were labelled in the generations before this one."""
    return [i for g in range(generation) for i in read_file(Labelled, work.folder.labelled(g)).done]


def _fetch_frames(work: Work, ids: list[int]) -> list[ase.Atoms]:
    """Return labelled frames, ordered by id; `LearningError` if some have lost their labels."""
    frames = list(work.queue.labelled(ids))
    if len(frames) < len(ids):
        lost = sorted(set(ids) - {entry.id for entry in work.queue.entries(["done"])})
        raise LearningError(
            f"{work.queue.name}: frames {', '.join(map(str, lost[:10]))} had labels, and have none now: somebody has "
            "changed the queue. Bring it back as it was, or begin in another output"
        )
    return frames


# -- explore ---------------------------------------------------------------------------------------------------------


def run_explorations(work: Work, generation: int) -> list[Exploration]:
    """Run the explorations of a generation, each with a seed of its own.

    If all stay covered, but some began at a frame of the generation before, they run once more from the start, as a
    confirmation: only this shows that a run with this potential stays covered.
    """
    jobs = make_jobs(work, generation, "explore")
    found = _run(work, generation, jobs)
    share = work.config.stop.covered
    if all(is_covered(exploration, share) for exploration in found):
        again = make_jobs(work, generation, "confirm")
        if [job.start for job in again] != [job.start for job in jobs]:
            found += _run(work, generation, again)
    return found


def is_covered(exploration: Exploration, share: float) -> bool:
    """Return whether an exploration finished, and at least this share of its environments is covered."""
    return exploration.status == "finished" and exploration.covered_share >= share


def _run(work: Work, generation: int, jobs: list[Job]) -> list[Exploration]:
    started = work.begin(generation, jobs[0].folder.parent.name, len(jobs))
    found = explore(jobs, work.config.explore.workers, work.report.step)
    work.end(generation, "explore", started)
    return found


def make_jobs(work: Work, generation: int, kind: str) -> list[Job]:
    """Return the jobs of a generation: one for every temperature, pressure and seed; they take the starts in turn.

    `kind` is "explore", with a job for every strength of a bias, too; or "confirm", which is without a bias.
    """
    settings, folder = work.config.explore, work.folder.generation(generation) / kind
    starts = _list_starts(settings)
    # Cut-outs are made of selected frames, not of all candidates.
    monitor = {name: value for name, value in work.config.monitor.items() if name != "cutout"}
    monitor |= {name: _simplify(of) for name, of in work.thresholds.items()}
    jobs = []
    strengths = settings.strength or (0.0,) if kind == "explore" else (0.0,)
    points = itertools.product(settings.state_points(), strengths)
    for number, ((name, temperature, pressure), strength) in enumerate(points):
        name = f"{name}-bias{strength:g}" if strength else name
        last = None if kind == "confirm" else _find_last_covered(work, generation, name)
        jobs.append(
            Job(
                name=name,
                folder=folder / name,
                potential=work.folder.training(generation),
                index=work.folder.index(generation),
                start=str(last or starts[number % len(starts)]),
                temperature=temperature,
                pressure=pressure,
                seed=work.seed(generation, 1 if kind == "explore" else 2, number),
                settings=settings.explore(),
                monitor=monitor,
                continues=last is not None,
                bias=settings.bias_of(strength),
            )
        )
    return jobs


def _list_starts(settings: Explore) -> list[str]:
    """Return the start frames, of a file with or without a selection, each as "file@number"."""
    source = describe_source(settings.start)
    path, selection = source["file"], source["selection"]
    every = range(sum(1 for _ in read_frames(path, elements=settings.elements)))
    if ":" not in selection:
        return [f"{path}@{every[int(selection)]}"]
    parts = [int(part) if part else None for part in selection.split(":")]
    return [f"{path}@{number}" for number in every[slice(*parts)]]


def _simplify(of: dict[str, float]) -> float | dict[str, float]:
    """Return a threshold as one number, if it is the same for all elements."""
    values = set(of.values())
    return values.pop() if len(values) == 1 else of


def _find_last_covered(work: Work, generation: int, name: str) -> Path | None:
    """Return the last covered frame of this exploration in the generation before; None if it stayed covered."""
    if generation == 0 or work.config.explore.restart == "start":
        return None
    before = Exploration.read(work.folder.generation(generation - 1) / "explore" / name)
    return None if is_covered(before, work.config.stop.covered) else before.last_covered


# -- select ----------------------------------------------------------------------------------------------------------


def select_frames(work: Work, generation: int, explorations: list[Exploration]) -> list[int]:
    """Select among the candidates of all explorations, and add the selected frames to the queue; return their ids."""
    path, place = work.folder.selected(generation), work.folder.generation(generation)
    if not path.exists():
        index = Index.open(work.folder.index(generation))
        candidates = [
            Candidate(exploration.candidates.parent.relative_to(place).as_posix(), frame)
            for exploration in explorations
            if exploration.n_candidates
            for frame in map(to_frame, iterate_frames(exploration.candidates))
        ]
        started = work.begin(generation, "select", len(candidates))
        budget, most = work.config.budget, work.config.stop.labels
        if most is not None:
            budget = min(budget, most - len(list_labels_before(work, generation)))
        frames = _add_to_queue(work, generation, index, candidates, budget)
        if not frames:
            return []
        by = work.config.select_by
        measure = None if by == "dH" else ErrorMeasure.of(index).name
        write_record(path, Selected(candidates=len(candidates), by=by, measure=measure, frames=frames))
        work.end(generation, "select", started)
    return [frame.id for frame in read_file(Selected, path).frames]


def _add_to_queue(
    work: Work, generation: int, index: Index, candidates: Sequence[Candidate], budget: int
) -> list[SelectedFrame]:
    """Add selected frames, or their cut-outs, to the queue; return those that are new in this generation."""
    chosen = select(index, candidates, work.thresholds["select"], budget, by=work.config.select_by)
    cuts = [[(one, atoms) for atoms in _cut_out(work, index, candidates[one.place], one)] for one in chosen]
    frames: dict[int, SelectedFrame] = {}
    # The worst cut-out of each frame, then the second of each, ..., until the budget is used up.
    in_turn = (cut for turn in itertools.zip_longest(*cuts) for cut in turn if cut is not None)
    for one, atoms in itertools.islice(in_turn, budget):
        name, step = candidates[one.place].name, candidates[one.place].frame.step
        number, _ = work.queue.add(atoms, generation=generation, exploration=name, step=step)
        if work.queue.entry(number).source.get("generation") == generation:
            told = {"exploration": name, "step": step, "dH": float(one.dH.max()), **_describe_errors(one.errors)}
            frames.setdefault(number, SelectedFrame(id=number, generation=generation, **told))
    return list(frames.values())


def _describe_errors(errors: NDArray[np.float64] | None) -> dict[str, Any]:
    """Return what a record holds of the errors of a selected frame (n_env,); nothing if it was not asked."""
    if errors is None:
        return {}
    known = errors[np.isfinite(errors)]
    return {"error": float(known.max()) if len(known) else None, "outside": len(errors) - len(known)}


def _cut_out(work: Work, index: Index, candidate: Candidate, chosen: Chosen) -> Iterable[ase.Atoms]:
    """Yield the cut-outs of a candidate if [monitor] has `cutout`, else the whole frame."""
    frame, options = candidate.frame, work.config.monitor.get("cutout")
    if options is None:
        per_atom = np.full(len(frame.positions), np.nan)
        per_atom[frame.centres] = chosen.dH
        yield _make_atoms(frame, {"dH": per_atom}, {})
        return
    threshold = min(work.thresholds["select"].values())
    for cut in cutouts(frame, chosen.dH, index.spec.cutoff, threshold=threshold, index=index, **options):
        yield _make_atoms(cut.frame, {"dH": cut.dH, "core": cut.core}, cut.info)


def _make_atoms(frame: Frame, arrays: dict[str, Any], info: dict[str, Any]) -> ase.Atoms:
    atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    for name, values in {"id": frame.ids, **arrays}.items():
        atoms.set_array(name, np.asarray(values))
    atoms.info |= info
    return atoms


# -- label -----------------------------------------------------------------------------------------------------------

_WAIT = 1.0  # seconds between two looks at frames that other workers label


def label_frames(work: Work, generation: int, ids: list[int]) -> None:
    """Label the selected frames. If the labelling of a frame fails, only this frame is lost.

    A frame that failed in an earlier generation, and has its labels by now because somebody tried it again, counts as
    one of this generation.

    Raises
    ------
    OracleError
        More frames have no labels than `failed` of [stop] allows.
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
    found = Labelled(**{state: [e.id for e in entries if e.state == state] for state in Labelled.model_fields})
    found.done = sorted({*found.done, *_find_late(work, generation)})
    write_record(path, found)
    work.end(generation, "label", started)


def _find_late(work: Work, generation: int) -> list[int]:
    """Return the ids of frames that had failed in earlier generations, and have labels now."""
    before = [read_file(Labelled, work.folder.labelled(g)) for g in range(generation)]
    lost = {number for states in before for number in (*states.failed, *states.quarantined)}
    known = set(list_labels_before(work, generation))
    return [entry.id for entry in work.queue.entries(["done"]) if entry.id in lost - known]


def _label_all(work: Work, ids: list[int]) -> list[Entry]:
    """Label until all these frames have ended; wait for those that other workers calculate."""
    table, reported = work.config.oracle, [(0, "")]

    def report(counts: Labelling) -> None:
        event = counts.ended, counts.last  # the count, too: the same may happen to a frame twice
        text, reported[0] = (counts.last if event != reported[0] else ""), event
        work.report.step(counts.done + counts.failed + counts.quarantined, text)

    # This loop has the lock of the folder: the claims of an earlier one that was killed belong to nobody.
    work.queue.release_dead(is_dead)
    while True:
        label(work.queue, table.oracle(), work.executor(), workers=table.workers, report=report)
        entries = [work.queue.entry(number) for number in ids]
        if all(entry.state not in ("waiting", "running") for entry in entries):
            return entries
        time.sleep(_WAIT)  # databases do not say when another program changes them


# -- extend ----------------------------------------------------------------------------------------------------------


def extend_index(work: Work, generation: int) -> None:
    """Make the index of the next generation: extend this one by the labelled frames, and calibrate it."""
    path = work.folder.index(generation + 1)
    if path.exists():
        return
    ids = read_file(Labelled, work.folder.labelled(generation)).done
    started = work.begin(generation, "extend", len(ids))
    frames = []
    for number, atoms in zip(sorted(ids), _fetch_frames(work, ids), strict=True):
        name = f"generation-{generation:03d}/{work.queue.entry(number).source['exploration']}"
        frames.append(to_frame(atoms, group=None if work.config.index.group_key is None else name))
    source = {"file": "queue.db", "selection": ",".join(map(str, ids))}
    _save_index(Index.open(work.folder.index(generation)).extend(frames, sources=[source]), path)
    work.end(generation, "extend", started)
