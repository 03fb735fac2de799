"""quests-md learning-curve: the entropy of a growing share of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..information import learning_curve
from ..versions import versions
from ._bandwidths import bandwidth_option, resolve_bandwidths
from ._dataset import dataset_options, open_dataset
from ._progress import counter
from ._results import check_outputs, deliver, result_options, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve_command"]


def _fractions(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"numbers with commas between them, not {value!r}") from None


@click.command("learning-curve")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@bandwidth_option()
@click.option(
    "--fractions",
    default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    show_default=True,
    callback=_fractions,
    help="Shares of the environments, above 0 and at most 1.",
)
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Samples of each share.")
@click.option("--seed", default=0, show_default=True, help="Of the samples.")
@click.option("--replace", is_flag=True, help="Sample with replacement, as quests does.")
@dataset_options
@result_options
def learning_curve_command(
    sources: tuple[str, ...],
    bandwidth: float | str | None,
    fractions: tuple[float, ...],
    runs: int,
    seed: int,
    replace: bool,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute the entropy of random samples of a growing share of a dataset, in nats.

    Where it no longer grows, more data of the same kind add nothing. FILE is anything that ASE reads, with an
    optional slice (md.traj@::10); or one index (.qindex), or one array of own descriptors (.npy).
    """
    check_outputs(output, plot, overwrite)
    with counter() as progress:
        data = open_dataset(sources, **descriptor, threads=threads, progress=progress)
        (h,) = resolve_bandwidths(data, () if bandwidth is None else (bandwidth,))
        progress.begin("learning curve")
        drawn: dict[str, Any] = {"seed": seed, "replace": replace}
        curve = learning_curve(data.rows, fractions, runs, h, **drawn, threads=threads, report=progress.share)
    rows = [
        {
            "fraction": float(fraction),
            "sample": some.size,
            "entropy": some.mean,
            "std": some.std,
            "error": some.standard_error,
            "diversity": some.mean_diversity,
        }
        for fraction, some in zip(curve.fractions, curve.samples, strict=True)
    ]
    runs_of = [{**row, "entropies": some.entropies} for row, some in zip(rows, curve.samples, strict=True)]
    head = {**data.describe(), "bandwidth": h, "runs": runs, **drawn}
    result = {**head, "results": runs_of, "versions": versions()}

    def draw() -> Figure:
        from ..report import learning_curve as draw_curve

        return draw_curve(curve)

    deliver(rows, output, lambda path: write_result(path, result, rows), plot, draw)
