"""history.extxyz: the evaluated frames around the beginning of an event."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import together
from ..errors import InputError, OutputError
from ..files import HeldFolder, pack, unpack
from ..frame import AppliedBias, Frame, merge
from ..monitor import Band, Decision, Key
from .past import Past
from .recorder import ALL_BANDS, FrameFile, Moment, Place, Recorder

__all__ = ["History"]

HISTORY = "history.extxyz"
# The last evaluated frames. For rank 0 the newest are in resume.film.0, and older ones in resume.film.0.before.
_FILM = "resume.film"
_OF_DECISION = ("run", "repeat", "maximum", "max_id", "event", "values", "n", "n_select", "n_halt")

_ERRORS = ("force_errors", "expected_errors")


class History(Recorder):
    """Hold the last evaluated frames, and write those around the beginning of an event.

    Each rank also keeps its part of them on disk, in two files that take turns. So a killed run has them again.

    Parameters
    ----------
    length, after
        How many evaluated frames before and after the beginning of an event are written.

    Attributes
    ----------
    unwritten
        Why this rank could not keep a frame on disk; the other ranks learn it at the next evaluation.
    """

    def __init__(self, place: Place, length: int, after: int) -> None:
        for name, value in (("history", length), ("after", after)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be a whole number of at least 0, not {value!r}")
        self._place, self._length, self._after = place, length, after
        self.files = (HISTORY, *(_name_film(rank) for rank in range(place.comm.size)))
        self.sees_calm = bool(length or after)
        self.bands = ALL_BANDS if self.sees_calm else frozenset()
        self.unwritten: Exception | None = None
        self._file = FrameFile(place.folder, HISTORY)
        self._moments: deque[Moment] = deque(maxlen=length)
        self._written: set[Key] = set()  # keys of held frames that the file has already
        self._to_come = self._event = 0  # how many of the next frames are written, and their event
        self._missing: set[Key] = set()  # evaluations of the resumed run that should be held, but are on no disk
        self._film: _Film | None = None
        self._in_film = 0  # frames that an earlier part of the run has left on disk

    def see(self, moment: Moment) -> None:
        """Write the frames before an event when it begins, and some after that."""
        decision, due = moment.decision, list[Moment]()
        if decision.begins:
            due, self._to_come, self._event = [*self._moments, moment], self._after, decision.event
        elif self._to_come:
            due, self._to_come = [moment], self._to_come - 1
        for each in due:
            if each.key not in self._written:
                self._write(each)
            if each is not moment:
                each.forget_whole()
        self._hold(moment)

    def see_again(self, moment: Moment) -> None:
        """Replace the held frame of an evaluation, because a resumed run may come to slightly different positions.

        The held frame is missing if a rank was killed before it wrote its part. Then hold the new frame in its place.
        """
        for place, held in enumerate(self._moments):
            if held.key == moment.key:
                self._moments[place] = moment
        if moment.key in self._missing:
            self._missing.remove(moment.key)
            moments = sorted([*self._moments, moment], key=lambda each: each.key)
            self._moments.clear()
            self._moments.extend(moments)
            self._keep(moment)

    def find(self, key: Key | None) -> Moment | None:
        """Return the held moment of an evaluation; None if it is not held."""
        return next((moment for moment in self._moments if moment.key == key), None)

    def find_last_plausible(self) -> Moment | None:
        """Return the newest plausible frame that is held, or None."""
        return next((moment for moment in reversed(self._moments) if moment.is_plausible), None)

    def _write(self, moment: Moment) -> None:
        whole = moment.whole(self._place.comm)

        def act() -> None:
            assert whole is not None
            self._file.append(moment.key, whole, {**moment.info(), "event": self._event})

        self._place.on_root(act)
        self._written.add(moment.key)

    def _hold(self, moment: Moment) -> None:
        if self._moments:
            self._moments[-1].forget_whole()
        self._moments.append(moment)
        self._written &= {each.key for each in self._moments}
        if self._length:
            self._keep(moment)

    def _keep(self, moment: Moment) -> None:
        """Keep this rank's part of a frame on disk."""
        if self._film is None:
            self._film = _Film(self._place, self._length, self._in_film)
        self.unwritten = self._film.add(moment)

    def close(self) -> None:
        """Release the folder."""
        if self._film is not None:
            self._film.close()

    def resume(self, past: Past) -> None:
        """Remove frames of evaluations without a row, and hold again what was held."""
        comm = self._place.comm

        def mend() -> list[Key]:
            self._file.scan()
            self._file.mend([place for place, key in enumerate(self._file.keys) if past.has_row(key)])
            return self._file.keys

        keys = comm.broadcast(self._place.on_root(mend))
        if past.began:
            self._event, self._to_come = past.began, max(0, self._after - past.since + 1)
        last = past.evaluations.find_last(self._length)
        held: list[Moment] = comm.broadcast(self._place.on_root(lambda: self._read_films(last)))
        for moment in held:
            self._moments.append(moment if self._place.is_root else _empty(moment))
        self._written = set(keys).intersection(last)
        self._missing = set(last).difference(moment.key for moment in held)
        self._in_film = len(held)

    def _read_films(self, last: list[Key]) -> list[Moment]:
        """Return the frames of these evaluations that all ranks had on disk, and write them to the file of rank 0."""
        folder = self._place.folder
        moments = _find_held(folder, last)
        names = [name for name in folder.names() if name.startswith(f"{_FILM}.")]
        if moments:
            folder.adopt(_name_film(0))
            folder.replace(_name_film(0), [part for moment in moments for part in _pack(moment, 0, 1)])
        for name in names:
            if name != _name_film(0) or not moments:
                folder.remove(name)
        return moments


