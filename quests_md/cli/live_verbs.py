"""quests-md config, run and watch: the configuration of a run, and watching a LAMMPS script or a trajectory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from ..config import RunConfig, explain, group_keys, write_template
from ..errors import ElementError, OutputError
from ..files import write_atomically
from ..hosts.replay import replay
from ..index import Described, Index, Live, Meaning, explain_threshold, resolve_threshold
from ..monitor import Band, Decision, Monitor
from ..recording import Session, reference_of
from ..recording.reader import read_about
from ..sources import read_frames
from ..toml import check_keys, read_toml
from . import EXIT_CODES
from .datasets import convert_bandwidth, reading_options
from .progress import show_progress
from .results import format_facts, to_plain
from .thresholds import convert_threshold, count_atoms, typical_counts

__all__ = ["config_group", "run_command", "watch_command"]


# -- config ------------------------------------------------------------------------------------------------------------


@click.group("config")
def config_group() -> None:
    """Write and check a quests.toml."""


@config_group.command("init")
@click.argument("file", default="quests.toml", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write a quests.toml with every key, explained.

    FILE is quests.toml by default; one that exists is left alone.
    """
    if file.exists():
        raise OutputError(f"{file} exists: choose another name, or remove it")
    write_atomically(file, lambda out: out.write(write_template().encode()))
    click.echo(f"{file}: written. Set index, select and halt in it, then: quests-md config check {file}")


@config_group.command("check")
@click.argument("file", default="quests.toml", type=click.Path(path_type=Path))
@click.option(
    "--atoms",
    metavar="N",
    multiple=True,
    help="Watched atoms: N; or --atoms Cu=81 --atoms Au=27.  [default: as many as a frame of the reference has]",
)
@click.option("--json", "as_json", is_flag=True, help="What is known of the thresholds, for programs.")
def check(file: Path, atoms: tuple[str, ...], as_json: bool) -> None:
    """Check a quests.toml, that its index can serve it, and say what its thresholds mean.

    A threshold is shown in nats, with the rate of false alarms at this number of atoms, the share of left-out frames of
    the reference that lie above, and the bound of the force error there, as far as the calibration of the index knows
    them.
    """
    config = RunConfig.read(file)
    meanings: list[Meaning] = []
    lines = _describe_live(config) if config.reference == "live" else _describe_index(file, config, atoms, meanings)
    warnings = list(dict.fromkeys(each.warning for each in meanings if each.warning))
    if (Path(config.output) / "run.json").exists() and not config.overwrite:
        warnings.append(f"{config.output} holds an earlier run")
    if as_json:
        known = {each.name: asdict(each) for each in meanings}
        click.echo(json.dumps(to_plain({"file": str(file), "thresholds": known, "warnings": warnings}), indent=2))
        return
    for name in config.model_fields_set - set(lines):
        value = getattr(config, name)
        lines[name] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    click.echo(f"{file}: right")
    told = {each.name: each.in_words().split("; ") for each in meanings if each.in_words()}
    for name in RunConfig.model_fields:
        if name in lines:
            click.echo("\n".join([format_facts({name: lines[name]}), *(f"    {text}" for text in told.get(name, []))]))
    for warning in warnings:
        click.echo(f"quests-md: warning: {warning}", err=True)


def _describe_live(config: RunConfig) -> dict[str, str]:
    Live(**config.of_live())
    return {"reference": "live: what the thresholds come to is known when it has learned"}


def _describe_index(file: Path, config: RunConfig, atoms: tuple[str, ...], meanings: list[Meaning]) -> dict[str, str]:
    """Describe the index, and the thresholds that it turns into nats; add what these mean to `meanings`."""
    reference = reference_of(config)
    assert isinstance(reference, (Index, Described))
    reference.require(k=config.k, cutoff=config.cutoff)
    monitor = Monitor(reference, **config.of_monitor())  # which refuses what does not go together
    index = reference.index if isinstance(reference, Described) else reference
    if isinstance(reference, Index):
        _check_elements(file, config, index)
    given = count_atoms(atoms, config.elements or index.elements)
    counts = given or typical_counts(index, config.elements)
    monitor.thresholds.resolve(index, counts)  # and so do its thresholds, once they are numbers
    of = f"of {', '.join(index.elements)}" if index.elements else f"by {config.describe}"
    lines = {"index": f"{config.index}: {len(index)} environments {of}"}
    for name in ("select", "halt"):
        threshold = getattr(config, name)
        nats = resolve_threshold(name, threshold, index, counts)
        lines[name] = _format_threshold(threshold, nats, index, bool(given))
        if not ("force_error" in threshold and _has_local(index) if isinstance(threshold, dict) else False):
            meanings.append(explain_threshold(name, nats, index, counts))
    return lines


