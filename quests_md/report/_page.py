"""One self-contained page of HTML: its parts, the environments in three dimensions, and how it is put together."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import cell_of
from ..elements import SYMBOLS
from ..errors import MissingExtraError
from ..frame import Frame
from ..kernels.neighbors import pad_images
from ..machine import find_versions
from ..sources import describe_source

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "DH",
    "MOST_ROWS",
    "Card",
    "Cell",
    "Drawing",
    "Page",
    "Quantity",
    "Scene",
    "Section",
    "Table",
    "build_scene",
    "list_files",
    "list_sources",
    "make_cell",
    "render",
    "require_extra",
    "show_environments",
]

# -- the parts of a page -----------------------------------------------------------------------------------------------

MOST_ROWS = 300  # of a table


@dataclass(frozen=True)
class Page:
    """A page. `status` is one of run.json, or empty; `notes` are what the reader must know first."""

    title: str
    kind: str
    lead: str
    status: str = ""
    notes: Sequence[str] = ()
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


@dataclass(frozen=True)
class Card:
    """A number in large type, with its name and its meaning."""

    name: str
    value: str
    unit: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page under a title. `facts` are pairs of a name and a value."""

    title: str
    text: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    scenes: Sequence[Scene] = ()
    tables: Sequence[Table] = ()
    facts: Sequence[tuple[str, str]] = ()

    @property
    def anchor(self) -> str:
        """The name that links within the page use."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG. `narrow` is the one for narrow screens, if they need another."""

    svg: str
    caption: str
    narrow: str = ""


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort. `note` says which rows were left out."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the text it shows, and the number it is sorted by."""

    text: str
    number: float | None = None
    band: str = ""


def make_cell(value: float) -> Cell:
    """Return a cell that shows a number: all digits of an int, five of a float."""
    return Cell(f"{value + 0.0:.5g}" if isinstance(value, float) else f"{value}", float(value))


def list_files(folder: Path) -> Table:
    """Return a table of the files in a folder, with their sizes and hashes."""
    found = [describe_source(path) for path in sorted(folder.iterdir()) if path.is_file()]
    rows = [[Cell(Path(source["file"]).name), *_file_cells(source)] for source in found]
    return Table("Files", ["file", "bytes", "modified", "sha256"], rows)


