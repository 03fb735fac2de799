"""A reference that learns from the run's own frames: dH then marks what the run has not seen before."""

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
from ._calibration import INDEPENDENT, Rows, calibrate, compute_integrated_time, partition
from ._index import Index
from ._thresholds import Calibration

__all__ = ["Learned", "Lesson", "Live"]

# The most that the index may hold. A run can be compared with so many rows exactly (50 MB, 0.1 ms per atom and core),
# and so many frames are searched for copies in a second.
_MOST_ROWS = 200_000
_MOST_FRAMES = 2_000
# The index must have room for at least this many frames. If a frame is too large for that, only some of its atoms are
# learned, evenly chosen.
_ROOM_FOR = 50
_FEWEST = 20  # frames; fewer do not tell a correlation
_TIMES = 10  # correlation times that the span must cover


@dataclass(frozen=True)
class Learned:
    """What a live reference was made of.

    Attributes
    ----------
    frames, rows
        Frames and environments of the index.
    first, last
        Steps of the first and of the last of these frames.
    spacing
        Steps between two frames.
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
    """What a live reference learns from one frame. `Live.recall` takes it again when a run is resumed.

    Attributes
    ----------
    step, time, n
        Step and time of the frame, and its number of watched atoms on all ranks.
    frame
        The frame to keep, on rank 0; None on other ranks, and if this frame is skipped.
    """

    step: int
    time: float
    n: int
    frame: Frame | None


class Live:
    """A reference that learns from the run that it will judge.

    It learns from the frames of `span` steps after `skip`, and is ready after `finish` has built the index of them. It
    has room for 200,000 environments and 2000 frames. When it is full it drops every other frame, and from then on
    takes only every second frame that comes. From a frame of more than 4000 watched atoms it learns an even choice of
    atoms. Rank 0 keeps the frames, without ghosts: 24 bytes for each atom of each frame.

    Parameters
    ----------
    span
        Steps to learn from.
    skip
        Steps before the span, counted from the first frame: while the run comes to equilibrium.
    k, cutoff, species
        The descriptor, as in `DescriptorSpec`.
    bandwidth
        As in `Index.build`.

    Attributes
    ----------
    index
        The index; None until it is built.
    learned
        What the index was made of; None until it is built.
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
        self._seen, self._stride = 0, 1  # frames of the span so far; of these, one in `_stride` is kept
        self._frames: list[Frame] = []  # whole ones, on rank 0
        self._kept: list[tuple[int, float, int]] = []  # step, time and rows of each, on all ranks
        self.is_over = False

    # -- learning --------------------------------------------------------------------------------------------

    def learn(self, frame: Frame, n: int, comm: Comm) -> Lesson | None:
        """Learn from a frame: this rank gives its part, and `n` are the watched atoms on all ranks. Collective.

        The same step is not taken twice. If steps go backwards (a clock was reset), learning begins again, with `skip`.

        Returns
        -------
        Lesson or None
            What was learned, for `recall`; None if the same step comes again.

        Raises
        ------
        MonitorError
            The span is over, and nobody called `finish`; or no atom is watched.
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
            whole = on_root(comm, lambda: self._thin(merge(parts or ())[0], self._choose_stride(n)))
        lesson = Lesson(frame.step, frame.time, n, whole)
        self.recall(lesson)
        return lesson

    def recall(self, lesson: Lesson) -> None:
        """Learn again what `learn` returned before the run was resumed, in the same order. Not collective.

        Only rank 0 needs the frames.
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
            self._kept.append((lesson.step, lesson.time, -(-lesson.n // self._choose_stride(lesson.n))))
            while len(self._kept) > _MOST_FRAMES or sum(rows for _, _, rows in self._kept) > _MOST_ROWS:
                self._kept, self._frames = self._kept[::2], self._frames[::2]
                self._stride *= 2
        self._seen += 1
        self.is_over = since >= self.span

    @staticmethod
    def _choose_stride(n: int) -> int:
        """Return m, so that every m-th of the n watched atoms of a frame is learned."""
        return max(1, math.ceil(n * _ROOM_FOR / _MOST_ROWS))

    def _thin(self, whole: Frame, every: int) -> Frame:
        """Let the frame watch only every n-th of its watched atoms, where n is `every`."""
        if every > 1:
            chosen = np.zeros(len(whole.positions), dtype=bool)
            chosen[whole.centres[::every]] = True
            whole.watched = chosen
        return whole

    def _share(self, whole: Frame) -> Frame:
        """Share the arrays that are equal to those of the frame before."""
        for name in ("ids", "numbers", "watched"):
            if self._frames and np.array_equal(getattr(self._frames[-1], name), getattr(whole, name)):
                setattr(whole, name, getattr(self._frames[-1], name))
        return whole

    @property
    def progress(self) -> dict[str, Any]:
        """How far it has learned, for logs."""
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
        """Build the index on rank 0 after the span. Then the reference is ready. Collective.

        Parameters
        ----------
        comm
            The ranks that have learned; `Serial` for one.
        path
            Where rank 0 saves the index and every rank opens it. Several ranks need it.
        calibrated
            Calibrate it too, so that its thresholds can be false-alarm rates.
        threads
            Threads to use; None takes all cores.

        Raises
        ------
        CalibrationError
            The span covers less than ten correlation times, or holds too few frames. The message says which span would
            do. All ranks raise it.
        InputError
            There are several ranks and no path.
        MonitorError
            The span is not over.
        QuestsError
            Rank 0 cannot build or save the index for another reason. All ranks raise it.
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
            index = together(comm, lambda: Index.open(path))  # may fail: other ranks may not see that folder
        self.index, self.learned = index, learned
        self._frames.clear()

    def open(self, path: str | os.PathLike[str]) -> None:
        """Open the index that an earlier part of the run has saved, and learn nothing more. Not collective.

        Raises
        ------
        IndexFileError
            It cannot be read, or it is not the index of a live reference.
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
        intervals, length = len(steps) - 1, _measure_correlation(index)
        spacing, spacing_in_time = float(steps[-1] - steps[0]) / intervals, float(times[-1] - times[0]) / intervals
        learned = Learned(
            frames=len(steps),
            rows=len(index),
            first=int(steps[0]),
            last=int(steps[-1]),
            spacing=spacing,
            correlation=length * spacing,
            correlation_time=length * spacing_in_time,
        )
        if intervals < _TIMES * length:
            raise CalibrationError(_explain_too_short(learned))
        time = None if math.isnan(spacing_in_time) else learned.correlation_time
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
        """Whether it has learned, and can answer."""
        return self.index is not None

    @property
    def spec(self) -> DescriptorSpec:
        """The descriptor."""
        return self._spec if self.index is None else self.index.spec

    @property
    def bandwidth(self) -> float:
        """h in 1/Å. `MonitorError` before it is ready, as for the elements and distances."""
        return self._ready().bandwidth

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that it has seen."""
        return self._ready().elements

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Chemical symbols of the centres that it has seen."""
        return self._ready().centre_elements

    @property
    def pair_distances(self) -> NDArray[np.float32]:
        """Smallest distances (Å) that it has seen."""
        return self._ready().pair_distances

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the index; None until the index is built."""
        return None if self.index is None else self.index.calibration

    def check_elements(self, numbers: NDArray[Any]) -> None:
        """Raise `ElementError` for an element it has not seen; while it learns, `InputError` without a `species`."""
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

    def search(self, *args: Any, **more: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ask the index."""
        return self._ready().search(*args, **more)

    def exceeds(self, *args: Any, **more: Any) -> NDArray[np.bool_]:
        """Ask the index."""
        return self._ready().exceeds(*args, **more)

    def describe(self) -> dict[str, object]:
        """Return what a log must hold to tell which reference this is."""
        if self.index is not None:
            return self.index.describe()
        spec = self._spec
        return {"path": None, "bandwidth": self._bandwidth, "k": spec.k, "cutoff": spec.cutoff, "species": spec.species}


def _explain_too_short(learned: Learned) -> str:
    covered = (learned.last - learned.first) / learned.correlation
    in_ps = "" if math.isnan(learned.correlation_time) else f" ({learned.correlation_time:.3g} ps)"
    wanted = math.ceil(1.2 * _TIMES * learned.correlation)
    return (
        f"the span covers {covered:.2g} correlation times of {learned.correlation:.4g} steps{in_ps}, and a live "
        f"reference needs {_TIMES}: give span = {wanted} or more, or a longer skip if the run was still on its way to "
        "equilibrium"
    )


def _measure_correlation(index: Index) -> float:
    """Return the correlation time of an index of evenly spaced frames, in frames.

    Two correlation times are computed, and the longer one is returned. The first is that of the mean descriptor of each
    frame: it shows what all atoms do together. The second is that of the descriptors of single atoms: it follows from
    the length that `partition` finds, over which their correlation falls to `INDEPENDENT`.
    """
    rows = Rows(index.rows, index.numbers, index.order, index.frame_offsets)
    means = np.array([rows.of(frame).mean(axis=0) for frame in range(len(rows))])
    of_atoms = partition(rows, (), index.bandwidth).correlation / -math.log(INDEPENDENT)
    return max(compute_integrated_time(means), of_atoms)
