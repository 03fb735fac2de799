"""The pictures of datasets hold what was computed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quests_md.errors import InputError
from quests_md.information import information_at, learning_curve, likelihood_bandwidth, sample_entropy
from quests_md.report import entropies, histogram, likelihood
from quests_md.report import learning_curve as draw_curve

X = np.random.default_rng(1).random((40, 6)) / 30


def test_histogram_has_all_environments_and_says_what_is_above() -> None:
    dH = np.array([-1.0, 0.0, 2.0, 3.0, np.inf, 8.0])
    above, below = histogram(dH, [2.5], frame_offsets=np.array([0, 2, 2, 6])).axes
    (steps,) = above.patches
    assert np.sum(steps.get_data().values) == pytest.approx(100 * 5 / 6)  # what is infinite has no place
    assert [text.get_text() for text in above.texts] == ["50 % above 2.5"]
    worst, median = below.lines[:2]
    assert worst.get_xdata().tolist() == [0, 2]  # frame 1 holds no environments
    assert worst.get_ydata().tolist() == [0.0, 8.0]
    assert median.get_ydata().tolist() == [-0.5, 3.0]
    assert len(histogram(dH).axes) == 1
    with pytest.raises(InputError, match="there is no dH to draw"):
        histogram([np.nan])


def test_histogram_of_far_environments_keeps_the_near_ones_apart() -> None:
    (axes,) = histogram(np.r_[np.linspace(-2, 8, 50), 900.0]).axes
    assert axes.get_xscale() == "asinh"
    values = axes.patches[0].get_data().values
    assert np.sum(values > 0) > 10
    assert values.sum() == pytest.approx(100)


def test_entropies_against_the_bandwidth() -> None:
    found = information_at(X, [0.01, 0.02, 0.04])
    (axes,) = entropies({"one": found, "half": information_at(X[:20], [0.01, 0.02, 0.04])}).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 4
    assert lines[0].get_xdata().tolist() == [0.01, 0.02, 0.04]
    assert lines[0].get_ydata().tolist() == [one.entropy for one in found]
    assert lines[1].get_ydata().tolist() == [one.diversity for one in found]


def test_entropies_of_groups_are_bars_with_errors() -> None:
    samples = [sample_entropy(X, 20, 4)]
    (axes,) = entropies({"a": information_at(X, [0.015]), "b": samples}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    most, bars = axes.containers[0], axes.containers[-1]
    assert [bar.get_width() for bar in most] == [math.log(40), math.log(20)]
    assert bars[1].get_width() == samples[0].mean
    (error,) = bars.errorbar.lines[2]
    widths = [np.ptp(segment[:, 0]) / 2 for segment in error.get_segments()]
    assert widths == pytest.approx([0.0, samples[0].std])
    with pytest.raises(InputError, match="no entropies"):
        entropies({})


def test_a_learning_curve_has_every_run() -> None:
    curve = learning_curve(X, (0.25, 0.5, 1.0), 2)
    (axes,) = draw_curve(curve).axes
    dots = [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."]
    assert dots == [some.entropies.tolist() for some in curve.samples]
    mean = next(line for line in axes.lines if line.get_marker() == "o")
    assert (mean.get_xdata().tolist(), mean.get_ydata().tolist()) == ([10, 20, 40], curve.mean.tolist())


def test_the_likelihood_names_the_rules() -> None:
    choice = likelihood_bandwidth(X, np.geomspace(0.003, 0.1, 9))
    (axes,) = likelihood(choice, {"default": 0.015}).axes
    assert axes.lines[0].get_ydata().tolist() == choice.log_likelihood.tolist()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"likelihood: {choice.bandwidth:.4g}", "default: 0.015"]
