"""A run that learns when it halts, in the process that moves the atoms: for cheap oracles."""

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
from ..hosts.lammps import attach
from ..index import Index
from ..labelling import Oracle, Queue, check_labels, label, make_executor
from ..labelling._label import is_dead
from ..monitor import Band
from ..recording import Session
from ..recording.reader import read_about, read_run
from ..sources import to_frame
from ..training import Trainer, train
from ..training._trainer import TRAINED
from ._residual_stage import Trained, add_residuals, is_fast

__all__ = ["Inline", "InlineCalculator", "run_lammps"]

_FAST = 5.0  # seconds of a training that is repeated for each fold of a cross-validation: the run waits meanwhile


def _ignore(_: object) -> None:
    """Do nothing: the index tells where its residuals come from, and whether it has any."""


class Inline:
    """A run that learns when it halts: its index, its potential, and the labels of which both are made.

    The run is watched with the index and the potential of one generation. When it halts, the frames that this
    generation kept are labelled, the halting one first. A potential is trained on all labels, and the index is
    extended: they are the next generation. With it the run goes on, from the frame where it halted. The thresholds are
    turned into numbers once, with the first index. Use `InlineCalculator` in ASE, and `run_lammps` for a LAMMPS that
    Python drives.

    Parameters
    ----------
    training
        Labelled frames. The first potential is trained on them.
    index
        The index of these frames.
    oracle
        What labels. It is checked first: three of the training frames are labelled again.
    trainer
        What trains.
    output
        Folder of the run: ``queue.db`` with the labels; ``generation-000``, ... with the index, the potential and the
        files of the monitor. Only one program can use it at a time.
    labels
        Largest number of labels. When they are used up, the run halts for good.
    workers
        How many frames are labelled at the same time.
    seed
        Seed of the trainer; that of a generation is `seed` + its number.
    resume
        Go on with the labels in the folder, and with its thresholds in nats. Without it, a folder with an earlier run
        is refused.
    **watch
        Keys of `RunConfig`: `select`, `halt`, and others such as `every` and `budget`.

    Attributes
    ----------
    generation
        Number of the generation. It goes on counting when a run is resumed.
    index, potential
        Index and potential of this generation. The index has the residuals of the potential, if these can be computed.
    session
        The watched run of this generation, or None before it begins.

    Raises
    ------
    OutputError
        The folder holds an earlier run, another program uses it, or it cannot be made.
    ConfigError, InputError
        A key or a value is wrong.
    TrainingError
        The first training made no potential.
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
        self._is_checked = False  # whether the oracle has reproduced labels of the training frames
        self.session: Session | None = None
        self._lock = FolderLock(self.folder)
        try:
            self._open(index, resume)
        except BaseException:
            self.close()
            raise

    def _open(self, index: Index, resume: bool) -> None:
        """Begin; or go on with the labels in the folder, with a new generation."""
        self._queue = Queue(self.folder / "queue.db", tries=1)
        self._queue.release_dead(is_dead)  # the folder is locked, so the claims of a killed run belong to nobody
        self._known = set[int]()  # ids of the labels in this generation
        known, generation = self._list_labelled(), 0
        while (self._folder_of(generation) / "potential" / TRAINED).exists():
            generation += 1
        if (known or generation) and not resume:
            raise OutputError(
                f"{self.folder} holds an earlier run with {len(known)} labels: resume=True goes on with it"
            )
        if generation:
            self._restore_thresholds()
        self._make_generation(generation, index, known)

    @property
    def n_labels(self) -> int:
        """Number of labels of which this generation is made, besides the training frames."""
        return len(self._known)

    def _folder_of(self, generation: int) -> Path:
        return self.folder / f"generation-{generation:03d}"

    def _list_labelled(self) -> set[int]:
        return {entry.id for entry in self._queue.entries(["done"])}

    def _make_generation(self, generation: int, index: Index, known: set[int]) -> None:
        """Make a generation: extend an index by the new labels, and train on all labels."""
        place, new = self._folder_of(generation), known - self._known
        if new:
            group = place.name if index.frame_groups else None
            index = index.extend([to_frame(atoms, group=group) for atoms in self._queue.labelled(new)])
        index.save(place / "index.qindex")  # first, for the record of the training says that the generation is complete
        frames, seed = [*self._training, *self._queue.labelled(known)], self._seed + generation
        potential, record = train(self._trainer, frames, [], place / "potential", seed=seed)
        fast = is_fast(self._trainer, record["seconds"], _FAST)
        trained = Trained(place.name, potential, self._trainer, seed, fast, place / "fold")
        add_residuals(index, frames, trained, _ignore, _ignore).save(place / "index.qindex")
        self.index, self.potential = Index.open(place / "index.qindex"), potential
        self.output, self.generation, self._known = place, generation, known

    def keys(self) -> dict[str, Any]:
        """Return the keys of `RunConfig` for this generation, without `index`."""
        return {**self._watch, "output": str(self.output / "uq"), "resume": True}

    def learn(self, session: Session) -> None:
        """Make the next generation: label the frames that a halted session has kept, train, and extend the index.

        If this fails, the labels stay in the queue, and this generation stays as it is.

        Raises
        ------
        Halted
            The labels are used up; or the run was stopped by something else than `halt`, such as its wall time or
            SIGTERM.
        OracleError
            The halting frame got no label (other frames may fail); or the oracle does not reproduce the labels of the
            training frames.
        TrainingError
            The training made no potential.
        """
        decision = session.decision
        if decision is None or decision.band is not Band.HALT or len(decision.reasons) > 1:
            raise Halted(session.reason)
        self._fix_thresholds(session)
        halting, *others = self._read_candidates(session, decision.step)
        number, _ = self._queue.add(halting, generation=self.generation)
        if number in self._known:
            raise Halted(f"{session.reason}; this frame has been learned, so halt is too low for what is known")
        if self._queue.entry(number).state != "done":  # else it was labelled before, and the training failed
            self._label(number, others, session.reason)
        self._make_generation(self.generation + 1, self.index, self._list_labelled())

    def _label(self, halting: int, others: Sequence[ase.Atoms], reason: str) -> None:
        """Label the halting frame, and as many others as `labels` allows."""
        left = self._most - self._queue.counts()["done"]
        if left < 1:
            raise Halted(f"{reason}; all {self._most} labels are used up")
        for atoms in others[: left - 1]:
            self._queue.add(atoms, generation=self.generation)
        self._queue.retry([halting])  # it may have failed in an earlier run, for a reason that is gone
        with make_executor("local", self._workers) as executor:
            if not self._is_checked:
                check_labels(self._oracle, executor, self._training)
                self._is_checked = True
            label(self._queue, self._oracle, executor, workers=self._workers, limit=left)
        entry = self._queue.entry(halting)
        if entry.state == "waiting":  # frames of an earlier run came first
            raise Halted(f"{reason}; all {self._most} labels are used up")
        if entry.state != "done":
            raise OracleError(f"the frame where the run halted has no label ({reason}): {entry.reason}")

    def _read_candidates(self, session: Session, step: int) -> list[ase.Atoms]:
        """Return the candidates of a session, the halting one first, which is always among them."""
        found = list(read_run(session.output).candidates())
        found.reverse()  # if steps went backwards, two frames may have this step: the halting one is the later
        return sorted(found, key=lambda atoms: atoms.info["step"] != step)

    def _fix_thresholds(self, session: Session) -> None:
        """Use the thresholds of the first generation, in nats, in all others."""
        resolved = session.monitor.thresholds.resolved
        assert resolved is not None
        self._watch |= {name: values.get("", values) for name, values in resolved.items()}

    def _restore_thresholds(self) -> None:
        """Replace thresholds that are rates by their values in nats in the first generation of this folder."""
        path = self._folder_of(0) / "uq" / "run.json"
        resolved = read_about(path).get("thresholds") if path.exists() else None
        for name, values in (resolved or {}).items():
            if isinstance(self._watch[name], Mapping) and not set(values) <= set(self._watch[name]):
                self._watch[name] = values

    def close(self) -> None:
        """Unlock the folder. A second call does nothing."""
        self._lock.release()

    def __deepcopy__(self, memo: object) -> Inline:
        """Raise `InputError`: two of them would write to one folder."""
        raise InputError("a run that learns cannot be copied: its folder is for one run")


# -- ASE ---------------------------------------------------------------------------------------------------------------


class InlineCalculator(Calculator):  # type: ignore[misc]
    """The ASE calculator of an `Inline`: a potential that learns when it must.

    Every configuration that is computed counts as a step. If one lies above `halt`, the call that asks for its forces
    trains the next generation first, and returns its forces. Candidates below `halt` wait until then.

    Parameters
    ----------
    inline
        The run that learns.

    Attributes
    ----------
    inline
        The run that learns. It has the generation, index, potential, labels and session.

    Raises
    ------
    InputError
        Another calculator of this `Inline` has not been closed.
    Halted, OracleError, TrainingError
        Raised by the call that asks for energy or forces, if the run cannot learn: see `Inline.learn`. The session is
        closed then.
    MonitorError
        Raised by the same call: the frame is implausible, or cannot be measured.
    """

    def __init__(self, inline: Inline) -> None:
        super().__init__()
        if inline.session is not None and inline.session.status == "running":
            raise InputError("this run that learns is watched already: close its other calculator, or make an Inline")
        self.inline = inline
        self._watched = self._watch()

    def _watch(self, step: int | None = None) -> MonitoredCalculator:
        """Watch the potential of this generation. Its first configuration is `step`; None: go on counting."""
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
        """Compute with the potential of this generation; if it halts, with that of the next."""
        super().calculate(atoms, properties, system_changes)
        try:
            self._compute(properties)
        except Halted:
            self._learn()
            self._compute(properties)  # the frame is in the index now: dH ≤ 0

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
        """Close the session and the potential. The folder of the `Inline` stays locked."""
        self._watched.session.close()
        self._end_calculator()

    def _end_calculator(self) -> None:
        """End the potential, if it is LAMMPS as a library."""
        if hasattr(self._watched.calculator, "clean"):
            self._watched.calculator.clean()


# -- LAMMPS ------------------------------------------------------------------------------------------------------------

_KEYS = ("elements", "check_masses", "group", "skin", "restart_file")


def run_lammps(inline: Inline, lmp: Any, steps: int, **keys: Any) -> None:
    """Run a number of steps under the monitor. When it halts, learn, and go on with the next potential.

    The potential of `inline` replaces any other that LAMMPS has.

    Parameters
    ----------
    inline
        The run that learns.
    lmp
        An instance of the ``lammps`` module, on one rank, set up to run: atoms, masses, fixes, and
        ``comm_modify cutoff`` as `attach` needs it.
    steps
        Number of steps.
    **keys
        Keys of `attach` for LAMMPS alone: `elements`, `check_masses`, `group`, `skin`, `restart_file`. The atom types
        must have the order of the elements of the potential, which is the default of `elements`.

    Raises
    ------
    InputError
        A key is not one of these, or `elements` are not those of the potential.
    HostError
        LAMMPS runs on several ranks or in other units than metal, or cannot be watched as it is set up.
    Halted, OracleError, TrainingError
        The run cannot learn: see `Inline.learn`.
    """
    if lmp.extract_setting("world_size") > 1:
        raise HostError("a run that learns in its own process has one rank; quests-md learn runs several explorations")
    if lmp.extract_global("units") != "metal":
        raise HostError("a trained potential needs units metal: set up LAMMPS with them")
    strange = sorted(set(keys) - set(_KEYS))
    if strange:
        raise InputError(f"{', '.join(strange)}: not for run_lammps, whose keys are {', '.join(_KEYS)}: tell Inline")
    first = lmp.extract_global("ntimestep")
    last = first + steps
    _define_potential(inline, lmp)
    while True:
        elements = list(inline.potential.elements)
        if list(keys.get("elements", elements)) != elements:
            raise InputError(f"the atom types must be {elements}, as in the potential, not {list(keys['elements'])}")
        given = {"elements": elements, **inline.keys(), **keys}
        watch = attach(lmp, inline.index, **given)
        inline.session = watch.session
        try:
            lmp.command(f"run {last} upto start {first} stop {last}")  # ramps of fixes go on
        finally:
            watch.detach()
        if not watch.halted:
            return
        lmp.command("timer timeout off")  # the halt has set a timeout
        inline.learn(watch.session)
        _define_potential(inline, lmp)


def _define_potential(inline: Inline, lmp: Any) -> None:
    lmp.command("pair_style none")  # pair_style pod cannot be redefined
    for command in inline.potential.commands():
        lmp.command(command)
