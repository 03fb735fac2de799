"""Calculators that verbs take: an import path with keywords, or a TOML file of an oracle or of a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..labelling import Oracle
from ..toml import make_settings, read_toml, tomllib

__all__ = ["keywords_option", "read_oracle"]


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
