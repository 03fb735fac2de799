"""The fixed vector that a rank sends, and what the vectors of all ranks say together."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, Environments
from ..frame import Frame

__all__ = ["State", "Summary", "combine", "count", "summarise", "summarise_nothing"]

# Bins of equal width in asinh(dH): fine near zero, a constant share of dH far away.
_EDGES = np.sinh(np.linspace(-4.0, 12.0, 257))
_LOW = (1 << 32) - 1
# What a vector begins with; the maximum's id comes in two halves, and the rest is the histogram.
_HEAD = (
    "state", "stop", "n_rank", "n_expected", "n", "maximum", "high", "low", "n_select", "n_halt", "force_error",
    "n_chosen", "sum",
)  # fmt: skip
_SCALARS = len(_HEAD)
_AT = {name: i for i, name in enumerate(_HEAD)}


class State(enum.IntEnum):
    """How measuring went on a rank."""

    DONE = 0
    FAILED = 1
    IMPLAUSIBLE = 2


@dataclass(frozen=True)
class Summary:
    """What all ranks know of one frame. `failed`, `implausible` and `stopping` are ranks."""

    failed: tuple[int, ...]
    implausible: tuple[int, ...]
    stopping: tuple[int, ...]
    n_frame: int
    n_expected: int
    force_error: float
    n: int
    maximum: float
    max_id: int
    mean: float
    q50: float
    q99: float
    n_select: int
    n_halt: int


def summarise_nothing(state: State, stop: bool) -> NDArray[np.float64]:
    """Return the vector of a rank that has measured nothing."""
    vector = np.zeros(_SCALARS + len(_EDGES) - 1)
    vector[:_SCALARS] = state, stop, 0, -1, 0, -np.inf, 0, -1, 0, 0, -np.inf, 0, 0
    return vector


def count(spec: DescriptorSpec, frame: Frame | None, stop: bool) -> NDArray[np.float64]:
    """Return this rank's vector of a frame that is only counted; a `FrameError` if it can have no descriptors."""
    assert frame is not None
    spec.check_elements(set(frame.distinct_numbers.tolist()))
    vector = summarise_nothing(State.DONE, stop)
    vector[_AT["n"]] = len(Environments(DescriptorSpec(spec.k, spec.cutoff), frame))  # elements are not known yet
    vector[_AT["n_rank"]] = frame.n_local or 0
    vector[_AT["n_expected"]] = -1 if frame.n_expected is None else frame.n_expected
    return vector


def summarise(
    dH: NDArray[np.float64],
    ids: NDArray[np.int64],
    select: NDArray[np.float64],
    halt: NDArray[np.float64],
    *,
    stop: bool = False,
    n_rank: int = 0,
    n_expected: int | None = None,
    force_error: float = float("nan"),
    sample: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return this rank's vector; mean and quantiles are those of the environments of `sample`, by default of all.

    `n_rank` are this rank's atoms, and `n_expected` those that the host believes the whole frame has.
    """
    vector = summarise_nothing(State.DONE, stop)
    vector[_AT["n_rank"]], vector[_AT["n_expected"]] = n_rank, -1 if n_expected is None else n_expected
    if len(dH):
        # Of equal maxima the smallest id: no rank's order of atoms may show.
        worst = dH.max()
        max_id = int(ids[dH == worst].min())
        chosen = dH if sample is None else dH[sample]
        vector[_AT["n"] : _SCALARS] = (
            len(dH), worst,
            max_id >> 32, max_id & _LOW,  # a float holds 53 bits of an id, which has 64
            np.count_nonzero(dH > select), np.count_nonzero(dH > halt),
            force_error, len(chosen), chosen.sum(),
        )  # fmt: skip
        bins = np.searchsorted(_EDGES[1:-1], chosen, side="right")
        vector[_SCALARS:] = np.bincount(bins, minlength=len(_EDGES) - 1)
    return vector


def combine(vectors: NDArray[np.float64]) -> Summary:
    """Return what the ranks' vectors (size, n) say together: the same on every rank."""
    of = dict(zip(_HEAD, vectors.T, strict=False))
    total = {name: int(of[name].sum()) for name in ("n_rank", "n", "n_select", "n_halt", "n_chosen")}
    maximum = float(of["maximum"].max())
    # A rank without atoms has −inf for a maximum, and so may one that has some.
    worst = vectors[(of["maximum"] == maximum) & (of["n"] > 0), _AT["high"] : _AT["low"] + 1]
    q50, q99 = _quantiles(vectors[:, _SCALARS:].sum(axis=0), (0.5, 0.99), maximum)
    measured = of["force_error"][of["n"] > 0]
    return Summary(
        failed=tuple(np.flatnonzero(of["state"] == State.FAILED).tolist()),
        implausible=tuple(np.flatnonzero(of["state"] == State.IMPLAUSIBLE).tolist()),
        stopping=tuple(np.flatnonzero(of["stop"]).tolist()),
        n_frame=total["n_rank"],
        n_expected=int(of["n_expected"].max()),
        force_error=float(measured.max()) if len(measured) else float("nan"),
        n=total["n"],
        maximum=maximum,
        max_id=min((int(high) << 32 | int(low) for high, low in worst), default=-1),
        mean=float(of["sum"].sum()) / total["n_chosen"] if total["n_chosen"] else float("nan"),
        q50=q50,
        q99=q99,
        n_select=total["n_select"],
        n_halt=total["n_halt"],
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
