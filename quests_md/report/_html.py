"""One self-contained page of HTML: what it consists of, and how it is put together."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from ..errors import MissingExtraError
from ..versions import versions

if TYPE_CHECKING:
    from jinja2 import Environment

    from ._html_scene import Scene

__all__ = ["Card", "Cell", "Drawing", "Page", "Section", "Table", "cell", "render", "require_extra"]


@dataclass(frozen=True)
class Card:
    """A figure (a number) in large type, with its name and what it means."""

    name: str
    value: str
    unit: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure (a picture): SVG for wide screens, and for narrow ones where that is another."""

    svg: str
    caption: str
    narrow: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and the number that it is sorted by."""

    text: str
    number: float | None = None
    band: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts; `note` says what was left out."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page. `facts` are pairs of a name and what it is."""

    title: str
    text: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    scenes: Sequence[Scene] = ()
    tables: Sequence[Table] = ()
    facts: Sequence[tuple[str, str]] = ()

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Page:
    """All of a page. `status` is one of run.json, or empty; `notes` are what the reader must know first."""

    title: str
    kind: str
    lead: str
    status: str = ""
    notes: Sequence[str] = ()
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def require_extra() -> None:
    """Raise `MissingExtraError` unless the packages that a page is made with are there."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"a report needs matplotlib and jinja2 ({error.name} is missing): pip install 'quests_md[report]'"
        ) from error


def render(page: Page) -> str:
    """Return the HTML. Nothing in it is loaded from anywhere, which its own policy enforces.

    Text is escaped by the templates. Scripts run only if they are those of this function, by their hashes.
    """
    scenes = [scene for section in page.sections for scene in section.scenes]
    scripts = [_asset("page.js")]
    if scenes:
        licence = _vendored("3Dmol-LICENSE.txt").replace("*/", "* /")
        scripts = [f"/*\n{licence}*/\n{_vendored('3Dmol-min.js')}", _asset("view.js"), *scripts]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    made = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    data = {"scenes": [scene.data for scene in scenes]}
    return _templates().get_template("page.html").render(
        page=page, style=_asset("page.css"), scripts=scripts, hashes=hashes, made=made, versions=versions(),
        data=json.loads(json.dumps(data, allow_nan=False)),
    )  # fmt: skip


@cache
def _templates() -> Environment:
    import jinja2

    loader = jinja2.FunctionLoader(_asset)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _vendored(name: str) -> str:
    return files(__package__).joinpath("vendor", name).read_text(encoding="utf-8")


def cell(value: float) -> Cell:
    """Return a cell of a number: a whole one as it is, another with five digits."""
    return Cell(f"{value + 0.0:.5g}" if isinstance(value, float) else f"{value}", float(value))
