"""quests-md thermo: entropies of states, a phase boundary, and the entropies of thermodynamics beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from ..thermo import Boundary, Comparison, HeatEntropy, Phase, compare, coupling_entropy, heat_entropy, phase_boundary
from ._results import check_outputs, result_options, save_picture
from ._thermo_states import difference_command, finish, states_command, windows_command
from ._thermo_tables import Table, read_table, same_temperatures

__all__ = ["thermo_group"]

_FILE = click.Path(path_type=Path)
_T = {"T": "temperature in K"}
_ENTHALPY = {"enthalpy": "in eV per atom"}
_PHASE = {**_T, "P": "pressure in GPa", "U": "energy in eV per atom", "V": "volume in Å³ per atom",
          "H": "entropy in nats"}  # fmt: skip


def _degree(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    try:
        return None if value == "none" else int(value)
    except ValueError:
        raise click.BadParameter(f"a whole number, or none, not {value!r}") from None


def _anchor(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    try:
        if value is None:
            return None
        T, P = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"a temperature in K, a comma and a pressure in GPa, not {value!r}") from None
    return T, P


_degree_option = click.option(
    "--degree",
    default="3",
    show_default=True,
    metavar="N",
    callback=_degree,
    help="Of the polynomial through the enthalpies; none: C_p is constant between temperatures.",
)


@click.group("thermo")
def thermo_group() -> None:
    """Entropies of states, phase boundaries, and a comparison with thermodynamics.

    The entropy H of descriptors depends on the bandwidth, on the number of environments and on the descriptor: the
    manual says what follows. Tables are CSV files with a line of names. T is in K, P in GPa, energies in eV and volumes
    in Å³ per atom, H in nats, S in k_B per atom; errors are standard errors.
    """


thermo_group.add_command(windows_command)
thermo_group.add_command(states_command)
thermo_group.add_command(difference_command)


@thermo_group.command("boundary")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--degree", default=2, show_default=True, type=click.IntRange(1), help="Of the polynomial ΔG(T).")
@click.option("--offset", type=float, help="What is added to H of the second phase, in nats.  [default: 0]")
@click.option("--anchor", metavar="T,P", callback=_anchor, help="A known point of the boundary: gives the offset.")
@click.option("--draws", default=500, show_default=True, type=click.IntRange(2), help="Of the errors.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@result_options
def boundary_command(
    first: Path,
    second: Path,
    degree: int,
    offset: float | None,
    anchor: tuple[float, float] | None,
    draws: int,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
) -> None:
    """Find where two phases have the same free energy G = U + P V − T k_B H.

    FIRST and SECOND are tables with the columns T, P, U, V, H and, if known, U_error, V_error, H_error. H must be of
    as many environments everywhere.
    """
    check_outputs(output, plot, overwrite)
    if offset is not None and anchor is not None:
        raise click.UsageError("--offset and --anchor both say what is added to H: give one of them")
    phases = [_phase(first, 0.0), _phase(second, offset or 0.0)]
    found = phase_boundary(phases[0], phases[1], degree=degree, anchor=anchor, draws=draws, seed=seed)
    rows = _boundary_rows(found, (first, second))
    settings = {"first": str(first), "second": str(second), "degree": degree, "anchor": anchor, "draws": draws}
    finish({**settings, "seed": seed, "offset": found.offset}, rows, output)
    if found.offset:
        click.echo(f"offset of {second}: {found.offset:.6g} nats")
    if plot is not None:
        from ..report import phase_diagram

        save_picture(phase_diagram(found, (first.stem, second.stem)), plot)


def _phase(path: Path, offset: float) -> Phase:
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


def _boundary_rows(found: Boundary, paths: tuple[Path, Path]) -> list[dict[str, Any]]:
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


@thermo_group.command("integrate")
@click.argument("enthalpies", type=_FILE)
@_degree_option
@result_options
def integrate_command(
    enthalpies: Path, degree: int | None, output: Path | None, plot: Path | None, overwrite: bool
) -> None:
    """Integrate C_p/T dT from enthalpies at one pressure.

    ENTHALPIES is a table with the columns T, enthalpy and, if known, enthalpy_error.
    """
    check_outputs(output, plot, overwrite)
    found = _heat(enthalpies, read_table(enthalpies, {**_T, **_ENTHALPY}, ("enthalpy_error",)), degree)
    rows = [
        {"T": float(T), "S": float(S), "S_error": float(error), "S_configurational": float(configurational),
         "residual": float(residual)}
        for T, S, error, configurational, residual in zip(
            found.temperature, found.entropy, found.error, found.configurational, found.residual, strict=True
        )
    ]  # fmt: skip
    result = {"enthalpies": str(enthalpies), "degree": degree, "covariance": found.covariance}
    finish({**result, "heat_capacity": found.heat_capacity}, rows, output)
    if plot is not None:
        from ..report import heat_entropies

        save_picture(heat_entropies(found), plot)


def _heat(path: Path, table: Table, degree: int | None) -> HeatEntropy:
    return heat_entropy(table["T"], table["enthalpy"], table.get("enthalpy_error"), degree=degree)


@thermo_group.command("couple")
@click.argument("slopes", type=_FILE)
@click.option("--temperature", required=True, type=float, help="In K.")
@click.option("--energy", required=True, type=float, help="U at λ = 1, in eV per atom (at a constant pressure U + PV).")
@click.option("--energy-error", default=0.0, show_default=True, help="Its standard error.")
@click.option("--reference", required=True, type=float, help="Free energy of the system at λ = 0, in eV per atom.")
@result_options
def couple_command(slopes: Path, output: Path | None, plot: Path | None, overwrite: bool, **values: float) -> None:
    """Compute free energy and entropy by thermodynamic integration from a known system.

    SLOPES is a table with the columns lambda (from 0 to 1), slope (⟨∂U/∂λ⟩ in eV per atom) and, if known, slope_error.
    """
    check_outputs(output, plot, overwrite)
    table = read_table(slopes, {"lambda": "from 0 to 1", "slope": "⟨∂U/∂λ⟩ in eV per atom"}, ("slope_error",))
    found = coupling_entropy(
        coupling=table["lambda"], slope=table["slope"], slope_error=table.get("slope_error"), **values
    )
    row = {"T": values["temperature"], "F": found.free_energy, "F_error": found.free_energy_error,
           "S": found.entropy, "S_error": found.error}  # fmt: skip
    finish({"slopes": str(slopes), **values}, [row], output)
    if plot is not None:
        from ..report import coupling_slopes

        save_picture(coupling_slopes(table["lambda"], table["slope"], table.get("slope_error")), plot)


@thermo_group.command("compare")
@click.argument("entropies", type=_FILE)
@click.argument("reference", type=_FILE)
@_degree_option
@click.option("--configurational", is_flag=True, help="Take the share of the momenta, 3/2 ln T, off the reference.")
@click.option("--draws", default=2000, show_default=True, type=click.IntRange(2), help="Of the errors.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@result_options
def compare_command(
    entropies: Path,
    reference: Path,
    degree: int | None,
    configurational: bool,
    draws: int,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
) -> None:
    """Fit a line to entropies of descriptors against those of thermodynamics, at the temperatures that both have.

    ENTROPIES is a table with the columns T, H and, if known, H_error, as `states` writes it. REFERENCE has T, S and, if
    known, S_error; or it has enthalpies, as for `integrate`: then the errors of S, which depend on each other, are
    known better. Two quantities that only grow with T correlate, whatever they are: look at the residuals.
    """
    check_outputs(output, plot, overwrite)
    table = read_table(entropies, {**_T, "H": "entropy in nats"}, ("H_error",))
    T, S, covariance = _reference(reference, degree)
    mine, its = same_temperatures((entropies, reference), (table, {"T": T}))
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
    line = _line(found)
    finish(
        {"entropies": str(entropies), "reference": str(reference), **line, "draws": draws, "seed": seed}, rows, output
    )
    click.echo("\n".join(f"{name}: {value:.6g}" for name, value in line.items()))
    if plot is not None:
        from ..report import entropy_comparison

        save_picture(entropy_comparison(found, T[its], error), plot)


def _reference(path: Path, degree: int | None) -> tuple[Any, Any, Any]:
    """Return T, S and the covariance of S, of a table of entropies or of enthalpies."""
    table = read_table(path, _T, ("S", "S_error", "enthalpy", "enthalpy_error"))
    if "S" in table:
        return table["T"], table["S"], np.diag(table.get("S_error", np.zeros(len(table["T"]))) ** 2)
    read_table(path, {"enthalpy": "in eV per atom; or S, in k_B per atom"})  # raises where it is missing
    heat = _heat(path, table, degree)
    return heat.temperature, heat.entropy, heat.covariance


def _line(found: Comparison) -> dict[str, float]:
    return {
        "slope": found.slope,
        "slope_error": found.slope_error,
        "slope_scatter": found.slope_scatter,
        "intercept": found.intercept,
        "correlation": found.correlation,
        "correlation_error": found.correlation_error,
        "residual_rms": float(np.sqrt(np.mean(found.residual**2))),
    }
