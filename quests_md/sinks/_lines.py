"""Where a file that grows by lines ends, though a program was killed while it wrote one."""

from __future__ import annotations

from pathlib import Path

__all__ = ["end_of_lines"]

_PIECE = 1 << 16


def end_of_lines(path: Path) -> int:
    """Return the size of a file without what follows its last line end; 0 if it is not there."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        while end:
            first = max(0, end - _PIECE)
            file.seek(first)
            place = file.read(end - first).rfind(b"\n")
            if place >= 0:
                return first + place + 1
            end = first
    return 0
