"""Labelling that is killed with SIGKILL, again and again: no label is lost, and none is made twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from ase.calculators.emt import EMT
from limits import wait_until
from oracles import EMT_PATH, PATH, copper

from quests_md.labelling import Queue

FRAMES = 60
LEASE = 0.5  # less than it takes to start again


pytestmark = pytest.mark.usefixtures("scratch_folders")


def start(address, log):
    command = [sys.executable, "-m", "quests_md.cli", "label", str(address), "--calculator", EMT_PATH, "--workers", "2"]
    command += ["--lease", str(LEASE), "--tries", "1000"]  # each kill costs the frames at hand a try
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": PATH})


def _reached(program, queue, target):
    return program.poll() is not None or queue.counts()["done"] >= target


def test_labels_survive_kills(tmp_path):
    address, rng = tmp_path / "queue.db", np.random.default_rng(3)
    queue = Queue(address, lease=LEASE, tries=1000)
    for seed in range(FRAMES):
        queue.add(copper(seed))
    seen, kills = {}, 0
    with open(tmp_path / "log", "wb") as log:
        while queue.counts()["done"] < FRAMES:
            program = start(address, log)
            target = queue.counts()["done"] + int(rng.integers(1, 15))
            wait_until(partial(_reached, program, queue, target), "no frame is labelled")
            program.kill()
            killed = program.wait() == -signal.SIGKILL
            kills += killed
            assert killed or program.returncode == 0, (tmp_path / "log").read_text()
            for entry in queue.entries(["done"]):  # a label that is there stays as it is
                assert seen.setdefault(entry.id, (entry.changed, entry.worker)) == (entry.changed, entry.worker)
    assert kills >= 4
    assert len(seen) == FRAMES
    for seed, atoms in enumerate(queue.labelled()):
        expected = copper(seed)
        expected.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), rtol=0, atol=1e-12)
