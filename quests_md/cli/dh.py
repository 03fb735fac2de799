"""quests-md dh: dH of the environments of frames against a reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError, InputError, OutputError
from ..files import write_atomically
from ..files.extxyz import format_atoms
from ..frame import Frame
from ..information import DEFAULT_BANDWIDTH
from ..sources import describe_source, frame_of, read_atoms
from ..versions import versions
from ._bandwidths import bandwidth_option
from ._dataset import NOT_FRAMES, dataset_options, open_dataset, spec_of
from ._progress import Counter, counter
from ._reference import Itself, Known, open_reference, reference_options, thresholds_option
from ._results import check_outputs, deliver, result_options_as, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dh_command"]

_FRAMES = (".xyz", ".extxyz")
_BATCH = 4096  # environments that are asked about at a time, at least
_OVERLAP = 1e-5  # nats; the threshold of quests overlap


_Place = tuple[str, int, Any, Frame]  # the file, the number in it, and the frame itself: as ase.Atoms, and as Frame


@dataclass(frozen=True)
class _Answer:
    """The dH (n_env,) of one frame, in nats, and what is said of it."""

    row: dict[str, Any]
    dH: NDArray[np.float64]


@click.command("dh")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@reference_options
@click.option("--itself", is_flag=True, help="Instead: each frame against itself.")
@bandwidth_option()
@thresholds_option("Report the fraction above this dH (nats). May be repeated.")
@dataset_options
@result_options_as(".extxyz, .csv, .json or .npy")
def dh_command(
    sources: tuple[str, ...],
    index_file: str | None,
    references: tuple[str, ...],
    itself: bool,
    bandwidth: float | str | None,
    thresholds: tuple[float, ...],
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute dH of every environment of frames against a reference, in nats.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of
    own descriptors (.npy); so is what --reference takes. With -o, the frames with dH of every atom (.extxyz, .xyz), a
    row for every frame (.csv), a summary and these rows (.json), or the plain values (.npy).
    """
    check_outputs(output, plot, overwrite, (*_FRAMES, ".csv", ".json", ".npy"))
    suffix = None if output is None else output.suffix
    with counter() as progress:
        if itself:
            known: Known | Itself = _itself(sources, index_file, references, bandwidth, descriptor, threads)
        else:
            known = open_reference(index_file, references, bandwidth, descriptor, threads, progress)
        asked = _ask(sources, known, thresholds, descriptor, progress)
        if output is not None and suffix in _FRAMES:
            done: list[_Answer] = []
            write_atomically(output, lambda file: file.writelines(_texts(asked, done, sources)))
        else:
            done = [answer for answer, _ in asked]
    done = _with_environments(done, sources)
    values = np.concatenate([answer.dH for answer in done])
    summary = {"n_frames": len(done), **_numbers(values, thresholds), "overlap": float(np.mean(values < _OVERLAP))}
    of = {"reference": known.describe(), "thresholds": list(thresholds), **summary}

    def draw() -> Figure:
        from ..report import histogram

        offsets = np.cumsum([0] + [len(answer.dH) for answer in done])
        return histogram(values, thresholds, frame_offsets=offsets)

    left = None if suffix in _FRAMES else output  # frames are written
    deliver([summary], left, lambda path: _write(path, sources, of, done, values), plot, draw)


def _with_environments(done: Sequence[_Answer], sources: Sequence[str]) -> list[_Answer]:
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
    write_result(output, {"sources": described, **of, "frames": rows, "versions": versions()}, rows)


def _itself(
    sources: Sequence[str],
    index_file: str | None,
    references: Sequence[str],
    bandwidth: float | str | None,
    descriptor: dict[str, Any],
    threads: int | None,
) -> Itself:
    if index_file is not None or references:
        raise click.UsageError("--itself takes the place of --index and --reference: give one of them")
    if bandwidth == "auto" or _of_no_frames(sources):
        raise click.UsageError("--itself is for files of frames, and for a bandwidth that is a number")
    return Itself(spec_of(**descriptor), DEFAULT_BANDWIDTH if bandwidth is None else float(bandwidth), threads)


