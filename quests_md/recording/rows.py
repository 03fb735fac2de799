"""The evaluations of a run: their rows in monitor.csv, the last ones in memory, and what they cost.

A row is written after all that its evaluation adds to other files.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from ..errors import OutputError
from ..frame import Frame
from ..monitor import Band, Decision
from .past import Past
from .reader import DEFAULTS
from .recorder import Moment, Place, Recorder, say_cut

__all__ = ["COLUMNS", "ROWS", "Cost", "Recent", "RowLines"]

ROWS = "monitor.csv"
COLUMNS = tuple(DEFAULTS)
_NO_BIAS = math.nan, math.nan, math.nan
_HEAD = (",".join(COLUMNS) + "\n").encode()


class RowLines(Recorder):
    """Write the rows, on rank 0.

    Attributes
    ----------
    unwritten
        Why this rank could not write a row. With several ranks, the others learn it at the next evaluation or at the
        end.
    """

    files = (ROWS,)
    sees_calm = True

    def __init__(self, place: Place) -> None:
        self._place, self._is_root, self._values = place, place.is_root, place.monitor.values
        self.unwritten: Exception | None = None

    def see(self, moment: Moment) -> None:
        """Write the row of an evaluation, with numbers that read as the same double. Not collective."""
        if not self._is_root:
            return
        d = moment.decision
        energy, force, tau = moment.frame.bias or _NO_BIAS
        text = (
            f"{d.run},{int(d.step)},{float(moment.frame.time)!r},{d.n},{d.maximum!r},{d.max_id},{d.mean!r},{d.q50!r},"
            f"{d.q99!r},{d.n_select},{d.n_halt},{d.band.value},{int(d.save)},{self._values},{moment.seconds!r},{d.event},"
            f"{d.novelty!r},{d.force_error!r},{d.repeat},{d.mark[0]!r}/{d.mark[1]!r},{d.n_novel},{d.excess!r},"
            f"{'' if moment.dropped is None else moment.dropped},{d.n_sample},{d.sample_age},"
            f"{'' if d.sample is None else d.sample},{d.expected_error!r},{d.n_outside},{d.force_rmse!r},"
            f"{energy!r},{force!r},{tau!r}\n"
        )
        try:
            self._place.folder.append(ROWS, (text.encode(),), _HEAD)
        except OutputError as error:
            if self._place.comm.size == 1:
                raise
            self.unwritten = error

    def resume(self, past: Past) -> None:
        """Cut off half a row, and add the new columns to rows of an older version."""
        self._place.on_root(lambda: self._mend(past))

    def _mend(self, past: Past) -> None:
        folder = self._place.folder
        if past.lacks_columns:
            empty = ("," + ",".join(_as_text(DEFAULTS[name]) for name in past.lacks_columns) + "\n").encode()
            with folder.open(ROWS) as file:
                file.readline()
                lines = [line[:-1] + empty for line in file if line.endswith(b"\n")]
            folder.replace(ROWS, [_HEAD, *lines])
        else:
            say_cut(folder.path / ROWS, folder.cut(ROWS, past.rows_end), "a line")
        folder.adopt(ROWS)


class Recent:
    """The last moments of a run, in memory that is used again.

    Attributes
    ----------
    present
        The last new evaluation, or None.
    plausible
        The last evaluation of a plausible frame, or None.
    is_broken
        Whether the frame of the last new evaluation was implausible.
    """

    def __init__(self) -> None:
        self.present: Moment | None = None
        self.plausible: Moment | None = None
        self.is_broken = False
        self._spare: Frame | None = None  # its memory is free for the next frame

    def take(self, frame: Frame, decision: Decision, may_reuse: bool) -> Moment:
        """Return the moment of a new evaluation, with a copy of its frame.

        If it `may_reuse` them, the arrays of the moment that is replaced serve for the next copy.
        """
        moment = Moment(frame.local(self._spare), decision)
        replaced, is_broken = self.present, decision.band is Band.IMPLAUSIBLE
        if not is_broken:
            replaced, self.plausible = self.plausible, moment
        else:
            moment.proposed, moment.follows_broken = self.plausible, self.is_broken
            replaced = None if replaced is self.plausible else replaced
        self._spare = replaced.frame if replaced is not None and may_reuse else None
        self.is_broken, self.present = is_broken, moment
        return moment

    def take_again(self, moment: Moment) -> None:
        """Take note of an evaluation that was made before."""
        if moment.is_plausible and (self.plausible is None or moment.key >= self.plausible.key):
            self.plausible = moment


def _as_text(value: float | bool | str) -> str:
    return value if isinstance(value, str) else repr(value)


@dataclass
class Cost:
    """The time that watching takes on this rank, since the session began.

    Attributes
    ----------
    seconds
        Time that was taken.
    n, atoms
        Number of evaluations, and of this rank's atoms in all of them together.
    first, last
        When the first evaluation began and the last one ended, by ``time.perf_counter``.
    """

    seconds: float = 0.0
    n: int = 0
    atoms: int = 0
    first: float = math.nan
    last: float = math.nan

    @property
    def share(self) -> float:
        """Share of the wall time between the first and the last evaluation; nan before the second."""
        return self.seconds / (self.last - self.first) if self.n > 1 else math.nan

    def add(self, started: float, n_atoms: int) -> None:
        """Add the time of an evaluation of `n_atoms` that ends now; `n` counts it already."""
        now = time.perf_counter()
        self.seconds += now - started
        self.atoms += n_atoms
        self.first, self.last = started if self.n == 1 else self.first, now

    def describe(self) -> dict[str, float | None]:
        """Return what run.json says of it."""
        return {"seconds": self.seconds, "share": None if math.isnan(self.share) else self.share}

    def in_words(self) -> str:
        """Return the cost as the end of a sentence; empty before the first evaluation."""
        text = f"; {1e6 * self.seconds / self.atoms:.1f} µs per atom and evaluation" if self.atoms else ""
        return text if math.isnan(self.share) else f"{text}, {100 * self.share:.2f} % of the run"
