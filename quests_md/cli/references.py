"""The reference that a verb compares with: an index, files, or each frame itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, choose_threads, join, together
from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS
from ..errors import ElementError, InputError
from ..frame import Frame
from ..index import Index
from ..information import Precision, delta_entropy, find_undecided
from .datasets import Dataset, open_dataset, open_index, resolve_bandwidths
from .local_errors import LocalErrors
from .progress import Counter
from .results import add_options
from .shared_work import Scratch

__all__ = ["Itself", "OpenedReference", "Others", "check_elements", "open_reference", "reference_options"]

_PIECE = 96  # least number of rows that a rank is given at a time, unless all are fewer; more than `index` calls few
_PIECES = 8  # a rank gets several pieces, since rows in one place may take longer than others


@dataclass(frozen=True)
class OpenedReference:
    """A reference, opened, which computes dH.

    Attributes
    ----------
    data
        The reference as a dataset; None if it is an index.
    index
        The index, or None.
    bandwidth
        h, in 1/Å.
    threads
        Threads to use; None takes all cores.
    precision
        Of dH. Where a threshold is given, its errors do not change on which side of it a dH lies.
    local
        The residuals of the index that are asked about, if any.
    """

    data: Dataset | None
    index: Index | None
    bandwidth: float
    threads: int | None
    precision: Precision = "double"
    local: LocalErrors | None = None

    @property
    def spec(self) -> DescriptorSpec | None:
        """The descriptor of the reference; None for own descriptors."""
        if self.index is not None:
            return None if isinstance(self.index.descriptor, OwnDescriptors) else self.index.spec
        assert self.data is not None
        return self.data.spec

    def ask(self, frames: Sequence[Frame], thresholds: Sequence[float] = ()) -> NDArray[np.float64]:
        """Compute dH of the environments of frames, in their order; (n,), in nats.

        Raises
        ------
        FrameError
            A frame has no descriptor.
        ElementError
            The reference lacks one of the elements.
        """
        assert self.spec is not None
        numbers = np.concatenate([frame.numbers for frame in frames])
        rows = self.spec.compute(frames, self.threads)
        return _settle(lambda p, which: self._compute(rows[which], numbers, p), thresholds, self.precision)

    def ask_with_residuals(self, frames: Sequence[Frame], thresholds: Sequence[float] = ()) -> NDArray[np.float64]:
        """Compute dH as `ask` does, in nats, and local residuals in the same pass, in eV/Å; (n, 2)."""
        assert self.spec is not None
        assert self.index is not None
        assert self.local is not None
        numbers = np.concatenate([frame.numbers for frame in frames])
        self.index.check_elements(numbers)
        rows = self.spec.compute(frames, self.threads)
        how: dict[str, Any] = {"potential": self.local.potential, "precision": self.precision}
        dH, s = self.index.local_residuals(rows, self.threads, **how)

        def compute(precision: Precision, which: Any) -> NDArray[np.float64]:
            return dH if isinstance(which, slice) else self._compute(rows[which], numbers, precision)

        return np.column_stack([_settle(compute, thresholds, self.precision), s])

    def local_residuals(self, query: NDArray[Any], comm: Comm) -> NDArray[np.float64]:
        """Compute local residuals of rows (n, d) in eV/Å, (n,), on all ranks, as `delta_entropy` does. Collective."""

        def compute(which: Any) -> NDArray[np.float64]:
            assert self.index is not None
            assert self.local is not None
            rows = np.asarray(query[which], dtype=np.float64)
            how: dict[str, Any] = {"potential": self.local.potential, "precision": self.precision}
            return self.index.local_residuals(rows, self.threads, **how)[1]

        if comm.size == 1:
            return compute(slice(None))
        places = self._deal(query, comm.size)
        return join(comm, together(comm, lambda: compute(places[comm.rank])), places)

    def delta_entropy(
        self, query: NDArray[Any], numbers: NDArray[np.int64] | None, thresholds: Sequence[float], comm: Comm
    ) -> NDArray[np.float64]:
        """Compute dH of rows (n, d) in nats, (n,), on all ranks. Collective.

        Parameters
        ----------
        query
            The rows, the same on all ranks, which share them.
        numbers
            Atomic numbers of their centres, if known.
        thresholds
            In nats. A dH whose error leaves open on which side of one it is, is computed in double precision.
        comm
            The ranks.

        Raises
        ------
        ElementError
            The reference lacks one of the elements.
        InputError
            The rows are those of other descriptors.
        """

        def compute(precision: Precision, which: Any) -> NDArray[np.float64]:
            rows = query[which]
            if comm.size == 1:
                return self._compute(rows, numbers, precision)
            places = self._deal(rows, comm.size)
            own = together(comm, lambda: self._compute(rows[places[comm.rank]], numbers, precision))
            return join(comm, own, places)

        return _settle(compute, thresholds, self.precision)

    def _deal(self, rows: NDArray[Any], ranks: int) -> list[NDArray[np.int64]]:
        """Return for each rank which rows are its own.

        A large index sums few rows in another way than many, which may change the last digit. So a rank has many rows
        of an element if all ranks together have many.
        """
        by_centre = self.index is not None and self.index.descriptor.by_centre
        elements = rows[:, 0] if by_centre else np.zeros(len(rows))
        mine: list[list[NDArray[np.int64]]] = [[np.empty(0, np.int64)] for _ in range(ranks)]
        for z in np.unique(elements):
            which = np.flatnonzero(elements == z)
            pieces = np.array_split(which, max(1, min(_PIECES * ranks, len(which) // _PIECE)))
            for number, piece in enumerate(pieces):
                mine[number % ranks].append(piece)
        return [np.concatenate(some) for some in mine]

    def _compute(
        self, query: NDArray[Any], numbers: NDArray[np.int64] | None, precision: Precision
    ) -> NDArray[np.float64]:
        if self.spec is None and numbers is not None:
            raise InputError("the reference holds own descriptors: the queries must be an array (.npy) of them, too")
        if self.index is not None:
            if numbers is not None:
                self.index.check_elements(numbers)
            rows = np.asarray(query, dtype=np.float64)
            return self.index.delta_entropy(rows, self.threads, precision=precision)
        assert self.data is not None
        check_elements(numbers, self.data)
        how: dict[str, Any] = {"precision": precision, "threads": self.threads}
        return delta_entropy(query, self.data.rows, self.bandwidth, **how)

    def describe(self) -> dict[str, Any]:
        """Describe the reference for a result."""
        if self.index is not None:
            return self.index.describe()
        assert self.data is not None
        return {**self.data.describe(), "bandwidth": self.bandwidth}


@dataclass(frozen=True)
class Itself:
    """Compares each frame with itself: dH says how its environments repeat each other.

    Attributes
    ----------
    spec
        The descriptor. If it needs elements, each frame takes its own.
    bandwidth, threads, precision
        As of `OpenedReference`.
    """

    spec: DescriptorSpec
    bandwidth: float
    threads: int | None
    precision: Precision = "double"

    def ask(self, frames: Sequence[Frame], thresholds: Sequence[float] = ()) -> NDArray[np.float64]:
        """Compute dH of the environments of frames, in their order; (n,), in nats. Raises as `OpenedReference.ask`."""
        answers = []
        for frame in frames:
            rows = self.spec.for_elements(frame.distinct_numbers.tolist()).compute(frame, self.threads)
            answers.append(_settle(partial(self._compute, rows), thresholds, self.precision))
        return np.concatenate(answers)

    def _compute(self, rows: NDArray[np.float64], precision: Precision, which: Any) -> NDArray[np.float64]:
        return delta_entropy(rows[which], rows, self.bandwidth, precision=precision, threads=self.threads)

    def describe(self) -> dict[str, Any]:
        """Describe the reference for a result."""
        spec = {"k": self.spec.k, "cutoff": self.spec.cutoff, "species": self.spec.species}
        return {"itself": True, "descriptor": spec, "bandwidth": self.bandwidth}


@dataclass(frozen=True)
class Others:
    """Compares each group of frames of a dataset with all the others: dH says what the group has alone.

    Attributes
    ----------
    data
        The dataset, with groups.
    bandwidth, threads, precision
        As of `OpenedReference`.
    """

    data: Dataset
    bandwidth: float
    threads: int | None
    precision: Precision = "double"
    index = None  # no field: there is none, so thresholds cannot be rates

    def delta_entropy(
        self, rows: NDArray[Any], numbers: NDArray[np.int64] | None, thresholds: Sequence[float], comm: Comm
    ) -> NDArray[np.float64]:
        """Compute dH of the rows of the dataset in nats, (n,), on all ranks, as `OpenedReference` does. Collective."""
        dH = np.empty(self.data.n_env)
        for name, which in self.data.iterate_groups():
            rest = np.delete(np.arange(self.data.n_env), which)
            if not len(rest):
                raise InputError(f"all frames are of the group {name!r}: there are no others to compare it with")
            of_rest = replace(self.data, rows=rows[rest], numbers=None if numbers is None else numbers[rest])
            reference = OpenedReference(of_rest, None, self.bandwidth, self.threads, self.precision)
            own = None if numbers is None else numbers[which]
            dH[which] = reference.delta_entropy(rows[which], own, thresholds, comm)
        return dH

    def describe(self) -> dict[str, Any]:
        """Describe the reference for a result."""
        return {"others": True, "bandwidth": self.bandwidth}


def _settle(
    compute: Callable[[Precision, Any], NDArray[np.float64]], thresholds: Sequence[float], precision: Precision
) -> NDArray[np.float64]:
    """Return dH as ``compute(precision, which)`` does; those that may be on another side of a threshold, in double."""
    dH = compute(precision, slice(None))
    undecided = find_undecided(dH, thresholds, precision)
    if len(undecided):
        dH[undecided] = compute("double", undecided)
    return dH


def check_elements(numbers: NDArray[np.int64] | None, reference: Dataset) -> None:
    """Raise `ElementError` if the descriptor tells elements apart and the reference has no centre of one of these."""
    if numbers is None or reference.numbers is None or reference.spec is None or reference.spec.species == "ignore":
        return
    unknown = sorted(set(np.unique(numbers).tolist()) - {0, *np.unique(reference.numbers).tolist()})
    if unknown:
        raise ElementError(
            f"{', '.join(SYMBOLS[z] for z in unknown)} is the centre of no environment of the reference: "
            "give one that holds it; or --species ignore, which compares geometry only"
        )


# The reference: one of these must be given.
reference_options = add_options(
    click.option("--index", "index_file", metavar="INDEX", help="The index of the reference."),
    click.option(
        "--reference",
        "references",
        metavar="FILE",
        multiple=True,
        help="Instead: what the reference is made of. May be repeated.",
    ),
)


def open_reference(
    index_file: str | None,
    references: Sequence[str],
    bandwidth: float | str | None,
    descriptor: dict[str, Any],
    reading: Mapping[str, Any],
    threads: int | None,
    precision: Precision,
    progress: Counter,
    scratch: Scratch,
) -> OpenedReference:
    """Open an index, or make a reference of files. Collective, if `scratch` has several ranks.

    Raises
    ------
    click.UsageError
        Both are given, or neither.
    InputError
        The index has another descriptor or bandwidth than asked for. Also what `open_dataset` raises.
    """
    if (index_file is None) == (not references):
        raise click.UsageError("give a reference: either --index INDEX or --reference FILE")
    if index_file is None:
        how: dict[str, Any] = {"reading": reading, "threads": threads, "progress": progress, "scratch": scratch}
        data = open_dataset(references, **descriptor, **how)
        (h,) = resolve_bandwidths(data, () if bandwidth is None else (bandwidth,))
        return OpenedReference(data, None, h, choose_threads(scratch.comm, threads), precision)
    index = together(scratch.comm, lambda: open_index(index_file, **descriptor))
    if bandwidth not in (None, index.bandwidth):
        raise InputError(
            f"{index_file} was built with a bandwidth of {index.bandwidth:g} 1/Å, but {bandwidth} is asked for: "
            "build another index, or leave --bandwidth out"
        )
    return OpenedReference(None, index, index.bandwidth, choose_threads(scratch.comm, threads), precision)
