"""What an index holds, and the questions it answers: kernel sums, dH, and bounds of dH."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS, check_elements, name_of
from ..errors import ElementError, InputError
from ..frame import as_frames
from ..information import Blocks, Precision, local_residuals, log_kernel_sum, log_kernel_sum_of_few, pack
from ..kernels import kernel_sum, search
from ..kernels.threads import over_rows
from ._mapped import MappedFile
from ._residuals import Residuals, find_residuals
from ._thresholds import Calibration

__all__ = [
    "HASHED",
    "IndexData",
    "Part",
    "Reference",
    "find_parts",
    "fingerprint",
    "fingerprint_index",
    "limit_layout",
]


class Reference(Protocol):
    """What a monitor needs of a reference. `Index` is one; a reference that grows during a run can be another."""

    @property
    def spec(self) -> DescriptorSpec:
        """The descriptor of its rows, and of the rows of a query."""
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
        """(n_elements, n_elements) smallest distances (Å) in the reference."""
        ...

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Chemical symbols of the centres that it knows. With ``spec.by_centre`` a query may hold no others."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it can answer yet."""
        ...

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Return ln K(q) of descriptor rows (n, d), as exact as the precision allows."""
        ...

    def upper_bound(
        self,
        query: NDArray[np.float64],
        threshold: float,
        memory: NDArray[np.int32] | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float64]:
        """Return certified upper bounds of dH(q). A bound is at most `threshold` exactly where dH(q) ≤ threshold.

        `memory` (n,) tells for every query what certified it last, and is updated; it is −1 at first. Any value gives
        the right answer; a good value gives it fast.
        """
        ...

    def exceeds(self, query: NDArray[np.float64], threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return whether dH(q) > threshold. The answer is always right."""
        ...

    def describe(self) -> dict[str, object]:
        """Return what a log must hold to tell which reference this was."""
        ...


# -- parts: the rows that a query is compared with ---------------------------------------------------------------------

_LARGEST_THRESHOLD = 1e6  # nats; beyond it the bounds are not worth their rounding
# Rows of an index that are laid out for kernel sums at a time (51 MB in double precision). Each rank has its own
# layout, while all ranks of a node share the mapped rows. So a large index must not be laid out as a whole.
LAID_OUT = 100_000
# The most values of such a layout (200 MB). Own descriptors can be wide: then it has fewer rows.
_VALUES = 256 * LAID_OUT
# Fewer queries than this are summed straight from the rows of a large index. A layout of a million rows takes 0.15 s;
# the sums without a layout take 0.01 s, and 0.005 s per query.
FEW = 48

_SEARCHED = 256  # queries that a thread takes at a time when it searches


