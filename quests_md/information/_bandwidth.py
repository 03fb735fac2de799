"""The choice of a bandwidth: from the volume per atom, from the distances between frames, or from the likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..notebook import Table
from ._sums import Report, as_rows, check_bandwidth, check_rows

__all__ = ["BandwidthChoice", "bandwidth_from_volume", "likelihood_bandwidth", "suggest_bandwidth"]

SAME = 0.05  # of the smallest bandwidth tried: rows that are nearer to each other are the same environment
_TRIED = np.geomspace(0.0005, 0.2, 53)  # 1/Å
_CHUNK = 1 << 22  # distances at a time: 32 MB
_SUGGESTED = 500  # environments that a suggestion is made of
_COPIES = 1e-6  # 1/Å; rows that are nearer to each other differ by rounding


def bandwidth_from_volume(volume: float, method: Literal["gaussian", "cutoff"] = "gaussian") -> float:
    """Compute h by QUESTS's rule from the volume per atom.

    V is the volume in Å³. "gaussian" is h = 0.0897141 exp(−(V/10.896)²/2) + 0.0119417. "cutoff" is
    h = 0.086164 (1 − (z/11.61172)²)² + 0.016 with z = (ln V)², without the first term where z > 11.61172. The rule is
    valid for k = 32, a cutoff of 5 Å and one block. The constants are those of ``quests.entropy.get_bandwidth``.

    Parameters
    ----------
    volume
        Volume per atom, in Å³.
    method
        The form of the rule: "gaussian" or "cutoff".

    Raises
    ------
    InputError
        The volume is not a positive number, or there is no such form.
    """
    if not (math.isfinite(volume) and volume > 0):
        raise InputError(f"the volume per atom must be positive, not {volume!r}")
    if method == "gaussian":
        return 0.0897141 * math.exp(-0.5 * (volume / 10.896) ** 2) + 0.0119417
    if method == "cutoff":
        z = min(math.log(volume) ** 2 / 11.61172, 1.0)
        return 0.086164 * (1.0 - z * z) ** 2 + 0.016
    raise InputError(f'the form of the volume rule must be "gaussian" or "cutoff", not {method!r}')


@dataclass(frozen=True, repr=False)
class BandwidthChoice(Table):
    """What `likelihood_bandwidth` found.

    Attributes
    ----------
    bandwidth
        The bandwidth with the largest likelihood, in 1/Å.
    bandwidths
        (m,) the bandwidths that were tried, ascending, in 1/Å.
    log_likelihood
        (m,) mean log-likelihood of an environment at each, in nats.
    n_env
        Environments of the dataset.
    n_asked
        Environments whose likelihood was computed.
    n_copies
        How many of the asked environments have copies in the dataset.
    dimension
        Number of columns that vary by more than copies do.
    at_edge
        Whether the best bandwidth is the smallest or the largest one tried: then a better one lies beyond.
    """

    _COLUMNS = ("bandwidths", "log_likelihood")

    bandwidth: float
    bandwidths: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    n_env: int
    n_asked: int
    n_copies: int
    dimension: int
    at_edge: bool


def likelihood_bandwidth(
    x: ArrayLike,
    bandwidths: Sequence[float] | None = None,
    *,
    size: int = 1000,
    seed: int = 0,
    report: Report | None = None,
) -> BandwidthChoice:
    """Choose the bandwidth that makes each environment most likely, given all the others.

    For each bandwidth it computes the mean over environments i of
    ln [Σ_j exp(−‖x_i − x_j‖²/2h²) / (n_i (2π)^(m/2) h^m)]. Here m is the number of columns that vary, and j runs over
    the n_i rows that are not copies of i. With copies (the same crystal in several cells, an atom and its periodic
    image) the likelihood would grow without limit as h → 0. Rows that are nearer than 0.05 of the smallest bandwidth
    tried are copies. The result is the maximum of a parabola in ln h through the best bandwidth and its neighbours.

    Parameters
    ----------
    x
        (n, d) descriptors, in 1/Å; may be mapped.
    bandwidths
        The bandwidths to try, ascending, in 1/Å. Default: 53 from 0.0005 to 0.2, evenly spaced in ln h.
    size
        Number of environments i. If the dataset has more, they are drawn at random. j always runs over all rows.
    seed
        The seed of the draw, ``numpy.random.default_rng(seed).choice(n, size, replace=False)``.
    report
        It is called from time to time with the share of the work that is done.

    Raises
    ------
    InputError
        As in `information`; the bandwidths do not ascend; or all rows are copies of one environment.

    Notes
    -----
    R. P. W. Duin, IEEE Trans. Comput. C-25, 1175 (1976). The frames of a trajectory are not independent: frames that
    follow each other make h smaller. The result is the best h for a density, not a scale on which dH has a meaning.
    """
    rows = as_rows(x)
    tried = _TRIED if bandwidths is None else np.array(bandwidths, dtype=np.float64)
    if not len(tried) or (np.diff(tried) <= 0.0).any():
        raise InputError(f"the bandwidths to try must ascend, and be one at least: {tried.tolist()}")
    for bandwidth in tried.tolist():
        check_bandwidth(bandwidth)
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(f"the number of environments must be a whole number of at least 1, not {size!r}")
    asked = np.arange(len(rows))
    if size < len(rows):
        asked = np.sort(np.random.default_rng(seed).choice(len(rows), size, replace=False))
    query = check_rows("x", rows[asked], np.float64)
    log_sums, counted, dimension = _sum_without_copies(query, rows, tried, SAME * tried[0], report)
    alone = counted == 0
    if alone.any():  # a row whose copies are all rows
        raise InputError(f"the {len(rows)} rows are copies of one environment: no bandwidth follows from them")
    norm = np.log(counted) + 0.5 * dimension * math.log(2.0 * math.pi)
    likelihood = np.mean(log_sums - norm[:, None], axis=0) - dimension * np.log(tried)
    best = int(np.argmax(likelihood))
    return BandwidthChoice(
        bandwidth=_find_maximum(np.log(tried), likelihood, best),
        bandwidths=tried,
        log_likelihood=likelihood,
        n_env=len(rows),
        n_asked=len(asked),
        n_copies=int(np.sum(counted < len(rows) - 1)),
        dimension=dimension,
        at_edge=best in (0, len(tried) - 1),
    )


def suggest_bandwidth(
    rows: NDArray[Any], frames: NDArray[np.int64], numbers: NDArray[Any] | None = None
) -> float | None:
    """Return a bandwidth to suggest: how far an environment is from the nearest one of other frames.

    With it an environment of the reference's own kind has a dH near 0. It is for references to which QUESTS's rule by
    the volume does not apply.

    Parameters
    ----------
    rows
        (n, d) descriptors, in 1/Å; may be mapped.
    frames
        (n,) the frame of each row, in order. Frames of a trajectory that follow each other are alike, so a twentieth of
        all frames is left out around the environment's own.
    numbers
        (n,) elements of the centres, if an environment is compared only with those of its own element.

    Returns
    -------
    float or None
        The median over at most 500 environments, in 1/Å; None if nothing follows from the rows: there is one frame, or
        all are copies of one environment.
    """
    from scipy.spatial.distance import cdist  # not above: runs start without scipy

    apart = max(1, -(-(int(frames.max(initial=0)) + 1) // 20))
    asked = np.sort(np.random.default_rng(0).permutation(len(rows))[:_SUGGESTED])
    query = np.asarray(rows[asked], np.float64)
    least = np.full(len(asked), np.inf)
    step = _CHUNK // _SUGGESTED
    for first in range(0, len(rows), step):
        some = slice(first, first + step)
        far = cdist(query, np.asarray(rows[some], np.float64))
        far[np.abs(frames[asked][:, None] - frames[some]) < apart] = np.inf
        if numbers is not None:
            far[numbers[asked][:, None] != numbers[some]] = np.inf
        np.minimum(least, far.min(axis=1), out=least)
    known = least[np.isfinite(least)]
    found = float(np.median(known)) if len(known) else 0.0
    return found if found > _COPIES else None


def _sum_without_copies(
    query: NDArray[np.float64],
    rows: NDArray[np.float64],
    bandwidths: NDArray[np.float64],
    tolerance: float,
    report: Report | None,
) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Return ln K (n_query, n_bandwidths) over rows farther than `tolerance`, their number, and the dimension."""
    centre = query.mean(axis=0)
    query = query - centre
    squared = (query**2).sum(axis=1)[:, None]
    out, counted = np.full((len(query), len(bandwidths)), -np.inf), np.zeros(len(query), np.int64)
    lowest, highest = np.full(query.shape[1], np.inf), np.full(query.shape[1], -np.inf)
    step = max(1, _CHUNK // len(query))
    for first in range(0, len(rows), step):
        some = check_rows("x", rows[first : first + step], np.float64) - centre
        lowest, highest = np.minimum(lowest, some.min(axis=0)), np.maximum(highest, some.max(axis=0))
        distances = squared - 2.0 * query @ some.T + (some**2).sum(axis=1)
        distances[distances <= tolerance**2] = np.inf
        counted += np.isfinite(distances).sum(axis=1)
        nearest = distances.min(axis=1, keepdims=True)
        nearest[~np.isfinite(nearest)] = 0.0
        distances -= nearest
        for k, bandwidth in enumerate(bandwidths.tolist()):
            with np.errstate(divide="ignore"):  # all rows of a chunk may be copies
                sums = np.log(np.exp(-0.5 / bandwidth**2 * distances).sum(axis=1))
            out[:, k] = np.logaddexp(out[:, k], sums - 0.5 * nearest[:, 0] / bandwidth**2)
        if report is not None:
            report(min(1.0, (first + step) / len(rows)))
    return out, counted, int(np.sum(highest - lowest > tolerance))


def _find_maximum(places: NDArray[np.float64], values: NDArray[np.float64], best: int) -> float:
    """Return exp of the place where the parabola through the best value and its neighbours has its maximum."""
    if best in (0, len(places) - 1):
        return float(np.exp(places[best]))
    left, right = places[best] - places[best - 1], places[best + 1] - places[best]
    up, down = (values[best] - values[best - 1]) / left, (values[best + 1] - values[best]) / right
    # The slope falls from `up` to `down` between the middles of the two intervals.
    step = 0.5 * (left + right) * up / (up - down) - 0.5 * left if up > down else 0.0
    return float(np.exp(places[best] + step))
