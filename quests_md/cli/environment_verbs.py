"""quests-md dh and nuclei: dH of every environment of frames, and the nuclei that it tells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import numpy as np
from numpy.typing import NDArray

from .. import report
from ..comm import Comm, choose_threads, join, on_root, together
from ..errors import FrameError, InputError, NucleationError, OutputError
from ..files import open_atomically, write_atomically
from ..files.extxyz import format_frame
from ..frame import Frame
from ..index import Index
from ..information import DEFAULT_BANDWIDTH, Precision
from ..machine import find_versions
from ..nuclei import SPHERE, Nucleation, Nuclei, NucleiSeries, linked_mean, nucleation, nuclei
from ..sources import ReadFrame, describe_source, read_all, read_frames
from .datasets import (
    FRAMES,
    NOT_FRAMES,
    bandwidth_option,
    dataset_options,
    describe_precision,
    make_spec,
    open_dataset,
    precision_option,
    reading_options,
    refuse_other_frames,
    tell_precision,
)
from .local_errors import Columns, LocalErrors, choose_local_errors, join_columns, summarise_columns
from .progress import Counter, show_progress
from .references import Itself, OpenedReference, open_reference, reference_options
from .results import Outputs, check_outputs, format_facts, format_table, result_options, save_picture, write_result
from .shared_work import Scratch, start_ranks
from .thresholds import THRESHOLD, resolve, thresholds_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dh_command", "nuclei_command"]

# -- dh ----------------------------------------------------------------------------------------------------------------

_BATCH = 4096  # least number of environments that are compared at a time, so that the threads have enough to do
_OVERLAP = 1e-5  # nats; the threshold of quests overlap

_Place = tuple[str, int, ReadFrame]  # a file, the number of a frame in it, and the frame


@dataclass(frozen=True)
class _Answer:
    """The dH (n_env,) of one frame, in nats, its row of the result, and other columns (n_env,) of its environments."""

    row: dict[str, Any]
    dH: NDArray[np.float64]
    columns: Columns = field(default_factory=dict)


@click.command("dh")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@reference_options
@click.option("--itself", is_flag=True, help="Instead: each frame against itself.")
@bandwidth_option()
@thresholds_option("Report the fraction above this dH. May be repeated.")
@click.option("--potential", metavar="NAME", help="Whose residuals, if INDEX has some.  [default: the calibrated ones]")
@precision_option
@dataset_options
@reading_options()
@result_options(*FRAMES, ".csv", ".json", ".npy")
def dh_command(
    sources: tuple[str, ...],
    reading: dict[str, Any],
    index_file: str | None,
    references: tuple[str, ...],
    itself: bool,
    bandwidth: float | str | None,
    thresholds: tuple[Any, ...],
    potential: str | None,
    precision: Precision,
    outputs: Outputs,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute dH of every environment of frames against a reference, in nats.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of
    own descriptors (.npy); so is what --reference takes. With -o, the frames with dH of every atom (.extxyz, .xyz), a
    row for every frame (.csv), a summary and these rows (.json), or the plain values (.npy). If INDEX has residuals, so
    have these the local residual of every atom and, if it is calibrated, the expected force error and a bound of it.
    Under mpiexec the ranks share the work, and every digit is the same.
    """
    if potential is not None and index_file is None:
        raise click.UsageError("--potential is for --index: an index has residuals")
    with start_ranks() as comm, Scratch(None, comm) as room:
        together(comm, outputs.check)
        with show_progress() as progress:
            if itself:
                given = (sources, index_file, references, bandwidth, descriptor)
                reference: OpenedReference | Itself = _make_itself(*given, choose_threads(comm, threads), precision)
            else:
                reference = open_reference(
                    index_file, references, bandwidth, descriptor, reading, threads, precision, progress, room
                )
                reference = together(comm, partial(_choose_residuals, reference, potential))
            index = reference.index if isinstance(reference, OpenedReference) else None
            limits = together(comm, lambda: [resolve(each, index) for each in thresholds])
            question = _Question(sources, reference, limits, {**descriptor, "reading": reading}, progress, room)
            done = _answer(question, outputs.output)
        on_root(comm, lambda: _tell(question, done, outputs))


