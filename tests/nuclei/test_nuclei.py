"""Nuclei: linked environments in any cell, their series, and the fit of classical nucleation theory."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import naive
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from quests_md import Frame
from quests_md.errors import FrameError, InputError, NucleationError
from quests_md.nuclei import SPHERE, NucleiSeries, linked_mean, nucleation, nuclei, threshold_between
from quests_md.nuclei._fit import estimate_correlation_time, maximise

ASKED: dict[str, Any] = {"temperature": 700.0, "density": 0.08}
DRIVING, GAMMA = 0.06, 180.0  # eV, mJ/m²


def frame_of(seed: int, n: int, edge: float, pbc: Any, skew: float = 0.6) -> Frame:
    rng = np.random.default_rng(seed)
    cell = edge * (np.eye(3) + skew * rng.uniform(-1, 1, (3, 3)) * (1 - np.eye(3)))
    # Also outside the cell: hosts do not wrap.
    return Frame(rng.uniform(-0.7, 1.7, (n, 3)) @ cell, np.full(n, 29), cell, pbc)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 14),
    edge=st.floats(1.5, 12.0),
    link=st.floats(0.4, 5.0),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_nuclei_are_those_of_a_search_through_all_images(
    seed: int, n: int, edge: float, link: float, pbc: tuple[bool, bool, bool]
) -> None:
    frame = frame_of(seed, n, edge, pbc)
    rng = np.random.default_rng(seed + 1)
    inside = rng.random(n) < 0.7
    found = nuclei(frame, inside, link)
    numbers, sizes = naive.nuclei(frame.positions, frame.cell, pbc, inside, link)
    assert found.numbers.tolist() == numbers.tolist()
    assert found.sizes.tolist() == sizes
    values = rng.normal(size=n)
    means = naive.linked_mean(frame.positions, frame.cell, pbc, values, link)
    assert linked_mean(frame, values, link) == pytest.approx(means, abs=1e-12)
    # The same atoms, turned, moved, and in another order: the same nuclei.
    turn, order = Rotation.random(random_state=seed).as_matrix(), rng.permutation(n)
    moved = Frame((frame.positions @ turn + [3.0, -8.0, 1.0])[order], frame.numbers, frame.cell @ turn, pbc)
    again = nuclei(moved, inside[order], link)
    assert again.sizes.tolist() == sizes
    together = numbers[order][:, None] == numbers[order]
    assert np.array_equal(together, again.numbers[:, None] == again.numbers)


def test_nuclei_of_a_crystal_are_known() -> None:
    atoms = bulk("Cu", cubic=True) * (6, 6, 6)
    x = atoms.positions
    inside = (np.abs(x[:, 0] - 6.0) < 2.0) | (np.abs(x[:, 0] - 18.0) < 0.5)
    found = nuclei(Frame.from_atoms(atoms), inside, 3.0)
    assert found.sizes.tolist() == [144, 72]  # two layers and one, of 72 atoms each
    assert set(found.numbers[np.abs(x[:, 0] - 18.0) < 0.5]) == {2}
    assert nuclei(Frame.from_atoms(atoms), np.ones(len(atoms), bool), 3.0).largest == len(atoms)
    assert nuclei(Frame.from_atoms(atoms), np.ones(len(atoms), bool), 2.0).sizes.tolist() == [1] * len(atoms)
    none = nuclei(Frame.from_atoms(atoms), np.zeros(len(atoms), bool), 3.0)
    assert (none.largest, none.sizes.tolist(), none.numbers.any()) == (0, [], False)


def test_what_is_no_environment_is_in_no_nucleus() -> None:
    frame = Frame(np.arange(12.0).reshape(4, 3) / 4.0, np.array([29, 0, 29, 29]), np.eye(3) * 20, True)
    frame.watched[3] = False
    assert nuclei(frame, np.array([True, True]), 3.0).numbers.tolist() == [1, 1]
    assert nuclei(frame, np.array([True, True]), 2.0).numbers.tolist() == [1, 2]  # the wall links nothing


def test_frames_and_arguments_that_cannot_be_used() -> None:
    frame, yes = frame_of(1, 3, 5.0, True), np.ones(3, bool)
    with pytest.raises(FrameError, match="ghosts"):
        nuclei(Frame(frame.positions, frame.numbers, frame.cell, True, n_local=3), yes, 3.0)
    with pytest.raises(FrameError, match="not finite"):
        nuclei(replace(frame, n_local=None, positions=frame.positions * np.nan), yes, 3.0)
    with pytest.raises(FrameError, match="singular"):
        nuclei(replace(frame, n_local=None, cell=np.ones((3, 3))), yes, 3.0)
    for inside in (yes[:2], np.array([0.1, 0.2, 0.3])):
        with pytest.raises(InputError, match="one truth value for each of the 3 environments"):
            nuclei(frame, inside, 3.0)
    for link in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="positive length"):
            nuclei(frame, yes, link)
    with pytest.raises(InputError, match=r"dH has shape \(2,\), but the frame has 3 environments"):
        linked_mean(frame, [1.0, 2.0], 3.0)
    with pytest.raises(InputError, match="after 5 comes 5"):
        series_of([[1], [2]], steps=[5, 5])


def series_of(sizes: list[Any], steps: Any = None) -> NucleiSeries:
    n = len(sizes)
    steps = np.arange(n) * 100 if steps is None else np.array(steps)
    return NucleiSeries(steps, steps * 0.001, np.full(n, 4000), tuple(np.array(s, dtype=np.int64) for s in sizes))


def test_a_series_tells_sizes_against_time() -> None:
    frames = [Frame(np.arange(9.0).reshape(3, 3) ** 2, np.full(3, 29), step=10 * t) for t in range(3)]
    series = NucleiSeries.of((frame, nuclei(frame, np.arange(3) <= t, 6.0)) for t, frame in enumerate(frames))
    assert series.steps.tolist() == [0, 10, 20]
    assert (series.largest.tolist(), series.n_nuclei.tolist()) == ([1, 1, 1], [1, 2, 3])
    window = series_of([[3, 1], [1, 1], [7], []]).window(100, 250)
    assert (window.largest.tolist(), window.n_inside.tolist()) == ([1, 7], [2, 7])
    sizes, number = window.distribution()
    assert (sizes.tolist(), number.tolist()) == ([1, 7], [1.0, 0.5])


def sampled(
    seed: int, n_frames: int = 300, gamma: float = GAMMA, per_frame: int = 300, repeat: int = 1
) -> NucleiSeries:
    """Return a series drawn from classical nucleation theory, up to the critical size; frames may come repeatedly."""
    kT = 8.617333262e-5 * ASKED["temperature"]
    a, b = DRIVING / kT, gamma / 16021.766 * SPHERE * ASKED["density"] ** (-2 / 3) / kT
    sizes = np.arange(1, int((2 * b / 3 / a) ** 3) + 1)
    weight = np.exp(a * sizes - b * sizes ** (2 / 3))
    rng = np.random.default_rng(seed)
    counts = rng.poisson(per_frame * weight / weight.sum(), (n_frames // repeat, len(sizes)))
    return series_of([np.repeat(sizes, row) for row in counts for _ in range(repeat)])


def test_a_known_surface_tension_is_recovered_within_its_error() -> None:
    fits = [nucleation(sampled(seed), driving_force=DRIVING, replicates=100, **ASKED) for seed in range(12)]
    deviation = np.array([(fit.gamma - GAMMA) / fit.gamma_error for fit in fits])
    assert max(fit.gamma_error for fit in fits) < 6.0
    assert abs(deviation.mean()) < 1.0  # three standard errors of the mean of 12
    assert np.abs(deviation).max() < 4.0
    assert 0.4 < deviation.std() < 2.0
    fit = fits[0]
    low, high = fit.gamma_interval
    assert low < fit.gamma < high
    # The formulas, by other numbers of the same theory.
    assert fit.critical_size == pytest.approx(32 * np.pi / 3 * (fit.gamma / 16021.766) ** 3 / 0.08**2 / DRIVING**3)
    assert fit.barrier == pytest.approx(16 * np.pi / 3 * (fit.gamma / 16021.766) ** 3 / (0.08 * DRIVING) ** 2)
    assert fit.free_energy[0] == 0.0
    assert fit.misfit < 2.5
    assert fit.describe()["free_energy_eV"][1] == pytest.approx(fit.free_energy[1] * fit.kT)
    assert set(fit.gamma_by_smallest) >= {1, 2, 3, 5}


def test_without_a_driving_force_the_degeneracy_is_told() -> None:
    fit = nucleation(sampled(2), **ASKED, smallest=2)
    given = nucleation(sampled(2), **ASKED, smallest=2, driving_force=DRIVING)
    assert fit.gamma_error > 4 * given.gamma_error
    assert fit.correlation_of_gamma > 0.95
    assert abs(fit.gamma - GAMMA) < 3.5 * fit.gamma_error
    assert abs(fit.driving_force - DRIVING) < 3.5 * fit.driving_force_error
    # Along the ridge one comes from the one fit to the other.
    along = fit.gamma + fit.gamma_slope * (DRIVING - fit.driving_force)
    assert along == pytest.approx(given.gamma, abs=1.0)
    assert np.isnan(given.gamma_slope)
    assert given.driving_force_error == 0.0


def test_frames_that_repeat_add_nothing_to_what_is_known() -> None:
    once, often = sampled(3, 200), sampled(3, 1000, repeat=5)
    errors = [nucleation(s, driving_force=DRIVING, **ASKED, smallest=3).gamma_error for s in (once, often)]
    assert errors[1] == pytest.approx(errors[0], rel=0.3)
    assert nucleation(often, driving_force=DRIVING, **ASKED, smallest=3).correlation == pytest.approx(5.0, rel=0.3)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20_000)
    values = np.zeros(20_000)
    for t in range(1, len(values)):
        values[t] = 0.8 * values[t - 1] + noise[t]
    assert estimate_correlation_time(values) == pytest.approx(1.8 / 0.2, rel=0.15)  # (1 + ρ)/(1 − ρ)


@pytest.mark.parametrize("slope", [None, 0.9])
def test_the_maximum_of_the_likelihood_has_the_moments_of_the_data(slope: float | None) -> None:
    counts = np.array([900, 300, 130, 51, 30, 12, 9, 3, 0, 1])
    fit = maximise(counts, 3, 40, slope)
    n = np.arange(3, 41)
    expected = np.exp(fit.log_expected(n))
    assert expected.sum() == pytest.approx(counts.sum(), rel=1e-9)
    assert expected @ n ** (2 / 3) == pytest.approx(counts @ n[: len(counts)] ** (2 / 3), rel=1e-8)
    if slope is None:
        assert expected @ n == pytest.approx(counts @ n[: len(counts)], rel=1e-8)
    else:
        assert fit.a == slope


def refused(series: NucleiSeries, **more: Any) -> str:
    with pytest.raises(NucleationError) as caught:
        nucleation(series, **{**ASKED, "driving_force": DRIVING, "smallest": 3, **more})
    return str(caught.value)


def test_what_cannot_be_fitted_is_refused_with_the_reason() -> None:
    quiet = sampled(4)
    assert "no frame has a step from 10 to 20" in refused(quiet, first=10, last=20)
    assert "15 frames are too few for 10 blocks of time: give at least 20" in refused(quiet, last=1400)
    assert "too few nuclei" in refused(quiet, smallest=12)
    assert "needs N_1" in refused(series_of([sizes[sizes > 1] for sizes in quiet.sizes]))
    rising = [np.concatenate([s] * (1 + t // 60)) for t, s in enumerate(quiet.sizes)]
    assert re.search("not stationary: the number of environments in nuclei goes from", refused(series_of(rising)))
    assert "too short" in refused(sampled(4, 1500, repeat=30), blocks=50)
    # One nucleus that grew far beyond the critical one: at once, at some step, and only for a while.
    for begin, end in ((0, 300), (200, 300), (150, 151)):
        grown = [np.append(s, 400 + t) if begin <= t < end else s for t, s in enumerate(quiet.sizes)]
        said = refused(series_of(grown))
        assert f"post-critical: at step {100 * begin} a nucleus has {400 + begin} environments" in said
        assert said.endswith(f"end the window before step {100 * begin}" if begin else "there is nothing before that")
        if begin:
            early = nucleation(series_of(grown), **ASKED, driving_force=DRIVING, smallest=3, last=100 * begin - 1)
            assert abs(early.gamma - GAMMA) < 4 * early.gamma_error
    many = [np.repeat([1, 2, 3, 4, 5, 6], [3, 3, 4, 6, 9, 14])] * 40
    assert "positive surface tension" in refused(series_of(many), driving_force=0.001)


def test_arguments_of_a_fit_are_checked() -> None:
    series = sampled(5, 40)
    for name, value in (
        ("temperature", 0.0), ("density", -1.0), ("driving_force", np.nan), ("shape_factor", 4.0),
        ("smallest", 0), ("blocks", 4), ("replicates", 10),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{name} must be"):
            nucleation(series, **{**ASKED, "driving_force": DRIVING, name: value})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 30), shift=st.floats(-1.0, 3.0))
def test_a_threshold_makes_the_fewest_mistakes(seed: int, n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    low, high = rng.normal(size=n).round(1), (shift + rng.normal(size=m)).round(1)
    found = threshold_between(low, high)
    assert found.missed == pytest.approx(np.mean(low > found.value))
    assert found.mistaken == pytest.approx(np.mean(high <= found.value))
    tried = np.concatenate([low, high, [low.min() - 1, high.max() + 1]])
    fewest = min(np.mean(low > t) + np.mean(high <= t) for t in tried)
    assert found.missed + found.mistaken == pytest.approx(fewest)


def test_a_threshold_lies_in_the_middle_of_a_gap() -> None:
    found = threshold_between([0.0, 1.0], [5.0, 9.0])
    assert (found.value, found.missed, found.mistaken) == (3.0, 0.0, 0.0)
    for low in ([], [np.nan], [np.inf]):
        with pytest.raises(InputError, match="low must hold finite values"):
            threshold_between(low, [1.0])
