"""quests-md attack: frames near given ones that the reference knows less, without molecular dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import OutputError
from ..files import write_atomically
from ..files.extxyz import format_frame
from ..frame import Frame
from ..hosts.attack import Attack, attack
from ..index import Index
from ..sources import read_all
from .calculators import keywords_option, read_oracle
from .datasets import reading_options
from .progress import show_progress
from .results import format_table

__all__ = ["attack_command"]


@click.command("attack")
@click.argument("frames")
@click.option(
    "--index", "index_file", required=True, type=click.Path(path_type=Path), help="The index of the reference."
)
@click.option("--calculator", required=True, metavar="MODEL", help="The model: the import path of an ASE calculator.")
@keywords_option
@click.option("--temperature", required=True, type=click.FloatRange(0, min_open=True), help="K: a nat may cost kT.")
@click.option("--ceiling", default=20.0, show_default=True, help="dH (nats) above which an atom is left alone.")
@click.option("--floor", type=float, help="dH (nats) below which it is.  [default: the median of the reference]")
@click.option("--focus", default="all", show_default=True, type=click.Choice(["all", "worst"]), help="Whose dH grows.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Largest number of steps.")
@click.option("--displacement", default=0.5, show_default=True, help="Longest way of an atom, in Å.")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1), help="Climbs from every frame.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the first displacements.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The extended XYZ file to write.")
@click.option("--overwrite", is_flag=True, help="Replace that file if it exists.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]")
@reading_options()
def attack_command(
    frames: str,
    index_file: Path,
    calculator: str,
    keywords: dict[str, Any],
    repeats: int,
    seed: int,
    output: Path,
    overwrite: bool,
    reading: dict[str, Any],
    **options: Any,
) -> None:
    """Climb from frames to others near them that the reference knows less: candidates for an oracle.

    FRAMES is anything that ASE reads, with an optional slice. Each climb goes up in dH less the energy over kT, and
    ends before atoms are too near to each other. -o has the frames that the climbs came to, with dH of every atom.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or give --overwrite")
    index, model = Index.open(index_file), read_oracle(calculator, keywords, {}).make_calculator()
    rows, texts = [], []
    with show_progress() as progress:
        progress.say(f"climbing from the frames of {frames}:")
        for number, one in enumerate(progress.count(read_all(frames, **reading))):
            for repeat in range(repeats):
                found = attack(one.atoms, model, index, seed=seed + repeat, **options)
                rows.append({"frame": number, **_describe(found)})
                texts.append(_format(found, number))
    write_atomically(output, lambda file: file.writelines(texts))
    click.echo(format_table(rows))
    click.echo(f"{len(rows)} frames in {output}")


def _describe(found: Attack) -> dict[str, Any]:
    return {
        "dH before": f"{found.before:.2f}",
        "dH": f"{found.dH.max():.2f}",
        "energy, eV": f"{found.energy:.3f}",
        "way, Å": f"{found.displacement:.2f}",
        "steps": found.steps,
        "ended by": found.ended,
    }


def _format(found: Attack, number: int) -> bytes:
    frame = Frame.from_atoms(found.atoms, number, velocities=None, energy=found.atoms.info["model_energy"])
    frame.forces = found.atoms.arrays["model_forces"]
    info = {"parent": number, "dH_max": float(found.dH.max()), "dH_before": found.before, "climbed": found.energy}
    return format_frame(frame, found.dH, info)
