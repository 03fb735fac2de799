"""The bias of a run: when it is off, and what the user hears of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from ..bias import Bias, BiasSettings, Push
from ..errors import InputError
from ..frame import Frame
from ..monitor import Monitor

__all__ = ["Steering"]


class Steering:
    """Compute what the bias of a watched run adds to its forces.

    Parameters
    ----------
    monitor
        The monitor of the run: its index, its ranks, its halt threshold.
    settings
        Those of the bias.

    Raises
    ------
    InputError
        The settings are wrong, the reference has no derivatives, or nothing says where the bias ends. On all ranks.
    """

    def __init__(self, monitor: Monitor, settings: BiasSettings | Mapping[str, Any]) -> None:
        near = monitor.plausibility.fraction
        self._monitor = monitor
        self._bias = Bias(monitor.index, settings, comm=monitor.comm, threads=monitor.threads, min_distance=near)
        self._warned = False
        self._find_halt()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are set, as JSON can hold them."""
        return self._bias.settings.as_dict()

    def resume(self, tau: float) -> None:
        """Go on with the τ (eV per nat) of the last row; nan if it has none."""
        if not math.isnan(tau):
            self._bias.resume(tau)

    def _find_halt(self) -> float:
        """Return the lowest halt threshold in nats; inf as long as it is not known."""
        thresholds = self._monitor.thresholds
        halt = float(thresholds.tables[1].min(initial=math.inf))
        if thresholds.resolved is not None and math.isinf(halt) and self._bias.settings.ceiling is None:
            raise InputError("bias: without a halt threshold it needs a ceiling: bias = { ..., ceiling = 10.0 }")
        return halt

    def push(self, frame: Frame | None, error: Exception | None = None) -> Push:
        """Compute the bias of a frame, and print its warning once. Collective; raises what `Bias.push` does."""
        paused = ""
        if self._bias.settings.pause_in_events and self._monitor.events.current is not None:
            paused = "an event is open"
        push = self._bias.push(frame, self._find_halt(), paused, error)
        if self._bias.warning and not self._warned:
            self._warned = True
            if self._monitor.comm.rank == 0:
                print(f"quests_md: WARNING: {self._bias.warning}", file=sys.stderr, flush=True)
        return push
