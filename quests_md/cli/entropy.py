"""quests-md entropy, and quests-md diversity: what a dataset holds, in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from numpy.typing import NDArray

from ..comm import together
from ..information import Information, Sampled, information_at, sample_entropy
from ..versions import versions
from ._bandwidths import bandwidth_option, resolve_bandwidths
from ._dataset import ALL, dataset_options, open_dataset
from ._progress import counter
from ._ranks import ranks
from ._results import check_outputs, deliver, result_options, write_result
from ._rows import Scratch, scratch_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["entropy_command"]


@click.command("entropy")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@bandwidth_option(multiple=True)
@click.option("--group-key", metavar="KEY", help="A row for each group of frames, by this key of their info.")
@click.option("--sample", type=click.IntRange(2), metavar="SIZE", help="Of random samples of this many environments.")
@click.option("--runs", default=20, show_default=True, type=click.IntRange(2), help="Number of samples.")
@click.option("--seed", default=0, show_default=True, help="Of the samples.")
@click.option("--replace", is_flag=True, help="Sample with replacement, as quests does.")
@dataset_options
@scratch_option
@result_options
def entropy_command(
    sources: tuple[str, ...],
    bandwidths: tuple[float | str, ...],
    group_key: str | None,
    sample: int | None,
    runs: int,
    seed: int,
    replace: bool,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    scratch: Path | None,
    **descriptor: Any,
) -> None:
    """Compute entropy H, diversity D, information gap ln N − H and efficiency H / ln N of a dataset, in nats.

    One pass over all pairs of environments gives all of them: `entropy` and `diversity` are the same verb. FILE is
    anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of own
    descriptors (.npy). Under mpiexec the ranks share the work, and every digit is the same.
    """
    with ranks() as comm, Scratch(scratch, comm) as room:
        together(comm, lambda: check_outputs(output, plot, overwrite))
        with counter() as progress:
            data = open_dataset(
                sources, **descriptor, group_key=group_key, threads=threads, progress=progress, scratch=room
            )
            h = together(comm, lambda: resolve_bandwidths(data, bandwidths))
            how: dict[str, Any] = {"threads": threads, "comm": comm, "report": progress.share}
            results: dict[str, Sequence[Information | Sampled]] = {}
            parts = {} if group_key is None else dict(data.by_group())
            for name in (*parts, ALL):
                progress.begin("entropy" if group_key is None else f"entropy of {name}")
                rows = data.rows if name == ALL else data.rows[parts[name]]
                if sample is None:
                    results[name] = information_at(rows, h, **how)
                else:
                    drawn = {"seed": seed, "replace": replace}
                    results[name] = [_sample(rows, sample, runs, one, {**drawn, **how}) for one in h]
        of = {**data.describe(), **({"seed": seed, "replace": replace} if sample is not None else {})}
        together(comm, lambda: _tell(results, of, output, plot) if comm.rank == 0 else None)


def _tell(
    results: dict[str, Sequence[Information | Sampled]], of: dict[str, Any], output: Path | None, plot: Path | None
) -> None:
    groups = len(results) > 1
    found = [{**({"group": name} if groups else {}), **_row(one)} for name, ones in results.items() for one in ones]
    result = {**of, "results": found, "versions": versions()}
    deliver(found, output, lambda path: write_result(path, result, found), plot, lambda: _picture(results))


def _sample(rows: NDArray[Any], size: int, runs: int, bandwidth: float, how: dict[str, Any]) -> Sampled:
    if size >= len(rows) and not how["replace"]:  # of a small group all there is, once
        size, runs = len(rows), 1
    return sample_entropy(rows, size, runs, bandwidth, **how)


def _row(one: Information | Sampled) -> dict[str, Any]:
    if isinstance(one, Information):
        return {
            "bandwidth": one.bandwidth,
            "n_env": one.n_env,
            "entropy": one.entropy,
            "diversity": one.diversity,
            "information_gap": one.information_gap,
            "efficiency": one.efficiency,
        }
    most = math.log(one.size)
    return {
        "bandwidth": one.bandwidth,
        "n_env": one.n_env,
        "sample": one.size,
        "runs": len(one.entropies),
        "entropy": one.mean,
        "std": one.std,
        "error": one.standard_error,
        "diversity": one.mean_diversity,
        "diversity_std": one.std_diversity,
        "information_gap": most - one.mean,
        "efficiency": one.mean / most if one.size > 1 else 1.0,  # as of `Information`
    }


def _picture(results: dict[str, Sequence[Information | Sampled]]) -> Figure:
    from ..report import entropies, histogram

    first = results[ALL][0]
    if len(results) == len(results[ALL]) == 1 and isinstance(first, Information):
        return histogram(first.delta_entropy, against="the dataset itself")
    return entropies(results)
