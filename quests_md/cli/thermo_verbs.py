"""quests-md thermo: entropies of states, a phase boundary, and the entropies of thermodynamics beside them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from .. import report
from ..errors import InputError, SourceError
from ..machine import find_versions
from ..thermo import (
    Boundary,
    Comparison,
    Entropies,
    HeatEntropy,
    Phase,
    compare,
    coupling_entropy,
    entropy_difference,
    heat_entropy,
    phase_boundary,
    state_entropies,
    window_entropies,
)
from .datasets import Dataset, bandwidth_option, dataset_options, open_dataset, reading_options, resolve_bandwidths
from .progress import Counter, show_progress
from .results import Outputs, add_options, format_table, result_options, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["thermo_group"]

Table = dict[str, NDArray[np.float64]]

_FILE = click.Path(path_type=Path)
_T = {"T": "temperature in K"}
_ENTHALPY = {"enthalpy": "in eV per atom"}
_PHASE = {**_T, "P": "pressure in GPa", "U": "energy in eV per atom", "V": "volume in Å³ per atom",
          "H": "entropy in nats"}  # fmt: skip


@click.group("thermo")
def thermo_group() -> None:
    """Entropies of states, phase boundaries, and a comparison with thermodynamics.

    The entropy H of descriptors depends on the bandwidth, on the number of environments and on the descriptor: the
    manual says what follows. Tables are CSV files with a line of names. T is in K, P in GPa, energies in eV and volumes
    in Å³ per atom, H in nats, S in k_B per atom; errors are standard errors.
    """


def _finish(
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    outputs: Outputs,
    draw: Callable[[], Figure],
) -> None:
    """Write a result, draw it, and print its rows."""
    whole = {**result, "results": rows, "versions": find_versions()}
    outputs.deliver(rows, lambda path: write_result(path, whole, rows), draw)


# -- entropies of states: windows, states, difference ------------------------------------------------------------------

_options = add_options(
    bandwidth_option(),
    click.option("--blocks", default=10, show_default=True, type=click.IntRange(2), help="Of frames, for errors."),
    click.option("--seed", default=0, show_default=True, help="Of what is drawn."),
    dataset_options,
    reading_options(),
    result_options(),
)
_sample_options = add_options(
    click.option("--size", type=click.IntRange(2), help="Environments in a sample.  [default: of the smallest]"),
    click.option("--runs", default=1, show_default=True, type=click.IntRange(1), help="Samples; H is their mean."),
)


@thermo_group.command("windows")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@click.option("--width", required=True, type=click.IntRange(1), help="Frames of a window.")
@click.option("--step", type=click.IntRange(1), help="Frames from one window to the next.  [default: the width]")
@_options
def windows_command(
    sources: tuple[str, ...],
    width: int,
    step: int | None,
    bandwidth: float | str | None,
    outputs: Outputs,
    **options: Any,
) -> None:
    """Compute the entropy along a trajectory, in windows of frames.

    FILE is anything that ASE reads, with an optional slice (md.traj@::10); frames in the order of time.
    """
    outputs.check()
    descriptor, how = _split_options(options)
    with show_progress() as progress:
        (data,), h = _open_states([sources], bandwidth, descriptor, progress)
        found = window_entropies(data.rows, data.frame_offsets, width, step, h, **how, report=progress.share)
    rows = [
        {"first": int(first), "last": int(last), **row}
        for first, last, row in zip(found.first, found.last, _make_rows(found.entropies), strict=True)
    ]
    _finish(
        {**data.describe(), **_describe_settings(found.entropies, how["seed"])},
        rows,
        outputs,
        lambda: report.entropy_windows(found),
    )


@thermo_group.command("states")
@click.argument("states", metavar="[NAME=]FILE...", nargs=-1, required=True)
@_sample_options
@_options
def states_command(
    states: tuple[str, ...],
    bandwidth: float | str | None,
    outputs: Outputs,
    **options: Any,
) -> None:
    """Compute the entropy of each state, from as many environments of each.

    Every FILE is a state: anything that ASE reads, with an optional slice; one index, or one array of own descriptors.
    Where all names are numbers (300=md300.xyz) they are temperatures, and the result is what `compare` reads.
    """
    outputs.check()
    named = [_split_name(state) for state in states]
    descriptor, how = _split_options(options)
    with show_progress() as progress:
        data, h = _open_states([[source] for _, source in named], bandwidth, descriptor, progress)
        found = state_entropies([(one.rows, one.frame_offsets) for one in data], h, **how, report=progress.share)
    key, names = _read_names([name for name, _ in named])
    rows = [{key: name, **row} for name, row in zip(names, _make_rows(found), strict=True)]
    _finish(
        {"states": [one.describe() for one in data], **_describe_settings(found, how["seed"])},
        rows,
        outputs,
        lambda: report.entropy_states(found, names),
    )


@thermo_group.command("difference")
@click.argument("first")
@click.argument("second")
@_sample_options
@_options
def difference_command(
    first: str,
    second: str,
    bandwidth: float | str | None,
    outputs: Outputs,
    **options: Any,
) -> None:
    """Compute how much larger the entropy of the phase SECOND is than that of FIRST.

    Both are as the files of `states`, and of runs that are independent.
    """
    outputs.check()
    descriptor, how = _split_options(options)
    with show_progress() as progress:
        data, h = _open_states([[first], [second]], bandwidth, descriptor, progress)
        one, two = ((part.rows, part.frame_offsets) for part in data)
        found = entropy_difference(one, two, h, **how, report=progress.share)
    names = [first, second]
    states = [{"state": name, **row} for name, row in zip(names, _make_rows(found.entropies), strict=True)]
    click.echo(format_table(states))
    rows = [{"first": first, "second": second, "difference": found.difference, "error": found.error}]
    described = [{**part.describe(), **row} for part, row in zip(data, states, strict=True)]
    _finish(
        {"states": described, **_describe_settings(found.entropies, how["seed"])},
        rows,
        outputs,
        lambda: report.entropy_states(found.entropies, names),
    )


def _split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the descriptor, and those of what is drawn; both have `threads`."""
    descriptor = {name: options[name] for name in ("k", "cutoff", "species", "reading", "threads")}
    return descriptor, {name: value for name, value in options.items() if name == "threads" or name not in descriptor}


