"""What an exploration came to, read from its files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..monitor import Band
from ..sinks import RunFolder
from ._job import Exploration, Job
from ._keeper import LAST_COVERED

__all__ = ["LOG", "last_lines", "told"]

LOG = "explorer.log"  # what the process says
_LAMMPS_LOG = "log.lammps"
_TAIL = 20  # lines of each


def told(job: Job, status: Any, reason: str, steps: int | None = None) -> Exploration:
    """Return what an exploration came to, from its files."""
    files = RunFolder(job.folder)
    keys = files.mend()  # a process that was killed leaves half a frame
    rows = list(files.rows.read())
    seen = [(int(row["n"]), int(row["n_select"])) for row in rows if row["band"] != Band.IMPLAUSIBLE]
    n, above = (sum(column) for column in zip((0, 0), *seen, strict=True))
    n_candidates, last_covered = len(keys["candidates"]), job.folder / LAST_COVERED
    first_halt = next((float(row["time"]) for row in rows if row["band"] == Band.HALT), None)
    if steps is None:
        steps = int(rows[-1]["step"]) if rows else 0
    is_covered = not n_candidates and all(
        int(row["event"]) == 0 and row["band"] not in (Band.HALT, Band.IMPLAUSIBLE) for row in rows
    )
    return Exploration(
        name=job.name,
        status=status,
        reason=reason,
        steps=steps,
        time=steps * job.settings.timestep / 1000.0,
        first_halt=first_halt,
        covered_share=(n - above) / n if n else 0.0,
        frames=len(rows),
        covered_to_end=status == "finished" and is_covered,
        candidates=files.candidates.path,
        n_candidates=n_candidates,
        last_covered=last_covered if last_covered.exists() else None,
        log=tail(job) if status == "crashed" else "",
    )


def tail(job: Job) -> str:
    """Return the last lines of the logs of an exploration."""
    return "\n".join(line for name in (_LAMMPS_LOG, LOG) for line in last_lines(job.folder / name))


def last_lines(path: Path) -> list[str]:
    """Return the last lines of a log that are not empty; none where it cannot be read."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_TAIL:]
    return []
