"""Verbs under ``mpiexec``: ranks that work together, of which rank 0 alone prints, and which end together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import numpy as np

from ..comm import Comm, together
from ..descriptors import DescriptorSpec
from ..frame import Frame
from ..hosts.mpi import MpiComm, world
from ..information import information
from ..kernels._jit import announce_compiling

__all__ = ["ranks"]


@contextmanager
def ranks() -> Iterator[Comm]:
    """Give the ranks that ``mpiexec`` has started, or this one.

    An error is told by rank 0, and all end. Whatever may fail on one rank alone is to be done by `comm.together`; where
    it was not, the job is ended after some seconds.
    """
    comm = world()
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
        raise click.exceptions.Exit(1) from error
    comm.free()


def _compile() -> None:
    """Compile the kernels, or load them, before all ranks do so at once."""
    announce_compiling()
    two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([14, 14]), np.eye(3) * 9.0, True)
    information(DescriptorSpec().compute(two, 1), threads=1)
