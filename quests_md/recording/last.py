"""last.extxyz: the last evaluated frame, from which a run goes on."""

from __future__ import annotations

from ..files.extxyz import frame_parts
from .recorder import Moment, Place, Recorder

__all__ = ["LAST", "Last", "write_only_frame"]

LAST = "last.extxyz"


class Last(Recorder):
    """Write the last evaluated frame when the run ends, or is told to stop.

    Attributes
    ----------
    moment
        The last one, if it has not been written yet.
    """

    files = (LAST,)

    def __init__(self, place: Place) -> None:
        self._place = place
        self.moment: Moment | None = None

    def close(self) -> None:
        """Make the last evaluated frame the content of the file, if it is not yet."""
        if self.moment is not None:
            moment, self.moment = self.moment, None
            write_only_frame(self._place, LAST, moment)


def write_only_frame(place: Place, name: str, moment: Moment) -> None:
    """Make a frame the only one of a file, atomically. Collective."""
    whole = moment.whole(place.comm)

    def act() -> None:
        assert whole is not None
        place.folder.replace(name, frame_parts(whole.frame, whole.dH, moment.info(), whole.columns))

    place.on_root(act)
