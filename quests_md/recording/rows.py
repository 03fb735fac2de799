"""monitor.csv: one row per evaluation. The row is written after all that an evaluation adds to other files."""

from __future__ import annotations

from ..errors import OutputError
from .past import Past
from .reader import DEFAULTS
from .recorder import Moment, Place, Recorder, say_cut

__all__ = ["COLUMNS", "ROWS", "RowLines"]

ROWS = "monitor.csv"
COLUMNS = tuple(DEFAULTS)
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
        text = (
            f"{d.run},{int(d.step)},{float(moment.frame.time)!r},{d.n},{d.maximum!r},{d.max_id},{d.mean!r},{d.q50!r},"
            f"{d.q99!r},{d.n_select},{d.n_halt},{d.band.value},{int(d.save)},{self._values},{moment.seconds!r},{d.event},"
            f"{d.novelty!r},{d.force_error!r},{d.repeat},{d.mark[0]!r}/{d.mark[1]!r},{d.n_novel},{d.excess!r},"
            f"{'' if moment.dropped is None else moment.dropped}\n"
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
            empty = b"," + b",".join([b"0", b"", b"0", b"nan", b""]) + b"\n"
            with folder.open(ROWS) as file:
                file.readline()
                lines = [line[:-1] + empty for line in file if line.endswith(b"\n")]
            folder.replace(ROWS, [_HEAD, *lines])
        else:
            say_cut(folder.path / ROWS, folder.cut(ROWS, past.rows_end), "a line")
        folder.adopt(ROWS)
