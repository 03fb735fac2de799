"""Datasets that verbs take: files of frames, an index, or an array of own descriptors, opened as one `Dataset`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, together
from ..descriptors import DescriptorSpec, OwnDescriptors
from ..errors import InputError, SourceError
from ..frame import Frame
from ..index import Index, mean_volume, volume_per_atom
from ..information import DEFAULT_BANDWIDTH, ERRORS, Precision, bandwidth_from_volume, check_rows
from ..sources import Reading, describe_source, read_descriptors, read_frames
from .progress import Counter
from .results import add_options
from .shared_work import Scratch, compute_rows

__all__ = [
    "ALL",
    "FRAMES",
    "NOT_FRAMES",
    "Dataset",
    "bandwidth_option",
    "compute_volume",
    "convert_bandwidth",
    "dataset_options",
    "describe_precision",
    "make_spec",
    "open_dataset",
    "open_index",
    "precision_option",
    "read_counted",
    "reading_options",
    "refuse_no_bandwidth",
    "refuse_other_frames",
    "resolve_bandwidths",
    "tell_precision",
]


ALL = "(all)"  # the name of the group of all frames
FRAMES = (".xyz", ".extxyz")  # suffixes of files of frames that verbs write
NOT_FRAMES = (".npy", ".qindex")  # suffixes of files that are a whole dataset

_CHUNK = 1 << 22  # values that are checked at a time: an array may be larger than memory
_Command = TypeVar("_Command", bound=Callable[..., Any])


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
        (n_env,) atomic number of every environment; None for own descriptors.
    spec
        The descriptor of the rows; None for own descriptors.
    bandwidth
        The bandwidth of an index, in 1/Å; None for other sources.
    groups
        (n_frames,) names of groups, if they were asked for or the index has them; else empty.
    volumes
        (n_frames,) volume per atom in Å³, nan for a frame that is not periodic in three directions or has vacuum;
        empty for an index and for own descriptors.
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

    def iterate_groups(self) -> Iterator[tuple[str, NDArray[np.intp]]]:
        """Yield every group, in the order in which they come, and the environments in it; nothing without groups."""
        groups = np.repeat(np.array(self.groups, dtype=object), np.diff(self.frame_offsets)) if self.groups else ()
        for group in dict.fromkeys(self.groups):
            yield group, np.flatnonzero(np.asarray(groups) == group)

    def describe(self) -> dict[str, Any]:
        """Describe the dataset for a result."""
        spec = self.spec
        descriptor = None if spec is None else {"k": spec.k, "cutoff": spec.cutoff, "species": spec.species}
        return {
            "sources": list(self.sources),
            "n_frames": self.n_frames,
            "n_env": self.n_env,
            "descriptor": descriptor,
        }


def open_dataset(
    sources: Sequence[str],
    *,
    k: int | None = None,
    cutoff: float | None = None,
    species: str | None = None,
    spec: DescriptorSpec | None = None,
    group_key: str | None = None,
    reading: Mapping[str, Any] | None = None,
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
        Of the descriptor; None takes the default, or that of an index.
    spec
        The descriptor of the reference that these sources are compared with, instead of `k`, `cutoff` and `species`.
    group_key
        Key of the frames' info that names their groups.
    reading
        Keywords of `Reading`: how the files are read.
    progress
        Counts the frames that are read.
    scratch
        The ranks that share the work, and where they keep the rows; by default this rank, in memory.

    Raises
    ------
    InputError
        An index or an array among other sources, an index with another descriptor than asked for, two elements and no
        `species`, or a frame whose descriptor cannot be computed.
    SourceError, IndexFileError
        A source cannot be read.
    """
    scratch = scratch or Scratch()
    special = [source for source in sources if Path(source).suffix in NOT_FRAMES]
    if special and len(sources) > 1:
        raise InputError(f"{special[0]} is a dataset of its own: give it alone, or files of frames")
    if not special:
        frames = Frames(sources, group_key, reading or {}, progress)
        return _open_files(frames, spec or make_spec(k, cutoff, species), threads, scratch)
    return together(scratch.comm, lambda: _open_special(special[0], k, cutoff, species, spec, group_key))


