"""The content of run.json."""

from __future__ import annotations

import datetime
import functools
import math
from typing import TYPE_CHECKING, Any

from ..versions import versions

if TYPE_CHECKING:
    from .session import Session

__all__ = ["describe"]

_versions = functools.cache(versions)


def describe(session: Session, state: dict[str, Any], learning: dict[str, Any] | None) -> dict[str, Any]:
    """Return what run.json holds of a session: `state` is what resuming it needs beside the other files."""
    monitor, thresholds = session.monitor, session.monitor.thresholds
    return {
        "status": session.status,
        "reason": session.reason,
        "host": session.host,
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
        **session.settings,
        "ranks": monitor.comm.size,
        "threads": monitor.threads,
        "started": session.began.isoformat(timespec="seconds"),
        "resumed": session.resumed,
        "updated": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "last_step": session.last_step,
        "evaluations": session.n_evaluated,
        "flagged": session.n_flagged,
        "saved": session.n_saved,
        "events": monitor.events.count,
        "seconds": session.seconds,
        "share": None if math.isnan(session.share) else session.share,
        "versions": _versions(),
        "state": state,
    }
