"""An order of rows in which neighbours stand together: blocks of it are small in space.

The rows are bisected across their longest axis, then each half across its own, down to `LEAF` rows. Parts are cut so
that every aligned range of LEAF·2^j places (the last one may be short) is one part: such ranges are the nodes of a
search tree and the blocks of a kernel sum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel

Array = NDArray[Any]

LEAF = 32
_SAMPLE = 128  # rows of a part that its axis is found from; with more of them parts are no smaller
_ITERATIONS = 6  # that the axis is a rough one costs speed only
_PAD = 16  # rows of the sample are padded to whole vectors


def order_of(rows: Array) -> Array:
    """Return the order (n,) of the rows (n, d), finite and of either precision.

    It depends on the rows only: not on threads, nor on a library of linear algebra.
    """
    n, d = rows.shape
    order = np.arange(n)
    sample = np.zeros((min(n, _SAMPLE), -(-d // _PAD) * _PAD))
    bisect(rows, order, sample, np.empty(n))
    return order


@kernel
def bisect(rows: Array, order: Array, sample: Array, along: Array) -> None:
    """Put `order` (n,), a permutation of places in `rows`, into the order of the parts.

    `sample` and `along` (n,) are room to work in.
    """
    axis = np.zeros(sample.shape[1])
    image = np.empty(sample.shape[1])
    begins, ends = np.empty(64, np.int64), np.empty(64, np.int64)  # the parts to cut; each cut halves, at least
    begins[0], ends[0], waiting = 0, len(order), 1
    while waiting:
        waiting -= 1
        begin, end = begins[waiting], ends[waiting]
        if end - begin <= LEAF:
            continue
        left = LEAF
        while 2 * left < end - begin:
            left *= 2
        _take_sample(rows, order[begin:end], sample)
        _longest_axis(sample[: min(len(sample), end - begin)], axis, image)
        _project(rows, order[begin:end], axis, along[begin:end])
        select(along[begin:end], order[begin:end], left)
        begins[waiting], ends[waiting] = begin + left, end
        begins[waiting + 1], ends[waiting + 1] = begin, begin + left
        waiting += 2


@kernel
def _take_sample(rows: Array, order: Array, sample: Array) -> None:
    """Fill the first rows of `sample` with rows evenly spread over `order`, less their mean."""
    n, d = len(order), rows.shape[1]
    count = min(len(sample), n)
    mean = np.zeros(d)
    for i in range(count):
        row = rows[order[i * n // count]]
        for c in range(d):
            sample[i, c] = row[c]
            mean[c] += row[c]
    for i in range(count):
        for c in range(d):
            sample[i, c] -= mean[c] / count


@kernel
def _longest_axis(sample: Array, axis: Array, image: Array) -> None:
    """Write the direction of the largest variance of `sample` (n, d) into `axis`, by power iteration.

    It begins with the row farthest from the mean, which is at right angles to the axis only by accident.
    """
    farthest, largest = 0, -1.0
    for i in range(len(sample)):
        squared = _dot(sample[i], sample[i])
        if squared > largest:
            farthest, largest = i, squared
    axis[:] = sample[farthest]
    for _ in range(_ITERATIONS):
        image[:] = 0.0
        for i in range(len(sample)):
            part = _dot(sample[i], axis)
            for c in range(len(image)):
                image[c] += part * sample[i, c]
        length = math.sqrt(_dot(image, image))
        if not 0.0 < length < np.inf:  # all rows are the same, or their squares overflow: any axis will do
            return
        axis[:] = image / length


def axes_of(rows: Array, count: int) -> Array:
    """Return the `count` longest axes (count, d), roughly, of rows (n, d): orthonormal, or zeros where none is left."""
    sample = np.zeros((min(len(rows), 2 * _SAMPLE), -(-rows.shape[1] // _PAD) * _PAD))
    axes = np.zeros((count, sample.shape[1]))
    if len(rows):
        _longest_axes(rows, np.arange(len(rows)), sample, axes)
    return np.ascontiguousarray(axes[:, : rows.shape[1]])


@kernel
def _longest_axes(rows: Array, order: Array, sample: Array, axes: Array) -> None:
    _take_sample(rows, order, sample)
    image = np.empty(axes.shape[1])
    for k in range(len(axes)):
        axis = axes[k]
        _longest_axis(sample, axis, image)
        length = math.sqrt(_dot(axis, axis))
        left = 1.0 if 0.0 < length < np.inf else 0.0
        axis *= left / max(length, 1e-300)
        for _ in range(2):  # the second time removes what rounding left
            for j in range(k):
                axis -= _dot(axis, axes[j]) * axes[j]
            length = math.sqrt(_dot(axis, axis))
            left *= length
            axis *= 1.0 / length if left > 1e-3 else 0.0
        for i in range(len(sample)):
            sample[i] -= _dot(sample[i], axis) * axis


@kernel
def _dot(a: Array, b: Array) -> float:
    total = 0.0
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@kernel
def _project(rows: Array, order: Array, axis: Array, along: Array) -> None:
    """Write the coordinate along `axis` of the rows in `order` into `along`."""
    for i in range(len(order)):
        row, total = rows[order[i]], 0.0
        for c in range(len(row)):
            total += row[c] * axis[c]
        along[i] = total


@kernel
def select(values: Array, order: Array, count: int) -> None:
    """Swap `values`, and `order` with them, until none of the first `count` is larger than any of the others.

    Hoare's quickselect, with the median of three as the pivot: equal values cost no more than others.
    """
    low, high = 0, len(values) - 1
    while low < high:
        a, b, c = values[low], values[(low + high) // 2], values[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if count <= j:
            high = j
        elif count >= i:
            low = i
        else:
            return
