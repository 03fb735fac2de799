"""Broken frames, told from interesting ones: a frame that no physics can have made is no candidate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..descriptors import minimum_distances
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame
from ..index import Reference

__all__ = ["Plausibility"]

_NEVER_SEEN = 0.5  # Å; what atoms of a pair that never came near in the reference must keep
_EXPLODED = 8.0  # a cell may grow, or shrink, by this factor from the first frame on


class Plausibility:
    """Judge frames by the smallest distances of the reference and by the first frame of the run.

    Parameters
    ----------
    index
        Its `pair_distances` are the smallest distances that the reference holds.
    fraction
        Share of these below which two atoms overlap; 0 judges no distance.

    Attributes
    ----------
    screen
        Å; a frame without atoms nearer than this has no overlap.
    volume
        Å³, of the first frame; None before it.
    """

    def __init__(self, index: Reference, fraction: float) -> None:
        number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if not (number and 0.0 <= fraction <= 1.0):
            raise InputError(f"min_distance must be a share between 0 and 1, not {fraction!r}")
        self._index, self.fraction = index, float(fraction)
        self._limits: NDArray[np.float64] | None = None
        self.volume: float | None = None

    @property
    def limits(self) -> NDArray[np.float64]:
        """(n_elements, n_elements) distances (Å) that the atoms of each pair must keep."""
        if self._limits is None:
            distances = np.asarray(self._index.pair_distances, dtype=np.float64)
            self._limits = self.fraction * np.where(np.isfinite(distances), distances, _NEVER_SEEN)
        return self._limits

    @property
    def screen(self) -> float:
        return float(self.limits.max(initial=0.0)) if self.fraction else 0.0

    def overlap(self, frame: Frame) -> str:
        """Return which atoms of a frame are too near each other, in words; empty if none are."""
        known = np.array([SYMBOLS.index(symbol) for symbol in self._index.elements])
        kinds = np.searchsorted(known, frame.numbers)
        nearest = np.full(self.limits.shape, np.inf)
        minimum_distances(frame, self.screen, kinds, nearest)
        nearest = np.minimum(nearest, nearest.T)
        a, b = np.unravel_index(int(np.argmin(nearest - self.limits)), nearest.shape)
        if not nearest[a, b] < self.limits[a, b]:
            return ""
        pair = f"{self._index.elements[a]}-{self._index.elements[b]}"
        smallest = self._index.pair_distances[a, b]
        known_as = f"the reference's smallest is {smallest:.3g} Å" if np.isfinite(smallest) else "no reference has it"
        return f"two atoms {pair} are {nearest[a, b]:.3g} Å apart ({known_as})"

    def explosion(self, frame: Frame) -> str:
        """Return how the cell has exploded or collapsed since the first frame; empty if it has not."""
        if not np.all(frame.pbc):
            return ""
        volume = abs(float(np.linalg.det(np.asarray(frame.cell))))
        if self.volume is None:
            self.volume = volume
        factor = volume / self.volume
        return "" if 1 / _EXPLODED <= factor <= _EXPLODED else f"the cell has {factor:.3g} times its first volume"
