"""The verbs of `quests-md thermo` that compute entropies of frames."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ..thermo import Entropies, entropy_difference, state_entropies, window_entropies
from ..versions import versions
from ._bandwidths import bandwidth_option, resolve_bandwidths
from ._dataset import Dataset, dataset_options, open_dataset
from ._progress import Counter, counter
from ._results import check_outputs, result_options, save_picture, table, write_result

__all__ = ["difference_command", "finish", "states_command", "windows_command"]


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what these verbs have in common."""
    options = (
        bandwidth_option(),
        click.option("--blocks", default=10, show_default=True, type=click.IntRange(2), help="Of frames, for errors."),
        click.option("--seed", default=0, show_default=True, help="Of what is drawn."),
        dataset_options,
        result_options,
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def _sample_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--size", type=click.IntRange(2), help="Environments in a sample.  [default: of the smallest]"),
        click.option("--runs", default=1, show_default=True, type=click.IntRange(1), help="Samples; H is their mean."),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@click.command("windows")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@click.option("--width", required=True, type=click.IntRange(1), help="Frames of a window.")
@click.option("--step", type=click.IntRange(1), help="Frames from one window to the next.  [default: the width]")
@_options
def windows_command(
    sources: tuple[str, ...],
    width: int,
    step: int | None,
    bandwidth: float | str | None,
    blocks: int,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    **descriptor: Any,
) -> None:
    """Compute the entropy along a trajectory, in windows of frames.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); frames in the order of time.
    """
    check_outputs(output, plot, overwrite)
    with counter() as progress:
        (data,), h = _open([sources], bandwidth, descriptor, progress)
        how: dict[str, Any] = {"blocks": blocks, "seed": seed, "threads": descriptor["threads"]}
        found = window_entropies(data.rows, data.frame_offsets, width, step, h, **how, report=progress.share)
    rows = [
        {"first": int(first), "last": int(last), **row}
        for first, last, row in zip(found.first, found.last, _rows(found.entropies), strict=True)
    ]
    finish({**data.describe(), **_settings(found.entropies, seed)}, rows, output)
    if plot is not None:
        from ..report import entropy_windows

        save_picture(entropy_windows(found), plot)


@click.command("states")
@click.argument("states", metavar="[NAME=]FILE...", nargs=-1, required=True)
@_sample_options
@_options
def states_command(
    states: tuple[str, ...],
    bandwidth: float | str | None,
    size: int | None,
    runs: int,
    blocks: int,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    **descriptor: Any,
) -> None:
    """Compute the entropy of each state, from as many environments of each.

    Every FILE is a state: anything that ASE reads, with an optional slice; one index, or one array of own descriptors.
    Where all names are numbers (300=md300.xyz) they are temperatures, and the result is what `compare` reads.
    """
    check_outputs(output, plot, overwrite)
    named = [_named(state) for state in states]
    how: dict[str, Any] = {"size": size, "runs": runs, "blocks": blocks, "seed": seed, "threads": descriptor["threads"]}
    with counter() as progress:
        data, h = _open([[source] for _, source in named], bandwidth, descriptor, progress)
        found = state_entropies([(one.rows, one.frame_offsets) for one in data], h, **how, report=progress.share)
    key, names = _keys([name for name, _ in named])
    rows = [{key: name, **row} for name, row in zip(names, _rows(found), strict=True)]
    finish({"states": [one.describe() for one in data], **_settings(found, seed)}, rows, output)
    if plot is not None:
        from ..report import entropy_states

        save_picture(entropy_states(found, names), plot)


@click.command("difference")
@click.argument("first")
@click.argument("second")
@_sample_options
@_options
def difference_command(
    first: str,
    second: str,
    bandwidth: float | str | None,
    size: int | None,
    runs: int,
    blocks: int,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    **descriptor: Any,
) -> None:
    """Compute how much larger the entropy of the phase SECOND is than that of FIRST.

    Both are as the files of `states`, and of runs that are independent.
    """
    check_outputs(output, plot, overwrite)
    how: dict[str, Any] = {"size": size, "runs": runs, "blocks": blocks, "seed": seed, "threads": descriptor["threads"]}
    with counter() as progress:
        data, h = _open([[first], [second]], bandwidth, descriptor, progress)
        one, two = ((part.rows, part.frame_offsets) for part in data)
        found = entropy_difference(one, two, h, **how, report=progress.share)
    names = [first, second]
    states = [{"state": name, **row} for name, row in zip(names, _rows(found.entropies), strict=True)]
    click.echo(table(states))
    rows = [{"first": first, "second": second, "difference": found.difference, "error": found.error}]
    described = [{**part.describe(), **row} for part, row in zip(data, states, strict=True)]
    finish({"states": described, **_settings(found.entropies, seed)}, rows, output)
    if plot is not None:
        from ..report import entropy_states

        save_picture(entropy_states(found.entropies, names), plot)


def finish(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], output: Path | None) -> None:
    """Print the rows of a result, and write it."""
    click.echo(table(rows))
    if output is not None:
        write_result(output, {**result, "results": rows, "versions": versions()}, rows)


def _open(
    states: Sequence[Sequence[str]], bandwidth: float | str | None, descriptor: dict[str, Any], progress: Counter
) -> tuple[list[Dataset], float]:
    """Return the states with one descriptor, and the bandwidth: of the first, where it is not given as a number."""
    data: list[Dataset] = []
    for sources in states:
        spec = data[0].spec if data else None
        how = descriptor if spec is None else {"spec": spec, "threads": descriptor["threads"]}
        data.append(open_dataset(sources, **how, progress=progress))
        _check_alike(data[0], states[0], data[-1], sources)
    (h,) = resolve_bandwidths(data[0], () if bandwidth is None else (bandwidth,))
    progress.begin("entropies")
    return data, h


def _check_alike(first: Dataset, its_sources: Sequence[str], other: Dataset, sources: Sequence[str]) -> None:
    """Raise `InputError` if the second is not of the own descriptors that the first is of; of frames it is, by now."""
    if first.spec is None and (other.spec is not None or other.rows.shape[1] != first.rows.shape[1]):
        raise InputError(
            f"{its_sources[0]} holds own descriptors of {first.rows.shape[1]} columns, and {sources[0]} other "
            "descriptors: their entropies cannot be compared"
        )


def _named(state: str) -> tuple[str, str]:
    """Return the name of a state and its source; a file whose own name has an equals sign has no other name."""
    name, equals, source = state.partition("=")
    return (name, source) if equals and not Path(state.rpartition("@")[0] or state).exists() else (state, state)


def _keys(names: list[str]) -> tuple[str, list[Any]]:
    """Return what the names of the states are, T if all are numbers, and the names."""
    try:
        return "T", [float(name) for name in names]
    except ValueError:
        return "state", names


def _rows(found: Entropies) -> list[dict[str, Any]]:
    cells = zip(found.entropy, found.error, found.blocks, strict=True)
    return [
        {"H": float(H), "H_error": float(error), "blocks": int(blocks), "n_env": found.size}
        for H, error, blocks in cells
    ]


def _settings(found: Entropies, seed: int) -> dict[str, Any]:
    return {
        "bandwidth": found.bandwidth,
        "size": found.size,
        "ceiling": found.ceiling,
        "runs": found.runs,
        "seed": seed,
    }