def _open_special(
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
        return _open_array(source)
    return _open_index(source, k, cutoff, species, spec)


def make_spec(k: int | None, cutoff: float | None, species: str | None) -> DescriptorSpec:
    """Make the descriptor that is asked for; None takes the default."""
    default = DescriptorSpec()
    return DescriptorSpec(k if k is not None else default.k, cutoff if cutoff is not None else default.cutoff, species)


@dataclass(frozen=True)
class Frames:
    """Files of frames, and how they are read."""

    sources: Sequence[str]
    group_key: str | None
    reading: Mapping[str, Any]
    progress: Counter | None

    def read(self) -> Iterator[Frame]:
        """Yield the frames that have environments."""
        every = read_counted(self.sources, self.group_key, self.progress, self.reading)
        return (frame for frame in every if len(frame.centres))


def _open_files(source: Frames, spec: DescriptorSpec, threads: int | None, scratch: Scratch) -> Dataset:
    sources, read = source.sources, source.read

    # With a scratch folder the dataset may be larger than memory: then the frames are read twice.
    kept = None if scratch.folder is not None else together(scratch.comm, lambda: list(read()))
    data = together(scratch.comm, lambda: _survey(read() if kept is None else kept, sources, spec))
    assert data.spec is not None
    frames, names = read() if kept is None else kept, ", ".join(sources)
    refuse_other_frames(scratch.comm, [data.n_frames, int(data.frame_offsets[-1])], names)
    rows = compute_rows(frames, names, data.frame_offsets, data.spec, scratch, threads)
    return replace(data, rows=rows)


def refuse_other_frames(comm: Comm, counts: Sequence[int], names: str) -> None:
    """Raise `SourceError` on all ranks if they have read other frames than each other, by these counts. Collective."""
    if len(np.unique(comm.allgather(np.array(counts, np.float64)), axis=0)) > 1:
        raise SourceError(f"{names}: the ranks do not read the same frames: is a file still written to?")


def _survey(frames: Iterable[Frame], sources: Sequence[str], spec: DescriptorSpec) -> Dataset:
    """Return the dataset of frames, without its rows."""
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


def read_counted(
    sources: Sequence[str], group_key: str | None, progress: Counter | None, reading: Mapping[str, Any]
) -> Iterator[Frame]:
    """Yield the frames of files, and show how many have been read. `reading` are keywords of `Reading`."""
    for source in sources:
        frames = read_frames(source, group_key, **reading)
        if progress is not None:
            progress.begin(f"reading {source}:")
            frames = progress.count(frames)
        yield from frames


def _open_array(source: str) -> Dataset:
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


def _open_index(
    source: str, k: int | None, cutoff: float | None, species: str | None, spec: DescriptorSpec | None
) -> Dataset:
    index = open_index(source, k, cutoff, species)
    if spec is not None and spec != index.spec:
        raise InputError(f"{source} was built with {index.spec}, but is compared with {spec}")
    own = isinstance(index.descriptor, OwnDescriptors)
    places = np.argsort(index.order)
    with index.reading():
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
    """Open an index; `InputError` if it has another descriptor than asked for. None asks for nothing."""
    index = Index.open(source)
    index.require(k=k, cutoff=cutoff)
    if species is not None and species != index.spec.species:
        built = f'with species "{index.spec.species}"' if index.spec.species else "without a choice of species"
        raise InputError(f'{source} was built {built}, but "{species}" is asked for')
    return index


# -- options -----------------------------------------------------------------------------------------------------------


# The descriptor. An index has its own and refuses another one.
dataset_options = add_options(
    click.option("--k", type=click.IntRange(2), help="Number of nearest neighbours.  [default: 32]"),
    click.option("--cutoff", type=float, help="Radius of an environment, in Å.  [default: 5]"),
    click.option(
        "--species",
        metavar="CHOICE",
        help="How elements enter: neighbours, full, centre or ignore; must be given for two or more.",
    ),
    click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]"),
)


