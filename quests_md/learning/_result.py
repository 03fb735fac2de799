"""What an exploration came to, read from its files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..monitor import Band
from ..recording import LAST_COVERED
from ..recording.reader import count_frames, read_rows
from ._job import Exploration, Job

__all__ = ["LOG", "last_lines", "told"]

LOG = "explorer.log"  # what the process says
_LAMMPS_LOG = "log.lammps"
_CANDIDATES = "candidates.extxyz"
_TAIL = 20  # lines of each


def told(job: Job, status: Any, reason: str, steps: int | None = None) -> Exploration:
    """Return what an exploration came to, from its files: those of a process that was killed, too.

    Raises
    ------
    OutputError
        A file is damaged elsewhere than at its end.
    """
    path, candidates, last_covered = (job.folder / name for name in ("monitor.csv", _CANDIDATES, LAST_COVERED))
    rows, damaged = read_rows(path)
    if damaged:
        raise OutputError(f"{path}: line {damaged[0]} is damaged")
    is_broken, is_halt = rows["band"] == str(Band.IMPLAUSIBLE), rows["band"] == str(Band.HALT)
    n, above = (int(rows[name][~is_broken].sum()) for name in ("n", "n_select"))
    n_candidates = count_frames(candidates)
    if steps is None:
        steps = int(rows["step"][-1]) if len(rows) else 0
    is_covered = not n_candidates and not np.any((rows["event"] != 0) | is_broken | is_halt)
    return Exploration(
        name=job.name,
        status=status,
        reason=reason,
        steps=steps,
        time=steps * job.settings.timestep / 1000.0,
        first_halt=float(rows["time"][is_halt][0]) if is_halt.any() else None,
        covered_share=(n - above) / n if n else 0.0,
        frames=len(rows),
        covered_to_end=status == "finished" and is_covered,
        candidates=candidates,
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
