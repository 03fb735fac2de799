"""What the monitor says about a frame."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..index import Lesson
from ._identity import Key, Mark
from ._measure import Evaluation

__all__ = ["Band", "Decision", "Proposal"]


class Band(str, enum.Enum):
    """Where a dH lies: of a frame, that of its worst atom."""

    COVERED = "covered"  # dH ≤ select
    CANDIDATE = "candidate"  # select < dH ≤ halt
    HALT = "halt"  # dH > halt
    IMPLAUSIBLE = "implausible"  # a broken frame: dH says nothing of it

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Decision:
    """What the monitor says about one frame; the same on every rank, but for `dH`.

    Attributes
    ----------
    step
        Step of the frame.
    evaluated
        False if the frame was not due; then nothing below was computed.
    run, repeat
        With the step the key of the evaluation: the run, which counts how often steps have gone backwards, and which
        configuration of this step it is, from 0.
    again
        This configuration has been evaluated at this step before: it is published, but neither saved nor counted.
    band
        Of the worst atom, or of the number of atoms that the monitor asks for.
    reasons
        Why the frame is to be saved, kept apart, or the run to stop, in words.
    save, stop
        Whether the frame is worth keeping, and whether the host must stop. A `Session` answers with `save` as it was
        done: it may have found that the frame adds nothing.
    verdict
        Why a session saved the frame, or did not: "new", "novel", "must"; "copy", "budget"; empty where it was not
        asked.
    drops
        Ordinal of the kept frame whose place it takes, as the budget is full; else None.
    event
        Number of the event that the frame belongs to, 0 outside of one.
    begins, ends
        Whether that event begins, or ends, with this frame.
    novelty, n_novel, excess
        Largest novelty (nats) of the frame, where it was asked for: dH against the index *and* what the run already
        kept; nan elsewhere. How many environments are novel, and by how much the largest exceeds `select` at most.
    force_error
        Largest bound of the force error (eV/Å), if the index is calibrated for one; else nan.
    maximum, max_id
        Largest dH (nats) and the id of its atom; −inf and −1 if no atom is watched; inf and −1 if there is none
        because the frame is implausible.
    mean, q50, q99
        Mean, median and 99 % quantile of dH: of all watched atoms, or with ``Monitor(values="flagged")`` of the
        sample, about 128 of them; nan if there are none. A quantile is that of a histogram, within 0.07·(1 + |dH|)
        nats of the dH that as many atoms do not exceed; it ends at 8e4 nats.
    n, n_select, n_halt
        Watched atoms, and how many lie above each threshold.
    dH
        (n_local,) dH of this rank's atoms; nan for atoms that are not watched; inf for all of an implausible frame.
    force_errors
        (n_local,) the bound of each atom, or None without such a calibration.
    values
        What `dH` holds. "exact": every value is exact. "flagged": those above `select` and the frame's maximum are;
        the others are certified upper bounds, none above `select` and none above the maximum.
    seconds
        What the evaluation took on this rank.
    mark
        Two numbers that tell configurations apart: `quests_md.monitor.mark_of`.
    evaluation
        What was measured on this rank, for `Monitor.propose` and `complete`, as long as the host's callback lasts.
    lesson
        What a live reference has learned of the frame, while it learns.
    """

    step: int
    evaluated: bool
    run: int = 1
    repeat: int = 0
    again: bool = False
    band: Band = Band.COVERED
    reasons: tuple[str, ...] = ()
    save: bool = False
    stop: bool = False
    event: int = 0
    begins: bool = False
    ends: bool = False
    verdict: str = ""
    drops: int | None = None
    novelty: float = float("nan")
    n_novel: int = 0
    excess: float = float("nan")
    force_error: float = float("nan")
    maximum: float = float("-inf")
    max_id: int = -1
    mean: float = float("nan")
    q50: float = float("nan")
    q99: float = float("nan")
    n: int = 0
    n_select: int = 0
    n_halt: int = 0
    dH: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    force_errors: NDArray[np.float64] | None = None
    values: str = "exact"
    seconds: float = 0.0
    mark: Mark = (float("nan"), float("nan"))
    evaluation: Evaluation | None = field(default=None, repr=False, compare=False)
    lesson: Lesson | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> Key:
        """What the evaluation is known by."""
        return Key(self.run, self.step, self.repeat)


@dataclass(frozen=True)
class Proposal:
    """A frame that may be saved, for whoever decides whether it is.

    Attributes
    ----------
    step
        Of the frame.
    ids, dH, select
        (m,) of this rank's environments above `select`: id of the atom, exact dH, and the threshold.
    n
        Watched atoms of the whole frame.
    rows
        Returns the descriptors (len(which), d) of the environments ``ids[which]``.
    must
        The frame is saved whatever is decided: it halts.
    begins
        An event begins with it.
    """

    step: int
    ids: NDArray[np.int64]
    dH: NDArray[np.float64]
    select: NDArray[np.float64]
    n: int
    rows: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    must: bool
    begins: bool
