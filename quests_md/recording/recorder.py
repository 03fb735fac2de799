"""What all recorders share: the base class, the moment that they see, the place where they write, files of frames."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, on_root
from ..errors import MonitorError, OutputError, QuestsError
from ..files import HeldFolder
from ..files.extxyz import format_parts
from ..frame import Frame, merge
from ..monitor import Band, Decision, Key, Monitor
from .past import Past
from .reader import iterate_frames

__all__ = [
    "ALL_BANDS",
    "FrameFile",
    "Moment",
    "Place",
    "Recorder",
    "Whole",
    "describe_key",
    "say_cut",
    "to_quests_error",
]

_Result = TypeVar("_Result")

ALL_BANDS = frozenset(Band)
_KEY = re.compile(rb" run=(\d+) step=(-?\d+) (?:repeat=(\d+) )?")  # in the comment line of a saved frame

# -- what recorders see ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """The frame of all ranks, its atoms sorted by id, with dH (nats) and other columns."""

    frame: Frame
    dH: NDArray[np.float64]
    columns: dict[str, NDArray[Any]]


@dataclass(eq=False)
class Moment:
    """One evaluation, as recorders see it.

    Attributes
    ----------
    frame
        A copy of this rank's atoms.
    decision
        The decision on the frame.
    proposed
        For a broken frame: the last plausible moment before it, which shall become a candidate; else None.
    follows_broken
        Whether the frame before was broken, too.
    candidates
        The moments that became candidates at this evaluation.
    dropped
        Key of the candidate that lost its place to this frame; None: there is none.
    seconds
        Time that watching has taken so far at this evaluation.
    """

    frame: Frame
    decision: Decision
    proposed: Moment | None = None
    follows_broken: bool = False
    candidates: tuple[Moment, ...] = ()
    dropped: Key | None = None
    seconds: float = 0.0
    _whole: list[Whole | None] = field(default_factory=list, repr=False)

    @property
    def key(self) -> Key:
        """The key of the evaluation."""
        return Key(self.decision.run, int(self.decision.step), self.decision.repeat)

    @property
    def is_plausible(self) -> bool:
        """Whether the frame is not broken."""
        return self.decision.band is not Band.IMPLAUSIBLE

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of this rank's atoms that are saved besides dH."""
        found = {"force_error": self.decision.force_errors, "expected_error": self.decision.expected_errors}
        return {name: errors for name, errors in found.items() if errors is not None}

    def info(self) -> dict[str, Any]:
        """Return the info of the saved frame."""
        decision, key = self.decision, self.key
        return {
            **describe_key(key),
            "time": self.frame.time,
            "dH_max": decision.maximum,
            "dH_max_id": decision.max_id,
            "band": decision.band.value,
            "event": decision.event,
            "values": decision.values,
        }

    def whole(self, comm: Comm) -> Whole | None:
        """Return the frame of all ranks on rank 0, None elsewhere. Collective; the ranks are asked only once."""
        if not self._whole:
            parts = comm.gather((self.frame, self.decision.dH, self.columns))
            self._whole.append(on_root(comm, lambda: _assemble(parts or ())))
        return self._whole[0]

    def forget_whole(self) -> None:
        """Free the memory of the whole frame, on all ranks: it can be gathered again."""
        self._whole.clear()


def describe_key(key: Key) -> dict[str, Any]:
    """Return a key as the first entries of a saved frame's info."""
    repeat = {"repeat": key.repeat} if key.repeat else {}
    return {"run": key.run, "step": int(key.step), **repeat}


def _assemble(parts: Sequence[tuple[Frame, NDArray[np.float64], dict[str, NDArray[Any]]]]) -> Whole:
    frame, order = merge([part[0] for part in parts])
    more = {name: np.concatenate([part[2][name] for part in parts])[order] for name in parts[0][2]}
    return Whole(frame, np.concatenate([part[1] for part in parts])[order], more)


