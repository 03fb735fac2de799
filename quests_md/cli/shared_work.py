"""Work that ranks share: the ranks under ``mpiexec``, and descriptors of datasets that may be larger than memory."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, choose_threads, deal_frames, share_rows, together
from ..descriptors import DescriptorSpec
from ..errors import FrameError, InputError, OutputError, SourceError
from ..frame import Frame
from ..hosts.mpi import MpiComm, world
from ..information import information
from ..kernels.jit import announce_compiling
from .progress import is_off

__all__ = ["Scratch", "compute_rows", "scratch_option", "start_ranks"]


@contextmanager
def start_ranks() -> Iterator[Comm]:
    """Yield the ranks that ``mpiexec`` has started, or this one alone.

    After an error rank 0 tells it, and all ranks end. What may fail on one rank alone must be called by
    `comm.together`; if it was not, the job ends after some seconds.
    """
    comm = world()
    if comm.rank == 0 and not is_off():
        announce_compiling()
    if not isinstance(comm, MpiComm):
        yield comm
        return
    try:
        together(comm, lambda: _compile() if comm.rank == 0 else None)
        yield comm
    except BaseException as error:
        comm.leave(f"{type(error).__name__}: {error}")
        if comm.rank == 0:
            raise
        raise click.exceptions.Exit(getattr(error, "exit_code", 1)) from error
    comm.free()


def _compile() -> None:
    """Compile the kernels, or load them, before all ranks do so at once."""
    two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([14, 14]), np.eye(3) * 9.0, True)
    information(DescriptorSpec().compute(two, 1), threads=1)


# -- descriptors of datasets that may be larger than memory ------------------------------------------------------------

_Command = TypeVar("_Command", bound=Callable[..., Any])
_BATCH = 4096  # least number of environments that are computed at a time, so that the threads have enough to do


def scratch_option(command: _Command) -> _Command:
    """Add --scratch."""
    return click.option(
        "--scratch",
        type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
        metavar="FOLDER",
        help="Keep the descriptors in a file there and not in memory. Several ranks must all see the folder.",
    )(command)


class Scratch:
    """A folder for descriptors that do not fit into memory. Leaving the block removes its files. Collective.

    Parameters
    ----------
    folder
        The folder, which all ranks must see; None keeps descriptors in memory.
    comm
        The ranks that use it.
    """

    def __init__(self, folder: Path | None = None, comm: Comm | None = None) -> None:
        self.folder, self.comm = folder, comm or Serial()
        self._files: list[Path] = []

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def make(self, n_bytes: int) -> Path:
        """Make a file and reserve its bytes, so that a full disk is found now.

        Raises
        ------
        OutputError
            There is no space for it.
        """
        path: Path = self.comm.broadcast(together(self.comm, lambda: self._make(n_bytes)))
        return path

    def _make(self, n_bytes: int) -> Path | None:
        if self.comm.rank > 0:
            return None
        try:
            handle, name = tempfile.mkstemp(dir=self.folder, prefix="quests_md-", suffix=".rows")
            self._files.append(Path(name))
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, n_bytes)
                else:
                    os.truncate(handle, n_bytes)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: no scratch file of {n_bytes / 1e9:.3g} GB can be made there: {error.strerror}"
            ) from error
        return Path(name)

    def map(self, path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Return the rows in a file, mapped on all ranks."""
        # "c": nobody writes, but the kernels would copy an array that is read-only.
        rows = together(self.comm, lambda: np.memmap(path, np.float64, "c", shape=shape))
        if self.comm.size == 1 and os.name == "posix":
            self._remove()  # the mapped rows stay, and a program that is killed leaves no file
        return rows

    def _remove(self) -> None:
        while self._files:
            self._files.pop().unlink(missing_ok=True)


def compute_rows(
    frames: Iterable[Frame],
    names: str,
    offsets: NDArray[np.int64],
    spec: DescriptorSpec,
    scratch: Scratch,
    threads: int | None,
) -> NDArray[np.float64]:
    """Compute the descriptors (n_env, width) of frames; each rank returns all of them. Collective.

    Parameters
    ----------
    frames
        Frames that have environments, the same on all ranks. Each rank computes its share.
    names
        The files that they were read from, for the text of an error.
    offsets
        (n_frames + 1,) first row of every frame.
    spec
        The descriptor.
    scratch
        The ranks, and where they keep the rows.
    threads
        Threads of each rank; None takes all cores, or one if there are several ranks.

    Raises
    ------
    InputError
        The rows would take more than half of the memory, and there is no scratch folder. Also what
        `DescriptorSpec.compute` raises; a `FrameError` names the files.
    SourceError
        The frames are not those that were counted.
    """
    comm, shape = scratch.comm, (int(offsets[-1]), spec.width)
    threads = choose_threads(comm, threads)
    n_bytes = 8 * shape[0] * shape[1]

    def computed() -> Iterator[tuple[int, NDArray[np.float64]]]:
        try:
            yield from _compute_batches(frames, offsets, spec, comm, threads)
        except (FrameError, SourceError) as error:
            raise type(error)(f"{names}: {error}") from error

    if scratch.folder is not None:
        path = scratch.make(n_bytes)
        together(comm, lambda: _write(path, computed()))
        return scratch.map(path, shape)
    together(comm, lambda: _refuse_too_many(n_bytes, shape))
    out = np.empty(shape)

    def fill() -> None:
        for first, rows in computed():
            out[first : first + len(rows)] = rows

    together(comm, fill)
    share_rows(comm, out, [(int(offsets[a]), int(offsets[b])) for a, b in deal_frames(offsets, _BATCH)])
    return out


def _compute_batches(
    frames: Iterable[Frame], offsets: NDArray[np.int64], spec: DescriptorSpec, comm: Comm, threads: int | None
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (first row, rows) of the batches of this rank."""
    left = iter(frames)
    for number, (first, last) in enumerate(deal_frames(offsets, _BATCH)):
        some = list(itertools.islice(left, last - first))
        if [len(frame.centres) for frame in some] != np.diff(offsets[first : last + 1]).tolist():
            raise SourceError(
                f"frames {first} to {last - 1} are others than before: a file has changed while it was read"
            )
        if number % comm.size == comm.rank:
            yield int(offsets[first]), spec.compute(some, threads)


def _write(path: Path, computed: Iterator[tuple[int, NDArray[np.float64]]]) -> None:
    try:
        with open(path, "r+b") as file:
            for first, rows in computed:
                file.seek(first * rows.itemsize * rows.shape[1])
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: the scratch file cannot be written: {error.strerror or error}") from error


def _refuse_too_many(n_bytes: int, shape: tuple[int, int]) -> None:
    memory = _find_memory()
    if n_bytes > memory / 2:
        raise InputError(
            f"{shape[0]} environments take {n_bytes / 1e9:.3g} GB, more than half of the {memory / 1e9:.3g} GB of this "
            "machine: --scratch FOLDER keeps them in a file there"
        )


def _find_memory() -> float:
    """Return the bytes of memory that this machine has, infinite where it does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES")) * float(os.sysconf("SC_PAGE_SIZE"))
