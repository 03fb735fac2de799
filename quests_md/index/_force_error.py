"""A conformal bound of a model's force error, by dH and element."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ..frame import Frame
from ..information import log_kernel_sum
from ._file import fingerprint_of
from ._groups import SAME

if TYPE_CHECKING:
    from ._index import Index

__all__ = ["ErrorBin", "ErrorBound", "fit_error_bound"]

_MOST_BINS = 12
_FOLDS = 20
_RESAMPLED = 2000
_PART = 100_000  # rows that are laid out at a time


@dataclass(frozen=True)
class ErrorBin:
    """A range of dH of one element.

    Attributes
    ----------
    upper
        Largest dH in it, in nats; its lower end is the upper one of the bin before, or −inf.
    bound
        The bound of the force error, in eV/Å.
    structures, environments
        What it was fitted to.
    covered, low, high
        Share of held-out environments below the bound, mean over structures, and its 95 % interval.
    """

    upper: float
    bound: float
    structures: int
    environments: int
    covered: float
    low: float
    high: float


@dataclass(frozen=True)
class ErrorBound:
    """How large the force error of one model is at most, with a given probability, where dH is known.

    For a new structure of the kind of those it was fitted to, a random atom of an element in a bin has an error
    below the bound of the bin with probability `coverage`. Under shift nothing is guaranteed.

    Attributes
    ----------
    bins
        By chemical symbol, dH ascending; bounds never fall.
    coverage
        The probability that was asked for.
    covered, low, high
        The share found on held-out structures (mean over them), and its 95 % interval by bootstrap over structures.
    structures, environments
        Of the labelled frames.
    potential
        The name of the model.
    reference
        Hash of the references and of how they are compared: the bound holds for no others.
    """

    bins: dict[str, tuple[ErrorBin, ...]]
    coverage: float
    covered: float
    low: float
    high: float
    structures: int
    environments: int
    potential: str
    reference: str

    def bound(self, dH: ArrayLike, numbers: ArrayLike) -> NDArray[np.float64]:
        """Return the bound (n,) of the force error in eV/Å, inf beyond the largest dH that it was fitted to.

        Parameters
        ----------
        dH
            (n,) in nats.
        numbers
            (n,) atomic numbers.
        """
        dH, numbers = np.asarray(dH, np.float64), np.asarray(numbers)
        if dH.ndim != 1 or numbers.shape != dH.shape:
            raise InputError(f"dH and numbers must be of one length, not {dH.shape} and {numbers.shape}")
        out = np.full(len(dH), np.inf)
        for symbol, bins in self.bins.items():
            mine = numbers == SYMBOLS.index(symbol)
            bounds = np.array([b.bound for b in bins] + [np.inf])
            out[mine] = bounds[np.searchsorted([b.upper for b in bins], dH[mine])]  # nan: beyond all
        return out

    def threshold(self, error: float, symbol: str) -> float:
        """Return the largest dH (nats) up to which the bound is at most `error` (eV/Å).

        Raises
        ------
        CalibrationError
            There is none, or the bound knows no such element.
        """
        if symbol not in self.bins:
            raise CalibrationError(
                f"the bound of the force error knows {', '.join(self.bins)}, not {symbol}: label structures with it"
            )
        fit = [b.upper for b in self.bins[symbol] if b.bound <= error]
        if not fit:
            least = self.bins[symbol][0]
            raise CalibrationError(
                f"no dH of {symbol} has a force error of at most {error:g} eV/Å at a coverage of {self.coverage:g}: "
                f"the bound is {least.bound:.3g} eV/Å up to dH = {least.upper:.3g} already"
            )
        return fit[-1]

    def to_json(self) -> dict[str, Any]:
        """Return it as data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> ErrorBound:
        """Return it from data; `ValueError`, `KeyError` or `TypeError` for what cannot be one: files may be hostile."""
        if not isinstance(data, dict) or not isinstance(data["bins"], dict):
            raise TypeError("force_error")
        bins = {symbol: tuple(ErrorBin(**entry) for entry in entries) for symbol, entries in data["bins"].items()}
        made = cls(**{**data, "bins": bins})
        if not bins or not set(bins) <= set(SYMBOLS[1:]) or not all(bins.values()):
            raise ValueError("force_error: elements")
        if not (isinstance(made.potential, str) and isinstance(made.reference, str)):
            raise ValueError("force_error: potential or reference")
        _check_shares(made)
        for entries in bins.values():
            for entry in entries:
                _check_shares(entry)
            for ends in ([b.upper for b in entries], [b.bound for b in entries]):
                if not all(isinstance(x, float) and math.isfinite(x) for x in ends) or ends != sorted(ends):
                    raise ValueError("force_error: bins")
            if entries[0].bound < 0.0:
                raise ValueError("force_error: bins")
        return made