def _of_no_frames(sources: Sequence[str]) -> bool:
    return any(Path(source).suffix in NOT_FRAMES for source in sources)


def _ask(
    sources: Sequence[str],
    known: Known | Itself,
    thresholds: Sequence[float],
    descriptor: dict[str, Any],
    progress: Counter,
) -> Iterator[tuple[_Answer, Any]]:
    """Yield the answer for every frame, and the frame as ``ase.Atoms`` with dH in it; None of other sources."""
    if isinstance(known, Known) and _of_no_frames(sources):
        how = descriptor if known.spec is None else {"spec": known.spec}
        data = open_dataset(sources, **how, threads=known.threads, progress=progress)
        dH = known.delta_entropy(data.rows, data.numbers)
        # Own descriptors of which it is not known where frames begin: all are one.
        offsets = [0, len(dH)] if data.spec is None and data.n_frames == len(dH) else data.frame_offsets.tolist()
        for number, (first, last) in enumerate(itertools.pairwise(offsets)):
            some = dH[first:last]
            yield _Answer({"file": sources[0], "frame": number, **_numbers(some, thresholds)}, some), None
        return
    if known.spec is None:
        raise InputError(f"the reference holds own descriptors: {sources[0]} must be an array (.npy) of them, too")
    for batch in _batches(sources, progress):
        frames = [frame for *_, frame in batch]
        for (source, number, atoms, frame), some in zip(batch, _split(_dH(known, batch), frames), strict=True):
            row = {"file": source, "frame": number, "step": frame.step, "time": frame.time}
            numbers_ = _numbers(some, thresholds, frame)
            _put(atoms, frame, some, numbers_)
            yield _Answer({**row, **numbers_}, some), atoms


def _dH(known: Known | Itself, batch: Sequence[_Place]) -> NDArray[np.float64]:
    """Ask for the dH of some frames; the error of one that has no descriptor names its file."""
    try:
        return known.ask([frame for *_, frame in batch])
    except FrameError:
        for source, number, _, frame in batch:
            try:
                known.ask([frame])
            except FrameError as error:
                raise FrameError(f"{source}: frame {number}: {error}") from error
        raise


def _batches(sources: Sequence[str], progress: Counter) -> Iterator[list[_Place]]:
    """Yield frames, some at a time, with their file and their number in it: the threads need much to do."""
    batch: list[_Place] = []
    n_env = 0
    progress.begin("dH of")
    for source in sources:
        for number, atoms in enumerate(progress.count(read_atoms(source))):
            frame = frame_of(atoms, number)
            batch.append((source, number, atoms, frame))
            n_env += len(frame.centres)
            if n_env >= _BATCH:
                yield batch
                batch, n_env = [], 0
    if batch:
        yield batch


def _split(dH: NDArray[np.float64], frames: Sequence[Frame]) -> list[NDArray[np.float64]]:
    return np.split(dH, np.cumsum([len(frame.centres) for frame in frames])[:-1])


def _numbers(dH: NDArray[np.float64], thresholds: Sequence[float], frame: Frame | None = None) -> dict[str, Any]:
    """Return what is said of the dH of a frame, or of all."""
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


def _put(atoms: Any, frame: Frame, dH: NDArray[np.float64], numbers: dict[str, Any]) -> None:
    """Put dH into an ``ase.Atoms``: nan where an atom is no environment."""
    values = np.full(len(atoms), np.nan)
    values[frame.centres] = dH
    atoms.arrays["dH"] = values
    atoms.info |= {f"dH_{key}": value for key, value in numbers.items()}


def _texts(asked: Iterable[tuple[_Answer, Any]], done: list[_Answer], sources: Sequence[str]) -> Iterator[bytes]:
    """Yield the text of every frame, and keep its answer; raise, so that no file is left, if none has environments."""
    for answer, atoms in asked:
        if atoms is None:
            raise OutputError(
                f"{answer.row['file']} holds no frames to write: give a name that ends with .csv or .json"
            )
        done.append(answer)
        yield format_atoms(atoms, every_result=True)
    _with_environments(done, sources)
