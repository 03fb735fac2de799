"""The mark of a configuration: two numbers that are the same for the same atoms at the same places."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel

__all__ = ["add_mark"]

Array = NDArray[Any]


_BYTE = np.uint64(255)


@inlined
def _hash(number):  # type: ignore[no-untyped-def]
    """Return eight bytes that look random and follow from a whole number: the same on every rank."""
    mixed = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


@inlined
def _factor(mixed, byte):  # type: ignore[no-untyped-def]
    """Return a factor between 0.5 and 1.5 from one of the eight bytes."""
    return 0.5 + np.float64(np.int64((mixed >> np.uint64(8 * byte)) & _BYTE)) / 256.0


@kernel
def add_mark(positions: Array, numbers: Array, ids: Array, inverse: Array, pbc: Array, mark: Array) -> None:
    """Add these atoms to ``mark`` (2,). It is a sum over atoms, so neither their order nor their rank matters.

    ``inverse`` (3, 3) turns positions into fractional coordinates s. They enter as s(1−s) and s(1−s)(1−2s). Both are
    smooth across the face of a periodic cell, so nothing changes if an atom moves by a whole cell vector. The two have
    no flat point in common, and each atom has its own factors, so every other move changes a sum.
    """
    for atom in range(len(positions)):
        x, y, z = positions[atom, 0], positions[atom, 1], positions[atom, 2]
        even, odd = _hash(2 * ids[atom]), _hash(2 * ids[atom] + 1)  # factors of the even and of the odd terms
        for axis in range(3):
            s = x * inverse[0, axis] + y * inverse[1, axis] + z * inverse[2, axis]
            if pbc[axis]:
                s -= np.floor(s)
            bump = s * (1.0 - s)
            wave = bump * (1.0 - 2.0 * s)
            mark[0] += _factor(even, 2 * axis) * bump + _factor(odd, 2 * axis) * wave
            mark[1] += _factor(even, 2 * axis + 1) * bump - _factor(odd, 2 * axis + 1) * wave
        kind = numbers[atom] / 16.0
        mark[0] += _factor(even, 6) * kind
        mark[1] += _factor(even, 7) * kind