def _check_shares(made: ErrorBound | ErrorBin) -> None:
    shares = [made.covered, made.low, made.high] + ([made.coverage] if isinstance(made, ErrorBound) else [])
    if not all(isinstance(x, float) and 0.0 <= x <= 1.0 for x in shares):
        raise ValueError("force_error: shares")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (made.structures, made.environments)):
        raise ValueError("force_error: counts")


def fit_error_bound(
    index: Index,
    labelled: Iterable[tuple[Frame, NDArray[np.float64]]],
    *,
    coverage: float = 0.9,
    potential: str = "",
    threads: int | None = None,
) -> ErrorBound:
    """Fit a bound of the force error against dH to labelled frames.

    The rule is that of conformal prediction for data in groups (Lee, Barber and Willett, arXiv:2306.06342): each of
    K structures with atoms in a bin weighs 1/(K + 1), shared evenly by these atoms, and the rest is one unseen
    structure with infinite errors; the bound is the quantile of `coverage`. Bins are made from the largest dH
    downward, each of at least 2/(1 − coverage) structures and a twelfth of the environments; their ends depend on dH
    alone. Bounds are raised to those of lower dH.

    Parameters
    ----------
    index
        The index; it is not changed.
    labelled
        Frames with the force error (eV/Å) of each of their environments. Frames of one `group` are one structure, or
        one trajectory; a frame without a group is a structure of its own.
    coverage
        The share of errors that must lie below the bound.
    potential
        The name of the model whose errors these are.
    threads
        Threads to use; None takes all cores.

    Raises
    ------
    CalibrationError
        A frame is in the reference, or the structures are too few.
    InputError
        The coverage is no share, or an error is not finite.
    """
    if not (isinstance(coverage, float) and 0.0 < coverage < 1.0):
        raise InputError(f"coverage must be a share between 0 and 1, not {coverage!r}")
    dH, numbers, errors, structures = _environments(index, labelled, threads)
    bins: dict[str, tuple[ErrorBin, ...]] = {}
    covered = np.ones(len(dH), bool)
    for z in np.unique(numbers).tolist():
        mine = np.flatnonzero(numbers == z)
        n = len(np.unique(structures[mine]))
        if n + 1 < _fewest(coverage):
            raise CalibrationError(
                f"a coverage of {coverage:g} needs at least {_fewest(coverage) - 1} labelled structures (frames, or "
                f"groups of them) with {SYMBOLS[z]}, and there are {n}: label more, or ask for less"
            )
        fit = _Fit(dH[mine], errors[mine], structures[mine], coverage)
        covered[mine] = _held_out(dH[mine], errors[mine], structures[mine], coverage)
        bins[SYMBOLS[z]] = _described(fit, dH[mine], structures[mine], covered[mine])
    share, low, high = _interval(covered, structures)
    return ErrorBound(
        bins=bins,
        coverage=coverage,
        covered=share,
        low=low,
        high=high,
        structures=len(np.unique(structures)),
        environments=len(dH),
        potential=potential,
        reference=fingerprint_of(index),
    )


def _fewest(coverage: float) -> int:
    """Return how many structures, and one unseen, a finite quantile needs."""
    return math.ceil(1.0 / (1.0 - coverage) - 1e-9)


