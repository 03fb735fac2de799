"""Why a calculation has failed, in words: the end of what the program wrote, and whether the disk was full."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

__all__ = ["describe_end_of_output", "find_full_disk"]

# What programs write, as against what they read: CRASH first, which Quantum ESPRESSO writes for its errors.
_WRITTEN = (
    "CRASH", "*.pwo", "*.abo", "OUTCAR", "*.castep", "aims.out", "*.out", "*.log", "*.err", "gpaw.txt", "*.stderr",
)  # fmt: skip
_LETTERS = 400  # of each file
_FILES = 2
_FULL = re.compile(r"No space left on device|Errno 28\b|[Dd]isk(?: is)? full|[Dd]isk quota exceeded")
_ENOUGH = 1 << 16  # bytes: a disk with less is full


def describe_end_of_output(folder: Path) -> str:
    """Return the ends of the files that a program wrote last, each with its name; "" if there is none."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for pattern in _WRITTEN:
            paths = [path for path in folder.glob(pattern) if path.is_file() and path.stat().st_size]
            found += sorted(set(paths) - set(found), key=lambda path: -path.stat().st_mtime)
    ends: list[tuple[str, str]] = []
    for path in found[:_FILES]:
        with contextlib.suppress(OSError):
            text = _squeeze(path.read_bytes()[-8 * _LETTERS :])
            if text and not any(text in other or other in text for _, other in ends):
                ends.append((path.name, text))
    return "; ".join(f"the end of {name}: {text}" for name, text in ends)


def find_full_disk(folder: Path, *texts: str) -> str:
    """Return that the disk of a folder is full, in words; "" if it is not, and none of the texts says so."""
    try:
        left = os.statvfs(folder)
    except OSError:
        return ""
    size = left.f_bavail * left.f_frsize
    if size < _ENOUGH or any(_FULL.search(text) for text in texts):
        return f"disk full: {size} bytes are left where {folder.parent} is; make room, or choose another scratch"
    return ""


def _squeeze(text: bytes) -> str:
    """Return the end of a text in one line: without rulers, and blanks as one."""
    words = re.sub(r"[%*=_~#-]{4,}", " ", text.decode(errors="replace")).split()
    line = " ".join(words)
    return line if len(line) <= _LETTERS else "…" + line[-_LETTERS:]
