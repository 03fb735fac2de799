"""The reference of a run: an index file, or one that is learned from the run itself and saved with its files."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from ..comm import raise_together
from ..config import RunConfig
from ..errors import QuestsError
from ..index import Index, Live
from ..monitor import Monitor
from ..sinks import RunFolder
from ._writer import Writer

__all__ = ["Learning", "reference_of"]


def reference_of(config: RunConfig) -> Index | Live:
    """Return the reference that a configuration names: the opened index, or a live one that has yet to learn."""
    return Live(**config.of_live()) if config.reference == "live" else Index.open(config.index or "")


class Learning:
    """Follows a live reference until it is ready; does nothing for an index. Every method is collective.

    Attributes
    ----------
    seconds
        What building the index has taken.
    """

    def __init__(self, monitor: Monitor, files: RunFolder, writer: Writer) -> None:
        self._monitor, self._files, self._writer = monitor, files, writer
        self._live = monitor.index if isinstance(monitor.index, Live) else None
        self._has_begun = False
        self.seconds = 0.0

    def describe(self) -> dict[str, Any] | None:
        """Return how far learning has come, for run.json; None for an index."""
        return None if self._live is None else {**self._live.progress, "seconds": self.seconds}

    def resume(self) -> None:
        """Take what an earlier part of the run has learned, if it came so far; else learning begins anew.

        Raises
        ------
        QuestsError
            The index is there and cannot be used: on all ranks.
        """
        live, comm = self._live, self._monitor.comm
        if live is None or not comm.broadcast(self._files.live.exists()):
            return
        error: QuestsError | None = None
        try:
            live.open(self._files.live)
        except QuestsError as caught:
            error = caught
        raise_together(comm, error)

    def follow(self, step: int) -> bool:
        """Say that learning has begun, and build the index when its span is over; return whether either was done.

        Raises
        ------
        QuestsError
            The reference cannot be built, or not be saved: on all ranks.
        """
        live = self._live
        if live is None:
            return False
        if live.is_over:
            self._finish(live)
            return True
        if self._has_begun or not live.progress["frames"]:
            return False
        self._has_begun = True
        self._say(f"quests_md: learning from step {step} on, for {live.span} steps: nothing is compared until then")
        return True

    def _finish(self, live: Live) -> None:
        started = time.perf_counter()
        monitor = self._monitor
        given = monitor.thresholds.given.values()
        is_rate = any(isinstance(value, Mapping) and "false_alarm" in value for value in given)
        live.finish(monitor.comm, self._files.live, calibrated=is_rate, threads=monitor.threads)
        self.seconds = time.perf_counter() - started
        monitor.warm_up()
        learned = live.learned
        assert learned is not None
        in_ps = "" if math.isnan(learned.correlation_time) else f" ({learned.correlation_time:.3g} ps)"
        self._say(
            f"quests_md: learned {learned.frames} frames ({learned.rows} environments) of steps {learned.first} to "
            f"{learned.last}, correlation time {learned.correlation:.3g} steps{in_ps}; comparing from now on with "
            f"{self._files.live}"
        )

    def _say(self, text: str) -> None:
        self._writer.on_root(lambda: print(text, flush=True))
