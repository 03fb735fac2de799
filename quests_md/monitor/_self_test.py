"""A self-test: does this machine compute the numbers that it must? They are known, and few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame
from ..index import Index
from ..information import Precision, delta_entropy, entropy
from ._decision import Band
from ._monitor import Monitor

__all__ = ["Check", "self_test"]

# What `_make` describes, by code that has nothing in common with the kernels (tests/naive.py; a test compares).
DH = (
    11.846556737126125, 8.012178256123239, 13.656731544687705, 9.842266333668759, 8.034156825731642,
    12.050127239904779, 9.88859489065676, 13.596263531934378,
)  # fmt: skip
SUM = 19.016336783057646  # of all columns of the query's descriptors, in 1/Å
ENTROPY = 2.1564523511046296  # of the reference against itself, in nats
BANDWIDTH = 0.015
_SELECT = 13.0  # nats; two of eight atoms are above


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes
    ----------
    what
        What it is, for people.
    error
        By how much it differs from what it must be.
    limit
        By how much it may.
    """

    what: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is right; nan is wrong."""
        return self.error <= self.limit


def make_frames() -> tuple[list[Frame], Frame]:
    """Return a reference of six frames of silicon, and a frame that is compared with it."""
    return [_make(seed, 0.1) for seed in range(6)], _make(7, 0.25)


def _make(seed: int, scale: float) -> Frame:
    places = [[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]
    # Shifts by a formula: the numbers of a random generator may change with its version.
    shifts = scale * np.sin(1.7 * np.arange(24.0).reshape(8, 3) * (seed + 1) + seed)
    return Frame(np.array(places) * 5.43 / 4.0 + shifts, np.full(8, 14), np.eye(3) * 5.43, True)


def self_test() -> list[Check]:
    """Compute what is known of a small reference and a frame, in each way there is, and compare."""
    frames, frame = make_frames()
    index = Index.build(frames, bandwidth=BANDWIDTH, threads=1)
    rows, reference = index.spec.compute(frame, 1), index.spec.compute(frames, 1)
    checks = [
        Check("descriptors", abs(float(rows.sum()) - SUM), 1e-10),
        Check("dH in double precision", _differ(delta_entropy(rows, reference, BANDWIDTH, threads=1)), 1e-8),
        Check("dH of an index", _differ(index.delta_entropy(frame, 1)), 1e-5),
        Check("dH in single precision", _differ(index.delta_entropy(frame, 1, precision="single")), 1e-4),
        Check("thresholds by bounds", float(np.sum(index.exceeds(frame, _SELECT, 1) != (np.array(DH) > _SELECT))), 0.0),
        Check("entropy", abs(entropy(reference, BANDWIDTH, threads=1) - ENTROPY), 1e-9),
    ]
    ways: tuple[tuple[str, Precision], ...] = (("exact", "single"), ("exact", "double"), ("flagged", "double"))
    for values, precision in ways:
        checks.append(_check_decision(index, frame, values, precision))
    return checks


def _check_decision(index: Index, frame: Frame, values: str, precision: Precision) -> Check:
    decision = Monitor(index, select=_SELECT, halt=100.0, values=values, precision=precision).observe(frame)
    right = decision.band is Band.CANDIDATE and decision.max_id == int(np.argmax(DH))
    error = abs(decision.maximum - max(DH)) if right else float("nan")
    return Check(f"a decision ({values}, {precision})", error, 1e-5)


def _differ(dH: NDArray[np.float64]) -> float:
    return float(np.abs(dH - np.array(DH)).max())
