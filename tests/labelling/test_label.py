"""From frames that wait to labels: what each outcome does to its frame, and whose labels a queue may hold."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase.calculators.emt import EMT
from limits import LIMIT
from oracles import EMT_PATH, copper, fill, oracle, silicon, states, tblite

from quests_md.errors import Halted, InputError, OracleError, QueueError
from quests_md.labelling import Labels, Queue, check_labels, compute, label, make_executor
from quests_md.labelling import _label as module

pytestmark = pytest.mark.usefixtures("scratch_folders")


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.db")


@pytest.fixture(scope="module")
def executor():
    with make_executor("local", 2) as executor:
        yield executor


def test_every_frame_gets_its_labels(address, executor):
    queue = Queue(address)
    fill(queue, [0] * 7)
    told = []
    counts = label(queue, oracle(EMT_PATH), executor, workers=2, report=lambda c: told.append((c.done, c.waiting)))
    assert (counts.done, counts.failed, counts.quarantined, counts.tries) == (7, 0, 0, 0)
    assert told[-1] == (7, 0)
    for seed, atoms in enumerate(queue.labelled()):
        expected = copper(seed)
        expected.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(atoms.get_stress(), expected.get_stress(), rtol=0, atol=1e-12)
        assert atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-12)


def test_a_real_code_labels(queue, executor):
    for seed in range(3):
        queue.add(silicon(seed))
    assert label(queue, tblite(), executor, workers=2).done == 3
    entry = queue.entry(1)
    assert (entry.record["code"], entry.record["settings"]["keywords"]["method"]) == ("tblite", "GFN1-xTB")
    assert 0 < entry.seconds < LIMIT


@pytest.mark.parametrize(
    ("calculator", "tries", "state", "reason"),
    [
        ("WithoutConvergence", 3, "failed", "failed: the calculator says that it has not converged"),
        ("Leaves", 3, "failed", "failed: SystemExit: licence expired"),
        ("Exits", 3, "quarantined", "died: its process ended with exit code 7; it said: too many k-points"),
        ("Forks", 3, "quarantined", "died: its process ended with exit code 7"),
        ("Tidy", 3, "failed", "failed: RuntimeError: nothing is left"),
        ("Crashes", 3, "quarantined", "died: its process was killed by signal 11 (SIGSEGV)"),
        ("NanForces", 1, "quarantined", "insane: the force on atom 1 is not finite"),
        ("HugeForces", 1, "quarantined", "insane: the force on atom 2 is 500 eV/Å"),
    ],
)
def test_a_fault_costs_its_frame_and_no_other(queue, executor, calculator, tries, state, reason):
    fill(queue, [0, 5, 0])
    counts = label(queue, oracle(calculator, keywords={"tag": 5}), executor, workers=2)
    bad = queue.entry(2)
    assert states(queue) == ["done", state, "done"]
    assert (bad.state, bad.tries) == (state, tries)
    assert bad.reason.startswith(reason)
    assert (counts.done, counts.failed, counts.quarantined) == (2, state == "failed", state == "quarantined")
    assert (counts.tries, counts.ended) == (tries - 1, tries + 2)


def test_a_calculation_beyond_its_time_costs_a_try(queue, executor):
    fill(queue, [0, 5, 0])
    label(queue, oracle("Hangs", keywords={"tag": 5}, wall_time=5.0), executor, workers=2)
    assert states(queue) == ["done", "failed", "done"]
    assert queue.entry(2).reason.startswith("timeout: killed after 5 s, its wall_time")


def test_a_crash_that_does_not_come_again_costs_one_try(queue, executor, tmp_path):
    fill(queue, [5])
    counts = label(queue, oracle("CrashesOnce", keywords={"told": str(tmp_path / "told")}), executor, workers=1)
    assert (counts.done, counts.tries, queue.entry(1).tries) == (1, 1, 2)
    assert counts.last == "frame 1: done"


def test_a_frame_that_killed_its_process_only_at_last_has_failed(queue, executor):
    fill(queue, [5])
    for _ in range(2):
        queue.fail(queue.claim("somebody"), "failed: SCF not converged")
    label(queue, oracle("Crashes"), executor, workers=1)
    assert (queue.entry(1).state, queue.entry(1).tries) == ("failed", 3)


def test_the_limit_is_one_of_calculations(queue, executor):
    fill(queue, [0] * 5)
    assert label(queue, oracle(EMT_PATH), executor, workers=2, limit=3).done == 3
    assert queue.counts()["waiting"] == 2


def test_an_empty_queue_is_labelled_at_once(queue, executor):
    counts = label(queue, oracle(EMT_PATH), executor, workers=1)
    assert (counts.ended, counts.seconds_per_frame, counts.seconds_left) == (0, None, None)


def test_two_labellings_share_a_queue(queue, tmp_path):
    fill(queue, [0] * 12)
    counted = []

    def work():
        with make_executor("local", 1) as own:
            counted.append(label(Queue(tmp_path / "queue.db"), oracle(EMT_PATH), own, workers=1).done)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 12
    assert queue.counts()["done"] == 12
    assert {entry.tries for entry in queue.entries()} == {1}


def test_equal_failures_after_a_label_end_nothing(queue, executor):
    fill(queue, [5, 0, 5, 5, 5])
    counts = label(queue, oracle("Leaves", keywords={"tag": 5}), executor, workers=1, give_up=3)
    assert (counts.done, counts.failed) == (1, 4)
    fill(queue, [5] * 8)  # adds three more
    assert label(queue, oracle("Leaves", keywords={"tag": 5}), executor, workers=1, give_up=3).failed == 3


def test_failures_of_several_kinds_end_nothing(queue, executor):
    fill(queue, [1, 2, 3])
    assert label(queue, oracle("Various"), executor, workers=1, give_up=3).failed == 3


def test_two_frames_are_too_few_to_give_up(queue, executor):
    fill(queue, [5, 5])
    assert label(queue, oracle("Leaves"), executor, workers=2, give_up=3).failed == 2


def test_a_program_that_nobody_knows_is_told(queue, executor, tmp_path):
    fill(queue, [0])
    by_files = oracle("ByFiles", keywords={"told": str(tmp_path / "told")})
    (note,) = label(queue, by_files, executor, workers=1).notes
    assert note.startswith("how the program of oracles:ByFiles says that it has not converged is not known here")
    fill(queue, [0, 0])
    assert label(queue, oracle(EMT_PATH), executor, workers=1, force=True).notes == ()


def test_meshes_of_different_density_are_told(queue, executor):
    for n in (1, 2, 3):
        queue.add(copper() * (n, n, n))
    (note,) = label(queue, oracle("Meshed", keywords={"kpts": [2, 2, 2]}), executor, workers=1).notes
    assert "k-points are 0.87 1/Å apart in frame 1 and 0.435 1/Å in frame 2" in note
    assert queue.entry(3).record["mesh"] == [2, 2, 2]


def test_a_mesh_of_another_density_than_earlier_labels_is_told(queue, executor):
    given = oracle("Meshed", keywords={"kpts": [2, 2, 2]})
    queue.add(copper())
    assert label(queue, given, executor, workers=1).notes == ()
    queue.add(copper() * 2)
    assert len(label(queue, given, executor, workers=1).notes) == 1


def test_the_mesh_of_each_frame_follows_from_the_spacing(queue, executor):
    for n in (1, 2, 3):
        queue.add(copper() * (n, n, n))
    given = oracle("make_meshed", kspacing=0.5)
    assert label(queue, given, executor, workers=1).notes == ()
    assert [entry.record["mesh"] for entry in queue.entries()] == [[4] * 3, [2] * 3, [2] * 3]
    assert queue.entry(1).record["settings"]["kspacing"] == 0.5


def test_moments_are_for_frames_that_carry_none(executor):
    assert compute(oracle("Moments", moments={"Cu": 2.0}), copper()).labels.energy == 8.0
    magnetic = copper()
    magnetic.set_initial_magnetic_moments([0.5, 0, 0, 0])
    assert compute(oracle("Moments", moments={"Cu": 2.0}), magnetic).labels.energy == 0.5
    assert compute(oracle("Moments", moments={"Fe": 2.0}), copper()).labels.energy == 0.0


@pytest.mark.parametrize(("energy", "expected"), [("free", 1.0), ("extrapolated", 2.0)])
def test_the_free_energy_is_the_label_unless_the_other_is_asked_for(energy, expected):
    outcome = compute(oracle("Smeared", energy=energy), copper())
    assert outcome.labels.energy == expected
    assert outcome.record["energy"] == {"free": "free_energy", "extrapolated": "energy"}[energy]


# -- claims --------------------------------------------------------------------------------------------------


def test_claims_are_renewed_while_a_calculation_runs(tmp_path, executor):
    queue = Queue(tmp_path / "queue.db", lease=3.0, tries=1)
    fill(queue, [5])
    hangs = oracle("Hangs", keywords={"tag": 5}, wall_time=7.0)
    others = []
    label(queue, hangs, executor, workers=1, report=lambda counts: others.append(queue.claim("somebody else")))
    assert others != []
    assert set(others) == {None}  # for more than two leases
    assert queue.entry(1).reason.startswith("timeout")


def test_a_labelling_that_is_stopped_gives_its_frames_back(queue, tmp_path):
    fill(queue, [5, 5, 0])
    told = tmp_path / "pid"
    hangs = oracle("Hangs", keywords={"tag": 5, "told": str(told)})
    with pytest.raises(Halted, match="told to stop; 2 frames"), make_executor("local", 2) as own:
        label(queue, hangs, own, workers=2, stop=told.exists)
    assert states(queue) == ["waiting"] * 3
    assert {entry.tries for entry in queue.entries()} == {0}


def test_a_labelling_that_is_interrupted_gives_its_frames_back(queue, tmp_path):
    fill(queue, [5, 0])
    told = tmp_path / "pid"

    def interrupt(counts):
        if told.exists():
            raise KeyboardInterrupt

    hangs = oracle("Hangs", keywords={"tag": 5, "told": str(told)})
    with pytest.raises(KeyboardInterrupt), make_executor("local", 1) as own:
        label(queue, hangs, own, workers=1, report=interrupt)
    assert states(queue) == ["waiting"] * 2


def test_a_calculator_that_cannot_be_made_costs_no_frame(queue, executor):
    fill(queue, [0])
    with pytest.raises(OracleError, match="oracles:Nothing cannot be made"):
        label(queue, oracle("Nothing"), executor, workers=1)
    assert (queue.entry(1).state, queue.entry(1).tries) == ("waiting", 0)


def test_a_frame_that_somebody_else_has_now_is_left_to_them(queue, executor, monkeypatch):
    fill(queue, [0])
    taken, run_task = [], module.run_task
    with ThreadPoolExecutor(1) as own:

        def steal(task):
            answer = run_task(task)
            if not taken and queue.counts()["running"]:
                (entry,) = queue.entries(["running"])
                short = Queue(queue.name, lease=1e-9)
                with short._database.transaction() as transaction:
                    transaction.ase.update(entry.id, expires=0.0)
                taken.append(queue.claim("somebody else"))
            return answer

        monkeypatch.setattr(module, "run_task", steal)
        counts = label(queue, oracle(EMT_PATH), own, workers=1)
    assert (counts.done, counts.last) == (0, "frame 1: lost")
    assert (queue.entry(1).state, queue.entry(1).worker) == ("running", "somebody else")
    queue.done(taken[0], Labels(0.0, np.zeros((4, 3))), {})


def test_a_label_outlives_a_database_that_is_locked(tmp_path, executor):
    queue = Queue(tmp_path / "queue.db", timeout=0.2)
    fill(queue, [0])
    locks, told, write = [], [], module._Work._store

    def lock_first(work, claim, action, state=""):
        other = Queue(tmp_path / "queue.db")
        held, release = threading.Event(), threading.Event()

        def hold():
            with other._database.transaction():
                held.set()
                release.wait(LIMIT)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(LIMIT)

        def tell():
            try:
                return action()
            except QueueError:
                locks.append(1)
                release.set()
                thread.join()
                raise

        return write(work, claim, tell, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Work, "_store", lock_first)
        said = label(queue, oracle(EMT_PATH), executor, workers=1, report=lambda counts: told.append(counts.last))
        assert said.done == 1
    assert locks == [1]
    assert [text for text in told if "what came out waits for the queue" in text and "queue.db" in text]


def test_a_calculation_outlives_a_database_that_is_locked(tmp_path, monkeypatch):
    """While it goes on nobody is told how many wait, no claim is renewed, and no other frame claimed."""
    queue = Queue(tmp_path / "queue.db", timeout=0.05, lease=1.0)
    fill(queue, [0, 0])
    ended, told, run_task = threading.Event(), [], module.run_task

    def slow(task):
        if '"atoms": null' not in task:
            ended.wait(LIMIT)
        return run_task(task)

    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)

    def report(counts):
        told.append(time.monotonic())
        if len(told) == 1:
            assert counts.running == 1
            other.execute("BEGIN EXCLUSIVE")
        elif told[-1] > told[0] + 1.1 and not ended.is_set():  # the claim has expired meanwhile
            other.execute("ROLLBACK")
            ended.set()

    monkeypatch.setattr(module, "run_task", slow)
    with ThreadPoolExecutor(2) as own:
        assert label(queue, oracle(EMT_PATH), own, workers=2, report=report).done == 2
    other.close()
    assert {entry.tries for entry in queue.entries()} == {1}


def test_every_failure_is_told(queue, executor):
    fill(queue, [5, 5, 0])
    told = []
    label(queue, oracle("NanForces", keywords={"tag": 5}), executor, workers=2, report=lambda c: told.append(c.last))
    assert {"frame 1: quarantined", "frame 2: quarantined"} <= {text[:20] for text in told}


def test_silent_workers_are_given_up(queue, monkeypatch):
    fill(queue, [0, 0])
    monkeypatch.setattr(module, "_GRACE", 0.1)
    release = threading.Event()
    run_task = module.run_task
    with ThreadPoolExecutor(3) as own:

        def silent(task):
            if '"atoms": null' not in task:
                release.wait(LIMIT)
            return run_task(task)

        monkeypatch.setattr(module, "run_task", silent)
        with pytest.raises(OracleError, match=r"no worker answers: each was silent 0\.1 s longer than wall_time"):
            label(queue, oracle(EMT_PATH, wall_time=5.0), own, workers=2)
        release.set()
    assert [(entry.state, entry.tries) for entry in queue.entries()] == [("waiting", 1)] * 2
    assert "its worker is silent" in queue.entry(1).reason


# -- one oracle for one queue --------------------------------------------------------------------------------


def test_a_queue_holds_labels_of_one_oracle(queue, executor):
    fill(queue, [0, 0])
    label(queue, oracle("Shifted"), executor, workers=1, limit=1)
    other = oracle("Shifted", keywords={"energy": 1.0})
    with pytest.raises(OracleError, match=r"frame 1 was labelled by another oracle: settings .*, and now .*'energy'"):
        label(queue, other, executor, workers=1)
    assert states(queue) == ["done", "waiting"]
    assert label(queue, other, executor, workers=1, force=True).done == 1


def test_a_queue_holds_labels_of_one_version(queue, executor):
    fill(queue, [0, 0])
    claim = queue.claim("an older one")
    record = {"settings": oracle(EMT_PATH).settings, "code": "ase", "version": "3.1"}
    queue.done(claim, Labels(0.0, np.zeros((4, 3))), record)
    with pytest.raises(OracleError, match=r"another oracle: version 3\.1, and now 3\.\d+"):
        label(queue, oracle(EMT_PATH), executor, workers=1)


# -- the check at the start ----------------------------------------------------------------------------------


def labelled(count):
    frames = [copper(seed) for seed in range(count)]
    for frame in frames:
        frame.calc = EMT()
        frame.get_stress()
        frame.get_forces()
    return frames


def test_labels_that_come_again_pass(executor):
    assert check_labels(oracle(EMT_PATH), executor, labelled(7)) == 3
    assert check_labels(oracle(EMT_PATH), executor, labelled(2)) == 2
    assert check_labels(oracle(EMT_PATH), executor, []) == 0


def test_labels_within_the_tolerance_pass(executor):
    shifted = oracle("Shifted", keywords={"energy": 0.0039, "force": 0.0099})
    assert check_labels(shifted, executor, labelled(1)) == 1


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"energy": 0.0041}, r"frame 0, energy per atom: stored (\S+), new (\S+) eV, tolerance 0\.001"),
        ({"force": 0.0101}, r"frame 0, component z of the force on atom 1: stored (\S+), new (\S+) eV/Å, .* 0\.01"),
    ],
)
def test_a_label_that_is_another_one_is_an_error(executor, shift, message):
    with pytest.raises(OracleError, match=message) as caught:
        check_labels(oracle("Shifted", keywords=shift), executor, labelled(3))
    stored, new = map(float, re.search(message, str(caught.value)).groups())
    assert new - stored == pytest.approx(shift.get("energy", 0) / 4 + shift.get("force", 0), abs=2e-6)


def test_a_label_that_does_not_come_again_is_an_error(executor):
    with pytest.raises(OracleError, match="frame 0 has labels, but gets none now: died"):
        check_labels(oracle("Exits"), executor, labelled(1))


def test_frames_without_labels_check_nothing(executor):
    with pytest.raises(InputError, match="frame 0 of those to check the oracle with has no energy and forces"):
        check_labels(oracle(EMT_PATH), executor, [copper()])


def test_the_executor_must_exist():
    with pytest.raises(InputError, match="executor must be one of local, mpi, dask, not 'slurm'"):
        make_executor("slurm")
    with pytest.raises(InputError, match="a scheduler is for the executor dask, not for local"):
        make_executor("local", scheduler="tcp://here:8786")
    with pytest.raises(InputError, match="workers must be at least 1, not 0"):
        make_executor("local", 0)