# -- recorders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a run is recorded: the folder and the monitor that all recorders share.

    Attributes
    ----------
    folder
        The output folder, which rank 0 holds.
    monitor
        The monitor; it knows the ranks.
    """

    folder: HeldFolder
    monitor: Monitor

    @property
    def comm(self) -> Comm:
        """The ranks."""
        return self.monitor.comm

    @property
    def is_root(self) -> bool:
        """Whether this is the rank that writes."""
        return self.comm.rank == 0

    def on_root(self, act: Callable[[], _Result]) -> _Result | None:
        """Return the result of `act` on rank 0, None elsewhere; an error is raised on all ranks."""

        def acted() -> _Result:
            try:
                return act()
            except QuestsError:
                raise
            except Exception as error:
                raise OutputError(f"{self.folder.path}: {type(error).__name__}: {error}") from error

        return on_root(self.comm, acted)


def to_quests_error(failure: Exception, where: str) -> QuestsError:
    """Return any failure, such as missing memory or a mistake in this program, as a `QuestsError`."""
    if isinstance(failure, QuestsError):
        return failure
    error = MonitorError(f"{where}: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


class Recorder:
    """Record one thing of a run. All methods are collective.

    For every new evaluation a session calls `see` of the recorders, writes the row, and calls `settle`. An evaluation
    counts when it has its row. If the program is killed before that, the evaluation comes again in the resumed run, and
    `resume` removes what the recorder wrote of it.

    Attributes
    ----------
    files
        Names of its files; no other recorder writes to them.
    bands
        Bands of the frames that it must see; by default all.
    sees_calm
        Whether it must also see covered frames outside of events.
    """

    files: tuple[str, ...] = ()
    bands: frozenset[Band] = ALL_BANDS
    sees_calm = False

    def resume(self, past: Past) -> None:
        """Go on after an earlier part of the run; remove what belongs to evaluations without a row."""

    def see(self, moment: Moment) -> None:
        """Record a new evaluation, before its row is written."""

    def settle(self, moment: Moment) -> None:
        """Do what must wait until the evaluation has its row."""

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs from run.json, as values that JSON can hold."""
        return {}

    def close(self) -> None:
        """Write what is left, at the end of the run."""


# -- files of frames ---------------------------------------------------------------------------------------------------


class FrameFile:
    """A file of frames that can be extended, shortened and resumed. Rank 0 only.

    Attributes
    ----------
    keys
        Keys of its frames, in order; a key may occur several times (cut-outs of one frame).
    """

    def __init__(self, folder: HeldFolder, name: str) -> None:
        self._folder, self.name = folder, name
        self.keys: list[Key] = []
        self._sizes: list[int] = []

    def append(self, key: Key, whole: Whole, info: dict[str, Any]) -> None:
        """Add a frame; `OutputError` if it cannot be written."""
        size = self._folder.append(self.name, format_parts(whole.frame, whole.dH, info, whole.columns))
        self.keys.append(key)
        self._sizes.append(size)

    def read(self) -> Iterator[Any]:
        """Yield the frames as ``ase.Atoms``; `OutputError` if ASE cannot read one."""
        return iterate_frames(self._folder.path / self.name)

    def scan(self) -> None:
        """Find the frames of an existing file, and change nothing.

        Raises
        ------
        OutputError
            The file cannot be read, or is damaged before its end.
        """
        self.keys, self._sizes = [], []
        if not self._folder.exists(self.name):
            return
        path = self._folder.path / self.name
        try:
            with self._folder.open(self.name) as file:
                first = 0
                while (count := file.readline()).endswith(b"\n"):
                    comment = file.readline()
                    key = _KEY.search(comment)
                    if not count.strip().isdigit() or (comment.endswith(b"\n") and key is None):
                        raise OutputError(f"{path}: damaged at byte {first}: no frame of a run begins there")
                    last = comment
                    for _ in range(int(count)):
                        last = file.readline()
                        if not last:
                            break
                    if not last.endswith(b"\n") or key is None:
                        return
                    self.keys.append(Key(int(key[1]), int(key[2]), int(key[3] or 0)))
                    self._sizes.append(file.tell() - first)
                    first = file.tell()
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error

    def mend(self, keep: Collection[int]) -> None:
        """Cut off half a frame at the end, and keep only the frames at these places."""
        whole = sum(self._sizes)
        say_cut(self._folder.path / self.name, self._folder.cut(self.name, whole), "a frame")
        self._folder.adopt(self.name)
        self.keep(keep)

    def keep(self, places: Collection[int]) -> None:
        """Keep only the frames at these places, atomically; `OutputError` if the file cannot be written."""
        if len(places) == len(self.keys):
            return
        firsts = [0]
        for size in self._sizes:
            firsts.append(firsts[-1] + size)
        kept = sorted(places)
        self._folder.keep(self.name, [(firsts[place], self._sizes[place]) for place in kept])
        self.keys, self._sizes = [self.keys[place] for place in kept], [self._sizes[place] for place in kept]

    def remove(self, key: Key) -> None:
        """Remove the frames of an evaluation from the file."""
        self.keep([place for place, known in enumerate(self.keys) if known != key])


def say_cut(path: object, size: int, what: str) -> None:
    """Print that a killed program has left something incomplete at the end of a file."""
    if size:
        print(f"quests_md: {path}: {size} bytes of {what} that was not written in full are cut off")
