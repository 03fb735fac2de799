"""Values that the header of an index file can hold. Files may be hostile."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["are_sizes", "check_fit", "is_count"]


def is_count(value: Any) -> bool:
    """Return whether a value of a header can be a count."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def are_sizes(values: Iterable[Any]) -> bool:
    """Return whether all values of a header are finite numbers that are not negative."""
    return all(isinstance(x, float) and 0.0 <= x < math.inf for x in values)


def check_fit(name: str, fit: Any) -> None:
    """Raise `ValueError` unless what a bound says of its fit, or of a part of it, can be so.

    Parameters
    ----------
    name
        The key of the header, for the message.
    fit
        Has `covered`, `low`, `high`, `structures` and `environments`; some have a `coverage`, too.
    """
    shares = [fit.covered, fit.low, fit.high, getattr(fit, "coverage", 1.0)]
    if not (are_sizes(shares) and max(shares) <= 1.0):
        raise ValueError(f"{name}: shares")
    if not (fit.structures and fit.environments and is_count(fit.structures) and is_count(fit.environments)):
        raise ValueError(f"{name}: counts")
