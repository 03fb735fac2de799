"""The rules of a run: what its thresholds mean, when frames are saved, what is implausible, and what an event is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import minimum_distances
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame
from ..index import Reference, check_threshold, explain_threshold, resolve_threshold

__all__ = ["Event", "Events", "Plausibility", "Schedule", "Thresholds"]

_NEVER_SEEN = 0.5  # Å; the smallest distance of a pair of elements that the reference does not have
_EXPLODED = 8.0  # the volume of the cell may grow or shrink by this factor, compared with the first frame


class Thresholds:
    """What `select` and `halt` mean for the watched atoms.

    Parameters
    ----------
    select, halt
        As they were given: a number of nats, or a dictionary that `resolve_threshold` turns into numbers.
    min_atoms, min_fraction
        A frame lies above a threshold if at least this many atoms, and this share of the watched atoms, do.
    by_bound
        Whether a force error is a threshold of the bound of each atom, which local residuals give; else it is one of
        dH.

    Attributes
    ----------
    limits
        `select` and `halt` as bounds of the force error in eV/Å; None where they are thresholds of dH alone. An atom
        with a larger bound, or a larger dH, lies above.
    has_limits
        Whether one of them is.
    resolved
        Thresholds in nats, by name and then by symbol; None until the watched atoms are known. A number for all
        elements has the only key "".
    watched
        Watched atoms by chemical symbol, of all ranks; empty before the first evaluation.
    tables
        `select` and `halt` in nats by atomic number; empty until the watched atoms are known.
    uniform
        `select` and `halt` in nats if they are the same for all elements; else None.

    Raises
    ------
    InputError
        A threshold is invalid, `select` is above `halt`, or `min_atoms` or `min_fraction` is out of range.
    """

    def __init__(self, select: Any, halt: Any, min_atoms: int, min_fraction: float, by_bound: bool = False) -> None:
        for name, value in (("select", select), ("halt", halt)):
            check_threshold(name, value)
        if isinstance(min_atoms, bool) or not isinstance(min_atoms, int) or min_atoms < 1:
            raise InputError(f"min_atoms must be a whole number of at least 1, not {min_atoms!r}")
        if isinstance(min_fraction, bool) or not 0.0 <= min_fraction <= 1.0:
            raise InputError(f"min_fraction must be between 0 and 1, not {min_fraction!r}")
        self.given = {"select": select, "halt": halt}
        self.min_atoms, self.min_fraction = min_atoms, float(min_fraction)
        self.limits = _find_limit(select, by_bound), _find_limit(halt, by_bound)
        self.has_limits = self.limits != (None, None)
        self.resolved: dict[str, dict[str, float]] | None = None
        self.watched: dict[str, int] = {}
        self.uniform: tuple[float, float] | None = None
        self.tables = (np.empty(0), np.empty(0))
        self._values: dict[str, NDArray[np.float64]] = {}
        if not any(isinstance(value, Mapping) for value in self.given.values()):
            self._settle({name: {"": float(value)} for name, value in self.given.items()})

    def resolve(self, index: Reference, counts: Mapping[str, int]) -> None:
        """Turn the thresholds into nats; `counts` has the number of watched atoms of each chemical symbol."""
        resolved = {}
        for name, value in self.given.items():
            if not isinstance(value, Mapping):
                resolved[name] = {"": float(value)}
                continue
            # Keep numbers of elements that have no atom yet.
            given = {symbol: float(nats) for symbol, nats in value.items() if symbol in SYMBOLS}
            resolved[name] = given | resolve_threshold(name, value, index, counts)
        self._settle(resolved)

    def restore(self, resolved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over `resolved` of an earlier part of the run, as JSON holds it."""
        self._settle(
            {
                name: {symbol: float(value) for symbol, value in by_symbol.items()}
                for name, by_symbol in resolved.items()
            }
        )

    def _settle(self, resolved: dict[str, dict[str, float]]) -> None:
        for name, by_symbol in resolved.items():
            # An element whose first atom comes later gets the lowest threshold of the others.
            values = np.full(len(SYMBOLS), min(by_symbol.values()))
            for symbol, value in by_symbol.items():
                if symbol:
                    values[SYMBOLS.index(symbol)] = value
            self._values[name] = values
        wrong = np.flatnonzero(self._values["select"] > self._values["halt"])
        if self.limits[0] is not None and self.limits[1] is not None and self.limits[0] > self.limits[1]:
            raise InputError(
                f"select = {self.limits[0]:g} eV/Å lies above halt = {self.limits[1]:g} eV/Å: candidates lie between"
            )
        if len(wrong) and not self.has_limits:
            select, halt = (self._values[name][wrong[0]] for name in ("select", "halt"))
            raise InputError(f"select = {select} lies above halt = {halt}: candidates lie between the two")
        numbers = [float(values[0]) for values in self._values.values() if bool((values == values[0]).all())]
        self.uniform = (numbers[0], numbers[1]) if len(numbers) == len(self._values) == 2 else None
        self.tables = self._values["select"], self._values["halt"]
        self.resolved = resolved

    def scale(
        self, which: int, dH: NDArray[np.float64], bound: NDArray[np.float64] | None, numbers: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return dH (n,) as it is compared with `select` (0) or `halt` (1), in nats.

        It is dH itself, but an atom that only its `bound` (n,) puts above lies ln(bound / limit) nats above: so a bound
        that is twice the limit counts as much as half a kernel sum.
        """
        limit = self.limits[which]
        if limit is None or bound is None:
            return dH
        threshold = self.get(numbers)[which]
        with np.errstate(divide="ignore"):  # a bound of 0
            above = threshold + np.log(bound / limit)
        return np.where((bound > limit) & (dH <= threshold), above, dH)

    def is_above(
        self, which: int, dH: NDArray[np.float64], bound: NDArray[np.float64] | None, numbers: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Return which atoms (n,) lie above `select` (0) or `halt` (1); arguments are those of `scale`."""
        return np.asarray(self.scale(which, dH, bound, numbers) > self.get(numbers)[which])

    @property
    def lowest(self) -> float:
        """The lowest `select` of any element."""
        assert self.resolved is not None
        return min(self.resolved["select"].values())

    def get(self, numbers: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return `select` and `halt`, each (n,) and read-only, for atoms with these atomic numbers."""
        if self.uniform is not None:
            return np.broadcast_to(self.uniform[0], len(numbers)), np.broadcast_to(self.uniform[1], len(numbers))
        return self._values["select"][numbers], self._values["halt"][numbers]

    def is_enough(self, count: int, n: int) -> bool:
        """Return whether a frame of n watched atoms lies above a threshold if `count` of them do."""
        return count >= max(self.min_atoms, math.ceil(self.min_fraction * n))

    def in_words(self) -> str:
        """Return the numbers as one line."""
        told = [
            f"{name} = {value:.6g}" + (f" ({symbol})" if symbol else "")
            for name, values in (self.resolved or {}).items()
            for symbol, value in values.items()
        ]
        limits = zip(self.given, self.limits, strict=True)
        return ", ".join(told + [f"{name} = {limit:g} eV/Å" for name, limit in limits if limit is not None])

    def describe_meaning(self, index: Reference) -> list[str]:
        """Return what the thresholds mean on an index, in lines, with warnings; empty without watched atoms."""
        if not self.watched or self.resolved is None:
            return []
        lines, warnings = [], list[str]()
        for name, nats in self.resolved.items():
            if self.limits[0 if name == "select" else 1] is not None:
                continue  # the bound of each atom decides, and not a dH
            meaning = explain_threshold(name, nats, index, self.watched)
            lines += [f"{name}: {meaning.in_words()}"] if meaning.in_words() else []
            warnings += [meaning.warning] if meaning.warning else []
        if getattr(index, "calibration", None) is None:
            warnings = [text.replace("what select means", "what thresholds mean") for text in warnings[:1]]
        return lines + [f"warning: {text}" for text in warnings]

    def explain(self, name: str, count: int, n: int, maximum: float, max_id: int, bound: float) -> str:
        """Return, in words, why a frame lies above a threshold; `bound` is the largest bound of the force error."""
        assert self.resolved is not None
        error = self.limits[0 if name == "select" else 1]
        if error is not None:
            known = f"is {bound:.3g} eV/Å" if math.isfinite(bound) else "does not exist for an atom outside"
            return (
                f"{count} of {n} atoms are above {name} = {error:g} eV/Å: the largest bound of the force error "
                f"{known}; the largest dH is {maximum:.6g} of atom {max_id}"
            )
        values = set(self.resolved[name].values())
        if len(values) == 1 and self.is_enough(1, n):
            return f"dH = {maximum:.6g} of atom {max_id} is above {name} = {values.pop():.6g}"
        limit = " or ".join(f"{value:.6g}" for value in sorted(values))
        worst = f"the largest dH is {maximum:.6g} of atom {max_id}"
        return f"{count} of {n} atoms are above {name} = {limit}; {worst}"


def _find_limit(given: Any, by_bound: bool) -> float | None:
    """Return a threshold as a bound of the force error, if it is one."""
    return float(given["force_error"]) if by_bound and isinstance(given, Mapping) and "force_error" in given else None


class Schedule:
    """When a frame is evaluated, and when a candidate may be saved.

    Parameters
    ----------
    every
        A frame is evaluated if its step is a multiple of this, whatever the first step of the run is.
    save_every
        Candidates are saved at least this many steps apart. A frame that halts is always saved.
    """

    def __init__(self, every: int, save_every: int) -> None:
        for name, value in (("every", every), ("save_every", save_every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.every = every
        self.save_every = save_every
        self._saved: tuple[int, int] | None = None  # run and step of the last saved frame
        self._before: tuple[int, int] | None = None  # and of the one before it

    def may_save(self, run: int, step: int) -> bool:
        """Return whether a candidate of this step may be saved. The spacing starts anew with every `run`.

        With ``save_every = 1`` all candidates may be saved, even several configurations of one step.
        """
        if self.save_every == 1 or self._saved is None or self._saved[0] != run:
            return True
        return not 0 <= step - self._saved[1] < self.save_every

    def note_saved(self, run: int, step: int) -> None:
        """Remember that a frame of this step was saved."""
        self._before, self._saved = self._saved, (run, step)

    def take_back(self) -> None:
        """Undo the last `note_saved`."""
        self._saved = self._before


class Plausibility:
    """Find overlapping atoms and exploded cells.

    Parameters
    ----------
    index
        The reference; its `pair_distances` are the smallest distances of each pair of elements.
    fraction
        Two atoms overlap if they are nearer than this share of that distance; 0: distances are not checked.

    Attributes
    ----------
    screen
        Distance in Å; a frame without atoms nearer than this has no overlap.
    volume
        Volume of the first frame, in Å³; None before it.
    """

    def __init__(self, index: Reference, fraction: float) -> None:
        number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if not (number and 0.0 <= fraction <= 1.0):
            raise InputError(f"min_distance must be a share between 0 and 1, not {fraction!r}")
        self._index, self.fraction = index, float(fraction)
        self._limits: NDArray[np.float64] | None = None
        self.volume: float | None = None

    @property
    def limits(self) -> NDArray[np.float64]:
        """(n_elements, n_elements) smallest allowed distance (Å) of each pair of elements."""
        if self._limits is None:
            distances = np.asarray(self._index.pair_distances, dtype=np.float64)
            self._limits = self.fraction * np.where(np.isfinite(distances), distances, _NEVER_SEEN)
        return self._limits

    @property
    def screen(self) -> float:
        return float(self.limits.max(initial=0.0)) if self.fraction else 0.0

    def find_overlap(self, frame: Frame) -> str:
        """Return, in words, which atoms of a frame are too near each other; empty if none are."""
        known = np.array([SYMBOLS.index(symbol) for symbol in self._index.elements])
        kinds = np.searchsorted(known, frame.numbers)
        nearest = np.full(self.limits.shape, np.inf)
        minimum_distances(frame, self.screen, kinds, nearest)
        nearest = np.minimum(nearest, nearest.T)
        a, b = np.unravel_index(int(np.argmin(nearest - self.limits)), nearest.shape)
        if not nearest[a, b] < self.limits[a, b]:
            return ""
        pair = f"{self._index.elements[a]}-{self._index.elements[b]}"
        smallest = self._index.pair_distances[a, b]
        known_as = f"the reference's smallest is {smallest:.3g} Å" if np.isfinite(smallest) else "no reference has it"
        return f"two atoms {pair} are {nearest[a, b]:.3g} Å apart ({known_as})"

    def find_explosion(self, frame: Frame) -> str:
        """Return, in words, how the cell has exploded or collapsed since the first frame; empty if it has not."""
        if not np.all(frame.pbc):
            return ""
        volume = abs(float(np.linalg.det(np.asarray(frame.cell))))
        if self.volume is None:
            self.volume = volume
        factor = volume / self.volume
        return "" if 1 / _EXPLODED <= factor <= _EXPLODED else f"the cell has {factor:.3g} times its first volume"


@dataclass
class Event:
    """One event: when it began and ended, how bad it was, and which atoms were in it.

    Attributes
    ----------
    number
        1, 2, ... in the order of the run; 0 while too few frames were above `select`.
    start, start_time
        Step and time (ps) of the first frame above `select`.
    end, end_time
        Step and time (ps) of the last one so far.
    worst, maximum, max_id
        Step of the largest dH of the event, that dH (nats), and the id of its atom.
    n_frames
        Number of evaluated frames above `select`.
    atoms
        Sorted ids of the atoms that were above `select`; only this rank's atoms while the event goes on.
    over
        Whether the event has ended.
    """

    start: int
    start_time: float
    number: int = 0
    end: int = 0
    end_time: float = float("nan")
    worst: int = 0
    maximum: float = -float("inf")
    max_id: int = -1
    n_frames: int = 0
    atoms: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    over: bool = False

    def see(self, step: int, time: float, maximum: float, max_id: int, atoms: NDArray[np.int64]) -> None:
        """Add a frame above `select`."""
        self.end, self.end_time = step, time
        self.n_frames += 1
        if maximum > self.maximum:
            self.worst, self.maximum, self.max_id = step, maximum, max_id
        self.atoms = np.union1d(self.atoms, atoms)


class Events:
    """Follow the events of a run; every rank follows the same ones.

    Parameters
    ----------
    consecutive
        How many evaluated frames in a row begin an event, and how many end it. A frame that halts begins one at once.
    release
        An event can end only when the largest dH is at most this (nats); None: `select` itself.

    Attributes
    ----------
    count
        Number of events that have begun.
    current, ended
        The event that goes on, and the last one that ended; or None.
    coming
        Frames above `select` that are not enough for an event yet, as an event without a number; or None.
    """

    def __init__(self, consecutive: int, release: float | None) -> None:
        if isinstance(consecutive, bool) or not isinstance(consecutive, int) or consecutive < 1:
            raise InputError(f"consecutive must be a whole number of at least 1, not {consecutive!r}")
        if release is not None and (isinstance(release, bool) or not isinstance(release, (int, float))):
            raise InputError(f"release must be a number of nats, not {release!r}")
        self.consecutive, self.release = consecutive, release
        self.count = 0
        self.current: Event | None = None
        self.ended: Event | None = None
        self.coming: Event | None = None
        self._calm = 0  # evaluated frames in a row that count for the end of the current event

    @property
    def open(self) -> Event | None:
        """The event that goes on, or may become one."""
        return self.current or self.coming

    def see_above(
        self, step: int, time: float, maximum: float, max_id: int, atoms: NDArray[np.int64], at_once: bool
    ) -> bool:
        """Add a frame above `select`; return whether an event begins with it."""
        self._calm = 0
        event = self.current or self.coming
        if event is None:
            event = self.coming = Event(step, time)
        event.see(step, time, maximum, max_id, atoms)
        if self.current is not None or not (at_once or event.n_frames >= self.consecutive):
            return False
        self.count += 1
        event.number = self.count
        self.current, self.coming = event, None
        return True

    def see_below(self, maximum: float) -> bool:
        """Add a frame that is not above `select`; return whether the current event ends with it."""
        self.coming = None
        if self.current is None:
            return False
        self._calm = self._calm + 1 if self.release is None or maximum <= self.release else 0
        if self._calm < self.consecutive:
            return False
        self.ended, self.current, self._calm = self.current, None, 0
        self.ended.over = True
        return True
