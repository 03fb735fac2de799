"""Several ranks in one process: a `Comm` on threads, and what runs a function on all of them."""

from __future__ import annotations

import threading

import naive
import numpy as np
from limits import LIMIT

from quests_md.frame import Frame


class Barrier:
    """Where ranks wait for each other; who waits for one that has left fails at once."""

    def __init__(self, size):
        self._size, self._waiting, self._gone, self._turn = size, 0, 0, 0
        self._changed = threading.Condition()

    def wait(self):
        with self._changed:
            turn, self._waiting = self._turn, self._waiting + 1
            if self._waiting == self._size:
                self._turn, self._waiting = turn + 1, 0
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn > turn or self._gone, LIMIT)
            if self._turn == turn:
                raise RuntimeError("this rank waits for one that has left")

    def leave(self):
        with self._changed:
            self._gone += 1
            self._changed.notify_all()


class ThreadComm:
    """A rank of `run`; every call is collective, and ranks that call different things are an error."""

    def __init__(self, rank, size, barrier, slots):
        self.rank, self.size = rank, size
        self._barrier, self._slots = barrier, slots

    def _exchange(self, call, item):
        self._slots[self.rank] = call, item
        self._barrier.wait()
        calls, items = zip(*self._slots, strict=True)
        self._barrier.wait()  # nobody writes before everybody has read
        assert set(calls) == {call}, f"the ranks call different things: {calls}"
        return items

    def allgather(self, vector):
        return np.stack(self._exchange("allgather", np.array(vector, dtype=np.float64)))

    def gather(self, item):
        items = self._exchange("gather", item)
        return list(items) if self.rank == 0 else None

    def broadcast(self, item):
        return self._exchange("broadcast", item)[0]


def run(size, function):
    """Call ``function(comm)`` on `size` ranks; return what each returned or raised, in their order."""
    barrier, slots, results = Barrier(size), [None] * size, [None] * size

    def work(rank):
        try:
            results[rank] = function(ThreadComm(rank, size, barrier, slots))
        except Exception as error:  # noqa: BLE001 - it is what this rank has to say
            results[rank] = error
        finally:
            barrier.leave()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def part_of(atoms, frame, owners, rank):
    """Return what `rank` holds of a frame: the atoms it owns, then their ghosts."""
    mine = np.flatnonzero(owners == rank)
    positions, rows = naive.with_ghosts(atoms, mine, 5.0)
    return Frame(
        positions,
        atoms.numbers[rows],
        np.asarray(atoms.cell),
        True,
        ids=frame.ids[rows],
        step=frame.step,
        n_local=len(mine),
    )