def limit_layout(width: int) -> int:
    """Return how many rows of `width` columns are laid out at a time."""
    return min(LAID_OUT, -(-_VALUES // width))


def find_parts(numbers: NDArray[np.int16], by_centre: bool) -> dict[int, tuple[int, int]]:
    """Return where each part begins and ends in the rows, by atomic number. Without `by_centre` part 0 is all rows."""
    if not by_centre:
        return {0: (0, len(numbers))}
    known, counts = np.unique(numbers, return_counts=True)
    ends = np.cumsum(counts).tolist()
    return {z: (end - n, end) for z, n, end in zip(known.tolist(), counts.tolist(), ends, strict=True)}


class Weighed(NamedTuple):
    """Residuals of the rows of a part."""

    residuals: NDArray[np.float64]  # (n,) in eV/Å, nan where there is none
    squarings: int
    key: str  # tells them from others


class Part:
    """Rows of an index in the order of one search tree: all rows, or those of one element.

    A run asks it at every evaluation, with rows that `IndexData` has checked. So it calls the kernels itself, and
    without a pool if there is one thread.

    Parameters
    ----------
    tree
        The rows less `centre`, and the nodes of the tree.
    centre, bandwidth
        Those of the index.
    is_small
        Whether the index is small enough to keep a layout of it.
    """

    def __init__(self, tree: search.Tree, centre: NDArray[np.float64], bandwidth: float, is_small: bool) -> None:
        self._tree, self._centre, self._bandwidth, self._is_small = tree, centre, bandwidth, is_small
        self._blocks: dict[Precision, Blocks] = {}
        self._weighed: dict[tuple[str, Precision], Blocks] = {}
        self._question: search.Question | None = None

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q) as `Index.log_kernel_sum` does. The queries are finite, contiguous, and of the same width."""
        if not self._is_small:
            return self._sum_in_turn(query, threads, precision)
        blocks = self._blocks.get(precision)
        if blocks is None:
            blocks = self._blocks[precision] = self._lay_out(self._tree.rows, threads, precision)
        out, plain = np.empty(len(query)), None if blocks.vector else 1
        task = partial(kernel_sum.log_kernel_sum, query, self._centre, blocks, plain, -np.inf, out=out, local=None)
        if threads == 1:
            task(0, len(query))
        else:
            over_rows(task, len(query), threads, kernel_sum.BLOCK)
        return out

    def _lay_out(
        self, rows: NDArray[np.float32], threads: int | None, precision: Precision, weighed: Weighed | None = None
    ) -> Blocks:
        order, h = np.arange(len(rows)), self._bandwidth  # the rows are in the order of the tree already
        if weighed is None:
            return pack(rows, h, precision, order=order, threads=threads)
        residuals, squarings = weighed.residuals, weighed.squarings
        return pack(rows, h, precision, order=order, residuals=residuals, squarings=squarings, threads=threads)

    def local_residuals(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision, weighed: Weighed
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute ln K(q) and s(q) as `Index.local_residuals` does. The layout of these residuals is kept."""
        if not self._is_small:
            return self._weigh_in_turn(query, threads, precision, weighed)
        blocks = self._weighed.get((weighed.key, precision))
        if blocks is None:
            blocks = self._lay_out(self._tree.rows, threads, precision, weighed)
            self._weighed[weighed.key, precision] = blocks
        sums, local = local_residuals(query, blocks, self._centre, threads)
        return sums, local[:, 0]

    def _weigh_in_turn(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision, weighed: Weighed
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute ln K(q) and s(q) of a large index: lay out some rows at a time, and keep no layout."""
        rows, total, joined = self._tree.rows, np.full(len(query), -np.inf), None
        step = limit_layout(rows.shape[1])
        for first in range(0, len(rows), step):
            some = slice(first, first + step)
            part = weighed._replace(residuals=weighed.residuals[some])
            sums, local = local_residuals(
                query, self._lay_out(rows[some], threads, precision, part), self._centre, threads
            )
            total, joined = np.logaddexp(total, sums), join_residuals(joined, local)
        assert joined is not None  # an index has rows
        return total, joined[:, 0]

    def _sum_in_turn(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q) of a large index: lay out some rows at a time, and keep no layout."""
        rows, h, centre = self._tree.rows, self._bandwidth, self._centre
        if len(query) < FEW:
            return log_kernel_sum_of_few(query, rows, h, centre=centre, threads=threads)
        total, step = np.full(len(query), -np.inf), limit_layout(rows.shape[1])
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            blocks = self._lay_out(some, threads, precision)
            made: dict[str, Any] = {"centre": centre, "checked": True, "blocks": blocks, "precision": precision}
            total = np.logaddexp(total, log_kernel_sum(query, some, h, **made, threads=threads))
        return total

    def upper_bound(
        self, query: NDArray[np.float64], threshold: float, memory: NDArray[np.int32], threads: int | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return upper bounds of dH and guesses as `search.upper_bounds` does: nan where the search did not decide."""
        if self._question is None:  # all but the threshold follows from the tree
            self._question = search.question(self._centre, self._tree, 0.0, self._bandwidth)
        ask, out, guess = (
            self._question._replace(threshold=float(threshold)),
            np.empty(len(query)),
            np.empty(len(query)),
        )
        if threads == 1:
            search.upper_bounds(query, self._tree, ask, memory, 0, len(query), out, guess)
        else:
            task = partial(search.upper_bounds, query, self._tree, ask, memory, out=out, guess=guess)
            over_rows(task, len(query), threads, _SEARCHED)
        return out, guess


def join_residuals(one: NDArray[np.float64] | None, other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return s and ln Σ w (n, 2) over two sets of references, of those over each of them; None is no reference."""
    if one is None:
        return other
    total = np.logaddexp(one[:, 1], other[:, 1])
    s = np.zeros(len(total))
    for part in (one, other):
        known = part[:, 1] > -np.inf
        s[known] += np.exp(part[known, 1] - total[known]) * part[known, 0]
    return np.column_stack([np.where(total > -np.inf, s, np.nan), total])


# -- the index ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class IndexData:
    """What an index holds and answers. `Index` documents the fields, and is what users make and open."""

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
    residuals: tuple[Residuals, ...] = ()
    path: Path | None = None
    hash: str | None = None

    ready = True  # an index can always answer

    def __post_init__(self) -> None:
        """Make the parts. The first question lays out their rows for kernel sums."""
        self.mapped: MappedFile | None = None  # the file, if the rows are a map of it: `open` sets it
        is_small = len(self) <= limit_layout(self.rows.shape[1])
        self._parts = {number: Part(tree, self.centre, self.bandwidth, is_small) for number, tree in self.trees()}

    def trees(self) -> Iterator[tuple[int, search.Tree]]:
        """Yield the atomic number and the search tree of each part. The nodes of the trees follow each other."""
        first_node = 0
        for number, (first, last) in find_parts(self.numbers, self.descriptor.by_centre).items():
            last_node = first_node + int(search.levels(last - first)[-1])
            nodes, rows = slice(first_node, last_node), self.rows[first:last]
            made = search.tree_of(rows, self.node_centres[nodes], self.node_radius[nodes], self.node_spread[nodes])
            yield number, made
            first_node = last_node

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def spec(self) -> DescriptorSpec:
        """The descriptor of frames. `InputError` if there is none because the rows are own descriptors."""
        if isinstance(self.descriptor, OwnDescriptors):
            raise InputError(
                f"{self.path or 'the index'} holds own descriptors ({self.descriptor.name}), which are not computed "
                f"from frames here: ask it with arrays (n, {self.descriptor.width}). To watch a run, or to compare "
                "frames, use an index that was built of frames"
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

    def residuals_of(self, name: str | None = None) -> Residuals:
        """Return the residuals of a potential; without a `name`, those of the only one.

        Raises
        ------
        InputError
            The index has no residuals, or none of this potential, or those of several, and no name is given.
        """
        return find_residuals(self.residuals, name, str(self.path or "the index"))

    def log_kernel_sum(
        self, query: Any, threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Compute ln K(q) against the index, exactly; `query` and `threads` as in `delta_entropy`.

        `precision` is that of `quests_md.information.log_kernel_sum`. The first call lays out the rows in memory for
        all later calls: 520 bytes per environment in double precision (k = 32), some 300 in single. An index of more
        than 100,000 environments keeps no layout. Each call lays out its rows in turn or, for fewer than 48 queries,
        reads them as they are, in double precision. The two ways agree to 1e-10·max(1, |dH|).
        """
        rows = self._read_query(query, threads)
        if self.mapped is not None:  # as in `reading`, with no call for an index in memory
            self.mapped.check()
        if not self.descriptor.by_centre:
            out = self._parts[0].log_kernel_sum(rows, threads, precision)
        else:
            out = np.empty(len(rows))
            for part, which, own in self._split_query(rows):
                out[which] = part.log_kernel_sum(own, threads, precision)
        if self.mapped is not None:
            self.mapped.check()
        return out

    def delta_entropy(
        self, query: Any, threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Compute dH = −ln K(q) against the index, exactly.

        Parameters
        ----------
        query
            Descriptors (n, d), or frames (`Frame`, ``ase.Atoms``, or a list of them).
        threads
            Threads to use; None takes all cores. The result does not depend on it.
        precision
            That of `quests_md.information.log_kernel_sum`.

        Returns
        -------
        ndarray
            (n,), in nats, atoms in order. The index keeps its N rows in single precision. This changes dH by less than
            6e-8·s·√(2(dH + ln N))/h, where s is the norm of the longest row: for one phase of one element at h = 0.015
            by less than max(1e-5, 1e-6·dH).

        Raises
        ------
        ElementError
            A frame holds an element that the index does not know or, with ``spec.by_centre``, not as a centre.
        InputError
            The descriptors have another width, or a frame has no descriptor.
        """
        return 0.0 - self.log_kernel_sum(query, threads, precision=precision)  # and not −0

    def local_residuals(
        self, query: Any, threads: int | None = None, *, potential: str | None = None, precision: Precision = "double"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute dH against the index, and how wrong a potential is on the references near each query.

        Parameters
        ----------
        query, threads, precision
            As in `delta_entropy`. The local residual is a mean of single-precision residuals.
        potential
            The name of the potential, as in `residuals_of`.

        Returns
        -------
        tuple
            dH (n,) in nats; and the local residual s (n,) in eV/Å (`quests_md.information.local_residuals`), nan if
            none of the references that matter to dH has a residual.

        Raises
        ------
        ElementError, InputError
            As in `delta_entropy` and `residuals_of`.
        """
        residuals, rows = self.residuals_of(potential), self._read_query(query, threads)
        places = find_parts(self.numbers, self.descriptor.by_centre)
        weighed = Weighed(
            residuals.values.astype(np.float64), residuals.squarings, residuals.fingerprint + residuals.name
        )
        with self.reading():
            if not self.descriptor.by_centre:
                sums, s = self._parts[0].local_residuals(rows, threads, precision, weighed)
            else:
                sums, s = np.empty(len(rows)), np.empty(len(rows))
                for z, (part, which, own) in zip(np.unique(rows[:, 0]).tolist(), self._split_query(rows), strict=True):
                    mine = weighed._replace(residuals=weighed.residuals[slice(*places[z])])
                    sums[which], s[which] = part.local_residuals(own, threads, precision, mine)
        return 0.0 - sums, s

    def exceeds(self, query: Any, threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return for every query whether dH > `threshold`. The answer is always right."""
        return self.upper_bound(query, threshold, threads=threads) > threshold

    def upper_bound(
        self, query: Any, threshold: float, memory: NDArray[np.int32] | None = None, threads: int | None = None
    ) -> NDArray[np.float64]:
        """Return certified upper bounds of dH. A bound is at most `threshold` exactly where dH ≤ threshold.

        Parameters
        ----------
        query, threads
            As in `delta_entropy`.
        threshold
            In nats.
        memory
            (n_query,) int32, what certified every query the last time. It is −1 at first, and is updated. Any value
            gives the right answer; that of the same atom some steps ago gives it fast.

        Returns
        -------
        ndarray
            (n_query,), in nats: inf where the search found that dH is above the threshold, and dH itself where the
            search could not decide.

        Raises
        ------
        ElementError, InputError
            As in `delta_entropy`; also for a `memory` of another shape or type.
        """
        rows = self._read_query(query, threads)
        if not abs(threshold) <= _LARGEST_THRESHOLD:
            return self.delta_entropy(rows, threads)
        if memory is None:
            memory = np.full(len(rows), -1, np.int32)
        out, _ = self.search(rows, threshold, memory, threads)
        open_ = np.flatnonzero(np.isnan(out))
        if len(open_):
            out[open_] = self.delta_entropy(rows[open_], threads)
        return out

    def search(
        self, query: NDArray[np.float64], threshold: float, memory: NDArray[np.int32], threads: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return upper bounds of dH as `upper_bound` does, but nan where the search could not decide; and guesses.

        A guess (nats) is an upper bound that may be loose. Of rows that are not proved to be at most `threshold`, those
        with the largest guesses have the largest dH, probably.
        """
        rows = self._read_query(query, threads)
        if not abs(threshold) <= _LARGEST_THRESHOLD:
            exact = self.delta_entropy(rows, threads)
            return exact, exact
        if memory.shape != (len(rows),) or memory.dtype != np.int32:  # kernels check no bounds
            raise InputError(f"memory must be ({len(rows)},) int32, not {memory.shape} {memory.dtype}")
        if self.mapped is not None:
            self.mapped.check()
        if not self.descriptor.by_centre:
            out, guess = self._parts[0].upper_bound(rows, threshold, memory, threads)
        else:
            out, guess = np.empty(len(rows)), np.empty(len(rows))
            for part, which, own in self._split_query(rows):
                hints = memory[which]
                out[which], guess[which] = part.upper_bound(own, threshold, hints, threads)
                memory[which] = hints
        if self.mapped is not None:
            self.mapped.check()
        return out, guess

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read rows inside of this: `IndexFileError` if they are mapped, and the file was overwritten meanwhile.

        Before, because a file that was truncated must not be read; after, because what was read must be right.
        """
        if self.mapped is not None:
            self.mapped.check()
        yield
        if self.mapped is not None:
            self.mapped.check()

    def require(self, *, k: int | None = None, cutoff: float | None = None) -> None:
        """Raise `InputError` unless the index was built with this `k` and `cutoff`; None accepts any."""
        for name, asked, unit in (("k", k, ""), ("cutoff", cutoff, " Å")):
            if asked is not None and asked != (built := getattr(self.spec, name)):
                raise InputError(
                    f"{self.path or 'the index'} was built with {name} = {built}{unit}, "
                    f"but {asked}{unit} is asked for: build another index, or leave {name} out"
                )

    def check_elements(self, numbers: NDArray[Any]) -> None:
        """Raise `ElementError` if `numbers` holds an atomic number that the index does not know; 0 is no atom."""
        check_elements(self.elements, np.unique(numbers))

    def _read_query(self, query: Any, threads: int | None) -> NDArray[np.float64]:
        """Return the rows of a query. If it holds frames, describe them; if it is an array, check it."""
        if not isinstance(query, np.ndarray):
            spec, frames = self.spec, list(as_frames(query))
            for frame in frames:
                self.check_elements(frame.numbers)
            return spec.compute(frames, threads)
        rows, width = np.ascontiguousarray(query, np.float64), self.descriptor.width
        if rows.ndim != 2 or rows.shape[1] != width:
            raise InputError(f"query must have shape (n, {width}), not {rows.shape}: other descriptors")
        # nan is both the largest and the smallest value. Unlike a sum, these two cannot overflow.
        if not (math.isfinite(rows.max(initial=0.0)) and math.isfinite(rows.min(initial=0.0))):
            raise InputError("query holds values that are not finite")
        return rows

    def _split_query(self, query: NDArray[np.float64]) -> Iterator[tuple[Part, Any, NDArray[np.float64]]]:
        """Yield for each element of the query: its part, where its rows are, and these without the atomic number."""
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


# -- fingerprints ------------------------------------------------------------------------------------------------------

HASHED = {"rows": "<f4", "centre": "<f8", "numbers": "<i2"}  # the arrays that dH depends on, and their types in a file


def fingerprint(
    descriptor: DescriptorSpec | OwnDescriptors, bandwidth: float, generation: int, digests: Mapping[str, str]
) -> str:
    """Return a hash of the generation and all that dH depends on; `digests` are the hashes of the `HASHED` arrays."""
    values = [asdict(descriptor), bandwidth, generation, {name: digests[name] for name in HASHED}]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def fingerprint_index(index: IndexData) -> str:
    """Return the fingerprint of an index. This reads all its rows."""
    arrays = {name: np.ascontiguousarray(getattr(index, name), dtype) for name, dtype in HASHED.items()}
    with index.reading():
        digests = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    return fingerprint(index.descriptor, index.bandwidth, index.generation, digests)
