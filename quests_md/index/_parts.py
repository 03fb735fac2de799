"""The rows of an index that a query is compared with: all of them, or those of its own centre's element."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..information import Blocks, Precision, log_kernel_sum, log_kernel_sum_of_few, pack
from ..kernels import search
from ..kernels._jit import over_rows

__all__ = ["Part", "laid_out", "spans"]

# Rows of an index that are laid out for kernel sums at a time (51 MB in double precision). Each rank has its own
# layout, while the mapped rows are shared by the ranks of a node; so a large index must not be laid out as a whole.
LAID_OUT = 100_000
# Fewer of them where they are wide, as own descriptors can be: so many values (200 MB).
_VALUES = 256 * LAID_OUT
# Fewer queries than this are summed straight from the rows of a larger index: to lay out a million takes 0.15 s, to
# sum them straight 0.01 s and 0.005 s per query.
FEW = 48

_SEARCHED = 256  # queries that a thread takes at a time when it searches


def laid_out(width: int) -> int:
    """Return how many rows of `width` columns are laid out at a time."""
    return min(LAID_OUT, -(-_VALUES // width))


def spans(numbers: NDArray[np.int16], by_centre: bool) -> dict[int, tuple[int, int]]:
    """Return first and last row of every part: by atomic number, which ascends; or all rows, under 0."""
    if not by_centre:
        return {0: (0, len(numbers))}
    known, counts = np.unique(numbers, return_counts=True)
    ends = np.cumsum(counts).tolist()
    return {z: (end - n, end) for z, n, end in zip(known.tolist(), counts.tolist(), ends, strict=True)}


class Part:
    """Rows that lie in the order of one search tree.

    Parameters
    ----------
    tree
        The rows, less `centre`, and what is known of the nodes.
    centre, bandwidth
        Those of the index.
    is_small
        Whether the index is small enough for a layout that is kept.
    """

    def __init__(self, tree: search.Tree, centre: NDArray[np.float64], bandwidth: float, is_small: bool) -> None:
        self._tree, self._centre, self._bandwidth, self._is_small = tree, centre, bandwidth, is_small
        self._blocks: dict[Precision, Blocks] = {}

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None, precision: Precision
    ) -> NDArray[np.float64]:
        """Compute ln K(q), as `Index.log_kernel_sum`."""
        rows = self._tree.rows
        if not self._is_small and len(query) < FEW:
            return log_kernel_sum_of_few(query, rows, self._bandwidth, centre=self._centre, threads=threads)
        total = np.full(len(query), -np.inf)
        step = len(rows) if self._is_small else laid_out(rows.shape[1])
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            blocks = self._blocks.get(precision)
            if blocks is None:
                order = np.arange(len(some))  # they are in that of the tree
                blocks = pack(some, self._bandwidth, precision, order=order, threads=threads)
            if self._is_small:
                self._blocks[precision] = blocks
            sums = log_kernel_sum(
                query,
                some,
                self._bandwidth,
                centre=self._centre,
                checked=True,
                blocks=blocks,
                precision=precision,
                threads=threads,
            )
            total = np.logaddexp(total, sums)
        return total

    def upper_bound(
        self, query: NDArray[np.float64], threshold: float, memory: NDArray[np.int32], threads: int | None
    ) -> NDArray[np.float64]:
        """Return upper bounds of dH as `search.upper_bounds` does: nan where they could not decide."""
        ask = search.question(self._centre, self._tree, threshold, self._bandwidth)
        out = np.empty(len(query))

        def task(first: int, last: int) -> None:
            search.upper_bounds(query, self._tree, ask, memory, first, last, out)

        over_rows(task, len(query), threads, _SEARCHED)
        return out
