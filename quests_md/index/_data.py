"""What an index holds, and what it answers: kernel sums, dH and bounds of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS, check_elements, name_of
from ..errors import ElementError, InputError
from ..frame import as_frames
from ..information import Blocks, Precision, log_kernel_sum, log_kernel_sum_of_few, pack
from ..kernels import kernel_sum, search
from ..kernels._jit import over_rows

if TYPE_CHECKING:
    from ._calibration import Calibration

__all__ = ["Asked", "Part", "Reference", "laid_out", "spans"]


class Reference(Protocol):
    """What a monitor needs of a reference. `Index` is one; a reference that grows during a run can be another."""

    @property
    def spec(self) -> DescriptorSpec:
        """What its rows are, and those of a query must be."""
        ...

    @property
    def bandwidth(self) -> float:
        """h, in 1/Å."""
        ...

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that the reference knows."""
        ...

    @property
    def pair_distances(self) -> NDArray[np.float32]:
        """(n_elements, n_elements) smallest distances (Å) that it holds."""
        ...

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Chemical symbols of the centres that it knows: with ``spec.by_centre`` no others can be asked about."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it can be asked yet."""
        ...

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Return ln K(q) of descriptor rows (n, d), exactly, to what the precision allows."""
        ...

    def upper_bound(
        self,
        query: NDArray[np.float64],
        threshold: float,
        memory: NDArray[np.int32] | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float64]:
        """Return certified upper bounds of dH(q): at most `threshold` exactly where dH(q) ≤ threshold, else above it.

        `memory` (n,) holds for every query what certified it last, −1 at first, and is updated: any value is right, a
        good one is fast.
        """
        ...

    def exceeds(self, query: NDArray[np.float64], threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return whether dH(q) > threshold, always right."""
        ...

    def describe(self) -> dict[str, object]:
        """Return what a log must hold to tell which reference this was."""
        ...


_LARGEST_THRESHOLD = 1e6  # nats; beyond it the bounds are not worth their rounding
# Rows of an index that are laid out for kernel sums at a time (51 MB in double precision). Each rank has its own
# layout, while the mapped rows are shared by the ranks of a node; so a large index must not be laid out as a whole.
LAID_OUT = 100_000
# Fewer of them where they are wide, as own descriptors can be: so many values (200 MB).
_VALUES = 256 * LAID_OUT
# Fewer queries than this are summed straight from the rows of a larger index: to lay out a million takes 0.15 s, to
# sum them straight 0.01 s and 0.005 s per query.
FEW = 48

_SEARCHED = 256  # queries that a thread takes at a time when it searches


