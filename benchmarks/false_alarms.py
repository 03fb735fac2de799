"""Thresholds from the calibration of an index: the rate of false alarms that was asked for beside the measured one."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from quests_md import Index
from quests_md.errors import CalibrationError
from quests_md.index import calibrate

from .peer import BANDWIDTH
from .pictures import parse_options, save_picture
from .printing import head
from .silicon import SIDE, cache_folder, cached, frames_of, sample

__all__ = ["interval"]

TEMPERATURES = (300, 900)  # K
SIZES = {5: 600, 8: 250}  # cells along a side of the watched cube: how many frames are judged
RATES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005)
REFERENCE, APART = 150, 50  # frames of 1000 atoms; fs between frames
SEEDS = {"reference": 11, "judged": 77}
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#666666"


def main() -> None:
    """Measure and print; with --plot draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=cache_folder(), help="keep made data here (%(default)s)")
    options = parse_options(parser, draw)
    head("False alarms: frames above a threshold though the reference covers them", "lammps")
    print(
        f"Stillinger-Weber silicon, frames {APART} fs apart; reference: {REFERENCE} frames of 1000 atoms; judged:\n"
        "frames of other runs at the same temperature: all are covered, so each one above a threshold is a false alarm"
    )
    result: list[dict[str, Any]] = []
    for temperature in TEMPERATURES:
        index = _index(options.data, temperature)
        for cells, n in SIZES.items():
            result += _measure(options.data, index, temperature, cells, n)
    save_picture(options.plot, result, draw)


def interval(k: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Clopper and Pearson of a rate, of which k of n were seen."""
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    return low, float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0


def _frames(folder: Path, cells: int, temperature: int, what: str, n: int) -> Any:
    seed = SEEDS[what] + temperature + cells
    positions = cached(folder, "md", sample, cells=cells, temperature=temperature, seed=seed, n=n, apart=APART)
    return frames_of(positions)


def _index(folder: Path, temperature: int) -> Index:
    frames = _frames(folder, 5, temperature, "reference", REFERENCE)
    index = Index.build(frames, bandwidth=BANDWIDTH, threads=1)
    started = time.perf_counter()
    index.calibration = calibrate(index, threads=1)
    taken, found = time.perf_counter() - started, index.calibration
    print(
        f"\n{temperature} K: {len(index)} references, calibrated in {taken:.0f} s on one thread: {len(found.sizes)} of "
        f"{found.frames} independent frames, {found.groups} groups, correlation over {found.correlation:.3g} frames"
    )
    return index


def _measure(folder: Path, index: Index, temperature: int, cells: int, n: int) -> list[dict[str, Any]]:
    """Print a table of one temperature and size, and return its rows."""
    assert index.calibration is not None
    atoms, thresholds = 8 * cells**3, dict[float, float]()
    print(f"\n{temperature} K, {atoms} atoms (cube of {SIDE * cells:.1f} Å), {n} frames judged")
    print("  asked   threshold (nats)   above   measured   95 % interval")
    refusals = []
    for rate in RATES:
        try:
            thresholds[rate] = index.calibration.false_alarm(rate, {"Si": atoms})["Si"]
        except CalibrationError as error:
            refusals.append((rate, str(error)))
    maxima = _maxima(index, _frames(folder, cells, temperature, "judged", n), min(thresholds.values()))
    rows = []
    for rate, threshold in thresholds.items():
        k = int((maxima > threshold).sum())
        low, high = interval(k, n)
        rows.append({"temperature": temperature, "atoms": atoms, "asked": rate, "threshold": threshold})
        rows[-1] |= {"above": k, "judged": n, "measured": k / n, "low": low, "high": high}
        print(f"  {rate:<5g}{threshold:>19.3f}{k:>8}{k / n:>11.3f}   {low:.3f} to {high:.3f}", flush=True)
    for rate, text in refusals[:1]:
        print(f"  {rate:g} and below: refused: {text}")
    return rows


def _maxima(index: Index, frames: Any, least: float) -> Any:
    """Return the largest dH of every frame, −inf where it is not above `least`."""
    out = []
    for frame in frames:
        rows = index.spec.compute(frame, 1)
        above = rows[index.exceeds(rows, least, 1)]
        out.append(index.delta_entropy(above, 1).max() if len(above) else -np.inf)
    return np.array(out)


def draw(result: list[dict[str, Any]], path: Path) -> None:
    """Draw measured rates against asked ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.007, 0.7], [0.007, 0.7], color=_GREY, lw=1, ls="--")
    kinds = {
        (300, 1000): (_BLUE, "o"),
        (300, 4096): (_BLUE, "s"),
        (900, 1000): (_ORANGE, "^"),
        (900, 4096): (_ORANGE, "v"),
    }
    for shift, ((temperature, atoms), (colour, marker)) in enumerate(kinds.items()):
        rows = [r for r in result if (r["temperature"], r["atoms"]) == (temperature, atoms)]
        x = np.array([r["asked"] for r in rows]) * (0.955 + 0.03 * shift)  # so that bars do not hide each other
        y = np.array([[r["measured"], r["low"], r["high"]] for r in rows]).T
        floor = np.maximum(y, 1e-3)
        axes.errorbar(
            x,
            floor[0],
            [floor[0] - floor[1], floor[2] - floor[0]],
            color=colour,
            marker=marker,
            ms=5.5,
            lw=0,
            elinewidth=1.1,
            mec="white",
            mew=0.5,
            label=f"{temperature} K, {atoms} atoms",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 1.0)
    axes.set_xlabel("asked: false alarms per frame")
    axes.set_ylabel("measured, with 95 % intervals")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(True, which="major", color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
