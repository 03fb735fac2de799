"""quests-md compress and cutout: fewer frames, and smaller ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from .. import report
from ..compression import METHODS, Compression, compress
from ..errors import OutputError, SourceError
from ..files import write_atomically
from ..files.extxyz import FrameText, format_frame
from ..index import Index
from ..information import entropy as entropy_of
from ..machine import find_versions
from ..selection import Cutout, cutouts
from ..sources import ReadFrame, read_all
from .datasets import (
    FRAMES,
    NOT_FRAMES,
    Dataset,
    bandwidth_option,
    dataset_options,
    open_dataset,
    reading_options,
    resolve_bandwidths,
)
from .progress import Counter, show_progress
from .references import check_elements
from .results import Outputs, format_table, result_options, write_result
from .thresholds import THRESHOLD, resolve

__all__ = ["compress_command", "cutout_command"]


# -- compress ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """The place of a frame: its file and its number in it; and its text, if it is written."""

    file: str
    number: int
    text: FrameText | None


def _convert_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | float | None:
    """Convert an option: a number of frames to an int, a share of them (0.1 or 10%) to a float."""
    if value is None:
        return None
    try:
        if value.endswith("%"):
            return float(value[:-1]) / 100
        return int(value) if value.lstrip("+-").isdigit() else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number of frames nor a share such as 0.1 or 10%") from None


@click.command("compress")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--size", callback=_convert_size, metavar="N", help="Frames to choose: a number, or a share such as 0.1 or 10%."
)
@click.option("--entropy", type=float, metavar="NATS", help="Instead: choose until the frames have this entropy.")
@click.option(
    "--keep",
    type=click.FloatRange(0.0, min_open=True),
    metavar="SHARE",
    help="Instead: until they have this share of the entropy of all.",
)
@click.option("--method", default="msc", show_default=True, type=click.Choice(METHODS))
@click.option(
    "--reference",
    "references",
    metavar="FILE",
    multiple=True,
    help="What is known already, for msc. May be repeated.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of random, mean_farthest and kmeans."
)
@bandwidth_option()
@dataset_options
@reading_options()
@result_options(*FRAMES, ".json", ".csv")
def compress_command(
    sources: tuple[str, ...],
    reading: dict[str, Any],
    size: int | float | None,
    entropy: float | None,
    keep: float | None,
    method: Any,
    references: tuple[str, ...],
    seed: int,
    bandwidth: float | str | None,
    outputs: Outputs,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Choose few frames that keep the information of a dataset, by the minimum set cover of QUESTS or otherwise.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of own
    descriptors (.npy): each row of it is a frame, unless its shape is (frames, atoms, d). --reference takes the same.
    -o writes the chosen frames as they were read, in the order of the choice (.extxyz, .xyz); or a row for each chosen
    frame, with the entropy of this frame and all those chosen before it (.json, .csv).
    """
    outputs.check()
    if sum(value is not None for value in (size, entropy, keep)) != 1:
        raise click.UsageError("give one of --size, --entropy and --keep")
    are_frames = not any(Path(source).suffix in NOT_FRAMES for source in sources)
    if outputs.output is not None and outputs.output.suffix in FRAMES and not are_frames:
        raise OutputError(f"{sources[0]} holds no frames to write: give a name that ends with .json or .csv")
    with show_progress() as progress:
        same: dict[str, Any] = {"reading": reading, "threads": threads, "progress": progress}
        reference = open_dataset(references, **descriptor, **same) if references else None
        how = descriptor if reference is None or reference.spec is None else {"spec": reference.spec}
        data = open_dataset(sources, **how, **same)
        if reference is not None:
            check_elements(data.numbers, reference)
        h = _choose_bandwidth(bandwidth, data, reference)
        if keep is not None:
            progress.begin("entropy of all frames")
            entropy = keep * entropy_of(data.rows, h, threads=threads)
        progress.begin("choosing frames:")
        found = compress(
            data.rows,
            data.frame_offsets,
            size,
            method,
            entropy=entropy,
            bandwidth=h,
            reference=None if reference is None else reference.rows,
            seed=seed,
            threads=threads,
            report=lambda n: progress.tell(str(n)),
        )

        def write(path: Path) -> None:
            with_text = path.suffix in FRAMES
            places = _find_frames(sources, reading, data, found, with_text, progress) if are_frames else {}
            _write(path, data, reference, found, places, seed)

        outputs.deliver([_summarise(data, found)], write, lambda: report.compression(found, data.n_frames))


