"""The candidates of a run: which frames are kept, and the files that hold them and their cut-outs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import Environments
from ..errors import InputError
from ..frame import Frame
from ..index import Index, Live
from ..monitor import Moment, Monitor, Proposal
from ..selection import Kept, Selection, Verdict, check_cutout, cutouts
from ._resume import Key, Past
from ._writer import Writer

__all__ = ["Candidates"]


class Candidates:
    """Decide which proposed frames are saved, and keep them and their cut-outs. Every method is collective.

    Attributes
    ----------
    verdict
        On the last frame that was proposed; None where nothing was asked.
    saved
        (run, step) of the last saved frame.
    n
        Frames that are kept.
    """

    def __init__(
        self, monitor: Monitor, writer: Writer, novelty: bool, budget: int | None, cutout: Mapping[str, Any] | None
    ) -> None:
        self._monitor, self._writer = monitor, writer
        self._file, self._cuts = writer.files.candidates, writer.files.cutouts
        self._cutout = cutout
        if cutout is not None:
            check_cutout(cutout, monitor.index.spec.cutoff)
        self._selection: Selection | None = None
        if novelty:
            comm, threads = monitor.comm, monitor.threads
            self._selection = Selection(monitor.index, budget=budget, comm=comm, threads=threads)
        elif budget is not None:
            raise InputError("budget needs novelty = true: it keeps the frames that add most")
        self.verdict: Verdict | None = None
        self.saved: Key | None = None
        self._frames: list[tuple[Key, int | None]] = []  # of the file: (run, step), and the ordinal in the selection
        self._past: frozenset[Key] = frozenset()
        self._n_cuts: list[int] = []  # cut-outs of every frame of the file; known to rank 0

    @property
    def n(self) -> int:
        return len(self._frames)

    def warm_up(self) -> None:
        """Compile before the run what deciding needs. Not collective."""
        if self._selection is not None:
            self._selection.warm_up()

    def consider(self, proposal: Proposal, run: int) -> bool:
        """Return whether a frame that the monitor proposes is to be saved."""
        if self._selection is None or self._is_there((run, proposal.step)):
            return True
        self.verdict = self._selection.consider(proposal, must=proposal.must, first=proposal.begins)
        return self.verdict.keep

    def save(self, moment: Moment, then: Callable[[Frame], object], **info: Any) -> bool:
        """Add a frame, unless it is there; let go of the one whose place it takes. Return whether it was added.

        A frame that was added before the run was resumed, and has no row yet, counts as added.
        """
        key = (moment.info["run"], moment.info["step"])
        if self._is_there(key):
            return key in self._past
        verdict = self.verdict
        self._writer.append(self._file, moment, lambda frame, dH: self._saved(frame, dH, key[0], then), **info)
        self._frames.append((key, None if verdict is None else verdict.ordinal))
        self.saved = key
        if verdict is not None and verdict.drop is not None:
            place = [ordinal for _, ordinal in self._frames].index(verdict.drop)
            self._writer.on_root(lambda: self._remove(place))
            del self._frames[place]
        return True

    def _is_there(self, key: Key) -> bool:
        return key == self.saved or key in self._past

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs beside the file: JSON can hold it."""
        return {
            "candidates": [[*key, ordinal] for key, ordinal in self._frames],
            "selection": None if self._selection is None else self._selection.state(),
        }

    def resume(self, past: Past) -> None:
        """Take over the frames of the file, and let those that were selected join the provisional reference."""
        keys = past.keys["candidates"]
        ordinals = {(run, step): ordinal for run, step, ordinal in past.state.get("candidates", [])}
        self._past, self.saved = frozenset(keys), keys[-1] if keys else None
        self._frames = [(key, ordinals.get(key)) for key in keys]
        self._n_cuts = [past.keys["cutouts"].count(key) for key in keys]
        selected = past.state.get("selection")
        if self._selection is None or selected is None:
            return
        self._selection.restore(selected)
        told = {kept["ordinal"]: kept for kept in selected["kept"]}
        frames, following = self._file.read(), int(selected["next"])
        for place, key in enumerate(keys):
            proposal, is_selected = self._proposal(frames, past)
            if key not in ordinals and is_selected:  # saved after run.json was written for the last time
                self._frames[place], following = (key, following), following + 1
            ordinal = self._frames[place][1]
            if ordinal is not None and past.thresholds is not None:
                kept = Kept(ordinal, key[1], float(proposal.n), proposal.must)
                self._selection.add(proposal, Kept(**told[ordinal]) if ordinal in told else kept)

    def _proposal(self, frames: Any, past: Past) -> tuple[Proposal, bool]:
        """Return the next saved frame as it was proposed, all of it on rank 0; and whether it was. Collective."""
        index, made = self._monitor.index, list[tuple[Proposal, bool]]()
        thresholds = copy.copy(self._monitor.thresholds)
        if thresholds.resolved is None:  # another one than before, which no frame has settled yet
            thresholds.restore(past.thresholds or {"select": {"": np.inf}, "halt": {"": np.inf}})

        def act() -> None:
            atoms = next(frames)
            dH = atoms.arrays["dH"]
            frame = Frame.from_atoms(atoms, atoms.info["step"], ids=atoms.arrays["id"], watched=~np.isnan(dH))
            environments = Environments(index.spec, frame)
            dH = (dH if past.same else self._monitor.measure(frame))[environments.centres]
            select = thresholds.of(frame.numbers[environments.centres])[0]
            above = np.flatnonzero(dH > select)
            ids, must = frame.ids[environments.centres[above]], atoms.info["band"] == "halt"  # type: ignore[index]
            proposal = Proposal(
                frame.step,
                ids,
                dH[above],
                select[above],
                len(above),
                lambda which: environments.compute(above[which], self._monitor.threads),
                must,
                begins=False,
            )
            made.append((proposal, "reason" not in atoms.info))

        self._writer.on_root(act)
        told = self._monitor.comm.broadcast(
            (made[0][0].step, made[0][0].n, made[0][0].must, made[0][1]) if made else None
        )
        if made:
            return made[0]
        nothing, width = np.empty(0), index.spec.width
        step, n, must, is_selected = told
        ids = np.empty(0, np.int64)
        return Proposal(step, ids, nothing, nothing, n, lambda which: np.empty((0, width)), must, False), is_selected

    # -- rank 0 only -------------------------------------------------------------------------------------------------

    def _saved(self, frame: Frame, dH: NDArray[np.float64], run: int, then: Callable[[Frame], object]) -> None:
        """Cut out what surrounds the worst atoms of a frame that has been saved, then let the user have it."""
        self._n_cuts.append(0)
        thresholds = self._monitor.thresholds
        if self._cutout is not None and thresholds.resolved is not None and math.isfinite(thresholds.lowest):
            reference: object = self._monitor.index
            reference = reference.index if isinstance(reference, Live) else reference
            index = reference if isinstance(reference, Index) else None
            cutoff, threshold = self._monitor.index.spec.cutoff, thresholds.lowest
            for cut in cutouts(frame, dH, cutoff, threshold=threshold, index=index, **self._cutout):
                self._cuts.append(cut.frame, cut.dH, {"run": run, "step": frame.step, **cut.info}, {"core": cut.core})
                self._n_cuts[-1] += 1
        then(frame)

    def _remove(self, place: int) -> None:
        self._file.remove(place)
        first = sum(self._n_cuts[:place])
        for _ in range(self._n_cuts[place]):
            self._cuts.remove(first)
        del self._n_cuts[place]
