"""The fixed vector that a rank sends, and what the vectors of all ranks say together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Summary", "combine", "summarise"]

# Bins of equal width in asinh(dH): fine near zero, a constant share of dH far away.
_EDGES = np.sinh(np.linspace(-4.0, 12.0, 257))
_LOW = (1 << 32) - 1
_SCALARS = 9  # failed, n, maximum, its id in two halves, n_select, n_halt, atoms of the statistics, their sum


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
    dH: NDArray[np.float64],
    ids: NDArray[np.int64],
    select: float,
    halt: float,
    failed: bool,
    sample: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return this rank's vector; mean and quantiles are those of the atoms of `sample`, by default of all."""
    vector = np.zeros(_SCALARS + len(_EDGES) - 1)
    vector[:5] = failed, len(dH), -np.inf, 0.0, -1.0
    if len(dH):
        # Of equal maxima the smallest id: no rank's order of atoms may show.
        worst = dH.max()
        max_id = int(ids[dH == worst].min())
        vector[2:5] = worst, max_id >> 32, max_id & _LOW  # a float holds 53 bits of an id, which has 64
        vector[5:7] = np.count_nonzero(dH > select), np.count_nonzero(dH > halt)
        chosen = dH if sample is None else dH[sample]
        vector[7:_SCALARS] = len(chosen), chosen.sum()
        bins = np.searchsorted(_EDGES[1:-1], chosen, side="right")
        vector[_SCALARS:] = np.bincount(bins, minlength=len(_EDGES) - 1)
    return vector


def combine(vectors: NDArray[np.float64]) -> Summary:
    """Return what the ranks' vectors (size, n) say together: the same on every rank."""
    n, n_chosen = int(vectors[:, 1].sum()), int(vectors[:, 7].sum())
    maximum = float(vectors[:, 2].max())
    # A rank without atoms has −inf for a maximum, and so may one that has some.
    worst = vectors[(vectors[:, 2] == maximum) & (vectors[:, 1] > 0), 3:5]
    q50, q99 = _quantiles(vectors[:, _SCALARS:].sum(axis=0), (0.5, 0.99), maximum)
    return Summary(
        failed=tuple(np.flatnonzero(vectors[:, 0]).tolist()),
        n=n,
        maximum=maximum,
        max_id=min((int(high) << 32 | int(low) for high, low in worst), default=-1),
        mean=float(vectors[:, 8].sum()) / n_chosen if n_chosen else float("nan"),
        q50=q50,
        q99=q99,
        n_select=int(vectors[:, 5].sum()),
        n_halt=int(vectors[:, 6].sum()),
    )


def _quantiles(counts: NDArray[np.float64], shares: tuple[float, ...], maximum: float) -> list[float]:
    """Return quantiles of a histogram, linear within their bins and never above the maximum."""
    below = np.zeros(len(counts) + 1)
    np.cumsum(counts, out=below[1:])
    if below[-1] == 0:
        return [float("nan")] * len(shares)
    quantiles = []
    for q in shares:
        b = int(np.searchsorted(below[1:], q * below[-1]))
        share = (q * below[-1] - below[b]) / counts[b]
        quantiles.append(float(min(maximum, _EDGES[b] + share * (_EDGES[b + 1] - _EDGES[b]))))
    return quantiles
