"""What all that is recorded of a run has in common: the protocol, what it sees, where it writes; files of frames."""

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
# What the line of a saved frame says of its place in the run.
_KEY = re.compile(rb" run=(\d+) step=(-?\d+) (?:repeat=(\d+) )?")


@dataclass(frozen=True)
class Whole:
    """A frame of all ranks, atoms by id, with dH (nats) and other columns."""

    frame: Frame
    dH: NDArray[np.float64]
    columns: dict[str, NDArray[Any]]


@dataclass(eq=False)
class Moment:
    """One evaluation, as recorders see it.

    Attributes
    ----------
    frame
        A copy of what this rank owns.
    decision
        What was decided of it.
    proposed
        Of a broken frame: the last plausible moment before it, which is to be a candidate; or None.
    follows_broken
        Whether the evaluation before was of a broken frame, too.
    candidates
        The moments that have become candidates with this one.
    dropped
        Key of the candidate whose place was taken; None where there is none.
    seconds
        What watching has taken so far at this evaluation.
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
        """What the evaluation is known by."""
        return Key(self.decision.run, int(self.decision.step), self.decision.repeat)

    @property
    def is_plausible(self) -> bool:
        """Whether the frame is none of the broken ones."""
        return self.decision.band is not Band.IMPLAUSIBLE

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of this rank's atoms that are saved beside dH."""
        errors = self.decision.force_errors
        return {} if errors is None else {"force_error": errors}

    def info(self) -> dict[str, Any]:
        """Return what a saved frame says of itself."""
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
        """Return the frame of all ranks on rank 0, None elsewhere. Collective; gathered once."""
        if not self._whole:
            parts = comm.gather((self.frame, self.decision.dH, self.columns))
            self._whole.append(on_root(comm, lambda: _assemble(parts or ())))
        return self._whole[0]

    def forget_whole(self) -> None:
        """Let go of the memory of the whole frame, on all ranks alike: it can be gathered again."""
        self._whole.clear()


def describe_key(key: Key) -> dict[str, Any]:
    """Return a key as the first entries of a saved frame's info."""
    repeat = {"repeat": key.repeat} if key.repeat else {}
    return {"run": key.run, "step": int(key.step), **repeat}


def _assemble(parts: Sequence[tuple[Frame, NDArray[np.float64], dict[str, NDArray[Any]]]]) -> Whole:
    frame, order = merge([part[0] for part in parts])
    more = {name: np.concatenate([part[2][name] for part in parts])[order] for name in parts[0][2]}
    return Whole(frame, np.concatenate([part[1] for part in parts])[order], more)


@dataclass(frozen=True)
class Place:
    """Where a run is recorded, and by whom: what all recorders share.

    Attributes
    ----------
    folder
        The output folder, which rank 0 holds.
    monitor
        What decides; it has the ranks.
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
        """Return what `act` gives on rank 0, None elsewhere; what fails there is raised on all ranks."""

        def acted() -> _Result:
            try:
                return act()
            except QuestsError:
                raise
            except Exception as error:
                raise OutputError(f"{self.folder.path}: {type(error).__name__}: {error}") from error

        return on_root(self.comm, acted)


def to_quests_error(failure: Exception, where: str) -> QuestsError:
    """Return a failure as an error of ours: memory that is out, say, or a mistake in this program."""
    if isinstance(failure, QuestsError):
        return failure
    error = MonitorError(f"{where}: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


class Recorder:
    """Records one thing of a run.

    A session calls `see` of all recorders for every new evaluation, then its row is written, then `settle` is called:
    with its row an evaluation is there for good. What a recorder wrote of one that has no row, because the program
    was killed in between, is taken back by `resume`: the evaluation will come again. Methods are collective.

    Attributes
    ----------
    files
        Names of the files that are its own, and of no other recorder.
    bands
        Of the frames that it must see; by default all.
    sees_calm
        Whether it must see covered frames outside of events, too.
    """

    files: tuple[str, ...] = ()
    bands: frozenset[Band] = ALL_BANDS
    sees_calm = False

    def resume(self, past: Past) -> None:
        """Go on after an earlier part of the run; take back what belongs to evaluations without a row."""

    def see(self, moment: Moment) -> None:
        """Record what there is to record of a new evaluation, before its row is written."""

    def settle(self, moment: Moment) -> None:
        """Do what can be done only when the evaluation has its row."""

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs of run.json: JSON can hold it."""
        return {}

    def close(self) -> None:
        """Write what is left, at the end of the run."""


class FrameFile:
    """A file of frames that grows, shrinks and is taken up again. Rank 0 only.

    Attributes
    ----------
    keys
        Of its frames, in order; a key may come several times (cut-outs of one frame).
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
        """Yield the frames as ``ase.Atoms``; `OutputError` where ASE cannot read one."""
        return iterate_frames(self._folder.path / self.name)

    def scan(self) -> None:
        """Find the frames of a file that is there, and change nothing.

        Raises
        ------
        OutputError
            The file cannot be read, or is damaged elsewhere than at its end.
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

    def mend(self, keep: Collection[int] | None = None) -> None:
        """Cut off half a frame at the end, and keep only the frames at these places; all by default."""
        whole = sum(self._sizes)
        say_cut(self._folder.path / self.name, self._folder.cut(self.name, whole), "a frame")
        self._folder.adopt(self.name)
        if keep is not None:
            self.keep(keep)

    def keep(self, places: Collection[int]) -> None:
        """Take all other frames out of the file, atomically; `OutputError` if it cannot be written."""
        if len(places) == len(self.keys):
            return
        firsts = [0]
        for size in self._sizes:
            firsts.append(firsts[-1] + size)
        kept = sorted(places)
        self._folder.keep(self.name, [(firsts[place], self._sizes[place]) for place in kept])
        self.keys, self._sizes = [self.keys[place] for place in kept], [self._sizes[place] for place in kept]

    def remove(self, key: Key) -> None:
        """Take the frames of an evaluation out of the file."""
        self.keep([place for place, known in enumerate(self.keys) if known != key])


def say_cut(path: object, size: int, what: str) -> None:
    """Say that a program that was killed had left something that was not written in full."""
    if size:
        print(f"quests_md: {path}: {size} bytes of {what} that was not written in full are cut off")
