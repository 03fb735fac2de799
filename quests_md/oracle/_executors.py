"""Where calculations run: processes of this machine, ranks of an MPI job, or the workers of a Dask cluster."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any

from ..errors import Halted, InputError, MissingExtraError, OracleError
from ._process import kill_children

__all__ = ["EXECUTORS", "make_executor"]

_TICK = 0.1  # seconds between two attempts to kill
EXECUTORS = ("local", "mpi", "dask")


def make_executor(kind: str, workers: int | None = None, scheduler: str | None = None) -> Executor:
    """Make what carries calculations to where they are done: a `concurrent.futures.Executor`, to be used in a `with`.

    ``shutdown(cancel_futures=True)`` kills what is being calculated, as far as the executor reaches; a `with` that is
    left by an exception does that. Wherever a calculation runs, it runs in a process of its own.

    Parameters
    ----------
    kind
        "local": of this machine, `workers` at once, default 1.
        "mpi": ``mpi4py.futures``; all ranks but the first calculate in a program that was started with
        ``mpiexec -n N python -m mpi4py.futures``; otherwise `workers` ranks are started, default 1.
        "dask": the cluster of `scheduler`; without one a cluster of `workers` processes of this machine, default 1.
    workers
        How many calculations may run at once. Default with a `scheduler` or ranks: as many as they can.
    scheduler
        Address of a Dask scheduler, "tcp://host:8786".

    Returns
    -------
    concurrent.futures.Executor
        With an attribute `workers`.

    Raises
    ------
    InputError
        There is no such executor.
    MissingExtraError
        mpi4py or distributed is not installed.
    OracleError
        There is no such scheduler, or it has no workers.
    """
    if kind not in EXECUTORS:
        raise InputError(f"executor must be one of {', '.join(EXECUTORS)}, not {kind!r}")
    if scheduler is not None and kind != "dask":
        raise InputError(f"a scheduler is for the executor dask, not for {kind}")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    if kind == "mpi":
        return _mpi(workers)
    if kind == "dask":
        return _Dask(workers, scheduler)
    return _Local(workers or 1)


def _end_all(futures: Iterable[Future[Any]], kill: Callable[[], Any]) -> None:
    """Kill what is being calculated until nothing is: what has only just begun has no process yet."""
    left = [future for future in futures if not future.done()]
    while left:
        kill()
        left = list(wait(left, timeout=_TICK).not_done)


class _Local(ThreadPoolExecutor):
    """A thread for each worker, each with a child process that is replaced when it dies: a pool that cannot break."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, thread_name_prefix="quests-md-label")
        self.workers = workers
        self._sent: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = super().submit(function, *args, **kwargs)
        self._sent = _open(self._sent, future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            _end_all(self._sent, kill_children)
        super().shutdown(wait=wait)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.shutdown(cancel_futures=kind is not None)


def _open(sent: Iterable[Future[Any]], future: Future[Any]) -> list[Future[Any]]:
    """Return the futures that are still open, with a new one."""
    return [*(each for each in sent if not each.done()), future]


def _mpi(workers: int | None) -> Executor:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise MissingExtraError("the executor mpi needs mpi4py: pip install 'quests_md[mpi]'") from error

    class Mpi(MPIPoolExecutor):
        workers = 0
        _sent: Sequence[Future[Any]] = ()

        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = super().submit(function, *args, **kwargs)
            self._sent = _open(self._sent, future)
            return future

        def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
            if kind is not None and not all(future.done() for future in self._sent):
                # Nothing reaches a rank that calculates but its end, and then that of its processes.
                sys.stdout.flush()
                sys.stderr.write(f"quests-md: the ranks are ended: {kind.__name__}: {value}\n")
                sys.stderr.flush()
                MPI.COMM_WORLD.Abort(3 if kind is Halted else 1)
            self.shutdown()

    # With ranks that are there already, their number is that of the job.
    executor = Mpi(workers or 1, path=sys.path, initializer=_ignore_signals)
    executor.workers = min(executor.num_workers, workers or executor.num_workers)
    return executor


def _ignore_signals() -> None:
    """Leave Ctrl-C, which mpiexec hands to all ranks, to the first one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Dask(Executor):
    """A client of a cluster, its executor, and the cluster where it is our own: one thing that is closed once."""

    def __init__(self, workers: int | None, scheduler: str | None) -> None:
        try:
            import dask
            import distributed
        except ImportError as error:
            raise MissingExtraError("the executor dask needs distributed: pip install 'quests_md[dask]'") from error
        self._cluster = None
        if scheduler is None:
            # A calculation whose worker died is not tried again behind our back: it is a try of its frame.
            with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
                self._cluster = distributed.LocalCluster(
                    n_workers=workers or 1, threads_per_worker=1, processes=True, dashboard_address=":0"
                )
        try:
            self._client = distributed.Client(scheduler or self._cluster)
        except OSError as error:
            raise OracleError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        self._executor = self._client.get_executor(pure=False, retries=0)
        slots = sum(self._client.nthreads().values())
        if not slots:
            self._client.close()
            raise OracleError(f"the Dask scheduler at {scheduler} has no workers")
        self.workers = min(slots, workers or slots)
        self._sent: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(function, *args, **kwargs)
        self._sent = _open(self._sent, future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            _end_all(self._sent, lambda: self._client.run(kill_children))
        self._executor.shutdown(wait=wait)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.shutdown(cancel_futures=kind is not None)
