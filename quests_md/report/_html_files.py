"""Which files a page was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..sources import describe_source
from ._html import Cell, Table, cell

__all__ = ["files_table", "sources_table"]


def files_table(folder: Path) -> Table:
    """Return the files of a folder, with their sizes and hashes."""
    found = [describe_source(path) for path in sorted(folder.iterdir()) if path.is_file()]
    rows = [[Cell(Path(source["file"]).name), *_rest(source)] for source in found]
    return Table("Files", ["file", "bytes", "modified", "sha256"], rows)


def sources_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    """Return files that frames were read from."""
    rows = [[Cell(f"{source['file']}"), Cell(f"{source['selection']}"), *_rest(source)] for source in sources]
    return Table("Files", ["file", "frames", "bytes", "modified", "sha256"], rows)


def _rest(source: Mapping[str, Any]) -> list[Cell]:
    return [cell(source["bytes"]), Cell(f"{source['modified']}"), Cell(f"{source['sha256']}")]
