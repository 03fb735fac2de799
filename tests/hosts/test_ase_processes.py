"""ASE as host: calculators and observers that are copied, pickled and carried to other processes."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from watched import build_index, copper, langevin, rows_of, run_of, session_of

from quests_md.config import RunConfig
from quests_md.errors import ConfigError, Halted, InputError, MonitorError, OutputError
from quests_md.hosts.ase import MonitoredCalculator, MonitorObserver

# Python 3.12 warns of every fork of a process with threads, and numba has some.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

FORK, SPAWN = (multiprocessing.get_context(name) for name in ("fork", "spawn"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "cu.qindex"
    build_index().save(path)
    return path


@pytest.fixture
def keys(index, tmp_path):
    """Return a function that makes a configuration with that pattern for its folder."""

    def make(pattern="uq-{pid}-{n}", **more):
        return {"index": str(index), "select": 2.0, "halt": 1e9, "output": str(tmp_path / pattern), **more}

    return make


def lj():
    """Return a calculator that can be pickled after it was used, other than EMT."""
    return LennardJones(sigma=2.3, epsilon=0.4, rc=6.0)


def watched(keys, seed=3, scale=0.05):
    atoms = copper(scale, seed)
    atoms.calc = MonitoredCalculator(lj(), keys)
    return atoms


def work(atoms):
    """Compute two configurations in a process; let others have a task, too."""
    atoms.get_potential_energy()
    atoms.positions[0, 0] += 0.01
    energy = atoms.get_potential_energy()
    time.sleep(0.2)
    return os.getpid(), energy


def alone(seed):
    atoms = copper(seed=seed)
    atoms.calc = lj()
    atoms.positions[0, 0] += 0.01
    return atoms.get_potential_energy()


def runs(tmp_path):
    """Return the steps of the rows of each folder, after a look at the status and the count in its run.json."""
    found = {}
    for folder in sorted(tmp_path.glob("uq*")):
        steps = [int(row["step"]) for row in rows_of(folder)]
        assert all(row["run"] == "1" for row in rows_of(folder))
        run = run_of(folder)
        assert (run["status"], run["evaluations"]) == ("finished", len(steps))
        found[folder.name] = steps
    return found


@contextmanager
def executor(context):
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool.map


@contextmanager
def pool(context):
    """A pool that is left in the usual way, which is by SIGTERM for its workers."""
    with context.Pool(2) as workers:
        yield lambda function, things: workers.map(function, things, chunksize=1)


@contextmanager
def loky():
    joblib = pytest.importorskip("joblib", reason="pip install joblib")
    from joblib.externals.loky import get_reusable_executor

    yield lambda function, things: joblib.Parallel(n_jobs=2)(joblib.delayed(function)(thing) for thing in things)
    get_reusable_executor().shutdown(wait=True)


@contextmanager
def dask():
    distributed = pytest.importorskip("distributed", reason="pip install 'quests_md[dask]'")
    cluster = distributed.LocalCluster(2, threads_per_worker=2, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield lambda function, things: client.gather(client.map(function, things))


POOLS = {
    "executor-spawn": lambda: executor(SPAWN),
    "executor-fork": lambda: executor(FORK),
    "pool-spawn": lambda: pool(SPAWN),
    "pool-fork": lambda: pool(FORK),
    "joblib": loky,
    "dask": dask,
}


# -- pools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS)
def test_each_row_of_a_pool_is_there_once(keys, tmp_path, make):
    with make() as run:
        shared = list(run(work, [watched(keys("uq-{host}-{pid}"), seed) for seed in range(4)]))
        single = list(run(work, [watched(keys("uq-{host}-{pid}-{n}"), seed) for seed in range(4)]))
    wanted = {}
    for results in (shared, single):
        assert [energy for _, energy in results] == pytest.approx([alone(seed) for seed in range(4)], abs=1e-12)
        pids = [pid for pid, _ in results]
        for pid in set(pids) - {os.getpid()}:
            folder, tasks = f"uq-{socket.gethostname()}-{pid}", pids.count(pid)
            if results is shared:
                wanted[folder] = list(range(2 * tasks))
            else:  # each task has unpickled a calculator of its own
                wanted.update({f"{folder}-{n}": [0, 1] for n in range(tasks)})
    assert runs(tmp_path) == wanted


def test_a_pool_is_left_at_once_though_its_parent_watches_too(keys, tmp_path):
    """A session that hears SIGTERM stops at its next evaluation: an idle worker has none."""

    def leave():
        atoms = watched(keys())
        atoms.get_potential_energy()
        with FORK.Pool(2) as workers:
            workers.map(work, [atoms] * 2, chunksize=1)

    process = FORK.Process(target=leave)
    process.start()
    process.join(60)
    is_hanging = process.is_alive()
    process.kill()
    assert not is_hanging
    assert process.exitcode == 0
    # A frame that the parent has seen is not seen anew.
    assert sorted(runs(tmp_path).values()) == [[0], [0], [0]]


def dies(atoms):
    atoms.get_potential_energy()
    if atoms.info["dies"]:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_a_worker_that_is_killed_keeps_its_rows(keys, tmp_path):
    frames = [watched(keys("uq-{pid}", resume=True), seed) for seed in range(2)]
    for atoms, is_last in zip(frames, (False, True), strict=True):
        atoms.info["dies"] = is_last
    with ProcessPoolExecutor(2, mp_context=FORK) as workers:
        idle, killed = [workers.submit(dies, atoms) for atoms in frames]
        pid = idle.result()
        with pytest.raises(BrokenProcessPool):
            killed.result()
    states = {folder.name: run_of(folder)["status"] for folder in tmp_path.glob("uq*")}
    assert states.pop(f"uq-{pid}") == "finished"  # the pool ended it
    ((name, status),) = states.items()
    assert status == "running"
    assert [row["step"] for row in rows_of(tmp_path / name)] == ["0"]
    frames[1].calc = MonitoredCalculator(lj(), keys(name, resume=True))  # nobody has the folder any more
    frames[1].get_potential_energy()
    frames[1].calc.close()
    assert runs(tmp_path)[name] == [0, 1]


def dynamics(observer):
    observer.dyn.run(100_000)


def test_a_process_that_is_told_to_end_says_so(keys, tmp_path):
    dyn = langevin(copper())
    dyn.attach(MonitorObserver(keys("uq", every=5), dyn))
    process = FORK.Process(target=dyn.run, args=(1_000_000,))
    process.start()
    end = time.monotonic() + 60
    while not (tmp_path / "uq" / "monitor.csv").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    run = run_of(tmp_path / "uq")
    assert (run["status"], run["reason"]) == ("halted", "SIGTERM")
    rows = rows_of(tmp_path / "uq")
    assert [int(row["step"]) for row in rows] == list(range(0, 5 * len(rows), 5))
    assert run["evaluations"] == len(rows)


def fails(atoms):
    atoms.get_potential_energy()
    raise ValueError("the electrons got lost")


def test_a_process_that_fails_says_so(keys, tmp_path):
    process = FORK.Process(target=fails, args=(watched(keys("uq")),))
    process.start()
    process.join()
    assert process.exitcode == 1
    run = run_of(tmp_path / "uq")
    assert (run["status"], run["reason"]) == ("failed", "ValueError: the electrons got lost")


def test_a_child_has_a_folder_of_its_own_and_leaves_that_of_its_parent_alone(keys, tmp_path):
    atoms = watched(keys("uq-{pid}"))
    atoms.get_potential_energy()
    before = (tmp_path / f"uq-{os.getpid()}" / "run.json").read_text()

    def in_child():
        atoms.positions[0, 0] += 0.01
        atoms.get_potential_energy()
        atoms.calc.close()

    process = FORK.Process(target=in_child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / f"uq-{os.getpid()}" / "run.json").read_text() == before
    assert [row["step"] for row in rows_of(tmp_path / f"uq-{process.pid}")] == ["0"]
    work(atoms)
    atoms.calc.close()
    assert runs(tmp_path)[f"uq-{os.getpid()}"] == [0, 1]


def refused(atoms):
    try:
        work(atoms)
    except OutputError as error:
        return str(error)
    return "not refused"


def test_a_folder_without_fields_is_of_the_first_process(keys, tmp_path):
    atoms = watched(keys("uq"))
    atoms.get_potential_energy()
    other = watched(keys("uq"), 4)
    with ProcessPoolExecutor(1, mp_context=FORK) as workers:
        during = workers.submit(refused, other).result()
    atoms.calc.close()
    with ProcessPoolExecutor(1, mp_context=FORK) as workers:
        after = workers.submit(refused, other).result()
    assert "is the output of another run that goes on" in during
    assert "holds an earlier run (run.json)" in after or "holds an earlier run (monitor.csv)" in after
    for words in (during, after):
        assert "{pid} names one for each process and {n} one for each calculator" in words
    assert runs(tmp_path) == {"uq": [0]}


# -- copies in one process -------------------------------------------------------------------------------


def test_nothing_is_opened_before_a_frame(keys, tmp_path):
    atoms = watched(keys())
    atoms.calc.close()
    assert atoms.calc.session is None
    assert atoms.calc.dH is None
    assert list(tmp_path.glob("uq*")) == []
    np.testing.assert_array_equal(atoms.calc.get_property("dH", atoms), build_index().delta_entropy(atoms))
    assert atoms.calc.session.n_evaluated == 0
    atoms.calc.close()
    atoms.calc.close()


@pytest.mark.parametrize("copies", [lambda atoms: pickle.loads(pickle.dumps(atoms)), copy.deepcopy])
@pytest.mark.parametrize("pattern", ["uq", "uq-{n}"])
def test_a_copy_leaves_the_original_alone(keys, tmp_path, copies, pattern):
    atoms = watched(keys(pattern))
    atoms.get_potential_energy()
    session = atoms.calc.session
    own = (tmp_path / "own.txt").open("w")  # gets the number of a file that is closed by mistake
    twin = copies(atoms)
    is_deep = copies is copy.deepcopy
    assert twin.calc.session is (session if is_deep else None)
    assert twin.calc.results["energy"] == atoms.calc.results["energy"]
    work(twin)
    shares = is_deep or "{n}" not in pattern
    assert (twin.calc.session is session) == shares
    if shares:
        twin.calc.close()
        assert twin.calc.session is session
    del twin
    gc.collect()
    assert session.status == "running"
    own.write("mine")
    own.close()
    with pytest.raises(OutputError, match="another run that goes on"):
        session_of(build_index(), session.output, overwrite=True)
    work(atoms)
    atoms.calc.close()
    wanted = {"uq": [0, 1, 2]} if pattern == "uq" else {"uq-0": [0, 1, 2]} if shares else {"uq-0": [0, 1], "uq-1": [0]}
    assert runs(tmp_path) == wanted


def test_a_calculator_of_a_given_session_is_not_pickled(keys, tmp_path):
    with session_of(build_index(), tmp_path / "uq") as session:
        atoms = watched(session)
        atoms.get_potential_energy()
        with pytest.raises(InputError, match="a Session cannot be pickled"):
            pickle.dumps(atoms)
        atoms.calc.close()
        assert session.status == "running"
        dyn = langevin(atoms)
        with pytest.raises(InputError, match="a Session cannot be pickled"):
            pickle.dumps(MonitorObserver(session, dyn))


def test_copies_in_one_pickle_share_what_they_shared(keys, tmp_path):
    band = [watched(keys("uq-{n}"))]
    band += [copy.deepcopy(band[0]) for _ in range(2)]
    images = pickle.loads(pickle.dumps(band))
    for image in (*band, *images):
        image.rattle(0.001, seed=1)
        image.get_forces()
    assert len({id(image.calc.session) for image in images}) == 1
    del images, image
    gc.collect()
    band[1].calc.close()  # the first has opened it
    assert band[0].calc.session.status == "running"
    band[0].calc.close()
    assert runs(tmp_path) == {"uq-0": [0, 1, 2], "uq-1": [0, 1, 2]}


def test_after_close_a_frame_opens_anew(keys, tmp_path):
    atoms, other = watched(keys("uq")), watched(keys("uq"), 4)
    for image in (atoms, other):
        image.get_potential_energy()
    assert atoms.calc.session is other.calc.session
    atoms.calc.close()
    assert atoms.calc.session is other.calc.session is None
    other.positions[0, 0] += 0.01
    with pytest.raises(OutputError, match=r"holds an earlier run .* set resume = true .*\{n\}"):
        other.get_potential_energy()
    other.calc.session = keys("uq", resume=True)
    other.get_potential_energy()
    other.calc.close()
    assert runs(tmp_path) == {"uq": [0, 1, 2]}


def test_other_settings_do_not_join(keys):
    atoms, other = watched(keys("uq")), watched(keys("uq", every=2))
    atoms.get_potential_energy()
    with pytest.raises(OutputError, match="another run that goes on"):
        other.get_potential_energy()
    atoms.calc.session.close()  # by itself
    with pytest.raises(MonitorError, match="has ended"):
        work(atoms)


def test_a_halt_is_of_all_that_share_the_session(keys, tmp_path):
    first, second = watched(keys("uq", halt=30.0), scale=0.2), watched(keys("uq", halt=30.0))
    with pytest.raises(Halted):
        first.get_forces()
    second.calc = pickle.loads(pickle.dumps(second.calc))
    with pytest.raises(Halted, match=r"acknowledge\(\)"):
        second.get_forces()
    alone = watched(keys("uq-{n}", halt=30.0))
    alone.get_forces()
    for atoms in (first, alone):
        atoms.calc.close()
    assert run_of(tmp_path / "uq")["status"] == "halted"


def test_threads_take_turns(keys, tmp_path):
    frames = [watched(keys("uq"), seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, frames))
    for atoms in frames:
        atoms.calc.close()
    assert runs(tmp_path) == {"uq": list(range(16))}


# -- observers -------------------------------------------------------------------------------------------


def test_an_observer_goes_to_other_processes(keys, tmp_path):
    dyn = langevin(copper())
    observer = MonitorObserver(keys(every=2), dyn)
    dyn.attach(observer)
    with FORK.Pool(1) as workers:  # pickled all the same
        workers.map(run_for_six_steps, [dyn, dyn], chunksize=1)
    assert observer.session is None
    dyn.run(2)
    assert observer.session.host == "ase Langevin"
    assert observer.dH is not None
    (pid,) = {name.split("-")[1] for name in (path.name for path in tmp_path.glob("uq*"))} - {str(os.getpid())}
    observer.close()
    steps = [0, 2, 4, 6]
    assert runs(tmp_path) == {f"uq-{pid}-0": steps, f"uq-{pid}-1": steps, f"uq-{os.getpid()}-0": [0, 2]}


def run_for_six_steps(dyn):
    dyn.run(6)


def test_observers_never_share(keys, tmp_path):
    first, second = langevin(copper()), langevin(copper(seed=4))
    for dyn in (first, second):
        dyn.attach(MonitorObserver(keys("uq"), dyn))
    first.run(2)
    with pytest.raises(OutputError, match=r"another run that goes on: .*\{n\} one for each calculator or observer"):
        second.run(2)
    first.observers[0][0].close()
    assert runs(tmp_path) == {"uq": [0, 1, 2]}


# -- the configuration -----------------------------------------------------------------------------------


def test_a_configuration_is_a_file_a_mapping_or_what_they_make(keys, tmp_path):
    values = keys("uq-{n:03d}")
    path = tmp_path / "quests.toml"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    for given in (path, str(path), values, RunConfig.make(values)):
        atoms = watched(given)
        atoms.get_forces()
        assert atoms.calc.session.host == "ase calculator"
        atoms.calc.close()
    assert list(runs(tmp_path)) == ["uq-000", "uq-001", "uq-002", "uq-003"]


@pytest.mark.parametrize("pattern", ["uq-{rank}", "uq-{}", "uq-{0}", "uq-{pid.real}", "uq-{n!x}", "uq-{n", "uq}"])
def test_an_unknown_field_is_refused_at_once(keys, pattern):
    with pytest.raises(ConfigError, match=r"output: '.*uq.*': the fields are \{pid\}, \{host\}, \{n\}"):
        MonitoredCalculator(lj(), keys(pattern))


def test_what_is_no_configuration_is_refused_at_once(keys, tmp_path):
    with pytest.raises(InputError, match=r"session must be a Session or a configuration .* not int"):
        MonitorObserver(3, langevin(copper()))
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read"):
        MonitoredCalculator(lj(), tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="unknown key 'selct'; did you mean 'select'"):
        MonitoredCalculator(lj(), keys(selct=2.0))


def test_a_folder_that_cannot_be_made_is_not_told_of_fields(keys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be used as output folder") as error:
        watched(keys("file/uq")).get_forces()
    assert "{pid}" not in str(error.value)


def test_folders_are_those_of_the_program_at_the_first_frame(keys, tmp_path, monkeypatch):
    atoms = watched({**keys(), "output": "uq"})
    monkeypatch.chdir(tmp_path)
    atoms.get_forces()
    monkeypatch.chdir("/")
    work(atoms)
    atoms.calc.close()
    assert Path(tmp_path / "uq" / "monitor.csv").exists()
    assert runs(tmp_path) == {"uq": [0, 1]}
