"""Calculators that verbs take: an import path with keywords, or a TOML file of an oracle or of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..index import Index
from ..labelling import Oracle
from ..sources import MODEL_FORCES, describe_source
from ..toml import make_settings, read_toml, tomllib
from .results import add_options

__all__ = ["keywords_option", "model_options", "open_model", "read_oracle"]


def _convert_keywords(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Convert an option: NAME=VALUE pairs to a dict. A value that is no TOML is a text."""
    keywords: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise click.BadParameter(f"NAME=VALUE, not {text!r}")
        try:
            keywords[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            keywords[name] = value
    return keywords


keywords_option = click.option(
    "--keyword",
    "keywords",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_convert_keywords,
    help="Of the calculator; VALUE as in TOML, or a text. May be repeated.",
)


# What has a model's forces on labelled frames.
model_options = add_options(
    click.option("--calculator", metavar="MODEL", help="Compute the model's forces: import path of an ASE calculator."),
    keywords_option,
    click.option("--lammps", metavar="COMMANDS", help="Compute them by LAMMPS: a file with pair_style and pair_coeff."),
    click.option(
        "--model-forces-key",
        "model_key",
        default=MODEL_FORCES,
        show_default=True,
        metavar="KEY",
        help="Name of the model's forces in LABELLED, if nothing computes them.",
    ),
)


def read_oracle(calculator: str, keywords: dict[str, Any], options: dict[str, Any]) -> Oracle:
    """Read the oracle from its file, the file of a loop or an import path. Options replace what the file says."""
    path = Path(calculator)
    values: dict[str, Any]
    values = read_toml(path) if path.suffix == ".toml" or path.is_file() else {"calculator": calculator}
    if isinstance(values.get("oracle"), dict):  # the file of a loop
        from ..learning import LearnConfig

        values = LearnConfig.make(values, calculator).oracle.oracle().model_dump()
    values |= {name: value for name, value in options.items() if value is not None}
    given = values.get("keywords", {})
    if keywords and isinstance(given, dict):
        values["keywords"] = {**given, **keywords}
    return make_settings(Oracle, values, calculator)


def open_model(
    index: Index,
    sources: Sequence[str],
    calculator: str | None,
    keywords: dict[str, Any],
    lammps: str | None,
    model_key: str,
    reading: dict[str, Any],
) -> tuple[Oracle | None, str, str]:
    """Return what computes a model's forces (None: the files have them), its fingerprint and its name.

    The values are those of `model_options` and `reading_options`.
    """
    from ..training import fingerprint, read_commands

    if calculator is not None and lammps is not None:
        raise click.UsageError("give --calculator or --lammps")
    if keywords and calculator is None:
        raise click.UsageError("--keyword is for --calculator")
    if model_key != MODEL_FORCES and (calculator or lammps):
        raise click.UsageError("--model-forces-key names forces in LABELLED: leave it out if they are computed")
    if lammps is not None:
        return *read_commands(lammps, reading["elements"] or index.elements), Path(lammps).stem
    if calculator is not None:
        model = read_oracle(calculator, keywords, {})
        return model, fingerprint(model.settings), model.calculator.rpartition(":")[2]
    digests = [describe_source(source)["sha256"] for source in sources]
    return None, fingerprint({"frames": digests, "key": model_key}), "model"
