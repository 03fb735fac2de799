"""What tests of the queue share; and, as a program, processes that work on a queue, are killed, or may not write.

``python queueing.py work|kill|read ADDRESS ...``. Children are forked, so that they start at once.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

import numpy as np
from ase.build import bulk

from quests_md.errors import QueueError
from quests_md.labelling import STATES, Labels, Queue

WORKERS = 8


def frame_of(seed, **info):
    """Return a frame as a run saves it."""
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=seed)
    rng = np.random.default_rng(seed)
    atoms.set_momenta(rng.normal(size=(8, 3)))
    atoms.arrays["id"] = np.arange(8) + 1
    atoms.arrays["dH"] = np.where(np.arange(8) < 5, rng.normal(size=8), np.nan)
    atoms.arrays["model_forces"] = rng.normal(size=(8, 3))
    atoms.info = {"run": 1, "step": seed, "time": 0.1 * seed, "dH_max": 2.5, "band": "candidate", "event": 1, **info}
    return atoms


class Clock:
    """The clock of a queue, that goes when it is told to."""

    def __init__(self, queue):
        self.time = 1e9
        queue._database.now = lambda transaction: self.time


def states_of(queue):
    return {entry.id: entry.state for entry in queue.entries()}


def labels_of(seed):
    rng = np.random.default_rng(1000 + seed)
    return Labels(rng.normal(), rng.normal(size=(8, 3)), rng.normal(size=6))


def same(one, other, sizes=True):
    """Assert that two frames are the same, to the last bit, with all that they carry; labels are not compared.

    ASE reads integers as 32 or 64 bits, as the platform has it: `sizes` says whether that counts.
    """
    assert list(one.pbc) == list(other.pbc)
    assert np.array_equal(one.cell, other.cell)
    assert set(one.arrays) == set(other.arrays)
    for name, values in one.arrays.items():
        equal_nan = values.dtype.kind == "f"
        assert values.dtype == other.arrays[name].dtype or not sizes, name
        assert values.dtype.kind == other.arrays[name].dtype.kind, name
        assert np.array_equal(values, other.arrays[name], equal_nan=equal_nan), name
    assert set(one.info) == set(other.info)
    for key, value in one.info.items():
        assert type(other.info[key]) is type(value) or not sizes, key
        np.testing.assert_array_equal(other.info[key], value)


def has_labels(atoms, labels):
    """Assert that a frame carries these labels, to the last bit."""
    assert atoms.calc.results["energy"] == labels.energy
    assert np.array_equal(atoms.calc.results["forces"], labels.forces)
    assert np.array_equal(atoms.calc.results["stress"], labels.stress)


@contextmanager
def forked(function, *arguments):
    """Run a function in a process of its own; yield its number and what it says, and wait for its end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            function(*arguments, lambda words: os.write(write, f"{words}\n".encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with open(read) as said:
        yield child, said
        said.read()
    os.waitpid(child, 0)


# -- eight workers -------------------------------------------------------------------------------------------------


def work(address, name, go, say):
    """Claim one frame, wait until all others have one, and label until none waits."""
    queue = Queue(address)
    claim = queue.claim(name)
    say(f"has {claim.id}")
    os.read(go, 1)
    while claim is not None:
        say(f"done {claim.id}")
        queue.done(claim, labels_of(claim.atoms.info["step"]), {"code": "test"})
        claim = queue.claim(name)


def many(address):
    """Let them all work; print which worker was given which frames."""
    wait, start = os.pipe()
    said, children = [], []
    for number in range(WORKERS):
        context = forked(work, address, f"worker {number}", wait)
        children.append((context, *context.__enter__()))
    first = [out.readline().split()[1] for _, _, out in children]
    assert len(set(first)) == WORKERS
    os.write(start, b"g" * WORKERS)
    for number, (context, _, out) in enumerate(children):
        said += [f"{number} {line.split()[1]}" for line in out]
        context.__exit__(None, None, None)
    print("\n".join(said))


# -- killed --------------------------------------------------------------------------------------------------------


def labour(address, seed, say):
    """Do at random what workers do, for ever."""
    rng = np.random.default_rng(seed)
    # A claim expires at once: those of the dead are free for the next, and nobody else is there.
    queue = Queue(address, lease=1e-6, tries=10**9)
    while True:
        claim = queue.claim("mortal")
        if claim is None:
            queue.retry()
            say("idle")
            continue
        say(f"claimed {claim.id}")
        deed = rng.choice(["done", "fail", "release", "quarantine", "renew"], p=[0.1, 0.3, 0.2, 0.2, 0.2])
        if deed == "done":
            queue.done(claim, labels_of(claim.atoms.info["step"]), {"code": "test"})
            say(f"done {claim.id}")
        elif deed in ("fail", "quarantine"):
            getattr(queue, deed)(claim, "no luck")
        else:
            getattr(queue, deed)(claim)
        say(deed)


def kill(address, rounds, seed):
    """Kill workers one after the other, at moments that differ, and look at the queue after each."""
    rng, queue, known = np.random.default_rng(seed), Queue(address), set()
    n_frames, torn = sum(queue.counts().values()), 0
    for count in range(rounds):
        with forked(labour, address, seed + count) as (child, said):
            lines = [said.readline() for _ in range(int(rng.integers(1, 8)))]
            for _ in range(int(rng.integers(0, 30_000))):  # so that it is hit anywhere in the next transaction
                pass
            os.kill(child, signal.SIGKILL)
            lines += said.readlines()
        known |= {int(line.split()[1]) for line in lines if line.startswith("done ")}
        entries = queue.entries()
        assert [entry.id for entry in entries] == list(range(1, n_frames + 1))
        assert all(entry.state in STATES for entry in entries)
        done = {entry.id for entry in entries if entry.state == "done"}
        assert known <= done
        torn += sum(entry.state == "running" for entry in entries)
        for entry in entries:
            atoms = queue.atoms(entry.id)
            same(atoms, frame_of(atoms.info["step"]))
            assert (atoms.calc is not None) == (entry.id in done)
            if entry.id in done:
                has_labels(atoms, labels_of(atoms.info["step"]))
    print(f"{torn} claims of the dead, {len(known)} done")


# -- not allowed to write ------------------------------------------------------------------------------------------


def read(address):
    """Look at a queue as a user who may not write to it."""
    Queue(address)  # so that all is imported: the other user may not read Python
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    queue = Queue(address)
    print(queue.counts()["waiting"], len(queue.entries()))
    for act in (lambda: queue.claim("nobody"), lambda: queue.add(frame_of(99))):
        try:
            act()
        except QueueError as error:
            print(error)


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    {"work": many, "kill": kill, "read": read}[what](where, *map(int, numbers))
