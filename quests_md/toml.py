"""TOML files that people write: read, checked by a pydantic model, with errors that name the file and the key."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic

from .errors import ConfigError, InputError

__all__ = ["Seconds", "check_keys", "make_settings", "parse_seconds", "read_toml", "tomllib"]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Model = TypeVar("_Model", bound=pydantic.BaseModel)


def parse_seconds(value: Any, name: str | None = "wall_time") -> float:
    """Return a time in seconds, given as a number of seconds or as "hh:mm:ss"; `InputError` with `name` if neither."""
    if isinstance(value, str) and re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", value):
        hours, minutes, seconds = map(int, value.split(":"))
        total = 3600.0 * hours + 60.0 * minutes + seconds
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        total = float(value)
    else:
        total = math.nan
    if not 0 < total < math.inf:
        raise InputError(f'{name} must be a number of seconds or a text such as "23:30:00", not {value!r}')
    return total


def _parse_field(value: Any, info: pydantic.ValidationInfo) -> float:
    return parse_seconds(value, info.field_name)


Seconds = Annotated[float, pydantic.BeforeValidator(_parse_field)]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML file; `ConfigError` if it cannot be read or is not TOML."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def make_settings(model: type[_Model], values: dict[str, Any], where: str) -> _Model:
    """Check values and make a model of them; `ConfigError` names `where` they are from, and the key that is wrong."""
    check_keys(values, model.model_fields, where)
    try:
        return model(**values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        key, text = ".".join(map(str, problem["loc"])), problem["msg"].replace("valid tuple", "list")
        if problem["type"] == "value_error":  # raised by a check of our own, whose text says what was given
            raise ConfigError(f"{where}: {problem['ctx']['error']}") from None
        given = "" if problem["type"] == "missing" else f", not {problem['input']!r}"
        raise ConfigError(f"{where}: {key}: {text[0].lower()}{text[1:]}{given}") from None


def check_keys(values: Iterable[str], keys: Iterable[str], where: str) -> None:
    """Raise `ConfigError` for a key of `values` that is none of `keys`; it names the nearest one."""
    known = list(keys)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
