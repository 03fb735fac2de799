"""The order of rows: a permutation, whose aligned ranges are small in space."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from quests_md.kernels.blocks import LEAF, order_of, select


def rows_of(n, d=20, seed=0, dtype=np.float64):
    """Return rows whose variance differs between directions, in clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, d))
    return (centres[rng.integers(7, size=n)] + rng.normal(size=(n, d)) / np.arange(1, d + 1)).astype(dtype)


def mean_squared_radius(rows, order, size):
    """Return the mean squared distance of rows from the mean of the range of `size` places that they stand in."""
    parts = [rows[order[first : first + size]].astype(float) for first in range(0, len(rows), size)]
    return sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts) / len(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, LEAF, LEAF + 1, 2 * LEAF, 1000, 4096, 5000])
def test_it_is_a_permutation_and_the_same_every_time(n, dtype):
    rows = rows_of(n, dtype=dtype)
    order = order_of(rows)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, order_of(rows.copy()))


@pytest.mark.parametrize("n", [100, 1000, 4096, 5000])
def test_every_aligned_range_is_one_part(n):
    """Of numbers on a line a part is an interval: no other number lies in it."""
    values = np.random.default_rng(n).permutation(n).astype(float)
    order = order_of(values[:, None])
    size = LEAF
    while size < 2 * n:
        for first in range(0, n, size):
            part = values[order[first : first + size]]
            assert np.ptp(part) == len(part) - 1
        size *= 2


@pytest.mark.parametrize("size", [32, 64, 256, 2048])
def test_parts_are_as_small_as_those_of_the_naive_twin(size):
    rows = rows_of(6000)
    mine, twin, none = (
        mean_squared_radius(rows, order, size) for order in (order_of(rows), naive.order_of(rows), np.arange(6000))
    )
    assert mine < 1.03 * twin
    assert mine < (0.8 if size == 2048 else 0.5) * none


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((500, 3)),
        np.repeat(np.eye(3), 200, axis=0),
        np.full((300, 2), 1e200) * np.arange(2),
        np.full((300, 2), 1e308),
        np.empty((50, 0)),
    ],
    ids=["all the same", "few different", "squares overflow", "sums overflow", "no columns"],
)
def test_rows_without_an_axis_are_no_trouble(rows):
    assert np.array_equal(np.sort(order_of(rows)), np.arange(len(rows)))


@pytest.mark.parametrize("values", [np.arange(50.0), -np.arange(50.0), np.zeros(50), np.arange(50.0) % 3, np.ones(1)])
def test_the_smallest_are_selected(values):
    for count in range(len(values) + 1):
        chosen, order = values.copy(), np.arange(len(values))
        select(chosen, order, count)
        assert np.array_equal(chosen, values[order])
        assert np.array_equal(np.sort(chosen[:count]), np.sort(values)[:count])
