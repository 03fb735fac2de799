"""quests-md watch: a trajectory as a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..config import RunConfig
from ..errors import OutputError
from ..hosts.replay import replay
from ..monitor import Band, Decision
from ..recording import Session
from ..recording.reader import read_about
from ..settings import check_keys, read_toml
from ..sources import read_frames
from . import EXIT_CODES
from ._progress import counter

__all__ = ["watch_command"]

_REPLAY = "replay"  # the host, in run.json

# With this reference these keys of a quests.toml have no place: they are about the other one.
_OF_REFERENCE = {"index": ("skip", "span", "species", "bandwidth"), "live": ("index",)}


def _threshold(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Return a number of nats, or a mapping of what stands before and after the equals signs."""
    if value is None:
        return None
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
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    help="A quests.toml, with every key of a live run. Options that are given replace keys of it.",
)
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
    callback=_threshold,
    help="dH (nats) above which a frame is saved; or false_alarm=RATE, per independent frame.",
)
@click.option("--halt", callback=_threshold, help="The same, above which the replay stops.")
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
@click.pass_context
def watch_command(context: click.Context, /, trajectory: str, config_path: str | None, **values: Any) -> None:
    """Replay a trajectory through the monitor, as if it were running now.

    TRAJECTORY is anything that ASE reads, with an optional slice: dump.lammpstrj, md.traj@::10.
    A line is printed where the band changes; monitor.csv in the output folder has a row per evaluation.
    --select and --halt are required, here or in the quests.toml. What that says of LAMMPS alone is passed over.

    Exit code: 0 finished, 1 failed, 3 halted.
    """
    given = {name: value for name, value in values.items() if _is_given(context, name)}
    config = _of_options(given) if config_path is None else _of_file(config_path, given)
    if config_path is not None:
        _say_ignored(config_path, config, trajectory)
        if "output" not in given:
            _spare_live_run(config_path, config)
    with Session.from_config(config, host=_REPLAY) as session, counter() as progress:
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


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _of_options(given: dict[str, Any]) -> RunConfig:
    """Return what the options alone say; what is not among them has the defaults of a quests.toml."""
    for name in ("select", "halt"):
        if name not in given:
            raise click.UsageError(f"Missing option '--{name}': give it, or a quests.toml with --config.")
    return RunConfig.make(given, where="the options")


def _of_file(path: str, given: dict[str, Any]) -> RunConfig:
    """Return what a quests.toml says, but for options that are given."""
    keys = read_toml(path)
    check_keys(keys, RunConfig.model_fields, path)
    reference = given.get("reference", keys.get("reference", "index"))
    if reference != keys.get("reference", "index"):  # else that reference could not be replaced at all
        keys = {name: value for name, value in keys.items() if name not in _OF_REFERENCE[reference]}
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return RunConfig.make({**keys, **given}, where=f"{path} with {options}" if options else path)


def _say_ignored(path: str, config: RunConfig, trajectory: str) -> None:
    """Say which keys made the live run another one than its replay can be."""
    if config.group != "all":
        said = f"group = {config.group!r}: a trajectory has no groups, so all atoms of {trajectory} are watched"
        click.echo(f"quests-md: warning: {path}: {said}", err=True)
    if config.length_unit is not None:
        said = f"length_unit = {config.length_unit:g} is for LAMMPS: positions in {trajectory} are taken as Å"
        click.echo(f"quests-md: warning: {path}: {said}", err=True)


def _spare_live_run(path: str, config: RunConfig) -> None:
    """Refuse to write into the folder of the live run whose quests.toml this is, unless that is asked for."""
    about = Path(config.output) / "run.json"
    if (config.overwrite or config.resume) and about.exists():
        host = read_about(about).get("host")
        if host != _REPLAY:
            raise OutputError(
                f"{config.output} holds a live run (host: {host}), and {path} would have its files replaced or gone on "
                "with: give the replay a folder of its own with -o"
            )


def _line(decision: Decision) -> str:
    reasons = "; ".join(decision.reasons) or f"the largest dH is {decision.maximum:.6g}"
    return f"step {decision.step}: {decision.band}: {reasons}"
