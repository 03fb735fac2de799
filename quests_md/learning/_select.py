"""Which candidates of a generation's explorations are labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..descriptors import Environments
from ..elements import SYMBOLS
from ..frame import Frame
from ..index import Index
from ..selection import Selection

__all__ = ["Candidate", "select"]


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


class _Proposal:
    """A candidate's environments above `select`, as a `Selection` takes them."""

    def __init__(self, candidate: Candidate, index: Index, select: Mapping[str, float], threads: int | None) -> None:
        self._environments, self._threads = Environments(index.spec, candidate.frame), threads
        centres = self._environments.centres
        numbers, ids = candidate.frame.numbers[centres], candidate.frame.ids
        every = np.arange(len(centres))
        dH = index.delta_entropy(self._environments.compute(every, threads), threads)
        thresholds = np.array([select[SYMBOLS[z]] for z in numbers.tolist()])
        self._above = np.flatnonzero(dH > thresholds)
        self.step = candidate.frame.step
        assert ids is not None
        self.ids = np.asarray(ids)[centres[self._above]]
        self.dH, self.select = dH[self._above], thresholds[self._above]
        self.of_centres = dH

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return descriptors, as `quests_md.selection.Proposal` says."""
        return self._environments.compute(self._above[which], self._threads)


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
        proposal = _Proposal(candidates[place], index, thresholds, threads)
        verdict = selection.consider(proposal, first=True)
        if verdict.drop is not None:
            del kept[verdict.drop]
        if verdict.ordinal is not None:
            kept[verdict.ordinal] = (place, proposal.of_centres)
    return list(kept.values())
