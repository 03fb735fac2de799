"""quests-md export: what a run has found out, in the files of other programs."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import OutputError
from ..files import write_atomically
from ..recording.model_deviation import MEASURES, format_model_deviation
from ..recording.reader import read_run

__all__ = ["export_group"]


@click.group("export")
def export_group() -> None:
    """Write what a run has found out for other programs."""


@export_group.command("model-devi")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("-o", "--output", default="model_devi.out", show_default=True, help="File to write.")
@click.option(
    "--measure",
    type=click.Choice(list(MEASURES)),
    default="dH",
    show_default=True,
    help="In the place of the deviation of forces: dH in nats, or the expected force error in eV/Å.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def model_devi(folder: str, output: str, measure: str, overwrite: bool) -> None:
    """Write the evaluations of the run in FOLDER as DP-GEN reads a model deviation.

    The columns of the forces hold dH, so that the trust levels of DP-GEN (model_devi_f_trust_lo and _hi) are select and
    halt. Those of the virial are 0. Evaluate at the steps at which the trajectory is written (trj_freq).
    """
    path = Path(output)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or give --overwrite")
    text = format_model_deviation(read_run(folder), measure)
    write_atomically(path, lambda out: out.write(text.encode()))
    click.echo(f"{path}: {text.count(chr(10)) - 1} steps")
