"""Entropies of samples of a dataset: with error bars, and against the size of the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..comm import Comm
from ..errors import InputError
from ._chunks import Report, set_of_rows
from ._information import information
from ._sums import DEFAULT_BANDWIDTH, check_bandwidth

__all__ = ["LearningCurve", "Sampled", "learning_curve", "sample_entropy"]

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Sampled:
    """Entropies of samples of as many environments each, in nats.

    Attributes
    ----------
    size
        Environments of a sample.
    n_env
        Environments of the dataset they were drawn from.
    bandwidth
        h, in 1/Å.
    entropies, diversities
        (runs,) H and D of each sample.
    replace
        Whether a sample may hold an environment twice.
    mean, std
        Mean of the entropies, and their standard deviation with runs − 1 below; nan for one run.
    standard_error
        That of the mean, std / √runs: over samples of this size from this dataset.
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
        """Standard deviation of the entropy from sample to sample, with runs − 1 below; nan for one run."""
        return _std(self.entropies)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean entropy, std / √runs: over samples of this size from this dataset."""
        return self.std / math.sqrt(len(self.entropies))

    @property
    def mean_diversity(self) -> float:
        """Mean diversity of the samples."""
        return float(self.diversities.mean())

    @property
    def std_diversity(self) -> float:
        """Standard deviation of the diversity from sample to sample; nan for one run."""
        return _std(self.diversities)


@dataclass(frozen=True)
class LearningCurve:
    """How the entropy of a dataset grows with the share of it that is taken.

    Attributes
    ----------
    fractions
        (m,) shares of the dataset.
    samples
        (m,) the samples of each.
    sizes
        (m,) environments of a sample.
    mean, std, standard_error
        (m,) those of the entropies of each, in nats.
    """

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
        """(m,) standard deviation of the entropy from sample to sample, in nats."""
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
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> Sampled:
    """Compute the entropy and the diversity of random samples of a dataset.

    A sample is ``generator.choice(n, size, replace=replace)``, of one generator for all runs. ``quests`` draws with
    replacement: repeated rows lower the entropy, which is 0.3 nats where each is alone and `size` is n.

    Parameters
    ----------
    x
        (n, d) descriptors, in 1/Å.
    size
        Environments of each sample, at most n unless `replace`.
    runs
        Number of samples.
    bandwidth
        h, in 1/Å.
    seed
        Of the generator, ``numpy.random.default_rng(seed)``.
    replace
        Draw with replacement.
    threads, comm
        As in `information`. The result does not depend on them.
    report
        Called with the share of the work that is done, from time to time.

    Raises
    ------
    InputError
        As `information`; or `size` or `runs` is out of range.
    """
    rows = set_of_rows(x)
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
        # In their order: a mapped file is read from one end to the other.
        chosen = np.sort(generator.choice(len(rows), size, replace=replace))
        found.append(information(rows[chosen], bandwidth, threads=threads, comm=comm))
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
    threads: int | None = None,
    comm: Comm | None = None,
    report: Report | None = None,
) -> LearningCurve:
    """Compute the entropy of samples of growing size: a curve that is flat at its end has nothing more to learn.

    Parameters
    ----------
    fractions
        Shares of the dataset, above 0 and at most 1; a sample has ``int(fraction · n)`` rows, as in ``quests``.
    x, runs, bandwidth, seed, replace, threads, comm, report
        As in `sample_entropy`; one generator serves all shares, in their order.

    Raises
    ------
    InputError
        As `sample_entropy`; or a share is out of range or comes to no row.
    """
    rows, generator, samples = set_of_rows(x), np.random.default_rng(seed), []
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
