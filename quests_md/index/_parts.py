"""The rows of an index that a query is compared with: all of them, or those of one element."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..information import Blocks, Precision, local_residuals, log_kernel_sum, log_kernel_sum_of_few, pack
from ..kernels import kernel_sum, mean_reference, nearest, search
from ..kernels.blocks import LEAF
from ..kernels.threads import over_rows

__all__ = ["FEW", "LAID_OUT", "Part", "Weighed", "find_parts", "join_residuals", "limit_layout"]

# Rows of an index that are laid out for kernel sums at a time (51 MB in double precision). Each rank has its own
# layout, while all ranks of a node share the mapped rows. So a large index must not be laid out as a whole.
LAID_OUT = 100_000
# The most values of such a layout (200 MB). Own descriptors can be wide: then it has fewer rows.
_VALUES = 256 * LAID_OUT
# Fewer queries than this are summed straight from the rows of a large index. A layout of a million rows takes 0.15 s;
# the sums without a layout take 0.01 s, and 0.005 s per query.
FEW = 48

_SEARCHED = 256  # queries that a thread takes at a time when it searches


def limit_layout(width: int) -> int:
    """Return how many rows of `width` columns are laid out at a time."""
    return min(LAID_OUT, -(-_VALUES // width))


def find_parts(numbers: NDArray[np.int16], by_centre: bool) -> dict[int, tuple[int, int]]:
    """Return where each part begins and ends in the rows, by atomic number. Without `by_centre` part 0 is all rows."""
    if not by_centre:
        return {0: (0, len(numbers))}
    known, counts = np.unique(numbers, return_counts=True)
    ends = np.cumsum(counts).tolist()
    return {z: (end - n, end) for z, n, end in zip(known.tolist(), counts.tolist(), ends, strict=True)}


class Weighed(NamedTuple):
    """Residuals of the rows of a part."""

    residuals: NDArray[np.float64]  # (n,) in eV/Å, nan where there is none
    squarings: int
    key: str  # tells them from others


class _Prototypes(NamedTuple):
    """Nodes of the tree with the mean residual of each (eV/Å), as `nearest.take_nearest` takes them."""

    columns: NDArray[np.float32]
    squares: NDArray[np.float32]
    values: NDArray[np.float64]


class Part:
    """Rows of an index in the order of one search tree: all rows, or those of one element.

    A run asks it at every evaluation, with rows that `IndexData` has checked. So it calls the kernels itself, and
    without a pool if there is one thread.

    Parameters
    ----------
    tree
        The rows less `centre`, and the nodes of the tree.
    centre, bandwidth
        Those of the index.
    is_small
        Whether the index is small enough to keep a layout of it.
    """

    def __init__(self, tree: search.Tree, centre: NDArray[np.float64], bandwidth: float, is_small: bool) -> None:
        self._tree, self._centre, self._bandwidth, self._is_small = tree, centre, bandwidth, is_small
        self._blocks: dict[Precision, Blocks] = {}
        self._weighed: dict[tuple[str, Precision], Blocks] = {}
        self._prototypes: dict[str, _Prototypes] = {}
        self._question: search.Question | None = None

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q) as `Index.log_kernel_sum` does. The queries are finite, contiguous, and of the same width."""
        if not self._is_small:
            return self._sum_in_turn(query, threads, precision)
        blocks = self._blocks.get(precision)
        if blocks is None:
            blocks = self._blocks[precision] = self._lay_out(self._tree.rows, threads, precision)
        out, plain = np.empty(len(query)), None if blocks.vector else 1
        task = partial(kernel_sum.log_kernel_sum, query, self._centre, blocks, plain, -np.inf, out=out, local=None)
        if threads == 1:
            task(0, len(query))
        else:
            over_rows(task, len(query), threads, kernel_sum.BLOCK)
        return out

    def _lay_out(
        self, rows: NDArray[np.float32], threads: int | None, precision: Precision, weighed: Weighed | None = None
    ) -> Blocks:
        order, h = np.arange(len(rows)), self._bandwidth  # the rows are in the order of the tree already
        if weighed is None:
            return pack(rows, h, precision, order=order, threads=threads)
        residuals, squarings = weighed.residuals, weighed.squarings
        return pack(rows, h, precision, order=order, residuals=residuals, squarings=squarings, threads=threads)

    def local_residuals(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision, weighed: Weighed
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute ln K(q) and s(q) as `Index.local_residuals` does. The layout of these residuals is kept."""
        if not self._is_small:
            return self._weigh_in_turn(query, threads, precision, weighed)
        blocks = self._weighed.get((weighed.key, precision))
        if blocks is None:
            blocks = self._lay_out(self._tree.rows, threads, precision, weighed)
            self._weighed[weighed.key, precision] = blocks
        sums, local = local_residuals(query, blocks, self._centre, threads)
        return sums, local[:, 0]

    def estimate_residuals(
        self, query: NDArray[np.float64], threads: int | None, weighed: Weighed
    ) -> NDArray[np.float64]:
        """Return the mean residual of the node nearest to each query, as `Index.estimate_residuals` says."""
        made = self._prototypes.get(weighed.key)
        if made is None:
            made = self._prototypes[weighed.key] = self._make_prototypes(weighed.residuals)
        out = np.full(len(query), np.nan)
        if len(made.values):
            task = partial(nearest.take_nearest, query, self._centre, *made, out=out)
            if threads == 1:
                task(0, len(query))
            else:
                over_rows(task, len(query), threads, _SEARCHED)
        return out

    def _make_prototypes(self, residuals: NDArray[np.float64]) -> _Prototypes:
        """Take the nodes of the lowest level that has few, without those whose rows have no residual.

        On training sets of Zuo et al. (2020) some hundred nodes rank force errors nearly as well as the references do.
        """
        tree, n = self._tree, len(residuals)
        level = int(np.argmax(np.diff(tree.first) <= nearest.MOST))
        size = LEAF * search.FAN**level
        known, starts = ~np.isnan(residuals), np.arange(0, n, size)
        counts = np.add.reduceat(known.astype(np.int64), starts)
        means = np.add.reduceat(np.where(known, residuals, 0.0), starts)[counts > 0] / counts[counts > 0]
        centres = tree.centres[tree.first[level] : tree.first[level + 1]]
        return _Prototypes(*nearest.lay_out(centres[counts > 0]), means)

    def _weigh_in_turn(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision, weighed: Weighed
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute ln K(q) and s(q) of a large index: lay out some rows at a time, and keep no layout."""
        rows, total, joined = self._tree.rows, np.full(len(query), -np.inf), None
        step = limit_layout(rows.shape[1])
        for first in range(0, len(rows), step):
            some = slice(first, first + step)
            part = weighed._replace(residuals=weighed.residuals[some])
            sums, local = local_residuals(
                query, self._lay_out(rows[some], threads, precision, part), self._centre, threads
            )
            total, joined = np.logaddexp(total, sums), join_residuals(joined, local)
        assert joined is not None  # an index has rows
        return total, joined[:, 0]

    def _sum_in_turn(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q) of a large index: lay out some rows at a time, and keep no layout."""
        rows, h, centre = self._tree.rows, self._bandwidth, self._centre
        if len(query) < FEW:
            return log_kernel_sum_of_few(query, rows, h, centre=centre, threads=threads)
        total, step = np.full(len(query), -np.inf), limit_layout(rows.shape[1])
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            blocks = self._lay_out(some, threads, precision)
            made: dict[str, Any] = {"centre": centre, "checked": True, "blocks": blocks, "precision": precision}
            total = np.logaddexp(total, log_kernel_sum(query, some, h, **made, threads=threads))
        return total

    def upper_bound(
        self, query: NDArray[np.float64], threshold: float, memory: NDArray[np.int32], threads: int | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return upper bounds of dH and guesses as `search.upper_bounds` does: nan where the search did not decide."""
        question = self._question or self._ask()  # every evaluation comes here: a call less
        ask = question._replace(threshold=float(threshold))
        out, guess = np.empty(len(query)), np.empty(len(query))
        if threads == 1:
            search.upper_bounds(query, self._tree, ask, memory, 0, len(query), out, guess)
        else:
            task = partial(search.upper_bounds, query, self._tree, ask, memory, out=out, guess=guess)
            over_rows(task, len(query), threads, _SEARCHED)
        return out, guess

    def differentiate(
        self, query: NDArray[np.float64], threads: int | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute dH (n,) and its derivatives (n, d) as `Index.differentiate` does; of the queries as above."""
        sums = self.log_kernel_sum(query, threads, "single")  # what is left out by them does not change a double
        out = np.empty(query.shape)
        task = partial(mean_reference.mean_differences, query, self._tree, self._question or self._ask(), sums, out=out)
        if threads == 1:
            task(0, len(query))
        else:
            over_rows(task, len(query), threads, kernel_sum.BLOCK)
        out *= 1.0 / self._bandwidth**2
        return 0.0 - sums, out

    def _ask(self) -> search.Question:
        """Make the question to the tree, once: all but the threshold follows from the tree."""
        self._question = search.question(self._centre, self._tree, 0.0, self._bandwidth)
        return self._question


def join_residuals(one: NDArray[np.float64] | None, other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return s and ln Σ w (n, 2) over two sets of references, of those over each of them; None is no reference."""
    if one is None:
        return other
    total = np.logaddexp(one[:, 1], other[:, 1])
    s = np.zeros(len(total))
    for part in (one, other):
        known = part[:, 1] > -np.inf
        s[known] += np.exp(part[known, 1] - total[known]) * part[known, 0]
    return np.column_stack([np.where(total > -np.inf, s, np.nan), total])
