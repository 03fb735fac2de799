"""What a dataset holds, beside quests: every quantity the same, and how long both take. Data of Zuo et al. (2020).

python -m benchmarks dataset FOLDER, which holds Si_training.extxyz, Si_test.extxyz, and the same of Ge.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from numpy.typing import NDArray
from quests import descriptor as quests_descriptor
from quests import entropy as quests_entropy
from quests.compression import DatasetCompressor

from quests_md import DescriptorSpec, Index
from quests_md.compression import compress
from quests_md.information import (
    bandwidth_from_volume,
    delta_entropy,
    information,
    information_at,
    learning_curve,
    overlap,
    sample_entropy,
)

from .peer import BANDWIDTH, DEFAULT_BATCH, best_batch
from .printing import head, target
from .timing import seconds

ELEMENTS = ("Si", "Ge")
BANDWIDTHS = (0.01, 0.015, 0.02, 0.03, 0.05)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # these, three runs, samples of 1000 and 20 runs, and half of
RUNS = 3  # the frames are what quests takes where nothing is said
SAMPLE, SAMPLES = 1000, 20
SHARE = 0.5
SEED = 7
DIFFERENCE = 1e-6
FASTER = 20.0
LONG = 1.0  # s: a call of quests that takes longer is made once, the others three times
SEARCHED = 2000  # queries that the best batch size is found with

Values = NDArray[np.float64]


@dataclass
class Quantity:
    """Something that both compute.

    Attributes
    ----------
    name
        Of the row.
    ours
        Compute it.
    theirs
        Compute it with quests, at a batch size.
    difference
        Of both results: a relative difference, or "equal" or "DIFFERENT" of choices.
    target
        It is one of those that have to be faster by `FASTER`.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[int], Any]
    difference: Callable[[Any, Any], float | str]
    target: bool = False


def relative(ours: Any, theirs: Any) -> float:
    """Return the largest difference where both are finite, relative to what quests has or, if that is smaller, to 1."""
    a, b = np.atleast_1d(ours), np.atleast_1d(theirs)
    finite = np.isfinite(b)
    return float((np.abs(a - b)[finite] / np.maximum(1.0, np.abs(b[finite]))).max())


def choices(ours: Any, theirs: Any) -> float | str:
    """Compare the frames and the order they were chosen in; where these are equal, what the choice holds."""
    if list(ours[0]) != list(theirs[0]):
        first = next(i for i, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True)) if a != b)
        same = len(set(ours[0]) & set(theirs[0]))
        return f"{same} of {len(ours[0])} the same, in order up to {first}"
    return relative(ours[1], theirs[1])


def quantities(training: list[Any], test: list[Any]) -> list[Quantity]:
    """Return all that is compared, for a training set and a test set of frames."""
    spec = DescriptorSpec()
    frames, queries = [spec.compute(atoms) for atoms in training], [spec.compute(atoms) for atoms in test]
    x, query = np.concatenate(frames), np.concatenate(queries)
    index = Index.build(training, spec, BANDWIDTH)
    volumes = np.array([atoms.get_volume() / len(atoms) for atoms in training])
    own, compressed = partial(_choice_of_ours, frames), partial(_choice_of_quests, frames)
    return [
        Quantity(
            "descriptors",
            lambda: spec.compute(training),
            lambda _: quests_descriptor.get_descriptors(training, k=32, cutoff=5.0),
            relative,
        ),
        Quantity(
            "entropy, diversity, dH",
            lambda: _all(information(x, BANDWIDTH)),
            lambda batch: np.hstack(quests_entropy.get_all_metrics(x, BANDWIDTH, batch)),
            relative,
        ),
        Quantity(
            "entropy",
            lambda: information(x, BANDWIDTH).entropy,
            lambda batch: quests_entropy.entropy(x, BANDWIDTH, batch),
            relative,
            True,
        ),
        Quantity(
            f"entropy, {len(BANDWIDTHS)} bandwidths",
            lambda: [found.entropy for found in information_at(x, BANDWIDTHS)],
            lambda batch: quests_entropy.entropy(x, np.array(BANDWIDTHS), batch),
            relative,
        ),
        Quantity(
            f"entropy, {SAMPLES} × {SAMPLE}",
            lambda: sample_entropy(x, SAMPLE, SAMPLES, BANDWIDTH, seed=SEED, replace=True).entropies,
            lambda batch: _sampled(x, [SAMPLE] * SAMPLES, batch),
            relative,
        ),
        Quantity(
            "learning curve",
            lambda: [
                s.entropies for s in learning_curve(x, FRACTIONS, RUNS, BANDWIDTH, seed=SEED, replace=True).samples
            ],
            lambda batch: _sampled(x, [int(f * len(x)) for f in FRACTIONS for _ in range(RUNS)], batch).reshape(
                -1, RUNS
            ),
            relative,
            True,
        ),
        Quantity(
            "dH",
            lambda: delta_entropy(query, x, BANDWIDTH),
            lambda batch: quests_entropy.delta_entropy(query, x, BANDWIDTH, batch),
            relative,
            True,
        ),
        Quantity(
            "dH, index",
            lambda: index.delta_entropy(query),
            lambda batch: quests_entropy.delta_entropy(query, x, BANDWIDTH, batch),
            relative,
            True,
        ),
        Quantity(
            "overlap",
            lambda: overlap(query, x, BANDWIDTH),
            lambda batch: (quests_entropy.delta_entropy(query, x, BANDWIDTH, batch) < 1e-5).mean(),
            relative,
        ),
        Quantity(
            "bandwidth, both rules",
            lambda: [[bandwidth_from_volume(v, rule) for v in volumes] for rule in ("gaussian", "cutoff")],
            lambda _: [[quests_entropy.get_bandwidth(v, rule) for v in volumes] for rule in ("gaussian", "cutoff")],
            lambda a, b: float(np.abs(np.array(a) / np.array(b) - 1).max()),
        ),
        Quantity("compress, msc", lambda: own("msc"), lambda batch: compressed("msc", batch), choices, True),
        Quantity(
            "compress, conditional",
            lambda: own("msc", query),
            lambda batch: compressed("msc_conditional", batch, reference=queries),
            choices,
            True,
        ),
        Quantity("compress, fps", lambda: own("farthest"), lambda batch: compressed("fps", batch), choices, True),
    ]