def _check_elements(file: Path, config: RunConfig, index: Index) -> None:
    unknown = [symbol for symbol in config.elements or () if symbol not in (*index.elements, "NULL")]
    if unknown:
        raise ElementError(f"{file}: elements: {', '.join(unknown)} is not in the index: {', '.join(index.elements)}")


def _has_local(index: Index) -> bool:
    return index.calibration is not None and index.calibration.local_error is not None


def _format_threshold(given: Any, nats: dict[str, float], index: Index, has_atoms: bool) -> str:
    """Format a threshold in nats."""
    if not isinstance(given, dict):
        return f"{given:g} nats"
    told = ", ".join(f"{value:.6g} nats ({symbol})" for symbol, value in nats.items())
    if "force_error" in given and _has_local(index):
        return f"{given['force_error']:g} eV/Å: the bound of each atom; above {told} it is inf"
    if "false_alarm" in given and not has_atoms:
        return f"{given}: {told} with as many atoms as the reference; --atoms N says it for your run"
    return told


# -- run ---------------------------------------------------------------------------------------------------------------


@click.command(
    # Without -h, which click would find in LAMMPS's -echo.
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
)
@click.argument("script", type=click.Path(dir_okay=False))
@click.option("--config", "config_path", required=True, type=click.Path(dir_okay=False), help="The quests.toml.")
@click.argument("lammps_arguments", nargs=-1, type=click.UNPROCESSED)
def run_command(script: str, config_path: str, lammps_arguments: tuple[str, ...]) -> None:
    """Run and watch a LAMMPS input SCRIPT, with the lammps package of this Python.

    Arguments after the script go to LAMMPS: -var T 300 -log none. Watching begins at a comment `# quests-md: attach`
    in the script, else before its first run or minimize.

    Exit code: 0 finished, 1 failed (also by a broken frame), 3 halted: above a threshold, by SIGTERM or wall_time.
    """
    from ..hosts.lammps_script import run_script

    watch = run_script(script, RunConfig.read(config_path), lammps_arguments)
    raise click.exceptions.Exit(EXIT_CODES[watch.session.status])


# -- watch -------------------------------------------------------------------------------------------------------------


_REPLAY = "replay"  # the name of the host in run.json

# The keys of a quests.toml that are wrong with a reference: they belong to the other one.
_OF_REFERENCE = {"index": ("skip", "span", "species", "bandwidth"), "live": ("index", "describe")}

# The keys of a quests.toml that are options, too.
_OPTIONS = (
    "reference", "index", "skip", "span", "species", "bandwidth", "select", "halt", "every", "values", "precision",
    "threads", "save_every", "output", "overwrite",
)  # fmt: skip


_CONVERTERS = {"select": convert_threshold, "halt": convert_threshold, "bandwidth": convert_bandwidth}


def add_key_options(command: Any) -> Any:
    """Add the options that are keys, each with the type, the default and the text of its key."""
    for name in reversed(_OPTIONS):
        field = RunConfig.model_fields[name]
        flags = [f"--{name.replace('_', '-')}", *(["-o"] if name == "output" else [])]
        how: dict[str, Any] = {"help": explain(field)}
        if field.annotation is bool:
            how["is_flag"] = True
        elif name in _CONVERTERS:
            how |= {"type": _CONVERTERS[name], "metavar": "TEXT"}
        else:
            how["type"] = _find_type(field.annotation)
        if not (field.is_required() or field.default is None or field.default is False):
            how |= {"default": field.default, "show_default": True}
        command = click.option(*flags, **how)(command)
    return command


def _find_type(annotation: Any) -> Any:
    """Return the type of an option for the type of its key, without None and ranges."""
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    return (get_args(kinds[0]) or kinds)[0]


