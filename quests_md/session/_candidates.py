"""The candidates of a run: which frames are kept, and the files that hold them and their cut-outs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..frame import Frame
from ..index import Index, Live
from ..monitor import Moment, Monitor, Proposal
from ..selection import Selection, Verdict, check_cutout, cutouts
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
        self.saved: tuple[int, int] | None = None
        self._ordinals: list[int | None] = []  # in the selection, of every frame of the file
        self._n_cuts: list[int] = []  # cut-outs of every frame of the file; known to rank 0

    @property
    def n(self) -> int:
        return len(self._ordinals)

    def consider(self, proposal: Proposal, run: int) -> bool:
        """Return whether a frame that the monitor proposes is to be saved."""
        if self._selection is None or self.saved == (run, proposal.step):
            return True
        self.verdict = self._selection.consider(proposal, must=proposal.must, first=proposal.begins)
        return self.verdict.keep

    def save(self, moment: Moment, then: Callable[[Frame], object], **info: Any) -> bool:
        """Add a frame, unless it is there; let go of the one whose place it takes. Return whether it was added."""
        key = (moment.info["run"], moment.info["step"])
        if self.saved == key:
            return False
        verdict = self.verdict
        self._writer.append(self._file, moment, lambda frame, dH: self._saved(frame, dH, key[0], then), **info)
        self._ordinals.append(None if verdict is None else verdict.ordinal)
        self.saved = key
        if verdict is not None and verdict.drop is not None:
            place = self._ordinals.index(verdict.drop)
            self._writer.on_root(lambda: self._remove(place))
            del self._ordinals[place]
        return True

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
                self._cuts.append(cut.frame, cut.dH, {"run": run, **cut.info}, {"core": cut.core})
                self._n_cuts[-1] += 1
        then(frame)

    def _remove(self, place: int) -> None:
        self._file.remove(place)
        first = sum(self._n_cuts[:place])
        for _ in range(self._n_cuts[place]):
            self._cuts.remove(first)
        del self._n_cuts[place]