def _open_states(
    states: Sequence[Sequence[str]], bandwidth: float | str | None, descriptor: dict[str, Any], progress: Counter
) -> tuple[list[Dataset], float]:
    """Open the states with one descriptor; return them and the bandwidth, by default that of the first state."""
    data: list[Dataset] = []
    for sources in states:
        spec = data[0].spec if data else None
        how = descriptor if spec is None else {**descriptor, "spec": spec, "k": None, "cutoff": None, "species": None}
        data.append(open_dataset(sources, **how, progress=progress))
        _check_alike(data[0], states[0], data[-1], sources)
    (h,) = resolve_bandwidths(data[0], () if bandwidth is None else (bandwidth,))
    progress.begin("entropies")
    return data, h


def _check_alike(first: Dataset, its_sources: Sequence[str], other: Dataset, sources: Sequence[str]) -> None:
    """Raise `InputError` if the first state holds own descriptors and the other one does not hold the same kind."""
    if first.spec is None and (other.spec is not None or other.rows.shape[1] != first.rows.shape[1]):
        raise InputError(
            f"{its_sources[0]} holds own descriptors of {first.rows.shape[1]} columns, and {sources[0]} other "
            "descriptors: their entropies cannot be compared"
        )


def _split_name(state: str) -> tuple[str, str]:
    """Split NAME=FILE; an existing file with an equals sign in its own name is its own NAME."""
    name, equals, source = state.partition("=")
    return (name, source) if equals and not Path(state.rpartition("@")[0] or state).exists() else (state, state)


def _read_names(names: list[str]) -> tuple[str, list[Any]]:
    """Return the heading of the names, and the names: T and numbers if all are numbers."""
    try:
        return "T", [float(name) for name in names]
    except ValueError:
        return "state", names


def _make_rows(found: Entropies) -> list[dict[str, Any]]:
    cells = zip(found.entropy, found.error, found.blocks, strict=True)
    return [
        {"H": float(H), "H_error": float(error), "blocks": int(blocks), "n_env": found.size}
        for H, error, blocks in cells
    ]