class _CommandOfKeys(click.Command):
    """A command whose help shows the options that are keys in their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings = {name: heading for heading, fields in group_keys().items() for name in fields}
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None:
                sections.setdefault(headings.get(option.name or "", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@click.command("watch", cls=_CommandOfKeys)
@click.argument("trajectory")
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    help="A quests.toml, with every key of a live run. Options that are given replace keys of it.",
)
@add_key_options
@reading_options()
@click.pass_context
def watch_command(
    context: click.Context, /, trajectory: str, config_path: str | None, reading: dict[str, Any], **values: Any
) -> None:
    """Replay a trajectory through the monitor, as if it were running now.

    TRAJECTORY is anything that ASE reads, with an optional slice: dump.lammpstrj, md.traj@::10.
    A line is printed where the band changes; monitor.csv in the output folder has a row for each evaluation.
    --select and --halt must be given, here or in the quests.toml; as options they are written 5, Si=5,C=8 or
    false_alarm=0.01. Keys of the quests.toml that are for LAMMPS alone are ignored.

    Exit code: 0 finished, 1 failed, 3 halted.
    """
    given = {name: value for name, value in values.items() if _is_given(context, name)}
    config = _read_options(given) if config_path is None else _read_file(config_path, given)
    if config_path is not None:
        _warn_of_ignored(config_path, config, trajectory)
        if "output" not in given:
            _spare_live_run(config_path, config)
    with Session.from_config(config, host=_REPLAY) as session, show_progress() as progress:
        progress.say(f"watching {trajectory}:")
        band = Band.COVERED
        for decision in replay(session, progress.count(read_frames(trajectory, **reading))):
            if decision.evaluated and decision.band != band:
                band = decision.band
                click.echo(_format_decision(decision))
    if not session.monitor.index.ready:
        click.echo(f"quests-md: warning: {trajectory} has ended while the reference was learning", err=True)
    elif session.n_evaluated == 0:
        click.echo(f"quests-md: warning: no step of {trajectory} is a multiple of {config.every}", err=True)
    click.echo(f"files in {Path(config.output)}")
    raise click.exceptions.Exit(EXIT_CODES[session.status])


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _read_options(given: dict[str, Any]) -> RunConfig:
    """Make a configuration of the options alone; other keys have the defaults of a quests.toml."""
    for name in ("select", "halt"):
        if name not in given:
            raise click.UsageError(f"Missing option '--{name}': give it, or a quests.toml with --config.")
    return RunConfig.make(given, where="the options")


def _read_file(path: str, given: dict[str, Any]) -> RunConfig:
    """Read a quests.toml. Options that are given replace its keys."""
    keys = read_toml(path)
    check_keys(keys, RunConfig.model_fields, path)
    reference = given.get("reference", keys.get("reference", "index"))
    if reference != keys.get("reference", "index"):  # else the keys of the other reference would be errors
        keys = {name: value for name, value in keys.items() if name not in _OF_REFERENCE[reference]}
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return RunConfig.make({**keys, **given}, where=f"{path} with {options}" if options else path)


def _warn_of_ignored(path: str, config: RunConfig, trajectory: str) -> None:
    """Warn of keys by which the live run differs from its replay."""
    if config.group != "all":
        said = f"group = {config.group!r}: a trajectory has no groups, so all atoms of {trajectory} are watched"
        click.echo(f"quests-md: warning: {path}: {said}", err=True)
    if config.length_unit is not None:
        said = f"length_unit = {config.length_unit:g} is for LAMMPS: positions in {trajectory} are taken as Å"
        click.echo(f"quests-md: warning: {path}: {said}", err=True)


def _spare_live_run(path: str, config: RunConfig) -> None:
    """Raise `OutputError` if the folder of the quests.toml holds a live run: a replay would replace its files."""
    about = Path(config.output) / "run.json"
    if (config.overwrite or config.resume) and about.exists():
        host = read_about(about).get("host")
        if host != _REPLAY:
            raise OutputError(
                f"{config.output} holds a live run (host: {host}), and {path} would have its files replaced or gone on "
                "with: give the replay a folder of its own with -o"
            )


def _format_decision(decision: Decision) -> str:
    reasons = "; ".join(decision.reasons) or f"the largest dH is {decision.maximum:.6g}"
    return f"step {decision.step}: {decision.band}: {reasons}"
