"""quests-md label: options, what it says, its exit codes, and its end by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import ase.io
import pytest
from ase.calculators.emt import EMT
from click.testing import CliRunner
from limits import LIMIT, wait_until
from oracles import EMT_PATH, PATH, copper, fill, states

from quests_md.cli import main
from quests_md.labelling import Queue

pytestmark = pytest.mark.usefixtures("scratch_folders")


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "queue.db")


@pytest.fixture(autouse=True)
def faulty_calculators(monkeypatch):
    """Let processes that are started find them."""
    monkeypatch.setenv("PYTHONPATH", PATH)


def filled(address, tags):
    queue = Queue(address)
    fill(queue, tags)
    return queue


def run(*arguments):
    return CliRunner().invoke(main, ["label", *map(str, arguments)])


def test_a_calculator_by_its_import_path(address):
    queue = filled(address, [0, 0, 0])
    done = run(address, "--calculator", EMT_PATH, "--workers", 2)
    assert done.exit_code == 0, done.output
    assert "3 frames labelled, 0 failed, 0 quarantined, 0 tried in vain, in 0:00:0" in done.stdout
    assert f"{address}: 0 waiting, 0 running, 3 done, 0 failed, 0 quarantined" in done.stdout
    assert states(queue) == ["done"] * 3


def test_a_calculator_by_its_file_and_more_keywords(address, tmp_path):
    queue = filled(address, [5])
    (tmp_path / "oracle.toml").write_text('calculator = "oracles:Shifted"\nkeywords = { energy = 1.0, tag = 4 }\n')
    done = run(address, "--calculator", tmp_path / "oracle.toml", "--keyword", "tag=5", "--keyword", "force=-2.5")
    assert done.exit_code == 0, done.output
    assert queue.entry(1).record["settings"]["keywords"] == {"energy": 1.0, "tag": 5, "force": -2.5}


def test_the_oracle_of_a_loop(address, tmp_path):
    queue = filled(address, [0])
    (tmp_path / "learn.toml").write_text(LEARN)
    done = run(address, "--calculator", tmp_path / "learn.toml", "--keyword", "force=-2.5")
    assert done.exit_code == 0, done.output
    assert queue.entry(1).record["settings"] == {
        "calculator": "oracles:Shifted", "keywords": {"energy": 1.0, "force": -2.5},
    }  # fmt: skip
    (tmp_path / "learn.toml").write_text(LEARN.replace("[oracle]", "[oracle]\nmax_forces = 3.0"))
    done = run(address, "--calculator", tmp_path / "learn.toml")
    assert done.exit_code == 1
    assert "learn.toml: [oracle]: unknown key 'max_forces'; did you mean 'max_force'?" in done.stderr


LEARN = """
training = "training.xyz"
held_out = "held_out.xyz"

[oracle]
calculator = "oracles:Shifted"
keywords = { energy = 1.0 }
executor = "dask"
workers = 4
tries = 1

[trainer]
kind = "pod"

[explore]
start = "start.xyz"
temperature = [300.0]
time = 1.0

[monitor]
select = 0.0
halt = 10.0

