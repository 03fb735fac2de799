"""How long tests wait, in one place: for ever is too long, and nothing else is.

A limit is there so that a hang ends, and says nothing of the speed of a machine: another program may keep all cores.
"""

from __future__ import annotations

import time

LIMIT = 900.0  # seconds: a hundred times what anything that is waited for takes on a machine of its own
FOREVER = 4 * LIMIT  # seconds that a program sleeps which the tests expect somebody to end

# Ranks that wait for each other keep their cores busy. Where there are fewer cores than ranks and others that want
# them, the rank that is waited for must be let through.
POLITE = {"OMPI_MCA_mpi_yield_when_idle": "1"}


def wait_until(condition, what):
    """Return what a condition gives once that is true; fail with `what` if it never is."""
    until = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < until, f"after {LIMIT:g} s: {what}"
        time.sleep(0.002)  # leaves the processor to whoever is waited for
    return found
