"""A long run and faults, in the small form: `python -m benchmarks soak` and `faults` are the large one."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from limits import LIMIT
from paths import ROOT

from benchmarks.soak import MEMORY, soak
from quests_md.comm import Serial


def test_memory_and_descriptors_stay_the_same_in_a_long_run(tmp_path):
    gc.collect()  # what earlier tests of this process left open
    _, first, *_, last = soak(tmp_path / "uq", 800, 4, Serial())
    assert last.descriptors <= first.descriptors
    assert last.memory - first.memory < MEMORY
    assert last.kept == 4


def test_faults_leave_what_a_run_without_one_does():
    faults = ["kill", "kill-again", "sigterm", "sigint", "file-size", "memory", "descriptors"]
    command = [sys.executable, "-m", "benchmarks", "faults", "--trials", "2", "--only", *faults]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("   2        0   ") == len(faults)


def test_a_full_disk_ends_a_run_with_an_error_and_loses_nothing():
    command = [sys.executable, "-m", "benchmarks", "faults", "--started", "1", "--only", "full-disk"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "not tried" in done.stdout:
        pytest.skip(done.stdout.rpartition("not tried: ")[2].strip())
    assert "   1        0   " in done.stdout