[stop]
force_error = 0.1
"""


def test_keywords_are_toml_or_texts(address):
    queue = filled(address, [0])
    run(address, "--calculator", EMT_PATH, "--keyword", "label=some text", "--keyword", "asap_cutoff=true")
    assert queue.entry(1).record["settings"]["keywords"] == {"label": "some text", "asap_cutoff": True}
    assert run(address, "--calculator", EMT_PATH, "--keyword", "label").exit_code == 2


def test_the_limit(address):
    queue = filled(address, [0] * 3)
    assert run(address, "--calculator", EMT_PATH, "--limit", 2).exit_code == 0
    assert states(queue) == ["done", "done", "waiting"]


def test_failures_are_said_and_are_no_error_beside_labels(address):
    filled(address, [0, 5])
    done = run(address, "--calculator", "oracles:HugeForces", "--keyword", "tag=5")
    assert done.exit_code == 0
    assert "quests-md: frame 2: quarantined: insane: the force on atom 2 is 500 eV/Å" in done.stderr
    assert "1 frames labelled, 0 failed, 1 quarantined" in done.stdout


def test_it_is_an_error_if_no_frame_gets_a_label(address):
    filled(address, [0])
    done = run(address, "--calculator", "oracles:Leaves", "--tries", 2)
    assert done.exit_code == 1
    assert "quests-md: frame 1: waiting: failed: SystemExit: licence expired" in done.stderr
    assert "0 frames labelled, 1 failed, 0 quarantined, 1 tried in vain" in done.stdout


def test_the_limits_of_a_calculation(address):
    queue = filled(address, [0])
    assert run(address, "--calculator", "oracles:HugeForces", "--max-force", 501).exit_code == 0
    queue.add(copper(7))
    done = run(address, "--calculator", "oracles:Hangs", "--wall-time", 1.5, "--tries", 1, "--force", "--check",
               write_labelled(address, 0))  # fmt: skip
    assert done.exit_code == 1
    assert "frame 0 has labels, but gets none now: timeout: killed after 1.5 s" in done.stderr


# -- the check -----------------------------------------------------------------------------------------------


def write_labelled(address, count):
    frames = [copper(seed) for seed in range(count or 1)]
    for frame in frames:
        frame.calc = EMT()
        frame.get_forces()
    path = address.replace("queue.db", "labelled.extxyz")
    ase.io.write(path, frames)
    return path


def test_frames_of_a_file_are_checked_first(address):
    queue = filled(address, [0])
    path = write_labelled(address, 5)
    done = run(address, "--calculator", EMT_PATH, "--check", path)
    assert done.exit_code == 0, done.output
    assert "3 frames that have labels get the same ones again" in done.stdout
    queue.add(copper(8))
    done = run(address, "--calculator", "oracles:Shifted", "--keyword", "energy=1", "--check", path, "--force")
    assert done.exit_code == 1
    assert "the oracle no longer gives the labels that it gave: frame 0, energy per atom: stored" in done.stderr
    assert (queue.entry(2).state, queue.entry(2).tries) == ("waiting", 0)


def test_frames_of_the_queue_are_checked_first(address, monkeypatch):
    filled(address, [0, 0, 0])
    run(address, "--calculator", EMT_PATH, "--limit", 2)
    done = run(address, "--calculator", EMT_PATH)
    assert "2 frames that have labels get the same ones again" in done.stdout
    assert "1 frames labelled" in done.stdout


def test_frames_of_the_queue_are_checked_once_a_day(address):
    filled(address, [0, 0, 0, 0, 0])
    first = [run(address, "--calculator", EMT_PATH, "--limit", 1, *more).stdout for more in ([], ["--recheck", 0], [])]
    assert ["get the same ones again" in said for said in first] == [False, False, True]
    assert "get the same ones again" not in run(address, "--calculator", EMT_PATH, "--limit", 1).stdout
    other = run(address, "--calculator", EMT_PATH, "--limit", 1, "--keyword", "asap_cutoff=false", "--force")
    assert "get the same ones again" not in other.stdout  # that oracle has no labels there
    Queue(address).retry()
    again = run(address, "--calculator", EMT_PATH, "--keyword", "asap_cutoff=false", "--recheck", 1)
    assert "1 frames that have labels" in again.stdout or "another oracle" in again.stderr


def test_the_number_of_checked_frames_is_an_option(address):
    filled(address, [0] * 6)
    run(address, "--calculator", EMT_PATH, "--limit", 5)
    done = run(address, "--calculator", EMT_PATH, "--recheck", 4)
    assert "4 frames that have labels get the same ones again" in done.stdout


def test_one_frame_is_tried_and_nothing_changes(address):
    queue = filled(address, [0, 0, 0])
    done = run(address, "--calculator", EMT_PATH, "--test", "--workers", 2)
    assert done.exit_code == 0, done.output
    atoms = copper(0)
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    facts = {line.strip().split("  ")[0]: line for line in done.stdout.splitlines()}
    assert f"{energy:.6f} eV, {energy / 4:.6f} eV/atom (free_energy)" in facts["energy"]
    assert f"{abs(atoms.get_stress()[0]) * 160.21766208:.3f}" in facts["stress"]
    assert "3 frames wait: 0:00:0" in facts["queue"]
    assert "2 at once" in facts["queue"]
    assert [(entry.state, entry.tries, entry.history) for entry in queue.entries()] == [("waiting", 0, ())] * 3


def test_a_try_that_fails_says_why(address):
    queue = filled(address, [5])
    done = run(address, "--calculator", "oracles:NanEnergy", "--test")
    assert (done.exit_code, queue.entry(1).tries) == (1, 0)
    assert "insane: the energy is nan eV" in done.stdout


def test_equal_failures_of_the_first_frames_end_a_labelling(address):
    queue = filled(address, [5] * 6)
    done = run(address, "--calculator", "oracles:Leaves")
    assert done.exit_code == 1
    assert "frames 1, 2, 3, the first ones, have failed in the same way" in done.stderr
    assert "SystemExit: licence expired" in done.stderr
    assert [entry.tries for entry in queue.entries()] == [1, 1, 1, 0, 0, 0]
    run(address, "--calculator", "oracles:Leaves", "--give-up", 0)
    assert states(queue) == ["failed"] * 6


def test_frames_without_labels_are_no_check(address, tmp_path):
    filled(address, [0])
    ase.io.write(tmp_path / "bare.extxyz", copper())
    done = run(address, "--calculator", EMT_PATH, "--check", tmp_path / "bare.extxyz")
    assert done.exit_code == 1
    assert "frame 0 has no label: energy and forces are missing" in done.stderr


def test_labels_of_other_names_are_named_and_used(address, tmp_path):
    filled(address, [0])
    path = write_labelled(address, 1)
    with open(path) as file:
        text = file.read().replace(" energy=", " REF_energy=").replace("forces:R:3", "REF_forces:R:3")
    with open(path, "w") as file:
        file.write(text)
    done = run(address, "--calculator", EMT_PATH, "--check", path)
    assert done.exit_code == 1
    assert all(word in done.stderr for word in ("REF_energy", "REF_forces", "--energy-key"))
    keys = ("--energy-key", "REF_energy", "--forces-key", "REF_forces")
    oracle = tmp_path / "oracle.toml"
    oracle.write_text(f'calculator = "{EMT_PATH}"\nenergy_key = "REF_energy"\nforces_key = "REF_forces"\n')
    for more in ((EMT_PATH, *keys), (oracle,)):
        done = run(address, "--check", path, "--calculator", *more)
        assert (done.exit_code, "1 frames that have labels" in done.stdout) == (0, True), done.output


# -- what is refused -----------------------------------------------------------------------------------------


def test_another_oracle_is_refused_unless_forced(address):
    queue = filled(address, [0, 0])
    run(address, "--calculator", EMT_PATH, "--limit", 1)
    done = run(address, "--calculator", "oracles:Shifted")
    assert done.exit_code == 1
    assert "was labelled by another oracle" in done.stderr
    assert run(address, "--calculator", "oracles:Shifted", "--force").exit_code == 0
    assert states(queue) == ["done", "done"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--calculator", "emt"], 1, "calculator must be an import path"),
        (["--calculator", "oracles:Nothing"], 1, "oracles:Nothing cannot be made: AttributeError"),
        (["--calculator", EMT_PATH, "--keyword", "when=2020-01-01"], 1, "keywords.when"),
        (["--calculator", "number.toml", "--keyword", "a=1"], 1, "keywords: input should be a valid dictionary, not 3"),
        (
            ["--calculator", "long.toml"],
            1,
            "wall_time must be a number of seconds or a text such as \"23:30:00\", not '1h'",
        ),
        (["--calculator", "nowhere.toml"], 1, "nowhere.toml: cannot be read"),
        (["--calculator", EMT_PATH, "--executor", "slurm"], 2, "slurm"),
        (["--calculator", EMT_PATH, "--scheduler", "tcp://here:1"], 1, "a scheduler is for the executor dask"),
    ],
)
def test_mistakes_are_said(address, arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "number.toml").write_text(f'calculator = "{EMT_PATH}"\nkeywords = 3\n')
    (tmp_path / "long.toml").write_text(f'calculator = "{EMT_PATH}"\nwall_time = "1h"\n')
    queue = filled(address, [0])
    done = run(address, *arguments)
    assert done.exit_code == code
    assert message in done.stderr
    assert states(queue) == ["waiting"]


def test_there_must_be_a_queue(tmp_path):
    done = run(tmp_path / "nothing.db", "--calculator", EMT_PATH)
    assert done.exit_code == 1
    assert "nothing.db" in done.stderr
    assert not (tmp_path / "nothing.db").exists()


# -- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_the_frames_back(address, tmp_path, number):
    queue = filled(address, [5, 5, 0])
    told = tmp_path / "pid"
    command = [
        sys.executable,
        "-m",
        "quests_md.cli",
        "label",
        address,
        "--calculator",
        "oracles:Hangs",
        "--workers",
        "2",
    ]
    command += ["--keyword", f"told={json.dumps(str(told))}"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    wait_until(lambda: told.exists() and queue.counts()["running"] == 2, "no two frames are being calculated")
    program.send_signal(number)
    out, err = program.communicate(timeout=LIMIT)
    assert program.returncode == 3, err
    assert "told to stop; 2 frames that were being calculated wait again" in err
    assert "3 waiting, 0 running, 0 done" in out
    assert {entry.tries for entry in queue.entries()} == {0}
