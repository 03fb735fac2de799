"""What a dataset holds: entropy, diversity, information gap, efficiency; and what of another one it covers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from ..comm import Comm, Serial
from ..errors import InputError
from ._chunks import Report, own_log_sums, set_of_rows
from ._sums import DEFAULT_BANDWIDTH, check_bandwidth, delta_entropy

__all__ = ["Information", "diversity", "entropy", "information", "information_at", "overlap"]


@dataclass(frozen=True)
class Information:
    """What a dataset of N environments holds, at one bandwidth; in nats.

    Attributes
    ----------
    n_env
        N.
    bandwidth
        h, in 1/Å.
    delta_entropy
        (n_env,) dH_i = −ln K_i of each environment against the whole dataset, itself included: 0 where it is alone.
    entropy
        H = ln N + mean of dH_i: 0 where all are the same, ln N where each is alone.
    diversity
        D = ln Σ_i exp(dH_i) = ln Σ_i 1/K_i: the logarithm of how many different environments there are, roughly.
    information_gap
        ln N − H: how much of what N environments could hold is redundancy.
    efficiency
        H / ln N; 1 for one environment, which has nothing that repeats it.
    """

    n_env: int
    bandwidth: float
    delta_entropy: NDArray[np.float64]
    entropy: float
    diversity: float
    information_gap: float
    efficiency: float

    @classmethod
    def from_delta_entropy(cls, dH: NDArray[np.float64], bandwidth: float) -> Information:
        """Return what the dH (n_env,) of a dataset against itself say."""
        most, mean = math.log(len(dH)), float(np.mean(dH))
        return cls(
            n_env=len(dH),
            bandwidth=float(bandwidth),
            delta_entropy=dH,
            entropy=most + mean,
            diversity=float(logsumexp(dH)),
            information_gap=0.0 - mean,  # and not −0
            efficiency=(most + mean) / most if len(dH) > 1 else 1.0,
        )


def information(
    x: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> Information:
    """Compute entropy, diversity, information gap and efficiency of a dataset, in one pass.

    Exact, and with a memory that is bounded: up to 1 048 576 rows are laid out as a whole (0.8 GB with 63 columns);
    more go through in chunks of 131 072, so `x` may be a ``numpy.memmap`` that is larger than memory. Whatever the
    ranks, the threads or where the rows are kept, every digit is the same.

    Parameters
    ----------
    x
        (n, d) descriptors, in 1/Å; the same on all ranks.
    bandwidth
        h, in 1/Å.
    threads
        Threads of each rank; None takes all cores, or one where there are several ranks.
    comm
        Ranks that share the work, and all get the result: ``quests_md.hosts.mpi.MpiComm``. Default: this one alone.
    report
        Called with the share of the work that is done, from time to time.

    Raises
    ------
    InputError
        `x` has no rows or another shape, a value is not finite or beyond 1e12 bandwidths, or the bandwidth is not a
        number between 1e-9 and 1e9.
    MonitorError
        Another rank failed.

    Notes
    -----
    H is that of arXiv:2404.12367; D that of ``quests.entropy.diversity``.
    """
    return information_at(x, [bandwidth], threads=threads, comm=comm, report=report)[0]


def information_at(
    x: ArrayLike,
    bandwidths: Sequence[float],
    *,
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> tuple[Information, ...]:
    """Compute what `information` does at several bandwidths; rows are read, checked and ordered once for all.

    Parameters
    ----------
    bandwidths
        h, in 1/Å: at least one.

    Returns
    -------
    tuple
        One `Information` for each bandwidth, in their order.
    """
    if not len(bandwidths):
        raise InputError("no bandwidth was given")
    for bandwidth in bandwidths:
        check_bandwidth(bandwidth)
    rows = set_of_rows(x)
    sums = own_log_sums(rows, bandwidths, comm=comm or Serial(), threads=threads, report=report)
    return tuple(Information.from_delta_entropy(0.0 - some, h) for some, h in zip(sums, bandwidths, strict=True))


def entropy(x: ArrayLike, bandwidth: float = DEFAULT_BANDWIDTH, *, threads: int | None = None) -> float:
    """Compute the entropy H = −(1/N) Σ_i ln(K_i/N) of a dataset (n, d) against itself, in nats.

    Parameters and errors are those of `quests_md.information.information`.
    """
    return information(x, bandwidth, threads=threads).entropy


def diversity(x: ArrayLike, bandwidth: float = DEFAULT_BANDWIDTH, *, threads: int | None = None) -> float:
    """Compute the diversity D = ln Σ_i 1/K_i of a dataset (n, d) against itself, in nats.

    Parameters and errors are those of `quests_md.information.information`.
    """
    return information(x, bandwidth, threads=threads).diversity


def overlap(
    query: ArrayLike,
    reference: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    threshold: float = 1e-5,
    *,
    threads: int | None = None,
) -> float:
    """Compute the fraction of query environments whose dH against a reference is below a threshold.

    Parameters
    ----------
    query, reference
        (n_query, d) and (n_reference, d) descriptors, in 1/Å.
    bandwidth
        h, in 1/Å.
    threshold
        In nats; 1e-5 is that of ``quests overlap``.

    Raises
    ------
    InputError
        As `delta_entropy`; no query; or the threshold is not a number.
    """
    if not math.isfinite(threshold):
        raise InputError(f"the threshold must be a number of nats, not {threshold!r}")
    dH = delta_entropy(query, reference, bandwidth, threads=threads)
    if not len(dH):
        raise InputError("query has no rows")
    return float(np.mean(dH < threshold))