def _describe_settings(found: Entropies, seed: int) -> dict[str, Any]:
    return {
        "bandwidth": found.bandwidth,
        "size": found.size,
        "ceiling": found.ceiling,
        "runs": found.runs,
        "seed": seed,
    }


# -- where two phases have the same free energy: boundary --------------------------------------------------------------


def _convert_anchor(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    try:
        if value is None:
            return None
        T, P = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"a temperature in K, a comma and a pressure in GPa, not {value!r}") from None
    return T, P


@thermo_group.command("boundary")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--degree", default=2, show_default=True, type=click.IntRange(1), help="Of the polynomial ΔG(T).")
@click.option("--offset", type=float, help="What is added to H of the second phase, in nats.  [default: 0]")
@click.option(
    "--anchor", metavar="T,P", callback=_convert_anchor, help="A known point of the boundary: gives the offset."
)
@click.option("--draws", default=500, show_default=True, type=click.IntRange(2), help="Of the errors.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@result_options()
def boundary_command(
    first: Path,
    second: Path,
    degree: int,
    offset: float | None,
    anchor: tuple[float, float] | None,
    draws: int,
    seed: int,
    outputs: Outputs,
) -> None:
    """Find where two phases have the same free energy G = U + P V − T k_B H.

    FIRST and SECOND are tables with the columns T, P, U, V, H and, if known, U_error, V_error, H_error. H must be of
    as many environments everywhere.
    """
    outputs.check()
    if offset is not None and anchor is not None:
        raise click.UsageError("--offset and --anchor both say what is added to H: give one of them")
    phases = [_read_phase(first, 0.0), _read_phase(second, offset or 0.0)]
    found = phase_boundary(phases[0], phases[1], degree=degree, anchor=anchor, draws=draws, seed=seed)
    rows = _make_boundary_rows(found, (first, second))
    settings = {"first": str(first), "second": str(second), "degree": degree, "anchor": anchor, "draws": draws}
    _finish(
        {**settings, "seed": seed, "offset": found.offset},
        rows,
        outputs,
        lambda: report.phase_diagram(found, (first.stem, second.stem)),
    )
    if found.offset:
        click.echo(f"offset of {second}: {found.offset:.6g} nats")


def _read_phase(path: Path, offset: float) -> Phase:
    table = read_table(path, _PHASE, ("U_error", "V_error", "H_error"))
    return Phase(
        table["T"],
        table["P"],
        table["U"],
        table["V"],
        table["H"],
        table.get("U_error"),
        table.get("V_error"),
        table.get("H_error"),
        offset,
    )


def _make_boundary_rows(found: Boundary, paths: tuple[Path, Path]) -> list[dict[str, Any]]:
    return [
        {
            "P": float(found.pressure[i]),
            "T": float(found.temperature[i]),
            "T_error": float(found.error[i]),
            "found": float(found.found[i]),
            "below": paths[found.stable_below[i]].stem,
            "above": paths[found.stable_above[i]].stem,
            "dH": float(found.entropy_difference[i]),
            "dH_by_slope": float(found.entropy_by_slope[i]),
            "clapeyron": float(found.clapeyron[i]),
        }
        for i in range(len(found.pressure))
    ]


# -- entropies of thermodynamics: integrate, couple, compare -----------------------------------------------------------


def _convert_degree(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    try:
        return None if value == "none" else int(value)
    except ValueError:
        raise click.BadParameter(f"a whole number, or none, not {value!r}") from None


_degree_option = click.option(
    "--degree",
    default="3",
    show_default=True,
    metavar="N",
    callback=_convert_degree,
    help="Of the polynomial through the enthalpies; none: C_p is constant between temperatures.",
)


@thermo_group.command("integrate")
@click.argument("enthalpies", type=_FILE)
@_degree_option
@result_options()
def integrate_command(enthalpies: Path, degree: int | None, outputs: Outputs) -> None:
    """Integrate C_p/T dT from enthalpies at one pressure.

    ENTHALPIES is a table with the columns T, enthalpy and, if known, enthalpy_error.
    """
    outputs.check()
    found = _compute_heat(enthalpies, read_table(enthalpies, {**_T, **_ENTHALPY}, ("enthalpy_error",)), degree)
    rows = [
        {"T": float(T), "S": float(S), "S_error": float(error), "S_configurational": float(configurational),
         "residual": float(residual)}
        for T, S, error, configurational, residual in zip(
            found.temperature, found.entropy, found.error, found.configurational, found.residual, strict=True
        )
    ]  # fmt: skip
    result = {"enthalpies": str(enthalpies), "degree": degree, "covariance": found.covariance}
    _finish({**result, "heat_capacity": found.heat_capacity}, rows, outputs, lambda: report.heat_entropies(found))


def _compute_heat(path: Path, table: Table, degree: int | None) -> HeatEntropy:
    return heat_entropy(table["T"], table["enthalpy"], table.get("enthalpy_error"), degree=degree)


@thermo_group.command("couple")
@click.argument("slopes", type=_FILE)
@click.option("--temperature", required=True, type=float, help="In K.")
@click.option("--energy", required=True, type=float, help="U at λ = 1, in eV per atom (at a constant pressure U + PV).")
@click.option("--energy-error", default=0.0, show_default=True, help="Its standard error.")
@click.option("--reference", required=True, type=float, help="Free energy of the system at λ = 0, in eV per atom.")
@result_options()
def couple_command(slopes: Path, outputs: Outputs, **values: float) -> None:
    """Compute free energy and entropy by thermodynamic integration from a known system.

    SLOPES is a table with the columns lambda (from 0 to 1), slope (⟨∂U/∂λ⟩ in eV per atom) and, if known, slope_error.
    """
    outputs.check()
    table = read_table(slopes, {"lambda": "from 0 to 1", "slope": "⟨∂U/∂λ⟩ in eV per atom"}, ("slope_error",))
    found = coupling_entropy(
        coupling=table["lambda"], slope=table["slope"], slope_error=table.get("slope_error"), **values
    )
    row = {"T": values["temperature"], "F": found.free_energy, "F_error": found.free_energy_error,
           "S": found.entropy, "S_error": found.error}  # fmt: skip
    picture = table["lambda"], table["slope"], table.get("slope_error")
    _finish({"slopes": str(slopes), **values}, [row], outputs, lambda: report.coupling_slopes(*picture))


@thermo_group.command("compare")
@click.argument("entropies", type=_FILE)
@click.argument("reference", type=_FILE)
@_degree_option
@click.option("--configurational", is_flag=True, help="Take the share of the momenta, 3/2 ln T, off the reference.")
@click.option("--draws", default=2000, show_default=True, type=click.IntRange(2), help="Of the errors.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@result_options()
def compare_command(
    entropies: Path,
    reference: Path,
    degree: int | None,
    configurational: bool,
    draws: int,
    seed: int,
    outputs: Outputs,
) -> None:
    """Fit a line to entropies of descriptors against those of thermodynamics, at the temperatures that both have.

    ENTROPIES is a table with the columns T, H and, if known, H_error, as `states` writes it. REFERENCE has T, S and, if
    known, S_error; or it has enthalpies, as for `integrate`: then the errors of S, which depend on each other, are
    known better. Two quantities that only grow with T correlate, whatever they are: look at the residuals.
    """
    outputs.check()
    table = read_table(entropies, {**_T, "H": "entropy in nats"}, ("H_error",))
    T, S, covariance = _read_reference(reference, degree)
    mine, its = match_temperatures((entropies, reference), (table, {"T": T}))
    momenta = 1.5 * np.log(T[its] / T[its[0]]) if configurational else 0.0
    errors = table["H_error"][mine] if "H_error" in table else None
    error = errors if errors is None or np.isfinite(errors).all() else None
    found = compare(
        S[its] - momenta,
        table["H"][mine],
        error=error,
        covariance=covariance[np.ix_(its, its)],
        draws=draws,
        seed=seed,
    )
    rows = [
        {"T": float(T[j]), "S": float(x), "H": float(y), "residual": float(residual)}
        for j, x, y, residual in zip(its, found.reference, found.entropy, found.residual, strict=True)
    ]
    line = _describe_line(found)
    _finish(
        {"entropies": str(entropies), "reference": str(reference), **line, "draws": draws, "seed": seed},
        rows,
        outputs,
        lambda: report.entropy_comparison(found, T[its], error),
    )
    click.echo("\n".join(f"{name}: {value:.6g}" for name, value in line.items()))


def _read_reference(path: Path, degree: int | None) -> tuple[Any, Any, Any]:
    """Return T, S and the covariance of S, of a table of entropies or of enthalpies."""
    table = read_table(path, _T, ("S", "S_error", "enthalpy", "enthalpy_error"))
    if "S" in table:
        return table["T"], table["S"], np.diag(table.get("S_error", np.zeros(len(table["T"]))) ** 2)
    read_table(path, {"enthalpy": "in eV per atom; or S, in k_B per atom"})  # raises if the column is missing
    heat = _compute_heat(path, table, degree)
    return heat.temperature, heat.entropy, heat.covariance


def _describe_line(found: Comparison) -> dict[str, float]:
    return {
        "slope": found.slope,
        "slope_error": found.slope_error,
        "slope_scatter": found.slope_scatter,
        "intercept": found.intercept,
        "correlation": found.correlation,
        "correlation_error": found.correlation_error,
        "residual_rms": float(np.sqrt(np.mean(found.residual**2))),
    }


# -- tables of CSV files -----------------------------------------------------------------------------------------------


def read_table(path: Path, needed: Mapping[str, str], optional: tuple[str, ...] = ()) -> Table:
    """Read columns of a CSV file and ignore the others.

    Parameters
    ----------
    path
        The file. Its first line has the names of the columns; a line that begins with # is none.
    needed
        Names of columns that must be there, and what each holds.
    optional
        Names of columns that are read where they are there.

    Raises
    ------
    SourceError
        There is no such file or it has no rows, a column is missing or there twice, or a cell that is
        needed is no finite number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in file if line.strip() and not line.startswith("#")]
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a table: {error}") from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if not rows:
        raise SourceError(f"{path}: nothing in it: a table has the names of its columns in the first line")
    names, rows = rows[0], rows[1:]
    for name, what in needed.items():
        if name not in names:
            raise SourceError(f"{path}: no column {name} ({what}) in its first line, which has: {', '.join(names)}")
    if not rows:
        raise SourceError(f"{path}: no rows in it")
    wanted = [name for name in (*needed, *optional) if name in names]
    if any(names.count(name) > 1 for name in wanted):
        raise SourceError(f"{path}: a column is there twice: {', '.join(names)}")
    found = {name: np.array([_read_number(path, names, row, i, name) for i, row in enumerate(rows)]) for name in wanted}
    for name in needed:
        if not np.isfinite(found[name]).all():
            row = int(np.argmin(np.isfinite(found[name]))) + 1
            raise SourceError(
                f"{path}: row {row}, column {name}: a finite number is expected, not {found[name][row - 1]}"
            )
    return found


def _read_number(path: Path, names: list[str], row: list[str], i: int, name: str) -> float:
    try:
        return float(row[names.index(name)])
    except (IndexError, ValueError):
        found = row[names.index(name)] if len(row) > names.index(name) else "nothing"
        raise SourceError(f"{path}: row {i + 1}, column {name}: a number is expected, not {found!r}") from None


def match_temperatures(paths: tuple[Path, Path], tables: tuple[Table, Table]) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of two tables that have the same T, in the order of T.

    Raises
    ------
    SourceError
        A temperature is twice in a table, or they have fewer than two in common.
    """
    columns = [table["T"] for table in tables]
    for path, T in zip(paths, columns, strict=True):
        if len(np.unique(T)) < len(T):
            raise SourceError(f"{path}: a temperature is there twice")
    one, two = np.nonzero(np.isclose(columns[0][:, None], columns[1], rtol=1e-6, atol=0))
    if len(one) < 2:
        raise SourceError(f"{paths[0]} and {paths[1]} have fewer than two temperatures T in common")
    order = np.argsort(columns[0][one])
    return one[order], two[order]
