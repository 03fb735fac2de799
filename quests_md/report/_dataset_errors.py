"""What the page of a dataset says of force errors: those that are expected beside those that labels show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import InputError
from ..index import Index, LocalBound
from ._drawings import LEGEND_ABOVE, SMALL, make_svg
from ._page import Cell, Drawing, Section, Table, make_cell
from ._pictures import BLUE, GREY, ORANGE
from ._run_errors import NO_GUARANTEE, describe_bound

__all__ = ["show_dataset_errors"]

_POINTS = 3000  # environments that are drawn, and
_FRAMES = 1000  # frames
_LEAST = 1e-3  # eV/Å; smaller errors are drawn there
_FAR = 20.0  # if the largest is so many times the smallest, axes are logarithmic


def show_dataset_errors(
    errors: Sequence[NDArray[np.float64]],
    rows: NDArray[Any],
    numbers: NDArray[Any],
    offsets: NDArray[np.int64],
    groups: Sequence[str],
    index: Index,
    threads: int | None,
) -> Section:
    """Return the section of the force errors of a dataset.

    Parameters
    ----------
    errors
        Of each frame, (n,) the force error of each environment in eV/Å.
    rows, numbers, offsets
        Descriptors and atomic numbers of the environments, and the first one of each frame.
    groups
        The group of each frame, or nothing.
    index
        An index with a calibration of local residuals.
    threads
        Number of threads.

    Raises
    ------
    InputError
        The index has no such calibration, or the errors are not those of these frames.
    """
    bound = index.calibration.local_error if index.calibration is not None else None
    if bound is None:
        raise InputError(
            f"{index.path or 'the index'} is not calibrated for local residuals, which force errors are compared with: "
            "quests-md index residuals, then quests-md index calibrate"
        )
    if [len(some) for some in errors] != np.diff(offsets).tolist():
        raise InputError("the force errors are not one array for each frame, of a number for each environment")
    real = np.concatenate(errors)
    dH, s = index.local_residuals(rows, threads, potential=bound.potential)
    expected, limit = bound.expected(dH, s, numbers), bound.bound(dH, s, numbers)
    drawings = [_draw_atoms(expected, real, limit)]
    frames = [slice(a, b) for a, b in itertools.pairwise(offsets.tolist())]
    rmse = np.array([[bound.expected_rmse(dH[f], s[f], numbers[f]), np.sqrt((real[f] ** 2).mean())] for f in frames])
    if np.isfinite(rmse[:, 0]).any():
        drawings.append(_draw_frames(rmse))
    owner = np.repeat(np.arange(len(frames)), np.diff(offsets))
    table = _tabulate(_sort(numbers, owner, groups), (real, dH, s, numbers, owner), bound)
    text = (
        f"How wrong {bound.potential} is on these frames, beside what the index expects: half of the errors are to be "
        f"below the expected error, and {bound.coverage:.0%} below the bound.",
        NO_GUARANTEE,
        "Errors on frames that the potential or the reference was made of say nothing about other frames.",
    )
    return Section("Force errors", text=text, drawings=drawings, facts=describe_bound(bound), tables=[table])


def _sort(
    numbers: NDArray[Any], owner: NDArray[np.int64], groups: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield names of kinds of environments, and which these are: all, then each element and each group."""
    yield "all", np.ones(len(numbers), bool)
    elements = np.unique(numbers).tolist()
    for z in elements if len(elements) > 1 else ():
        yield SYMBOLS[z], numbers == z
    of_frame = np.array(groups)
    for name in sorted(set(groups)):
        yield name, (of_frame == name)[owner]


def _tabulate(
    kinds: Iterator[tuple[str, NDArray[np.bool_]]], columns: Sequence[NDArray[Any]], bound: LocalBound
) -> Table:
    """Return a row for each kind. The columns are error, dH, s, atomic number and frame of each environment."""
    expected, body = bound.expected(*columns[1:4]), []
    for name, mine in kinds:
        share, low, high = bound.judge(*(column[mine] for column in columns))
        known = mine & np.isfinite(expected)
        covered = Cell("–", share) if np.isnan(share) else Cell(f"{share:.1%} ({low:.1%} to {high:.1%})", share)
        body.append(
            [
                Cell(name),
                make_cell(len(np.unique(columns[4][mine]))),
                make_cell(int(mine.sum())),
                make_cell(int((mine & ~known).sum())),
                make_cell(float(np.median(columns[0][mine]))),
                make_cell(float(np.median(expected[known]))) if known.any() else Cell("–", float("nan")),
                covered,
            ]
        )
    head = ["", "frames", "environments", "outside", "median error (eV/Å)", "median expected", "below the bound"]
    note = (
        f"The share below the bound, of which {bound.coverage:.0%} was asked for, is of environments that are not "
        "outside: a mean over frames, with a 95 % interval by a bootstrap over frames."
    )
    return Table("Force errors by kind", head, body, note)


def _draw_atoms(expected: NDArray[np.float64], real: NDArray[np.float64], limit: NDArray[np.float64]) -> Drawing:
    """Draw real against expected errors of some environments."""
    known = np.flatnonzero(np.isfinite(expected))
    some = (
        known[np.unique(np.linspace(0, len(known) - 1, min(len(known), _POINTS)).astype(int))] if len(known) else known
    )

    def draw(axes: Any) -> None:
        above = real[some] > limit[some]
        for which, colour, name in ((~above, BLUE, "below the bound"), (above, ORANGE, "above")):
            axes.plot(
                expected[some][which], np.maximum(real[some][which], _LEAST), ".", ms=2.5, color=colour, label=name
            )
        _finish(axes, "expected error (eV/Å)", "error (eV/Å)")

    caption = "Force error of each environment against the one that was expected. On the line they are equal."
    if len(some) < len(expected):
        caption += f" Of {len(expected):,} environments, {len(some):,} are drawn"
        caption += "; those outside have no expected error." if len(known) < len(expected) else "."
    return Drawing(make_svg(draw, SMALL, "errors-atoms"), caption)


def _draw_frames(rmse: NDArray[np.float64]) -> Drawing:
    """Draw real against expected root mean square errors of frames (n, 2)."""
    known = rmse[np.isfinite(rmse[:, 0])][:_FRAMES]

    def draw(axes: Any) -> None:
        axes.plot(known[:, 0], np.maximum(known[:, 1], _LEAST), ".", ms=4.0, color=BLUE, label="a frame")
        _finish(axes, "expected RMSE (eV/Å)", "RMSE (eV/Å)")

    caption = "Root mean square force error of each frame against the one that was expected."
    if len(known) < len(rmse):
        caption += f" {len(known):,} of {len(rmse):,} frames: a frame with an environment outside has no expected one."
    return Drawing(make_svg(draw, SMALL, "errors-frames"), caption)


def _finish(axes: Any, x: str, y: str) -> None:
    """Give both axes the same range, logarithmic if it is wide, and draw the line on which they are equal."""
    data = np.concatenate([np.concatenate([line.get_xdata(), line.get_ydata()]) for line in axes.get_lines()])
    limits = [0.0, 1.1 * float(data.max(initial=_LEAST))]
    if len(data) and limits[1] > _FAR * data.min():
        limits = [0.8 * float(data.min()), 1.3 * float(data.max())]
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.plot(limits, limits, "-", lw=0.8, color=GREY, label="equal")
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(**LEGEND_ABOVE, ncols=3, markerscale=2.0)
