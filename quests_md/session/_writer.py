"""What the ranks hold is gathered, and rank 0 writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, raise_together
from ..errors import OutputError, QuestsError
from ..frame import Frame, merge
from ..monitor import Event, Moment
from ..sinks import ExtxyzSink, RunFolder

__all__ = ["Writer", "assemble"]

_MOST_ATOMS = 1000  # ids that the line of an event holds

_Then = Callable[[Frame, NDArray[np.float64]], object]


class Writer:
    """The files of a run, written by rank 0. Every method but `row` is collective.

    Attributes
    ----------
    unwritten
        Why a row could not be written: the other ranks hear of it at the next evaluation, or at the end.
    """

    def __init__(self, files: RunFolder, comm: Comm) -> None:
        self.files, self._comm = files, comm
        self.unwritten: Exception | None = None

    def on_root(self, act: Callable[[], object]) -> None:
        """Let rank 0 act; raise on all ranks if it, or a row before, could not be written."""
        error: Exception | None = None
        if self._comm.rank == 0:
            try:
                act()
                error = self.unwritten
            except QuestsError as caught:
                error = caught
            except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
                error = OutputError(f"{self.files.path}: {type(caught).__name__}: {caught}")
                error.__cause__ = caught
        raise_together(self._comm, error)

    def append(
        self,
        sink: ExtxyzSink,
        moment: Moment,
        then: _Then | None = None,
        **info: Any,
    ) -> None:
        """Gather a frame and add it to a file; then, on rank 0, hand the whole frame and dH to `then`."""
        parts = self._comm.gather((moment.frame, moment.dH, moment.columns))

        def act() -> None:
            frame, dH, columns = assemble(parts or ())
            sink.append(frame, dH, {**moment.info, **info}, columns)
            if then is not None:
                then(frame, dH)

        self.on_root(act)

    def replace(self, sink: ExtxyzSink, moment: Moment) -> None:
        """Gather a frame and make it the only one of a file."""
        parts = self._comm.gather((moment.frame, moment.dH, moment.columns))

        def act() -> None:
            frame, dH, columns = assemble(parts or ())
            sink.replace(frame, dH, moment.info, columns)

        self.on_root(act)

    def whole(self, moment: Moment) -> Frame | None:
        """Return the whole frame on rank 0, None elsewhere."""
        parts = self._comm.gather((moment.frame, moment.dH, moment.columns))
        return None if parts is None else assemble(parts)[0]

    def row(self, values: dict[str, Any]) -> None:
        """Add a row to monitor.csv; rank 0 only."""
        try:
            self.files.rows.write(values)
        except OutputError as error:
            if self._comm.size == 1:
                raise
            self.unwritten = error

    def event(self, event: Event, **more: Any) -> None:
        """Add the line of an event that is over to events.jsonl, with the atoms of all ranks."""
        parts = self._comm.gather(event.atoms)
        self.on_root(lambda: self.files.events.write(_line(event, np.unique(np.concatenate(parts or [])), more)))


def _line(event: Event, atoms: NDArray[np.int64], more: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": event.number,
        **more,
        "start": event.start,
        "start_time": event.start_time,
        "end": event.end,
        "end_time": event.end_time,
        "worst": event.worst,
        "max": event.maximum,
        "max_id": event.max_id,
        "n_frames": event.n_frames,
        "over": event.over,
        "n_atoms": len(atoms),
        "atoms": atoms[:_MOST_ATOMS].tolist(),
    }


def assemble(
    parts: Sequence[tuple[Frame, NDArray[np.float64], dict[str, NDArray[Any]]]],
) -> tuple[Frame, NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Put the ranks' parts of a frame together, atoms by id."""
    frame, order = merge([part[0] for part in parts])
    more = {name: np.concatenate([part[2][name] for part in parts])[order] for name in parts[0][2]}
    return frame, np.concatenate([part[1] for part in parts])[order], more