def list_sources(sources: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the files that frames were read from."""
    rows = [[Cell(f"{source['file']}"), Cell(f"{source['selection']}"), *_file_cells(source)] for source in sources]
    return Table("Files", ["file", "frames", "bytes", "modified", "sha256"], rows)


def _file_cells(source: Mapping[str, Any]) -> list[Cell]:
    return [make_cell(source["bytes"]), Cell(f"{source['modified']}"), Cell(f"{source['sha256']}")]


def show_environments(scenes: Sequence[Scene], frames: str, what: str, cutoff: float, k: int) -> Section:
    """Return the section of the worst environments. `frames` and `what` are words for what these and their values are.

    The scenes have one quantity; the section is named after it.
    """
    shown = scenes[0].quantity
    text = (
        f"Each picture is of one of the worst {frames}. The atom with the largest {what} is large and in the middle, "
        f"and all atoms within {cutoff:g} Å are around it: the environment that the descriptor sees. Small atoms are "
        f"not among the nearest {k}, so the descriptor leaves them out. The colour of an atom is its {shown.name}; "
        "each picture has its own scale.",
        *shown.remarks,
    )
    return Section(shown.title, text=text, scenes=scenes)


# -- an environment in three dimensions --------------------------------------------------------------------------------

# RdYlBu of ColorBrewer: readers with any colour vision can tell them apart, on white and on black.
_SCALE = ("#4575B4", "#91BFDB", "#FEE090", "#FC8D59", "#D73027")
_UNKNOWN = "#A0A0A0"  # the colour of an atom without a value: it is not watched, or nothing can be said of it
_MOST_ATOMS = 300  # of a scene; the nearest are kept
_BOND = 1.2  # a bond is shorter than this many times the sum of the covalent radii


@dataclass(frozen=True)
class Quantity:
    """What the colours of an environment tell: its name and unit, and the least span from one end to the other.

    `title` is that of a section of such environments, and `remarks` are what its reader must know besides. The ends of
    the colour scale are shown with so many `digits`.
    """

    name: str
    unit: str
    least_span: float
    title: str
    remarks: tuple[str, ...] = ()
    digits: int = 4

    def format_end(self, value: float) -> str:
        """Format an end of the colour scale."""
        return f"{value:.{self.digits}g}"


DH = Quantity("dH", "nats", 1.0, "Worst environments")


@dataclass(frozen=True)
class Scene:
    """An environment. Its worst atom is the first, and is at the origin.

    Attributes
    ----------
    title
        Which atom of which frame it is.
    facts
        Pairs of a name and a value.
    symbols
        (n,) chemical symbols.
    positions
        (n, 3), in Å, from the worst atom.
    values
        (n,) of the quantity; nan where it is unknown.
    ids
        (n,) the ids of the host. A periodic image has the id of its atom.
    nearest
        (n,) whether the atom is among the k nearest, and so in the descriptor. True for the worst atom itself.
    bonds
        (m, 2) pairs of atoms that are drawn connected.
    quantity
        What the values are.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    symbols: tuple[str, ...]
    positions: NDArray[np.float64]
    values: NDArray[np.float64]
    ids: NDArray[np.int64]
    nearest: NDArray[np.bool_]
    bonds: NDArray[np.int64]
    quantity: Quantity = DH

    @property
    def span(self) -> tuple[float, float]:
        """The values at the first and at the last colour."""
        known = self.values[np.isfinite(self.values)]
        high = float(known.max()) if len(known) else 0.0
        return min(float(known.min()) if len(known) else 0.0, high - self.quantity.least_span), high

    @property
    def stops(self) -> str:
        """The colour scale in the syntax of CSS."""
        return ", ".join(_SCALE)

    @property
    def colours(self) -> list[str]:
        """The colour of every atom."""
        low, high = self.span
        return [_colour((value - low) / (high - low)) if np.isfinite(value) else _UNKNOWN for value in self.values]

    @property
    def radii(self) -> NDArray[np.float64]:
        """Radius of every ball, in Å. The worst atom is larger, atoms that are not `nearest` are smaller."""
        share = np.where(self.nearest, 0.42, 0.22)
        share[0] = 0.57
        return share * _covalent_radii(self.symbols)

    @property
    def data(self) -> dict[str, Any]:
        """The data that the script of the page needs."""
        atoms = [
            {
                "elem": symbol, "x": x, "y": y, "z": z, "color": colour, "radius": radius,
                "value": value if np.isfinite(value) else None, "id": int(which), "distance": distance,
            }
            for symbol, (x, y, z), colour, radius, value, which, distance in zip(
                self.symbols, self.positions.round(4).tolist(), self.colours, self.radii.round(3).tolist(),
                self.values.round(6).tolist(), self.ids,
                np.linalg.norm(self.positions, axis=1).round(3).tolist(), strict=True,
            )
        ]  # fmt: skip
        return {"title": self.title, "name": self.quantity.name, "atoms": atoms, "bonds": self.bonds.tolist()}

    @property
    def picture(self) -> str:
        """The environment as SVG, seen from one side. It has only numbers and colours, so nothing needs escaping."""
        tilt, turn = 0.35, 0.6
        about_z = np.array([[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]])
        about_x = np.array([[1.0, 0.0, 0.0], [0.0, np.sin(tilt), np.cos(tilt)], [0.0, -np.cos(tilt), np.sin(tilt)]])
        at = self.positions @ (about_x @ about_z).T
        far = float(np.linalg.norm(at, axis=1).max(initial=1.0)) + 1.0
        parts: list[tuple[float, str]] = []
        for i, j in self.bonds.tolist():
            (x1, y1, z1), (x2, y2, z2) = at[i], at[j]
            line = f'<line x1="{x1:.2f}" y1="{-y1:.2f}" x2="{x2:.2f}" y2="{-y2:.2f}"/>'
            parts.append((min(z1, z2) - 1e-3, line))
        for (x, y, z), colour, radius in zip(at, self.colours, self.radii, strict=True):
            size = radius * (1.0 + 0.12 * z / far)
            parts.append((z, f'<circle cx="{x:.2f}" cy="{-y:.2f}" r="{size:.2f}" fill="{colour}"/>'))
        ordered = "".join(part for _, part in sorted(parts, key=lambda part: part[0]))
        return f'<svg viewBox="{-far:.2f} {-far:.2f} {2 * far:.2f} {2 * far:.2f}" aria-hidden="true">{ordered}</svg>'


def build_scene(
    frame: Frame,
    values: NDArray[np.float64],
    worst: int,
    cutoff: float,
    k: int,
    title: str,
    facts: tuple[tuple[str, str], ...] = (),
    *,
    by_element: bool = False,
    quantity: Quantity = DH,
) -> Scene:
    """Return the environment of an atom, with periodic images.

    Parameters
    ----------
    frame
        A whole frame, without ghosts.
    values
        (n,) of all its atoms.
    worst
        The row of the atom.
    cutoff, k
        Of the descriptor. Atoms within the cutoff (Å) are in the scene; the first k of them are `nearest`.
    title, facts
        As in `Scene`.
    by_element
        Whether the descriptor takes the k nearest of each element.
    quantity
        What the values are.

    Raises
    ------
    FrameError
        The frame has no usable cell.
    """
    cell, inverse, pbc = cell_of(frame, cutoff)
    points, owner = pad_images(np.ascontiguousarray(frame.positions), cell, inverse, pbc, cutoff)
    from_worst = points - points[worst]
    distance = np.linalg.norm(from_worst, axis=1)
    inside = np.flatnonzero((distance <= cutoff) & (frame.numbers[owner] != 0))
    inside = inside[np.argsort(distance[inside], kind="stable")][:_MOST_ATOMS]
    # The worst atom comes first even if another atom is at the same place.
    order = np.concatenate([[worst], inside[inside != worst]]).astype(np.int64)
    rows = owner[order]
    symbols = tuple(SYMBOLS[z] for z in frame.numbers[rows].tolist())
    assert frame.ids is not None
    return Scene(
        title=title,
        facts=facts,
        symbols=symbols,
        positions=from_worst[order],
        values=np.asarray(values, dtype=np.float64)[rows],
        ids=np.asarray(frame.ids)[rows],
        nearest=_find_nearest(symbols, k, by_element),
        bonds=_find_bonds(from_worst[order], _covalent_radii(symbols)),
        quantity=quantity,
    )


def _find_nearest(symbols: tuple[str, ...], k: int, by_element: bool) -> NDArray[np.bool_]:
    """Return which of the atoms, nearest first, are in the descriptor of the first one."""
    seen: dict[str, int] = {}
    nearest = [True]
    for symbol in symbols[1:]:
        block = symbol if by_element else ""
        seen[block] = seen.get(block, 0) + 1
        nearest.append(seen[block] <= k)
    return np.array(nearest)


def _find_bonds(positions: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.int64]:
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    return np.argwhere(np.triu(distance < _BOND * (radii[:, None] + radii), 1))


def _covalent_radii(symbols: tuple[str, ...]) -> NDArray[np.float64]:
    from ase.data import covalent_radii

    return np.array([covalent_radii[SYMBOLS.index(symbol)] for symbol in symbols], dtype=np.float64)


def _colour(share: float) -> str:
    """Return the colour at a share between 0 and 1 of the scale, interpolated between its stops."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _SCALE], dtype=np.float64)
    at = np.linspace(0.0, 1.0, len(_SCALE))
    return "#" + "".join(f"{round(float(np.interp(share, at, stops[:, c]))):02X}" for c in range(3))


# -- HTML --------------------------------------------------------------------------------------------------------------


def require_extra() -> None:
    """Raise `MissingExtraError` if a package that makes pages is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"a report needs matplotlib and jinja2 ({error.name} is missing): pip install 'quests_md[report]'"
        ) from error


def render(page: Page) -> str:
    """Return the HTML. The page loads nothing: its own security policy forbids it.

    The templates escape all text. The policy names the scripts of this function by their hashes; no other script runs.
    """
    scenes = [scene for section in page.sections for scene in section.scenes]
    scripts = [_read_text("templates", "page.js")]
    if scenes:
        licence = _read_text("vendor", "3Dmol-LICENSE.txt").replace("*/", "* /")
        library = _read_text("vendor", "3Dmol-min.js")
        scripts = [f"/*\n{licence}*/\n{library}", _read_text("templates", "view.js"), *scripts]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    made = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    data = {"scenes": [scene.data for scene in scenes]}
    return _templates().get_template("page.html").render(
        page=page, style=_read_text("templates", "page.css"), scripts=scripts, hashes=hashes, made=made,
        versions=find_versions(), data=json.loads(json.dumps(data, allow_nan=False)),
    )  # fmt: skip


@cache
def _templates() -> Environment:
    import jinja2

    loader = jinja2.FunctionLoader(lambda name: _read_text("templates", name))
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _read_text(folder: str, name: str) -> str:
    return files(__package__).joinpath(folder, name).read_text(encoding="utf-8")
