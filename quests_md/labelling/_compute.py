"""Calculations in child processes, which may crash or take too long; and executors that run them on other machines."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Halted, InputError, MissingExtraError, OracleError
from ..machine import find_versions
from ._cluster import Cluster
from ._oracle_settings import Labels, Oracle
from ._process import Child, Died, TimedOut, get_child, kill_children
from ._reasons import describe_end_of_output, find_full_disk
from ._scratch import Scratch

if TYPE_CHECKING:
    import ase

__all__ = [
    "EXECUTORS", "Outcome", "await_outcome", "compute", "find_problem", "make_executor", "make_task", "read_outcome",
    "run_task",
]  # fmt: skip

# -- calculations ------------------------------------------------------------------------------------------------------

# The arrays of a frame that a calculation sees, and their names as keywords of ase.Atoms. Constraints are left out:
# they would make forces zero.
_COLUMNS = {
    "numbers": "numbers", "positions": "positions", "tags": "tags", "initial_charges": "charges",
    "initial_magmoms": "magmoms",
}  # fmt: skip
_TICK = 0.25  # seconds between two questions whether to stop waiting
_VERSION = 20.0  # seconds for a program to tell its version
_NOT_CONVERGED = "the calculator says that it has not converged"
_WORDS = 600  # characters of the output of a process that go into a reason


@dataclass(frozen=True)
class Outcome:
    """The result of one calculation.

    Attributes
    ----------
    labels
        None if there is a problem.
    problem
        "" or "failed" (the calculator raised an error, or has not converged), "died" (its process ended), "timeout"
        (it was killed after `wall_time`), "insane" (its labels cannot be true).
    reason
        The problem in words, with the folder that was kept.
    seconds
        How long it took.
    record
        How it was made: the calculator, its code and version, the settings, seconds, host and versions; which energy
        it is, the mesh of k-points, the steps of the self-consistency and the memory, as far as they are known.
    """

    labels: Labels | None
    problem: str
    reason: str
    seconds: float
    record: dict[str, Any]


def compute(oracle: Oracle, atoms: ase.Atoms, *, folder: str | Path | None = None) -> Outcome:
    """Calculate the labels of a frame in a child process of this thread, which is kept for the next frame.

    Parameters
    ----------
    oracle
        What calculates.
    atoms
        The frame. Its constraints are ignored.
    folder
        An existing folder to calculate in, which is kept. Default: a scratch folder of its own.

    Returns
    -------
    Outcome
        The labels, or why there are none.

    Raises
    ------
    OracleError
        The calculator cannot be imported, or cannot be made with these keywords.
    """
    return read_outcome(run_task(make_task(oracle, atoms, folder)))


def make_task(oracle: Oracle, atoms: ase.Atoms | None, folder: str | Path | None = None, *, again: bool = False) -> str:
    """Return a calculation as text, which every executor can send. Without atoms the calculator is only made.

    `again` says that the frame has been tried before, so that the keywords `retry` apply.
    """
    given: dict[str, Any] | None = None
    if atoms is not None:
        cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
        columns = {name: atoms.arrays[key] for key, name in _COLUMNS.items() if key in atoms.arrays}
        given = {name: value.tolist() for name, value in {**columns, "cell": cell, "pbc": pbc}.items()}
    where = None if folder is None else os.path.abspath(folder)
    return json.dumps({"oracle": oracle.model_dump(), "atoms": given, "folder": where, "again": again})


def read_outcome(answer: str) -> Outcome:
    """Return the outcome that `run_task` returned as text.

    Raises
    ------
    OracleError
        The calculator cannot be made.
    """
    said = json.loads(answer)
    if said["problem"] == "setup":
        raise OracleError(said["reason"])
    labels = None
    if not said["problem"] and said["labels"] is not None:
        forces, stress = np.array(said["labels"]["forces"], dtype=float), said["labels"]["stress"]
        labels = Labels(said["labels"]["energy"], forces, None if stress is None else np.array(stress, dtype=float))
    return Outcome(labels, said["problem"], said["reason"], said["seconds"], said["record"])


def await_outcome(future: Future[str], stop: Callable[[], bool] | None) -> Outcome:
    """Wait for a calculation and return its outcome; `Halted` if `stop` returns True before that."""
    while not future.done():
        if stop is not None and stop():
            raise Halted("told to stop before any frame was claimed")
        wait([future], timeout=_TICK)
    try:
        answer = future.result()
    except OracleError:
        raise
    except Exception as error:
        raise OracleError(f"the executor cannot calculate: {type(error).__name__}: {error}") from error
    return read_outcome(answer)


def run_task(text: str) -> str:
    """Do a calculation that `make_task` described, on whatever machine this is; return its outcome as text."""
    task = json.loads(text)
    oracle = Oracle(**task["oracle"])
    scratch = None if task["folder"] else Scratch(oracle.scratch)
    folder = Path(task["folder"]) if scratch is None else scratch.path
    child = get_child(oracle.environment)
    started = time.perf_counter()
    answer = _ask(child, oracle, task, folder)
    seconds = time.perf_counter() - started
    if not answer["problem"] and task["atoms"] is not None:
        answer["problem"], answer["reason"] = find_problem(answer, len(task["atoms"]["numbers"]), oracle.max_force)
    said = child.said()
    if answer["problem"]:
        answer["reason"] = _explain(oracle, answer, said, folder)
    elif task["atoms"] is None:
        answer["record"] |= _ask_version(child, oracle, folder) | {"untold": answer["untold"]}
    if scratch is not None:
        answer["reason"] += _clear(scratch, said, oracle.keep, bool(answer["problem"]))
    record = {
        "settings": oracle.settings,
        "seconds": round(seconds, 3),
        "host": platform.node(),
        "versions": find_versions(),
        **answer["record"],
    }
    if task["again"] and oracle.retry:
        record["retry"] = oracle.retry
    labels = {key: answer[key] for key in ("energy", "forces", "stress")} if "forces" in answer else None
    fields = {"problem": answer["problem"], "reason": answer["reason"], "labels": labels}
    return json.dumps({**fields, "seconds": seconds, "record": record})


def _ask(child: Child, oracle: Oracle, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    settings = ("calculator", "kspacing", "energy", "moments", "stress")
    keywords = oracle.keywords_of_try(again=task["again"])
    given = {"folder": str(folder), "atoms": task["atoms"], "keywords": keywords}
    nothing = {"problem": "", "reason": "", "record": {}}
    try:
        return nothing | child.ask({**{name: getattr(oracle, name) for name in settings}, **given}, oracle.wall_time)
    except TimedOut:
        return nothing | {"problem": "timeout", "reason": f"killed after {oracle.wall_time:g} s, its wall_time"}
    except Died as error:
        return nothing | {"problem": "died", "reason": str(error)}


def _ask_version(child: Child, oracle: Oracle, folder: Path) -> dict[str, str]:
    """Return the version of the program that the calculator drives, if there is one; it may be "unknown"."""
    try:
        version = child.ask({"ask_version": True}, min(oracle.wall_time, _VERSION))["record"]
    except (TimedOut, Died):
        return {"program_version": "unknown"}
    return version if version["program_version"] else {}


def find_problem(answer: Mapping[str, Any], n_atoms: int, max_force: float) -> tuple[str, str]:
    """Return the problem with labels and its reason; "" and "" if there is none."""
    if answer["converged"] is False:
        return "failed", _NOT_CONVERGED
    forces = np.array(answer["forces"], dtype=float)
    if forces.shape != (n_atoms, 3):
        return "insane", f"forces of shape {forces.shape} for {n_atoms} atoms"
    if not math.isfinite(answer["energy"]):
        return "insane", f"the energy is {answer['energy']} eV"
    lengths = np.linalg.norm(forces, axis=1)
    if not np.isfinite(lengths).all():
        return "insane", f"the force on atom {int(np.flatnonzero(~np.isfinite(lengths))[0])} is not finite"
    stress = answer["stress"]
    if stress is not None and not (np.shape(stress) == (6,) and np.isfinite(stress).all()):
        return "insane", "the stress is not six finite numbers"
    worst = int(lengths.argmax())
    if lengths[worst] > max_force:
        return (
            "insane",
            f"the force on atom {worst} is {lengths[worst]:.4g} eV/Å, above max_force = {max_force:g}",
        )
    return "", ""


def _explain(oracle: Oracle, answer: Mapping[str, Any], said: bytes, folder: Path) -> str:
    """Return why there are no labels; with the end of what the process and its program have written."""
    reason = str(answer["reason"])
    if answer.get("unconverged"):
        return f"not converged: {answer['unconverged']}"
    if answer["problem"] == "setup":
        return f"{oracle.calculator} cannot be made: {reason}"
    words = said.decode(errors="replace").strip()
    if answer["problem"] == "died" and words:
        reason += f"; it said: {words[-_WORDS:]}"
    if "converged" in answer:  # there are labels: what the program wrote does not tell more
        return reason
    end = describe_end_of_output(folder)
    full = find_full_disk(folder, reason, end, words)
    return "; ".join(part for part in (full, reason, end) if part)


def _clear(scratch: Scratch, said: bytes, keep: bool, failed: bool) -> str:
    """Remove a scratch folder; or keep it, with the output, if it is not empty, and say in words where it is."""
    if not (failed or keep):
        scratch.remove()
        return ""
    kept = scratch.keep(said, everything=keep)
    return "" if kept is None else f"; kept: {kept}"


# -- executors ---------------------------------------------------------------------------------------------------------

EXECUTORS = ("local", "mpi", "dask")
_LOOK = 0.1  # seconds between two attempts to kill


def make_executor(
    kind: str, workers: int | None = None, scheduler: str | None = None, cluster: str | Path | None = None
) -> Executor:
    """Make a ``concurrent.futures.Executor`` that does calculations here or on other machines; use it in a ``with``.

    Each calculation runs in a process of its own, on whatever machine. ``shutdown(cancel_futures=True)`` kills the
    calculations that run, as far as the executor can; an exception that leaves the ``with`` does the same.

    Parameters
    ----------
    kind
        "local": processes of this machine, `workers` at once (default 1).
        "mpi": ``mpi4py.futures``. In a program that was started with ``mpiexec -n N python -m mpi4py.futures``, all
        ranks but the first calculate; otherwise `workers` ranks are started (default 1).
        "dask": the cluster of `scheduler`, or batch jobs that `cluster` describes; without either, a cluster of
        `workers` processes of this machine (default 1).
    workers
        How many calculations run at once at most. Default with a `scheduler` or ranks: as many as there is room for.
    scheduler
        Address of a Dask scheduler, "tcp://host:8786".
    cluster
        A TOML file that says which batch jobs to start: kind, jobs, calculations, cores, memory, walltime, options. All
        of them must have begun before anything is calculated. They end with the executor.

    Returns
    -------
    concurrent.futures.Executor
        It has an attribute `workers`: how many calculations can run at once.

    Raises
    ------
    InputError
        There is no such executor.
    MissingExtraError
        mpi4py or distributed is not installed.
    OracleError
        No scheduler answers at this address, or it has no workers.
    """
    if kind not in EXECUTORS:
        raise InputError(f"executor must be one of {', '.join(EXECUTORS)}, not {kind!r}")
    if scheduler is not None and kind != "dask":
        raise InputError(f"a scheduler is for the executor dask, not for {kind}")
    if cluster is not None and (kind != "dask" or scheduler is not None):
        raise InputError("a cluster is for the executor dask without a scheduler")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    if kind == "mpi":
        return _make_mpi(workers)
    if kind == "dask":
        return _Dask(workers, scheduler, None if cluster is None else Cluster.read(cluster))
    return _Local(workers or 1)


def _end_all(futures: Iterable[Future[Any]], kill: Callable[[], Any]) -> None:
    """Kill calculations again and again until none runs: one that has just begun has no process yet."""
    left = [future for future in futures if not future.done()]
    while left:
        kill()
        left = [future for future in wait(left, timeout=_LOOK).not_done if not future.done()]


class _Remembers(Executor):
    """Remembers the calculations that are not done, to kill them when an exception leaves the `with`."""

    workers = 0
    _sent: Sequence[Future[Any]] = ()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = super().submit(function, *args, **kwargs)
        self._sent = [*(each for each in self._sent if not each.done()), future]
        return future

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.shutdown(cancel_futures=kind is not None)


class _Local(_Remembers, ThreadPoolExecutor):
    """A thread for each worker. Each has a child process, which is replaced when it dies: so the pool cannot break."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, thread_name_prefix="quests-md-label")
        self.workers = workers

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            _end_all(self._sent, kill_children)
        super().shutdown(wait=wait)


