"""What the monitor says about a frame."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Band", "Decision"]


class Band(str, enum.Enum):
    """Where a dH lies: of a frame, that of its worst atom."""

    COVERED = "covered"  # dH ≤ select
    CANDIDATE = "candidate"  # select < dH ≤ halt
    HALT = "halt"  # dH > halt

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
    band
        Of the worst atom.
    reasons
        Why the frame is to be saved or the run to stop, in words.
    save, stop
        What the host must do.
    maximum, max_id
        Largest dH (nats) and the id of its atom; −inf and −1 if no atom is watched.
    mean, q50, q99
        Mean, median and 99 % quantile of dH: of all watched atoms, or with ``Monitor(values="flagged")`` of the
        sample, about 128 of them; nan if there are none. A quantile is that of a histogram, within 0.07·(1 + |dH|)
        nats of the dH that as many atoms do not exceed; it ends at 8e4 nats.
    n, n_select, n_halt
        Watched atoms, and how many lie above each threshold.
    dH
        (n_local,) dH of this rank's atoms; nan for atoms that are not watched.
    values
        What `dH` holds. "exact": every value is exact. "flagged": those above `select` and the frame's maximum are;
        the others are certified upper bounds, none above `select` and none above the maximum.
    seconds
        What the evaluation took on this rank.
    """

    step: int
    evaluated: bool
    band: Band = Band.COVERED
    reasons: tuple[str, ...] = ()
    save: bool = False
    stop: bool = False
    maximum: float = float("-inf")
    max_id: int = -1
    mean: float = float("nan")
    q50: float = float("nan")
    q99: float = float("nan")
    n: int = 0
    n_select: int = 0
    n_halt: int = 0
    dH: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    values: str = "exact"
    seconds: float = 0.0
