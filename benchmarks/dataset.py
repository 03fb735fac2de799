"""What a dataset holds, beside quests: every quantity the same, and how long both take. Data of Zuo et al. (2020).

python -m benchmarks dataset FOLDER, which holds Si_training.extxyz, Si_test.extxyz, and the same of Ge.

With NUMBA_NUM_THREADS=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 before it, times are those of the processor, which
other processes on the machine change little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numba
import numpy as np
from numpy.typing import NDArray
from quests import descriptor as quests_descriptor
from quests import entropy as quests_entropy
from quests.compression import DatasetCompressor
from scipy.spatial.distance import cdist

from quests_md import DescriptorSpec, Index
from quests_md.compression import compress
from quests_md.information import (
    LearningCurve,
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
from .timing import REST

ELEMENTS = ("Si", "Ge")
BANDWIDTHS = (0.01, 0.015, 0.02, 0.03, 0.05)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # these, three runs, samples of 1000 and 20 runs, and half of
RUNS = 3  # the frames are what quests takes where nothing is said
SAMPLE, SAMPLES = 1000, 20
SHARE = 0.5
SEED = 7
TWIN = 1e-6  # 1/Å, between environments that are the same up to symmetry
DIFFERENCE = 1e-6
FASTER = 20.0
LONG = 1.0  # s: a call of quests that takes longer is made once, the others three times
SEARCHED = 2000  # queries that the best batch size is found with

ALONE = numba.config.NUMBA_NUM_THREADS == 1
clock = time.process_time if ALONE else time.perf_counter

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
        Of both results, and what there is to say of it.
    target
        It is one of those that have to be faster by `FASTER`.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[int], Any]
    difference: Callable[[Any, Any], tuple[float, str]]
    target: bool = False


def compare(ours: Any, theirs: Any) -> tuple[float, str]:
    """Compare values; say how many of those of quests are not finite."""
    n = int((~np.isfinite(np.asarray(theirs))).sum())
    return relative(ours, theirs), f"{n} of quests are inf" if n else ""


def relative(ours: Any, theirs: Any) -> float:
    """Return the largest difference where both are finite, relative to what quests has or, if that is smaller, to 1."""
    a, b = np.atleast_1d(ours), np.atleast_1d(theirs)
    finite = np.isfinite(b)
    return float((np.abs(a - b)[finite] / np.maximum(1.0, np.abs(b[finite]))).max())


def same_choice(frames: list[Values], ours: Any, theirs: Any) -> tuple[float, str]:
    """Compare frames, in the order of their choice, and then what the choices hold.

    Frames with the same environments have the same score: which of them is taken, rounding decides. Such twins count
    as the same.
    """
    pairs = [(a, b) for a, b in zip(ours[0], theirs[0], strict=True) if a != b]
    others = sum(not _are_twins(frames[a], frames[b]) for a, b in pairs)
    if others:
        return np.inf, f"{others} other frames of {len(ours[0])}"
    return relative(ours[1], theirs[1]), f"same frames and order{f', {len(pairs)} a twin' if pairs else ''}"


def _are_twins(a: Values, b: Values) -> bool:
    """Return whether two frames have the same environments."""
    between = cdist(a, b)
    return len(a) == len(b) and max(between.min(axis=0).max(), between.min(axis=1).max()) < TWIN


def quantities(training: list[Any], test: list[Any]) -> list[Quantity]:
    """Return all that is compared, for a training set and a test set of frames."""
    spec = DescriptorSpec()
    frames, queries = [spec.compute(atoms) for atoms in training], [spec.compute(atoms) for atoms in test]
    volumes = [atoms.get_volume() / len(atoms) for atoms in training]
    rules = ("gaussian", "cutoff")
    return [
        Quantity(
            "descriptors",
            lambda: spec.compute(training),
            lambda _: quests_descriptor.get_descriptors(training, k=32, cutoff=5.0),
            compare,
        ),
        Quantity(
            "bandwidth, both rules",
            lambda: [bandwidth_from_volume(v, rule) / BANDWIDTH for rule in rules for v in volumes],
            lambda _: [quests_entropy.get_bandwidth(v, rule) / BANDWIDTH for rule in rules for v in volumes],
            compare,
        ),
        *_of_a_set(np.concatenate(frames)),
        *_of_two_sets(np.concatenate(queries), np.concatenate(frames), Index.build(training, spec, BANDWIDTH)),
        *_of_choices(frames, queries),
    ]


def _of_a_set(x: Values) -> list[Quantity]:
    """Return what is compared for a dataset alone."""
    curve = [int(fraction * len(x)) for fraction in FRACTIONS for _ in range(RUNS)]
    return [
        Quantity(
            "entropy",
            lambda: information(x, BANDWIDTH).entropy,
            lambda batch: quests_entropy.entropy(x, BANDWIDTH, batch),
            compare,
            True,
        ),
        Quantity(
            "entropy, diversity, dH",
            lambda: _all(information(x, BANDWIDTH)),
            lambda batch: np.hstack(quests_entropy.get_all_metrics(x, BANDWIDTH, batch)),
            compare,
        ),
        Quantity(
            f"entropy, {len(BANDWIDTHS)} bandwidths",
            lambda: [found.entropy for found in information_at(x, BANDWIDTHS)],
            lambda batch: quests_entropy.entropy(x, np.array(BANDWIDTHS), batch),
            compare,
        ),
        Quantity(
            f"entropy, {SAMPLES} × {SAMPLE}",
            lambda: sample_entropy(x, min(SAMPLE, len(x)), SAMPLES, BANDWIDTH, seed=SEED, replace=True).entropies,
            lambda batch: _sampled(x, [min(SAMPLE, len(x))] * SAMPLES, batch),
            compare,
        ),
        Quantity(
            "learning curve",
            lambda: _curve(learning_curve(x, FRACTIONS, RUNS, BANDWIDTH, seed=SEED, replace=True)),
            lambda batch: _sampled(x, curve, batch),
            compare,
            True,
        ),
    ]


def _of_two_sets(query: Values, x: Values, index: Index) -> list[Quantity]:
    """Return what is compared for one dataset against another."""
    return [
        Quantity(
            "dH",
            lambda: delta_entropy(query, x, BANDWIDTH),
            lambda batch: quests_entropy.delta_entropy(query, x, BANDWIDTH, batch),
            compare,
            True,
        ),
        Quantity(
            "dH, index",
            lambda: index.delta_entropy(query),
            lambda batch: quests_entropy.delta_entropy(query, x, BANDWIDTH, batch),
            compare,
            True,
        ),
        Quantity(
            "overlap",
            lambda: overlap(query, x, BANDWIDTH),
            lambda batch: (quests_entropy.delta_entropy(query, x, BANDWIDTH, batch) < 1e-5).mean(),
            compare,
        ),
    ]


def _of_choices(frames: list[Values], queries: list[Values]) -> list[Quantity]:
    """Return what is compared for choices of frames."""
    ours, theirs = partial(_choice_of_ours, frames), partial(_choice_of_quests, frames)
    same = partial(same_choice, frames)
    known = np.concatenate(queries)
    return [
        Quantity("compress, msc", lambda: ours("msc"), lambda batch: theirs("msc", batch), same, True),
        Quantity(
            "compress, conditional",
            lambda: ours("msc", known),
            lambda batch: theirs("msc_conditional", batch, reference=queries),
            same,
            True,
        ),
        Quantity("compress, fps", lambda: ours("farthest"), lambda batch: theirs("fps", batch), same, True),
    ]


def _curve(curve: LearningCurve) -> Values:
    return np.concatenate([some.entropies for some in curve.samples])


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
    return found.selected.tolist(), [found.entropy, found.diversity, found.overlap]


def _choice_of_quests(frames: list[Values], method: str, batch: int, **options: Any) -> tuple[list[int], list[float]]:
    """Choose, and compute entropy, diversity and overlap of the choice, as the command of quests does."""
    compressor = DatasetCompressor(frames, lambda rows: rows, BANDWIDTH, batch)
    chosen = [int(i) for i in compressor.get_indices(method, round(SHARE * len(frames)), **options)]
    return chosen, [compressor.entropy(chosen), compressor.diversity(chosen), compressor.overlap(chosen)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the four files are; they are not in the repository")
    parser.add_argument("--element", choices=ELEMENTS, help="only this one")
    options = parser.parse_args()
    if not (options.folder / "Si_test.extxyz").exists():
        raise SystemExit(f"{options.folder}: needs the data of Zuo et al. (2020): see benchmarks/README.md")
    head("What a dataset holds, beside quests", "quests")
    how = "one thread, time of the processor" if ALONE else "both with all cores"
    print(
        f"h = {BANDWIDTH}; {how}, from the same descriptors; compress: {SHARE:g} of the frames, with\n"
        "entropy, diversity and overlap of the choice. difference: the largest, relative to max(1, |value of quests|)"
    )
    met = [_element(options.folder, element) for element in ELEMENTS if options.element in (None, element)]
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
        f"\n{element}: {len(training)} and {len(test)} frames, {len(rows)} and {sum(map(len, test))} environments; "
        f"best batch of quests here: {batch}\n"
        f"{'':<24}{'quests':>9}{'its best':>10}{'ours':>10}{'ratio':>8}{'to best':>9}   difference"
    )
    ratios, largest = {}, 0.0
    for quantity in quantities(training, test):
        found, mine = quantity.ours(), []
        default, expected = _timed(partial(quantity.theirs, DEFAULT_BATCH), quantity.ours, mine)
        best = min(default, _timed(partial(quantity.theirs, batch), quantity.ours, mine)[0])
        taken = statistics.median(mine)
        difference, note = quantity.difference(found, expected)
        largest = max(largest, difference)
        if quantity.target:
            ratios[quantity.name] = default / taken
        print(
            f"{quantity.name:<24}{_seconds(default):>9}{_seconds(best):>10}{_seconds(taken):>10}{default / taken:>8.1f}"
            f"{best / taken:>9.1f}   {difference:.0e}  {note}".rstrip(),
            flush=True,
        )
    for name, ratio in ratios.items():
        target(f"{name}: quests at its default takes longer by", ratio, FASTER, "", least=True)
    return target("largest difference", largest, DIFFERENCE, "")


def _timed(theirs: Callable[[], Any], ours: Callable[[], Any], mine: list[float]) -> tuple[float, Any]:
    """Return the median seconds of quests and its result; time ours in turn with it.

    Ours is called twice, after a rest, and the second call is timed: the threads of quests spin for a while on the core
    that ours needs, and threads that have slept wake up in the first call.
    """
    results: list[Any] = []
    taken: list[float] = []
    while len(taken) < (1 if taken and taken[0] > LONG else 3):
        mine.append(_after_rest(ours))
        one, result = _seconds_of(theirs)
        taken.append(one)
        results.append(result)
    mine.append(_after_rest(ours))
    return statistics.median(taken), results[0]


def _after_rest(call: Callable[[], Any]) -> float:
    time.sleep(REST)
    call()
    return _seconds_of(call)[0]


def _seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    started = clock()
    result = call()
    return clock() - started, result


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.2f} ms"
