"""The content of run.json."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING, Any

from ..sinks import json_value
from ..versions import versions

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["describe"]


def describe(
    session: Session,
    began: datetime.datetime,
    reason: str,
    resumed: list[str],
    state: dict[str, Any],
    learning: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what run.json holds of a session: `state` is what resuming it needs beside the other files."""
    monitor, thresholds = session.monitor, session.monitor.thresholds
    last = None if state["row"] is None else state["row"][1]
    content = {
        "status": session.status,
        "reason": reason,
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
        "started": began.isoformat(timespec="seconds"),
        "resumed": resumed,
        "updated": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "last_step": last if session.decision is None else int(session.decision.step),
        "evaluations": session.n_evaluated,
        "flagged": session.n_flagged,
        "saved": session.n_saved,
        "events": monitor.events.count,
        "seconds": session.seconds,
        "share": None if math.isnan(session.share) else session.share,
        "versions": versions(),
        "state": state,
    }
    described: dict[str, Any] = json_value(content)
    return described