def _choose_residuals(reference: OpenedReference, potential: str | None) -> OpenedReference:
    if reference.index is None:
        return reference
    return replace(reference, local=choose_local_errors(reference.index, potential))


@dataclass(frozen=True)
class _Question:
    """What is asked of which reference, and the ranks that share the work."""

    sources: Sequence[str]
    reference: OpenedReference | Itself
    thresholds: Sequence[float]
    descriptor: dict[str, Any]
    progress: Counter
    room: Scratch

    @property
    def limits(self) -> list[float]:
        """All dH (nats) of which the result says how many are above or below."""
        return [*self.thresholds, _OVERLAP]

    @property
    def local(self) -> LocalErrors | None:
        """The residuals that are asked about, if any."""
        return self.reference.local if isinstance(self.reference, OpenedReference) else None

    def measure(self, frames: Sequence[Frame]) -> NDArray[np.float64]:
        """Compute dH (nats) and, if residuals are asked about, local residuals (eV/Å): (n, 1) or (n, 2)."""
        if isinstance(self.reference, OpenedReference) and self.reference.local is not None:
            return self.reference.ask_with_residuals(frames, self.limits)
        return self.reference.ask(frames, self.limits)[:, None]


def _answer(question: _Question, path: Path | None) -> list[_Answer]:
    """Return the answers for all frames with environments. If `path` is one of frames, rank 0 writes them. Collective.

    Raises
    ------
    InputError
        There are none; then no file is left.
    OutputError
        There are no frames to write.
    """
    comm, done = question.room.comm, list[_Answer]()
    wanted = path is not None and path.suffix in FRAMES
    if wanted and _hold_no_frames(question.sources):
        raise OutputError(f"{question.sources[0]} holds no frames to write: give a name that ends with .csv or .json")
    with ExitStack() as stack:
        file = on_root(comm, lambda: stack.enter_context(open_atomically(path)) if path and wanted else None)
        for some in _ask(question):
            if wanted:
                on_root(comm, partial(_write_texts, file, some))
            done += [answer for answer, _ in some]
        found = _keep_environments(done, question.sources)
        on_root(comm, stack.close)  # the file is whole, or all ranks learn that it is not
    return found


def _write_texts(file: BinaryIO | None, some: Sequence[tuple[_Answer, Iterator[bytes]]]) -> None:
    assert file is not None
    for _, text in some:
        file.writelines(text)


def _tell(question: _Question, done: Sequence[_Answer], outputs: Outputs) -> None:
    reference, thresholds = question.reference, question.thresholds
    values = np.concatenate([answer.dH for answer in done])
    summary = {"n_frames": len(done), **_summarise(values, thresholds), "overlap": float(np.mean(values < _OVERLAP))}
    summary |= summarise_columns(join_columns([answer.columns for answer in done]))
    about = {"reference": reference.describe(), "thresholds": list(thresholds)}
    about |= {} if question.local is None else {"potential": question.local.potential}
    of = {**about, **describe_precision(reference.precision), **summary}

    def draw() -> Figure:
        offsets = np.cumsum([0] + [len(answer.dH) for answer in done])
        return report.histogram(values, thresholds, frame_offsets=offsets)

    def write(path: Path) -> None:
        if path.suffix not in FRAMES:  # they are written already
            _write(path, question.sources, of, done, values)

    outputs.deliver([summary], write, draw)
    tell_precision(reference.precision)


def _keep_environments(done: Sequence[_Answer], sources: Sequence[str]) -> list[_Answer]:
    """Return the answers of frames that have environments; `InputError` if there are none."""
    found = [answer for answer in done if len(answer.dH)]
    if not found:
        raise InputError(f"{', '.join(sources)}: no environments in them: the frames hold no atoms")
    return found


def _write(
    output: Path, sources: Sequence[str], of: dict[str, Any], done: Sequence[_Answer], values: NDArray[np.float64]
) -> None:
    if output.suffix == ".npy":
        write_atomically(output, lambda file: np.save(file, values))
        return
    rows = [answer.row for answer in done]
    described = [describe_source(source) for source in sources]
    write_result(output, {"sources": described, **of, "frames": rows, "versions": find_versions()}, rows)


