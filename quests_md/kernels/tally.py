"""What a rank tells the others of a frame, in one pass over the atoms: counts, the maximum, a histogram of the sample,
and the mark of the configuration (two numbers that are the same for the same atoms at the same places).

An evaluation of few atoms takes as long as the Python around it. So each of these is one call, where arrays of numpy
would take ten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel

__all__ = ["add_mark", "choose", "count", "find_largest", "mark_sample", "quantiles", "recall", "settle", "unite"]

Array = NDArray[Any]

WHOLE = 1 << 32  # the hash of an id is below this


@inlined
def _hash(number):  # type: ignore[no-untyped-def]
    """Return a whole number below `WHOLE` that looks random and follows from another one."""
    mixed = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return np.int64(mixed >> np.uint64(32))


@kernel
def mark_sample(ids: Array, low: int, width: int, sample: Array) -> None:
    """Mark in `sample` the atoms whose hash lies in the window of a `width` from `low` on, which goes round at the end.

    The id alone decides, so neither the order of the atoms nor their rank matters.
    """
    for i in range(len(ids)):
        sample[i] = (_hash(ids[i]) - low) % WHOLE < width


@kernel
def choose(ids: Array, sample: Array, suspects: Array, out: Array) -> tuple[int, int]:
    """Write the places of the atoms that are in the sample or among the ids `suspects` into `out`.

    It returns how many these are, and the largest of all ids.
    """
    n, largest = 0, -1
    for i in range(len(ids)):
        largest = max(largest, ids[i])
        wanted = sample[i]
        for suspect in suspects:
            wanted |= ids[i] == suspect
        if wanted:
            out[n] = i
            n += 1
    return n, largest


@kernel
def recall(ids: Array, hints: Array, memory: Array) -> None:
    """Copy the hint of each atom from its slot, ``id & (size - 1)``, into `memory`."""
    for i in range(len(ids)):
        memory[i] = hints[ids[i] & (len(hints) - 1)]


@kernel
def settle(
    bounds: Array, threshold: float, ids: Array, memory: Array, hints: Array, is_exact: Array, dH: Array, above: Array
) -> int:
    """Write bounds into `dH` where that is not exact, and what certified them into the slots of their atoms.

    The places of those that are not at most the threshold go into `above`; return how many. A query that was not
    decided may be, next time, because the threshold moves with the maximum: so it leaves no hint.
    """
    n = 0
    for i in range(len(bounds)):
        hints[ids[i] & (len(hints) - 1)] = max(memory[i], -1)
        if is_exact[i]:
            continue
        dH[i] = bounds[i]
        if not bounds[i] <= threshold:
            above[n] = i
            n += 1
    return n


@kernel
def find_largest(dH: Array, is_exact: Array, ids: Array, threshold: float, out: Array) -> tuple[int, int]:
    """Write the ids of the largest exact values into `out`; return how many, and how many values lie above a threshold.

    Of equal values the smaller id goes first, so that the order of the atoms does not matter.
    """
    n, n_above = 0, 0
    best = np.empty(len(out))
    for i in range(len(dH)):
        n_above += dH[i] > threshold
        if not is_exact[i]:
            continue
        place = n
        while place > 0 and (dH[i] > best[place - 1] or (dH[i] == best[place - 1] and ids[i] < out[place - 1])):
            if place < len(out):
                best[place], out[place] = best[place - 1], out[place - 1]
            place -= 1
        if place < len(out):
            best[place], out[place] = dH[i], ids[i]
            n = min(n + 1, len(out))
    return n, n_above


@kernel
def count(
    dH: Array, ids: Array, numbers: Array, select: Array, halt: Array, sample: Array, edges: Array, histogram: Array
) -> tuple[float, int, int, int, int, float]:
    """Add the dH of the sample to `histogram`; return the maximum and its id, two counts, size and sum of the sample.

    The counts are of atoms above `select` and above `halt`, which hold a threshold for each of `numbers`. Of equal
    maxima the smallest id counts, so that the order of the atoms does not matter. An empty `sample` stands for all
    atoms. A bin begins at its edge; the first and the last take what lies beyond.
    """
    maximum, max_id, n_select, n_halt, size, total = -np.inf, -1, 0, 0, 0, 0.0
    for i in range(len(dH)):
        value, z = dH[i], numbers[i]
        if i == 0 or value > maximum or (value == maximum and ids[i] < max_id):
            maximum, max_id = value, ids[i]
        n_select += value > select[z]
        n_halt += value > halt[z]
        if len(sample) > 0 and not sample[i]:
            continue
        size += 1
        total += value
        low, high = 0, len(histogram) - 1
        while low < high:
            middle = (low + high) // 2
            if value >= edges[middle + 1]:
                low = middle + 1
            else:
                high = middle
        histogram[low] += 1.0
    return maximum, max_id, n_select, n_halt, size, total


@kernel
def unite(counts: Array, maxima: Array, high: Array, low: Array) -> tuple[float, int]:
    """Return the largest of the ranks' maxima, and the smallest id that has it; an id comes in two halves.

    A rank without atoms has −inf for its maximum. But a rank with atoms may have it, too.
    """
    maximum, max_id = -np.inf, -1
    has_any = False
    for rank in range(len(counts)):
        if counts[rank] <= 0.0:
            continue
        number = (int(high[rank]) << 32) | int(low[rank])
        if not has_any or maxima[rank] > maximum or (maxima[rank] == maximum and number < max_id):
            maximum, max_id, has_any = maxima[rank], number, True
    return maximum, max_id


@kernel
def quantiles(histogram: Array, edges: Array, shares: Array, highest: float, out: Array) -> None:
    """Write quantiles of a histogram into `out`: linear within a bin, and never above `highest`; nan if it is empty."""
    total = 0.0
    for b in range(len(histogram)):
        total += histogram[b]
    for i in range(len(shares)):
        out[i] = np.nan
        below = 0.0
        for b in range(len(histogram)):
            if total > 0.0 and below + histogram[b] >= shares[i] * total:
                share = (shares[i] * total - below) / histogram[b]
                out[i] = min(highest, edges[b] + share * (edges[b + 1] - edges[b]))
                break
            below += histogram[b]


# -- the mark of a configuration ---------------------------------------------------------------------------------------

_BYTE = np.uint64(255)


@inlined
def _hash_to_bytes(number):  # type: ignore[no-untyped-def]
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
        even, odd = (
            _hash_to_bytes(2 * ids[atom]),
            _hash_to_bytes(2 * ids[atom] + 1),
        )  # factors of the even and of the odd terms
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