def laid_out(width: int) -> int:
    """Return how many rows of `width` columns are laid out at a time."""
    return min(LAID_OUT, -(-_VALUES // width))


def spans(numbers: NDArray[np.int16], by_centre: bool) -> dict[int, tuple[int, int]]:
    """Return first and last row of every part: by atomic number, which ascends; or all rows, under 0."""
    if not by_centre:
        return {0: (0, len(numbers))}
    known, counts = np.unique(numbers, return_counts=True)
    ends = np.cumsum(counts).tolist()
    return {z: (end - n, end) for z, n, end in zip(known.tolist(), counts.tolist(), ends, strict=True)}


class Part:
    """Rows of an index that a query is compared with, in the order of one search tree: all, or those of one element.

    It is asked at every evaluation of a run, by rows that `Asked` has checked. So it calls the kernels itself, and on
    one thread straight.

    Parameters
    ----------
    tree
        The rows, less `centre`, and what is known of the nodes.
    centre, bandwidth
        Those of the index.
    is_small
        Whether the index is small enough for a layout that is kept.
    """

    def __init__(self, tree: search.Tree, centre: NDArray[np.float64], bandwidth: float, is_small: bool) -> None:
        self._tree, self._centre, self._bandwidth, self._is_small = tree, centre, bandwidth, is_small
        self._blocks: dict[Precision, Blocks] = {}
        self._question: search.Question | None = None

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q), as `Index.log_kernel_sum`, of finite and contiguous rows as wide as those here."""
        if not self._is_small:
            return self._sum_in_turn(query, threads, precision)
        blocks = self._blocks.get(precision)
        if blocks is None:
            blocks = self._blocks[precision] = self._lay_out(self._tree.rows, threads, precision)
        out, plain = np.empty(len(query)), None if blocks.vector else 1
        task = partial(kernel_sum.log_kernel_sum, query, self._centre, blocks, plain, -np.inf, out=out)
        if threads == 1:
            task(0, len(query))
        else:
            over_rows(task, len(query), threads, kernel_sum.BLOCK)
        return out

    def _lay_out(self, rows: NDArray[np.float32], threads: int | None, precision: Precision) -> Blocks:
        order = np.arange(len(rows))  # they are in that of the tree
        return pack(rows, self._bandwidth, precision, order=order, threads=threads)

    def _sum_in_turn(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q) of a large index: some rows at a time, of which nothing is kept."""
        rows, h, centre = self._tree.rows, self._bandwidth, self._centre
        if len(query) < FEW:
            return log_kernel_sum_of_few(query, rows, h, centre=centre, threads=threads)
        total, step = np.full(len(query), -np.inf), laid_out(rows.shape[1])
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            blocks = self._lay_out(some, threads, precision)
            made: dict[str, Any] = {"centre": centre, "checked": True, "blocks": blocks, "precision": precision}
            total = np.logaddexp(total, log_kernel_sum(query, some, h, **made, threads=threads))
        return total

    def upper_bound(
        self, query: NDArray[np.float64], threshold: float, memory: NDArray[np.int32], threads: int | None
    ) -> NDArray[np.float64]:
        """Return upper bounds of dH as `search.upper_bounds` does: nan where they could not decide."""
        if self._question is None:  # all of it but the threshold is that of the tree
            self._question = search.question(self._centre, self._tree, 0.0, self._bandwidth)
        ask, out = self._question._replace(threshold=float(threshold)), np.empty(len(query))
        task = partial(search.upper_bounds, query, self._tree, ask, memory, out=out)
        if threads == 1:
            task(0, len(query))
        else:
            over_rows(task, len(query), threads, _SEARCHED)
        return out


@dataclass(eq=False)
class Asked:
    """What an index holds, and what it answers; `Index` says what the fields are, and makes them."""

    descriptor: DescriptorSpec | OwnDescriptors
    bandwidth: float
    rows: NDArray[np.float32]
    centre: NDArray[np.float64]
    frame_offsets: NDArray[np.int64]
    numbers: NDArray[np.int16]
    elements: tuple[str, ...]
    pair_distances: NDArray[np.float32]
    order: NDArray[np.int32]
    node_centres: NDArray[np.float32]
    node_radius: NDArray[np.float32]
    node_spread: NDArray[np.float32]
    generation: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    frame_groups: tuple[str, ...] = ()
    calibration: Calibration | None = None
    path: Path | None = None
    hash: str | None = None

    ready = True  # an index can be asked at once

    def __post_init__(self) -> None:
        """Start without a layout of the rows for kernel sums; the first question makes it."""
        is_small = len(self) <= laid_out(self.rows.shape[1])
        self._parts = {number: Part(tree, self.centre, self.bandwidth, is_small) for number, tree in self._trees()}

    def _trees(self) -> Iterator[tuple[int, search.Tree]]:
        """Yield the tree of each part: their nodes follow each other."""
        first_node = 0
        for number, (first, last) in spans(self.numbers, self.descriptor.by_centre).items():
            last_node = first_node + int(search.levels(last - first)[-1])
            nodes = slice(first_node, last_node)
            rows = self.rows[first:last]
            yield (
                number,
                search.tree_of(rows, self.node_centres[nodes], self.node_radius[nodes], self.node_spread[nodes]),
            )
            first_node = last_node

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def spec(self) -> DescriptorSpec:
        """The descriptor of frames. `InputError` where there is none: the rows are own descriptors."""
        if isinstance(self.descriptor, OwnDescriptors):
            raise InputError(
                f"{self.path or 'the index'} holds own descriptors ({self.descriptor.name}), which are not computed "
                f"from frames here: ask it with arrays (n, {self.descriptor.width}); what watches a run, or reads "
                "frames, needs an index that was built of frames"
            )
        return self.descriptor

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Chemical symbols of the centres of the reference's environments, by atomic number."""
        return tuple(SYMBOLS[z] for z in np.unique(self.numbers).tolist() if z)

    def describe(self) -> dict[str, object]:
        """Return what tells this index from others, for logs."""
        return {
            "path": None if self.path is None else str(self.path),
            "hash": self.hash,
            "generation": self.generation,
            "n_env": len(self),
            "elements": list(self.elements),
            "bandwidth": self.bandwidth,
            **{key: value for key, value in asdict(self.descriptor).items() if key != "elements"},
        }

    def log_kernel_sum(
        self, query: Any, threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Compute ln K(q) against the index, exactly; `query` and `threads` as in `delta_entropy`.

        `precision` is that of `quests_md.information.log_kernel_sum`. The first call lays out the rows for all later
        ones, in memory: 512 bytes per environment in double precision (k = 32), 256 in single. Of an index of more
        than 100,000 environments nothing is kept: its rows are laid out in turn, at every call; or, for fewer than 48
        queries, read as they are, in double precision. The two agree to 1e-12·max(1, |dH|).
        """
        rows = self._rows_of(query, threads)
        if not self.descriptor.by_centre:
            return self._parts[0].log_kernel_sum(rows, threads, precision)
        out = np.empty(len(rows))
        for part, which, own in self._of_parts(rows):
            out[which] = part.log_kernel_sum(own, threads, precision)
        return out

    def delta_entropy(self, query: Any, threads: int | None = None) -> NDArray[np.float64]:
        """Compute dH = −ln K(q) against the index, exactly.

        Parameters
        ----------
        query
            Descriptors (n, d), or frames (`Frame`, ``ase.Atoms``, or a list of them).
        threads
            Threads to use; None takes all cores. The result does not depend on it.

        Returns
        -------
        ndarray
            (n,), in nats, atoms in order. Rows are kept in single precision, which moves dH by less than
            6e-8·s·√(2(dH + ln N))/h, where s is the norm of the longest of the N rows: for one phase of one element
            at h = 0.015 below max(1e-5, 1e-6·dH).

        Raises
        ------
        ElementError
            A frame holds an element that the index lacks; or, with ``spec.by_centre``, lacks as a centre.
        InputError
            Descriptors of another width, or a frame without a descriptor.
        """
        return 0.0 - self.log_kernel_sum(query, threads)  # and not −0

    def exceeds(self, query: Any, threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return for every query whether dH > `threshold`. Always right."""
        return self.upper_bound(query, threshold, threads=threads) > threshold

    def upper_bound(
        self, query: Any, threshold: float, memory: NDArray[np.int32] | None = None, threads: int | None = None
    ) -> NDArray[np.float64]:
        """Return certified upper bounds of dH: at most `threshold` exactly where dH ≤ threshold, else above it.

        Parameters
        ----------
        query, threads
            As in `delta_entropy`.
        threshold
            In nats.
        memory
            (n_query,) int32, what certified every query the last time: −1 at first, and updated. Any value is right;
            that of the same atom some steps ago is fast.

        Returns
        -------
        ndarray
            (n_query,), in nats: dH itself where the bounds of the search could not decide, inf where they found it
            above the threshold.

        Raises
        ------
        ElementError, InputError
            As in `delta_entropy`; and for a `memory` of another shape or type.
        """
        rows = self._rows_of(query, threads)
        if not abs(threshold) <= _LARGEST_THRESHOLD:
            return self.delta_entropy(rows, threads)
        if memory is None:
            memory = np.full(len(rows), -1, np.int32)
        if memory.shape != (len(rows),) or memory.dtype != np.int32:  # kernels check no bounds
            raise InputError(f"memory must be ({len(rows)},) int32, not {memory.shape} {memory.dtype}")
        if not self.descriptor.by_centre:
            out = self._parts[0].upper_bound(rows, threshold, memory, threads)
        else:
            out = np.empty(len(rows))
            for part, which, own in self._of_parts(rows):
                hints = memory[which]
                out[which] = part.upper_bound(own, threshold, hints, threads)
                memory[which] = hints
        open_ = np.flatnonzero(np.isnan(out))
        if len(open_):
            out[open_] = self.delta_entropy(rows[open_], threads)
        return out

    def require(self, *, k: int | None = None, cutoff: float | None = None) -> None:
        """Raise `InputError` unless the index was built with these; None asks nothing."""
        for name, asked, unit in (("k", k, ""), ("cutoff", cutoff, " Å")):
            if asked is not None and asked != (built := getattr(self.spec, name)):
                raise InputError(
                    f"{self.path or 'the index'} was built with {name} = {built}{unit}, "
                    f"but {asked}{unit} is asked for: build another index, or leave {name} out"
                )

    def check_elements(self, numbers: NDArray[Any]) -> None:
        """Raise `ElementError` if `numbers` holds an atomic number that the index lacks; 0 is no atom."""
        check_elements(self.elements, np.unique(numbers))

    def _rows_of(self, query: Any, threads: int | None) -> NDArray[np.float64]:
        """Return the descriptors of a query of frames; or the array that it is, contiguous, once it is checked."""
        if not isinstance(query, np.ndarray):
            spec, frames = self.spec, list(as_frames(query))
            for frame in frames:
                self.check_elements(frame.numbers)
            return spec.compute(frames, threads)
        rows, width = np.ascontiguousarray(query, np.float64), self.descriptor.width
        if rows.ndim != 2 or rows.shape[1] != width:
            raise InputError(f"query must have shape (n, {width}), not {rows.shape}: other descriptors")
        # What is not a number is both the largest and the smallest. Unlike a sum, these two cannot overflow.
        if not (math.isfinite(rows.max(initial=0.0)) and math.isfinite(rows.min(initial=0.0))):
            raise InputError("query holds values that are not finite")
        return rows

    def _of_parts(self, query: NDArray[np.float64]) -> Iterator[tuple[Part, Any, NDArray[np.float64]]]:
        """Yield every part that is asked by centre, which queries it is asked, and their rows as it has them."""
        numbers = query[:, 0]
        asked = np.unique(numbers).tolist()
        unknown = [name_of(z) for z in asked if z not in self._parts]
        if unknown:
            raise ElementError(
                f"{', '.join(unknown)} is the centre of no environment of the index, whose centres are "
                f"{', '.join(self.centre_elements)}: build the index of a reference that holds such environments"
            )
        for z in asked:
            which = np.flatnonzero(numbers == z)
            yield self._parts[z], which, np.ascontiguousarray(query[which, 1:])
