"""Which atoms are bonded, and which are too near each other. The core imports no ase, so it has its own radii."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..descriptors import minimum_distances
from ..elements import SYMBOLS
from ..frame import Frame
from ..index import Index

__all__ = ["COVALENT", "formula_of", "smallest_distances"]

# Covalent radii in Å, by atomic number: B. Cordero et al., Dalton Trans. 2832 (2008); 2 Å where that has none.
_RADII = """
0.20 0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02
1.06 2.03 1.76 1.70 1.60 1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20
1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46 1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39
1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92 1.92 1.89 1.90 1.87 1.87
1.75 1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50 2.60 2.21 2.15
2.06 2.00 1.96 1.90 1.87 1.80 1.69
"""
COVALENT: NDArray[np.float64] = np.full(len(SYMBOLS), 2.0)
COVALENT[: len(_RADII.split())] = np.array(_RADII.split(), dtype=np.float64)


def smallest_distances(frame: Frame, cutoff: float, index: Index | None) -> NDArray[np.float64]:
    """Return the smallest distance (Å) known of each pair of elements, (119, 119) by atomic number.

    It is that of the index, else that in the frame; of a pair that neither has seen, the sum of the covalent radii.
    """
    out = np.full((len(SYMBOLS), len(SYMBOLS)), np.inf)
    if index is None:
        minimum_distances(frame, cutoff, frame.numbers, out)
        out = np.minimum(out, out.T)
    else:
        known = [SYMBOLS.index(symbol) for symbol in index.elements]
        out[np.ix_(known, known)] = index.pair_distances
    sums = COVALENT[:, None] + COVALENT[None, :]
    return np.where(np.isfinite(out), out, sums)


def formula_of(numbers: NDArray[np.int64]) -> str:
    """Return how many atoms there are of each element, by atomic number: ``O64 Si32``."""
    values, counts = np.unique(numbers, return_counts=True)
    return " ".join(f"{SYMBOLS[z]}{n}" for z, n in zip(values, counts, strict=True))