def _choose_bandwidth(asked: float | str | None, data: Dataset, reference: Dataset | None) -> float:
    """Return the bandwidth that is asked for, else that of an index among the two datasets, else the default."""
    if asked is None and data.bandwidth is None and reference is not None and reference.bandwidth is not None:
        return reference.bandwidth
    (h,) = resolve_bandwidths(data, () if asked is None else (asked,))
    return h


def _summarise(data: Dataset, found: Compression) -> dict[str, Any]:
    return {
        "frames": len(found.selected),
        "of": data.n_frames,
        "n_env": found.n_env,
        "of_env": data.n_env,
        "entropy": found.entropy,
        "diversity": found.diversity,
        "overlap": found.overlap,
    }


def _find_frames(
    sources: Iterable[str],
    reading: dict[str, Any],
    data: Dataset,
    found: Compression,
    with_text: bool,
    progress: Counter,
) -> dict[int, _Place]:
    """Return the places of the chosen frames, by their number in the dataset. The files are read once more.

    Raises
    ------
    SourceError
        The files have changed since the frames were chosen.
    """
    chosen = set(found.selected.tolist())
    places: dict[int, _Place] = {}
    sizes: list[int] = []
    progress.begin("reading what was chosen:")
    for source in sources:
        for number, one in enumerate(progress.count(read_all(source, **reading))):
            n = len(one.frame.centres)
            if n and len(sizes) in chosen:
                places[len(sizes)] = _Place(source, number, one.text if with_text else None)
            sizes += [n] if n else []
    if sizes != np.diff(data.frame_offsets).tolist():
        raise SourceError(f"{', '.join(sources)}: changed while frames were chosen from it: choose again")
    return places


def _write(
    output: Path, data: Dataset, reference: Dataset | None, found: Compression, places: dict[int, _Place], seed: int
) -> None:
    chosen = found.selected.tolist()
    if output.suffix in FRAMES:
        write_atomically(output, lambda file: file.writelines(_format_frames(places[frame].text for frame in chosen)))
        return
    growth = found.growth()
    rows = [
        {
            **({"file": places[frame].file, "frame": places[frame].number} if places else {"frame": frame}),
            "n_env": int(growth.n_env[i]),
            "entropy": float(growth.entropy[i]),
            "diversity": float(growth.diversity[i]),
            "overlap": float(growth.overlap[i]),
        }
        for i, frame in enumerate(chosen)
    ]
    how = {"method": found.method, "seed": seed, "bandwidth": found.bandwidth}
    described = {} if reference is None else {"reference": reference.describe()}
    result = {**data.describe(), **described, **how, "chosen": _summarise(data, found), "frames": rows}
    write_result(output, {**result, "versions": find_versions()}, rows)


def _format_frames(texts: Iterable[FrameText | None]) -> Iterator[bytes]:
    for text in texts:
        assert text is not None
        yield from text.format()


# -- cutout ------------------------------------------------------------------------------------------------------------


# The table of cut-outs: each heading, and the key of a cut-out's info. Its stoichiometry stands beside its frame's.
_COLUMNS = {
    "step": "step", "centre": "centre", "dH": "dH_max", "core": "n_core", "atoms": "composition",
    "of": "parent_composition", "removed": "removed", "filled": "filled", "dangling": "dangling",
}  # fmt: skip


