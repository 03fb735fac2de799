"""What a calibration and a bound of the force error hold, and the thresholds that follow from them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ..notebook import Shown
from ._header import check_fit, is_count
from ._local_bound import LocalBound

__all__ = ["Calibration", "ErrorBin", "ErrorBound", "check_threshold", "resolve_threshold"]


# -- the bound of the force error --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorBin:
    """A range of dH of one element.

    Attributes
    ----------
    upper
        The upper end of the range, in nats. Its lower end is the upper end of the bin before, or −inf.
    bound
        The bound of the force error, in eV/Å.
    structures, environments
        How many of them the bound was fitted to.
    covered, low, high
        The share of held-out environments whose error is below the bound (mean over structures), and its 95 % interval.
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
    """A bound of the force error of one model, as a function of dH and element.

    Take a new structure of the same kind as those that the bound was fitted to. A random atom of an element in a bin
    has an error below the bound of that bin with probability `coverage`. For structures of another kind nothing is
    guaranteed.

    Attributes
    ----------
    bins
        The bins by chemical symbol, in ascending order of dH. The bounds never fall.
    coverage
        The probability that was asked for.
    covered, low, high
        The share that was found on held-out structures (mean over them), and its 95 % interval from a bootstrap over
        structures.
    structures, environments
        How many of them the labelled frames hold.
    potential
        The name of the model.
    reference
        A hash of the references and of how they are compared. The bound holds for no others.
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
        """Return the bound of the force error, (n,) in eV/Å. It is inf beyond the largest dH of the fit.

        Parameters
        ----------
        dH
            (n,) in nats.
        numbers
            (n,) atomic numbers.

        Raises
        ------
        InputError
            The two arrays differ in length.
        """
        dH, numbers = np.asarray(dH, np.float64), np.asarray(numbers)
        if dH.ndim != 1 or numbers.shape != dH.shape:
            raise InputError(f"dH and numbers must be of one length, not {dH.shape} and {numbers.shape}")
        out = np.full(len(dH), np.inf)
        for symbol, bins in self.bins.items():
            mine = numbers == SYMBOLS.index(symbol)
            bounds = np.array([b.bound for b in bins] + [np.inf])
            out[mine] = bounds[np.searchsorted([b.upper for b in bins], dH[mine])]  # nan is beyond all bins
        return out

    def threshold(self, error: float, symbol: str) -> float:
        """Return the largest dH (nats) up to which the bound is at most `error` (eV/Å).

        Raises
        ------
        CalibrationError
            There is no such dH, or the bound does not know this element.
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
        """Return the bound as data of the header of an index file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> ErrorBound:
        """Read a bound from a header. Files may be hostile.

        Raises
        ------
        ValueError, KeyError, TypeError
            The data cannot be a bound.
        """
        if not isinstance(data, dict) or not isinstance(data["bins"], dict):
            raise TypeError("force_error")
        bins = {symbol: tuple(ErrorBin(**entry) for entry in entries) for symbol, entries in data["bins"].items()}
        made = cls(**{**data, "bins": bins})
        if not bins or not set(bins) <= set(SYMBOLS[1:]) or not all(bins.values()):
            raise ValueError("force_error: elements")
        if not (isinstance(made.potential, str) and isinstance(made.reference, str)):
            raise ValueError("force_error: potential or reference")
        check_fit("force_error", made)
        for entries in bins.values():
            for entry in entries:
                check_fit("force_error", entry)
            for ends in ([b.upper for b in entries], [b.bound for b in entries]):
                if not all(isinstance(x, float) and math.isfinite(x) for x in ends) or ends != sorted(ends):
                    raise ValueError("force_error: bins")
            if entries[0].bound < 0.0:
                raise ValueError("force_error: bins")
        return made


# -- the calibration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Shown):
    """The largest dH of each frame of the reference, against the index without the group of this frame.

    Attributes
    ----------
    symbols
        Chemical symbols of the columns of `sizes` and `maxima`; "X" for own descriptors, which have no elements.
    sizes
        (m, n_elements) environments of each element in each frame.
    maxima
        (m, n_elements) largest left-out dH of each element in each frame, in nats; −inf where there is none.
    frames
        How many frames of the reference count: no copies, and one frame per correlation length. `maxima` has a row
        for each of them or, if the reference is large, for an even sample of them.
    groups
        Number of groups.
    copies
        How many frames of the reference are copies of others.
    correlation
        The longest correlation length that was found, in frames.
    redundancy
        ln(rows of the reference / rows that count), in nats. Where the reference is dense, dH in a run is lower than
        in the calibration by about this much.
    force_error
        The bound of the force error, if one was fitted.
    local_error
        What local residuals say of the force error, if that was fitted.
    """

    symbols: tuple[str, ...]
    sizes: NDArray[np.int64]
    maxima: NDArray[np.float64]
    frames: int
    groups: int
    copies: int
    correlation: float
    redundancy: float
    force_error: ErrorBound | None = None
    local_error: LocalBound | None = None

    @property
    def typical(self) -> dict[str, int]:
        """Mean number of atoms of each element in the frames, at least one."""
        means = np.maximum(1, np.rint(self.sizes.mean(axis=0))).astype(int)
        return dict(zip(self.symbols, means.tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """Return what a log must hold of the calibration: all but the values of single frames."""
        return {key: value for key, value in self.to_json().items() if key not in ("sizes", "maxima")} | {
            "left_out": len(self.sizes)
        }

    def false_alarm(self, rate: float, counts: Mapping[str, int], *, per_element: bool = False) -> dict[str, float]:
        """Return thresholds (nats) by symbol that an independent frame of `counts` atoms exceeds at this rate.

        An atom of element e lies below t with probability G_e(t). A frame of n_e atoms does so with probability
        G_e(t)^n_e. G_e(t) is the maximum-likelihood estimate from frames of any sizes and one more frame, which lies
        above every t. So no threshold is lower than a new frame of the same size would need (the rule of conformal
        prediction). All elements have one threshold; with `per_element` each has its own, and they share the rate
        evenly.

        Raises
        ------
        CalibrationError
            There are too few frames to resolve the rate, or the calibration does not know an element.
        """
        hazard = -math.log1p(-rate)  # the most that Σ n_e·(−ln G_e) may be
        watched = {symbol: n for symbol, n in counts.items() if n > 0}
        tails = {symbol: self._tail(symbol) for symbol in watched}
        if per_element:
            shares = {symbol: {symbol: watched[symbol]} for symbol in watched}
            found = {s: _find_threshold(tails, share, hazard / len(watched)) for s, share in shares.items()}
        else:
            shares = dict.fromkeys(watched, watched)
            found = dict.fromkeys(watched, _find_threshold(tails, watched, hazard))
        for symbol, value in found.items():
            if value is None:
                part = hazard / len(watched) if per_element else hazard
                raise CalibrationError(self._explain_too_few(rate, shares[symbol], tails, part))
            if math.isinf(value):
                raise CalibrationError(
                    f"a false-alarm rate of {rate:g} has no finite threshold for {symbol}: where its group is left "
                    "out, nothing remains to compare it with: the reference needs this element in more than one group"
                )
        return {symbol: float(value) for symbol, value in found.items() if value is not None}

    def find_rate(self, nats: Mapping[str, float], counts: Mapping[str, int]) -> tuple[float, bool]:
        """Return the rate at which an independent frame of `counts` atoms exceeds thresholds (nats) by symbol.

        It is the inverse of `false_alarm`. The second value says whether no left-out frame lies above: then the
        rate is the lowest that is resolved, and the true one may be lower.

        Raises
        ------
        CalibrationError
            The calibration does not know an element.
        """
        tails = {symbol: self._tail(symbol) for symbol, n in counts.items() if n > 0}
        hazard = sum(counts[symbol] * tail.hazard(nats[symbol]) for symbol, tail in tails.items())
        return -math.expm1(-hazard), all(nats[symbol] >= tail.maxima[-1] for symbol, tail in tails.items())

    def _tail(self, symbol: str) -> _Tail:
        column = self.symbols.index(symbol) if symbol in self.symbols else -1
        has = self.sizes[:, column] > 0
        if column < 0 or not has.any():
            raise CalibrationError(
                f"{symbol} is not in the calibration of the index, which has {', '.join(self.symbols)}: "
                "give a number of nats, or build the index of a reference with it"
            )
        return _Tail(self.maxima[has, column], self.sizes[has, column])

    def _explain_too_few(self, rate: float, share: Mapping[str, int], tails: Mapping[str, _Tail], hazard: float) -> str:
        atoms = ", ".join(f"{n} {symbol}" for symbol, n in share.items())
        most = sum(n * tails[s].hazard(math.inf) for s, n in share.items())
        resolved = -math.expm1(-most * -math.log1p(-rate) / hazard)
        frames = max(len(tails[s].maxima) for s in share)
        return (
            f"a false-alarm rate of {rate:g} at {atoms} watched atoms is not resolved by {frames} independent "
            f"left-out frames: the lowest rate is {resolved:.2g}; about {math.ceil(frames * most / hazard)} frames of "
            "that kind would do, or watch fewer atoms, ask for a higher rate, or give a number of nats"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as data of the header of an index file."""
        return {
            "symbols": list(self.symbols),
            "sizes": self.sizes.tolist(),
            "maxima": [[m if math.isfinite(m) else None for m in row] for row in self.maxima.tolist()],
            **{name: getattr(self, name) for name in ("frames", "groups", "copies", "correlation", "redundancy")},
            "force_error": None if self.force_error is None else self.force_error.to_json(),
            **({} if self.local_error is None else {"local_error": self.local_error.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Any, known: Sequence[str]) -> Calibration:
        """Read a calibration from a header. `known` are the symbols that it may have.

        Raises
        ------
        ValueError, KeyError, TypeError
            The data cannot be a calibration.
        """
        if not isinstance(data, dict):
            raise TypeError("calibration")
        symbols = tuple(data["symbols"])
        if not symbols or not all(isinstance(s, str) and s in known for s in symbols):
            raise ValueError("calibration: symbols")
        counts = {name: data[name] for name in ("frames", "groups", "copies")}
        if not all(map(is_count, counts.values())):
            raise ValueError("calibration: counts")
        measured = {name: data[name] for name in ("correlation", "redundancy")}
        if not all(isinstance(x, float) and 0.0 <= x < math.inf for x in measured.values()):
            raise ValueError("calibration: correlation or redundancy")
        sizes, maxima = _read_table(data["sizes"], data["maxima"], len(symbols))
        bound = None if data["force_error"] is None else ErrorBound.from_json(data["force_error"])
        local = LocalBound.from_json(data["local_error"]) if "local_error" in data else None
        if local is not None and not set(local.elements) <= set(symbols):
            raise ValueError("calibration: local_error")
        return cls(symbols, sizes, maxima, **counts, **measured, force_error=bound, local_error=local)


def _read_table(sizes: Any, maxima: Any, columns: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read `sizes` and `maxima` of a calibration; `ValueError` or `TypeError` if they are no such tables."""
    if not (isinstance(sizes, list) and isinstance(maxima, list) and len(sizes) == len(maxima) > 0):
        raise ValueError("calibration: frames")
    for row, values in zip(sizes, maxima, strict=True):
        if len(row) != columns or len(values) != columns:
            raise ValueError("calibration: columns")
        if not all(map(is_count, row)):
            raise ValueError("calibration: sizes")
        if not all(m is None or (isinstance(m, float) and math.isfinite(m)) for m in values):
            raise ValueError("calibration: maxima")
    n = np.array(sizes, np.int64)
    # An element without a finite maximum has no atoms in the frame, or nothing to compare them with.
    unknown = np.array([[m is None for m in row] for row in maxima])
    values = np.array([[0.0 if m is None else m for m in row] for row in maxima])
    values[unknown] = np.where(n[unknown] > 0, np.inf, -np.inf)
    return n, values


class _Tail:
    """The probability that an atom of one element lies above t, estimated from the left-out frames."""

    def __init__(self, maxima: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
        order = np.argsort(maxima)
        self.maxima, self.sizes = maxima[order], sizes[order].astype(np.float64)
        # The size of one more frame, which lies above every t: the mean size of the others.
        self.unseen = float(self.sizes.mean())

    def hazard(self, t: float) -> float:
        """Return the maximum-likelihood −ln G(t): the root γ of Σ_above n/(e^{γn} − 1) = Σ_below n."""
        k = int(np.searchsorted(self.maxima, t, side="right"))
        above, below = np.append(self.sizes[k:], self.unseen), float(self.sizes[:k].sum())
        if below == 0.0:
            return math.inf
        low, high = 0.0, len(above) / below  # n/(e^{γn} − 1) < 1/γ
        for _ in range(60):
            middle = 0.5 * (low + high)
            with np.errstate(over="ignore"):
                enough = float((above / np.expm1(middle * above)).sum()) <= below
            low, high = (low, middle) if enough else (middle, high)
        return high


def _find_threshold(tails: Mapping[str, _Tail], counts: Mapping[str, int], hazard: float) -> float | None:
    """Return the lowest of the maxima at which Σ n_e·hazard_e is at most `hazard`, or None if there is none."""
    candidates = np.unique(np.concatenate([tails[s].maxima for s in counts]))
    low, high = 0, len(candidates)
    while low < high:  # the sum falls with t
        middle = (low + high) // 2
        if sum(n * tails[s].hazard(candidates[middle]) for s, n in counts.items()) <= hazard * (1.0 + 1e-12):
            high = middle
        else:
            low = middle + 1
    return float(candidates[low]) if low < len(candidates) else None


# -- thresholds that a user gives --------------------------------------------------------------------------------------

_KEYS = ("false_alarm", "per_element", "plus", "force_error")


def check_threshold(name: str, given: Any) -> None:
    """Raise `InputError` unless `given` can be a threshold of some index: a number of nats, or a mapping.

    Parameters
    ----------
    name
        What the message calls it: "select", for example.
    given
        Nats; or a mapping of chemical symbols to nats; or ``{"false_alarm": rate}`` (0 < rate < 1, per independent
        frame), with or without ``"per_element": True``, and ``"plus": x`` for a threshold that many nats above that of
        the rate; or ``{"force_error": x}`` (eV/Å).
    """
    if not isinstance(given, Mapping):
        if not _is_number(given) or math.isnan(given):
            raise InputError(
                f"{name} must be a number of nats, nats by chemical symbol, a false_alarm rate or a force_error, "
                f"not {given!r}"
            )
        return
    for key in given:
        if key not in _KEYS and key not in SYMBOLS[1:]:
            symbol = str(key).capitalize()
            near = [symbol] if symbol in SYMBOLS[1:] else difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KEYS)}, or chemical symbols"
            raise InputError(f"{name}: unknown key {key!r}; {hint}")
    words = [key for key in given if key in _KEYS]
    if words:
        _check_words(name, given)
    elif not given:
        raise InputError(f"{name} holds nothing: give nats by chemical symbol, a false_alarm rate or a force_error")
    for key in given:
        if key not in _KEYS and (not _is_number(given[key]) or math.isnan(given[key])):
            raise InputError(f"{name}: {key} must be a number of nats, not {given[key]!r}")


def _check_words(name: str, given: Mapping[str, Any]) -> None:
    with_rate = "false_alarm" in given and set(given) <= {"false_alarm", "per_element", "plus"}
    if not with_rate and set(given) != {"force_error"}:
        raise InputError(
            f"{name}: {', '.join(map(str, given))} do not go together: give a false_alarm rate (and per_element, and "
            "plus), or a force_error, or nats by chemical symbol"
        )
    plus = given.get("plus", 0.0)
    if not _is_number(plus) or not plus >= 0.0:
        raise InputError(f"{name}: plus must be a number of nats that is not negative, not {plus!r}")
    rate, error, per_element = given.get("false_alarm", 0.5), given.get("force_error", 1.0), given.get("per_element")
    if not _is_number(rate) or not 0.0 < rate < 1.0:
        raise InputError(f"{name}: false_alarm must lie between 0 and 1, a rate per independent frame, not {rate!r}")
    if not (per_element is None or isinstance(per_element, bool)):
        raise InputError(f"{name}: per_element must be true or false, not {per_element!r}")
    if not _is_number(error) or not 0.0 < error < math.inf:
        raise InputError(f"{name}: force_error must be a positive number of eV/Å, not {error!r}")


def resolve_threshold(name: str, given: Any, index: Any, counts: Mapping[str, int]) -> dict[str, float]:
    """Return the threshold of every watched element, in nats.

    Parameters
    ----------
    name, given
        As in `check_threshold`.
    index
        The reference. Its `calibration` answers for rates and force errors.
    counts
        Watched atoms by chemical symbol.

    Raises
    ------
    InputError
        As in `check_threshold`; or a watched element has no value.
    CalibrationError
        The index has no calibration, or the calibration cannot answer. The message says why, and what would help.
    """
    check_threshold(name, given)
    watched = {symbol: n for symbol, n in counts.items() if n > 0}
    if not isinstance(given, Mapping):
        return dict.fromkeys(watched, float(given))
    if "false_alarm" in given or "force_error" in given:
        calibration: Calibration | None = getattr(index, "calibration", None)
        path = getattr(index, "path", None) or "FILE"
        if calibration is None:
            raise CalibrationError(f"{name}: the index has no calibration; make it: quests-md index calibrate {path}")
        try:
            if "false_alarm" in given:
                per_element, plus = bool(given.get("per_element", False)), float(given.get("plus", 0.0))
                if calibration.symbols == SYMBOLS[:1]:  # own descriptors, which have no elements
                    rows = {SYMBOLS[0]: sum(watched.values())}
                    one = calibration.false_alarm(given["false_alarm"], rows)[SYMBOLS[0]]
                    return dict.fromkeys(watched, one + plus)
                found = calibration.false_alarm(given["false_alarm"], watched, per_element=per_element)
                return {symbol: value + plus for symbol, value in found.items()}
            bound = calibration.local_error or calibration.force_error
            if bound is None:
                raise CalibrationError(
                    f"the index has no bound of the force error; make it: quests-md index calibrate {path} "
                    "--errors LABELLED"
                )
            return {symbol: bound.threshold(given["force_error"], symbol) for symbol in watched}
        except CalibrationError as error:
            raise CalibrationError(f"{name}: {error}") from None
    missing = [symbol for symbol in watched if symbol not in given]
    if missing:
        raise InputError(f"{name} has no value for {', '.join(missing)}, which is watched: it has {', '.join(given)}")
    return {symbol: float(given[symbol]) for symbol in watched}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
