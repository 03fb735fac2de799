"""Entropy, diversity and overlap of datasets; of random samples, with error bars; and learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..comm import Comm, Serial
from ..errors import InputError
from ..notebook import Shown, Table
from ._sums import (
    DEFAULT_BANDWIDTH,
    Precision,
    Report,
    as_rows,
    check_bandwidth,
    delta_entropy,
    find_undecided,
    sum_dataset,
)

__all__ = [
    "Information",
    "LearningCurve",
    "Sampled",
    "diversity",
    "entropy",
    "information",
    "information_at",
    "learning_curve",
    "overlap",
    "sample_entropy",
]


@dataclass(frozen=True, repr=False)
class Information(Shown):
    """Entropy and diversity of a dataset of N environments at one bandwidth, in nats.

    Attributes
    ----------
    n_env
        N.
    bandwidth
        h, in 1/Å.
    delta_entropy
        (n_env,) dH_i = −ln K_i of each environment against the whole dataset, itself included: 0 if it is alone.
    entropy
        H = ln N + mean of dH_i: 0 if all environments are the same, ln N if each is alone.
    diversity
        D = ln Σ_i exp(dH_i) = ln Σ_i 1/K_i: roughly the logarithm of the number of different environments.
    information_gap
        ln N − H: how far redundancy lowers the entropy below that of N different environments.
    efficiency
        H / ln N; 1 for a single environment.
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
        """Compute all values from the dH (n_env,) of a dataset against itself."""
        from scipy.special import logsumexp  # not above: runs start without scipy

        most, mean = math.log(len(dH)), float(np.mean(dH))
        return cls(
            n_env=len(dH),
            bandwidth=float(bandwidth),
            delta_entropy=dH,
            entropy=most + mean,
            diversity=float(logsumexp(dH)),
            information_gap=0.0 - mean,  # -mean could be −0
            efficiency=(most + mean) / most if len(dH) > 1 else 1.0,
        )


