"""quests-md dh: dH of the environments of frames against a reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from ..extxyz import format_atoms
from ..files import write_atomically
from ..frame import Frame
from ..sources import frame_of, read_atoms
from ..versions import versions
from ._bandwidths import bandwidth_option
from ._dataset import NOT_FRAMES, dataset_options, open_dataset
from ._progress import Counter, counter
from ._reference import Known, open_reference, reference_options
from ._results import check_outputs, result_options, save_picture, table, write_result

__all__ = ["dh_command"]

_FRAMES = (".xyz", ".extxyz")
_BATCH = 4096  # environments that are asked about at a time, at least
_OVERLAP = 1e-5  # nats; the threshold of quests overlap


@dataclass(frozen=True)
class _Answer:
    """The dH (n_env,) of one frame, in nats, and what is said of it."""

    row: dict[str, Any]
    dH: NDArray[np.float64]


@click.command("dh")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@reference_options
@bandwidth_option()
@click.option(
    "--threshold", "thresholds", multiple=True, type=float, help="Report the fraction above this dH. May be repeated."
)
@dataset_options
@result_options
def dh_command(
    sources: tuple[str, ...],
    index_file: str | None,
    references: tuple[str, ...],
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
        known = open_reference(index_file, references, bandwidth, descriptor, threads, progress)
        asked = _ask(sources, known, thresholds, descriptor, progress)
        if output is not None and suffix in _FRAMES:
            done: list[_Answer] = []
            write_atomically(output, lambda file: file.writelines(_texts(asked, done)))
        else:
            done = [answer for answer, _ in asked]
    done = [answer for answer in done if len(answer.dH)]
    if not done:
        raise InputError(f"{', '.join(sources)}: no environments in them: the frames hold no atoms")
    values = np.concatenate([answer.dH for answer in done])
    summary = {"n_frames": len(done), **_numbers(values, thresholds), "overlap": float(np.mean(values < _OVERLAP))}
    click.echo(table([summary]))
    if output is not None and suffix in (".csv", ".json"):
        head = {"sources": list(sources), "reference": known.describe(), "thresholds": list(thresholds)}
        rows = [answer.row for answer in done]
        write_result(output, {**head, **summary, "frames": rows, "versions": versions()}, rows)
    elif output is not None and suffix == ".npy":
        write_atomically(output, lambda file: np.save(file, values))
    if plot is not None:
        from ..report import histogram

        offsets = np.cumsum([0] + [len(answer.dH) for answer in done])
        save_picture(histogram(values, thresholds, frame_offsets=offsets), plot)


def _ask(
    sources: Sequence[str],
    known: Known,
    thresholds: Sequence[float],
    descriptor: dict[str, Any],
    progress: Counter,
) -> Iterator[tuple[_Answer, Any]]:
    """Yield the answer for every frame, and the frame as ``ase.Atoms`` with dH in it; None of other sources."""
    if Path(sources[0]).suffix in NOT_FRAMES:
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
        numbers = np.concatenate([frame.numbers for frame in frames])
        dH = known.delta_entropy(known.spec.compute(frames, known.threads), numbers)
        for (source, number, atoms, frame), some in zip(batch, _split(dH, frames), strict=True):
            row = {"file": source, "frame": number, "step": frame.step, "time": frame.time}
            numbers_ = _numbers(some, thresholds, frame)
            _put(atoms, frame, some, numbers_)
            yield _Answer({**row, **numbers_}, some), atoms


def _batches(sources: Sequence[str], progress: Counter) -> Iterator[list[tuple[str, int, Any, Frame]]]:
    """Yield frames, some at a time, with their file and their number in it: the threads need much to do."""
    batch, n_env = [], 0
    for source in sources:
        progress.say(f"dH of {source}:")
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


def _texts(asked: Iterable[tuple[_Answer, Any]], done: list[_Answer]) -> Iterator[bytes]:
    """Yield the text of every frame, and keep its answer."""
    for answer, atoms in asked:
        if atoms is None:
            raise OutputError(
                f"{answer.row['file']} holds no frames to write: give a name that ends with .csv or .json"
            )
        done.append(answer)
        yield format_atoms(atoms, every_result=True)