def _all(found: Any) -> Values:
    return np.hstack([found.entropy, found.diversity, found.delta_entropy])


def _sampled(x: Values, sizes: Sequence[int], batch: int) -> Values:
    """Return the entropies by quests of the same samples as ours."""
    rng = np.random.default_rng(SEED)
    drawn = (np.sort(rng.choice(len(x), size, replace=True)) for size in sizes)
    return np.array([quests_entropy.entropy(x[rows], BANDWIDTH, batch) for rows in drawn])


def _choice_of_ours(
    frames: list[Values], method: Any, reference: Values | None = None
) -> tuple[list[int], list[float]]:
    offsets = np.cumsum([0, *map(len, frames)])
    found = compress(np.concatenate(frames), offsets, SHARE, method, bandwidth=BANDWIDTH, reference=reference)
    return found.selected.tolist(), [found.entropy[-1], found.diversity[-1], found.overlap[-1]]


def _choice_of_quests(frames: list[Values], method: str, batch: int, **options: Any) -> tuple[list[int], list[float]]:
    """Choose, and compute entropy, diversity and overlap of the choice, as the command of quests does."""
    compressor = DatasetCompressor(frames, lambda rows: rows, BANDWIDTH, batch)
    chosen = [int(i) for i in compressor.get_indices(method, round(SHARE * len(frames)), **options)]
    return chosen, [compressor.entropy(chosen), compressor.diversity(chosen), compressor.overlap(chosen)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the four files are; they are not in the repository")
    options = parser.parse_args()
    if not (options.folder / "Si_test.extxyz").exists():
        raise SystemExit(f"{options.folder}: needs the data of Zuo et al. (2020): see benchmarks/README.md")
    head("What a dataset holds, beside quests", "quests")
    print(
        f"h = {BANDWIDTH}; both with all cores, from the same descriptors; compress: {SHARE:g} of the frames, with entropy,\n"
        "diversity and overlap of the choice. difference: the largest, relative to max(1, |value of quests|)"
    )
    met = [_element(options.folder, element) for element in ELEMENTS]
    if not all(met):
        raise SystemExit(1)


def _element(folder: Path, element: str) -> bool:
    """Print the table and the targets of one element; return whether all is the same."""
    training, test = (ase.io.read(folder / f"{element}_{name}.extxyz", ":") for name in ("training", "test"))
    for quantity in quantities(training[:3], test[:2]):  # compile
        quantity.ours(), quantity.theirs(DEFAULT_BATCH)
    rows = DescriptorSpec().compute(training)
    batch = best_batch(rows[:: max(1, len(rows) // SEARCHED)], rows, 1)
    print(
        f"\n{element}: {len(training)} and {len(test)} frames, {len(rows)} and {sum(map(len, test))} environments; best "
        f"batch of quests here: {batch}\n"
        f"{'':<24}{'quests':>9}{'its best':>10}{'ours':>9}{'ratio':>8}{'to best':>9}   difference"
    )
    ratios, differences = {}, {}
    for quantity in quantities(training, test):
        mine: list[float] = []
        found = quantity.ours()
        default, expected = _timed(partial(quantity.theirs, DEFAULT_BATCH), quantity.ours, mine)
        best, _ = _timed(partial(quantity.theirs, batch), quantity.ours, mine)
        taken, difference = statistics.median(mine), quantity.difference(found, expected)
        differences[quantity.name] = difference
        if quantity.target:
            ratios[quantity.name] = default / taken
        best = min(best, default)
        shown = f"{difference:.0e}" if isinstance(difference, float) else difference
        print(
            f"{quantity.name:<24}{_seconds(default):>9}{_seconds(best):>10}{_seconds(taken):>9}{default / taken:>8.1f}"
            f"{best / taken:>9.1f}   {shown}{_infinite(expected)}",
            flush=True,
        )
    for name, ratio in ratios.items():
        target(f"{name}, faster than quests by", ratio, FASTER, "", least=True)
    numbers = [value if isinstance(value, float) else float("inf") for value in differences.values()]
    return target("largest difference", max(numbers), DIFFERENCE, "")


def _timed(theirs: Callable[[], Any], ours: Callable[[], Any], mine: list[float]) -> tuple[float, Any]:
    """Return the median seconds of quests and its result; time ours in turn with it."""
    results: list[Any] = []
    taken = [seconds(lambda: results.append(theirs()))]
    mine += [seconds(ours) for _ in range(3)]
    while taken[0] < LONG and len(taken) < 3:
        taken.append(seconds(theirs))
        mine.append(seconds(ours))
    return statistics.median(taken), results[0]


def _infinite(values: Any) -> str:
    """Say how many values of quests are not finite."""
    if isinstance(values, tuple):
        return ""
    n = int((~np.isfinite(np.asarray(values))).sum())
    return f"; {n} of quests are inf" if n else ""


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.1 else f"{1000 * value:.2f} ms"
