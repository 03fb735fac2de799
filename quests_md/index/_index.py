"""The public class of an index: making, keeping and extending it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike, NDArray

from ..comm import Comm
from ..descriptors import DescriptorSpec
from ..errors import InputError
from ..information import DEFAULT_BANDWIDTH, Report
from ._build import build_index, build_own_index, extend_index
from ._data import IndexData
from ._file import open_index, save_index, verify_index
from ._residuals import Residuals, check_several

__all__ = ["Index"]


class Index(IndexData):
    """A reference dataset that answers queries. Make one with `Index.build`, `Index.from_descriptors` or `Index.open`.

    Attributes
    ----------
    rows
        (n_env, d) float32 descriptors less `centre`, in 1/Å, in the order of the search tree; read-only after `open`.
        With ``spec.by_centre`` the rows lack the column of the centre's atomic number, they are sorted
        by that number, and the rows of each element have a tree of their own.
    centre
        (d,) mean of the reference's descriptors, in 1/Å.
    numbers
        (n_env,) atomic number of every row.
    order
        (n_env,) the environment that every row describes, counted through the frames.
    frame_offsets
        (n_frames + 1,) first environment of every frame.
    node_centres, node_radius, node_spread
        The nodes of the search tree (``kernels.search``): mean of their rows, and largest distance and mean square
        distance of a row from this mean.
    descriptor
        The `DescriptorSpec` of the rows; or `OwnDescriptors`: then `numbers` are 0, and there are no elements.
    bandwidth
        h, in 1/Å. With own descriptors it has their unit, and so has everything else here that is in 1/Å.
    elements
        Chemical symbols of the reference, by atomic number: of its environments and of their neighbours.
    pair_distances
        (n_elements, n_elements) smallest distance of each pair of elements, in Å; inf if none is within the cutoff.
    generation
        0 as built; one more after each extension.
    provenance
        What it was made of: files with hashes, date, versions; and the same for what each generation has added.
    frame_groups
        (n_frames,) the group of every frame, if the frames were given with one; else empty.
    calibration
        What `calibrate` returned, or None.
    residuals
        The force errors of potentials on the rows, a `Residuals` for each potential; `with_residuals` sets them.
    """

    @classmethod
    def build(
        cls,
        frames: Any,
        spec: DescriptorSpec | None = None,
        bandwidth: float | str = DEFAULT_BANDWIDTH,
        *,
        species: str | None = None,
        sources: Sequence[dict[str, Any]] = (),
        threads: int | None = None,
        comm: Comm | None = None,
        report: Report | None = None,
    ) -> Index:
        """Build an index of reference frames.

        Parameters
        ----------
        frames
            `Frame` or ``ase.Atoms``, or an iterable of them. Either all frames have a `group`, or none has.
        spec
            The descriptor; default ``DescriptorSpec()``. If it needs `elements` and has none, it gets those of the
            frames.
        bandwidth
            h in 1/Å; or "auto": QUESTS's volume rule at the mean volume per atom of the frames that are periodic in
            three directions and hold no vacuum. The rule holds only for k = 32, a cutoff of 5 Å and one block.
        species
            How elements enter the descriptor, in short for ``DescriptorSpec(species=...)``: "neighbours", "full",
            "centre" or "ignore". It must be given here or in `spec` for two elements or more.
        sources
            Where the frames came from, kept as provenance.
        threads
            Threads of each rank; None takes all cores, or one thread if there are several ranks.
        comm
            The ranks that share the work (``quests_md.hosts.mpi.MpiComm``); the frames must be the same on all of them,
            and all get the same index. Default: this rank alone. No digit depends on it.
        report
            It is called from time to time with the share of the descriptors that are computed.

        Raises
        ------
        InputError
            There are no frames or no atoms, two elements and no choice of `species`, two choices of it, or a frame has
            no descriptor.
        MonitorError
            Another rank failed.
        """
        if species is not None:
            spec = DescriptorSpec() if spec is None else spec
            if spec.species not in (None, species):
                raise InputError(
                    f"species is {species!r}, and that of spec is {spec.species!r}: give it once, here or in spec"
                )
            spec = replace(spec, species=species)
        return build_index(cls, frames, spec, bandwidth, sources, threads, comm, report)

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

        It answers queries that are arrays. It computes nothing from frames: a monitor, for example, cannot use it.

        Parameters
        ----------
        x
            (n, d) numbers, in any unit; a ``numpy.memmap`` is read in parts.
        bandwidth
            h, in the unit of `x`. There is no default.
        frame_offsets
            (n_frames + 1,): the rows of frame f are ``x[frame_offsets[f] : frame_offsets[f + 1]]``. A calibration needs
            them. Default: one frame.
        name
            What the descriptors are, for people.
        sources
            Where they came from, kept as provenance.
        threads
            Threads to use; None takes all cores.

        Raises
        ------
        InputError
            `x` is no such array, is empty or not finite, the offsets do not divide it, or the bandwidth is not a number
            between 1e-9 and 1e9.
        """
        return build_own_index(cls, x, bandwidth, frame_offsets, name, sources, threads)

    def extend(
        self,
        frames: Any,
        *,
        frame_offsets: ArrayLike | None = None,
        sources: Sequence[dict[str, Any]] = (),
        threads: int | None = None,
        report: Report | None = None,
    ) -> Index:
        """Return the next generation: an index of this reference and more frames. This one does not change.

        The new index has the descriptor, the bandwidth and the `centre` of this one. So its rows stay what they are,
        and no dH rises. It has no calibration, which belongs to one generation: `calibrate` makes the new one. The old
        rows keep their residuals, and those of the new rows are nan.

        Parameters
        ----------
        frames
            `Frame` or ``ase.Atoms``, or an iterable of them. They have a `group` if the frames of this index have one,
            else none. They may hold new elements if the descriptor has no blocks of single elements ("ignore",
            "centre"). For an index of own descriptors: an array (n, d) of more of them.
        frame_offsets
            Those of the array, as in `from_descriptors`.
        sources
            Where the frames came from, kept as provenance with the hash of this index.
        threads
            Threads to use; None takes all cores.
        report
            It is called from time to time with the share of the descriptors that are computed.

        Raises
        ------
        InputError
            There are no frames or no atoms, a frame has no descriptor, there is a second element and no choice of
            `species`, some frames have a group and others have none, or own descriptors are not an array.
        ElementError
            There is a new element, and the descriptor has blocks of single elements ("full", "neighbours").
        """
        return extend_index(self, frames, frame_offsets, sources, threads, report)

    def with_residuals(self, *residuals: Residuals) -> Index:
        """Return an index that has these residuals and no others. This one does not change.

        ``index.with_residuals(*index.residuals, made)`` adds those of one more potential. `match_residuals` makes
        residuals of labelled frames. What a calibration says of local residuals is dropped, unless these stay the same:
        `fit_local_bound` makes it again.

        Raises
        ------
        InputError
            They are those of another number of rows, or two of them have one name.
        """
        check_several(residuals, len(self))
        calibration = self.calibration
        local = None if calibration is None else calibration.local_error
        if calibration is not None and local is not None:
            before, after = (
                [one for one in some if one.name == local.potential] for some in (self.residuals, residuals)
            )
            if not (before and after and before[0].equals(after[0])):
                calibration = replace(calibration, local_error=None)
        made = replace(self, residuals=residuals, calibration=calibration, path=None, hash=None)
        made.mapped = self.mapped  # it has the same rows
        return made

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Index:
        """Open an index file, and verify it: its checksums, and that its sections belong together.

        The rows of up to 100,000 environments (of k = 32) are read into memory. Those of a larger index are mapped:
        all processes of a node share them. If its file is overwritten or truncated while it is in use, the next
        question is an `IndexFileError`. In a process a file that is mapped is verified once, until it changes.

        Raises
        ------
        IndexFileError
            There is no such file, or it is not an index, truncated, damaged, or of a newer format; or it holds what no
            index can hold. The message names the section.
        """
        return open_index(cls, Path(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file, atomically: the path holds the old file or the whole new one, never a part.

        Raises
        ------
        InputError
            Its calibration or its provenance is not one of this index: the file could not be opened again.
        OutputError
            The file cannot be written; nothing is left behind.
        """
        save_index(self, Path(path))

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> None:
        """Read a whole index file and check all that opening checks, whatever was verified before.

        Raises
        ------
        IndexFileError
            Something is wrong; the message names it.
        """
        verify_index(Path(path))
