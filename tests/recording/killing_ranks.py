"""A watched run of two MPI ranks that is killed: ``mpiexec -n 2 python killing_ranks.py FOLDER FIRST WHO N``.

The run goes on in the folder at frame FIRST. Before moment N of rank WHO that rank is killed by SIGKILL; where WHO is
"all", both are, before moment N of rank 0. N = 0: nobody is. The memory that ranks share has names: those who are
killed leave it behind, so the names are added to the file ``shared`` beside the folder.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import kills
from mpi4py import MPI
from test_recording_killed import run_of
from watched import build_index

from quests_md.hosts.mpi import MpiComm

NAME = "two ranks, events"


def main(folder, first, who, at):
    comm = MpiComm(MPI.COMM_WORLD)
    with open("/proc/self/maps") as maps, open(folder.parent / "shared", "a") as shared:
        shared.writelines({f"{line.split()[5]}\n" for line in maps if "/dev/shm/mpich" in line})
    ranks = comm.broadcast(comm.gather(os.getpid()))
    leader = 0 if who == "all" else int(who)
    victims = ranks if who == "all" else []

    def act(n, what):
        if n == at and comm.rank == leader:
            for process in (*[each for each in victims if each != os.getpid()], os.getpid()):
                os.kill(process, signal.SIGKILL)

    with kills.seen(folder, act):
        run_of(NAME, build_index()).watch(folder, first, comm=comm, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
