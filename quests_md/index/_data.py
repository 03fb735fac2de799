"""What an index holds, and the questions it answers: kernel sums, dH, and bounds of dH."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS, check_elements, name_of
from ..errors import ElementError, InputError
from ..frame import as_frames
from ..information import Precision
from ..kernels import search
from ..notebook import to_html
from ..own_function import OwnFunction
from ._mapped import MappedFile
from ._parts import Part, Weighed, find_parts, limit_layout
from ._residuals import Residuals, find_residuals
from ._thresholds import Calibration

__all__ = ["HASHED", "IndexData", "Reference", "fingerprint", "fingerprint_index"]


class Reference(Protocol):
    """What a monitor needs of a reference. `Index` is one; a reference that grows during a run can be another."""

    @property
    def spec(self) -> DescriptorSpec | OwnFunction:
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


_LARGEST_THRESHOLD = 1e6  # nats; beyond it the bounds are not worth their rounding

# -- the index ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
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
        self.keeps_layout = len(self) <= limit_layout(self.rows.shape[1])  # for kernel sums, from question to question
        self._parts = {
            number: Part(tree, self.centre, self.bandwidth, self.keeps_layout) for number, tree in self.trees()
        }
        self._weighed: dict[str, dict[int, Weighed]] = {}

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

    def __repr__(self) -> str:
        """Return one line that says what it holds: the arrays would fill the screen."""
        of = f" of {', '.join(self.elements)}" if self.elements else ""
        frames = len(self.frame_offsets) - 1
        where = "" if self.path is None else f" in {self.path}"
        return (
            f"<{type(self).__name__}{where}: {len(self):,} environments{of} in {frames:,} frames, {self.descriptor}, "
            f"bandwidth {self.bandwidth:.6g}, generation {self.generation}>"
        )

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            "environments": f"{len(self):,} in {len(self.frame_offsets) - 1:,} frames",
            "elements": ", ".join(self.elements) or "none: own descriptors",
            "descriptor": self.descriptor,
            "bandwidth": f"{self.bandwidth:.6g}" + (" 1/Å" if self.elements else ""),
            "generation": self.generation,
            "file": self.path or "not saved",
            "calibration": "none" if self.calibration is None else repr(self.calibration),
            "residuals": ", ".join(one.name for one in self.residuals) or "none",
        }
        return to_html(type(self).__name__, facts)

    @cached_property
    def spec(self) -> DescriptorSpec:
        """The descriptor of frames. `InputError` if there is none because the rows are own descriptors."""
        if isinstance(self.descriptor, OwnDescriptors):
            raise InputError(
                f"{self.path or 'the index'} holds own descriptors ({self.descriptor.name}), which are not computed "
                f"from frames here: ask it with arrays (n, {self.descriptor.width}). To watch a run, name the function "
                'that computes them, describe = "module:function"; to compare frames, use an index that was built of '
                "frames"
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

    def differentiate(
        self, query: NDArray[np.float64], threads: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute dH against the index, and its derivatives by the descriptors.

        With K_j the kernel of reference r_j and p_j = K_j / Σ K, the derivative is Σ_j p_j (q − r_j) / h².

        Parameters
        ----------
        query
            Descriptors (n, d).
        threads
            Threads to use; None takes all cores. The result does not depend on it.

        Returns
        -------
        tuple
            dH (n,) in nats, and its derivatives (n, d) in nats·Å. With ``spec.by_centre`` those by the first column,
            the atomic number, are 0.

        Raises
        ------
        ElementError, InputError
            As in `delta_entropy`.
        """
        rows = self._read_query(query, threads)
        with self.reading():
            if not self.descriptor.by_centre:
                return self._parts[0].differentiate(rows, threads)
            dH, out = np.empty(len(rows)), np.zeros(rows.shape)
            for part, which, own in self._split_query(rows):
                dH[which], out[which, 1:] = part.differentiate(own, threads)
        return dH, out

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
        weighed, rows = self._weigh(potential), self._read_query(query, threads)
        with self.reading():
            if not self.descriptor.by_centre:
                sums, s = self._parts[0].local_residuals(rows, threads, precision, weighed[0])
            else:
                sums, s = np.empty(len(rows)), np.empty(len(rows))
                for part, which, own in self._split_query(rows):
                    mine = weighed[int(rows[which[0], 0])]
                    sums[which], s[which] = part.local_residuals(own, threads, precision, mine)
        return 0.0 - sums, s

    def estimate_residuals(
        self, query: Any, threads: int | None = None, *, potential: str | None = None
    ) -> NDArray[np.float64]:
        """Estimate local residuals at a small part of their cost, where dH is not needed.

        The estimate is the mean residual of a group of references that are like each other: of those groups, at most
        128, the one whose mean descriptor is nearest to the query.

        Parameters
        ----------
        query, threads, potential
            As in `local_residuals`.

        Returns
        -------
        ndarray
            (n,) in eV/Å; nan if there are no residuals to take a mean of.

        Raises
        ------
        ElementError, InputError
            As in `local_residuals`.
        """
        weighed, rows = self._weigh(potential), self._read_query(query, threads)
        if not self.descriptor.by_centre:
            return self._parts[0].estimate_residuals(rows, threads, weighed[0])
        out = np.empty(len(rows))
        for part, which, own in self._split_query(rows):
            out[which] = part.estimate_residuals(own, threads, weighed[int(rows[which[0], 0])])
        return out

    def _weigh(self, potential: str | None) -> dict[int, Weighed]:
        """Return the residuals of a potential by part; they are made once."""
        residuals = self.residuals_of(potential)
        made = self._weighed.get(residuals.name)
        if made is None:
            values, key = residuals.values.astype(np.float64), residuals.fingerprint + residuals.name
            places = find_parts(self.numbers, self.descriptor.by_centre)
            made = {z: Weighed(values[slice(*place)], residuals.squarings, key) for z, place in places.items()}
            self._weighed[residuals.name] = made
        return made

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
