"""What a bias is told: the keys of ``bias = { ... }``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import InputError

__all__ = ["BiasSettings", "check_bias"]

_STRONGEST = 1.0  # a bias as strong as the potential tears bonds
_FOCUS = ("all", "worst")


@dataclass(frozen=True)
class BiasSettings:
    """Settings of a bias.

    Parameters
    ----------
    strength
        Mean force of the bias as a share of the mean force of the potential, above 0 and up to 1. A warm-up turns it
        into τ. Few atoms may get most of the push: then `largest_force` decides.
    tau
        Energy of the bias in eV per nat, instead of `strength`.
    floor
        dH in nats below which an atom is not pushed. By default the median dH of the reference's own environments.
    ceiling
        dH in nats above which an atom is not pushed any more. By default the halt threshold.
    focus
        "all": every atom is pushed by its own dH. "worst": the push goes to the atoms with the largest dH, for large
        cells.
    warm_up
        Number of pushed steps during which `strength` adapts τ. Then τ is fixed.
    largest_force
        Largest force of the bias on an atom, in eV/Å. If it would be larger, all forces of that step are scaled down.
    pause_in_events
        Whether the bias is off while an event is open, so that the potential alone decides what comes of it.

    Raises
    ------
    InputError
        A value is out of range, or not exactly one of `strength` and `tau` is given.
    """

    strength: float | None = None
    tau: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    focus: str = "all"
    warm_up: int = 100
    largest_force: float = 1.0
    pause_in_events: bool = False

    def __post_init__(self) -> None:
        if (self.strength is None) == (self.tau is None):
            raise InputError("bias: give either strength (a share of the mean force) or tau (eV per nat)")
        for name in ("strength", "tau", "largest_force", "floor", "ceiling"):
            value = getattr(self, name)
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or (name not in ("floor", "ceiling") and value <= 0):
                raise InputError(f"bias: {name} must be a positive number, not {value!r}")
        if self.strength is not None and self.strength > _STRONGEST:
            raise InputError(
                f"bias: strength = {self.strength:g} is a mean force larger than the potential's own, which would tear "
                f"bonds: give at most {_STRONGEST:g}, and begin with 0.1"
            )
        if self.floor is not None and self.ceiling is not None and self.floor >= self.ceiling:
            raise InputError(f"bias: floor = {self.floor:g} must lie below ceiling = {self.ceiling:g}")
        if self.focus not in _FOCUS:
            raise InputError(f'bias: focus must be "all" or "worst", not {self.focus!r}')
        if isinstance(self.warm_up, bool) or not isinstance(self.warm_up, int) or self.warm_up < 1:
            raise InputError(f"bias: warm_up must be a number of steps of at least 1, not {self.warm_up!r}")
        if not isinstance(self.pause_in_events, bool):
            raise InputError(f"bias: pause_in_events must be true or false, not {self.pause_in_events!r}")

    @classmethod
    def make(cls, given: Mapping[str, Any] | BiasSettings) -> BiasSettings:
        """Make settings of the keys of a configuration; `InputError` for an unknown key or a wrong value."""
        if isinstance(given, BiasSettings):
            return given
        if not isinstance(given, Mapping):
            raise InputError(f"bias must be a table such as {{ strength = 0.1, ceiling = 10.0 }}, not {given!r}")
        known = [each.name for each in fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
                raise InputError(f"bias: unknown key {key!r}; {hint}")
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that are set, as JSON can hold them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_bias(given: Any) -> None:
    """Raise `InputError` unless `given` are valid settings of a bias."""
    BiasSettings.make(given)
