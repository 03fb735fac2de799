"""What the verbs that judge datasets take: files, an index, or an array of own descriptors, opened as one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from ..comm import together
from ..descriptors import DescriptorSpec
from ..errors import InputError, SourceError
from ..frame import Frame
from ..index import Index, volume_per_atom
from ..information import check_rows
from ..own import OwnDescriptors
from ..sources import describe_source, read_descriptors, read_frames
from ._progress import Counter
from ._rows import Scratch, rows_of

__all__ = ["ALL", "NOT_FRAMES", "Dataset", "dataset_options", "open_dataset", "open_index", "spec_of"]

_CHUNK = 1 << 22  # values that are looked at together: an array may be larger than memory

_Command = TypeVar("_Command", bound=Callable[..., Any])

ALL = "(all)"  # as the name of a group
NOT_FRAMES = (".npy", ".qindex")  # what is a dataset of its own


@dataclass(frozen=True)
class Dataset:
    """A dataset as descriptors.

    Attributes
    ----------
    rows
        (n_env, d) descriptors, in the order of the frames. Those of an index are its single-precision rows.
    frame_offsets
        (n_frames + 1,) first row of every frame. Of own descriptors (n, d) every row is a frame of its own.
    numbers
        (n_env,) atomic number of every environment; None of own descriptors.
    spec
        What the rows were computed with; None of own descriptors.
    bandwidth
        That of an index, in 1/Å; None of other sources.
    groups
        (n_frames,) names, where they were asked for or the index has them; else empty.
    volumes
        (n_frames,) volume per atom in Å³, nan where a frame is not periodic in three directions or holds vacuum;
        empty of an index and of own descriptors.
    sources
        Provenance: a dict for each source.
    """

    rows: NDArray[Any]
    frame_offsets: NDArray[np.int64]
    numbers: NDArray[np.int64] | None
    spec: DescriptorSpec | None
    bandwidth: float | None
    groups: tuple[str, ...]
    volumes: NDArray[np.float64]
    sources: tuple[dict[str, Any], ...]

    @property
    def n_env(self) -> int:
        return len(self.rows)

    @property
    def n_frames(self) -> int:
        return len(self.frame_offsets) - 1

    def by_group(self) -> Iterator[tuple[str, NDArray[np.intp]]]:
        """Yield every group, in the order in which they come, and the environments in it; nothing without groups."""
        groups = np.repeat(np.array(self.groups, dtype=object), np.diff(self.frame_offsets)) if self.groups else ()
        for group in dict.fromkeys(self.groups):
            yield group, np.flatnonzero(np.asarray(groups) == group)

    def describe(self) -> dict[str, Any]:
        """Return what a result says of the dataset that it is of."""
        spec = self.spec
        descriptor = None if spec is None else {"k": spec.k, "cutoff": spec.cutoff, "species": spec.species}
        return {
            "sources": list(self.sources),
            "n_frames": self.n_frames,
            "n_env": self.n_env,
            "descriptor": descriptor,
        }


def dataset_options(command: _Command) -> _Command:
    """Add the options of the descriptor: an index has its own, and refuses others."""
    options = (
        click.option("--k", type=click.IntRange(2), help="Number of nearest neighbours.  [default: 32]"),
        click.option("--cutoff", type=float, help="Radius of an environment, in Å.  [default: 5]"),
        click.option(
            "--species",
            metavar="CHOICE",
            help="How elements enter: neighbours, full, centre or ignore; must be given for two or more.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_dataset(
    sources: Sequence[str],
    *,
    k: int | None = None,
    cutoff: float | None = None,
    species: str | None = None,
    spec: DescriptorSpec | None = None,
    group_key: str | None = None,
    threads: int | None = None,
    progress: Counter | None = None,
    scratch: Scratch | None = None,
) -> Dataset:
    """Open sources as one dataset. Collective, if `scratch` has several ranks.

    Parameters
    ----------
    sources
        Files that ASE reads, each with an optional slice; or one index; or one ``.npy`` file of own descriptors.
    k, cutoff, species
        Of the descriptor; None takes the default, or what an index has.
    spec
        The descriptor of a reference that these sources are compared with, in place of `k`, `cutoff` and `species`.
    group_key
        Key of the frames' info that names their groups.
    progress
        Counts the frames that are read.
    scratch
        Ranks that share the descriptors of frames, and where these are kept; default: this one, and in memory.

    Raises
    ------
    InputError
        An index or array among other sources, an index of another descriptor than asked for, two elements and no
        `species`, or a frame without a descriptor.
    SourceError, IndexFileError
        A source cannot be read.
    """
    scratch = scratch or Scratch()
    special = [source for source in sources if Path(source).suffix in NOT_FRAMES]
    if special and len(sources) > 1:
        raise InputError(f"{special[0]} is a dataset of its own: give it alone, or files of frames")
    if not special:
        return _of_files(sources, spec or spec_of(k, cutoff, species), group_key, threads, progress, scratch)
    return together(scratch.comm, lambda: _of_one(special[0], k, cutoff, species, spec, group_key))


def _of_one(
    source: str,
    k: int | None,
    cutoff: float | None,
    species: str | None,
    spec: DescriptorSpec | None,
    group_key: str | None,
) -> Dataset:
    if group_key is not None:
        raise InputError(f"{source} holds no frames' info: --group-key is for files of frames")
    if source.endswith(".npy"):
        if spec is not None:
            raise InputError(f"{source} holds own descriptors: they are compared with others of their kind only")
        if (k, cutoff, species) != (None, None, None):
            raise InputError(f"{source} holds own descriptors: k, cutoff and species are for frames")
        return _of_array(source)
    return _of_index(source, k, cutoff, species, spec)


def spec_of(k: int | None, cutoff: float | None, species: str | None) -> DescriptorSpec:
    """Return the descriptor that is asked for; None takes the default."""
    default = DescriptorSpec()
    return DescriptorSpec(k if k is not None else default.k, cutoff if cutoff is not None else default.cutoff, species)


def _of_files(
    sources: Sequence[str],
    spec: DescriptorSpec,
    group_key: str | None,
    threads: int | None,
    progress: Counter | None,
    scratch: Scratch,
) -> Dataset:
    def read() -> Iterator[Frame]:
        return (frame for frame in _frames(sources, group_key, progress) if len(frame.centres))

    # Frames of a dataset that is larger than memory are read twice.
    kept = None if scratch.folder is not None else together(scratch.comm, lambda: list(read()))
    data = together(scratch.comm, lambda: _survey(read() if kept is None else kept, sources, spec))
    assert data.spec is not None
    frames, names = read() if kept is None else kept, ", ".join(sources)
    if len(np.unique(scratch.comm.allgather(np.array([data.n_frames, data.frame_offsets[-1]])), axis=0)) > 1:
        raise SourceError(f"{names}: the ranks do not read the same frames: is a file still written to?")
    rows = rows_of(frames, names, data.frame_offsets, data.spec, scratch, threads)
    return replace(data, rows=rows)


def _survey(frames: Iterable[Frame], sources: Sequence[str], spec: DescriptorSpec) -> Dataset:
    """Return what frames hold, but for their rows."""
    counts, numbers, volumes, groups = [0], [], [], []
    elements: set[int] = set()
    for frame in frames:
        counts.append(len(frame.centres))
        numbers.append(frame.numbers[frame.centres])
        volumes.append(volume_per_atom(frame))
        groups += [] if frame.group is None else [frame.group]
        elements.update(frame.distinct_numbers.tolist())
    if not numbers:
        raise InputError(f"{', '.join(sources)}: no environments in them: the frames hold no atoms")
    if ALL in groups:
        raise InputError(
            f'a group is named "{ALL}", as the row of all frames is: rename it, or take another --group-key'
        )
    spec = spec.for_elements(elements - {0})
    spec.check_elements(elements)
    return Dataset(
        rows=np.empty((0, spec.width)),
        frame_offsets=np.cumsum(counts, dtype=np.int64),
        numbers=np.concatenate(numbers).astype(np.int64),
        spec=spec,
        bandwidth=None,
        groups=tuple(groups),
        volumes=np.array(volumes),
        sources=tuple(describe_source(source) for source in sources),
    )


def _frames(sources: Sequence[str], group_key: str | None, progress: Counter | None) -> Iterator[Frame]:
    for source in sources:
        frames = read_frames(source, group_key)
        if progress is not None:
            progress.say(f"reading {source}:")
            frames = progress.count(frames)
        yield from frames


def _of_array(source: str) -> Dataset:
    rows, frame_offsets = read_descriptors(source)
    step = max(1, _CHUNK // rows.shape[1])
    for first in range(0, len(rows), step):
        check_rows(f"{source}: the array", rows[first : first + step], None)
    return Dataset(
        rows=rows,
        frame_offsets=np.arange(len(rows) + 1, dtype=np.int64) if frame_offsets is None else frame_offsets,
        numbers=None,
        spec=None,
        bandwidth=None,
        groups=(),
        volumes=np.empty(0),
        sources=(describe_source(source),),
    )


def _of_index(
    source: str, k: int | None, cutoff: float | None, species: str | None, spec: DescriptorSpec | None
) -> Dataset:
    index = open_index(source, k, cutoff, species)
    if spec is not None and spec != index.spec:
        raise InputError(f"{source} was built with {index.spec}, but is compared with {spec}")
    own = isinstance(index.descriptor, OwnDescriptors)
    places = np.argsort(index.order)
    rows = (index.rows + index.centre)[places]
    numbers = index.numbers[places].astype(np.int64)
    return Dataset(
        rows=np.column_stack([numbers, rows]) if index.descriptor.by_centre else rows,
        frame_offsets=np.asarray(index.frame_offsets),
        numbers=None if own else numbers,
        spec=None if own else index.spec,
        bandwidth=index.bandwidth,
        groups=index.frame_groups,
        volumes=np.empty(0),
        sources=({"file": source, "hash": index.hash},),
    )


def open_index(source: str, k: int | None, cutoff: float | None, species: str | None) -> Index:
    """Open an index; `InputError` if it is of another descriptor than asked for, where something is."""
    index = Index.open(source)
    index.require(k=k, cutoff=cutoff)
    if species is not None and species != index.spec.species:
        built = f'with species "{index.spec.species}"' if index.spec.species else "without a choice of species"
        raise InputError(f'{source} was built {built}, but "{species}" is asked for')
    return index
