"""The content of run.json."""

from __future__ import annotations

import datetime
import functools
from typing import Any

from ..monitor import Monitor
from ..versions import versions

__all__ = ["describe"]

_versions = functools.cache(versions)


def describe(
    monitor: Monitor,
    ended: dict[str, Any],
    settings: dict[str, Any],
    counts: dict[str, Any],
    state: dict[str, Any],
    learning: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what run.json holds of a run.

    Parameters
    ----------
    monitor
        What decides.
    ended
        How the run has ended, or that it goes on, and its host.
    settings
        Of the session.
    counts
        Dates and counts.
    state
        What resuming needs beside the other files.
    learning
        How far a live reference has come; None for an index.
    """
    thresholds = monitor.thresholds
    return {
        **ended,
        "reference": "index" if learning is None else "live",
        "learning": learning,
        "index": monitor.index.describe(),
        "select": thresholds.given["select"],
        "halt": thresholds.given["halt"],
        "thresholds": thresholds.resolved,
        "min_atoms": thresholds.min_atoms,
        "min_fraction": thresholds.min_fraction,
        "consecutive": monitor.events.consecutive,
        "release": monitor.events.release,
        "every": monitor.every,
        "save_every": monitor.schedule.save_every,
        "min_distance": monitor.plausibility.fraction,
        "implausible": monitor.implausible,
        "values": monitor.values,
        "precision": monitor.precision,
        **settings,
        "ranks": monitor.comm.size,
        "threads": monitor.threads,
        "updated": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **counts,
        "events": monitor.events.count,
        "versions": _versions(),
        "state": state,
    }