@click.command("cutout")
@click.argument("frames")
@click.option("--index", "index_file", required=True, type=click.Path(path_type=Path), help="The index file.")
@click.option("--threshold", required=True, type=THRESHOLD, metavar="T",
              help="dH above which an atom is cut out: nats, or a rate (false_alarm=0.01).")  # fmt: skip
@click.option("--radius", required=True, type=float, help="Of the core, in Å; 0 is the worst atom alone.")
@click.option("--margin", type=float, help="Unchanged beyond the core, in Å.  [default: the index's cutoff]")
@click.option("--potential-range", type=float, help="Cutoff of the potential, in Å: the margin is at least twice that.")
@click.option("--shape", default="cell", show_default=True, type=click.Choice(["cell", "cluster"]))
@click.option("--vacuum", default=12.0, show_default=True, help="Between images where nothing is periodic, in Å.")
@click.option("--passivate", is_flag=True, help="Close the cut bonds of a cluster with hydrogens.")
@click.option("--most", type=click.IntRange(1), help="Largest number of cut-outs per frame.  [default: no limit]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The extended XYZ file to write.")
@click.option("--overwrite", is_flag=True, help="Replace that file if it exists.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options()
def cutout_command(
    frames: str,
    index_file: Path,
    output: Path,
    overwrite: bool,
    threads: int | None,
    reading: dict[str, Any],
    **options: Any,
) -> None:
    """Cut out the surroundings of the worst atoms of frames that are too large for an oracle.

    FRAMES is anything that ASE reads, with an optional slice: uq/candidates.extxyz, md.traj@-1. Only the forces
    on core atoms (column core) are fit to train on. Columns and keys that are not ours stay as they are, and mean what
    they mean in the whole frame; its energy, forces and stress are left out.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or give --overwrite")
    index = Index.open(index_file)
    options["threshold"] = resolve(options["threshold"], index)
    with show_progress() as progress:
        progress.say(f"cutting {frames}:")
        cuts = list(_cut(progress.count(read_all(frames, **reading)), index, threads, options))
    found = [cut for cut, _ in cuts]
    if not found:
        click.echo(f"no atom of {frames} is above {options['threshold']:g} nats: nothing to cut out")
        return
    write_atomically(output, lambda file: file.writelines(text for _, text in cuts))
    click.echo(format_table([{name: cut.info[key] for name, key in _COLUMNS.items()} for cut in found]))
    click.echo(f"{len(found)} cut-outs in {output}")


# What a frame says of itself as a whole, and a cut-out must not; its forces, too, wait for the oracle.
_OF_PARENT = (
    "species", "Z", "pos", "dH", "core", "forces", "energy", "free_energy", "stress", "Origin", "model_energy",
    "model_forces",
)  # fmt: skip


def _cut(
    frames: Iterable[ReadFrame], index: Index, threads: int | None, options: dict[str, Any]
) -> Iterator[tuple[Cutout, bytes]]:
    """Yield the cut-outs of frames, each with its text."""
    for one in frames:
        dH = index.delta_entropy(one.frame, threads)
        for cut in cutouts(one.frame, dH, index.spec.cutoff, index=index, **options):
            yield cut, _format_cutout(one, cut)


def _format_cutout(of: ReadFrame, cut: Cutout) -> bytes:
    """Format a cut-out, with what its frame holds besides: of others, and carried as it stands there."""
    # A step or a time that is no number, and ids that are names, are not ours.
    foreign = {key for key in ("step", "time") if isinstance(of.atoms.info.get(key), str)}
    info = {key: value for key, value in cut.info.items() if key not in foreign}
    text, ids = of.text, () if of.has_names else ("id", "ids")
    summary = [key for key, *_ in text.words if key.startswith("dH_")]
    columns, keys = text.take(cut.rows, {*_OF_PARENT, *ids, *summary, *info})
    return format_frame(cut.frame, cut.dH, {**info, **keys}, {"core": cut.core, **columns})
