"""How a command of LAMMPS can be ended before its time, and how the partitions of a job (``-partition``) end together.

LAMMPS has one way to end a run early, the timeout. It acts on one partition, and some commands do not heed it. Where
partitions wait for each other (neb, pimd, prd), one that leaves alone makes the others wait for ever.

Partitions that run on their own must never wait for each other here. So all of this is messages from one rank to
another, which are looked for and not waited for. The only exception is `Replicas.meet`, where LAMMPS itself lets no
partition take a step without the others.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import re
import sys
import time
import weakref
from typing import Any

import numpy as np

from ...comm import Comm
from ...errors import HostError, MissingExtraError
from ._library import Library

__all__ = ["BREAKER", "Breaker", "Ending", "News", "Replicas", "find_ending", "find_replicas", "list_coupling_fixes"]

BREAKER = "quests_end"  # a fix halt: it ends commands that do not heed LAMMPS's timeout

_TAG = 27184  # of our messages; LAMMPS uses tag 0 between partitions. MPI allows tags up to 32767 everywhere
_DESCRIPTORS = "/proc/self/fd"  # of Linux: its entries are links to what is open
_RAISES = 20240207
_TO_JOIN, _TO_WRITE = 20.0, 5.0  # seconds that the other partitions have for that
_COUPLING = re.compile(r"^Fix\[ *\d+\]: *(\S+), *style = (pimd\S*|alchemy),", re.MULTILINE)


class Ending(enum.Enum):
    """How a command can be ended before its time."""

    TIMEOUT = "by the timeout of LAMMPS"
    TOGETHER = "by the timeout, in all partitions after the same step"
    SWAP = "by the timeout: at the next swap LAMMPS ends all partitions"
    ERROR = "by an error of LAMMPS: it goes round for ever if its time is over"
    RERUN = "by an error of LAMMPS: it does not heed the timeout"
    JOB = "with the job: it does not heed the timeout, and partitions wait for each other"


# Parts of the (mangled) names of LAMMPS's functions, and how the command that they belong to can be ended. The first
# that runs counts: tad runs a neb.
_COMMANDS = {
    b"LAMMPS_NS3PRD": Ending.JOB,
    b"LAMMPS_NS3TAD": Ending.JOB,
    b"LAMMPS_NS11VerletSplit": Ending.JOB,
    b"LAMMPS_NS5Hyper7command": Ending.ERROR,
    b"LAMMPS_NS5Rerun7command": Ending.RERUN,
    b"LAMMPS_NS3NEB": Ending.TOGETHER,
    b"LAMMPS_NS7NEBSpin": Ending.TOGETHER,
    b"LAMMPS_NS6Temper7command": Ending.SWAP,
    b"LAMMPS_NS10TemperGrem7command": Ending.SWAP,
    b"LAMMPS_NS9TemperNPT7command": Ending.SWAP,
}
_NAMES = tuple(_COMMANDS)
_WITH_ONE_PARTITION = {Ending.TOGETHER: Ending.TIMEOUT, Ending.SWAP: Ending.TIMEOUT, Ending.JOB: Ending.ERROR}


def find_ending(library: Library, replicas: Replicas | None) -> Ending:
    """Return how the command that is running can be ended."""
    running = library.find_callers(_NAMES)
    ending = next((_COMMANDS[name] for name in _NAMES if name in running), Ending.TIMEOUT)
    if replicas is None:  # such a command may run with one partition
        return _WITH_ONE_PARTITION.get(ending, ending)
    if ending is Ending.TIMEOUT and replicas.coupled:
        ending = Ending.TOGETHER
    return Ending.JOB if ending is Ending.TOGETHER and replicas.alone else ending


def list_coupling_fixes(library: Library, comm: Comm) -> list[str]:
    """Return the names of the fixes that couple partitions in ``run`` and ``minimize``; on rank 0 only. Collective."""
    return [name for name, _ in _COUPLING.findall("\n".join(library.list_info("fixes", comm.rank)))]


class Breaker:
    """End a command by an error of LAMMPS: by a fix halt, as soon as a callback of the watch has returned.

    A fix halt that looks at a variable would cost a run energy and virial at every step: LAMMPS tallies both for any
    step at which it may evaluate a variable (SNAP pays half of its own cost for them). Asking for free disk space costs
    nothing. So the fix asks for that of a folder, which is there as long as a file descriptor of ours is one of a
    folder. On a full disk it is 0, and without the folder it is negative.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._descriptor = -1
        # From that version on, every LAMMPS can be asked to raise its errors in Python.
        if library.version < _RAISES or not os.path.isdir(_DESCRIPTORS):
            return
        self._descriptor = os.open("/", os.O_RDONLY)
        # The dot: what is not a folder has none in it.
        path = f"{_DESCRIPTORS}/{self._descriptor}/."
        self._close = weakref.finalize(self, os.close, self._descriptor)
        library.command(f"fix {BREAKER} all halt 1 diskfree < 0 path {path} error hard message no")

    @property
    def ready(self) -> bool:
        """Whether this LAMMPS and this system can do it."""
        return self._descriptor >= 0

    def trigger(self) -> None:
        """Let LAMMPS fail at the end of this step."""
        self._put(os.devnull)

    def reset(self) -> None:
        """Let LAMMPS run again."""
        if self.ready:
            self._put("/")

    def close(self) -> None:
        """Remove the fix, if it is still there. Collective, outside of a run."""
        if self.ready:
            if self._library.has_fix(BREAKER.encode()):
                self._library.command(f"unfix {BREAKER}")
            self._close()
            self._descriptor = -1

    def _put(self, path: str) -> None:
        """Let the descriptor be one of another file, with no moment between in which it is free."""
        other = os.open(path, os.O_RDONLY)
        try:
            os.dup2(other, self._descriptor, inheritable=False)
        finally:
            os.close(other)