def _make_mpi(workers: int | None) -> Executor:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise MissingExtraError("the executor mpi needs mpi4py: pip install 'quests_md[mpi]'") from error

    class Mpi(_Remembers, MPIPoolExecutor):
        def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
            if kind is not None and not all(future.done() for future in self._sent):
                # A rank that calculates listens to nothing. Only the end of the job ends it, and its processes with it.
                sys.stdout.flush()
                sys.stderr.write(f"quests-md: the ranks are ended: {kind.__name__}: {value}\n")
                sys.stderr.flush()
                MPI.COMM_WORLD.Abort(3 if kind is Halted else 1)
            self.shutdown()

    # If the job has ranks already, num_workers says how many; else `workers` are started.
    executor = Mpi(workers or 1, path=sys.path, initializer=_ignore_signals)
    executor.workers = min(executor.num_workers, workers or executor.num_workers)
    return executor


def _ignore_signals() -> None:
    """Ignore Ctrl-C, which mpiexec sends to all ranks: the first rank handles it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Sends(Executor):
    """Sends calculations to another executor."""

    _executor: Executor

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(function, *args, **kwargs)


class _Dask(_Remembers, _Sends):
    """A client of a cluster and its executor; and the cluster, if it was started here. They are closed together."""

    def __init__(self, workers: int | None, scheduler: str | None, jobs: Cluster | None) -> None:
        try:
            import dask
            import distributed
        except ImportError as error:
            raise MissingExtraError("the executor dask needs distributed: pip install 'quests_md[dask]'") from error
        self._cluster = None
        if scheduler is None:
            # Dask must not repeat a calculation whose worker died: that counts as one try of the frame.
            with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
                self._cluster = (
                    distributed.LocalCluster(
                        n_workers=workers or 1, threads_per_worker=1, processes=True, dashboard_address=":0"
                    )
                    if jobs is None
                    else jobs.start()
                )
        try:
            self._client = distributed.Client(scheduler or self._cluster)
        except OSError as error:
            raise OracleError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        if jobs is not None:
            self._await(jobs.workers)
        self._executor = self._client.get_executor(pure=False, retries=0)
        slots = sum(self._client.nthreads().values())
        if not slots:
            self._client.close()
            raise OracleError(f"the Dask scheduler at {scheduler} has no workers")
        self.workers = min(slots, workers or slots)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            _end_all(self._sent, self._kill)
        self._executor.shutdown(wait=wait)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _await(self, workers: int) -> None:
        """Wait until all batch jobs have begun; if that is interrupted, end them."""
        try:
            self._client.wait_for_workers(workers)
        except BaseException:
            self._client.close()
            self._cluster.close()  # type: ignore[union-attr]
            raise

    def _kill(self) -> None:
        self._client.run(kill_children)
        if not any(self._client.processing().values()):
            for future in self._sent:  # sent to workers that are lost: it would never end
                future.cancel()
