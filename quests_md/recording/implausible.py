"""implausible.extxyz: broken frames, kept apart from the interesting ones."""

from __future__ import annotations

from ..monitor import Band
from .past import Past
from .recorder import FrameFile, Moment, Place, Recorder

__all__ = ["IMPLAUSIBLE", "Implausible"]

IMPLAUSIBLE = "implausible.extxyz"


class Implausible(Recorder):
    """Write broken frames; of those that follow each other the first."""

    files = (IMPLAUSIBLE,)
    bands = frozenset({Band.IMPLAUSIBLE})

    def __init__(self, place: Place) -> None:
        self._place = place
        self._file = FrameFile(place.folder, IMPLAUSIBLE)

    def see(self, moment: Moment) -> None:
        """Write a broken frame, with its reason."""
        if moment.follows_broken:
            return
        whole, reason = moment.whole(self._place.comm), moment.decision.reasons[0]

        def act() -> None:
            assert whole is not None
            self._file.append(moment.key, whole, {**moment.info(), "reason": reason})

        self._place.on_root(act)

    def resume(self, past: Past) -> None:
        """Take back frames of evaluations without a row."""

        def mend() -> None:
            self._file.scan()
            self._file.mend([place for place, key in enumerate(self._file.keys) if past.has_row(key)])

        self._place.on_root(mend)
