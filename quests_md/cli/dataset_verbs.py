"""quests-md bandwidth, entropy, diversity, overlap, learning-curve and report: what a dataset holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from .. import report
from ..comm import choose_threads, on_root, together
from ..descriptors import DescriptorSpec
from ..errors import InputError, OutputError
from ..files import write_atomically
from ..frame import Frame
from ..index import Index
from ..information import (
    DEFAULT_BANDWIDTH,
    Information,
    LearningCurve,
    Precision,
    Sampled,
    bandwidth_from_volume,
    information_at,
    learning_curve,
    likelihood_bandwidth,
    sample_entropy,
    suggest_bandwidth,
)
from ..machine import find_versions
from ..report._page import require_extra
from ..sources import MODEL_FORCES, describe_source, read_forces
from .datasets import (
    ALL,
    Dataset,
    bandwidth_option,
    compute_volume,
    dataset_options,
    describe_precision,
    open_dataset,
    precision_option,
    read_counted,
    reading_options,
    resolve_bandwidths,
    tell_precision,
)
from .progress import show_progress
from .references import OpenedReference, Others, open_reference, reference_options
from .results import Outputs, add_options, format_table, result_options, write_result
from .shared_work import Scratch, scratch_option, start_ranks
from .thresholds import resolve, thresholds_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bandwidth_command", "entropy_command", "learning_curve_command", "overlap_command", "report_command"]

_sampling_options = add_options(
    click.option("--seed", default=0, show_default=True, help="Of the samples."),
    click.option("--replace", is_flag=True, help="Sample with replacement, as quests does."),
)
_SPREAD = 10_000  # most rows from which the spread of own descriptors is computed


# -- bandwidth ---------------------------------------------------------------------------------------------------------


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
@reading_options()
@result_options()
def bandwidth_command(
    sources: tuple[str, ...],
    volume: float | None,
    sample: int,
    seed: int,
    outputs: Outputs,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute bandwidths, in 1/Å: QUESTS's rule from the volume per atom, both forms, and two from the environments.

    `nearest` is how far an environment is from the nearest one of other frames: take it where the volume has no rule
    (several elements apart, molecules, own descriptors). `likelihood` makes every environment most likely, given the
    others but its copies; it is no scale for dH. FILE is anything that ASE reads, with an optional slice
    (md.traj@::10); or one index (.qindex), or one array of own descriptors (.npy).
    """
    outputs.check()
    if (volume is None) == (not sources):
        raise click.UsageError("give either FILE... or --volume V")
    if volume is not None:
        if outputs.plot is not None:
            raise click.UsageError("--plot draws the likelihood, which needs FILE...")
        rows = _compute_by_volume(volume)
        click.echo(format_table(rows))
        if outputs.output is not None:
            write_result(outputs.output, {"volume": volume, "results": rows, "versions": find_versions()}, rows)
        return
    with show_progress() as progress:
        data = open_dataset(sources, **descriptor, threads=threads, progress=progress)
        progress.begin("likelihood")
        choice = likelihood_bandwidth(
            data.rows, _choose_bandwidths(data), size=sample, seed=seed, report=progress.share
        )
    rows, reason = _make_rows(data, choice.bandwidth)
    nearest = [row["bandwidth"] for row in rows if row["rule"] == "nearest"]
    if reason:
        advice = f"; recommended: --bandwidth {nearest[0]:.2g}, the nearest one" if nearest else ""
        click.echo(f"quests-md: warning: no volume rule: {reason}{advice}", err=True)
    if choice.at_edge:
        click.echo("quests-md: warning: the most likely bandwidth lies beyond those that were tried", err=True)
    result = {**data.describe(), "results": rows, "likelihood": asdict(choice), "versions": find_versions()}

    others = {row["rule"]: row["bandwidth"] for row in rows[:-1]}
    write = functools.partial(write_result, result=result, rows=rows)
    outputs.deliver(rows, write, lambda: report.likelihood(choice, others))