class _Film:
    """This rank's part of the last frames, on disk."""

    def __init__(self, place: Place, length: int, n: int) -> None:
        self._length, self._comm = length, place.comm
        self._name, self._n = _name_film(place.comm.rank), n if place.is_root else 0  # frames in the file that grows
        self._folder: HeldFolder | None = place.folder if place.is_root else HeldFolder(place.folder.path)

        def hold() -> None:
            if self._folder is not None and not place.is_root:
                self._folder.hold()
                self._folder.check()

        try:
            together(place.comm, hold)
        except Exception as error:  # noqa: BLE001 - the folder is on a disk that only rank 0 sees
            self._folder = None
            if place.is_root:
                print(f"quests_md: history is held in memory only, and lost if the run is killed: {error}", flush=True)
        if self._folder is not None:
            for name in (self._name, f"{self._name}.before"):
                self._folder.adopt(name)

    def add(self, moment: Moment) -> Exception | None:
        """Add a frame. When the file has enough frames, it takes the name ``.before``, and a new file begins.

        If it cannot be written and there are other ranks, return the error: they must learn it first.
        """
        if self._folder is None:
            return None
        try:
            if self._n > self._length:
                self._folder.rename(self._name, f"{self._name}.before")
                self._n = 0
            self._folder.append(self._name, _pack(moment, self._comm.rank, self._comm.size))
            self._n += 1
        except OutputError as error:
            if self._comm.size == 1:
                raise
            return error
        return None

    def close(self) -> None:
        """Release the folder; the session does so on rank 0."""
        if self._folder is not None and self._comm.rank:
            self._folder.release()


def _errors_of(decision: Decision) -> dict[str, NDArray[np.float64]]:
    """Return the arrays of force errors that a decision has, by their names in it."""
    found = {name: getattr(decision, name) for name in _ERRORS}
    return {name: errors for name, errors in found.items() if errors is not None}


def _name_film(rank: int) -> str:
    return f"{_FILM}.{rank}"


def _pack(moment: Moment, rank: int, size: int) -> list[bytes]:
    """Return this rank's part of a frame as a record. `size` is the number of ranks."""
    frame, decision = moment.frame, moment.decision
    arrays: dict[str, NDArray[Any]] = {"dH": decision.dH}
    values: dict[str, Any] = {name: getattr(decision, name) for name in _OF_DECISION}
    values |= {"step": int(decision.step), "band": decision.band.value, "reasons": list(decision.reasons)}
    values["part"] = [rank, size]
    arrays |= _errors_of(decision)
    for field in fields(frame):
        value = getattr(frame, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"frame.{field.name}"] = value
        elif field.name in ("time", "energy") and value is not None:
            values[f"frame.{field.name}"] = float(value)
        elif field.name == "bias" and value is not None:
            values["frame.bias"] = list(value)
    return pack(values, arrays)


def _unpack(values: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Moment:
    of_frame = {name: value for name, value in {**values, **arrays}.items() if name.startswith("frame.")}
    if "frame.bias" in of_frame:
        of_frame["frame.bias"] = AppliedBias(*of_frame["frame.bias"])
    frame = Frame(**{name.removeprefix("frame."): value for name, value in of_frame.items()}, step=values["step"])
    more: dict[str, Any] = {name: values[name] for name in _OF_DECISION} | {name: arrays.get(name) for name in _ERRORS}
    decision = Decision(
        values["step"],
        evaluated=True,
        band=Band(values["band"]),
        reasons=tuple(values["reasons"]),
        dH=arrays["dH"],
        **more,
    )
    return Moment(frame, decision)


def _find_held(folder: HeldFolder, keys: list[Key]) -> list[Moment]:
    """Return the frames of these evaluations, joined, if every rank held its part."""
    parts: dict[tuple[Key, int], dict[int, Moment]] = {}  # by key and number of ranks, then by rank
    for name in [name for name in folder.names() if name.startswith(f"{_FILM}.")]:
        with folder.open(name) as file:
            for values, arrays in unpack(file):
                try:
                    moment = _unpack(values, arrays)
                    rank, size = values["part"]
                except (KeyError, TypeError, ValueError):  # of another version
                    break
                if moment.key in keys:
                    parts.setdefault((moment.key, size), {})[rank] = moment
    whole = {key: [each[rank] for rank in sorted(each)] for (key, size), each in parts.items() if len(each) == size}
    return [_join(whole[key]) for key in keys if key in whole]


def _join(parts: list[Moment]) -> Moment:
    """Join the parts of all ranks to one moment."""
    if len(parts) == 1:
        return parts[0]
    frame, order = merge([part.frame for part in parts])
    decision = parts[0].decision
    columns: dict[str, Any] = {"dH": np.concatenate([part.decision.dH for part in parts])[order]}
    for name in _errors_of(decision):
        columns[name] = np.concatenate([np.asarray(getattr(part.decision, name)) for part in parts])[order]
    return Moment(frame, replace(decision, **columns))


def _empty(moment: Moment) -> Moment:
    """Return a moment without atoms, for a rank that owns none: rank 0 has them all."""
    frame, nothing = moment.frame, np.empty(0)
    empty: dict[str, Any] = {
        name: np.asarray(value)[:0]
        for name in ("positions", "numbers", "ids", "watched", "velocities", "forces")
        if (value := getattr(frame, name)) is not None
    }
    errors: dict[str, Any] = dict.fromkeys(_errors_of(moment.decision), nothing)
    return Moment(replace(frame, n_local=None, **empty), replace(moment.decision, dH=nothing, **errors))
