"""quests-md index: build, extend, calibrate, residuals, info, verify."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, choose_threads, on_root, together
from ..descriptors import DescriptorSpec
from ..errors import CalibrationError, IndexFileError, InputError, OutputError
from ..frame import Frame
from ..index import (
    HELD_OUT,
    ORIGINS,
    Index,
    Residuals,
    calibrate,
    fit_error_bound,
    fit_local_bound,
    mean_volume,
    volume_per_atom,
)
from ..information import DEFAULT_BANDWIDTH, suggest_bandwidth
from ..labelling import Oracle
from ..sources import (
    ReadForces,
    describe_source,
    read_descriptors,
    read_forces,
)
from .calculators import model_options, open_model
from .datasets import convert_bandwidth, read_counted, reading_options, refuse_no_bandwidth, refuse_other_frames
from .index_facts import describe_index, format_index, format_source, list_facts
from .progress import Counter, show_progress
from .results import format_facts
from .shared_work import start_ranks

__all__ = ["index_group"]

_ORIGINS = {origin.replace(" ", "-"): origin for origin in ORIGINS}  # by what is typed


@click.group("index")
def index_group() -> None:
    """Build, extend, show and verify the index of a reference."""


# -- build and extend --------------------------------------------------------------------------------------------------


@index_group.command("build")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The index file to write.")
@click.option("--k", type=int, help="Number of nearest neighbours.  [default: 32]")
@click.option("--cutoff", type=float, help="Radius of an environment, in Å.  [default: 5.0]")
@click.option(
    "--species",
    metavar="CHOICE",
    help="How elements enter: neighbours, full, centre or ignore; must be given for two or more.",
)
@click.option(
    "--bandwidth",
    type=convert_bandwidth,
    metavar="H",
    help="h in 1/Å, or auto: by the volume per atom.  [default: 0.015]",
)
@click.option("--name", help="What own descriptors are, for people.")
@click.option("--group-key", metavar="KEY", help="Key of the frames' info that names where each came from.")
@click.option("--calibrate/--no-calibrate", "calibrated", default=True, help="Make a calibration, too.  [default: yes]")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options()
def build(
    sources: tuple[str, ...],
    output: Path,
    k: int | None,
    cutoff: float | None,
    species: str | None,
    bandwidth: float | str | None,
    name: str | None,
    group_key: str | None,
    calibrated: bool,
    threads: int | None,
    reading: dict[str, Any],
) -> None:
    """Build an index of the frames of one or more files.

    FILE is anything that ASE reads, with an optional slice: ref.xyz, md.traj@100:, md.traj@0:100:2. Or it holds own
    descriptors, as numpy.save writes them: features.npy, of one frame (n, d), or of frames with as many atoms each
    (frames, atoms, d). These need --bandwidth, in their own unit. Under mpiexec the ranks share the work, and the index
    is the same.
    """
    started = time.perf_counter()
    asked: dict[str, Any] = {"k": k, "cutoff": cutoff, "species": species}
    with start_ranks() as comm:
        threads = choose_threads(comm, threads)
        on_root(comm, lambda: _refuse_other_files(output))
        with show_progress() as progress:
            if _are_own(sources):
                for_frames = {**asked, "group-key": group_key, **reading}
                index = together(comm, lambda: _build_own(sources, bandwidth, name, for_frames, threads))
            elif name is None:
                frames = _read_together(sources, group_key, progress, reading, comm)
                index = _build(sources, frames, asked, bandwidth, threads, comm, progress)
            else:
                raise InputError(f"--name is for own descriptors (.npy), and {sources[0]} holds frames")
            reason = ""
            if calibrated:
                progress.begin("calibrating:")
                reason = _calibrate(index, threads, comm, progress)

        def tell() -> None:
            index.save(output)
            seconds = time.perf_counter() - started
            click.echo(format_index(output, index))
            if reason:
                click.echo(f"quests-md: warning: no calibration: {reason}", err=True)
            click.echo(format_facts({"built in": f"{seconds:.1f} s"}))

        on_root(comm, tell)


def _build(
    sources: Sequence[str],
    frames: Iterable[Frame],
    asked: Mapping[str, Any],
    bandwidth: float | str | None,
    threads: int | None,
    comm: Comm,
    progress: Counter,
) -> Index:
    """Build an index of frames. Collective."""
    spec = DescriptorSpec(**{key: value for key, value in asked.items() if value is not None})
    h = DEFAULT_BANDWIDTH if bandwidth is None else bandwidth
    described = together(comm, lambda: [describe_source(source) for source in sources])
    bulk: list[tuple[float, int]] = []
    seen = _note_volumes(frames, bulk)
    index = Index.build(seen, spec, h, sources=described, threads=threads, comm=comm, report=progress.share)
    if bandwidth is None:
        on_root(comm, lambda: _suggest_bandwidth(index, bulk))
    return index


def _note_volumes(frames: Iterable[Frame], bulk: list[tuple[float, int]]) -> Iterator[Frame]:
    """Pass frames through, and note the volume per atom and the number of atoms of each."""
    for frame in frames:
        bulk.append((volume_per_atom(frame), int(np.count_nonzero(frame.numbers))))
        yield frame


def _suggest_bandwidth(index: Index, bulk: Sequence[tuple[float, int]]) -> None:
    """Recommend a bandwidth if none was given and the volume tells none: several elements apart, or no bulk."""
    volumes, weights = np.array(bulk, dtype=float).T
    try:
        mean_volume(volumes, weights.astype(np.int64), index.spec)
    except InputError:
        frames = np.repeat(np.arange(len(index.frame_offsets) - 1), np.diff(index.frame_offsets))[index.order]
        suggested = suggest_bandwidth(index.rows, frames, index.numbers if index.spec.by_centre else None)
        if suggested is not None:
            click.echo(
                f"quests-md: the bandwidth is the default, {DEFAULT_BANDWIDTH}; --bandwidth {suggested:.2g} is how far "
                "these environments are from the nearest ones of other frames: a scale to begin with",
                err=True,
            )


def _read_together(
    sources: Sequence[str], group_key: str | None, progress: Counter, reading: dict[str, Any], comm: Comm
) -> Iterable[Frame]:
    """Return the frames of files, the same on all ranks. Collective."""
    if comm.size == 1:
        return _read(sources, group_key, progress, reading)
    frames = together(comm, lambda: list(_read(sources, group_key, progress, reading)))
    n_env = sum(len(frame.centres) for frame in frames)
    refuse_other_frames(comm, [len(frames), n_env], ", ".join(sources))
    return frames


def _read(sources: Sequence[str], group_key: str | None, progress: Counter, reading: dict[str, Any]) -> Iterator[Frame]:
    yield from read_counted(sources, group_key, progress, reading)
    progress.begin("computing descriptors:")


def _calibrate(index: Index, threads: int | None, comm: Comm | None, progress: Counter) -> str:
    """Calibrate an index, or return the reason why not: an index without a calibration is of use, too."""
    try:
        index.calibration = calibrate(index, threads=threads, comm=comm, report=progress.share)
    except CalibrationError as error:
        return str(error)
    return ""


def _refuse_other_files(output: Path) -> None:
    """Raise `OutputError` if the file exists and is no index: it may be the reference itself."""
    if output.exists():
        try:
            Index.open(output)
        except IndexFileError as error:
            raise OutputError(
                f"{output} exists and is not an index, or a damaged one: choose another name, or remove it"
            ) from error


@index_group.command("extend")
@click.argument("index_file", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The index file to write.")
@click.option("--group-key", metavar="KEY", help="Key of the frames' info that names where each came from.")
@click.option("--calibrate/--no-calibrate", "calibrated", default=True, help="Make a calibration, too.  [default: yes]")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options()
def extend(
    index_file: Path,
    sources: tuple[str, ...],
    output: Path,
    group_key: str | None,
    calibrated: bool,
    threads: int | None,
    reading: dict[str, Any],
) -> None:
    """Write the next generation of INDEX: its reference and the frames of one or more files.

    Descriptor and bandwidth are those of INDEX. FILE is what INDEX was built of: frames, or own descriptors. A
    calibration is made anew; a bound of the force error is not: `index calibrate --errors` makes it.
    """
    old = Index.open(index_file)
    _refuse_other_files(output)
    described = [describe_source(source) for source in sources]
    before, reason = list_facts(index_file, old), ""
    with show_progress() as progress:
        if _are_own(sources):
            _refuse_options_for_frames(sources[0], {"group-key": group_key, **reading})
            x, frame_offsets = _read_own(sources)
            new = old.extend(x, frame_offsets=frame_offsets, sources=described, threads=threads)
        else:
            frames = _read(sources, group_key, progress, reading)
            new = old.extend(frames, sources=described, threads=threads, report=progress.share)
        if calibrated:
            progress.begin("calibrating:")
            reason = _calibrate(new, threads, None, progress)
    new.save(output)
    click.echo(format_index(output, new, before))
    if reason:
        click.echo(f"quests-md: warning: no calibration: {reason}", err=True)
    _tell_dropped(old, output)


def _tell_dropped(old: Index, output: Path) -> None:
    """Say which bounds of errors an extension has dropped, and how they are made again."""
    if old.calibration is None:
        return
    bounds = {"bound of the force error": old.calibration.force_error, "local error": old.calibration.local_error}
    for name, bound in bounds.items():
        if bound is not None:
            errors = "" if name == "local error" and getattr(bound, "errors", "") != HELD_OUT else " --errors LABELLED"
            click.echo(
                f"quests-md: warning: the {name} was that of generation {old.generation}; make it again: "
                f"quests-md index calibrate {output}{errors}",
                err=True,
            )


# -- calibrate, info, verify -------------------------------------------------------------------------------------------


@index_group.command("calibrate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--errors", metavar="LABELLED", help="Frames with forces, not of the reference: bound the force error.")
@model_options
@click.option("--coverage", default=0.9, show_default=True, help="Share of force errors that must lie below the bound.")
@click.option("--potential", default="", metavar="NAME", help="The model whose errors these are, or whose residuals.")
@click.option("--group-key", metavar="KEY", help="Key of LABELLED's info that names the trajectory of each frame.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options("forces")
def calibrate_command(
    file: Path,
    errors: str | None,
    coverage: float,
    potential: str,
    group_key: str | None,
    threads: int | None,
    **model: Any,
) -> None:
    """Calibrate an index: find what thresholds mean, and what its residuals or --errors say about the force error.

    Without --errors the dH of the references against the index without their group is computed; `index build` does that
    by itself. A bound of the force error that the index has is kept. If the index has residuals, it learns which errors
    local residuals mean: from LABELLED, or from its own references. The model's forces are in LABELLED, or MODEL or
    COMMANDS computes them.
    """
    index, labelled = Index.open(file), None
    computes, digest, name = open_model(index, [] if errors is None else [errors], **model)
    if errors is None and computes is not None:
        raise click.UsageError("--calculator and --lammps compute the model's forces for --errors: give it, too")
    if computes is not None and not index.residuals:
        potential = potential or name
    with show_progress() as progress:
        progress.begin("calibrating:")
        if index.residuals and errors is not None:
            potential = index.residuals_of(potential or None).name
        if errors is None or index.calibration is None:
            index.calibration = calibrate(index, threads=threads, report=progress.share)
        if errors is not None:
            progress.begin(f"reading {errors}:" if computes is None else f"the model computes forces on {errors}:")
            found = _read_errors(errors, group_key, computes, progress, **model)
            labelled = list(found) if index.residuals else None  # they are needed twice
            bound = fit_error_bound(index, labelled or found, coverage=coverage, potential=potential, threads=threads)
            index.calibration = dataclasses.replace(index.calibration, force_error=bound)
        warning = _calibrate_residuals(index, labelled, potential, coverage, threads)
    index.save(file)
    click.echo(format_index(file, index))
    if computes is not None and index.residuals and digest != index.residuals_of(potential or None).fingerprint:
        warning += f"{'; ' * bool(warning)}the model of {errors} is not the one whose residuals {file} has"
    if warning:
        click.echo(f"quests-md: warning: {warning}", err=True)


def _read_errors(
    errors: str,
    group_key: str | None,
    computes: Oracle | None,
    progress: Counter,
    model_key: str,
    reading: dict[str, Any],
    **_: Any,
) -> Iterator[tuple[Frame, NDArray[np.float64]]]:
    """Yield labelled frames and the force error of each environment."""
    from ..training._model_forces import compute_forces

    labelled = read_forces(errors, group_key, None if computes else model_key, **reading)
    for one in labelled if computes is None else compute_forces(computes, list(labelled), progress.share):
        yield one.frame, one.errors()


def _calibrate_residuals(
    index: Index,
    labelled: Sequence[tuple[Frame, NDArray[np.float64]]] | None,
    potential: str,
    coverage: float,
    threads: int | None,
) -> str:
    """Fit which errors local residuals mean, if the index has residuals. Return what a user must be told.

    A bound that was fitted to labelled frames is kept if there are none now.
    """
    if not index.residuals:
        return ""
    assert index.calibration is not None
    before = index.calibration.local_error
    if before is not None:
        potential = potential or before.potential
        if labelled is None and before.errors == HELD_OUT and before.potential == potential:
            return before.warning
    if not potential and len(index.residuals) > 1:
        names = ", ".join(one.name for one in index.residuals)
        return f"no local error: the index has residuals of {names}: --potential chooses those that are calibrated"
    try:
        made = fit_local_bound(index, labelled, potential=potential or None, coverage=coverage, threads=threads)
    except CalibrationError as error:
        if labelled is not None:
            raise
        return f"no local error: {error}"
    index.calibration = dataclasses.replace(index.calibration, local_error=made)
    return made.warning


@index_group.command("residuals")
@click.argument("index_file", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("sources", metavar="LABELLED...", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The index file to write.  [default: INDEX]")
@model_options
@click.option("--potential", metavar="NAME", help="Of the model.  [default: that of MODEL or COMMANDS, or model]")
@click.option("--origin", default="training", show_default=True, type=click.Choice([*_ORIGINS]),
              help="What LABELLED was to the model.")  # fmt: skip
@click.option("--add", is_flag=True, help="Keep the residuals of other potentials that INDEX has.")
@click.option("--replace", is_flag=True, help="Drop the residuals that INDEX has.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options("forces")
def residuals(
    index_file: Path,
    sources: tuple[str, ...],
    output: Path | None,
    potential: str | None,
    origin: str,
    add: bool,
    replace: bool,
    threads: int | None,
    **model: Any,
) -> None:
    """Keep in INDEX how wrong a model's force on each of its environments is.

    LABELLED are the frames that INDEX was built of, or some of them, with the oracle's forces. Each environment is
    found by its descriptor, in any order. The model's forces are in these files, too, or MODEL or COMMANDS computes
    them.
    """
    index = Index.open(index_file)
    if output is not None:
        _refuse_other_files(output)
    from ..training import measure_residuals

    computes, digest, name = open_model(index, sources, **model)
    name = potential or name
    kept = _keep_residuals(index_file, index, name, add, replace)
    with show_progress() as progress:
        labelled = _read_both(sources, computes is None, progress, **model)
        made = measure_residuals(
            index, labelled, name=name, fingerprint=digest, origin=_ORIGINS[origin], model=computes, threads=threads,
            report=progress.share,
        )  # fmt: skip
    before, index = index.calibration, index.with_residuals(*kept, made)
    index.save(output or index_file)
    click.echo(format_index(output or index_file, index))
    if index.calibration is not before:
        again = f"quests-md index calibrate {output or index_file}"
        click.echo(f"quests-md: warning: the local error was that of other residuals; make it again: {again}", err=True)


@index_group.command("info")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def info(file: Path, as_json: bool) -> None:
    """Show what an index was made of."""
    index = Index.open(file)
    if as_json:
        click.echo(json.dumps(describe_index(file, index), indent=2))
        return
    click.echo(format_index(file, index))
    for source in index.provenance.get("sources", []):
        click.echo(format_facts({"made of": format_source(source)}))
    for added in index.provenance.get("generations", []):
        what = f"{added['environments']} environments in {added['frames']} frames, {added['created']}"
        click.echo(format_facts({f"generation {added['generation']}": f"adds {what}"}))
        for source in added["sources"]:
            click.echo(format_facts({"  of": format_source(source)}))


@index_group.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
def verify(file: Path) -> None:
    """Read a whole index and compare it with its checksums."""
    Index.verify(file)
    click.echo(f"{file}: every section has its checksum")


# -- residuals ---------------------------------------------------------------------------------------------------------


def _keep_residuals(file: Path, index: Index, name: str, add: bool, replace: bool) -> tuple[Residuals, ...]:
    """Return the residuals that an index keeps beside those of potential `name`."""
    names = [one.name for one in index.residuals]
    if add and replace:
        raise click.UsageError("give --add or --replace")
    if replace or not names:
        return ()
    if not add or name in names:
        also = "" if name in names else ", --add keeps them beside those of the other potential"
        raise InputError(f"{file} has residuals of {', '.join(names)} already: --replace drops them{also}")
    return index.residuals


def _read_both(
    sources: Sequence[str], has_model: bool, progress: Counter, model_key: str, reading: dict[str, Any], **_: Any
) -> Iterator[ReadForces]:
    """Yield labelled frames; with the model's forces, if the files have them."""
    for source in sources:
        progress.begin(f"reading {source}:")
        yield from progress.count(read_forces(source, None, model_key if has_model else None, **reading))
    progress.say("comparing forces on" if has_model else "the model computes forces on")


