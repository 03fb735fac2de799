"""quests-md watch: a trajectory as a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config import RunConfig
from ..hosts.replay import replay
from ..monitor import Band, Decision
from ..recording import Session
from ..sources import read_frames
from . import EXIT_CODES
from ._progress import counter

__all__ = ["watch_command"]


def _threshold(context: click.Context, parameter: click.Parameter, value: str) -> Any:
    """Return a number of nats, or a mapping of what stands before and after the equals signs."""
    try:
        if "=" not in value:
            return float(value)
        return {key.strip(): float(number) for key, _, number in (part.partition("=") for part in value.split(","))}
    except ValueError:
        raise click.BadParameter(f"a number of nats, or KEY=NUMBER,..., not {value!r}") from None


def _bandwidth(context: click.Context, parameter: click.Parameter, value: str) -> Any:
    if value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f'a number in 1/Å or "auto", not {value!r}') from None


@click.command("watch")
@click.argument("trajectory")
@click.option("--index", help="The index file.")
@click.option(
    "--reference",
    default="index",
    show_default=True,
    type=click.Choice(["index", "live"]),
    help="live: learn from the trajectory itself, and then say what in it is new; without --index.",
)
@click.option("--skip", default=0, show_default=True, help="With --reference live: steps before learning.")
@click.option("--span", type=int, help="With --reference live: steps to learn from.")
@click.option(
    "--bandwidth",
    default="0.015",
    show_default=True,
    callback=_bandwidth,
    help='With --reference live: h in 1/Å, or "auto".',
)
@click.option("--species", help="With --reference live: how elements enter, as of `quests-md index build`.")
@click.option(
    "--select",
    required=True,
    callback=_threshold,
    help="dH (nats) above which a frame is saved; or false_alarm=RATE, per independent frame.",
)
@click.option("--halt", required=True, callback=_threshold, help="The same, above which the replay stops.")
@click.option("--every", default=1, show_default=True, help="Evaluate frames whose step is a multiple of this.")
@click.option("--save-every", default=1, show_default=True, help="Least number of steps between saved candidates.")
@click.option("-o", "--output", default="uq", show_default=True, help="Folder for the files of the run.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run in that folder.")
@click.option(
    "--values",
    default="exact",
    show_default=True,
    type=click.Choice(["exact", "flagged"]),
    help="flagged: exact dH above select only, upper bounds elsewhere; faster, and decides the same.",
)
@click.option(
    "--precision",
    default="single",
    show_default=True,
    type=click.Choice(["single", "double"]),
    help="Of exact dH where it decides nothing.",
)
@click.option("--threads", default=1, show_default=True, help="Threads to use.")
def watch_command(trajectory: str, **values: Any) -> None:
    """Replay a trajectory through the monitor, as if it were running now.

    TRAJECTORY is anything that ASE reads, with an optional slice: dump.lammpstrj, md.traj@::10.
    A line is printed where the band changes; monitor.csv in the output folder has a row per evaluation.

    Exit code: 0 finished, 1 failed, 3 halted.
    """
    config = RunConfig.make(values, where="the options")
    with Session.from_config(config, host="replay") as session, counter() as progress:
        progress.say(f"watching {trajectory}:")
        band = Band.COVERED
        for decision in replay(session, progress.count(read_frames(trajectory))):
            if decision.evaluated and decision.band != band:
                band = decision.band
                click.echo(_line(decision))
    if not session.monitor.index.ready:
        click.echo(f"quests-md: warning: {trajectory} has ended while the reference was learning", err=True)
    elif session.n_evaluated == 0:
        click.echo(f"quests-md: warning: no step of {trajectory} is a multiple of {config.every}", err=True)
    click.echo(f"files in {Path(config.output)}")
    raise click.exceptions.Exit(EXIT_CODES[session.status])


def _line(decision: Decision) -> str:
    reasons = "; ".join(decision.reasons) or f"the largest dH is {decision.maximum:.6g}"
    return f"step {decision.step}: {decision.band}: {reasons}"