def information(
    x: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    precision: Precision = "double",
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> Information:
    """Compute entropy, diversity, information gap and efficiency of a dataset, in one pass.

    The result is exact, and the memory is bounded. Up to 1 048 576 rows are laid out as a whole (0.8 GB with 63
    columns). More rows are read in chunks of 131 072, so `x` may be a ``numpy.memmap`` that is larger than memory. No
    digit depends on the ranks, on the threads, or on whether `x` is mapped.

    Parameters
    ----------
    x
        (n, d) descriptors, in 1/Å; the same on all ranks.
    bandwidth
        h, in 1/Å.
    precision
        "double" (no dH errs by more than 1e-10·max(1, |dH|) nats), or "single" (max(1e-4, 1e-6·|dH|)).
        Neither H nor D errs by more than the largest dH.
    threads
        Threads of each rank; None takes all cores, or one thread if there are several ranks.
    comm
        The ranks that share the work (``quests_md.hosts.mpi.MpiComm``); all get the result. Default: this rank alone.
    report
        It is called from time to time with the share of the work that is done.

    Raises
    ------
    InputError
        `x` has no rows or another shape, a value is not finite or is beyond 1e12 bandwidths, or the bandwidth is not
        a number between 1e-9 and 1e9.
    MonitorError
        Another rank failed.

    Notes
    -----
    H is as in arXiv:2404.12367, and D as in ``quests.entropy.diversity``.
    """
    return information_at(x, [bandwidth], precision=precision, threads=threads, comm=comm, report=report)[0]


def information_at(
    x: ArrayLike,
    bandwidths: Sequence[float],
    *,
    precision: Precision = "double",
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> tuple[Information, ...]:
    """Compute what `information` does at several bandwidths. Rows are read, checked and ordered only once.

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
    rows = as_rows(x)
    sums = sum_dataset(rows, bandwidths, comm=comm or Serial(), threads=threads, report=report, precision=precision)
    return tuple(Information.from_delta_entropy(0.0 - some, h) for some, h in zip(sums, bandwidths, strict=True))


def entropy(
    x: ArrayLike, bandwidth: float = DEFAULT_BANDWIDTH, *, precision: Precision = "double", threads: int | None = None
) -> float:
    """Compute the entropy H = −(1/N) Σ_i ln(K_i/N) of a dataset (n, d) against itself, in nats.

    Parameters and errors are those of `quests_md.information.information`.
    """
    return information(x, bandwidth, precision=precision, threads=threads).entropy


def diversity(
    x: ArrayLike, bandwidth: float = DEFAULT_BANDWIDTH, *, precision: Precision = "double", threads: int | None = None
) -> float:
    """Compute the diversity D = ln Σ_i 1/K_i of a dataset (n, d) against itself, in nats.

    Parameters and errors are those of `quests_md.information.information`.
    """
    return information(x, bandwidth, precision=precision, threads=threads).diversity


def overlap(
    query: ArrayLike,
    reference: ArrayLike,
    bandwidth: float = DEFAULT_BANDWIDTH,
    threshold: float = 1e-5,
    *,
    precision: Precision = "double",
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
        In nats. ``quests overlap`` has 1e-5 too.
    precision
        As in `information`. A dH whose error leaves open on which side of the threshold it is, is computed again in
        double precision: so the result does not depend on `precision`.

    Raises
    ------
    InputError
        As in `delta_entropy`; there is no query; or the threshold is not a number.
    """
    if not math.isfinite(threshold):
        raise InputError(f"the threshold must be a number of nats, not {threshold!r}")
    dH = delta_entropy(query, reference, bandwidth, precision=precision, threads=threads)
    open_ = find_undecided(dH, [threshold], precision)
    if len(open_):
        dH[open_] = delta_entropy(np.asarray(query)[open_], reference, bandwidth, threads=threads)
    if not len(dH):
        raise InputError("query has no rows")
    return float(np.mean(dH < threshold))


# -- samples and learning curves ---------------------------------------------------------------------------------------

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, repr=False)
class Sampled(Shown):
    """Entropies and diversities of random samples of one size, in nats.

    Attributes
    ----------
    size
        Environments of a sample.
    n_env
        Environments of the dataset that the samples were drawn from.
    bandwidth
        h, in 1/Å.
    entropies, diversities
        (runs,) H and D of each sample.
    replace
        Whether a sample may hold an environment twice.
    mean, std
        Mean of the entropies, and their standard deviation (divided by runs − 1); nan for one run.
    standard_error
        Standard error of the mean, std / √runs, over samples of this size from this dataset.
    mean_diversity, std_diversity
        Mean and standard deviation of the diversities.
    """

    size: int
    n_env: int
    bandwidth: float
    entropies: NDArray[np.float64]
    diversities: NDArray[np.float64]
    replace: bool

    @property
    def mean(self) -> float:
        """Mean entropy of the samples."""
        return float(self.entropies.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the entropy between samples (divided by runs − 1); nan for one run."""
        return _std(self.entropies)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean entropy, std / √runs, over samples of this size from this dataset."""
        return self.std / math.sqrt(len(self.entropies))

    @property
    def mean_diversity(self) -> float:
        """Mean diversity of the samples."""
        return float(self.diversities.mean())

    @property
    def std_diversity(self) -> float:
        """Standard deviation of the diversity between samples; nan for one run."""
        return _std(self.diversities)


@dataclass(frozen=True, repr=False)
class LearningCurve(Table):
    """The entropy of samples of a dataset, by the share of the dataset that a sample holds.

    Attributes
    ----------
    fractions
        (m,) shares of the dataset.
    samples
        (m,) the samples of each share.
    sizes
        (m,) environments of a sample.
    mean, std, standard_error
        (m,) of the entropies at each share, in nats.
    """

    _COLUMNS = ("fractions", "sizes", "mean", "std", "standard_error")

    fractions: NDArray[np.float64]
    samples: tuple[Sampled, ...]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(m,) environments of a sample."""
        return np.array([some.size for some in self.samples])

    @property
    def mean(self) -> NDArray[np.float64]:
        """(m,) mean entropy, in nats."""
        return np.array([some.mean for some in self.samples])

    @property
    def std(self) -> NDArray[np.float64]:
        """(m,) standard deviation of the entropy between samples, in nats."""
        return np.array([some.std for some in self.samples])

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """(m,) standard error of the mean entropy, in nats."""
        return np.array([some.standard_error for some in self.samples])


def sample_entropy(
    x: ArrayLike,
    size: int,
    runs: int = 3,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    seed: int | np.random.Generator = 0,
    replace: bool = False,
    precision: Precision = "double",
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> Sampled:
    """Compute the entropy and the diversity of random samples of a dataset.

    A sample is ``generator.choice(n, size, replace=replace)``, with one generator for all runs. ``quests`` draws with
    replacement: then rows repeat and lower the entropy, by 0.3 nats if each row is alone and `size` is n.

    Parameters
    ----------
    x
        (n, d) descriptors, in 1/Å.
    size
        Environments of each sample; at most n without `replace`.
    runs
        Number of samples.
    bandwidth
        h, in 1/Å.
    seed
        The seed of the generator, ``numpy.random.default_rng(seed)``.
    replace
        Draw with replacement.
    precision
        As in `information`.
    threads, comm
        As in `information`. The result does not depend on them.
    report
        It is called from time to time with the share of the work that is done.

    Raises
    ------
    InputError
        As in `information`; or `size` or `runs` is out of range.
    """
    rows = as_rows(x)
    check_bandwidth(bandwidth)
    most = None if replace else len(rows)
    if not _is_whole(size) or size < 1 or (most is not None and size > most):
        limit = "" if most is None else f" and at most {most}, the number of rows (more only with replacement)"
        raise InputError(f"the size of a sample must be a whole number of at least 1{limit}, not {size!r}")
    if not _is_whole(runs) or runs < 1:
        raise InputError(f"the number of runs must be a whole number of at least 1, not {runs!r}")
    generator = np.random.default_rng(seed)
    found = []
    for run in range(runs):
        # Sorted: a mapped file is read from one end to the other.
        chosen = np.sort(generator.choice(len(rows), size, replace=replace))
        found.append(information(rows[chosen], bandwidth, precision=precision, threads=threads, comm=comm))
        if report is not None:
            report((run + 1) / runs)
    return Sampled(
        size=int(size),
        n_env=len(rows),
        bandwidth=float(bandwidth),
        entropies=np.array([some.entropy for some in found]),
        diversities=np.array([some.diversity for some in found]),
        replace=replace,
    )


def learning_curve(
    x: ArrayLike,
    fractions: Sequence[float] = FRACTIONS,
    runs: int = 3,
    bandwidth: float = DEFAULT_BANDWIDTH,
    *,
    seed: int | np.random.Generator = 0,
    replace: bool = False,
    precision: Precision = "double",
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> LearningCurve:
    """Compute the entropy of samples of growing size. If the curve is flat at its end, more of the same adds nothing.

    Parameters
    ----------
    fractions
        Shares of the dataset, above 0 and at most 1; a sample has ``int(fraction · n)`` rows, as in ``quests``.
    x, runs, bandwidth, seed, replace, precision, threads, comm, report
        As in `sample_entropy`. One generator serves all shares, in their order.

    Raises
    ------
    InputError
        As in `sample_entropy`; or a share is out of range, or so small that it has no row.
    """
    rows, generator, samples = as_rows(x), np.random.default_rng(seed), []
    for fraction in fractions:
        if not 0.0 < fraction <= 1.0:
            raise InputError(f"a share of a dataset must be above 0 and at most 1, not {fraction!r}")
        if int(fraction * len(rows)) == 0:
            raise InputError(f"a share of {fraction:g} of {len(rows)} rows is none: give a larger one")
    work = np.cumsum([0.0, *(float(fraction) ** 2 for fraction in fractions)])
    for i, fraction in enumerate(fractions):
        size = int(fraction * len(rows))
        samples.append(
            sample_entropy(
                rows,
                size,
                runs,
                bandwidth,
                seed=generator,
                replace=replace,
                precision=precision,
                threads=threads,
                comm=comm,
            )
        )
        if report is not None:
            report(float(work[i + 1] / work[-1]))
    return LearningCurve(np.array(fractions, dtype=np.float64), tuple(samples))


def _std(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
