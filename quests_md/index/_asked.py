"""Asking an index: kernel sums, dH and bounds of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec
from ..elements import SYMBOLS, check_elements, name_of
from ..errors import ElementError, InputError
from ..frame import as_frames
from ..information import Precision
from ..kernels import search
from ..own import OwnDescriptors
from . import _parts
from ._calibration import Calibration
from ._parts import Part, spans

__all__ = ["Asked"]

_LARGEST_THRESHOLD = 1e6  # nats; beyond it the bounds are not worth their rounding


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

    def __post_init__(self) -> None:
        """Start without a layout of the rows for kernel sums; the first question makes it."""
        is_small = len(self) <= _parts.laid_out(self.rows.shape[1])
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

    @property
    def ready(self) -> bool:
        """True: an index can be asked at once."""
        return True

    @property
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
        query = self._rows_of(query, threads)
        total = np.empty(len(query))
        for part, which, rows in self._of_parts(query):
            total[which] = part.log_kernel_sum(rows, threads, precision)
        return total

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
        query = self._rows_of(query, threads)
        if not abs(threshold) <= _LARGEST_THRESHOLD:
            return self.delta_entropy(query, threads)
        query = self._checked(query)
        if memory is None:
            memory = np.full(len(query), -1, np.int32)
        if memory.shape != (len(query),) or memory.dtype != np.int32:  # kernels check no bounds
            raise InputError(f"memory must be ({len(query)},) int32, not {memory.shape} {memory.dtype}")
        out = np.empty(len(query))
        for part, which, rows in self._of_parts(query):
            hints = memory[which]
            out[which] = part.upper_bound(rows, threshold, hints, threads)
            memory[which] = hints
        open_ = np.flatnonzero(np.isnan(out))
        if len(open_):
            out[open_] = self.delta_entropy(query[open_], threads)
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

    def _checked(self, query: NDArray[Any]) -> NDArray[np.float64]:
        query = np.ascontiguousarray(query, dtype=np.float64)
        if query.ndim != 2 or query.shape[1] != self.descriptor.width:
            raise InputError(
                f"query must have shape (n, {self.descriptor.width}), not {query.shape}: other descriptors"
            )
        return query

    def _rows_of(self, query: Any, threads: int | None) -> NDArray[np.float64]:
        if isinstance(query, np.ndarray):
            return query
        spec, frames = self.spec, list(as_frames(query))
        for frame in frames:
            self.check_elements(frame.numbers)
        return spec.compute(frames, threads)

    def _of_parts(self, query: NDArray[np.float64]) -> Iterator[tuple[Part, Any, NDArray[np.float64]]]:
        """Yield every part that is asked, which queries it is asked, and their rows as it has them."""
        if not self.descriptor.by_centre:
            yield self._parts[0], slice(None), query
            return
        query = self._checked(query)
        numbers = query[:, 0]
        if not np.isfinite(numbers).all():
            raise InputError("query holds values that are not finite")
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
