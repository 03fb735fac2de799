"""A reference that is learned from the run's own frames: dH then marks what the run has not seen before."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, on_root, together
from ..descriptors import DescriptorSpec
from ..errors import CalibrationError, IndexFileError, InputError, MonitorError, QuestsError
from ..frame import Frame, merge
from ..information import DEFAULT_BANDWIDTH, check_bandwidth
from ._calibration import Calibration, calibrate
from ._groups import INDEPENDENT, Rows, integrated_time, partition
from ._index import Index

__all__ = ["Learned", "Lesson", "Live"]

# What the index may hold: as many rows as a run can be compared with exactly (50 MB, 0.1 ms per atom and core), and as
# many frames as are searched for copies in a second.
_MOST_ROWS = 200_000
_MOST_FRAMES = 2_000
# Of frames that have more atoms than leave room for so many, an even choice of atoms is learned.
_ROOM_FOR = 50
_FEWEST = 20  # frames; a correlation is not to be had from fewer
_TIMES = 10  # correlation times that the span must cover


@dataclass(frozen=True)
class Learned:
    """What a live reference was made of.

    Attributes
    ----------
    frames, rows
        Frames and environments of the index.
    first, last
        Steps of the first and of the last of them.
    spacing
        Steps between two of them.
    correlation
        Correlation time, in steps.
    correlation_time
        The same in ps; nan where the frames have no time.
    """

    frames: int
    rows: int
    first: int
    last: int
    spacing: float
    correlation: float
    correlation_time: float


@dataclass(frozen=True)
class Lesson:
    """What a live reference takes of a frame; `Live.recall` takes it again when a run is resumed.

    Attributes
    ----------
    step, time, n
        Of the frame; `n` are its watched atoms on all ranks.
    frame
        What is learned of it, on rank 0; None on other ranks, and where this frame is passed over.
    """

    step: int
    time: float
    n: int
    frame: Frame | None


class Live:
    """A reference that learns from the run that it is to judge.

    It takes the frames of `span` steps after `skip`, and is ready once `finish` has built the index of them. It has
    room for 200,000 environments and 2000 frames: when it is full, every other frame is dropped and of those to come
    only every second one is taken. Of frames of more than 4000 watched atoms an even choice of atoms is learned. The
    frames are kept on rank 0, without ghosts: 24 bytes for each atom of each.

    Parameters
    ----------
    span
        Steps to learn from.
    skip
        Steps before that, from the first frame on: while the run comes to equilibrium.
    k, cutoff, species
        The descriptor, as in `DescriptorSpec`.
    bandwidth
        As in `Index.build`.

    Attributes
    ----------
    index
        The index, once it is there.
    learned
        What it was made of, once it is there.
    is_over
        Whether the span is over, so that `finish` is due.

    Raises
    ------
    InputError
        A value is out of range.
    """

    def __init__(
        self,
        *,
        span: int,
        skip: int = 0,
        k: int = 32,
        cutoff: float = 5.0,
        species: str | None = None,
        bandwidth: float | str = DEFAULT_BANDWIDTH,
    ) -> None:
        for name, value, least in (("span", span, 1), ("skip", skip, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of steps, at least {least}, not {value!r}")
        if bandwidth != "auto":
            check_bandwidth(bandwidth)
        self.span, self.skip = span, skip
        self.index: Index | None = None
        self.learned: Learned | None = None
        self._spec, self._bandwidth = DescriptorSpec(k, cutoff, species), bandwidth
        self._begin()

    def _begin(self) -> None:
        self._first: int | None = None  # step of the run's first frame
        self._last: int | None = None  # step of the last one
        self._seen, self._stride = 0, 1  # frames of the span, of which every so many is kept
        self._frames: list[Frame] = []  # whole ones, on rank 0
        self._kept: list[tuple[int, float, int]] = []  # step, time and rows of each, on all ranks
        self.is_over = False

    # -- learning --------------------------------------------------------------------------------------------

    def learn(self, frame: Frame, n: int, comm: Comm) -> Lesson | None:
        """Take a frame of which this is a rank's part, with `n` watched atoms on all ranks. Collective.

        A step that comes again is not taken again; where steps go backwards (a clock that was reset), learning begins
        anew, `skip` included.

        Returns
        -------
        Lesson or None
            What was taken, for `recall`; None if the step comes again.

        Raises
        ------
        MonitorError
            The span is over, and nobody called `finish`.
        """
        if self.index is not None or self.is_over:
            raise MonitorError("the span of the live reference is over: call finish()")
        if self._last is not None and frame.step < self._last:
            self._begin()
        if frame.step == self._last:
            return None
        first = frame.step if self._first is None else self._first
        is_in_span = frame.step - first >= self.skip
        if is_in_span and not n:
            raise MonitorError("no atom is watched: a live reference has nothing to learn from")
        whole: Frame | None = None
        if is_in_span and self._seen % self._stride == 0:
            parts = comm.gather(frame.bare())
            whole = on_root(comm, lambda: self._thinned(merge(parts or ())[0], self._every(n)))
        lesson = Lesson(frame.step, frame.time, n, whole)
        self.recall(lesson)
        return lesson

    def recall(self, lesson: Lesson) -> None:
        """Take what was learned before the run was resumed: what `learn` returned, in the same order; not collective.

        Ranks other than 0 need no frames.
        """
        if self._last is not None and lesson.step < self._last:
            self._begin()
        self._first = lesson.step if self._first is None else self._first
        self._last = lesson.step
        since = lesson.step - self._first - self.skip
        if since < 0:
            return
        if self._seen % self._stride == 0:
            if lesson.frame is not None:
                self._frames.append(self._share(lesson.frame))
            self._kept.append((lesson.step, lesson.time, -(-lesson.n // self._every(lesson.n))))
            while len(self._kept) > _MOST_FRAMES or sum(rows for _, _, rows in self._kept) > _MOST_ROWS:
                self._kept, self._frames = self._kept[::2], self._frames[::2]
                self._stride *= 2
        self._seen += 1
        self.is_over = since >= self.span

    @staticmethod
    def _every(n: int) -> int:
        """Return which atoms of a frame of n watched ones are learned: every so many."""
        return max(1, math.ceil(n * _ROOM_FOR / _MOST_ROWS))

    def _thinned(self, whole: Frame, every: int) -> Frame:
        """Watch an even choice of the atoms."""
        if every > 1:
            chosen = np.zeros(len(whole.positions), dtype=bool)
            chosen[whole.centres[::every]] = True
            whole.watched = chosen
        return whole

    def _share(self, whole: Frame) -> Frame:
        """Share with the frame before what is the same."""
        for name in ("ids", "numbers", "watched"):
            if self._frames and np.array_equal(getattr(self._frames[-1], name), getattr(whole, name)):
                setattr(whole, name, getattr(self._frames[-1], name))
        return whole

    @property
    def progress(self) -> dict[str, Any]:
        """How far learning has come, for logs."""
        since = 0 if self._first is None or self._last is None else self._last - self._first - self.skip
        if self.learned is not None:
            return {"skip": self.skip, "span": self.span, "ready": True, **vars(self.learned)}
        return {"skip": self.skip, "span": self.span, "ready": False, "steps": since, "frames": len(self._kept)}

    # -- the index -------------------------------------------------------------------------------------------

    def finish(
        self,
        comm: Comm | None = None,
        path: str | os.PathLike[str] | None = None,
        *,
        calibrated: bool = True,
        threads: int | None = None,
    ) -> None:
        """Build the index on rank 0, once the span is over. Collective; the reference is ready then.

        Parameters
        ----------
        comm
            The ranks that have learned; `Serial` for one.
        path
            Where rank 0 saves the index, and every rank opens it; needed on several ranks.
        calibrated
            Calibrate it as well: its thresholds can then be rates of false alarms.
        threads
            Threads to use; None takes all cores.

        Raises
        ------
        CalibrationError
            The span covers less than ten correlation times, or holds too few frames: on all ranks, with the span that
            would do.
        MonitorError
            The span is not over.
        QuestsError
            Whatever else keeps rank 0 from building and saving: on all ranks.
        """
        comm = Serial() if comm is None else comm
        if not self.is_over:
            raise MonitorError("the span of the live reference is not over")
        if path is None and comm.size > 1:
            raise InputError("several ranks need a path for the index of a live reference")

        def build() -> tuple[Index, Learned]:
            try:
                built = self._build(calibrated, threads)
                if path is not None:
                    built[0].save(path)
            except QuestsError:
                raise
            except Exception as error:
                raise MonitorError(f"the live reference cannot be built: {type(error).__name__}: {error}") from error
            return built

        built = on_root(comm, build)
        learned: Learned = comm.broadcast(None if built is None else built[1])
        index = None if built is None else built[0]
        if path is not None:
            index = together(comm, lambda: Index.open(path))  # which may be in a folder that only rank 0 sees
        self.index, self.learned = index, learned
        self._frames.clear()

    def open(self, path: str | os.PathLike[str]) -> None:
        """Take the index that an earlier part of the run has saved, and learn nothing; not collective.

        Raises
        ------
        IndexFileError
            It cannot be read, or is not that of a live reference.
        """
        index = Index.open(path)
        try:
            values = dict(index.provenance["sources"][0])
            time = values.pop("correlation_time")
            is_live = values.pop("run") == "live"
            learned = Learned(**values, correlation_time=float("nan") if time is None else time)
        except (KeyError, IndexError, TypeError):
            is_live = False
        if not is_live:
            raise IndexFileError(f"{path}: not the index of a live reference")
        self.index, self.learned = index, learned

    def _build(self, calibrated: bool, threads: int | None) -> tuple[Index, Learned]:
        if len(self._frames) < _FEWEST:
            raise CalibrationError(
                f"the span of {self.span} steps holds {len(self._frames)} frames, and a live reference needs "
                f"{_FEWEST}: give a longer span, or evaluate more often"
            )
        steps, times, _ = (np.array(column) for column in zip(*self._kept, strict=True))
        index = Index.build(self._frames, self._spec, self._bandwidth, threads=threads)
        spacing, of_time = (
            float(steps[-1] - steps[0]) / (len(steps) - 1),
            float(times[-1] - times[0]) / (len(steps) - 1),
        )
        length = _correlation(index)
        learned = Learned(
            len(steps), len(index), int(steps[0]), int(steps[-1]), spacing, length * spacing, length * of_time
        )
        if (len(steps) - 1) < _TIMES * length:
            raise CalibrationError(_too_short(learned))
        time = None if math.isnan(of_time) else learned.correlation_time
        index.provenance["sources"] = [{"run": "live", **vars(learned), "correlation_time": time}]
        if calibrated:
            index.calibration = calibrate(index, threads=threads)
        return index, learned

    # -- the protocol `Reference` ----------------------------------------------------------------------------

    def _ready(self) -> Index:
        if self.index is None:
            raise MonitorError("the live reference is not ready yet: it learns")
        return self.index

    @property
    def ready(self) -> bool:
        """Whether it has learned, and can be asked."""
        return self.index is not None

    @property
    def spec(self) -> DescriptorSpec:
        """The descriptor."""
        return self._spec if self.index is None else self.index.spec

    @property
    def bandwidth(self) -> float:
        """h in 1/Å, once it is ready."""
        return self._ready().bandwidth

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that it has seen, once it is ready."""
        return self._ready().elements

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Chemical symbols of the centres that it has seen, once it is ready."""
        return self._ready().centre_elements

    @property
    def pair_distances(self) -> NDArray[np.float32]:
        """Smallest distances (Å) that it has seen, once it is ready."""
        return self._ready().pair_distances

    @property
    def calibration(self) -> Calibration | None:
        """That of the index, once it is there."""
        return None if self.index is None else self.index.calibration

    def check_elements(self, numbers: NDArray[Any]) -> None:
        """Raise `ElementError` for an element that it has not seen; while it learns, if `species` must be given."""
        if self.index is not None:
            self.index.check_elements(numbers)
        else:
            self._spec.check_elements(set(np.unique(numbers).tolist()))

    def log_kernel_sum(self, *args: Any, **more: Any) -> NDArray[np.float64]:
        """Ask the index."""
        return self._ready().log_kernel_sum(*args, **more)

    def upper_bound(self, *args: Any, **more: Any) -> NDArray[np.float64]:
        """Ask the index."""
        return self._ready().upper_bound(*args, **more)

    def exceeds(self, *args: Any, **more: Any) -> NDArray[np.bool_]:
        """Ask the index."""
        return self._ready().exceeds(*args, **more)

    def describe(self) -> dict[str, object]:
        """Return what a log must hold to tell which reference this is."""
        if self.index is not None:
            return self.index.describe()
        spec = self._spec
        return {"path": None, "bandwidth": self._bandwidth, "k": spec.k, "cutoff": spec.cutoff, "species": spec.species}


def _too_short(learned: Learned) -> str:
    covered = (learned.last - learned.first) / learned.correlation
    in_ps = "" if math.isnan(learned.correlation_time) else f" ({learned.correlation_time:.3g} ps)"
    wanted = math.ceil(1.2 * _TIMES * learned.correlation)
    return (
        f"the span covers {covered:.2g} correlation times of {learned.correlation:.4g} steps{in_ps}, and a live "
        f"reference needs {_TIMES}: give span = {wanted} or more, or a longer skip if the run was still on its way to "
        "equilibrium"
    )


def _correlation(index: Index) -> float:
    """Return the correlation time of an index of frames that are evenly spaced, in frames.

    It is the longer of two: of the frames' mean descriptor, which knows of what all atoms do together; and of the
    descriptor of single atoms, whose memory falls to `INDEPENDENT` within the length that `partition` finds.
    """
    rows = Rows(index.rows, index.numbers, index.order, index.frame_offsets)
    means = np.array([rows.of(frame).mean(axis=0) for frame in range(len(rows))])
    of_atoms = partition(rows, (), index.bandwidth).correlation / -math.log(INDEPENDENT)
    return max(integrated_time(means), of_atoms)