def reading_options(*labels: str) -> Callable[[_Command], _Command]:
    """Return a decorator that adds --format, --elements, and --NAME-key for each of these labels.

    The command gets what they say as `reading`, keywords of `quests_md.sources.Reading`.
    """
    options = add_options(
        click.option(
            "--format", metavar="NAME", help="Of the files, as ASE calls it; NAME:KEY=VALUE,... for its reader."
        ),
        click.option(
            "--elements",
            metavar="SYMBOLS",
            callback=_split_symbols,
            help="Of the types 1, 2, ... of LAMMPS: --elements Si C.",
        ),
        *(
            click.option(f"--{name}-key", metavar="KEY", help=f"Name of the label in the file.  [default: {name}]")
            for name in labels
        ),
    )
    names = ("format", "elements", *(f"{name}_key" for name in labels))

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def run(*arguments: Any, **values: Any) -> Any:
            reading = {name: values.pop(name) for name in names}
            Reading(**reading)  # raises before anything is read
            return command(*arguments, reading=reading, **values)

        return options(run)

    return decorate


def _split_symbols(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Convert an option: chemical symbols, with commas or spaces between them."""
    return None if text is None else tuple(text.replace(",", " ").split())


def precision_option(command: _Command) -> _Command:
    """Add --precision."""
    return click.option(
        "--precision",
        default="double",
        show_default=True,
        type=click.Choice(list(ERRORS)),
        help="Of dH and what is made of it: {}.".format(
            ", ".join(f"{name} errs by at most {_format_error(*error)} nats" for name, error in ERRORS.items())
        ),
    )(command)


def _format_error(absolute: float, relative: float) -> str:
    return f"max({absolute:g}, {relative:g}·|dH|)"


def describe_precision(precision: Precision) -> dict[str, Any]:
    """Describe the precision for a result: no dH errs by more than the larger of nats and of a share of |dH|."""
    absolute, relative = ERRORS[precision]
    return {"precision": precision, "error": {"absolute": absolute, "relative": relative}}


def tell_precision(precision: Precision) -> None:
    """Say on stderr how wrong numbers in single precision may be; tables on stdout are read by programs."""
    if precision != "double":
        click.echo(
            f"quests-md: {precision} precision: no dH errs by more than {_format_error(*ERRORS[precision])} nats",
            err=True,
        )


def convert_bandwidth(value: Any) -> float | str:
    """Convert an option: a number, or the word auto."""
    try:
        return "auto" if value == "auto" else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


def bandwidth_option(multiple: bool = False) -> Callable[[_Command], _Command]:
    """Add --bandwidth; several times if `multiple`."""
    return click.option(
        "--bandwidth",
        "bandwidths" if multiple else "bandwidth",
        type=convert_bandwidth,
        metavar="H",
        multiple=multiple,
        help="h in 1/Å, or auto: by the volume per atom."
        + (" May be repeated." if multiple else "")
        + f"  [default: {DEFAULT_BANDWIDTH}; of an index, its own]",
    )


def resolve_bandwidths(data: Dataset, asked: Sequence[float | str]) -> tuple[float, ...]:
    """Return the bandwidths as numbers, in ascending order. If none is asked for: that of an index, or the default.

    Raises
    ------
    InputError
        "auto" is asked for, and the volume rule does not hold for this dataset; or nothing is, and it holds own
        descriptors.
    """
    if not asked and data.spec is None and data.bandwidth is None:
        refuse_no_bandwidth(data.sources[0]["file"])
    if not asked:
        return (DEFAULT_BANDWIDTH if data.bandwidth is None else data.bandwidth,)
    numbers = {float(h) if h != "auto" else bandwidth_from_volume(compute_volume(data)) for h in asked}
    return tuple(sorted(numbers))


def refuse_no_bandwidth(source: str) -> NoReturn:
    """Raise `InputError`: own descriptors need a bandwidth that is given as a number."""
    raise InputError(
        f"{source} holds own descriptors, whose unit is not known here: give --bandwidth H in it; "
        f"quests-md bandwidth {source} helps to choose"
    )


def compute_volume(data: Dataset) -> float:
    """Return the mean volume per atom (Å³) of the frames that are bulk.

    Raises
    ------
    InputError
        The dataset is not one of frames, none of them is bulk, or QUESTS's rule does not hold for its descriptor.
    """
    if data.spec is None or not len(data.volumes):
        raise InputError(
            f"{data.sources[0]['file']} tells no volume per atom, which bandwidth=auto needs: give a number"
        )
    return mean_volume(data.volumes, np.diff(data.frame_offsets), data.spec)
