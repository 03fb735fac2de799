"""A reference that is learned from the run itself: live.qindex, and resume.lessons as long as there is no index."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import together
from ..config import RunConfig
from ..files import pack, unpack
from ..frame import Frame
from ..index import Described, Index, Lesson, Live
from ..monitor import Decision, Key
from ..own_function import import_function
from .past import Past
from .recorder import Place, Recorder

__all__ = ["LiveReference", "reference_of"]

_INDEX = "live.qindex"
_LESSONS = "resume.lessons"  # what has been learned, until the index is written
_OF_FRAME = ("positions", "numbers", "cell", "pbc", "ids", "watched", "origin")


def reference_of(config: RunConfig, index: Index | None = None) -> Index | Described | Live:
    """Return the reference that a configuration names: the opened index, or a live one that has not learned yet.

    An index of own descriptors comes with the function that the key `describe` names. `index`, if it is given, is used
    in the place of its file.
    """
    if config.reference == "live" and index is None:
        return Live(**config.of_live())
    index = Index.open(config.index or "") if index is None else index
    return index if config.describe is None else Described(index, import_function(config.describe), config.describe)


class LiveReference(Recorder):
    """Follow a live reference until it is ready; do nothing for an index.

    Attributes
    ----------
    seconds
        Time (s) that building the index has taken.
    """

    files = (_INDEX, _LESSONS)

    def __init__(self, place: Place) -> None:
        self._place = place
        index = place.monitor.index
        self._live = index if isinstance(index, Live) else None
        self._has_begun = False
        self.seconds = 0.0

    def describe(self) -> dict[str, Any] | None:
        """Return the progress of learning, for run.json; None for an index."""
        return None if self._live is None else {**self._live.progress, "seconds": self.seconds}

    def state(self) -> dict[str, Any]:
        """Return the key of the last evaluation that was learned from."""
        until = self._place.monitor.learned_until
        return {} if until is None else {"learned": until}

    def open(self) -> None:
        """Open the index that an earlier part of the run has saved, if there is one.

        Raises
        ------
        QuestsError
            The index cannot be used. On all ranks.
        """
        live, comm, path = self._live, self._place.comm, self._place.folder.path / _INDEX
        if live is not None and comm.broadcast(path.exists()):
            together(comm, lambda: live.open(path))

    def resume(self, past: Past) -> None:
        """Learn the lessons again if there is no index yet. If there is one, find the evaluations behind it."""
        live, monitor, comm = self._live, self._place.monitor, self._place.comm
        if live is None:
            return
        found: list[tuple[Key, NDArray[np.float64], Lesson]] | None = self._place.on_root(self._read_lessons)
        shared = comm.broadcast(
            None if found is None else [(k, m, Lesson(s.step, s.time, s.n, None)) for k, m, s in found]
        )
        lessons = shared if found is None else found
        keys, marks = [key for key, _, _ in lessons], [mark for _, mark, _ in lessons]
        if live.ready and not keys and past.state.learned is not None:  # the lessons were removed: run.json has the key
            keys, marks = [past.state.learned], [np.full(2, np.nan)]
        monitor.learned_until = keys[-1] if keys else None
        monitor.visits.resume(past.evaluations.join(keys, marks))
        if live.ready:  # the file of lessons stays until run.json has the key: `forget`
            return
        for _, _, lesson in lessons:
            live.recall(lesson)
        self._has_begun = bool(lessons)
        if live.is_over:
            self._finish(live)

    def _read_lessons(self) -> list[tuple[Key, NDArray[np.float64], Lesson]]:
        """Return what has been learned: the key and the mark of each evaluation, and its lesson."""
        folder, lessons, whole = self._place.folder, [], 0
        self._place.folder.adopt(_INDEX)
        if not folder.exists(_LESSONS):
            return []
        with folder.open(_LESSONS) as file:
            for values, arrays in unpack(file):
                of_frame: dict[str, Any] = {**arrays, "step": values["step"], "time": values["time"]}
                frame = Frame(**of_frame) if arrays else None
                lesson = Lesson(values["step"], values["time"], values["n"], frame)
                lessons.append((Key.parse(values["key"]), np.array(values["mark"]), lesson))
                whole = file.tell()
        folder.cut(_LESSONS, whole)
        folder.adopt(_LESSONS)
        return lessons

    def _forget_lessons(self) -> None:
        self._place.folder.adopt(_INDEX)
        self._place.folder.remove(_LESSONS)

    def follow(self, decision: Decision) -> bool:
        """Keep a lesson; at the end of the span build the index, and return True.

        Raises
        ------
        QuestsError
            The reference cannot be built or saved. On all ranks.
        """
        live, lesson = self._live, decision.lesson
        if live is None or lesson is None:
            return False
        self._place.on_root(lambda: self._keep(decision, lesson))
        if not self._has_begun and live.progress["frames"]:
            self._has_begun = True
            step = decision.step
            self._say(f"quests_md: learning from step {step} on, for {live.span} steps: nothing is compared until then")
        if live.is_over:
            self._finish(live)
            return True
        return False

    def _keep(self, decision: Decision, lesson: Lesson) -> None:
        frame = lesson.frame
        arrays = {} if frame is None else {name: np.asarray(getattr(frame, name)) for name in _OF_FRAME}
        values = {"key": str(decision.key), "mark": decision.mark, "step": int(lesson.step), "n": int(lesson.n)}
        self._place.folder.append(_LESSONS, pack({**values, "time": float(lesson.time)}, arrays))

    def _finish(self, live: Live) -> None:
        started = time.perf_counter()
        monitor, path = self._place.monitor, self._place.folder.path / _INDEX
        given = monitor.thresholds.given.values()
        is_rate = any(isinstance(value, Mapping) and "false_alarm" in value for value in given)
        self._place.on_root(self._place.folder.check)
        live.finish(monitor.comm, path, calibrated=is_rate, threads=monitor.threads)
        self._place.on_root(lambda: self._place.folder.adopt(_INDEX))
        self.seconds = time.perf_counter() - started
        monitor.warm_up()
        learned = live.learned
        assert learned is not None
        in_ps = "" if math.isnan(learned.correlation_time) else f" ({learned.correlation_time:.3g} ps)"
        self._say(
            f"quests_md: learned {learned.frames} frames ({learned.rows} environments) of steps {learned.first} to "
            f"{learned.last}, correlation time {learned.correlation:.3g} steps{in_ps}; comparing from now on with "
            f"{path}"
        )

    def forget(self) -> None:
        """Remove the lessons when the reference is ready and run.json has the last key. Collective."""
        if self._live is not None and self._live.ready:
            self._place.on_root(self._forget_lessons)

    def _say(self, text: str) -> None:
        self._place.on_root(lambda: print(text, flush=True))