def _make_itself(
    sources: Sequence[str],
    index_file: str | None,
    references: Sequence[str],
    bandwidth: float | str | None,
    descriptor: dict[str, Any],
    threads: int | None,
    precision: Precision,
) -> Itself:
    if index_file is not None or references:
        raise click.UsageError("--itself takes the place of --index and --reference: give one of them")
    if bandwidth == "auto" or _hold_no_frames(sources):
        raise click.UsageError("--itself is for files of frames, and for a bandwidth that is a number")
    h = DEFAULT_BANDWIDTH if bandwidth is None else float(bandwidth)
    return Itself(make_spec(**descriptor), h, threads, precision)


def _hold_no_frames(sources: Sequence[str]) -> bool:
    return any(Path(source).suffix in NOT_FRAMES for source in sources)


def _ask(question: _Question) -> Iterator[list[tuple[_Answer, Iterator[bytes]]]]:
    """Yield the answers for some frames at a time, each with the text of its frame, in pieces. Collective."""
    reference, comm = question.reference, question.room.comm
    if isinstance(reference, OpenedReference) and _hold_no_frames(question.sources):
        yield [(answer, iter(())) for answer in _ask_dataset(question, reference)]
        return
    if reference.spec is None:
        raise InputError(
            f"the reference holds own descriptors: {question.sources[0]} must be an array (.npy) of them, too"
        )
    batches = _batches(question.sources, question.descriptor["reading"], question.progress)
    while some := _read_batches(batches, comm, ", ".join(question.sources)):
        frames = [found.frame for batch in some for *_, found in batch]
        own = together(comm, partial(_measure, question, some[comm.rank : comm.rank + 1]))
        ends = np.cumsum([0, *(sum(len(found.frame.centres) for *_, found in batch) for batch in some)])
        places = [np.arange(*ends[rank : rank + 2]) if rank < len(some) else np.arange(0) for rank in range(comm.size)]
        dH, *more = (_split(join(comm, column, places), frames) for column in own.T)
        s = more[0] if more else [None] * len(frames)
        yield [_answer_frame(question, *one) for one in zip(itertools.chain(*some), dH, s, strict=True)]


def _answer_frame(
    question: _Question, place: _Place, dH: NDArray[np.float64], s: NDArray[np.float64] | None
) -> tuple[_Answer, Iterator[bytes]]:
    """Return the answer for a frame whose dH and local residuals are known, and its text, in pieces."""
    source, number, found = place
    row = {"file": source, "frame": number, "step": found.frame.step, "time": found.frame.time}
    columns: Columns = {}
    if question.local is not None and s is not None:
        columns = question.local.list_columns(dH, s, found.frame.numbers[found.frame.centres])
    summary, local = _summarise(dH, question.thresholds, found.frame), summarise_columns(columns)
    return _Answer({**row, **summary, **local}, dH, columns), _format_frame(found, dH, columns, summary, local)


def _ask_dataset(question: _Question, reference: OpenedReference) -> Iterator[_Answer]:
    """Yield the answers for the frames of an index, or of own descriptors. Collective."""
    sources, descriptor, room = question.sources, question.descriptor, question.room
    how = descriptor if reference.spec is None else {"spec": reference.spec, "reading": descriptor["reading"]}
    data = open_dataset(sources, **how, threads=reference.threads, progress=question.progress, scratch=room)
    dH = reference.delta_entropy(data.rows, data.numbers, question.limits, room.comm)
    # Own descriptors do not always say where a frame begins: then all of them are one frame.
    offsets = [0, len(dH)] if data.spec is None and data.n_frames == len(dH) else data.frame_offsets.tolist()
    columns: Columns = {}
    if reference.local is not None:
        columns = reference.local.list_columns(dH, reference.local_residuals(data.rows, room.comm), data.numbers)
    for number, (first, last) in enumerate(itertools.pairwise(offsets)):
        some, mine = dH[first:last], {name: values[first:last] for name, values in columns.items()}
        summary = {**_summarise(some, question.thresholds), **summarise_columns(mine)}
        yield _Answer({"file": sources[0], "frame": number, **summary}, some, mine)


