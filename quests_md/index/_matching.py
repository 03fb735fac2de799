"""Finding the rows of an index that are environments of given frames, and which environments are in an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..frame import Frame
from ..information import log_kernel_sum
from ._calibration import SAME
from ._data import IndexData
from ._local import choose_squarings
from ._parts import find_parts
from ._residuals import Residuals

__all__ = ["find_known", "match_residuals"]

_AXES = 8  # columns of the search: those that vary most tell nearly all rows apart
_PAIRS = 1 << 18  # pairs of an environment and a row that are measured together
_SAMPLED = 20_000  # rows that tell which axes vary most
_PART = 100_000  # rows that are laid out at a time
_ROUNDING = 8 * 2.0**-24  # of the longest row: nearer to each other than this, distances are the same


def find_known(index: IndexData, rows: NDArray[np.float64], threads: int | None = None) -> NDArray[np.bool_]:
    """Return which environments (n,) are in the reference, or are copies of such: nearer than 0.05 h.

    Parameters
    ----------
    index
        The index.
    rows
        (n, d) descriptors, as ``index.spec.compute`` makes them.
    threads
        Threads to use; None takes all cores.
    """
    if not index.spec.by_centre:
        return _is_near(index, rows, slice(0, len(index.rows)), threads)
    known = np.zeros(len(rows), bool)
    for z, (first, last) in find_parts(index.numbers, True).items():
        mine = np.flatnonzero(rows[:, 0] == z)
        if len(mine):
            known[mine] = _is_near(index, rows[mine, 1:], slice(first, last), threads)
    return known


def _is_near(index: IndexData, rows: NDArray[np.float64], where: slice, threads: int | None) -> NDArray[np.bool_]:
    """Return which rows (n, d) are those of a stretch of the index, by a kernel as narrow as the tolerance."""
    width = SAME * index.bandwidth
    nearest = np.full(len(rows), -np.inf)
    for first in range(where.start, where.stop, _PART):
        part = index.rows[first : min(first + _PART, where.stop)]
        with index.reading():
            sums = log_kernel_sum(rows, part, width, centre=index.centre, checked=True, threads=threads)
        nearest = np.maximum(nearest, sums)
    return nearest > -0.5


def match_residuals(
    index: IndexData,
    labelled: Iterable[tuple[Frame, NDArray[np.float64]]],
    *,
    name: str,
    fingerprint: str,
    origin: str = "training",
    where: Sequence[str] = (),
    threads: int | None = None,
) -> Residuals:
    """Give each row of an index the force error of the environment that it describes.

    Environments are found by their descriptors, so the order of frames and of atoms does not matter, and some of the
    frames may be missing. A row and an environment match if they have the same element and are nearer than 0.05 h, as
    copies are in a calibration. A row takes the error of the environment that is nearest to it; of several that are
    equally near (copies), their mean. All rows that are copies of each other get the same. A row that matches nothing
    has no residual. `choose_squarings` then chooses the kernel of local residuals.

    Parameters
    ----------
    index
        The index; it does not change.
    labelled
        Frames of the reference, or some of them, each with the force errors (eV/Å) of its environments.
    name, fingerprint, origin
        As in `Residuals`.
    where
        What errors call the frames: a name for each. Default: "frame 0", "frame 1", ...
    threads
        Threads to use; None takes all cores.

    Raises
    ------
    InputError
        There are no frames; an environment of a frame is not in the reference; or an error is not a finite number.
    """
    _ = index.spec  # own descriptors have none, and say so
    rows, numbers, errors, owner = _describe(index, labelled, where, threads)
    search = _Search(index, threads)
    with index.reading():
        values, known = _average(len(index), search, rows, numbers, errors)
    _refuse_others(~known, owner, where)
    return choose_squarings(index, Residuals(name, fingerprint, origin, values), threads)


def _describe(
    index: IndexData, labelled: Iterable[tuple[Frame, NDArray[np.float64]]], where: Sequence[str], threads: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return descriptors less `centre` (n, d), atomic numbers, errors and frames (n,) of all environments."""
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]] = []
    for i, (frame, error) in enumerate(labelled):
        n = len(frame.centres)
        if np.shape(error) != (n,) or not np.isfinite(error).all() or np.min(error, initial=0.0) < 0.0:
            raise InputError(f"{_call(i, where)}: the force errors must be {n} finite numbers, in eV/Å")
        index.check_elements(frame.numbers)
        rows = index.spec.compute(frame, threads)[:, int(index.spec.by_centre) :] - index.centre
        parts.append((rows, frame.numbers[frame.centres].astype(np.int64), np.asarray(error), np.full(n, i)))
    if not any(len(part[0]) for part in parts):
        raise InputError("no labelled frames, or no atoms in them")
    rows, numbers, errors, owner = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return rows, numbers, errors, owner