def _environments(
    index: Index, labelled: Iterable[tuple[Frame, NDArray[np.float64]]], threads: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return dH, atomic numbers, errors and structures (n,) of all environments; refuse frames of the reference."""
    dH, numbers, errors, structures, known = [], [], [], [], []
    names: dict[object, int] = {}
    for i, (frame, error) in enumerate(labelled):
        if error.shape != (len(frame.centres),) or not np.isfinite(error).all():
            raise InputError(f"frame {i}: the force errors must be {len(frame.centres)} finite numbers")
        if is_known(index, index.spec.compute(frame, threads), threads):
            known.append(i)
        dH.append(index.delta_entropy(frame, threads))
        numbers.append(frame.numbers[frame.centres])
        errors.append(error)
        name = names.setdefault(("frame", i) if frame.group is None else frame.group, len(names))
        structures.append(np.full(len(error), name))
    if not dH:
        raise CalibrationError("no labelled frames")
    if known:
        raise CalibrationError(
            f"{len(known)} of {len(dH)} labelled frames are in the reference (the first is frame {known[0]}, counted "
            "from 0): what a model was trained on says nothing of its errors elsewhere; leave them out"
        )
    return tuple(np.concatenate(x) for x in (dH, numbers, errors, structures))  # type: ignore[return-value]


def is_known(index: Index, rows: NDArray[np.float64], threads: int | None) -> bool:
    """Return whether each row is one of the index: a kernel as narrow as the tolerance sees only those."""
    width = SAME * index.bandwidth
    nearest = np.full(len(rows), -np.inf)
    for first in range(0, len(index.rows), _PART):
        part = index.rows[first : first + _PART]
        sums = log_kernel_sum(rows, part, width, centre=index.centre, checked=True, threads=threads)
        nearest = np.maximum(nearest, sums)
    return bool((nearest > -0.5).all())


class _Fit:
    """Ends of bins and bounds."""

    def __init__(
        self, dH: NDArray[np.float64], errors: NDArray[np.float64], structures: NDArray[np.int64], coverage: float
    ) -> None:
        self.upper = _bin_ends(dH, structures, coverage)
        place = np.searchsorted(self.upper, dH)
        bounds = [_quantile(errors[place == b], structures[place == b], coverage) for b in range(len(self.upper))]
        self.bounds = np.maximum.accumulate(bounds)

    def of(self, dH: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bounds at dH, inf beyond the last bin."""
        return np.append(self.bounds, np.inf)[np.searchsorted(self.upper, dH)]


def _bin_ends(dH: NDArray[np.float64], structures: NDArray[np.int64], coverage: float) -> NDArray[np.float64]:
    """Return the upper ends of the bins, ascending."""
    fewest, smallest = 2 * _fewest(coverage), len(dH) // _MOST_BINS
    order = np.argsort(-dH, kind="stable")
    ends, start, seen = [float(dH[order[0]])], 0, set[int]()
    for i, at in enumerate(order.tolist()):
        if len(seen) >= fewest and i - start >= smallest and dH[at] < dH[order[i - 1]]:
            ends.append(float(dH[at]))
            start, seen = i, set()
        seen.add(int(structures[at]))
    if len(ends) > 1 and len(seen) < fewest:  # what is left over joins the bin above
        ends.pop()
    return np.array(ends[::-1])


def _quantile(errors: NDArray[np.float64], structures: NDArray[np.int64], coverage: float) -> float:
    """Return the quantile of the errors, each structure with the same weight and one unseen with infinite errors."""
    if not len(errors):
        return math.inf
    _, kind, sizes = np.unique(structures, return_inverse=True, return_counts=True)
    order = np.argsort(errors)
    reached = np.cumsum(1.0 / ((len(sizes) + 1.0) * sizes[kind[order]]))
    place = int(np.searchsorted(reached, coverage - 1e-12))
    return float(errors[order[place]]) if place < len(errors) else math.inf


def _held_out(
    dH: NDArray[np.float64], errors: NDArray[np.float64], structures: NDArray[np.int64], coverage: float
) -> NDArray[np.bool_]:
    """Return for each environment whether its error lies below the bound fitted without its structure."""
    covered = np.ones(len(dH), bool)
    folds = np.unique(structures, return_inverse=True)[1] % _FOLDS
    for fold in np.unique(folds):
        rest = folds != fold
        if rest.any():
            fit = _Fit(dH[rest], errors[rest], structures[rest], coverage)
            covered[~rest] = errors[~rest] <= fit.of(dH[~rest])
    return covered


def _described(
    fit: _Fit, dH: NDArray[np.float64], structures: NDArray[np.int64], covered: NDArray[np.bool_]
) -> tuple[ErrorBin, ...]:
    place, bins = np.searchsorted(fit.upper, dH), []
    for b, (upper, bound) in enumerate(zip(fit.upper.tolist(), fit.bounds.tolist(), strict=True)):
        mine = place == b
        n = len(np.unique(structures[mine]))
        bins.append(ErrorBin(upper, bound, n, int(mine.sum()), *_interval(covered[mine], structures[mine])))
    return tuple(bins)


def _interval(covered: NDArray[np.bool_], structures: Sequence[int] | NDArray[np.int64]) -> tuple[float, float, float]:
    """Return the share that is covered, mean over structures, and its 95 % interval by bootstrap over structures."""
    _, kind = np.unique(structures, return_inverse=True)
    shares = np.bincount(kind, covered) / np.bincount(kind)
    drawn = np.random.default_rng(0).integers(len(shares), size=(_RESAMPLED, len(shares)))
    low, high = np.quantile(shares[drawn].mean(axis=1), [0.025, 0.975])
    return float(shares.mean()), float(low), float(min(high, 1.0))