def _choose_bandwidths(data: Dataset) -> Sequence[float] | None:
    """Return bandwidths to try: for own descriptors, whose unit is unknown, shares of their spread."""
    if data.spec is not None:
        return None
    some = np.asarray(data.rows[:: -(-len(data.rows) // _SPREAD)], np.float64)
    spread = float(np.sqrt(2.0 * some.var(axis=0).sum()))
    return (np.geomspace(1e-3, 1.0, 41) * spread).tolist() if spread > 0.0 else None


def _compute_by_volume(volume: float) -> list[dict[str, Any]]:
    return [
        {"rule": "volume, gaussian", "bandwidth": bandwidth_from_volume(volume, "gaussian")},
        {"rule": "volume, cutoff", "bandwidth": bandwidth_from_volume(volume, "cutoff")},
    ]


def _make_rows(data: Dataset, most_likely: float) -> tuple[list[dict[str, Any]], str]:
    """Return a row for each rule, and the reason if the rule by volume cannot be used."""
    rows: list[dict[str, Any]] = []
    reason = ""
    if data.spec is not None:
        rows.append({"rule": "default", "bandwidth": DEFAULT_BANDWIDTH})
    if data.bandwidth is not None:
        rows.append({"rule": "of the index", "bandwidth": data.bandwidth})
    elif data.spec is not None:
        try:
            rows += _compute_by_volume(compute_volume(data))
        except InputError as error:
            reason = str(error)
    frames = np.repeat(np.arange(data.n_frames), np.diff(data.frame_offsets))
    nearest = suggest_bandwidth(data.rows, frames)
    rows += [] if nearest is None else [{"rule": "nearest", "bandwidth": nearest}]
    return [*rows, {"rule": "likelihood", "bandwidth": most_likely}], reason


# -- entropy and diversity ---------------------------------------------------------------------------------------------


@click.command("entropy")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@bandwidth_option(multiple=True)
@click.option("--group-key", metavar="KEY", help="A row for each group of frames, by this key of their info.")
@click.option("--sample", type=click.IntRange(2), metavar="SIZE", help="Of random samples of this many environments.")
@click.option("--runs", default=20, show_default=True, type=click.IntRange(2), help="Number of samples.")
@_sampling_options
@precision_option
@dataset_options
@reading_options()
@scratch_option
@result_options()
def entropy_command(
    sources: tuple[str, ...],
    bandwidths: tuple[float | str, ...],
    group_key: str | None,
    sample: int | None,
    runs: int,
    seed: int,
    replace: bool,
    precision: Precision,
    outputs: Outputs,
    threads: int | None,
    scratch: Path | None,
    **descriptor: Any,
) -> None:
    """Compute entropy H, diversity D, information gap ln N − H and efficiency H / ln N of a dataset, in nats.

    One pass over all pairs of environments gives all of them: `entropy` and `diversity` are the same verb. FILE is
    anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of own
    descriptors (.npy). Under mpiexec the ranks share the work, and every digit is the same.
    """
    with start_ranks() as comm, Scratch(scratch, comm) as room:
        together(comm, outputs.check)
        with show_progress() as progress:
            data = open_dataset(
                sources, **descriptor, group_key=group_key, threads=threads, progress=progress, scratch=room
            )
            h = together(comm, lambda: resolve_bandwidths(data, bandwidths))
            how: dict[str, Any] = {"precision": precision, "threads": threads, "comm": comm, "report": progress.share}
            results: dict[str, Sequence[Information | Sampled]] = {}
            parts = {} if group_key is None else dict(data.iterate_groups())
            for name in (*parts, ALL):
                progress.begin("entropy" if group_key is None else f"entropy of {name}")
                rows = data.rows if name == ALL else data.rows[parts[name]]
                if sample is None:
                    results[name] = information_at(rows, h, **how)
                else:
                    drawn = {"seed": seed, "replace": replace}
                    results[name] = [_sample(rows, sample, runs, one, {**drawn, **how}) for one in h]
        of = {**data.describe(), **({"seed": seed, "replace": replace} if sample is not None else {})}
        on_root(comm, lambda: _tell(results, of, precision, outputs))


def _tell(
    results: dict[str, Sequence[Information | Sampled]], of: dict[str, Any], precision: Precision, outputs: Outputs
) -> None:
    groups = len(results) > 1
    found = [
        {**({"group": name} if groups else {}), **_make_row(one)} for name, ones in results.items() for one in ones
    ]
    result = {**of, **describe_precision(precision), "results": found, "versions": find_versions()}
    outputs.deliver(found, lambda path: write_result(path, result, found), lambda: _draw(results))
    tell_precision(precision)


def _sample(rows: NDArray[Any], size: int, runs: int, bandwidth: float, how: dict[str, Any]) -> Sampled:
    if size >= len(rows) and not how["replace"]:  # take a small group whole, once
        size, runs = len(rows), 1
    return sample_entropy(rows, size, runs, bandwidth, **how)


def _make_row(one: Information | Sampled) -> dict[str, Any]:
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
        "efficiency": one.mean / most if one.size > 1 else 1.0,  # as in `Information`
    }


def _draw(results: dict[str, Sequence[Information | Sampled]]) -> Figure:
    first = results[ALL][0]
    if len(results) == len(results[ALL]) == 1 and isinstance(first, Information):
        return report.histogram(first.delta_entropy, against="the dataset itself")
    return report.entropies(results)


# -- overlap -----------------------------------------------------------------------------------------------------------


@click.command("overlap")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@reference_options
@click.option("--others", is_flag=True, help="Instead: compare each group with all the other groups of FILE.")
@bandwidth_option()
@thresholds_option("dH below which an environment is covered. May be repeated.", 1e-5)
@click.option("--group-key", metavar="KEY", help="A row for each group of frames, by this key of their info.")
@precision_option
@dataset_options
@reading_options()
@result_options()
def overlap_command(
    sources: tuple[str, ...],
    index_file: str | None,
    references: tuple[str, ...],
    others: bool,
    bandwidth: float | str | None,
    thresholds: tuple[Any, ...],
    group_key: str | None,
    precision: Precision,
    outputs: Outputs,
    threads: int | None,
    reading: dict[str, Any],
    **descriptor: Any,
) -> None:
    """Compute the fraction of environments whose dH against a reference is below a threshold.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); or one index (.qindex), or one array of
    own descriptors (.npy); so is what --reference takes. With --others a group with a small overlap has much that no
    other group has. Under mpiexec the ranks share the work, and the numbers are the same. They are the same in single
    precision, too: a dH near a threshold is computed again in double.
    """
    if others and (group_key is None or index_file is not None or references):
        raise click.UsageError("--others compares each group with the others: give --group-key, and no reference")
    with start_ranks() as comm, Scratch(None, comm) as room:
        together(comm, outputs.check)
        with show_progress() as progress:
            how: dict[str, Any] = {"threads": threads, "progress": progress, "scratch": room, "group_key": group_key}
            reference: OpenedReference | Others
            if others:
                data = open_dataset(sources, **descriptor, **how, reading=reading)
                (h,) = resolve_bandwidths(data, () if bandwidth is None else (bandwidth,))
                reference = Others(data, h, choose_threads(comm, threads), precision)
            else:
                reference = open_reference(
                    index_file, references, bandwidth, descriptor, reading, threads, precision, progress, room
                )
                like = descriptor if reference.spec is None else {"spec": reference.spec}
                data = open_dataset(sources, **like, **how, reading=reading)
            limits = together(comm, lambda: [resolve(each, reference.index) for each in thresholds])
            progress.begin("dH")
            dH = reference.delta_entropy(data.rows, data.numbers, limits, comm)
        on_root(comm, lambda: _tell_overlap(data, reference, dH, limits, group_key is not None, outputs))


def _tell_overlap(
    data: Dataset,
    reference: OpenedReference | Others,
    dH: NDArray[np.float64],
    thresholds: Sequence[float],
    grouped: bool,
    outputs: Outputs,
) -> None:
    parts = [({"group": name}, dH[which]) for name, which in data.iterate_groups()] if grouped else []
    parts.append(({"group": ALL} if grouped else {}, dH))
    rows = [
        {**group, "threshold": threshold, "n_env": len(some), "overlap": float(np.mean(some < threshold))}
        for group, some in parts
        for threshold in thresholds
    ]
    of = {**data.describe(), "reference": reference.describe(), **describe_precision(reference.precision)}
    result = {**of, "results": rows, "versions": find_versions()}

    write = functools.partial(write_result, result=result, rows=rows)
    outputs.deliver(rows, write, lambda: report.histogram(dH, thresholds))
    tell_precision(reference.precision)


# -- learning-curve ----------------------------------------------------------------------------------------------------


def _convert_fractions(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
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
    callback=_convert_fractions,
    help="Shares of the environments, above 0 and at most 1.",
)
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Samples of each share.")
@_sampling_options
@precision_option
@dataset_options
@reading_options()
@result_options()
def learning_curve_command(
    sources: tuple[str, ...],
    bandwidth: float | str | None,
    precision: Precision,
    fractions: tuple[float, ...],
    runs: int,
    seed: int,
    replace: bool,
    outputs: Outputs,
    threads: int | None,
    **descriptor: Any,
) -> None:
    """Compute the entropy of random samples of a growing share of a dataset, in nats.

    Where it no longer grows, more data of the same kind add nothing. FILE is anything that ASE reads, with an
    optional slice (md.traj@::10); or one index (.qindex), or one array of own descriptors (.npy). Under mpiexec the
    ranks share the work, and every digit is the same.
    """
    drawn: dict[str, Any] = {"seed": seed, "replace": replace}
    with start_ranks() as comm, Scratch(None, comm) as room:
        together(comm, outputs.check)
        with show_progress() as progress:
            data = open_dataset(sources, **descriptor, threads=threads, progress=progress, scratch=room)
            (h,) = resolve_bandwidths(data, () if bandwidth is None else (bandwidth,))
            progress.begin("learning curve")
            how: dict[str, Any] = {"precision": precision, "threads": threads, "comm": comm, "report": progress.share}
            curve = learning_curve(data.rows, fractions, runs, h, **drawn, **how)
        of = {**data.describe(), "bandwidth": h, "runs": runs, **drawn, **describe_precision(precision)}
        on_root(comm, lambda: _tell_curve(curve, of, precision, outputs))


def _tell_curve(curve: LearningCurve, of: dict[str, Any], precision: Precision, outputs: Outputs) -> None:
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
    result = {**of, "results": runs_of, "versions": find_versions()}

    write = functools.partial(write_result, result=result, rows=rows)
    outputs.deliver(rows, write, lambda: report.learning_curve(curve))
    tell_precision(precision)


# -- report ------------------------------------------------------------------------------------------------------------


@click.command("report")
@click.argument("sources", metavar="RUN_OR_DATASET...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file to write.")
@click.option("--index", "index_file", type=click.Path(path_type=Path), help="Compare with this index.")
@click.option("--group-key", metavar="KEY", help="Key of the frames' info that names their groups: a row for each.")
@click.option("--bandwidth", type=float, help="h in 1/Å.  [default: that of the index, else 0.015]")
@click.option("--worst", type=click.IntRange(1, 50), default=8, show_default=True, help="Environments to draw.")
@click.option("--errors", "with_errors", is_flag=True, help="The frames hold a model's forces: compare force errors.")
@click.option("--model-forces-key", "model_key", metavar="KEY",
              help=f"Name of the model's forces, for --errors.  [default: {MODEL_FORCES}]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace that file if it exists.")
@dataset_options
@reading_options("forces")
def report_command(
    sources: tuple[str, ...],
    output: Path,
    index_file: Path | None,
    group_key: str | None,
    bandwidth: float | None,
    worst: int,
    with_errors: bool,
    model_key: str | None,
    overwrite: bool,
    k: int | None,
    cutoff: float | None,
    species: str | None,
    threads: int | None,
    reading: dict[str, Any],
) -> None:
    """Write one self-contained page about a run, a dataset or an index.

    RUN_OR_DATASET is the output folder of a watched run, or files that ASE reads, each with an optional slice, or one
    index. The page needs no network, and any browser shows it.
    """
    require_extra()
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or give --overwrite")
    if model_key is not None and not with_errors:
        raise click.UsageError("--model-forces-key names forces that --errors compares: give --errors, too")
    index = None if index_file is None else Index.open(index_file)
    folders = [source for source in sources if Path(source).is_dir()]
    if folders and len(sources) > 1:
        raise InputError(f"{folders[0]} is a folder: give the output of one run alone, or files of frames")
    if folders:
        if group_key is not None or with_errors or any(value is not None for value in (bandwidth, k, cutoff, species)):
            raise InputError(
                f"{folders[0]} is a run, with descriptor and bandwidth of its own: --k, --cutoff, --species, "
                "--bandwidth, --group-key and --errors are for files of frames"
            )
        page = report.run_page(folders[0], index=index, worst=worst)
    else:
        wanted = {"k": k, "cutoff": cutoff, "species": species}
        how: dict[str, Any] = {"bandwidth": bandwidth, "index": index, "worst": worst, "threads": threads}
        model_key = model_key or MODEL_FORCES if with_errors else None
        page = _make_dataset_page(sources, group_key, wanted, how, reading, model_key)
    write_atomically(output, lambda file: file.write(page.encode()))
    click.echo(f"{output}: {len(page.encode()) / 1e6:.2f} MB")


def _make_dataset_page(
    sources: Sequence[str],
    group_key: str | None,
    wanted: dict[str, Any],
    how: dict[str, Any],
    reading: dict[str, Any],
    model_key: str | None,
) -> str:
    """Return the page. `model_key` names the model's forces; None: no force errors are compared."""
    if any(Path(source).suffix == ".npy" for source in sources):
        raise InputError("own descriptors have no atoms, nor frames: quests-md entropy says what they hold")
    title = ", ".join(Path(source).name for source in sources)
    indexes = [source for source in sources if Path(source).suffix == ".qindex"]
    frames: Index | list[Frame]
    with show_progress() as progress:
        if indexes:
            if len(sources) > 1 or group_key is not None or model_key is not None:
                raise InputError(
                    f"{indexes[0]} is a dataset of its own: give it alone, and without --group-key and --errors"
                )
            described, frames = [], Index.open(indexes[0])
        else:
            described = [describe_source(source) for source in sources]
            if model_key is not None:
                frames, how["errors"] = _read_errors(sources, group_key, model_key, reading)
            else:
                plain = {name: value for name, value in reading.items() if name != "forces_key"}
                frames = list(read_counted(sources, group_key, progress, plain))
        progress.begin("computing kernel sums:")
        spec = _choose_spec(wanted, frames if isinstance(frames, Index) else how["index"])
        return report.dataset_page(frames, spec=spec, sources=described, title=title, report=progress.share, **how)


def _read_errors(
    sources: Sequence[str], group_key: str | None, model_key: str, reading: dict[str, Any]
) -> tuple[list[Frame], list[NDArray[np.float64]]]:
    """Return labelled frames, and the force errors of each. Refuse forces of a model in another unit."""
    from ..training import check_units

    read = [one for source in sources for one in read_forces(source, group_key, model_key, **reading)]
    model = [one.model for one in read if one.model is not None]
    check_units(np.concatenate([one.oracle for one in read]), np.concatenate(model))
    return [one.frame for one in read], [one.errors() for one in read]


def _choose_spec(wanted: dict[str, Any], index: Index | None) -> DescriptorSpec | None:
    """Return the descriptor that is asked for; None for that of the index, which must be the same."""
    if index is None:
        return DescriptorSpec(**{name: value for name, value in wanted.items() if value is not None})
    index.require(k=wanted["k"], cutoff=wanted["cutoff"])
    if wanted["species"] not in (None, index.spec.species):
        raise InputError(f'the index has species "{index.spec.species}", but "{wanted["species"]}" is asked for')
    return None