def _call(i: int, where: Sequence[str]) -> str:
    return where[i] if i < len(where) else f"frame {i}"


class _Pairs(NamedTuple):
    """Environments and rows that match (m,): their places, and how far they are from each other, in 1/Å."""

    environment: NDArray[np.int64]
    row: NDArray[np.int64]
    distance: NDArray[np.float64]


class _Search:
    """A search for the rows of an index that are near to environments.

    It is made in the coordinates along a few orthogonal axes. In these nothing is farther from each other than in all
    columns, so the search misses nothing; what it finds is then measured in all columns.
    """

    def __init__(self, index: IndexData, threads: int | None) -> None:
        from scipy.spatial import cKDTree  # not above: runs start without scipy

        self._rows, self._tolerance, self._threads = index.rows, SAME * index.bandwidth, threads or -1
        with index.reading():
            sample = self._rows[:: max(1, len(self._rows) // _SAMPLED)].astype(np.float64)
            sample -= sample.mean(axis=0)
            self._axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :_AXES]
            self._trees = dict[int, tuple[NDArray[np.int64], Any]]()
            for z in np.unique(index.numbers).tolist():
                which = np.flatnonzero(index.numbers == z)
                self._trees[z] = which, cKDTree(self._rows[which].astype(np.float64) @ self._axes)

    def find(
        self, query: NDArray[np.float64], numbers: NDArray[np.int64], order: NDArray[np.int64]
    ) -> Iterator[_Pairs]:
        """Yield the pairs of an environment (a row of `query`) and a row of the index that match, in this order."""
        for z, (rows, tree) in self._trees.items():
            asked = order[numbers[order] == z]
            # Few at a time: in a perfect crystal each environment matches each row.
            step = max(1, _PAIRS // len(rows))
            for first in range(0, len(asked), step):
                yield self._measure(query, asked[first : first + step], rows, tree)

    def _measure(
        self, query: NDArray[np.float64], asked: NDArray[np.int64], rows: NDArray[np.int64], tree: Any
    ) -> _Pairs:
        near = tree.query_ball_point(query[asked] @ self._axes, 1.001 * self._tolerance, workers=self._threads)
        environment = np.repeat(asked, [len(some) for some in near])
        row = rows[np.concatenate([np.asarray(some, np.int64) for some in near])]
        distance = np.linalg.norm(query[environment] - self._rows[row], axis=1)
        same = distance <= self._tolerance
        return _Pairs(environment[same], row[same], distance[same])


def _average(
    n: int,
    search: _Search,
    query: NDArray[np.float64],
    numbers: NDArray[np.int64],
    errors: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return for each of `n` rows the mean error (eV/Å) of the environments nearest to it; nan if it has none.

    And for each environment, whether it matches a row.
    """
    order = np.argsort(errors, kind="stable")  # so that no sum depends on the order of the frames
    nearest, known = np.full(n, np.inf), np.zeros(len(query), bool)
    for found in search.find(query, numbers, order):
        np.minimum.at(nearest, found.row, found.distance)
        known[found.environment] = True
    nearest += _ROUNDING * float(np.linalg.norm(query, axis=1).max())
    sums, counts = np.zeros(n), np.zeros(n)
    for found in search.find(query, numbers, order):
        kept = found.distance <= nearest[found.row]
        np.add.at(sums, found.row[kept], errors[found.environment[kept]])
        np.add.at(counts, found.row[kept], 1.0)
    with np.errstate(invalid="ignore"):  # 0/0 is nan: no label
        return (sums / counts).astype(np.float32), known


def _refuse_others(missing: NDArray[np.bool_], owner: NDArray[np.int64], where: Sequence[str]) -> None:
    """Raise `InputError` if an environment is missing in the reference."""
    if not missing.any():
        return
    frames = np.unique(owner[missing])
    first, n_frames = int(frames[0]), len(np.unique(owner))
    mine = owner == first
    raise InputError(
        f"{len(frames)} of {n_frames} labelled frames are not in the reference. The first is {_call(first, where)}: "
        f"{int(missing[mine].sum())} of its {int(mine.sum())} environments are no rows of the index. Give frames that "
        "the index was built of, or extend the index by these: quests-md index extend"
    )
