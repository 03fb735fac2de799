"""What a threshold means on an index: how often it is exceeded without a reason, and by how much it may be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..elements import SYMBOLS
from ..errors import CalibrationError
from ._thresholds import Calibration

__all__ = ["Meaning", "explain_threshold"]

# Nats above all left-out frames from which on a threshold is called far: there the kernel sum is e^5 = 150 times
# smaller than at the worst frame of the reference, so a run leaves the data long before it notices. `halt` is meant to
# be far: frames between the two are those that one learns from.
_FAR = {"select": 5.0, "halt": 50.0}
_OFTEN = 0.5  # a rate of false alarms from which on a threshold is called low


@dataclass(frozen=True)
class Meaning:
    """What a threshold means for a number of watched atoms.

    Attributes
    ----------
    name
        What the threshold is called: "select".
    nats
        The threshold by chemical symbol.
    counts
        Watched atoms by chemical symbol.
    rate
        The share of independent frames of the reference's kind that lie above; None if no calibration knows it.
    is_least
        Whether the rate is the lowest that the calibration resolves: the true one may be lower.
    above, frames
        How many left-out frames of the reference lie above, of how many.
    error, coverage
        The bound of the force error at the threshold in eV/Å, of the worst element, and the share of errors below it;
        None if dH has no such bound.
    warning
        What is wrong with the threshold, in words; empty if nothing is known to be.
    """

    name: str
    nats: dict[str, float]
    counts: dict[str, int]
    rate: float | None = None
    is_least: bool = False
    above: int = 0
    frames: int = 0
    error: float | None = None
    coverage: float | None = None
    warning: str = ""

    def in_words(self) -> str:
        """Return it as one line, without the warning; empty if nothing is known."""
        if self.rate is None:
            return ""
        atoms = ", ".join(f"{n} {symbol}" for symbol, n in self.counts.items())
        most = "at most " if self.is_least else ""
        told = [
            f"{most}{self.rate:.2g} false alarms per independent frame of {atoms} atoms",
            f"{self.above} of {self.frames} left-out frames of the reference above",
        ]
        if self.error is not None and self.coverage is not None:
            bound = f"below {self.error:.3g} eV/Å" if math.isfinite(self.error) else "not bounded"
            told.append(f"{100 * self.coverage:g} % of force errors at it {bound}")
        return "; ".join(told)


def explain_threshold(name: str, nats: Mapping[str, float], index: Any, counts: Mapping[str, int]) -> Meaning:
    """Say what a threshold means on an index.

    Parameters
    ----------
    name
        "select" or "halt", or another name of a threshold that is used like `select`.
    nats
        The threshold by chemical symbol; the key "" is for all elements.
    index
        The reference; without a `calibration` nothing is known.
    counts
        Watched atoms by chemical symbol.
    """
    watched = {symbol: n for symbol, n in counts.items() if n > 0}
    by_symbol = {symbol: float(nats.get(symbol, nats.get("", min(nats.values())))) for symbol in watched}
    calibration: Calibration | None = getattr(index, "calibration", None)
    if calibration is None:
        path = getattr(index, "path", None)
        how = f"quests-md index calibrate {path}" if path else "quests_md.index.calibrate(index) makes one"
        text = f"the index has no calibration, so nothing tells what {name} means: {how}"
        return Meaning(name, by_symbol, watched, warning=text)
    if all(value == math.inf for value in by_symbol.values()):
        return Meaning(name, by_symbol, watched)  # never: nothing to explain
    if calibration.symbols == SYMBOLS[:1]:  # own descriptors, which have no elements
        by_symbol, watched = {SYMBOLS[0]: max(by_symbol.values())}, {SYMBOLS[0]: sum(watched.values())}
    try:
        rate, is_least = calibration.find_rate(by_symbol, watched)
    except CalibrationError as error:
        return Meaning(name, by_symbol, watched, warning=f"{name}: {error}")
    above, frames, worst = _count_above(calibration, by_symbol)
    bound = calibration.force_error
    limit = None if bound is None else max(
        float(bound.bound([value], [SYMBOLS.index(symbol)])[0]) for symbol, value in by_symbol.items()
    )  # fmt: skip
    return Meaning(
        name, by_symbol, watched, rate, is_least, above, frames, limit, None if bound is None else bound.coverage,
        _find_fault(name, by_symbol, worst, rate, _find_told_rate(calibration, watched)),
    )  # fmt: skip


def _count_above(calibration: Calibration, nats: Mapping[str, float]) -> tuple[int, int, dict[str, float]]:
    """Return how many left-out frames lie above, of how many, and the largest left-out dH by chemical symbol."""
    columns = [calibration.symbols.index(symbol) for symbol in nats]
    maxima = calibration.maxima[:, columns]
    has = np.any(calibration.sizes[:, columns] > 0, axis=1)
    above = np.any(maxima > np.array(list(nats.values())), axis=1)
    finite = np.where(np.isfinite(maxima), maxima, -np.inf).max(axis=0)
    return int(above[has].sum()), int(has.sum()), dict(zip(nats, finite.tolist(), strict=True))


def _find_told_rate(calibration: Calibration, watched: Mapping[str, int]) -> float:
    """Return a rate that can be given: one in a hundred, or a round number above the lowest that is resolved."""
    lowest, _ = calibration.find_rate(dict.fromkeys(watched, math.inf), watched)
    step = 10.0 ** math.floor(math.log10(max(lowest, 1e-9)))
    return max(0.01, round(math.ceil(lowest / step) * step, 9))


def _find_fault(name: str, nats: Mapping[str, float], worst: Mapping[str, float], rate: float, told: float) -> str:
    """Say what is wrong with a threshold, and `told` as the rate to give in its place."""
    give = (
        f"give {{ false_alarm = {told:g}, plus = 10 }}"
        if name == "halt"
        else f"give a rate: {{ false_alarm = {told:g} }}"
    )
    far = {s: value for s, value in nats.items() if value > worst[s] + _FAR.get(name, _FAR["select"])}
    if far:
        symbol, value = max(far.items(), key=lambda one: one[1] - worst[one[0]])
        return (
            f"{name} = {value:.4g} nats lies far outside the calibrated range: the largest left-out dH of {symbol} is "
            f"{worst[symbol]:.4g}, so a run may leave the data long before it is noticed; {give}"
        )
    if rate > _OFTEN:
        lowest = min(nats.values())
        return (
            f"{name} = {lowest:.4g} nats lies low in the calibrated range: {rate:.0%} of independent frames of the "
            f"reference's own kind are above it; {give}"
        )
    return ""
