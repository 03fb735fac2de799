"""The fixed vector that a rank sends, and what the vectors of all ranks say together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Summary", "combine", "summarise"]

# Bins of equal width in asinh(dH): fine near zero, a constant share of dH far away.
_EDGES = np.sinh(np.linspace(-4.0, 12.0, 257))
_SCALARS = 7  # failed, n, maximum, its id, sum, n_select, n_halt


@dataclass(frozen=True)
class Summary:
    """What all ranks know of one frame."""

    failed: tuple[int, ...]
    n: int
    maximum: float
    max_id: int
    mean: float
    q50: float
    q99: float
    n_select: int
    n_halt: int


def summarise(
    dH: NDArray[np.float64], ids: NDArray[np.int64], select: float, halt: float, failed: bool
) -> NDArray[np.float64]:
    """Return this rank's vector."""
    vector = np.zeros(_SCALARS + len(_EDGES) - 1)
    vector[:4] = failed, len(dH), -np.inf, -1
    if len(dH):
        # Of equal maxima the smallest id: no rank's order of atoms may show.
        worst = dH.max()
        vector[2:4] = worst, ids[dH == worst].min()
        vector[4:_SCALARS] = dH.sum(), np.count_nonzero(dH > select), np.count_nonzero(dH > halt)
        vector[_SCALARS:] = np.histogram(np.clip(dH, _EDGES[0], _EDGES[-1]), _EDGES)[0]
    return vector


def combine(vectors: NDArray[np.float64]) -> Summary:
    """Return what the ranks' vectors (size, n) say together: the same on every rank."""
    n = int(vectors[:, 1].sum())
    maximum = float(vectors[:, 2].max())
    max_id = int(vectors[vectors[:, 2] == maximum, 3].min()) if n else -1
    counts = vectors[:, _SCALARS:].sum(axis=0)
    q50, q99 = (_quantile(counts, q, maximum) for q in (0.5, 0.99))
    return Summary(
        failed=tuple(np.flatnonzero(vectors[:, 0]).tolist()),
        n=n,
        maximum=maximum,
        max_id=max_id,
        mean=float(vectors[:, 4].sum()) / n if n else float("nan"),
        q50=q50,
        q99=q99,
        n_select=int(vectors[:, 5].sum()),
        n_halt=int(vectors[:, 6].sum()),
    )


def _quantile(counts: NDArray[np.float64], q: float, maximum: float) -> float:
    """Return a quantile of a histogram, linear within its bin and never above the maximum."""
    total = counts.sum()
    if total == 0:
        return float("nan")
    below = np.concatenate([[0.0], np.cumsum(counts)])
    b = int(np.searchsorted(below[1:], q * total))
    share = (q * total - below[b]) / counts[b]
    return float(min(maximum, _EDGES[b] + share * (_EDGES[b + 1] - _EDGES[b])))
