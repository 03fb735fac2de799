"""What the page of a dataset says of force errors: those that are expected beside those that labels show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import InputError
from ..index import Index, LocalBound, find_known
from ._drawings import LEGEND_ABOVE, SMALL, make_svg
from ._page import Card, Cell, Drawing, Section, Table, make_cell
from ._pictures import BLUE, GREY, ORANGE
from ._run_errors import NO_GUARANTEE, describe_bound

__all__ = ["Environments", "show_dataset_errors"]

_POINTS = 3000  # environments that are drawn, and
_FRAMES = 1000  # frames
_LEAST = 1e-3  # eV/Å; smaller errors are drawn there
_DASHES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))  # of the bounds, one for each element
_FAR = 20.0  # if the largest is so many times the smallest, axes are logarithmic


class Environments(NamedTuple):
    """The environments of a dataset: descriptors (n, d), atomic numbers (n,), and the first one of each frame.

    `groups` has the group of each frame, or nothing.
    """

    rows: NDArray[Any]
    numbers: NDArray[Any]
    offsets: NDArray[np.int64]
    groups: Sequence[str]

    @property
    def frames(self) -> list[slice]:
        """Which environments each frame has."""
        return [slice(a, b) for a, b in itertools.pairwise(self.offsets.tolist())]

    @property
    def owner(self) -> NDArray[np.int64]:
        """The frame (n,) of each environment."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def show_dataset_errors(
    errors: Sequence[NDArray[np.float64]], data: Environments, index: Index, threads: int | None
) -> tuple[Section, list[Card]]:
    """Return the section of the force errors of a dataset, and the cards that belong to it.

    Parameters
    ----------
    errors
        Of each frame, (n,) the force error of each environment in eV/Å.
    data
        The environments.
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
    real, numbers = _join(errors, data), data.numbers
    dH, s = index.local_residuals(data.rows, threads, potential=bound.potential)
    expected, limit = bound.expected(dH, s, numbers), bound.bound(dH, s, numbers)
    drawings = [_draw_atoms(expected, real, limit, _find_slopes(bound, numbers))]
    rmse = [(bound.expected_rmse(dH[f], s[f], numbers[f]), np.sqrt((real[f] ** 2).mean())) for f in data.frames]
    if np.isfinite(np.array(rmse)[:, 0]).any():
        drawings.append(_draw_frames(np.array(rmse)))
    columns = (real, dH, s, numbers, data.owner)
    text = (
        f"How wrong {bound.potential or 'the potential'} is on these frames, beside what the index expects: half of "
        f"the errors are to be below the expected error, and {bound.coverage:.0%} below the bound.",
        NO_GUARANTEE,
        _tell_known(find_known(index, data.rows, threads), data),
    )
    table = _tabulate(_sort(numbers, data.owner, data.groups), columns, bound)
    section = Section("Force errors", text=text, drawings=drawings, facts=describe_bound(bound), tables=[table])
    return section, _make_cards(columns, expected, bound)


def _join(errors: Sequence[NDArray[np.float64]], data: Environments) -> NDArray[np.float64]:
    """Return the errors of all environments (n,)."""
    if [len(some) for some in errors] != np.diff(data.offsets).tolist():
        raise InputError("the force errors are not one array for each frame, of a number for each environment")
    for i, some in enumerate(errors):
        if not (np.isfinite(some) & (np.asarray(some) >= 0.0)).all():
            raise InputError(
                f"frame {i}, counted from 0 among those with atoms: the force errors must be finite numbers in eV/Å, "
                "not below 0: leave the frame out, or compute its forces again"
            )
    return np.concatenate(errors)


def _tell_known(known: NDArray[np.bool_], data: Environments) -> str:
    """Say how many frames are in the reference: errors on these say nothing about others."""
    which = [i for i, frame in enumerate(data.frames) if known[frame].all()]
    if not which:
        return (
            "No frame is in the reference. If the potential was trained on some of them, its errors there say nothing "
            "about other frames."
        )
    n = len(data.frames)
    one = len(which) == 1
    return (
        f"{len(which)} of {n} frames {'is' if one else 'are'} in the reference ({'' if one else 'the first is '}frame "
        f"{which[0]}, counted from 0). Errors there say nothing about errors on other frames: leave "
        f"{'it' if one else 'these'} out."
    )


def _make_cards(columns: Sequence[NDArray[Any]], expected: NDArray[np.float64], bound: LocalBound) -> list[Card]:
    """Return what was covered, and how many environments are outside."""
    share, low, high = bound.judge(*columns)
    asked = f"{bound.coverage:.0%} was asked for"
    outside = float(np.isnan(expected).mean())
    return [
        Card("Errors below the bound", "–", "", "all environments are outside")
        if np.isnan(share)
        else Card("Errors below the bound", f"{share:.1%}", "", f"{low:.1%} to {high:.1%}; {asked}"),
        Card("Environments outside", f"{outside:.2%}", "", "no force error can be expected of them"),
    ]


def _find_slopes(bound: LocalBound, numbers: NDArray[Any]) -> dict[str, float]:
    """Return by how much the bound of each element is larger than its expected error, for the elements of the set."""
    present = {SYMBOLS[z] for z in np.unique(numbers).tolist()}
    known = {symbol: f.factor / f.median for symbol, f in bound.elements.items() if symbol in present and f.median > 0}
    return {"bound" if len(known) == 1 else f"bound of {symbol}": slope for symbol, slope in known.items()}


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


def _draw_atoms(
    expected: NDArray[np.float64],
    real: NDArray[np.float64],
    limit: NDArray[np.float64],
    slopes: Mapping[str, float],
) -> Drawing:
    """Draw real against expected errors of some environments, and the bounds: multiples of the expected error."""
    known = np.flatnonzero(np.isfinite(expected))
    few = np.unique(np.linspace(0, len(known) - 1, min(len(known), _POINTS)).astype(int))
    some = known[few] if len(known) else known

    def draw(axes: Any) -> None:
        above = real[some] > limit[some]
        for which, colour, name in ((~above, BLUE, "below the bound"), (above, ORANGE, "above")):
            axes.plot(
                expected[some][which], np.maximum(real[some][which], _LEAST), ".", ms=2.5, color=colour, label=name
            )
        _finish(axes, "expected error (eV/Å)", "error (eV/Å)", slopes)

    caption = "Force error of each environment against the one that was expected. On the solid line they are equal."
    if slopes:
        caption += " Broken: the bound" + (" of each element." if len(slopes) > 1 else ".")
    if len(some) < len(expected):
        caption += f" Of {len(expected):,} environments, {len(some):,} are drawn"
        caption += "; those outside have no expected error." if len(known) < len(expected) else "."
    return Drawing(make_svg(draw, SMALL, "errors-atoms"), caption)


def _draw_frames(rmse: NDArray[np.float64]) -> Drawing:
    """Draw real against expected root mean square errors of frames (n, 2)."""
    known = rmse[np.isfinite(rmse[:, 0])][:_FRAMES]

    def draw(axes: Any) -> None:
        axes.plot(known[:, 0], np.maximum(known[:, 1], _LEAST), ".", ms=4.0, color=BLUE, label="a frame")
        _finish(axes, "expected RMSE (eV/Å)", "RMSE (eV/Å)", {})

    caption = "Root mean square force error of each frame against the one that was expected."
    if len(known) < len(rmse):
        caption += f" {len(known):,} of {len(rmse):,} frames: a frame with an environment outside has no expected one."
    return Drawing(make_svg(draw, SMALL, "errors-frames"), caption)


def _finish(axes: Any, x: str, y: str, slopes: Mapping[str, float]) -> None:
    """Give both axes the same range, logarithmic if it is wide. Draw the line of equality, and those with `slopes`."""
    data = np.concatenate([np.concatenate([line.get_xdata(), line.get_ydata()]) for line in axes.get_lines()])
    limits = np.array([0.0, 1.1 * float(data.max(initial=_LEAST))])
    if len(data) and limits[1] > _FAR * data.min():
        limits = np.array([0.8 * float(data.min()), 1.3 * float(data.max())])
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.plot(limits, limits, "-", lw=0.8, color=GREY, label="equal")
    for (name, slope), dashes in zip(slopes.items(), itertools.cycle(_DASHES)):
        axes.plot(limits, slope * limits, color="black", lw=0.9, ls=dashes, label=name)
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(**LEGEND_ABOVE, ncols=2, markerscale=2.0)
