"""What dH the reference itself has where it is left out, and the thresholds that follow from it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ._force_error import ErrorBound
from ._groups import Partition, Rows, left_out_log_sums, partition

if TYPE_CHECKING:
    from ._index import Index

__all__ = ["Calibration", "calibrate", "check_threshold", "resolve_threshold"]

# Pairs of a query and a reference that a calibration may sum: 16 s on one core that sums 1.6 of them in a ns, and
# under a minute on a slow one. Rows that are wider than so many columns take longer: fewer pairs of them.
MOST_PAIRS = 25_000_000_000
_COLUMNS = 256


@dataclass(frozen=True, eq=False)
class Calibration:
    """The largest dH of frames of the reference against the index without their group.

    Attributes
    ----------
    symbols
        Chemical symbols of the columns of `sizes` and `maxima`; "X" for own descriptors, which have no elements.
    sizes
        (m, n_elements) environments of each element in each frame.
    maxima
        (m, n_elements) largest left-out dH of each element in each frame, in nats; −inf where there is none.
    frames
        Frames of the reference that count: without copies, and one per correlation length. `maxima` has all of them
        or, of a large reference, an even sample.
    groups
        Number of groups.
    copies
        Frames of the reference that are copies of others.
    correlation
        Longest correlation length found, in frames.
    redundancy
        ln(rows of the reference / rows that count), in nats: about how much lower dH is in a run than in the
        calibration, where the reference is dense.
    force_error
        The bound of the force error, where one was fitted.
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

    @property
    def typical(self) -> dict[str, int]:
        """Mean number of atoms of each element in the frames, at least one."""
        means = np.maximum(1, np.rint(self.sizes.mean(axis=0))).astype(int)
        return dict(zip(self.symbols, means.tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """Return what a log must hold of it: all but the values of single frames."""
        return {key: value for key, value in to_json(self).items() if key not in ("sizes", "maxima")} | {
            "left_out": len(self.sizes)
        }

    def false_alarm(self, rate: float, counts: Mapping[str, int], *, per_element: bool = False) -> dict[str, float]:
        """Return thresholds (nats) by symbol that an independent frame of `counts` atoms passes at this rate.

        An atom of element e lies below t with probability G_e(t), so a frame of n_e atoms does with G_e(t)^n_e. G_e is
        estimated at every t by maximum likelihood from frames of any sizes, and one more frame that lies above
        everything: then no threshold is lower than a new frame of the same size would need (the rule of conformal
        prediction). One threshold for all elements, or with `per_element` one for each, the rate shared evenly.

        Raises
        ------
        CalibrationError
            The frames are too few to resolve the rate, or an element is not among them.
        """
        hazard = -math.log1p(-rate)  # Σ n_e·(−ln G_e) may be this
        watched = {symbol: n for symbol, n in counts.items() if n > 0}
        tails = {symbol: self._tail(symbol) for symbol in watched}
        if per_element:
            shares = {symbol: {symbol: watched[symbol]} for symbol in watched}
            found = {s: _threshold(tails, share, hazard / len(watched)) for s, share in shares.items()}
        else:
            shares = dict.fromkeys(watched, watched)
            found = dict.fromkeys(watched, _threshold(tails, watched, hazard))
        for symbol, value in found.items():
            if value is None:
                part = hazard / len(watched) if per_element else hazard
                raise CalibrationError(self._too_few(rate, shares[symbol], tails, part))
            if math.isinf(value):
                raise CalibrationError(
                    f"a false-alarm rate of {rate:g} has no finite threshold for {symbol}: where their group is left "
                    "out, its atoms have nothing to be compared with: the reference needs it in more than one group"
                )
        return {symbol: float(value) for symbol, value in found.items() if value is not None}

    def _tail(self, symbol: str) -> _Tail:
        column = self.symbols.index(symbol) if symbol in self.symbols else -1
        has = self.sizes[:, column] > 0
        if column < 0 or not has.any():
            raise CalibrationError(
                f"{symbol} is not in the calibration of the index, which has {', '.join(self.symbols)}: "
                "give a number of nats, or build the index of a reference with it"
            )
        return _Tail(self.maxima[has, column], self.sizes[has, column])

    def _too_few(self, rate: float, share: Mapping[str, int], tails: Mapping[str, _Tail], hazard: float) -> str:
        atoms = ", ".join(f"{n} {symbol}" for symbol, n in share.items())
        most = sum(n * tails[s].hazard(math.inf) for s, n in share.items())
        resolved = -math.expm1(-most * -math.log1p(-rate) / hazard)
        frames = max(len(tails[s].maxima) for s in share)
        return (
            f"a false-alarm rate of {rate:g} at {atoms} watched atoms is not resolved by {frames} independent "
            f"left-out frames: the lowest rate is {resolved:.2g}; about {math.ceil(frames * most / hazard)} frames of "
            "that kind would do, or watch fewer atoms, ask for a higher rate, or give a number of nats"
        )


class _Tail:
    """What frames tell of how likely an atom of one element lies above t."""

    def __init__(self, maxima: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
        order = np.argsort(maxima)
        self.maxima, self.sizes = maxima[order], sizes[order].astype(np.float64)
        # One more frame, above everything; it is as large as the others are on average.
        self.unseen = float(self.sizes.mean())

    def hazard(self, t: float) -> float:
        """Return −ln G(t), of maximum likelihood: the root of Σ_above n/(e^{γn} − 1) = Σ_below n."""
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


def _threshold(tails: Mapping[str, _Tail], counts: Mapping[str, int], hazard: float) -> float | None:
    """Return the lowest of the maxima at which Σ n_e·hazard_e is at most `hazard`; None where none is."""
    candidates = np.unique(np.concatenate([tails[s].maxima for s in counts]))
    low, high = 0, len(candidates)
    while low < high:  # the sum falls with t
        middle = (low + high) // 2
        if sum(n * tails[s].hazard(candidates[middle]) for s, n in counts.items()) <= hazard * (1.0 + 1e-12):
            high = middle
        else:
            low = middle + 1
    return float(candidates[low]) if low < len(candidates) else None


def calibrate(index: Index, *, threads: int | None = None) -> Calibration:
    """Compute dH of the references against the index without their group.

    Groups are those that the frames were given (`Index.frame_groups`), or contiguous blocks of four independent
    frames (fewer where there would be less than ten blocks). Copies and frames that follow each other within the
    correlation length are dropped first, so a redundant reference has the thresholds of a thinned one. Of a large
    reference an even sample of frames is asked about, so that it takes less than a minute.

    Parameters
    ----------
    index
        The index; it is not changed.
    threads
        Threads to use; None takes all cores.

    Returns
    -------
    Calibration
        With the force-error bound that the index has already.

    Raises
    ------
    CalibrationError
        There is only one group.
    """
    rows = Rows(index.rows, index.numbers, index.order, index.frame_offsets)
    parts = partition(rows, index.frame_groups, index.bandwidth)
    n_groups = len(np.unique(parts.groups))
    if n_groups < 2:
        what = "independent frame" if not index.frame_groups else "group"
        raise CalibrationError(
            f"the reference has one {what}: nothing is left to compare it with where it is left out; "
            "thresholds from a calibration need more frames, further apart"
        )
    group_of_frame = np.full(len(rows), -1)
    group_of_frame[parts.frames] = parts.groups
    groups = group_of_frame[rows.owner]
    counted = int((groups >= 0).sum())
    most = MOST_PAIRS * min(1.0, _COLUMNS / index.rows.shape[1])
    asked = _sample(parts, np.diff(index.frame_offsets)[parts.frames], counted, most)
    dH = _left_out(index, rows, groups, np.isin(rows.owner, asked), threads)
    symbols: list[int] = np.unique(index.numbers).tolist()
    sizes = np.zeros((len(asked), len(symbols)), np.int64)
    maxima = np.full(sizes.shape, -np.inf)
    known = np.flatnonzero(~np.isnan(dH))
    at = np.searchsorted(asked, rows.owner[known]), np.searchsorted(symbols, index.numbers[known])
    np.add.at(sizes, at, 1)
    np.maximum.at(maxima, at, dH[known])
    return Calibration(
        symbols=tuple(SYMBOLS[z] for z in symbols),
        sizes=sizes,
        maxima=maxima,
        frames=len(parts.frames),
        groups=n_groups,
        copies=parts.copies,
        correlation=parts.correlation,
        redundancy=math.log(len(index) / counted),
        force_error=index.calibration.force_error if index.calibration else None,
    )


def _sample(parts: Partition, sizes: NDArray[np.int64], counted: int, most: float) -> NDArray[np.int64]:
    """Return the frames to ask about: all that count or, where these are too many pairs, some spread evenly."""
    share = most / (counted * float(sizes.sum()))
    if share >= 1.0:
        return parts.frames
    n = max(2, int(share * len(parts.frames)))
    return parts.frames[np.unique(np.linspace(0, len(parts.frames) - 1, n).astype(np.int64))]


def _left_out(
    index: Index, rows: Rows, groups: NDArray[np.int64], is_asked: NDArray[np.bool_], threads: int | None
) -> NDArray[np.float64]:
    """Return left-out dH (n,) of the rows that are asked about, nan for others."""
    dH = np.full(len(groups), np.nan)
    for z in np.unique(rows.numbers) if index.descriptor.by_centre else [None]:
        which = np.flatnonzero((groups >= 0) if z is None else (groups >= 0) & (rows.numbers == z))
        asked = np.flatnonzero(is_asked[which])
        if len(asked):
            sums = left_out_log_sums(rows.rows[which], groups[which], asked, index.bandwidth, threads)
            dH[which[asked]] = -sums
    return dH


def to_json(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as data of a header."""
    return {
        "symbols": list(calibration.symbols),
        "sizes": calibration.sizes.tolist(),
        "maxima": [[m if math.isfinite(m) else None for m in row] for row in calibration.maxima.tolist()],
        **{name: getattr(calibration, name) for name in ("frames", "groups", "copies", "correlation", "redundancy")},
        "force_error": None if calibration.force_error is None else calibration.force_error.to_json(),
    }


def from_json(data: Any, known: Sequence[str]) -> Calibration:
    """Return the calibration of a header; `ValueError`, `KeyError` or `TypeError` for what cannot be one.

    `known` are the symbols that it may have.
    """
    if not isinstance(data, dict):
        raise TypeError("calibration")
    symbols = tuple(data["symbols"])
    if not symbols or not all(isinstance(s, str) and s in known for s in symbols):
        raise ValueError("calibration: symbols")
    counts = {name: data[name] for name in ("frames", "groups", "copies")}
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in counts.values()):
        raise ValueError("calibration: counts")
    measured = {name: data[name] for name in ("correlation", "redundancy")}
    if not all(isinstance(x, float) and 0.0 <= x < math.inf for x in measured.values()):
        raise ValueError("calibration: correlation or redundancy")
    sizes, maxima = data["sizes"], data["maxima"]
    if not (isinstance(sizes, list) and isinstance(maxima, list) and len(sizes) == len(maxima) > 0):
        raise ValueError("calibration: frames")
    for row, values in zip(sizes, maxima, strict=True):
        if len(row) != len(symbols) or len(values) != len(symbols):
            raise ValueError("calibration: columns")
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in row):
            raise ValueError("calibration: sizes")
        if not all(m is None or (isinstance(m, float) and math.isfinite(m)) for m in values):
            raise ValueError("calibration: maxima")
    n = np.array(sizes, np.int64)
    # What has no finite maximum has no atoms, or nothing to be compared with.
    unknown = np.array([[m is None for m in row] for row in maxima])
    values = np.array([[0.0 if m is None else m for m in row] for row in maxima])
    values[unknown] = np.where(n[unknown] > 0, np.inf, -np.inf)
    bound = None if data["force_error"] is None else ErrorBound.from_json(data["force_error"])
    return Calibration(symbols, n, values, **counts, **measured, force_error=bound)


_KEYS = ("false_alarm", "per_element", "force_error")


def check_threshold(name: str, given: Any) -> None:
    """Raise `InputError` unless `given` can be a threshold, whatever the index: a number of nats or a mapping.

    Parameters
    ----------
    name
        What it is called, for the message: "select", say.
    given
        Nats; or a mapping of chemical symbols to nats, ``{"false_alarm": rate}`` (0 < rate < 1, per independent
        frame), the same with ``"per_element": True``, or ``{"force_error": x}`` (eV/Å).
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
    if set(given) not in ({"false_alarm"}, {"false_alarm", "per_element"}, {"force_error"}):
        raise InputError(
            f"{name}: {', '.join(map(str, given))} do not go together: give a false_alarm rate (and per_element), "
            "or a force_error, or nats by chemical symbol"
        )
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
        The reference: its `calibration` is asked for rates and force errors.
    counts
        Watched atoms by chemical symbol.

    Raises
    ------
    InputError
        As in `check_threshold`; or a watched element has no value.
    CalibrationError
        The index has no calibration, or it cannot answer; the message has the reason and what would help.
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
                per_element = bool(given.get("per_element", False))
                return calibration.false_alarm(given["false_alarm"], watched, per_element=per_element)
            if calibration.force_error is None:
                raise CalibrationError(
                    f"the index has no bound of the force error; make it: quests-md index calibrate {path} "
                    "--errors LABELLED"
                )
            return {symbol: calibration.force_error.threshold(given["force_error"], symbol) for symbol in watched}
        except CalibrationError as error:
            raise CalibrationError(f"{name}: {error}") from None
    missing = [symbol for symbol in watched if symbol not in given]
    if missing:
        raise InputError(f"{name} has no value for {', '.join(missing)}, which is watched: it has {', '.join(given)}")
    return {symbol: float(given[symbol]) for symbol in watched}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
