"""quests-md nuclei: what lies together below a dH, how it grows, and what classical nucleation theory makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, NucleationError, OutputError
from ..files import write_atomically
from ..files.extxyz import format_frame
from ..frame import Frame
from ..index import Index
from ..nuclei import SPHERE, Nucleation, Nuclei, NucleiSeries, linked_mean, nucleation, nuclei
from ..sources import describe_source, read_frames
from ._progress import counter
from ._results import check_outputs, save_picture, table, write_result

__all__ = ["nuclei_command"]

_FRAMES = (".xyz", ".extxyz")
_Found = tuple[Frame, Nuclei, dict[str, NDArray[np.float64]]]

_POSITIVE = click.FloatRange(0.0, min_open=True)
_SHOWN = 12  # rows of the table on a terminal


@click.command("nuclei")
@click.argument("trajectory")
@click.option("--index", "index_file", required=True, type=click.Path(path_type=Path), help="The index file.")
@click.option("--threshold", required=True, type=float, help="Nuclei are of atoms with dH (nats) up to this.")
@click.option("--above", is_flag=True, help="Nuclei are of atoms above the threshold instead.")
@click.option("--average", is_flag=True, help="Compare dH averaged over each atom and those linked to it.")
@click.option("--link", required=True, type=float, help="Largest distance of two linked atoms of a nucleus, in Å.")
@click.option("--temperature", type=_POSITIVE, help="In K: fit classical nucleation theory; with --density.")
@click.option("--density", type=_POSITIVE, help="Of the nuclei, in atoms per Å³.")
@click.option("--driving-force", type=_POSITIVE, help="In eV per atom.  [default: fitted, and hardly known then]")
@click.option(
    "--shape-factor",
    type=click.FloatRange(SPHERE * (1 - 1e-9)),
    help="Surface / volume^(2/3) of a nucleus.  [default: a sphere's, 4.836]",
)
@click.option("--from", "first", type=int, help="First step that is fitted.  [default: all]")
@click.option("--until", "last", type=int, help="Last step that is fitted.  [default: all]")
@click.option("--smallest", type=click.IntRange(1), default=5, show_default=True, help="Smallest size that is fitted.")
@click.option("--blocks", type=click.IntRange(5), default=10, show_default=True, help="Blocks of time, for the errors.")
@click.option(
    "-o",
    "--output",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write .csv (a row per frame), .json (all), .xyz or .extxyz (frames with the nucleus of every atom); several.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here: .png, .svg or .pdf.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
def nuclei_command(
    trajectory: str,
    index_file: Path,
    threshold: float,
    above: bool,
    average: bool,
    link: float,
    first: int | None,
    last: int | None,
    output: tuple[Path, ...],
    plot: Path | None,
    overwrite: bool,
    threads: int | None,
    **options: Any,
) -> None:
    """Find nuclei along a trajectory: linked atoms whose dH is low.

    TRAJECTORY is anything that ASE reads, with an optional slice: dump.lammpstrj, md.traj@::10. With --temperature
    and --density classical nucleation theory is fitted to the sizes of the nuclei, if the steps --from to --until are
    quasi-stationary and no nucleus grows in them; else the reason is said, after the files are written without a fit.
    """
    fit = _fit_of(options)
    if math.isnan(threshold):
        raise InputError("--threshold must be a number of nats, not nan")
    check_outputs(None, plot, overwrite)
    for path in output:
        check_outputs(path, None, overwrite, (".csv", ".json", *_FRAMES))
    films = [path for path in output if path.suffix in _FRAMES]
    if len(films) > 1:
        raise OutputError(f"{films[0]} and {films[1]} would hold the same frames: give one of them")
    index = Index.open(index_file)
    with counter() as progress:
        progress.say(f"nuclei of {trajectory}:")
        frames = progress.count(read_frames(trajectory))
        found = _find(frames, index, threshold, above, average, link, bool(films), threads)
        series = _series(found, films)
    nucleation_fit, refusal = None, None
    if fit is not None:
        try:
            nucleation_fit = nucleation(series, first=first, last=last, **fit)
        except (InputError, NucleationError) as error:  # after the work of finding nuclei: that is kept
            refusal = error
    rows = _rows(series)
    result = {
        "sources": [describe_source(trajectory)],
        "index": {"file": str(index_file), "hash": index.hash, "bandwidth": index.bandwidth},
        "threshold": threshold,
        "above": above,
        "average": average,
        "link": link,
        "frames": rows,
        "sizes": [sizes.tolist() for sizes in series.sizes],
        "nucleation": None if nucleation_fit is None else nucleation_fit.describe(),
        "refused": None if refusal is None else str(refusal),
    }
    for path in output:
        if path.suffix not in _FRAMES:
            write_result(path, result, rows)
    if plot is not None:
        from ..report import nuclei_picture

        save_picture(nuclei_picture(series, nucleation_fit), plot)
    _say(rows, nucleation_fit)
    for path in [*output, *([plot] if plot else [])]:
        click.echo(f"written: {path}")
    if refusal is not None:
        raise refusal


def _fit_of(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the fit is asked for, or None."""
    given = {name: value for name, value in options.items() if value is not None}
    if options["temperature"] is not None and options["density"] is not None:
        return given
    asked = sorted(set(given) - {"smallest", "blocks"})
    if asked:
        names = " and ".join("--" + name.replace("_", "-") for name in asked)
        raise InputError(f"{names} alone: a fit of classical nucleation theory needs --temperature and --density")
    return None


