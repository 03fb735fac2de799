"""A run that learns where it halts, in the process that moves the atoms: for oracles that are cheap."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import ase
import ase.io
from ase.calculators.calculator import Calculator, all_changes

from ..config import RunConfig
from ..errors import Halted, InputError, OracleError, OutputError
from ..hosts.ase import MonitoredCalculator
from ..index import Index
from ..oracle import Oracle, Queue, Trainer, label, make_executor, train
from ..session import Session

__all__ = ["Inline", "InlineCalculator"]


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
        What labels.
    trainer
        What trains.
    output
        Folder of the run: `queue.db` with the labels, and `generation-000`, ... with index, potential and what the
        monitor wrote.
    labels
        The most labels to ask for. The run halts for good where they are used up.
    workers
        Frames that are labelled at once.
    seed
        For the trainer; that of a generation is `seed` + its number.
    resume
        Go on with the labels in that folder. Without it a folder with labels is refused.
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
    n_labels
        Labels that were asked for and given, in this folder.

    Raises
    ------
    OutputError
        The folder holds labels, or cannot be made.
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
        self.folder = Path(output).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made: {error.strerror or error}") from error
        self._queue = Queue(self.folder / "queue.db", tries=1)
        known = list(self._queue.labelled())
        if known and not resume:
            raise OutputError(
                f"{self.folder} holds {len(known)} labels of an earlier run: resume=True goes on with them"
            )
        self._oracle, self._trainer = oracle, trainer
        self._most, self._workers, self._seed, self._watch = labels, workers, seed, watch
        self._frames, self.n_labels = [*training, *known], len(known)
        self.session: Session | None = None
        self.generation = len(list(self.folder.glob("generation-*")))
        self._settle(index.extend(known) if known else index)

    def _settle(self, index: Index) -> None:
        """Train on all frames, and keep the index beside the potential."""
        self.output = self.folder / f"generation-{self.generation:03d}"
        self.potential, _ = train(
            self._trainer, self._frames, [], self.output / "potential", seed=self._seed + self.generation
        )
        index.save(self.output / "index.qindex")
        self.index = Index.open(self.output / "index.qindex")

    def keys(self) -> dict[str, Any]:
        """Return the keys of `RunConfig` that this generation is watched with, but for `index`."""
        return {**self._watch, "output": str(self.output / "uq"), "resume": True}

    def learn(self, session: Session) -> None:
        """Label what a halted session has kept, train and extend the index: the next generation.

        Raises
        ------
        Halted
            The labels are used up.
        OracleError
            The halting frame could not be labelled. Others cost themselves only.
        TrainingError
            No potential came out of the training.
        """
        frames = self._kept(session)
        left = self._most - self.n_labels
        if left < 1:
            raise Halted(f"{session.reason}; all {self._most} labels are used up")
        ids = [self._queue.add(atoms, generation=self.generation)[0] for atoms in frames[:left]]
        with self._executor() as executor:
            label(self._queue, self._oracle, executor, workers=self._workers)
        halting = self._queue.entry(ids[0])
        if halting.state != "done":
            raise OracleError(f"the frame where the run halted has no label ({session.reason}): {halting.reason}")
        new = [atoms for i in ids if self._queue.entry(i).state == "done" for atoms in self._queue.labelled([i])]
        self._freeze(session)
        self._frames += new
        self.n_labels += len(new)
        self.generation += 1
        self._settle(self.index.extend(new))

    def _executor(self) -> Executor:
        return make_executor("local", self._workers)

    def _kept(self, session: Session) -> list[ase.Atoms]:
        """Return the candidates of a session, the halting one first: it is always among them."""
        assert session.decision is not None
        halted = session.decision.step
        found = ase.io.read(session.output / "candidates.extxyz", ":", format="extxyz", parallel=False)
        return sorted(found, key=lambda atoms: atoms.info["step"] != halted)

    def _freeze(self, session: Session) -> None:
        """Watch all further generations with the numbers that the thresholds of the first came to."""
        resolved = session.monitor.thresholds.resolved
        assert resolved is not None
        for name, values in resolved.items():
            self._watch[name] = values[""] if set(values) == {""} else values


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
    Halted, OracleError, TrainingError
        From the call that asks for energy or forces, where the run cannot learn: see `Inline.learn`.
    MonitorError
        From the same call: the frame is implausible, or cannot be measured.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - as ASE has it

    def __init__(self, inline: Inline) -> None:
        super().__init__()
        self.inline = inline
        self._watched = self._watch()

    def _watch(self, step: int | None = None) -> MonitoredCalculator:
        """Watch the potential of this generation; its first configuration is `step`, or goes on counting."""
        config = RunConfig.make({**self.inline.keys(), "index": str(self.inline.index.path)})
        session = Session.from_config(config, index=self.inline.index)
        if step is not None:
            session.counter = itertools.count(step)
        self.inline.session = session
        return MonitoredCalculator(self.inline.potential.ase_calculator(), session)

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
        """Write what is left of the session, and end the potential."""
        self._watched.session.close()
        self._end_calculator()

    def _end_calculator(self) -> None:
        """End a LAMMPS that runs as a library."""
        if hasattr(self._watched.calculator, "clean"):
            self._watched.calculator.clean()
