"""The protocol that the monitor takes instead of an `Index`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec

__all__ = ["Reference"]


class Reference(Protocol):
    """What a monitor needs of a reference. `Index` is one; a reference that grows during a run can be another."""

    spec: DescriptorSpec
    elements: tuple[str, ...]  # chemical symbols that the reference knows

    @property
    def ready(self) -> bool:
        """Whether it can be asked yet."""
        ...

    def log_kernel_sum(self, query: NDArray[np.float64], threads: int | None = None) -> NDArray[np.float64]:
        """Return ln K(q) of descriptor rows (n, d), exactly."""
        ...

    def exceeds(self, query: NDArray[np.float64], threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return whether dH(q) > threshold, always right."""
        ...

    def describe(self) -> dict[str, object]:
        """Return what a log must hold to tell which reference this was."""
        ...
