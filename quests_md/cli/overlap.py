"""quests-md overlap: what share of a dataset a reference covers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..versions import versions
from ._bandwidths import bandwidth_option
from ._dataset import ALL, dataset_options, open_dataset
from ._progress import counter
from ._reference import open_reference, reference_options, thresholds_option
from ._results import check_outputs, deliver, result_options, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overlap_command"]


@click.command("overlap")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@reference_options
@bandwidth_option()
@thresholds_option("dH (nats) below which an environment is covered. May be repeated.", 1e-5)
@click.option("--group-key", metavar="KEY", help="A row for each group of frames, by this key of their info.")
@dataset_options
@result_options
def overlap_command(
    sources: tuple[str, ...],
    index_file: str | None,
    references: tuple[str, ...],
    bandwidth: float | str | None,
    thresholds: tuple[float, ...],
    group_key: str | None,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute the fraction of environments whose dH against a reference is below a threshold.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of
    own descriptors (.npy); so is what --reference takes.
    """
    check_outputs(output, plot, overwrite)
    with counter() as progress:
        known = open_reference(index_file, references, bandwidth, descriptor, threads, progress)
        how = descriptor if known.spec is None else {"spec": known.spec}
        data = open_dataset(sources, **how, group_key=group_key, threads=threads, progress=progress)
        progress.begin("dH")
        dH = known.delta_entropy(data.rows, data.numbers)
    parts = [({}, dH)] if group_key is None else [({"group": name}, dH[which]) for name, which in data.by_group()]
    if group_key is not None:
        parts.append(({"group": ALL}, dH))
    rows = [
        {**group, "threshold": threshold, "n_env": len(some), "overlap": float(np.mean(some < threshold))}
        for group, some in parts
        for threshold in thresholds
    ]
    result = {**data.describe(), "reference": known.describe(), "results": rows, "versions": versions()}

    def draw() -> Figure:
        from ..report import histogram

        return histogram(dH, thresholds)

    deliver(rows, output, lambda path: write_result(path, result, rows), plot, draw)
