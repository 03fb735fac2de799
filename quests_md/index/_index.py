"""Building and asking an index."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..descriptors import DescriptorSpec
from ..elements import SYMBOLS, check_elements, name_of
from ..errors import ElementError, IndexFileError, InputError
from ..frame import as_frames
from ..information import DEFAULT_BANDWIDTH, Precision, check_bandwidth
from ..kernels import search
from ..own import OwnDescriptors
from . import _build, _calibration, _extend, _own, _parts, _store
from ._calibration import Calibration
from ._parts import Part, spans

__all__ = ["Index"]

_LARGEST_THRESHOLD = 1e6  # nats; beyond it the bounds are not worth their rounding


@dataclass(eq=False)
class Index:
    """A reference dataset, ready to be asked. Make one with `Index.build`, `Index.from_descriptors` or `Index.open`.

    Attributes
    ----------
    rows
        (n_env, d) float32 descriptors less `centre`, in 1/Å, in the order of the search tree; a read-only map of the
        file after `open`. With ``spec.by_centre`` without the column of the centre's atomic number, and by that number:
        the rows of each element have a tree of their own.
    centre
        (d,) mean of the reference's descriptors, in 1/Å.
    numbers
        (n_env,) atomic number of every row.
    order
        (n_env,) the environment that every row describes, counted through the frames.
    frame_offsets
        (n_frames + 1,) first environment of every frame.
    node_centres, node_radius, node_spread
        What `kernels.search` knows of the nodes of the tree: mean of their rows, largest distance and mean square
        distance from it.
    descriptor
        The `DescriptorSpec` of the rows; or `OwnDescriptors`: then `numbers` are 0, and there are no elements.
    bandwidth
        h, in 1/Å; of own descriptors in their own unit, as all that is said to be in 1/Å here.
    elements
        Chemical symbols of the reference, by atomic number: of its environments and of their neighbours.
    pair_distances
        (n_elements, n_elements) smallest distance of each pair of elements, in Å; inf where none came near.
    generation
        0 as built; one more after each extension.
    provenance
        What it was made of: files with hashes, date, versions; and the same of what each generation has added.
    frame_groups
        (n_frames,) the group of every frame, where the frames were given with one; else empty.
    calibration
        What `calibrate` made, or None.
    """

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

    @classmethod
    def build(
        cls,
        frames: Any,
        spec: DescriptorSpec | None = None,
        bandwidth: float | str = DEFAULT_BANDWIDTH,
        *,
        sources: Sequence[dict[str, Any]] = (),
        threads: int | None = None,
    ) -> Index:
        """Build an index of reference frames.

        Parameters
        ----------
        frames
            `Frame` or ``ase.Atoms``, or an iterable of them. Where frames have a `group`, all must.
        spec
            The descriptor; default ``DescriptorSpec()``. Where it needs `elements` and has none, those of the frames.
        bandwidth
            h in 1/Å, or "auto": QUESTS's volume rule at the mean volume per atom of the frames that are periodic in
            three directions and hold no vacuum; only for k = 32, a cutoff of 5 Å and one block.
        sources
            Where the frames came from, kept as provenance.
        threads
            Threads to use; None takes all cores.

        Raises
        ------
        InputError
            There are no frames or no atoms, two elements and no choice of `species`, or a frame has no descriptor.
        """
        spec = DescriptorSpec() if spec is None else spec
        if bandwidth != "auto":
            check_bandwidth(bandwidth)
        kept = [frame for frame in as_frames(frames) if len(frame.centres)]
        if not kept:
            raise InputError("the reference is empty: no frames, or no atoms in them")
        numbers = np.concatenate([f.numbers[f.centres] for f in kept]).astype(np.int16)
        present = set(np.concatenate([f.numbers for f in kept]).tolist()) - {0}
        spec = spec.for_elements(present)
        spec.check_elements(present)
        described = [spec.compute(frame, threads)[:, int(spec.by_centre) :] for frame in kept]
        h = _build.bandwidth_of(kept, spec) if bandwidth == "auto" else float(bandwidth)
        offsets = np.cumsum([0] + [len(x) for x in described], dtype=np.int64)
        centre = np.sum([x.sum(axis=0) for x in described], axis=0) / offsets[-1]
        rows = np.empty((offsets[-1], len(centre)), np.float32)
        for first, last in itertools.pairwise(offsets):
            np.subtract(described.pop(0), centre, out=rows[first:last], casting="same_kind")  # one copy, not three
        made: dict[str, Any] = _build.arranged(rows, numbers, spec.by_centre, threads)
        return cls(
            descriptor=spec,
            bandwidth=h,
            centre=centre,
            frame_offsets=offsets,
            **made,
            elements=tuple(SYMBOLS[z] for z in sorted(present)),
            pair_distances=_build.pair_distances(kept, spec.cutoff),
            provenance=_build.provenance(sources, bandwidth == "auto"),
            frame_groups=_build.groups_of(kept),
        )

    @classmethod
    def from_descriptors(
        cls,
        x: NDArray[Any],
        bandwidth: float,
        *,
        frame_offsets: ArrayLike | None = None,
        name: str = "own descriptors",
        sources: Sequence[dict[str, Any]] = (),
        threads: int | None = None,
    ) -> Index:
        """Build an index of own descriptors: rows that another program has computed.

        It answers for arrays, and computes nothing of frames: whatever needs that, a monitor say, gives an error.

        Parameters
        ----------
        x
            (n, d) numbers, in any unit; a ``numpy.memmap`` is read in parts.
        bandwidth
            h, in the unit of `x`. There is no default.
        frame_offsets
            (n_frames + 1,): the rows of frame f are ``x[frame_offsets[f] : frame_offsets[f + 1]]``. A calibration needs
            them; default: one frame.
        name
            What the descriptors are, for people.
        sources
            Where they came from, kept as provenance.
        threads
            Threads to use; None takes all cores.

        Raises
        ------
        InputError
            `x` is no such array, is empty or not finite, the offsets do not divide it, or the bandwidth is no number
            between 1e-9 and 1e9.
        """
        return cls(**_own.built(x, bandwidth, frame_offsets, name, sources, threads))

    def extend(
        self,
        frames: Any,
        *,
        frame_offsets: ArrayLike | None = None,
        sources: Sequence[dict[str, Any]] = (),
        threads: int | None = None,
    ) -> Index:
        """Return the next generation: an index of this reference and more frames. This one is not changed.

        Descriptor, bandwidth and `centre` are those of this index, so its rows stay what they are and no dH rises. The
        calibration belongs to one generation and is not taken over: `calibrate` makes the new one.

        Parameters
        ----------
        frames
            `Frame` or ``ase.Atoms``, or an iterable of them; with a `group` if the frames of this index have one, else
            without. They may hold new elements where the descriptor has no blocks of single ones ("ignore", "centre").
            For an index of own descriptors an array (n, d) of more of them.
        frame_offsets
            Of that array, as in `from_descriptors`.
        sources
            Where the frames came from, kept as provenance with the hash of this index.
        threads
            Threads to use; None takes all cores.

        Raises
        ------
        InputError
            There are no frames or no atoms, a frame has no descriptor, a second element comes and `species` was not
            chosen, some frames have a group and others have none, or own descriptors are no array.
        ElementError
            A new element, and the blocks of the descriptor are those of others ("full", "neighbours").
        """
        return type(self)(**_extend.extended(self, frames, frame_offsets, sources, threads))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Index:
        """Open an index file: the header is checked, the rows are mapped and not read.

        Raises
        ------
        IndexFileError
            There is no such file, or it is not an index, truncated, damaged, or of a newer format.
        """
        header, sections = _store.open_file(Path(path))
        descriptor = _store.descriptor_of(header)
        if "order" not in sections:
            sections |= _build.arranged(sections.pop("rows"), sections.pop("numbers"), descriptor.by_centre, None)
        return cls(
            descriptor=descriptor,
            bandwidth=header["bandwidth"],
            elements=tuple(header["elements"]),
            generation=header["generation"],
            provenance=header["provenance"],
            path=Path(path),
            hash=header["hash"],
            frame_groups=tuple(header.get("frame_groups", ())),
            calibration=header.get("calibration"),
            **sections,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file, atomically: there is the old file or the whole new one.

        Raises
        ------
        OutputError
            The file cannot be written; nothing is left behind.
        """
        header = {
            "spec": {k: value for k, value in asdict(self.descriptor).items() if (k, value) != ("elements", None)},
            "bandwidth": self.bandwidth,
            "elements": list(self.elements),
            "generation": self.generation,
            "provenance": self.provenance,
            "frame_groups": list(self.frame_groups),
            "calibration": None if self.calibration is None else _calibration.to_json(self.calibration),
        }
        sections = {name: getattr(self, name) for name in _store.SECTIONS | _store.TREE}
        self.hash = _store.write_file(Path(path), header, sections)
        self.path = Path(path)

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> None:
        """Read a whole index file and compare every section with its checksum.

        Raises
        ------
        IndexFileError
            Something differs; the message names it.
        """
        _store.verify_file(Path(path))
        index = Index.open(path)
        trees = [(tree, _build.measured(tree.rows, None)) for _, tree in index._trees()]
        tiny = 1e-4 * index.bandwidth + 1e-6 * float(max(index.rows.max(), -index.rows.min()))
        for name, slack in (("centres", tiny), ("radius", tiny), ("spread", tiny**2)):
            if not all(np.allclose(getattr(kept, name), getattr(new, name), 1e-4, slack) for kept, new in trees):
                raise IndexFileError(f"{path}: section node_{name} is not that of the rows: build it again")

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
        return -self.log_kernel_sum(query, threads)

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
