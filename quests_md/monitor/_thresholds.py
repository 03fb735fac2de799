"""The thresholds of a run: given as numbers, per element or as a rate, and resolved to nats of every element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import InputError
from ..index import Reference, check_threshold, resolve_threshold

__all__ = ["Thresholds"]


class Thresholds:
    """What `select` and `halt` mean for the watched atoms.

    Parameters
    ----------
    select, halt
        What was given: a number of nats, or a dictionary that `resolve_threshold` turns into numbers.
    min_atoms, min_fraction
        How many atoms, and what share of the watched ones, must lie above a threshold for the frame to.

    Attributes
    ----------
    resolved
        Nats of every element, by name of the threshold and symbol; None until the watched atoms are known.
        A number serves for all elements: its only key is "".
    uniform
        `select` and `halt` in nats where they are the same for all elements; else None.

    Raises
    ------
    InputError
        A threshold cannot be one, `select` is above `halt`, or a least number of atoms is out of range.
    """

    def __init__(self, select: Any, halt: Any, min_atoms: int, min_fraction: float) -> None:
        for name, value in (("select", select), ("halt", halt)):
            check_threshold(name, value)
        if isinstance(min_atoms, bool) or not isinstance(min_atoms, int) or min_atoms < 1:
            raise InputError(f"min_atoms must be a whole number of at least 1, not {min_atoms!r}")
        if isinstance(min_fraction, bool) or not 0.0 <= min_fraction <= 1.0:
            raise InputError(f"min_fraction must be between 0 and 1, not {min_fraction!r}")
        self.given = {"select": select, "halt": halt}
        self.min_atoms, self.min_fraction = min_atoms, float(min_fraction)
        self.resolved: dict[str, dict[str, float]] | None = None
        self.uniform: tuple[float, float] | None = None
        self._values: dict[str, NDArray[np.float64]] = {}
        if not any(isinstance(value, Mapping) for value in self.given.values()):
            self._settle({name: {"": float(value)} for name, value in self.given.items()})

    def resolve(self, index: Reference, counts: Mapping[str, int]) -> None:
        """Turn what was given into nats, for watched atoms of these numbers per chemical symbol."""
        resolved = {}
        for name, value in self.given.items():
            if not isinstance(value, Mapping):
                resolved[name] = {"": float(value)}
                continue
            # Elements of which there is no atom yet are kept, too.
            given = {symbol: float(nats) for symbol, nats in value.items() if symbol in SYMBOLS}
            resolved[name] = given | resolve_threshold(name, value, index, counts)
        self._settle(resolved)

    def restore(self, resolved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `resolved` was in an earlier part of the run, as JSON held it."""
        self._settle(
            {
                name: {symbol: float(value) for symbol, value in by_symbol.items()}
                for name, by_symbol in resolved.items()
            }
        )

    def _settle(self, resolved: dict[str, dict[str, float]]) -> None:
        for name, by_symbol in resolved.items():
            # An element whose first atom comes later has the lowest threshold of those that were there.
            values = np.full(len(SYMBOLS), min(by_symbol.values()))
            for symbol, value in by_symbol.items():
                if symbol:
                    values[SYMBOLS.index(symbol)] = value
            self._values[name] = values
        wrong = np.flatnonzero(self._values["select"] > self._values["halt"])
        if len(wrong):
            select, halt = (self._values[name][wrong[0]] for name in ("select", "halt"))
            raise InputError(f"select = {select} lies above halt = {halt}: candidates lie between the two")
        numbers = [float(values[0]) for values in self._values.values() if bool((values == values[0]).all())]
        self.uniform = (numbers[0], numbers[1]) if len(numbers) == len(self._values) == 2 else None
        self.resolved = resolved

    @property
    def lowest(self) -> float:
        """The lowest `select` of any element."""
        assert self.resolved is not None
        return min(self.resolved["select"].values())

    def of(self, numbers: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return `select` and `halt` (n,) of atoms with these atomic numbers; views of one number if they are equal."""
        if self.uniform is not None:
            return np.broadcast_to(self.uniform[0], len(numbers)), np.broadcast_to(self.uniform[1], len(numbers))
        return self._values["select"][numbers], self._values["halt"][numbers]

    def is_enough(self, count: int, n: int) -> bool:
        """Return whether so many of n watched atoms above a threshold put the frame above it."""
        return count >= max(self.min_atoms, math.ceil(self.min_fraction * n))

    def in_words(self) -> str:
        """Return the numbers as one line."""
        return ", ".join(
            f"{name} = {value:.6g}" + (f" ({symbol})" if symbol else "")
            for name, values in (self.resolved or {}).items()
            for symbol, value in values.items()
        )

    def reason(self, name: str, count: int, n: int, maximum: float, max_id: int) -> str:
        """Say why a frame lies above a threshold."""
        assert self.resolved is not None
        values = set(self.resolved[name].values())
        if len(values) == 1 and self.is_enough(1, n):
            return f"dH = {maximum:.6g} of atom {max_id} is above {name} = {values.pop():.6g}"
        limit = " or ".join(f"{value:.6g}" for value in sorted(values))
        worst = f"the largest dH is {maximum:.6g} of atom {max_id}"
        return f"{count} of {n} atoms are above {name} = {limit}; {worst}"
