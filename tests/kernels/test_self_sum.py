"""Kernel sums of a dataset against itself, every pair once: against the naive twin, on both paths."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from rounding import assert_promised

from quests_md.comm import Serial
from quests_md.information import _sums, log_kernel_sum, pack
from quests_md.kernels import self_sum
from quests_md.kernels.blocks import TILE, empty_blocks, order_of
from quests_md.kernels.blocks import pack as fill


def dataset(n, width=63, seed=0):
    """Return rows of several kinds, as a training set has: some dense, some spread, some far away, some twice."""
    rng = np.random.default_rng(seed)
    spread = rng.choice([0.002, 0.01, 0.1], (n, 1))
    rows = np.linspace(0.4, 0.0, width) + rng.normal(0.0, 1.0, (n, width)) * spread + rng.integers(0, 2, (n, 1))
    rows[n // 2 : n // 2 + n // 8] = rows[: n // 8]
    return rows


def own(rows, bandwidth, threads=None):
    (sums,) = _sums.sum_pairs(rows, [bandwidth], comm=Serial(), threads=threads)
    return sums


@pytest.mark.parametrize("n", [1, 2, TILE - 1, TILE, TILE + 1, 5 * TILE + 3])
@pytest.mark.parametrize("width", [1, 63])
def test_sums_agree_with_the_naive_twin(n, width):
    rows = dataset(n, width)
    for bandwidth in (0.002, 0.015, 0.1):
        assert_promised(own(rows, bandwidth), naive.log_kernel_sum(rows, rows, bandwidth))


def test_sums_agree_with_those_of_queries_and_references():
    rows = dataset(9000)
    assert_promised(own(rows, 0.015), log_kernel_sum(rows, rows, 0.015))


def test_blocks_too_wide_for_products_are_summed_by_differences():
    rng = np.random.default_rng(2)
    rows = rng.normal(0.0, 300.0, (400, 9))
    rows = np.concatenate([rows, rows + rng.normal(0.0, 0.01, rows.shape)])
    blocks = pack(rows, 0.015)
    assert (
        blocks.of_norms * 0.5 * blocks.scale * blocks.radius[: len(blocks.tiles)].min() ** 2 > 1e3 * blocks.tolerance[0]
    )
    assert_promised(own(rows, 0.015), naive.log_kernel_sum(rows, rows, 0.015))


def test_plain_loops_give_the_same():
    rows = dataset(3 * TILE + 5)
    blocks = empty_blocks(rows, order_of(rows), 0.015, np.float64, False, True, np.empty(0))
    fill(blocks, 0, len(blocks.tiles))
    sums = np.zeros((len(blocks.tiles), TILE))
    self_sum.add_strip(blocks, 1, 0, len(blocks.tiles), sums)
    found = np.empty(len(rows))
    found[blocks.order] = np.log(sums.ravel()[: len(rows)])
    assert_promised(found, own(rows, 0.015))


def test_threads_change_no_digit():
    rows = dataset(6 * TILE + 1)
    assert (own(rows, 0.015, threads=1) == own(rows, 0.015, threads=3)).all()


@pytest.mark.parametrize("n", [1, TILE, 2 * TILE + 1, 50 * TILE, 1_000_000])
def test_strips_hold_every_block_once_and_about_as_many_pairs(n):
    strips, blocks = self_sum.strips(n), -(-n // TILE)
    assert [block for first, last in strips for block in range(first, last)] == list(range(blocks))
    pairs = [sum(blocks - i for i in range(first, last)) for first, last in strips]
    assert len(strips) <= 32
    assert max(pairs) <= blocks * (blocks + 1) / 2 / len(strips) + 2 * blocks