def _read_batches(batches: Iterator[list[_Place]], comm: Comm, names: str) -> list[list[_Place]]:
    """Return a batch for each rank, or what is left; every rank reads all of them. Collective."""
    some = together(comm, lambda: list(itertools.islice(batches, comm.size)))
    frames = [found.frame for batch in some for *_, found in batch]
    refuse_other_frames(comm, [len(some), len(frames), sum(len(frame.centres) for frame in frames)], names)
    return some


def _measure(question: _Question, batches: Sequence[Sequence[_Place]]) -> NDArray[np.float64]:
    """Compute what `_Question.measure` does of some frames. If a frame has no descriptor, the error names its file."""
    places = list(itertools.chain(*batches))
    if not places:  # the frames do not suffice for all ranks
        return np.empty((0, 1 if question.local is None else 2))
    try:
        return question.measure([found.frame for *_, found in places])
    except FrameError:
        for source, number, found in places:
            try:
                question.measure([found.frame])
            except FrameError as error:
                raise FrameError(f"{source}: frame {number}: {error}") from error
        raise


def _batches(sources: Sequence[str], reading: dict[str, Any], progress: Counter) -> Iterator[list[_Place]]:
    """Yield several frames at a time, with their file and their number in it."""
    batch: list[_Place] = []
    n_env = 0
    progress.begin("dH of")
    for source in sources:
        for number, found in enumerate(progress.count(read_all(source, **reading))):
            batch.append((source, number, found))
            n_env += len(found.frame.centres)
            if n_env >= _BATCH:
                yield batch
                batch, n_env = [], 0
    if batch:
        yield batch


def _split(dH: NDArray[np.float64], frames: Sequence[Frame]) -> list[NDArray[np.float64]]:
    return np.split(dH, np.cumsum([len(frame.centres) for frame in frames])[:-1])


def _summarise(dH: NDArray[np.float64], thresholds: Sequence[float], frame: Frame | None = None) -> dict[str, Any]:
    """Summarise the dH of a frame, or of all frames."""
    if not len(dH):
        return {"n": 0}
    worst = int(np.argmax(dH))
    q50, q99 = np.quantile(dH, (0.5, 0.99)).tolist()
    numbers: dict[str, Any] = {"n": len(dH), "max": float(dH[worst])}
    if frame is not None:
        assert frame.ids is not None
        numbers["max_id"] = int(frame.ids[frame.centres[worst]])
    numbers |= {"mean": float(dH.mean()), "q50": q50, "q99": q99}
    return numbers | {f"above_{threshold:g}": float(np.mean(dH > threshold)) for threshold in thresholds}


def _format_frame(
    found: ReadFrame, dH: NDArray[np.float64], columns: Columns, summary: dict[str, Any], local: dict[str, float]
) -> Iterator[bytes]:
    """Yield the text of a frame with dH and other columns, in pieces; nan for an atom that is no environment."""
    whole: dict[str, NDArray[Any]] = {}
    for name, values in {"dH": dH, **columns}.items():
        whole[name] = np.full(len(found.frame.positions), np.nan)
        whole[name][found.frame.centres] = values
    yield from found.text.format(whole, {**{f"dH_{key}": value for key, value in summary.items()}, **local})


# -- nuclei ------------------------------------------------------------------------------------------------------------

_Found = tuple[Frame, Nuclei, dict[str, NDArray[np.float64]]]
_POSITIVE = click.FloatRange(0.0, min_open=True)
_SHOWN = 12  # rows of the table on a terminal


@click.command("nuclei")
@click.argument("trajectory")
@click.option("--index", "index_file", required=True, type=click.Path(path_type=Path), help="The index file.")
@click.option("--threshold", required=True, type=THRESHOLD, metavar="T",
              help="Nuclei are of atoms with dH up to this: nats, or a rate (false_alarm=0.01).")  # fmt: skip
