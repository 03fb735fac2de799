"""The integrated correlation time of a series: known ones, noise, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quests_md.index._calibration import compute_integrated_time


@pytest.mark.parametrize("memory", [2.0, 5.0, 20.0])
def test_the_time_of_a_process_with_a_known_one(memory):
    keep, rng = math.exp(-1.0 / memory), np.random.default_rng(1)
    series = np.zeros((20_000, 3))
    for i in range(1, len(series)):
        series[i] = keep * series[i - 1] + math.sqrt(1 - keep**2) * rng.normal(size=3)
    assert compute_integrated_time(series) == pytest.approx(0.5 + keep / (1 - keep), rel=0.2)


def test_the_time_of_noise_is_half_a_step():
    assert compute_integrated_time(np.random.default_rng(0).normal(size=(5000, 4))) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_a_trend_is_longer_than_a_tenth(n):
    assert compute_integrated_time(np.arange(n, dtype=float)[:, None]) > n / 10
    assert compute_integrated_time(np.ones((n, 2))) == n