# -- own descriptors ---------------------------------------------------------------------------------------------------


def _are_own(sources: Sequence[str]) -> bool:
    """Return whether sources hold own descriptors; `InputError` if some do and others do not."""
    own = [Path(source).suffix == ".npy" for source in sources]
    if any(own) and not all(own):
        frames = sources[own.index(False)]
        raise InputError(
            f"{sources[own.index(True)]} holds own descriptors and {frames} frames: one index has one kind"
        )
    return all(own)


def _build_own(
    sources: Sequence[str],
    bandwidth: float | str | None,
    name: str | None,
    for_frames: Mapping[str, Any],
    threads: int | None,
) -> Index:
    """Build an index of own descriptors; `InputError` if an option of `for_frames` was given."""
    _refuse_options_for_frames(sources[0], for_frames)
    if bandwidth is None or isinstance(bandwidth, str):
        refuse_no_bandwidth(sources[0])
    described = [describe_source(source) for source in sources]
    x, frame_offsets = _read_own(sources)
    name = Path(sources[0]).name if name is None else name
    return Index.from_descriptors(
        x, bandwidth, frame_offsets=frame_offsets, name=name, sources=described, threads=threads
    )


def _refuse_options_for_frames(source: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` if an option was given that is for frames alone."""
    given = [f"--{key}" for key, value in options.items() if value is not None]
    if given:
        raise InputError(f"{source} holds own descriptors: {', '.join(given)} is for frames")


def _read_own(sources: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Read files of own descriptors; return the rows (n, d) of all frames and the first row of every frame."""
    parts = [read_descriptors(source) for source in sources]
    for source, (rows, _) in zip(sources, parts, strict=True):
        if rows.shape[1] != parts[0][0].shape[1]:
            raise InputError(
                f"{source} has {rows.shape[1]} columns and {sources[0]} has {parts[0][0].shape[1]}: other descriptors"
            )
    sizes = [[len(rows)] if offsets is None else np.diff(offsets).tolist() for rows, offsets in parts]
    x = parts[0][0] if len(parts) == 1 else np.concatenate([rows for rows, _ in parts])
    return x, np.cumsum([0, *itertools.chain(*sizes)], dtype=np.int64)