@click.option("--above", is_flag=True, help="Nuclei are of atoms above the threshold instead.")
@click.option("--average", is_flag=True, help="Compare dH averaged over each atom and those linked to it.")
@click.option("--link", required=True, type=float, help="Largest distance of two linked atoms of a nucleus, in Å.")
@click.option("--temperature", type=_POSITIVE, help="In K: fit classical nucleation theory; with --density.")
@click.option("--density", type=_POSITIVE, help="Of the nuclei, in atoms per Å³.")
@click.option("--driving-force", type=_POSITIVE, help="In eV per atom.  [default: fitted, and hardly known then]")
@click.option(
    "--shape-factor",
    type=click.FloatRange(SPHERE * (1 - 1e-9)),
    help="Surface / volume^(2/3) of a nucleus.  [default: a sphere's, 4.836]",
)
@click.option("--from", "first", type=int, help="First step that is fitted.  [default: all]")
@click.option("--until", "last", type=int, help="Last step that is fitted.  [default: all]")
@click.option("--smallest", type=click.IntRange(1), default=5, show_default=True, help="Smallest size that is fitted.")
@click.option("--blocks", type=click.IntRange(5), default=10, show_default=True, help="Blocks of time, for the errors.")
@click.option(
    "-o",
    "--output",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write .csv (a row per frame), .json (all), .xyz or .extxyz (frames with the nucleus of every atom); several.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here: .png, .svg or .pdf.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options()
def nuclei_command(
    trajectory: str,
    index_file: Path,
    threshold: Any,
    above: bool,
    average: bool,
    link: float,
    first: int | None,
    last: int | None,
    output: tuple[Path, ...],
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    reading: dict[str, Any],
    **options: Any,
) -> None:
    """Find nuclei along a trajectory: linked atoms whose dH is low.

    TRAJECTORY is anything that ASE reads, with an optional slice: dump.lammpstrj, md.traj@::10. With --temperature
    and --density classical nucleation theory is fitted to the sizes of the nuclei, if the steps --from to --until are
    quasi-stationary and no nucleus grows in them. Otherwise the files are written without a fit, and the reason is
    printed.
    """
    fit = _check_fit(options)
    if isinstance(threshold, float) and math.isnan(threshold):
        raise InputError("--threshold must be a number of nats, not nan")
    check_outputs(None, plot, overwrite)
    for path in output:
        check_outputs(path, None, overwrite, (".csv", ".json", *FRAMES))
    films = [path for path in output if path.suffix in FRAMES]
    if len(films) > 1:
        raise OutputError(f"{films[0]} and {films[1]} would hold the same frames: give one of them")
    index = Index.open(index_file)
    threshold = resolve(threshold, index)
    with show_progress() as progress:
        progress.say(f"nuclei of {trajectory}:")
        frames = progress.count(read_frames(trajectory, **reading))
        found = _find(frames, index, threshold, above, average, link, bool(films), threads)
        series = _collect(found, films)
    fitted, refusal = None, None
    if fit is not None:
        try:
            fitted = nucleation(series, first=first, last=last, **fit)
        except (InputError, NucleationError) as error:  # raised below: the nuclei that were found are written first
            refusal = error
    asked = {"threshold": threshold, "above": above, "average": average, "link": link}
    about = {"file": str(index_file), "hash": index.hash, "bandwidth": index.bandwidth}
    result: dict[str, Any] = {
        "sources": [describe_source(trajectory)],
        "index": about,
        **asked,
        "frames": _make_rows(series),
    }
    result["sizes"] = [sizes.tolist() for sizes in series.sizes]
    result["nucleation"] = None if fitted is None else fitted.describe()
    result["refused"] = None if refusal is None else str(refusal)
    for path in output:
        if path not in films:
            write_result(path, result, result["frames"])
    if plot is not None:
        save_picture(report.nuclei_picture(series, fitted), plot)
    _say(result["frames"], fitted)
    for path in [*output, *([plot] if plot else [])]:
        click.echo(f"written: {path}")
    if refusal is not None:
        raise refusal


def _check_fit(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the options of the fit, or None if no fit is asked for."""
    given = {name: value for name, value in options.items() if value is not None}
    if options["temperature"] is not None and options["density"] is not None:
        return given
    asked = sorted(set(given) - {"smallest", "blocks"})
    if asked:
        names = " and ".join("--" + name.replace("_", "-") for name in asked)
        raise InputError(f"{names} alone: a fit of classical nucleation theory needs --temperature and --density")
    return None


def _find(
    frames: Iterator[Frame],
    index: Index,
    threshold: float,
    above: bool,
    average: bool,
    link: float,
    exact: bool,
    threads: int | None,
) -> Iterator[_Found]:
    """Yield frames and their nuclei; if `exact`, also the values of the atoms as columns of a file.

    If no value is needed, the index only tells what exceeds the threshold, which is faster.
    """
    for frame in frames:
        columns = {"dH": index.delta_entropy(frame, threads)} if exact or average else {}
        if average:
            columns["dH_mean"] = linked_mean(frame, columns["dH"], link)
        compared = list(columns.values())[-1:]
        exceeds = compared[0] > threshold if compared else index.exceeds(frame, threshold, threads)
        yield frame, nuclei(frame, exceeds if above else ~exceeds, link), columns


def _collect(found: Iterator[_Found], films: Sequence[Path]) -> NucleiSeries:
    """Collect the nuclei of all frames, and write the frames if a file is wanted."""
    if not films:
        return NucleiSeries.of((frame, one) for frame, one, _ in found)
    series: list[NucleiSeries] = []

    def write(file: BinaryIO) -> None:
        series.append(NucleiSeries.of(_write_frames(found, file.write)))

    write_atomically(films[0], write)
    return series[0]


def _write_frames(found: Iterator[_Found], write: Callable[[bytes], object]) -> Iterator[tuple[Frame, Nuclei]]:
    for frame, one, columns in found:
        n, centres = len(frame.positions), frame.centres
        whole: dict[str, NDArray[Any]] = {name: np.full(n, np.nan) for name in columns}
        for name, values in columns.items():
            whole[name][centres] = values
        whole["nucleus"] = np.zeros(n, np.int64)
        whole["nucleus"][centres] = one.numbers
        info: dict[str, Any] = {"step": frame.step, "n_nuclei": len(one.sizes), "largest": one.largest}
        if np.isfinite(frame.time):
            info["time"] = frame.time
        write(format_frame(frame, whole.pop("dH"), info, whole))
        yield frame, one


def _make_rows(series: NucleiSeries) -> list[dict[str, Any]]:
    columns = {
        "step": series.steps, "time": series.times, "n": series.n_env, "n_inside": series.n_inside,
        "n_nuclei": series.n_nuclei, "largest": series.largest,
    }  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _say(rows: list[dict[str, Any]], fit: Nucleation | None) -> None:
    step = -(-len(rows) // _SHOWN)
    shown = rows[::step]
    click.echo(format_table(shown if shown[-1] is rows[-1] else [*shown, rows[-1]]))
    if len(shown) < len(rows):
        click.echo(f"(one of {step} of {len(rows)} frames)")
    if fit is None:
        return
    given = "given" if fit.driving_force_given else f"± {fit.driving_force_error:.2g}, fitted"
    click.echo(f"fitted to steps {fit.first} to {fit.last}, {fit.n_frames} frames, sizes from {fit.smallest} on")
    facts = {"surface tension": f"{fit.gamma:.4g} ± {fit.gamma_error:.2g} mJ/m²  (misfit {fit.misfit:.2g})"}
    facts["driving force"] = f"{fit.driving_force:.4g} eV per atom ({given})"
    if not fit.driving_force_given:
        facts["correlation"] = (
            f"{fit.correlation_of_gamma:.3f}: these two are hardly told apart; "
            f"{fit.gamma_slope / 100:.4g} mJ/m² more for every 0.01 eV"
        )
    facts["critical size"] = f"{fit.critical_size:.4g} ± {fit.critical_size_error:.2g}"
    facts["barrier"] = f"{fit.barrier:.4g} ± {fit.barrier_error:.2g} eV, {fit.barrier / fit.kT:.4g} k_BT"
    by_smallest = ", ".join(f"{n}: {gamma:.4g}" for n, gamma in fit.gamma_by_smallest.items())
    facts["by smallest size"] = f"surface tension {by_smallest}"
    click.echo(format_facts(facts))
