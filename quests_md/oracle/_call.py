"""What settings name by an import path: checked, imported, and called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["FOLDER", "built", "check_call", "check_path", "filled", "load"]

FOLDER = "{folder}"
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def check_path(value: str, name: str) -> str:
    """Return an import path, "module:name"; `ValueError` if it is none."""
    if not _PATH.fullmatch(value):
        raise ValueError(f'{name} must be an import path such as "ase.calculators.emt:EMT", not {value!r}')
    return value


def check_call(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a table whose `call` is an import path, or None; `ValueError` if it is none."""
    if table is not None:
        check_path(str(table.get("call", "")), "call")
    return table


def load(path: str) -> Any:
    """Return what an import path names."""
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def filled(value: Any, folder: str) -> Any:
    """Return settings with their `{folder}` filled in."""
    if isinstance(value, str):
        return value.replace(FOLDER, folder)
    if isinstance(value, Mapping):
        return {key: filled(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(item, folder) for item in value]
    return value


def built(value: Any) -> Any:
    """Return settings with their tables that have a key `call` called with the other keys, the inner ones first."""
    if isinstance(value, list):
        return [built(item) for item in value]
    if isinstance(value, dict):
        made = {key: built(item) for key, item in value.items()}
        return load(str(made.pop("call")))(**made) if "call" in made else made
    return value
