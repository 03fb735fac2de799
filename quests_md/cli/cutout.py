"""quests-md cutout: small cells or clusters around the worst atoms of large frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..errors import OutputError
from ..files import write_atomically
from ..files.extxyz import format_frame
from ..index import Index
from ..selection import Cutout, cutouts
from ..sources import read_frames
from ._progress import counter

__all__ = ["cutout_command"]

_COLUMNS = (
    ("step", "step"), ("centre", "centre"), ("dH", "dH_max"), ("core", "n_core"), ("atoms", "composition"),
    ("of", "parent_composition"), ("removed", "removed"), ("filled", "filled"), ("dangling", "dangling"),
)  # fmt: skip


@click.command("cutout")
@click.argument("frames")
@click.option("--index", "index_file", required=True, type=click.Path(path_type=Path), help="The index file.")
@click.option("--threshold", required=True, type=float, help="dH (nats) above which an atom is cut out.")
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
def cutout_command(
    frames: str, index_file: Path, output: Path, overwrite: bool, threads: int | None, **options: Any
) -> None:
    """Cut out what surrounds the worst atoms of frames that are too large for an oracle.

    FRAMES is anything that ASE reads, with an optional slice: uq/candidates.extxyz, md.traj@-1. Only the forces
    on core atoms (column core) are fit to train on.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or give --overwrite")
    index = Index.open(index_file)
    with counter() as progress:
        progress.say(f"cutting {frames}:")
        found = list(_cut(progress.count(read_frames(frames)), index, threads, options))
    if not found:
        click.echo(f"no atom of {frames} is above {options['threshold']:g} nats: nothing to cut out")
        return
    texts = [format_frame(cut.frame, cut.dH, cut.info, {"core": cut.core}) for cut in found]
    write_atomically(output, lambda file: file.writelines(texts))
    click.echo(_table(found))
    click.echo(f"{len(found)} cut-outs in {output}")


def _cut(frames: Any, index: Index, threads: int | None, options: dict[str, Any]) -> Iterator[Cutout]:
    for frame in frames:
        dH = index.delta_entropy(frame, threads)
        yield from cutouts(frame, dH, index.spec.cutoff, index=index, **options)


def _table(found: list[Cutout]) -> str:
    """Return a row for each cut-out, its stoichiometry beside that of its frame."""
    rows = [[name for name, _ in _COLUMNS]]
    for cut in found:
        cells = [cut.info[key] for _, key in _COLUMNS]
        rows.append([f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells])
    widths = [max(len(row[c]) for row in rows) for c in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
