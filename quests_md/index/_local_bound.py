"""What a calibration of local residuals holds: expected errors, and bounds of them, in eV/Å."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ._conformal import estimate_interval
from ._header import are_sizes, check_fit, is_count

__all__ = ["ADDED", "HELD_OUT", "LEFT_OUT", "FrameFactors", "LocalBound", "LocalFactors"]

ADDED: Final = 0.005  # eV/Å; so that an error is compared with no residual that is nearly zero
LEFT_OUT: Final = "left out"
HELD_OUT: Final = "held out"

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LocalFactors:
    """How errors of one element compare with the local residual s: quantiles of e/(s + 0.005 eV/Å).

    Attributes
    ----------
    median
        m: half of the errors are below m·(s + 0.005 eV/Å).
    factor
        q: of the errors, the share `coverage` is below q·(s + 0.005 eV/Å).
    largest
        The largest dH of the fit, in nats. What is farther from the reference is outside.
    structures, environments
        How many of them the factors were fitted to.
    covered, low, high
        The share of held-out environments whose error is below the bound (mean over structures), and its 95 % interval.
    """

    median: float
    factor: float
    largest: float
    structures: int
    environments: int
    covered: float
    low: float
    high: float


@dataclass(frozen=True)
class FrameFactors:
    """How the root mean square force error of a structure compares with that of s + 0.005 eV/Å over its environments.

    Attributes
    ----------
    median
        Half of the structures have a smaller ratio of the two.
    low, high
        Nine of ten structures have a ratio between these.
    structures
        How many of them it was found on: each was compared with the reference without itself.
    """

    median: float
    low: float
    high: float
    structures: int


@dataclass(frozen=True)
class LocalBound:
    """Which force error of one potential is to be expected, given the local residual s of `Index.local_residuals`.

    Take a new structure of the same kind as those that the bound was fitted to. A random atom of an element has an
    error below the bound with probability `coverage`. For structures of another kind nothing is guaranteed: where the
    reference has nothing like an environment, s is too small, and so is the bound.

    Attributes
    ----------
    elements
        The factors by chemical symbol; "X" for own descriptors, which have no elements.
    coverage
        The probability that was asked for.
    covered, low, high
        The share that was found on held-out structures (mean over them), and its 95 % interval from a bootstrap over
        structures.
    structures, environments
        How many of them the bound was fitted to.
    potential, fingerprint
        The name of the potential, and the fingerprint of its residuals (`Residuals`).
    errors
        Where the errors of the fit come from. "left out": they are residuals of the references, each of which was
        compared with the reference without its own frame or group. "held out": they are those of labelled frames that
        are not in the reference.
    excess, excess_low, excess_high
        By which factor errors on held-out frames are larger than residuals of the reference say, and its 95 % interval
        from a bootstrap over structures. All three are 1 if the errors are left out, and None if the residuals of the
        reference cannot be left out. The bound has this factor in it.
    reference
        A hash of the references, of how they are compared, and of their residuals. The bound holds for no others.
    frames
        How errors of whole structures compare with local residuals; None in files of an older version.
    """

    elements: dict[str, LocalFactors]
    coverage: float
    covered: float
    low: float
    high: float
    structures: int
    environments: int
    potential: str
    fingerprint: str
    errors: str
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    reference: str
    frames: FrameFactors | None = None

    @property
    def warning(self) -> str:
        """What a user must be told, if residuals of the reference are too small. Empty if nothing must."""
        if self.excess_low is None or self.excess_low <= 1.0:
            return ""
        return (
            f"errors on held-out frames are {self.excess:.2g} ({self.excess_low:.2g} to {self.excess_high:.2g}) times "
            "those that the residuals of the reference say"
        )

    def expected(self, dH: ArrayLike, s: ArrayLike, numbers: ArrayLike) -> NDArray[np.float64]:
        """Return the expected force error m·(s + 0.005 eV/Å), (n,) in eV/Å: half of the errors are below it.

        It is nan outside: beyond the largest dH of the fit, where s is nan, and for elements that were not fitted.

        Parameters
        ----------
        dH, s
            (n,) in nats and in eV/Å, as `Index.local_residuals` returns them.
        numbers
            (n,) atomic numbers; 0 for own descriptors.

        Raises
        ------
        InputError
            The arrays differ in length.
        """
        return self._scale(dH, s, numbers, lambda factors: factors.median, math.nan)

    def bound(self, dH: ArrayLike, s: ArrayLike, numbers: ArrayLike) -> NDArray[np.float64]:
        """Return the bound of the force error q·(s + 0.005 eV/Å), (n,) in eV/Å. It is inf outside.

        Parameters and errors are those of `expected`.
        """
        return self._scale(dH, s, numbers, lambda factors: factors.factor, math.inf)

    def expected_rmse(self, dH: ArrayLike, s: ArrayLike, numbers: ArrayLike) -> float:
        """Return the expected root mean square force error of a structure, in eV/Å: half of the structures have less.

        It is nan if an environment is outside, or if the bound does not know. `frames` says how well it holds.
        Parameters and errors are those of `expected`.
        """
        inside = ~np.isnan(self.expected(dH, s, numbers))
        squares = (np.asarray(s, np.float64)[inside] + ADDED) ** 2
        return self.rmse_of(float(squares.sum()), len(inside), int((~inside).sum()))

    def rmse_of(self, squares: float, n: int, outside: int) -> float:
        """Return what `expected_rmse` does, of Σ(s + 0.005 eV/Å)² over the n environments of which none is outside."""
        if self.frames is None or outside or not n:
            return math.nan
        return self.frames.median * math.sqrt(squares / n)

    def judge(
        self, errors: ArrayLike, dH: ArrayLike, s: ArrayLike, numbers: ArrayLike, structures: ArrayLike
    ) -> tuple[float, float, float]:
        """Return which share of `errors` (n,) in eV/Å is below the bound, and its 95 % interval; nan if there are none.

        What is outside does not count. The share is a mean over `structures` (n,), and the interval is from a bootstrap
        over them. The other parameters and errors are those of `expected`.
        """
        limit, errors, structures = self.bound(dH, s, numbers), np.asarray(errors), np.asarray(structures)
        inside = np.isfinite(limit)
        if not inside.any():
            return math.nan, math.nan, math.nan
        return estimate_interval(errors[inside] <= limit[inside], structures[inside])

    def largest(self, symbols: Iterable[str] | None = None) -> float:
        """Return the dH (nats) up to which environments of these elements are inside; by default of any element."""
        return min(factors.largest for symbol, factors in self.elements.items() if symbols is None or symbol in symbols)

    def threshold(self, error: float, symbol: str) -> float:
        """Return the largest dH (nats) at which the bound of an element can be at most `error` (eV/Å).

        Raises
        ------
        CalibrationError
            The bound is larger everywhere, or it does not know this element.
        """
        if symbol not in self.elements:
            raise CalibrationError(
                f"the bound of the force error knows {', '.join(self.elements)}, not {symbol}: give structures with it "
                "residuals"
            )
        factors = self.elements[symbol]
        least = factors.factor * ADDED
        if not error > least:
            raise CalibrationError(
                f"no environment of {symbol} has a force error of at most {error:g} eV/Å at a coverage of "
                f"{self.coverage:g}: the bound is {least:.3g} eV/Å even where the references have no error"
            )
        return factors.largest

    def _scale(
        self,
        dH: ArrayLike,
        s: ArrayLike,
        numbers: ArrayLike,
        factor: Callable[[LocalFactors], float],
        outside: float,
    ) -> NDArray[np.float64]:
        dH, s, numbers = np.asarray(dH, np.float64), np.asarray(s, np.float64), np.asarray(numbers)
        if dH.ndim != 1 or not dH.shape == s.shape == numbers.shape:
            shapes = f"{dH.shape}, {s.shape} and {numbers.shape}"
            raise InputError(f"dH, s and numbers must be of one length, not {shapes}")
        out = np.full(len(dH), outside)
        for symbol, factors in self.elements.items():
            mine = (numbers == SYMBOLS.index(symbol)) & (dH <= factors.largest) & ~np.isnan(s)
            out[mine] = factor(factors) * (s[mine] + ADDED)
        return out

    def to_json(self) -> dict[str, Any]:
        """Return the bound as data of the header of an index file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> LocalBound:
        """Read a bound from a header. Files may be hostile.

        Raises
        ------
        ValueError, KeyError, TypeError
            The data cannot be a bound.
        """
        if not isinstance(data, dict) or not isinstance(data["elements"], dict):
            raise TypeError("local_error")
        elements = {symbol: LocalFactors(**entry) for symbol, entry in data["elements"].items()}
        frames = None if data.get("frames") is None else FrameFactors(**data["frames"])
        made = cls(**{**data, "elements": elements, "frames": frames})
        if not (set(elements) == {SYMBOLS[0]} or (elements and set(elements) <= set(SYMBOLS[1:]))):
            raise ValueError("local_error: elements")
        texts = [made.potential, made.fingerprint, made.reference]
        if not all(isinstance(text, str) for text in texts) or not all(map(_DIGEST.fullmatch, texts[1:])):
            raise ValueError("local_error: potential, fingerprint or reference")
        check_fit("local_error", made)
        for factors in elements.values():
            check_fit("local_error", factors)
            if not (are_sizes([factors.median, factors.factor]) and _is_finite(factors.largest)):
                raise ValueError("local_error: factors")
        if frames is not None:
            ratios = [frames.low, frames.median, frames.high]
            if not (are_sizes(ratios) and ratios == sorted(ratios) and is_count(frames.structures)):
                raise ValueError("local_error: frames")
        _check_excess(made)
        return made


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _check_excess(made: LocalBound) -> None:
    """Raise `ValueError` unless the factor and its interval fit each other and where the errors come from."""
    if made.errors not in (LEFT_OUT, HELD_OUT):
        raise ValueError("local_error: errors")
    excess = [made.excess_low, made.excess, made.excess_high]
    known = are_sizes(excess)
    if made.errors == LEFT_OUT:
        ok = known and excess == [1.0, 1.0, 1.0]
    else:
        ok = (known and excess == sorted(excess)) or excess == [None, None, None]  # type: ignore[type-var]
    if not ok:
        raise ValueError("local_error: excess")
