"""An index of own descriptors with the function that computes them: so that a monitor can watch frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import OwnDescriptors
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame
from ..information import Precision
from ..own_function import OwnFunction
from ._index import Index
from ._thresholds import Calibration

__all__ = ["Described"]


class Described:
    """An index of own descriptors and the function that computes them of a frame: so that frames can be watched.

    Give it to a `Monitor`, or in the place of an index to ``attach`` and `Session.from_config`. In a configuration the
    key `describe` makes it.

    Parameters
    ----------
    index
        An index of own descriptors (`Index.from_descriptors`).
    describe
        A function of a `Frame`, which has no ghosts and no sites without an element. It returns the rows (n, d) of all
        atoms, in their order, made in the way of those in the index. It may keep the frame: the arrays are copies.
    name
        What logs and messages call the function. A resumed run must have one of the same name. Default: its module
        and its name.

    Raises
    ------
    InputError
        The index was built of frames, or `describe` cannot be called.
    """

    ready = True  # an index can always answer

    def __init__(self, index: Index, describe: Callable[[Frame], Any], name: str | None = None) -> None:
        if not isinstance(index.descriptor, OwnDescriptors):
            raise InputError(
                f"describe is for an index of own descriptors, and {index.path or 'the index'} was built of frames: "
                "it computes its own rows, so leave describe out"
            )
        if not callable(describe):
            raise InputError(f"describe must be a function of a Frame, not {describe!r}")
        if name is None:
            name = f"{getattr(describe, '__module__', '')}:{getattr(describe, '__qualname__', type(describe).__name__)}"
        self.index = index
        own = index.descriptor
        self.spec = OwnFunction(own.name, own.width, describe, name)

    def __repr__(self) -> str:
        """Return one line that says what it is."""
        return f"<Described by {self.spec.called}: {self.index!r}>"

    @property
    def bandwidth(self) -> float:
        """h, in the unit of the rows."""
        return self.index.bandwidth

    @property
    def elements(self) -> tuple[str, ...]:
        """Every chemical symbol: own rows do not tell which elements the reference has."""
        return SYMBOLS[1:]

    @property
    def centre_elements(self) -> tuple[str, ...]:
        """Every chemical symbol, too."""
        return SYMBOLS[1:]

    @cached_property
    def pair_distances(self) -> NDArray[np.float32]:
        """(n_elements, n_elements) inf: own rows do not tell distances either."""
        return np.full((len(self.elements),) * 2, np.inf, np.float32)

    @property
    def calibration(self) -> Calibration | None:
        """That of the index."""
        return self.index.calibration

    @property
    def path(self) -> Path | None:
        """The file of the index."""
        return self.index.path

    @property
    def hash(self) -> str | None:
        """The hash of the index."""
        return self.index.hash

    def describe(self) -> dict[str, object]:
        """Return what tells this reference from others, for logs."""
        return {**self.index.describe(), "describe": self.spec.called}

    def check_elements(self, numbers: NDArray[Any]) -> None:
        """Do nothing: which elements there may be is up to the function."""

    def require(self, *, k: int | None = None, cutoff: float | None = None) -> None:
        """Raise `InputError` if a `k` or a `cutoff` is asked for, which own descriptors do not have."""
        self.index.require(k=k, cutoff=cutoff)

    def log_kernel_sum(
        self, query: NDArray[np.float64], threads: int | None = None, *, precision: Precision = "double"
    ) -> NDArray[np.float64]:
        """Return ln K(q) of rows (n, d), as `Index.log_kernel_sum` does."""
        return self.index.log_kernel_sum(query, threads, precision=precision)

    def upper_bound(
        self,
        query: NDArray[np.float64],
        threshold: float,
        memory: NDArray[np.int32] | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float64]:
        """Return certified upper bounds of dH(q), as `Index.upper_bound` does."""
        return self.index.upper_bound(query, threshold, memory, threads)

    def search(
        self, query: NDArray[np.float64], threshold: float, memory: NDArray[np.int32], threads: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bounds and guesses of dH(q), as `Index.search` does."""
        return self.index.search(query, threshold, memory, threads)

    def exceeds(self, query: NDArray[np.float64], threshold: float, threads: int | None = None) -> NDArray[np.bool_]:
        """Return whether dH(q) > threshold. The answer is always right."""
        return self.index.exceeds(query, threshold, threads)