class News:
    """What one partition tells the others of its end: its state ("running", "halted" or "failed") and why."""

    def __init__(self, state: str = "running", reason: str = "") -> None:
        self.state, self.reason = state, reason


_STATES = ("running", "halted", "failed")  # the last one wins
_TEXT = 400  # bytes of a reason that are shared


class Replicas:
    """The partitions of a job, seen from one of them. Its first rank talks to the first ranks of the others.

    Attributes
    ----------
    coupled
        Whether a fix couples the partitions in every step of ``run`` and ``minimize``.
    alone
        Whether some partition is not watched, so that partitions cannot end together.
    news
        The first end that another partition has told of, since `forget`.
    """

    def __init__(self, universe: Any) -> None:
        self._universe = universe
        self.coupled = self.alone = False
        self.news: News | None = None
        self._outside: list[int] = []  # the ranks of the other partitions
        self._is_root, self._root, self._has_joined = False, 0, False
        self._partition: Any = None
        self._sizes: dict[int, int] = {}  # number of ranks of each partition that is watched, by its first rank
        self._written: set[int] = set()  # the partitions that have written all before the job ends
        self._sent: list[tuple[Any, bytes]] = []
        self._roots: Any = None  # a communicator of the first ranks, when they have met
        self._deadline = 0.0

    def join(self, comm: Comm) -> None:
        """Let this partition be watched. Collective in this partition.

        The others hear of it in the first command that couples them. So partitions that run on their own send nothing:
        MPI may end a job in which a rank leaves without having taken its messages.
        """
        me = self._universe.Get_rank()
        own = [int(rank) for rank in comm.allgather(np.array([me], float))[:, 0]]
        self._outside = [rank for rank in range(self._universe.Get_size()) if rank not in own]
        self._is_root, self._root, self.alone, self._roots = me == own[0], own[0], False, None
        # Of our own, because the partition may be closed before its program ends.
        self._partition = self._universe.Create_group(self._universe.Get_group().Incl(own), tag=_TAG + 1)
        self._sizes[own[0]] = len(own)
        self._has_joined = False
        self.forget()

    def announce(self) -> None:
        """Tell the other partitions, once, that this one is watched, and hear what they have told."""
        if not self._has_joined:
            self._has_joined = True
            self._send("joined", self._sizes[self._root])
        self.listen()

    def leave(self) -> None:
        """Tell the other partitions not to wait for this one."""
        if self._has_joined and not self.alone:
            self.alone = True
            self._send("left")

    def settle(self) -> None:
        """Take what has arrived, and let go of what was sent: MPI counts both when the program ends."""
        self.listen()
        self._sent = [(request, kept) for request, kept in self._sent if not request.Test()]

    def forget(self) -> None:
        """Forget what other partitions have told of their end: the run goes on."""
        self.listen()
        self.news = None
        self._written.clear()

    # -- messages ------------------------------------------------------------------------------------------------

    def _send(self, kind: str, what: Any = None) -> None:
        """Send a message to all ranks of the other partitions, and do not wait for them."""
        if not self._is_root:
            return
        data = json.dumps([kind, what]).encode()
        self.settle()
        self._sent += [(self._universe.Isend(data, dest=rank, tag=_TAG), data) for rank in self._outside]

    def listen(self) -> None:
        """Take the messages that have arrived."""
        from mpi4py import MPI

        status = MPI.Status()
        while self._universe.Iprobe(tag=_TAG, status=status):
            data, source = bytearray(status.Get_count(MPI.BYTE)), status.Get_source()
            self._universe.Recv(data, source=source, tag=_TAG)
            kind, what = json.loads(data)
            if kind == "joined":
                self._sizes[source] = what
            elif kind == "left":
                self._sizes.pop(source, None)
            elif kind == "written":
                self._written.add(source)
            elif self.news is None:
                self.news = News(kind, f"the partition of rank {source}: {what}")

    def tell(self, news: News) -> None:
        """Tell the other partitions of the end of this one."""
        self._send(news.state, news.reason[:_TEXT])

    # -- the end of all at the same step -------------------------------------------------------------------------

    def meet(self, news: News) -> News | None:
        """Share the news of all partitions, at a step that all take together. Collective in all partitions.

        Returns None, in all of them, if one is not watched: then `alone` is set.
        """
        worst = self._partition.bcast(self._meet_roots(news) if self._is_root else None)
        self.alone = worst is None
        return None if worst is None else News(*worst)

    def _meet_roots(self, news: News) -> tuple[str, str] | None:
        if self._roots is None and not self._gather_roots():
            return None
        mine = np.array([_STATES.index(news.state)], np.int64)
        all_states = np.empty(self._roots.Get_size(), np.int64)
        request = self._roots.Iallgather(mine, all_states)
        while not request.Test():
            self.listen()
            if not self._all_watch():
                self.leave()
                return None
        worst = int(all_states.max())
        if not worst:
            return "running", ""
        first = int(np.flatnonzero(all_states == worst)[0])
        text = self._roots.bcast(news.reason, root=first)
        where = "" if first == self._roots.Get_rank() else f"partition {first}: "
        return _STATES[worst], where + text

    def _all_watch(self) -> bool:
        return sum(self._sizes.values()) == int(self._universe.Get_size())

    def _gather_roots(self) -> bool:
        """Make the communicator of the first ranks; return whether all partitions are watched."""
        end = time.monotonic() + _TO_JOIN
        self.listen()
        while not self.alone and not self._all_watch() and time.monotonic() < end:
            os.sched_yield()
            self.listen()
        if self.alone or not self._all_watch():
            print(
                "quests_md: not all partitions are watched: a halt in one of them ends the job. Attach in each one",
                file=sys.stderr,
                flush=True,
            )
            self.leave()
            return False
        group = self._universe.Get_group().Incl(sorted(self._sizes))
        self._roots = self._universe.Create_group(group, tag=_TAG + 1)
        return True

    # -- the end of the job --------------------------------------------------------------------------------------

    def end_soon(self) -> None:
        """Tell the others that this partition has written its files, and that the job may end."""
        self._send("written")
        self._deadline = time.monotonic() + _TO_WRITE

    def end_if_written(self, code: int, reason: str) -> None:
        """End the job if all watched partitions have written their files, or have had the time to do so."""
        self.listen()
        others = set(self._sizes) - {self._root}
        if self._is_root and (others <= self._written or time.monotonic() > self._deadline):
            print(f"quests_md: the job ends, with exit code {code}: {reason}", file=sys.stderr, flush=True)
            ctypes.CDLL(None).fflush(None)  # LAMMPS's logs
            # Whoever started the ranks ends all when one has ended. MPI_Abort asks for the same, but under load the
            # mpiexec of MPICH was seen to die of that and to leave ranks that wait for each other.
            os._exit(code)


# A partition that attaches again must still know what the others have told it.
_known: dict[int, Replicas] = {}


def find_replicas(library: Library, universe: Any = None) -> Replicas | None:
    """Return the partitions of this job; None if there is one.

    Parameters
    ----------
    universe
        The communicator of all partitions; by default that of all processes.

    Raises
    ------
    MissingExtraError
        mpi4py is not installed.
    HostError
        The partitions do not see each other.
    """
    size = library.get_setting("universe_size")
    if size <= library.get_setting("world_size"):
        return None
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtraError("partitions need mpi4py: pip install 'quests_md[mpi]'") from error
    comm = MPI.COMM_WORLD if universe is None else universe
    if comm.Get_size() != size:
        raise HostError(
            f"the partitions of LAMMPS have {size} ranks and mpi4py sees {comm.Get_size()}: start LAMMPS with the "
            "mpiexec of its own MPI, and without -mpicolor"
        )
    return _known.setdefault(comm.py2f(), Replicas(comm))
