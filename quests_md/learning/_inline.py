"""A run that learns where it halts, in the process that moves the atoms: for oracles that are cheap."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
from ase.calculators.calculator import Calculator, all_changes

from ..config import RunConfig
from ..errors import Halted, HostError, InputError, OracleError, OutputError
from ..files import FolderLock
from ..hosts.ase import MonitoredCalculator
from ..hosts.lammps._attach import attach
from ..index import Index
from ..labelling import Oracle, Queue, check_labels, label, make_executor
from ..labelling._label import is_dead
from ..monitor import Band
from ..recording import Session
from ..recording.reader import read_about, read_run
from ..sources import to_frame
from ..training import Trainer, train
from ..training._trainer import TRAINED

__all__ = ["Inline", "InlineCalculator", "run_lammps"]


class Inline:
    """What a run has that learns where it halts: an index, a potential, and the labels that both are made of.

    It watches with the index and the potential of one generation. Where the run halts, the frames that this generation
    kept are labelled, the halting one first; a potential is trained on all labels, the index is extended, and the run
    goes on, from the frame where it halted, with the next generation. Thresholds are resolved once, with the first
    index. For ASE there is `InlineCalculator`, for a LAMMPS that Python drives `run_lammps`.

    Parameters
    ----------
    training
        Labelled frames: what the first potential is trained on.
    index
        The index of these frames.
    oracle
        What labels. Three of the training frames are labelled again before it labels its first.
    trainer
        What trains.
    output
        Folder of the run: `queue.db` with the labels, and `generation-000`, ... with index, potential and what the
        monitor wrote. One program at a time can have it.
    labels
        The most labels to ask for. The run halts for good where they are used up.
    workers
        Frames that are labelled at once.
    seed
        For the trainer; that of a generation is `seed` + its number.
    resume
        Go on with the labels in that folder, and with the numbers that its thresholds came to. Without it a folder with
        an earlier run is refused.
    **watch
        Keys of `RunConfig`: `select` and `halt`, and `every`, `budget`, ... as wanted.

    Attributes
    ----------
    generation
        Of index and potential; counts on where a run is resumed.
    index, potential
        Of this generation.
    session
        Of this generation: the watched run, or None before it begins.

    Raises
    ------
    OutputError
        The folder holds an earlier run, another program has it, or it cannot be made.
    ConfigError, InputError
        A key or a value is wrong.
    TrainingError
        No potential came out of the first training.
    """

    def __init__(
        self,
        training: Sequence[ase.Atoms],
        index: Index,
        oracle: Oracle,
        trainer: Trainer,
        *,
        output: str | os.PathLike[str] = "inline",
        labels: int = 100,
        workers: int = 1,
        seed: int = 0,
        resume: bool = False,
        **watch: Any,
    ) -> None:
        for key in ("index", "output", "reference", "resume", "overwrite", "cutout"):
            if key in watch:
                raise InputError(f"{key} is not for a run that learns: it sets this itself, and labels whole frames")
        RunConfig.make({"index": "", **watch})
        if labels < 1 or workers < 1:
            raise InputError(f"labels and workers must be at least 1, not {labels} and {workers}")
        self.folder = Path(output).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made: {error.strerror or error}") from error
        self._training, self._oracle, self._trainer = list(training), oracle, trainer
        self._most, self._workers, self._seed, self._watch = labels, workers, seed, watch
        self._is_checked = False  # that the oracle gives the labels of the training frames
        self.session: Session | None = None
        self._lock = FolderLock(self.folder)
        try:
            self._open(index, resume)
        except BaseException:
            self.close()
            raise

    def _open(self, index: Index, resume: bool) -> None:
        """Begin, or go on with what the folder holds, as a generation of its own."""
        self._queue = Queue(self.folder / "queue.db", tries=1)
        self._queue.release_dead(is_dead)  # the folder is locked, so the claims of a killed run are nobody's
        self._known = set[int]()  # ids of the labels that this generation has learned
        known, generation = self._labelled(), 0
        while (self._place(generation) / "potential" / TRAINED).exists():
            generation += 1
        if (known or generation) and not resume:
            raise OutputError(
                f"{self.folder} holds an earlier run with {len(known)} labels: resume=True goes on with it"
            )
        if generation:
            self._thaw()
        self._settle(generation, index, known)

    @property
    def n_labels(self) -> int:
        """Labels in this folder that index and potential have learned."""
        return len(self._known)

    def _place(self, generation: int) -> Path:
        return self.folder / f"generation-{generation:03d}"

    def _labelled(self) -> set[int]:
        return {entry.id for entry in self._queue.entries(["done"])}

    def _settle(self, generation: int, index: Index, known: set[int]) -> None:
        """Extend an index by what is labelled and not known yet, and train on all: this is the generation then."""
        place, new = self._place(generation), known - self._known
        if new:
            group = place.name if index.frame_groups else None
            index = index.extend([to_frame(atoms, group=group) for atoms in self._queue.labelled(new)])
        index.save(place / "index.qindex")  # before the record of the training, which says that a generation is whole
        frames = [*self._training, *self._queue.labelled(known)]
        potential, _ = train(self._trainer, frames, [], place / "potential", seed=self._seed + generation)
        self.index, self.potential = Index.open(place / "index.qindex"), potential
        self.output, self.generation, self._known = place, generation, known

    def keys(self) -> dict[str, Any]:
        """Return the keys of `RunConfig` that this generation is watched with, but for `index`."""
        return {**self._watch, "output": str(self.output / "uq"), "resume": True}

    def learn(self, session: Session) -> None:
        """Label what a halted session has kept, train and extend the index: the next generation.

        Where that fails, the labels stay in the queue, and this generation is as it was.

        Raises
        ------
        Halted
            The labels are used up; or what told the run to stop is not, or not only, that it lies above `halt`: the end
            of its wall time, SIGTERM.
        OracleError
            The halting frame could not be labelled (others cost themselves only), or the oracle does not give the
            labels of the training frames again.
        TrainingError
            No potential came out of the training.
        """
        decision = session.decision
        if decision is None or decision.band is not Band.HALT or len(decision.reasons) > 1:
            raise Halted(session.reason)
        self._freeze(session)
        halting, *others = self._kept(session, decision.step)
        number, _ = self._queue.add(halting, generation=self.generation)
        if number in self._known:
            raise Halted(f"{session.reason}; this frame has been learned, so halt is too low for what is known")
        if self._queue.entry(number).state != "done":  # else a training came to nothing
            self._label(number, others, session.reason)
        self._settle(self.generation + 1, self.index, self._labelled())

    def _label(self, halting: int, others: Sequence[ase.Atoms], reason: str) -> None:
        """Label the halting frame, and as many others as may be."""
        left = self._most - self._queue.counts()["done"]
        if left < 1:
            raise Halted(f"{reason}; all {self._most} labels are used up")
        for atoms in others[: left - 1]:
            self._queue.add(atoms, generation=self.generation)
        self._queue.retry([halting])  # it may have failed in an earlier run, for what is right by now
        with make_executor("local", self._workers) as executor:
            if not self._is_checked:
                check_labels(self._oracle, executor, self._training)
                self._is_checked = True
            label(self._queue, self._oracle, executor, workers=self._workers, limit=left)
        entry = self._queue.entry(halting)
        if entry.state == "waiting":  # behind frames of an earlier run
            raise Halted(f"{reason}; all {self._most} labels are used up")
        if entry.state != "done":
            raise OracleError(f"the frame where the run halted has no label ({reason}): {entry.reason}")

    def _kept(self, session: Session, step: int) -> list[ase.Atoms]:
        """Return the candidates of a session, the halting one first: it is always among them."""
        found = list(read_run(session.output).candidates())
        found.reverse()  # of two frames of the same step, where steps went backwards, it is the later one
        return sorted(found, key=lambda atoms: atoms.info["step"] != step)

    def _freeze(self, session: Session) -> None:
        """Watch all further generations with the numbers that the thresholds of the first came to."""
        resolved = session.monitor.thresholds.resolved
        assert resolved is not None
        self._watch |= {name: values.get("", values) for name, values in resolved.items()}

    def _thaw(self) -> None:
        """Take rates for what they came to in the first generation of this folder."""
        path = self._place(0) / "uq" / "run.json"
        resolved = read_about(path).get("thresholds") if path.exists() else None
        for name, values in (resolved or {}).items():
            if isinstance(self._watch[name], Mapping) and not set(values) <= set(self._watch[name]):
                self._watch[name] = values

    def close(self) -> None:
        """Let other programs have the folder; a second call does nothing."""
        self._lock.release()

    def __deepcopy__(self, memo: object) -> Inline:
        """Refuse: two of them would write to one folder."""
        raise InputError("a run that learns cannot be copied: its folder is for one")


class InlineCalculator(Calculator):  # type: ignore[misc]
    """A potential that learns where it must: the ASE calculator of an `Inline`.

    Every configuration that is computed counts as a step. Where one lies above `halt`, the call that asks for its
    forces takes until the next generation is trained, and returns the forces of that. Candidates below `halt` wait
    until then.

    Parameters
    ----------
    inline
        The run that learns.

    Attributes
    ----------
    inline
        As given: generation, index, potential, labels, and the session of this generation.

    Raises
    ------
    InputError
        Another calculator of this `Inline` has not been closed.
    Halted, OracleError, TrainingError
        From the call that asks for energy or forces, where the run cannot learn: see `Inline.learn`. The session has
        ended then.
    MonitorError
        From the same call: the frame is implausible, or cannot be measured.
    """

    def __init__(self, inline: Inline) -> None:
        super().__init__()
        if inline.session is not None and inline.session.status == "running":
            raise InputError("this run that learns is watched already: close its other calculator, or make an Inline")
        self.inline = inline
        self._watched = self._watch()

    def _watch(self, step: int | None = None) -> MonitoredCalculator:
        """Watch the potential of this generation; its first configuration is `step`, or goes on counting."""
        config = RunConfig.make({**self.inline.keys(), "index": str(self.inline.index.path)})
        session = Session.from_config(config, index=self.inline.index)
        if step is not None:
            session.counter = itertools.count(step)
        self.inline.session = session
        calculator = self.inline.potential.ase_calculator()
        self.implemented_properties = list(calculator.implemented_properties)
        return MonitoredCalculator(calculator, session)

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        """Compute with the potential of this generation, or of the next one where this one halts."""
        super().calculate(atoms, properties, system_changes)
        try:
            self._compute(properties)
        except Halted:
            self._learn()
            self._compute(properties)  # the frame is in the index by now: dH ≤ 0

    def _compute(self, properties: Any) -> None:
        values = {name: self._watched.get_property(name, self.atoms) for name in properties}
        self.results = {**self._watched.results, **values}

    def _learn(self) -> None:
        session = self._watched.session
        assert session.decision is not None
        step = session.decision.step
        session.close()
        self.inline.learn(session)
        self._end_calculator()
        self._watched = self._watch(step)

    def close(self) -> None:
        """Write what is left of the session, and end the potential. The `Inline` keeps its folder."""
        self._watched.session.close()
        self._end_calculator()

    def _end_calculator(self) -> None:
        """End a LAMMPS that runs as a library."""
        if hasattr(self._watched.calculator, "clean"):
            self._watched.calculator.clean()


_KEYS = ("elements", "check_masses", "group", "skin", "restart_file")


def run_lammps(inline: Inline, lmp: Any, steps: int, **keys: Any) -> None:
    """Run a number of steps under the monitor; where it halts, learn, and go on with the next potential.

    The potential of LAMMPS is that of `inline`, whatever was defined before.

    Parameters
    ----------
    inline
        The run that learns.
    lmp
        An instance of the ``lammps`` module, of one rank, set up to run: atoms, masses, fixes, and
        ``comm_modify cutoff`` as `attach` needs it.
    steps
        Steps to run.
    **keys
        Keys of `attach` that are LAMMPS's own: `elements`, `check_masses`, `group`, `skin`, `restart_file`. Atom types
        have the order of the potential's elements, which is the default of `elements`.

    Raises
    ------
    InputError
        A key is not LAMMPS's own, or `elements` are not those of the potential.
    HostError
        LAMMPS runs on several ranks or in other units than metal, or cannot be watched as it is set up.
    Halted, OracleError, TrainingError
        The run cannot learn: see `Inline.learn`.
    """
    if lmp.extract_setting("world_size") > 1:
        raise HostError("a run that learns in its own process has one rank; quests-md learn runs several explorations")
    if lmp.extract_global("units") != "metal":
        raise HostError("a trained potential is one for units metal: set up LAMMPS with them")
    strange = sorted(set(keys) - set(_KEYS))
    if strange:
        raise InputError(f"{', '.join(strange)}: not for run_lammps, whose keys are {', '.join(_KEYS)}: tell Inline")
    first = lmp.extract_global("ntimestep")
    last = first + steps
    _define(inline, lmp)
    while True:
        elements = list(inline.potential.elements)
        if list(keys.get("elements", elements)) != elements:
            raise InputError(f"the atom types must be {elements}, as in the potential, not {list(keys['elements'])}")
        given = {"elements": elements, **inline.keys(), **keys}
        watch = attach(lmp, inline.index, **given)
        inline.session = watch.session
        try:
            lmp.command(f"run {last} upto start {first} stop {last}")  # ramps go on where they were
        finally:
            watch.detach()
        if not watch.halted:
            return
        lmp.command("timer timeout off")  # what the halt had set
        inline.learn(watch.session)
        _define(inline, lmp)


def _define(inline: Inline, lmp: Any) -> None:
    lmp.command("pair_style none")  # pair_style pod cannot be defined a second time over itself
    for command in inline.potential.commands():
        lmp.command(command)
