"""The saved frames of a run: their worst environments, and dH of their atoms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import FrameError, OutputError
from ..frame import Frame
from ..recording import Run
from ..sources import frame_of
from ._html_scene import Scene, scene_of

__all__ = ["Saved", "read_saved"]


@dataclass
class Saved:
    """What the saved frames of a run hold.

    Attributes
    ----------
    cutoff, k
        Of the descriptor.
    scenes
        The worst environments, worst first.
    atoms
        dH of the watched atoms of the worst and of the last frame, by what they are called.
    counts
        Watched atoms of the last frame, by symbol; empty where it is not there.
    implausible
        Step, time and reason of the implausible frames.
    """

    cutoff: float
    k: int
    scenes: list[Scene] = field(default_factory=list)
    atoms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    implausible: list[tuple[Any, Any, str]] = field(default_factory=list)


@dataclass
class _Found:
    frame: Frame
    dH: NDArray[np.float64]
    worst: int
    info: dict[str, Any]

    @property
    def maximum(self) -> float:
        return float(self.dH[self.worst])


def read_saved(run: Run, most: int, notes: list[str]) -> Saved:
    """Read the candidates, the last and the implausible frames of a run; what is wrong with them goes to `notes`."""
    index = run.about["index"]
    saved = Saved(float(index.get("cutoff") or 5.0), int(index.get("k") or 32))
    worst: dict[tuple[Any, int], _Found] = {}
    for found in _found(run.candidates(), notes):
        _keep(worst, found, most)
    last = next(_found(_last(run), notes), None)
    if last is not None:
        _keep(worst, last, most)
        watched = last.frame.numbers[np.isfinite(last.dH)]
        saved.counts = {SYMBOLS[z]: int(n) for z, n in zip(*np.unique(watched, return_counts=True), strict=True)}
    ordered = sorted(worst.values(), key=lambda found: -found.maximum)
    for found in ordered:
        try:
            saved.scenes.append(_scene(found, saved, index.get("species") == "neighbours"))
        except FrameError as error:
            notes.append(f"A saved frame cannot be drawn: {error}")
    shown = {} if last is None else {last.frame.step: ("last frame", last)}
    if ordered:  # the frame that halts is both
        shown.setdefault(ordered[0].frame.step, ("worst saved frame", ordered[0]))
    for step, (name, found) in shown.items():
        if found.info.get("values", "exact") == "exact":  # bounds are no values to count
            saved.atoms[f"{name}, step {step}"] = found.dH
    for atoms in _noting(run.implausible(), notes):
        saved.implausible.append((atoms.info.get("step"), atoms.info.get("time"), str(atoms.info.get("reason", ""))))
    return saved


def _keep(worst: dict[tuple[Any, int], _Found], found: _Found, most: int) -> None:
    """Add a frame, unless there are `most` worse ones."""
    worst[found.info.get("run"), found.frame.step] = found
    if len(worst) > most:  # of equals the first one stays
        del worst[min(reversed(worst), key=lambda key: worst[key].maximum)]


def _last(run: Run) -> Iterator[Any]:
    atoms = run.last()
    if atoms is not None:
        yield atoms


def _found(frames: Iterator[Any], notes: list[str]) -> Iterator[_Found]:
    for atoms in _noting(frames, notes):
        dH = atoms.arrays.get("dH")
        if dH is None or not np.isfinite(dH).any():
            continue
        dH = np.asarray(dH, dtype=np.float64)
        yield _Found(frame_of(atoms), dH, int(np.nanargmax(np.where(np.isfinite(dH), dH, -np.inf))), atoms.info)


def _noting(frames: Iterator[Any], notes: list[str]) -> Iterator[Any]:
    """Iterate over frames as far as they are not damaged."""
    try:
        yield from frames
    except OutputError as error:
        notes.append(f"{error}. What was read before is shown.")


def _scene(found: _Found, saved: Saved, by_element: bool) -> Scene:
    frame, info = found.frame, found.info
    assert frame.ids is not None
    symbol, which = SYMBOLS[int(frame.numbers[found.worst])], int(frame.ids[found.worst])
    facts = [("dH", f"{found.maximum:.5g} nats")]
    if np.isfinite(frame.time):
        facts.append(("time", f"{frame.time:.6g} ps"))
    if info.get("band"):
        facts.append(("band", str(info["band"])))
    title = f"step {frame.step}, {symbol} {which}"
    return scene_of(frame, found.dH, found.worst, saved.cutoff, saved.k, title, tuple(facts), by_element=by_element)
