"""The protocol that the monitor takes instead of an `Index`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec
from ..information import Precision

__all__ = ["Reference"]


class Reference(Protocol):
    """What a monitor needs of a reference. `Index` is one; a reference that grows during a run can be another."""

    @property
    def spec(self) -> DescriptorSpec:
        """What its rows are, and those of a query must be."""
        ...

    @property
    def bandwidth(self) -> float:
        """h, in 1/Å."""
        ...

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that the reference knows."""
        ...

    @property
    def pair_distances(self) -> NDArray[np.float32]:
        """(n_elements, n_elements) smallest distances (Å) that it holds."""
        ...

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Chemical symbols of the centres that it knows: with ``spec.by_centre`` no others can be asked about."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it can be asked yet."""
        ...

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Return ln K(q) of descriptor rows (n, d), exactly, to what the precision allows."""
        ...

    def upper_bound(
        self,
        query: NDArray[np.float64],
        threshold: float,
        memory: NDArray[np.int32] | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float64]:
        """Return certified upper bounds of dH(q): at most `threshold` exactly where dH(q) ≤ threshold, else above it.

        `memory` (n,) holds for every query what certified it last, −1 at first, and is updated: any value is right, a
        good one is fast.
        """
        ...

    def exceeds(self, query: NDArray[np.float64], threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return whether dH(q) > threshold, always right."""
        ...

    def describe(self) -> dict[str, object]:
        """Return what a log must hold to tell which reference this was."""
        ...
