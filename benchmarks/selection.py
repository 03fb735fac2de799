"""Frames that a melting run keeps, beside other choices of as many frames: the tables of docs/selection.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec, Index
from quests_md.information import log_kernel_sum
from quests_md.monitor import Events
from quests_md.selection import Selection

from .melting import MATERIALS, frames_of, hold, melt
from .printing import head, target
from .silicon import cache_folder, cached

REFERENCE = {300: 20, 600: 20, 900: 20}  # K: frames
HELD_OUT = 40  # frames at the last temperature: `select` is the largest dH of them, and an excess
EXCESS = 2.0  # nats
CONSECUTIVE = 3  # frames that begin and end an event: the default of a run
CHOICES = ("kept", "flagged, random", "flagged, even", "all, random", "all, even", "farthest point")


@dataclass
class Part:
    """A frame's environments above `select`: a `Proposal`."""

    step: int
    ids: NDArray[np.int64]
    dH: NDArray[np.float64]
    select: float
    whole: NDArray[np.float64]

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return their descriptors."""
        return self.whole[self.ids[which]]


class Run:
    """A melting run against an index: rows and dH of all frames, and what is covered when some are added."""

    def __init__(self, rows: NDArray[np.float64], index: Index, lowest: float) -> None:
        self.rows, self.index = rows, index  # (frames, atoms, d)
        self.dH = index.delta_entropy(rows.reshape(-1, rows.shape[2])).reshape(rows.shape[:2])
        self._open = self.dH > lowest  # what no `select` covers without further frames
        self._sums: dict[int, NDArray[np.float64]] = {}

    def flagged(self, select: float) -> NDArray[np.int64]:
        """Return the frames that a plain threshold keeps."""
        return np.flatnonzero(self.dH.max(axis=1) > select)

    def kept(self, select: float) -> list[int]:
        """Return the frames that a watched run keeps, as it goes on: those of its events that a selection takes."""
        selection, events, kept = Selection(self.index), Events(CONSECUTIVE, None), []
        for t, dH in enumerate(self.dH):
            ids = np.flatnonzero(dH > select)
            worst = int(dH.argmax())
            if not len(ids):
                events.see_below(dH[worst])
                continue
            begins = events.see_above(t, float(t), dH[worst], worst, ids, at_once=False)
            if events.current is None:
                continue
            if selection.consider(Part(t, ids, dH[ids], select, self.rows[t]), first=begins).keep:
                kept.append(t)
        return kept

    def sums(self, frame: int) -> NDArray[np.float64]:
        """Return ln K of the open environments of the run against a frame."""
        if frame not in self._sums:
            self._sums[frame] = log_kernel_sum(self.rows[self._open], self.rows[frame], self.index.bandwidth, threads=2)
        return self._sums[frame]

    def coverage(self, frames: Sequence[Any], select: float) -> float:
        """Return the share of all environments whose dH against the index and these frames is at most `select`."""
        dH = self.dH.copy()
        dH[self._open] = -np.logaddexp.reduce([-dH[self._open], *(self.sums(int(t)) for t in frames)])
        return float(np.mean(dH <= select))

    def farthest(self, n: int) -> list[int]:
        """Return n frames, each the one whose worst environment is farthest from the index and those before it."""
        chosen: list[int] = []
        left = -self.dH
        for _ in range(n):
            chosen.append(int(np.argmax((-left).max(axis=1))))
            left[self._open] = np.logaddexp(left[self._open], self.sums(chosen[-1]))
        return chosen


def main() -> None:
    """Print the tables, and draw the picture."""
    options = parse()
    head("Frames that a melting run keeps, beside other choices of as many", "lammps")
    print(
        f"reference: crystal at {', '.join(map(str, REFERENCE))} K; select: largest dH of a held-out crystal + excess;"
        "\nno minimum spacing, no budget; coverage: share of the environments of all evaluated frames with"
        "\ndH(index + chosen frames) ≤ select, for as many frames as were kept; 'flagged' frames are those that a plain"
        "\nthreshold keeps; 'farthest point' is chosen with hindsight"
    )
    runs = {name: made(name, options) for name in MATERIALS}
    results = {
        (name, excess): [measure(run, highest + excess, options.draws) for run in made_runs]
        for name, (highest, made_runs) in runs.items()
        for excess in (EXCESS, EXCESS / 2, EXCESS * 2)
    }
    for (name, excess), rows in results.items():
        table(name, runs[name][0] + excess, excess, rows)
    if options.picture:
        from .selection_plot import draw

        draw({name: results[name, EXCESS] for name in MATERIALS}, CHOICES, options.picture)


def made(name: str, options: argparse.Namespace) -> tuple[float, list[Run]]:
    """Return the largest dH of the held-out crystal, and the runs."""
    keep: Callable[..., NDArray[np.float64]] = partial(cached, options.folder)
    setup, hot = MATERIALS[name].setup, MATERIALS[name].hot
    parts = [keep("held", hold, setup=setup, temperature=t, seed=t, n=n) for t, n in REFERENCE.items()]
    index = Index.build(frames_of(name, np.concatenate(parts)), bandwidth="auto")
    held_out = keep("held", hold, setup=setup, temperature=max(REFERENCE), seed=7, n=HELD_OUT)
    highest, runs = float(index.delta_entropy(frames_of(name, held_out)).max()), []
    for seed in range(1, options.seeds + 1):
        arrays = keep("melt", melt, setup=setup, hot=hot, seed=seed, heating=3000, holding=1000, every=10)
        frames = frames_of(name, arrays)
        rows = DescriptorSpec().compute(frames)
        runs.append(Run(rows.reshape(len(frames), -1, rows.shape[1]), index, highest + EXCESS / 2))
    n_frames, n_atoms = runs[0].dH.shape
    print(f"\n{name}: {n_atoms} atoms, {n_frames} frames 20 fs apart, h = {index.bandwidth:.3f} 1/Å", flush=True)
    return highest, runs


def measure(run: Run, select: float, draws: int) -> dict[str, Any]:
    """Return what is kept of a run, and the coverage of each choice of as many frames."""
    kept, flagged, rng = run.kept(select), run.flagged(select), np.random.default_rng(0)
    n, all_frames = len(kept), np.arange(len(run.dH))
    random = {
        of: [run.coverage(rng.choice(frames, n, replace=False), select) for _ in range(draws)]
        for of, frames in (("flagged", flagged), ("all", all_frames))
    }
    values = {
        "kept": run.coverage(kept, select),
        "flagged, random": float(np.mean(random["flagged"])),
        "flagged, even": run.coverage(even(flagged, n), select),
        "all, random": float(np.mean(random["all"])),
        "all, even": run.coverage(even(all_frames, n), select),
        "farthest point": run.coverage(run.farthest(n), select),
    }
    spread = {f"{of}, random": float(np.std(covered)) for of, covered in random.items()}
    return {"flagged": len(flagged), "kept": n, "none": run.coverage([], select), "values": values, "spread": spread}


def table(name: str, select: float, excess: float, rows: list[dict[str, Any]]) -> None:
    """Print the rows of all seeds, their means, and whether the targets are met."""
    print(f"\n{name}, select = {select:.2f} (held-out crystal + {excess:g} nats); coverage in %")
    print(f"seed  flagged  kept  share  none  {'  '.join(f'{choice:>15}' for choice in CHOICES)}")
    for seed, row in enumerate(rows, start=1):
        print(_line(f"{seed:4d}", row["flagged"], row["kept"], row["none"], row["values"], row["spread"]))
    values = {choice: np.array([row["values"][choice] for row in rows]) for choice in CHOICES}
    means = {choice: float(value.mean()) for choice, value in values.items()}
    spread = {choice: float(value.std()) for choice, value in values.items()}
    flagged, kept, none = (float(np.mean([row[key] for row in rows])) for key in ("flagged", "kept", "none"))
    print(_line("mean", flagged, kept, none, means, spread))
    target(
        f"{name}: largest share of the flagged frames that is kept",
        max(r["kept"] / r["flagged"] for r in rows),
        0.1,
        "",
    )
    for choice in CHOICES[1:5]:
        target(
            f"{name}: coverage less that of '{choice}', in %", 100 * (means["kept"] - means[choice]), 0, "", least=True
        )


def _line(label: str, flagged: float, kept: float, none: float, values: Any, spread: Any) -> str:
    cells = [
        f"{100 * values[choice]:8.2f}" + (f" ±{100 * spread[choice]:5.2f}" if choice in spread else "       ")
        for choice in CHOICES
    ]
    return f"{label}  {flagged:7.0f}  {kept:4.0f}  {kept / flagged:.3f}  {100 * none:4.1f}  {'  '.join(cells)}"


def even(frames: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return n of the frames, evenly spaced: the middle one of each of n equal parts."""
    return frames[((np.arange(n) + 0.5) / n * len(frames)).astype(int)]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each material")
    parser.add_argument("--draws", type=int, default=10, help="random choices of each run")
    parser.add_argument("--folder", type=Path, default=cache_folder(), help="where runs are kept once they are made")
    parser.add_argument("--picture", type=Path, help="where to draw the picture")
    return parser.parse_args()
