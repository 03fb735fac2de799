"""A program that starts a watched run of ASE, kills it, and starts it again from its last restart: many times.

``python killing.py FOLDER ROUNDS SEED``. A child of it runs, in a process of its own, without start-up costs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
from watched import CANDIDATE, build_index, copper, session_of, verlet

import quests_md.files.extxyz
from quests_md.hosts.ase import MonitorObserver
from quests_md.recording.rows import COLUMNS

SETTINGS = {"select": 8.0, "halt": 1e9, "consecutive": 2, "history": 2, "after": 1, "novelty": True, "budget": 1}
CUT = {"radius": 2.0, "most": 2}
EVERY = 3  # steps between restarts of the dynamics
ROWS = (2, 12)  # how many there may be before a run is killed
STEP = 0.03  # s; about the time of a step: the kill comes anywhere in it


def run(folder, steps, name="uq"):
    """Run until that step, from the restart if there is one."""
    quests_md.files.extxyz._ATOMS = 4  # a frame is written in many parts, so that many kills tear one
    atoms, path = copper(CANDIDATE, temperature=900), folder / f"{name}.npz"
    dyn = verlet(atoms)
    if path.exists():
        with np.load(path) as state:
            atoms.positions, dyn.nsteps = state["positions"], int(state["step"])
            atoms.set_momenta(state["momenta"])
    with session_of(INDEX, folder / name, resume=True, cutout=CUT, **SETTINGS) as session:
        dyn.attach(MonitorObserver(session, dyn))
        dyn.attach(lambda: keep(dyn, path), interval=EVERY)
        dyn.run(steps - dyn.nsteps)


def keep(dyn, path):
    with open(path.with_suffix(".new"), "wb") as file:
        np.savez(file, positions=dyn.atoms.positions, momenta=dyn.atoms.get_momenta(), step=dyn.nsteps)
    os.replace(path.with_suffix(".new"), path)


def rows_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_and_kill(folder, more, seconds):
    """Start a run, and kill it so many seconds after it has so many rows more."""
    path = folder / "uq" / "monitor.csv"
    target = rows_in(path) + more
    child = os.fork()
    if child == 0:
        with open(folder / "said", "ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        run(folder, 10**6)
        os._exit(1)
    while rows_in(path) < target:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (folder / "said").read_text()
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def check(folder):
    """Assert that all files can be read, but for one record at an end; return whether there is such a torn one."""
    output, torn = folder / "uq", 0
    json.loads((output / "run.json").read_text())
    for name in ("monitor.csv", "events.jsonl"):
        lines = (output / name).read_text().splitlines(keepends=True) if (output / name).exists() else []
        torn += bool(lines) and not lines[-1].endswith("\n")
        for line in lines[:-1]:
            assert line.endswith("\n")
            assert line.startswith("run,step,") or len(line.split(",")) == len(COLUMNS) or json.loads(line)["event"]
    for name in ("candidates.extxyz", "history.extxyz", "cutouts.extxyz"):
        lines = (output / name).read_text().splitlines(keepends=True) if (output / name).exists() else []
        end = frames = 0
        while end < len(lines) and lines[end].endswith("\n"):
            n = int(lines[end]) + 2
            if len(lines) < end + n or not lines[end + n - 1].endswith("\n"):
                break
            end, frames = end + n, frames + 1
        torn += end < len(lines)
        (folder / "whole.extxyz").write_text("".join(lines[:end]))
        if frames:
            assert len(ase.io.read(folder / "whole.extxyz", ":")) == frames
    assert torn <= 1
    return torn


def main(folder, rounds, seed):
    rng = np.random.default_rng(seed)
    torn = 0
    for _ in range(rounds):
        run_and_kill(folder, int(rng.integers(*ROWS)), rng.uniform(0, STEP))
        torn += check(folder)
    step = int((folder / "uq" / "monitor.csv").read_text().rsplit("\n", 2)[-2].split(",")[1]) + 5
    run(folder, step)
    run(folder, step, "whole")
    print(f"{torn} torn of {rounds}")


if __name__ == "__main__":
    INDEX = build_index()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
