"""What benchmarks that draw a picture share: their options, and the numbers that they keep beside the picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .printing import head

__all__ = ["parse_options", "run_on_zuo", "save_picture"]

Draw = Callable[[Any, Path], None]


def parse_options(parser: argparse.ArgumentParser, draw: Draw) -> argparse.Namespace:
    """Parse the command line, with --plot and --draw. With --draw, draw the picture of saved numbers and exit."""
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture; its numbers go beside it, as .json")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing: draw the picture of these numbers")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(options.draw.read_text()), options.plot or options.draw.with_suffix(".png"))
        raise SystemExit
    return options


def save_picture(path: Path | None, result: Any, draw: Draw, indent: int | None = 1) -> None:
    """Draw a picture and save its numbers beside it, as .json. Without a path, do nothing."""
    if path:
        path.with_suffix(".json").write_text(json.dumps(result, indent=indent) + "\n")
        draw(result, path)


def run_on_zuo(usage: str | None, title: str, text: str, measure: Callable[[Path, str], Any], draw: Draw) -> None:
    """Measure both elements of the data of Zuo et al. (2020), print, and draw if asked to.

    `measure` takes the folder of the data and an element; it prints, and returns the numbers of the picture.
    """
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the four files are; they are not in the repository")
    options = parse_options(parser, draw)
    if options.folder is None or not (options.folder / "Si_test.extxyz").exists():
        raise SystemExit(f"{options.folder}: needs the data of Zuo et al. (2020): see benchmarks/README.md")
    head(title, "lammps")
    print(text)
    save_picture(options.plot, {element: measure(options.folder, element) for element in ("Si", "Ge")}, draw, None)
