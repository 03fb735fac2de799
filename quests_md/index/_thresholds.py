"""Thresholds that an index turns into nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import InputError

__all__ = ["check_threshold", "resolve_threshold"]


def check_threshold(name: str, given: Any) -> None:
    """Raise `InputError` unless `given` has the form of a threshold: nats, or nats by chemical symbol."""
    values = given.values() if isinstance(given, Mapping) else [given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise InputError(f"{name} must be a number of nats, not {value!r}")


def resolve_threshold(name: str, given: Any, index: Any, counts: Mapping[str, int]) -> dict[str, float]:
    """Return nats for every watched symbol."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(counts, float(given))
    missing = sorted(set(counts) - set(given))
    if missing:
        raise InputError(f"{name} says nothing of {', '.join(missing)}")
    return {symbol: float(given[symbol]) for symbol in counts}
