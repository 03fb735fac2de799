"""How results show themselves: one line at a prompt, a small table in a notebook, and as a DataFrame of pandas."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

from .errors import MissingExtraError

__all__ = ["Shown", "Table", "make_dataframe", "to_html"]


def to_html(title: str, facts: Mapping[str, object]) -> str:
    """Return facts as a table of HTML, as a notebook shows it."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>"
        f"{html.escape(_format(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption style='text-align:left'><b>{html.escape(title)}</b></caption>{rows}</table>"


def make_dataframe(columns: Mapping[str, Any]) -> Any:
    """Return columns as a ``pandas.DataFrame``.

    Raises
    ------
    MissingExtraError
        pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("to_dataframe needs pandas: pip install 'quests_md[pandas]'") from error
    return pandas.DataFrame(columns)


def _format(value: object) -> str:
    """Format a value in few characters: of an array its shape and range, of a long sequence its length."""
    shape = getattr(value, "shape", None)
    if shape:
        size = " × ".join(map(str, shape))
        numbers: Any = value
        if 0 in shape or numbers.dtype.kind not in "if":
            return f"array of {size}"
        return f"array of {size}, {numbers.min():.6g} to {numbers.max():.6g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)) and (len(value) > 6 or any(is_dataclass(one) for one in value)):
        return f"{len(value)} of them"
    return str(value)


class Shown:
    """A dataclass with arrays, which is shown in one line, and in a notebook as a table of its fields."""

    def _list_facts(self) -> dict[str, object]:
        shown = [one for one in fields(self) if one.repr]  # type: ignore[arg-type] # those who inherit are dataclasses
        return {one.name: getattr(self, one.name) for one in shown}

    def __repr__(self) -> str:
        """Return one line: arrays would fill the screen."""
        told = ", ".join(f"{name}={_format(value)}" for name, value in self._list_facts().items())
        return f"<{type(self).__name__}: {told}>"

    def _repr_html_(self) -> str:
        return to_html(type(self).__name__, self._list_facts())


class Table(Shown):
    """A result that has a table: `to_dataframe` returns it."""

    _COLUMNS: ClassVar[tuple[str, ...]] = ()

    def to_dataframe(self) -> Any:
        """Return its table as a ``pandas.DataFrame``.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        return make_dataframe({name: getattr(self, name) for name in self._COLUMNS})
