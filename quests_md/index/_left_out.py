"""Kernel sums of references over the references of all other groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..information import log_kernel_sum, pack
from ._asked import laid_out

__all__ = ["left_out_log_sums"]


def left_out_log_sums(
    rows: NDArray[np.float32],
    groups: NDArray[np.int64],
    asked: NDArray[np.int64],
    bandwidth: float,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute ln K of the rows `asked` over all rows of other groups.

    Nothing is subtracted: where the own group makes up nearly all of a sum, the difference would have no digits.
    Groups are put into folds; the sum is that over the other folds, laid out once for all of a fold, and that over
    the other groups of the own fold.

    Parameters
    ----------
    rows
        (n, d) in the order of a search tree.
    groups
        (n,) the group of every row.
    asked
        (m,) which rows.
    bandwidth
        h, in 1/Å.

    Returns
    -------
    ndarray
        (m,), to what single precision allows (max(1e-4, 1e-6·|ln K|)); −inf where there is no other group.
    """
    _, groups = np.unique(groups, return_inverse=True)
    n_groups = int(groups.max()) + 1
    # As many folds as make laying out the rest of each, and the rest of the own fold for each group, cost the same.
    folds = groups % min(n_groups, max(2, math.isqrt(len(np.unique(groups[asked])))))
    out = np.full(len(asked), -np.inf)
    for fold in np.unique(folds[asked]):
        mine = np.flatnonzero(folds[asked] == fold)
        out[mine] = _sums(rows[asked[mine]], rows[folds != fold], bandwidth, threads)
        inside = np.flatnonzero(folds == fold)
        for group in np.unique(groups[asked[mine]]):
            some = mine[groups[asked[mine]] == group]
            others = rows[inside[groups[inside] != group]]
            out[some] = np.logaddexp(out[some], _sums(rows[asked[some]], others, bandwidth, threads))
    return out


def _sums(query: NDArray[Any], rows: NDArray[np.float32], bandwidth: float, threads: int | None) -> NDArray[np.float64]:
    total = np.full(len(query), -np.inf)
    step = laid_out(rows.shape[1])
    for first in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[first : first + step])
        blocks = pack(part, bandwidth, "single", order=np.arange(len(part)), threads=threads)
        sums = log_kernel_sum(query, part, bandwidth, checked=True, blocks=blocks, precision="single", threads=threads)
        total = np.logaddexp(total, sums)
    return total
