"""A long watched run, compressed: memory, descriptors and cost per evaluation at points of it, which must not grow.

Silicon of 64 atoms, warm and hot in turn, with everything on: events, history, novelty, cut-outs, and a budget or none.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quests_md import Frame, Index, Monitor, Session
from quests_md.hosts.mpi import world

from .printing import head, target
from .silicon import crystal

CELLS = 2  # 64 atoms
CYCLE = 100  # evaluations; about a third of them are hot
WARM, HOT = 0.06, 0.13  # Å
SELECT = 5.0
POINTS = 10
MEMORY, COST = 6.0, 1.25  # MB, and times, from the first point to the last one


@dataclass(frozen=True)
class Point:
    """What is measured at a point of the run: of this rank, since the point before."""

    evaluations: int
    memory: float  # MB, resident
    descriptors: int
    cost: float  # ms of the processor, per evaluation
    ratio: float  # that over the time of a fixed piece of work in between: a busy machine is slow at both
    judged: float  # share of the flagged frames that the selection judged
    kept: int


def main() -> None:
    """Run the soak, in a process of its own or on several ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--budget", type=int, default=30, help="frames that are kept at a time; 0: no limit")
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    head("A long watched run: 64 atoms, events, history, novelty, cut-outs")
    budget = options.budget or None
    print(f"{options.evaluations} evaluations, budget {budget}, {options.ranks} ranks\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "benchmarks.soak", folder, str(options.evaluations), str(options.budget)]
        if options.ranks > 1:
            run = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(options.ranks), *run]
        raise SystemExit(subprocess.run(run, check=False).returncode)


def soak(folder: Path, evaluations: int, budget: int | None, comm: Any) -> list[Point]:
    """Watch a run; return what was measured at its points. Collective."""
    index = Index.build(crystal(4, WARM, 1), threads=1)
    monitor = Monitor(index, select=SELECT, halt=1e9, consecutive=2, comm=comm)
    more: dict[str, Any] = {"history": 5, "after": 2, "budget": budget, "cutout": {"radius": 2.0, "most": 2}}
    frames, points, length = Frames(comm), [], evaluations // POINTS
    always = frames.at(0)
    with Session(monitor, folder, **more) as session:
        fixed = session.monitor.measure
        cost = work = judged = flagged = 0.0
        for step in range(length * POINTS):
            frame = frames.at(step)
            if step % 10 == 0:
                began = time.process_time()
                fixed(always)
                work += 10 * (time.process_time() - began)
            began = time.process_time()
            decision = session.observe(frame)
            cost += time.process_time() - began
            judged += decision.verdict not in ("", "skipped")
            flagged += decision.verdict != ""
            if (step + 1) % length == 0:
                share = judged / flagged if flagged else 0.0
                now = _memory(), _descriptors(), 1e3 * cost / length, cost / work, share, session.n_saved
                points.append(Point(step + 1, *now))
                if comm.rank == 0:
                    _print(points[-1])
                cost = work = judged = flagged = 0.0
    return points


class Frames:
    """The frames of the run: this rank's part of each, drawn anew, the same on any number of ranks."""

    def __init__(self, comm: Any) -> None:
        (self._crystal,) = crystal(CELLS, 0.0, 1)[:1]
        n = len(self._crystal.positions)
        self._comm, self._ids = comm, np.arange(1, n + 1)
        self._mine = np.arange(n) % comm.size == comm.rank
        shifts = np.array(list(itertools.product((0, -1, 1), repeat=3)))  # none first
        self._shifts = (shifts @ self._crystal.cell)[:, None, :]

    def at(self, step: int) -> Frame:
        phase = 2.0 * np.pi * step / CYCLE
        scale = WARM + (HOT - WARM) * max(0.0, np.sin(phase))
        base = self._crystal
        positions = base.positions + np.random.default_rng(step).normal(0.0, scale, base.positions.shape)
        if self._comm.size == 1:
            return Frame(positions, base.numbers, base.cell, True, ids=self._ids, step=step, time=0.001 * step)
        images = (positions + self._shifts).reshape(-1, 3)
        fractions = images @ np.linalg.inv(base.cell)
        near = np.all((fractions > -0.55) & (fractions < 1.55), axis=1)  # within the cutoff of the cell
        own = np.resize(self._mine, len(images)) & (np.arange(len(images)) < len(positions))
        rows = np.concatenate([np.flatnonzero(own), np.flatnonzero(near & ~own)])
        atoms = rows % len(positions)
        numbers, ids, n_local = base.numbers[atoms], self._ids[atoms], int(own.sum())
        return Frame(
            images[rows], numbers, base.cell, True, ids=ids, step=step, time=0.001 * step, n_local=n_local
        )  # fmt: skip


def judge(points: list[Point]) -> bool:
    """Print whether memory, descriptors and cost have stayed the same after the first point; return that."""
    first, last = points[1], points[-1]  # what is laid out lazily is there after the first
    return all(
        [
            target("memory grew by", last.memory - first.memory, MEMORY, "MB"),
            target("descriptors that were not closed", last.descriptors - first.descriptors, 0, ""),
            target("cost of the last evaluations over that of the first", last.ratio / first.ratio, COST, "times"),
        ]
    )


def _memory() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _print(point: Point) -> None:
    if not _print_head:
        print(
            "  evaluations   memory MB   descriptors   ms per evaluation   of a fixed work   judged of flagged   kept"
        )
        _print_head.append(True)
    print(
        f"  {point.evaluations:>11}{point.memory:>12.1f}{point.descriptors:>14}{point.cost:>20.2f}{point.ratio:>18.2f}"
        f"{100 * point.judged:>18.0f} %{point.kept:>7}",
        flush=True,
    )


_print_head: list[bool] = []

if __name__ == "__main__":
    ranks = world()
    found = soak(Path(sys.argv[1]) / "uq", int(sys.argv[2]), int(sys.argv[3]) or None, ranks)
    if ranks.rank == 0 and not judge(found):
        raise SystemExit(1)
