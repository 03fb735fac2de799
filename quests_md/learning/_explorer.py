"""One exploration, in a process of its own: ``python -m quests_md.learning._explorer job.json``.

It ends with 0 once exploration.json is there, and with `CANNOT_RUN` where it could not begin or not be watched: the
last line that it says is what must be set right. Any other end, a signal among them, is a crash, of which the caller
makes the result. That this process ends with its caller is the work of the guard which it is started by.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Protocol

from ..errors import QuestsError
from ..monitor import Band
from ..recording import LastCovered, Session
from ._job import CANNOT_RUN, Exploration, Job
from ._result import told

__all__ = ["main"]


class Explorer(Protocol):
    """A watched molecular dynamics that is ready to run; each host has its own.

    Attributes
    ----------
    session
        The watched run.
    covered
        What keeps its last covered frame.
    step
        The present step.
    """

    session: Session
    covered: LastCovered

    @property
    def step(self) -> int:
        """Return the present step."""

    def run(self) -> None:
        """Move the atoms until the end, a halt or an error."""

    def close(self) -> None:
        """Close the session."""


def main(arguments: list[str]) -> int:
    """Run the job of a job.json; return the exit code."""
    # What asks this process to end is no halt: it ends at once, and without a result.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        job = Job.read(Path(arguments[0]))
        _run(job, _make(job)).write(job.folder)
    except Exception as error:  # noqa: BLE001 - LAMMPS's and the calculators' own among them
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        return CANNOT_RUN
    return 0


def _make(job: Job) -> Explorer:
    explorer: Explorer
    if job.settings.host == "lammps":
        from ._explorer_lammps import LammpsExplorer

        explorer = LammpsExplorer(job)
    else:
        from ._explorer_ase import AseExplorer

        explorer = AseExplorer(job)
    # The session took SIGTERM only if nobody had; now nobody needs to hear of it in Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return explorer


def _run(job: Job, explorer: Explorer) -> Exploration:
    """Run a job; return what it came to."""
    status, reason, session = "finished", "", explorer.session
    try:
        explorer.run()
        explorer.close()
    except Exception as error:  # what ends a run is its result, whatever it is
        decision = session.decision
        is_broken = decision is not None and decision.band is Band.IMPLAUSIBLE
        status = "implausible" if is_broken else "crashed"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if isinstance(error, QuestsError) and not is_broken:
            raise  # watching itself has failed: another index, a full disk
        traceback.print_exc()
        if status == "crashed":
            session.propose(reason)
        explorer.covered.close()
        session.fail(error)
    if status == "finished" and session.status == "halted":
        status, reason = "halted", session.reason
    return told(job, status, reason, explorer.step)


if __name__ == "__main__":
    sys.stdout.flush()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the destructors of LAMMPS and MPI may still crash, and nothing is left to be written
