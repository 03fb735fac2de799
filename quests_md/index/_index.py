"""Making, keeping and extending an index."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..descriptors import DescriptorSpec
from ..elements import SYMBOLS
from ..errors import IndexFileError, InputError
from ..frame import as_frames
from ..information import DEFAULT_BANDWIDTH, check_bandwidth
from . import _build, _calibration, _file
from ._data import Asked

__all__ = ["Index"]


class Index(Asked):
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
        return cls(**_build.build_own(x, bandwidth, frame_offsets, name, sources, threads))

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
        return type(self)(**_build.extend_index(self, frames, frame_offsets, sources, threads))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Index:
        """Open an index file: the header is checked, the rows are mapped and not read.

        Raises
        ------
        IndexFileError
            There is no such file, or it is not an index, truncated, damaged, or of a newer format.
        """
        header, sections = _file.open_file(Path(path))
        descriptor = _file.descriptor_of(header)
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
        sections = {name: getattr(self, name) for name in _file.SECTIONS | _file.TREE}
        self.hash = _file.write_file(Path(path), header, sections)
        self.path = Path(path)

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> None:
        """Read a whole index file and compare every section with its checksum.

        Raises
        ------
        IndexFileError
            Something differs; the message names it.
        """
        _file.verify_file(Path(path))
        index = Index.open(path)
        trees = [(tree, _build.measured(tree.rows, None)) for _, tree in index._trees()]
        tiny = 1e-4 * index.bandwidth + 1e-6 * float(max(index.rows.max(), -index.rows.min()))
        for name, slack in (("centres", tiny), ("radius", tiny), ("spread", tiny**2)):
            if not all(np.allclose(getattr(kept, name), getattr(new, name), 1e-4, slack) for kept, new in trees):
                raise IndexFileError(f"{path}: section node_{name} is not that of the rows: build it again")
