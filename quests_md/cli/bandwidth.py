"""quests-md bandwidth: which bandwidth for a dataset, by the volume per atom and by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..errors import InputError
from ..information import DEFAULT_BANDWIDTH, bandwidth_from_volume, likelihood_bandwidth
from ..versions import versions
from ._bandwidths import volume_of
from ._dataset import Dataset, dataset_options, open_dataset
from ._progress import counter
from ._results import check_outputs, deliver, result_options, table, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bandwidth_command"]

_SPREAD = 10_000  # rows, at most, that the spread of own descriptors is taken from


@click.command("bandwidth")
@click.argument("sources", metavar="[FILE...]", nargs=-1)
@click.option("--volume", type=float, help="Volume per atom in Å³, instead of files.")
@click.option(
    "--sample",
    default=1000,
    show_default=True,
    type=click.IntRange(2),
    metavar="SIZE",
    help="Environments whose likelihood is computed.",
)
@click.option("--seed", default=0, show_default=True, help="Of the sample.")
@dataset_options
@result_options
def bandwidth_command(
    sources: tuple[str, ...],
    volume: float | None,
    sample: int,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute bandwidths, in 1/Å: QUESTS's rule from the volume per atom, both forms, and the most likely one.

    The likelihood is that of every environment, given all the others but its copies. FILE is anything that ASE reads,
    with an optional slice (md.traj@::10); or one index (.qindex), or one array of own descriptors (.npy).
    """
    check_outputs(output, plot, overwrite)
    if (volume is None) == (not sources):
        raise click.UsageError("give either FILE... or --volume V")
    if volume is not None:
        if plot is not None:
            raise click.UsageError("--plot draws the likelihood, which needs FILE...")
        rows = _by_volume(volume)
        click.echo(table(rows))
        if output is not None:
            write_result(output, {"volume": volume, "results": rows, "versions": versions()}, rows)
        return
    with counter() as progress:
        data = open_dataset(sources, **descriptor, threads=threads, progress=progress)
        progress.begin("likelihood")
        choice = likelihood_bandwidth(data.rows, _tried(data), size=sample, seed=seed, report=progress.share)
    rows, reason = _rows(data, choice.bandwidth)
    if reason:
        click.echo(f"quests-md: warning: no volume rule: {reason}", err=True)
    if choice.at_edge:
        click.echo("quests-md: warning: the most likely bandwidth lies beyond those that were tried", err=True)
    result = {**data.describe(), "results": rows, "likelihood": asdict(choice), "versions": versions()}

    def draw() -> Figure:
        from ..report import likelihood

        return likelihood(choice, {row["rule"]: row["bandwidth"] for row in rows[:-1]})

    deliver(rows, output, lambda path: write_result(path, result, rows), plot, draw)


def _tried(data: Dataset) -> Sequence[float] | None:
    """Return bandwidths to try: of own descriptors shares of their spread, for their unit is not known."""
    if data.spec is not None:
        return None
    some = np.asarray(data.rows[:: -(-len(data.rows) // _SPREAD)], np.float64)
    spread = float(np.sqrt(2.0 * some.var(axis=0).sum()))
    return (np.geomspace(1e-3, 1.0, 41) * spread).tolist() if spread > 0.0 else None


def _by_volume(volume: float) -> list[dict[str, Any]]:
    return [
        {"rule": "volume, gaussian", "bandwidth": bandwidth_from_volume(volume, "gaussian")},
        {"rule": "volume, cutoff", "bandwidth": bandwidth_from_volume(volume, "cutoff")},
    ]


def _rows(data: Dataset, most_likely: float) -> tuple[list[dict[str, Any]], str]:
    """Return a row for each rule, and the reason where the rule by volume cannot be used."""
    rows: list[dict[str, Any]] = []
    reason = ""
    if data.spec is not None:
        rows.append({"rule": "default", "bandwidth": DEFAULT_BANDWIDTH})
    if data.bandwidth is not None:
        rows.append({"rule": "of the index", "bandwidth": data.bandwidth})
    elif data.spec is not None:
        try:
            rows += _by_volume(volume_of(data))
        except InputError as error:
            reason = str(error)
    return [*rows, {"rule": "likelihood", "bandwidth": most_likely}], reason
