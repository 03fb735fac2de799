"""quests-md report: one page of a run, a dataset or an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..descriptors import DescriptorSpec
from ..errors import InputError, OutputError
from ..files import write_atomically
from ..frame import Frame
from ..index import Index
from ..report import dataset_page, run_page
from ..sources import describe_source
from .datasets import dataset_options, read_counted
from .results import show_progress

__all__ = ["report_command"]


@click.command("report")
@click.argument("sources", metavar="RUN_OR_DATASET...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file to write.")
@click.option("--index", "index_file", type=click.Path(path_type=Path), help="Compare with this index.")
@click.option("--group-key", metavar="KEY", help="Key of the frames' info that names their groups: a row for each.")
@click.option("--bandwidth", type=float, help="h in 1/Å.  [default: that of the index, else 0.015]")
@click.option("--worst", type=click.IntRange(1, 50), default=8, show_default=True, help="Environments to draw.")
@click.option("--overwrite", is_flag=True, help="Replace that file if it exists.")
@dataset_options
def report_command(
    sources: tuple[str, ...],
    output: Path,
    index_file: Path | None,
    group_key: str | None,
    bandwidth: float | None,
    worst: int,
    overwrite: bool,
    k: int | None,
    cutoff: float | None,
    species: str | None,
    threads: int | None,
) -> None:
    """Write one self-contained page about a run, a dataset or an index.

    RUN_OR_DATASET is the output folder of a watched run, or files that ASE reads, each with an optional slice, or one
    index. The page needs no network, and any browser shows it.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or give --overwrite")
    index = None if index_file is None else Index.open(index_file)
    folders = [source for source in sources if Path(source).is_dir()]
    if folders and len(sources) > 1:
        raise InputError(f"{folders[0]} is a folder: give the output of one run alone, or files of frames")
    if folders:
        if group_key is not None or any(value is not None for value in (bandwidth, k, cutoff, species)):
            raise InputError(
                f"{folders[0]} is a run, with descriptor and bandwidth of its own: --k, --cutoff, --species, "
                "--bandwidth and --group-key are for files of frames"
            )
        page = run_page(folders[0], index=index, worst=worst)
    else:
        wanted = {"k": k, "cutoff": cutoff, "species": species}
        page = _page_of_dataset(sources, group_key, wanted, bandwidth, index, worst, threads)
    write_atomically(output, lambda file: file.write(page.encode()))
    click.echo(f"{output}: {len(page.encode()) / 1e6:.2f} MB")


def _page_of_dataset(
    sources: Sequence[str],
    group_key: str | None,
    wanted: dict[str, Any],
    bandwidth: float | None,
    index: Index | None,
    worst: int,
    threads: int | None,
) -> str:
    if any(Path(source).suffix == ".npy" for source in sources):
        raise InputError("own descriptors have no atoms, nor frames: quests-md entropy says what they hold")
    title = ", ".join(Path(source).name for source in sources)
    indexes = [source for source in sources if Path(source).suffix == ".qindex"]
    frames: Index | list[Frame]
    with show_progress() as progress:
        if indexes:
            if len(sources) > 1 or group_key is not None:
                raise InputError(f"{indexes[0]} is a dataset of its own: give it alone, and without --group-key")
            described, frames = [], Index.open(indexes[0])
        else:
            described = [describe_source(source) for source in sources]
            frames = list(read_counted(sources, group_key, progress))
        progress.begin("computing kernel sums:")
        spec = _spec_of(wanted, frames if isinstance(frames, Index) else index)
        return dataset_page(
            frames, spec=spec, bandwidth=bandwidth, index=index, sources=described, title=title, worst=worst,
            threads=threads, report=progress.share,
        )  # fmt: skip


def _spec_of(wanted: dict[str, Any], index: Index | None) -> DescriptorSpec | None:
    """Return the descriptor that is asked for; None for that of the index, which must be the same."""
    if index is None:
        return DescriptorSpec(**{name: value for name, value in wanted.items() if value is not None})
    index.require(k=wanted["k"], cutoff=wanted["cutoff"])
    if wanted["species"] not in (None, index.spec.species):
        raise InputError(f'the index has species "{index.spec.species}", but "{wanted["species"]}" is asked for')
    return None
