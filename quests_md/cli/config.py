"""quests-md config: init, check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config import RunConfig
from ..errors import ConfigError, ElementError, OutputError
from ..files import write_atomically
from ..index import Index, Live, resolve_threshold

__all__ = ["config_group"]


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
    write_atomically(file, lambda out: out.write(RunConfig.template().encode()))
    click.echo(f"{file}: set index, select and halt, then: quests-md config check {file}")


@config_group.command("check")
@click.argument("file", default="quests.toml", type=click.Path(path_type=Path))
@click.option(
    "--atoms",
    metavar="N",
    multiple=True,
    help="Watched atoms, as N or Si=N for each element: needed to turn a false-alarm rate into nats.",
)
def check(file: Path, atoms: tuple[str, ...]) -> None:
    """Check a quests.toml, and that its index can serve it."""
    config = RunConfig.read(file)
    lines = _of_live(config) if config.reference == "live" else _of_index(file, config, atoms)
    for name in config.model_fields_set - set(lines):
        lines[name] = str(getattr(config, name))
    click.echo(f"{file}: right")
    for name in RunConfig.model_fields:
        if name in lines:
            click.echo(f"  {name:<14} {lines[name]}")
    if (Path(config.output) / "run.json").exists() and not config.overwrite:
        click.echo(f"quests-md: warning: {config.output} holds an earlier run", err=True)


def _of_live(config: RunConfig) -> dict[str, str]:
    Live(**config.of_live())
    return {"reference": "live: what the thresholds come to is known when it has learned"}


def _of_index(file: Path, config: RunConfig, atoms: tuple[str, ...]) -> dict[str, str]:
    """Return what there is to say of the index and of the thresholds that are judged by it."""
    index = Index.open(config.index or "")
    index.require(k=config.k, cutoff=config.cutoff)
    _check_elements(file, config, index)
    counts = _counts(atoms, config, index)
    lines = {"index": f"{config.index}: {len(index)} environments of {', '.join(index.elements)}"}
    return lines | {name: _threshold(name, getattr(config, name), index, counts) for name in ("select", "halt")}


def _check_elements(file: Path, config: RunConfig, index: Index) -> None:
    unknown = [symbol for symbol in config.elements or () if symbol not in (*index.elements, "NULL")]
    if unknown:
        raise ElementError(f"{file}: elements: {', '.join(unknown)} is not in the index: {', '.join(index.elements)}")


def _counts(atoms: tuple[str, ...], config: RunConfig, index: Index) -> dict[str, int]:
    """Return watched atoms by symbol; a bare number is shared by the elements of the run."""
    symbols = [s for s in dict.fromkeys(config.elements or index.elements) if s != "NULL"]
    counts: dict[str, int] = {}
    for text in atoms:
        symbol, _, number = text.rpartition("=")
        if not number.isdigit() or int(number) < 1 or (symbol and symbol not in symbols):
            raise click.BadParameter(f"{text!r} is neither a number of atoms nor SYMBOL=N of {', '.join(symbols)}")
        counts.update({symbol: int(number)} if symbol else {s: -(-int(number) // len(symbols)) for s in symbols})
    return counts


def _threshold(name: str, given: Any, index: Index, counts: dict[str, int]) -> str:
    """Return a threshold in nats, where that is known."""
    if not isinstance(given, dict):
        return f"{given:g} nats"
    if "false_alarm" in given and not counts:
        if index.calibration is None:
            raise ConfigError(f"{name}: the index has no calibration; make it: quests-md index calibrate {index.path}")
        return f"{given}: give --atoms to see it in nats"
    resolved = resolve_threshold(name, given, index, counts or dict.fromkeys(index.elements, 1))
    return ", ".join(f"{value:.6g} nats ({symbol})" for symbol, value in resolved.items())
