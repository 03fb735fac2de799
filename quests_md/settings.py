"""Settings that people write: TOML files, checked by a pydantic model, with errors that name the key and the file."""

from __future__ import annotations

import difflib
import math
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from .errors import ConfigError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["make_settings", "read_toml", "seconds_of", "tomllib"]

_Model = TypeVar("_Model", bound=pydantic.BaseModel)


def seconds_of(wall_time: Any) -> float:
    """Return a time in seconds that is given as such, or as "hh:mm:ss"; `InputError` if it is neither."""
    if isinstance(wall_time, str) and re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", wall_time):
        hours, minutes, seconds = map(int, wall_time.split(":"))
        return 3600.0 * hours + 60.0 * minutes + seconds
    if isinstance(wall_time, (int, float)) and not isinstance(wall_time, bool) and 0 < wall_time < math.inf:
        return float(wall_time)
    raise InputError(f'wall_time must be a number of seconds or a text such as "23:30:00", not {wall_time!r}')


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return what a TOML file holds; `ConfigError` if it cannot be read or is no TOML."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def make_settings(model: type[_Model], values: dict[str, Any], where: str) -> _Model:
    """Check values and make a model of them; `ConfigError` names `where` they came from, and the nearest right key."""
    for key in values:
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(model.model_fields)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    try:
        return model(**values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        key, text = ".".join(map(str, problem["loc"])), problem["msg"]
        if problem["type"] == "value_error":  # of a check of our own, which says what it was given
            raise ConfigError(f"{where}: {problem['ctx']['error']}") from None
        given = "" if problem["type"] == "missing" else f", not {problem['input']!r}"
        raise ConfigError(f"{where}: {key}: {text[0].lower()}{text[1:]}{given}") from None