def _find(
    frames: Iterator[Frame],
    index: Index,
    threshold: float,
    above: bool,
    average: bool,
    link: float,
    exact: bool,
    threads: int | None,
) -> Iterator[_Found]:
    """Yield frames, their nuclei, and columns for a file where they are `exact`.

    Where no value is needed, what exceeds the threshold is told without it, and faster.
    """
    for frame in frames:
        columns = {"dH": index.delta_entropy(frame, threads)} if exact or average else {}
        if average:
            columns["dH_mean"] = linked_mean(frame, columns["dH"], link)
        compared = list(columns.values())[-1:]
        exceeds = compared[0] > threshold if compared else index.exceeds(frame, threshold, threads)
        yield frame, nuclei(frame, exceeds if above else ~exceeds, link), columns


def _series(found: Iterator[_Found], films: Sequence[Path]) -> NucleiSeries:
    """Take all frames, and write them where they are wanted."""
    if not films:
        return NucleiSeries.of((frame, one) for frame, one, _ in found)
    series: list[NucleiSeries] = []

    def write(file: BinaryIO) -> None:
        series.append(NucleiSeries.of(_written(found, file.write)))

    write_atomically(films[0], write)
    return series[0]


def _written(found: Iterator[_Found], write: Callable[[bytes], object]) -> Iterator[tuple[Frame, Nuclei]]:
    for frame, one, columns in found:
        n, centres = len(frame.positions), frame.centres
        whole: dict[str, NDArray[Any]] = {name: np.full(n, np.nan) for name in columns}
        for name, values in columns.items():
            whole[name][centres] = values
        whole["nucleus"] = np.zeros(n, np.int64)
        whole["nucleus"][centres] = one.numbers
        info: dict[str, Any] = {"step": frame.step, "n_nuclei": len(one.sizes), "largest": one.largest}
        if np.isfinite(frame.time):
            info["time"] = frame.time
        write(format_frame(frame, whole.pop("dH"), info, whole))
        yield frame, one


def _rows(series: NucleiSeries) -> list[dict[str, Any]]:
    columns = {
        "step": series.steps, "time": series.times, "n": series.n_env, "n_inside": series.n_inside,
        "n_nuclei": series.n_nuclei, "largest": series.largest,
    }  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _say(rows: list[dict[str, Any]], fit: Nucleation | None) -> None:
    step = -(-len(rows) // _SHOWN)
    shown = rows[::step]
    click.echo(table(shown if shown[-1] is rows[-1] else [*shown, rows[-1]]))
    if len(shown) < len(rows):
        click.echo(f"(one of {step} of {len(rows)} frames)")
    if fit is None:
        return
    given = "given" if fit.driving_force_given else f"± {fit.driving_force_error:.2g}, fitted"
    click.echo(f"fitted to steps {fit.first} to {fit.last}, {fit.n_frames} frames, sizes from {fit.smallest} on")
    click.echo(f"  surface tension   {fit.gamma:.4g} ± {fit.gamma_error:.2g} mJ/m²  (misfit {fit.misfit:.2g})")
    click.echo(f"  driving force     {fit.driving_force:.4g} eV per atom ({given})")
    if not fit.driving_force_given:
        click.echo(
            f"  the two are hardly told apart: correlation {fit.correlation_of_gamma:.3f}; "
            f"{fit.gamma_slope / 100:.4g} mJ/m² more for every 0.01 eV"
        )
    click.echo(f"  critical size     {fit.critical_size:.4g} ± {fit.critical_size_error:.2g}")
    click.echo(f"  barrier           {fit.barrier:.4g} ± {fit.barrier_error:.2g} eV, {fit.barrier / fit.kT:.4g} k_BT")
    by_smallest = ", ".join(f"{n}: {gamma:.4g}" for n, gamma in fit.gamma_by_smallest.items())
    click.echo(f"  surface tension by smallest size   {by_smallest}")
