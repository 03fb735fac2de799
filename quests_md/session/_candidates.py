"""The candidates of a run: which frames are kept, and the file that holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError
from ..frame import Frame
from ..monitor import Moment, Monitor, Proposal
from ..selection import Selection, Verdict
from ..sinks import ExtxyzSink
from ._writer import Writer

__all__ = ["Candidates"]


class Candidates:
    """Decide which proposed frames are saved, and keep candidates.extxyz. Every method is collective.

    Attributes
    ----------
    verdict
        On the last frame that was proposed; None where nothing was asked.
    saved
        (run, step) of the last saved frame.
    n
        Frames that are kept.
    """

    def __init__(self, monitor: Monitor, file: ExtxyzSink, writer: Writer, novelty: bool, budget: int | None) -> None:
        self._file, self._writer = file, writer
        self._selection: Selection | None = None
        if novelty:
            comm, threads = monitor.comm, monitor.threads
            self._selection = Selection(monitor.index, budget=budget, comm=comm, threads=threads)
        elif budget is not None:
            raise InputError("budget needs novelty = true: it keeps the frames that add most")
        self.verdict: Verdict | None = None
        self.saved: tuple[int, int] | None = None
        self._ordinals: list[int | None] = []  # in the selection, of every frame of the file

    @property
    def n(self) -> int:
        return len(self._ordinals)

    def consider(self, proposal: Proposal, run: int) -> bool:
        """Return whether a frame that the monitor proposes is to be saved."""
        if self._selection is None or self.saved == (run, proposal.step):
            return True
        self.verdict = self._selection.consider(proposal, must=proposal.must)
        return self.verdict.keep

    def save(self, moment: Moment, then: Callable[[Frame], object], **info: Any) -> bool:
        """Add a frame, unless it is there; let go of the one whose place it takes. Return whether it was added."""
        key = (moment.info["run"], moment.info["step"])
        if self.saved == key:
            return False
        verdict = self.verdict
        self._writer.append(self._file, moment, then, **info)
        self._ordinals.append(None if verdict is None else verdict.ordinal)
        self.saved = key
        if verdict is not None and verdict.drop is not None:
            place = self._ordinals.index(verdict.drop)
            self._writer.on_root(lambda: self._file.remove(place))
            del self._ordinals[place]
        return True
