"""Workers of a queue that are known to be gone."""

from __future__ import annotations

import os
import platform

__all__ = ["is_dead"]


def is_dead(worker: str) -> bool:
    """Return whether the name of a worker, "NODE-PID-TOKEN", is that of a process that this machine no longer has."""
    node, _, rest = worker.partition(f"{platform.node()}-")
    pid, _, token = rest.partition("-")
    if node or not pid.isdigit() or not token:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
