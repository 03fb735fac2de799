"""A loop that is killed in every stage, and comes to the same end."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import ase.io
import numpy as np
import pytest
from limits import LIMIT
from loops import calls, written

from quests_md import Index
from quests_md.labelling import Queue, digest
from quests_md.learning._loop import COLUMNS

pytestmark = pytest.mark.lammps

GENERATIONS = 3
# When it is killed: at a line like this, and in most stages more than once.
MOMENTS = (
    "generation 0: check", "generation 0: index", "generation 0: train", "generation 0: train", "generation 0: explore",
    "300K: ", "generation 0: select", "frame 1: done", "frame 3: done", "generation 0: extend", "generation 1: train",
    "generation 1: explore", "generation 1: select", "generation 1: label", "generation 1: extend",
    "generation 2: explore",
)  # fmt: skip


def start(folder):
    """Start the loop, as the leader of a process group."""
    path = written(folder, stop={"generations": GENERATIONS, "force_error": 1e-6}, explore={"time": 0.1})
    return subprocess.Popen(
        [sys.executable, "-m", "quests_md.cli", "learn", str(path)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_at(process, moment, delay, group):
    """Kill the loop some time after a line that holds `moment`; return whether it was still running."""
    said = []
    for line in process.stderr:
        said.append(line)
        if moment in line:
            break
    else:
        raise AssertionError(f"it never said {moment!r}, but {''.join(said)}")
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
        return process.wait() == -signal.SIGKILL
    finally:
        process.stderr.close()


def done(folder):
    path = folder / "out" / "queue.db"
    return {entry.digest for entry in Queue(path).entries(["done"])} if path.exists() else set()


def run(folder):
    process = start(folder)
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 3, said
    return said


def table(folder):
    """Return the numbers of learning.csv without seconds; nan where there is none."""
    with open(folder / "out" / "learning.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in COLUMNS if not name.startswith("seconds_")]
    return np.array([[float(row[name] or "nan") for name in kept] for row in rows])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a loop that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_killed_in_every_stage_it_comes_to_the_same_end(tmp_path, whole):
    rng = np.random.default_rng(1)
    killed = 0
    for moment in MOMENTS:
        had, n_calls = done(tmp_path), len(calls(tmp_path))
        said = kill_or_go_on(tmp_path, moment, rng)
        killed += said
        state = tmp_path / "out" / "learning.json"
        assert not state.exists() or json.loads(state.read_text())["status"] in ("running", "generations")
        again = set(calls(tmp_path)[n_calls:]) - references(tmp_path)
        assert not again & had  # no label is computed twice
        assert had <= done(tmp_path)  # and none is lost
    run(tmp_path)
    assert killed >= len(MOMENTS) // 2
    assert_same(tmp_path, whole)


def kill_or_go_on(folder, moment, rng):
    """Start the loop and kill it at a moment; nothing is done where that has passed already."""
    if has_passed(folder, moment):
        return False
    return kill_at(start(folder), moment, float(rng.uniform(0.0, 0.4)), bool(rng.random() < 0.5))


def has_passed(folder, moment):
    """Return whether the loop cannot say this any more, as that has been done."""
    out = folder / "out"
    files = {
        "index": "index-000.qindex", "train": "training/training.json", "select": "selected.json",
        "label": "labelled.json", "extend": "generation.json",
    }  # fmt: skip
    words = moment.split()
    if moment.startswith("frame"):
        path = out / "queue.db"
        return path.exists() and Queue(path).entry(int(words[1][:-1])).state == "done" if done(folder) else False
    if moment.startswith("300K"):
        return (out / "generation-000" / "explore" / "300K" / "exploration.json").exists()
    name = files.get(words[-1])
    where = out / f"generation-00{words[1][:-1]}" if words[-1] != "index" else out
    return name is not None and (where / name).exists()


def references(folder):
    training = ase.io.read(folder / "training.xyz", ":")
    return {digest(training[i]) for i in (0, 4, 9)}


def assert_same(folder, whole):
    """Assert that two loops found the same: labels, potentials, indexes, and what is told of them."""
    np.testing.assert_allclose(table(folder), table(whole), rtol=1e-8)  # sums of LAMMPS differ by their last digits
    mine, other = (sorted(Queue(f / "out" / "queue.db").entries(), key=lambda e: e.id) for f in (folder, whole))
    assert [(e.id, e.digest, e.state, e.source) for e in mine] == [(e.id, e.digest, e.state, e.source) for e in other]
    for one, two in zip(*(Queue(f / "out" / "queue.db").labelled() for f in (folder, whole)), strict=True):
        assert one.get_potential_energy() == two.get_potential_energy()
        assert (one.get_forces() == two.get_forces()).all()
    counted = Counter(calls(folder))
    assert {e.digest for e in mine} | references(folder) == set(counted)
    for generation in range(GENERATIONS):
        names = [f"generation-{generation:03d}/training/pod_coefficients.pod"]
        names += [
            f"generation-{generation:03d}/{n}.json" for n in ("selected", "labelled") if generation < GENERATIONS - 1
        ]
        for name in names:
            assert (folder / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name
        one, two = (Index.open(f / "out" / f"index-{generation:03d}.qindex") for f in (folder, whole))
        assert (one.rows == two.rows).all()
        assert (one.frame_offsets == two.frame_offsets).all()
