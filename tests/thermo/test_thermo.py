"""Thermodynamics: entropies beside their naive twins, and systems whose answers are known."""

from __future__ import annotations

import itertools
import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from rounding import assert_promised

from quests_md import entropy
from quests_md.errors import InputError
from quests_md.thermo import (
    EV_PER_GPA,
    K_B,
    Phase,
    compare,
    coupling_entropy,
    entropy_difference,
    heat_entropy,
    phase_boundary,
    state_entropies,
    window_entropies,
)

H = 0.02
T = np.linspace(300.0, 1500.0, 9)
P = [0.0, 2.0, 5.0, 10.0]


def state(seed: int, frames: int = 12, atoms: int = 10, scale: float = 0.02, d: int = 4):
    """Return normally distributed rows and their offsets; frames differ in size by one atom."""
    sizes = atoms + np.arange(frames) % 2
    x = np.random.default_rng(seed).normal(scale=scale, size=(sizes.sum(), d))
    return x, np.cumsum([0, *sizes])


def phase(ground: float, volume: float, entropy: float, noise: int | None = None, **more) -> Phase:
    """Return a classical harmonic phase: U = U_0 + 3 k_B T, H = 3 ln(T/300 K) + a constant."""
    at, pressure = (axis.ravel() for axis in np.meshgrid(T, P))
    errors = (0.0, 0.0) if noise is None else (0.001, 0.02)
    rng = np.random.default_rng(noise)
    energy, H = rng.normal(ground + 3 * K_B * at, errors[0]), rng.normal(3 * np.log(at / 300) + entropy, errors[1])
    return Phase(at, pressure, energy, np.full(len(at), volume), H, errors[0], 0.0, errors[1], **more)


# They cross where ΔU + P ΔV = T k_B ΔS: here with ΔU = 0.08 eV, ΔV = 0.5 Å³, ΔS = 1 k_B.
CROSSING = (0.08 + 0.5 * np.array(P) * EV_PER_GPA) / K_B


def test_an_entropy_is_that_of_all_rows_and_its_error_a_jackknife() -> None:
    x, offsets = state(0)
    found = state_entropies([(x, offsets)], H, blocks=4)
    assert_promised(found.entropy, entropy(x, H))
    assert (found.size, found.runs, found.bandwidth, found.ceiling) == (len(x), 1, H, math.log(len(x)))
    without = naive.left_out_entropies(x, np.repeat(np.arange(12) // 3, np.diff(offsets)), H)
    assert_allclose(found.error, np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum()), rtol=1e-9)


def test_the_error_is_how_much_entropies_of_other_runs_differ() -> None:
    found = state_entropies([state(seed, frames=20) for seed in range(60)], H, size=100, runs=2, threads=1)
    assert found.error.mean() / found.entropy.std(ddof=1) == pytest.approx(1.0, abs=0.3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), turn=st.floats(0, 3), runs=st.integers(1, 3))
def test_only_distances_and_the_order_of_blocks_matter(seed: int, turn: float, runs: int) -> None:
    x, offsets = state(seed)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in itertools.pairwise(offsets)])
    rotation = np.eye(4)
    rotation[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    other = state_entropies([(x[order] @ rotation + 0.3, offsets)], H, threads=1)
    plain = state_entropies([(x, offsets)], H, threads=2)
    assert_allclose(other.entropy, plain.entropy, rtol=1e-9)
    assert_allclose(other.error, plain.error, rtol=1e-6)
    sampled = state_entropies([(x, offsets)], H, runs=runs, seed=seed)
    assert sampled.size == len(x) // runs
    assert sampled.entropy[0] <= sampled.ceiling


def test_states_are_compared_with_as_many_environments_of_each() -> None:
    cold, hot = state(1, frames=8), state(2, frames=20, scale=0.04)
    found = entropy_difference(cold, hot, H, threads=1)
    assert found.entropies.size == len(cold[0])
    assert found.difference == pytest.approx(found.entropies.entropy[1] - entropy(cold[0], H))
    assert found.error == pytest.approx(math.hypot(*found.entropies.error))
    assert found.difference > 5 * found.error
    assert math.isnan(entropy_difference(cold, (hot[0][:10], [0, 10]), H).error)  # one frame has no blocks


def test_windows_are_states() -> None:
    x, offsets = state(3, frames=11)
    found = window_entropies(x, offsets, 4, 3, H)
    assert found.first.tolist() == [0, 3, 6]
    assert found.last.tolist() == [3, 6, 9]
    parts = [(x[offsets[f] : offsets[f + 4]], offsets[f : f + 5] - offsets[f]) for f in (0, 3, 6)]
    assert_promised(found.entropies.entropy, state_entropies(parts, H).entropy)
    assert len(window_entropies(x, offsets, 4, bandwidth=H).first) == 2


def test_a_known_boundary_is_recovered() -> None:
    one, two = phase(-3.5, 12.0, 5.0), phase(-3.42, 12.5, 6.0)
    found = phase_boundary(one, two)
    assert_allclose(found.pressure, P)
    assert_allclose(found.temperature, CROSSING, rtol=1e-9)
    assert (found.error == 0).all()
    assert (found.stable_below == 0).all()
    assert (found.stable_above == 1).all()
    assert_allclose(found.entropy_difference, 1.0)
    assert_allclose(found.entropy_by_slope, 1.0, rtol=1e-6)
    assert_allclose(found.clapeyron, np.diff(CROSSING)[0] / 2, rtol=1e-9)
    back = phase_boundary(two, one)
    assert_allclose(back.temperature, CROSSING, rtol=1e-9)
    assert (back.stable_below == 1).all()
    rows = np.random.default_rng(0).permutation(len(one.temperature))
    mixed = Phase(
        *(np.asarray(column)[rows] for column in (one.temperature, one.pressure, one.energy, one.volume, one.entropy))
    )
    assert_allclose(phase_boundary(mixed, two).temperature, CROSSING, rtol=1e-9)


def test_a_noisy_boundary_is_recovered_within_its_error() -> None:
    off = []
    for seed in range(12):
        found = phase_boundary(phase(-3.5, 12.0, 5.0, 2 * seed), phase(-3.42, 12.5, 6.0, 2 * seed + 1), draws=60)
        assert (found.found == 1).all()
        off.append((found.temperature - CROSSING) / found.error)
    assert np.sqrt(np.mean(np.square(off))) == pytest.approx(1.0, abs=0.35)


def test_an_anchor_gives_the_offset_of_a_phase() -> None:
    one = phase(-3.5, 12.0, 5.0)
    found = phase_boundary(one, phase(-3.42, 12.5, 2.0), anchor=(CROSSING[1], 2.0))
    assert found.offset == pytest.approx(4.0)
    assert_allclose(found.temperature, CROSSING, rtol=1e-9)
    assert_allclose(phase_boundary(one, phase(-3.42, 12.5, 2.0, offset=4.0)).temperature, CROSSING, rtol=1e-9)
    with pytest.raises(InputError, match=r"the anchor, 100 K and 2 GPa, is not .* 300 to 1500 K"):
        phase_boundary(one, one, anchor=(100, 2.0))


def test_phases_that_do_not_cross_have_no_temperature() -> None:
    found = phase_boundary(phase(-3.5, 12.0, 5.0), phase(-3.0, 12.5, 6.0))
    assert np.isnan(found.temperature).all()
    assert (found.stable_above == found.stable_below).all()
    assert not found.found.any()


def test_pressures_that_are_one_to_rounding_are_one_level() -> None:
    at, pressure = np.array([300.0, 500.0, 700.0]), np.array([1 + 3e-7, 1.0, 1 + 5e-7])  # by P not the order of T
    energy = (np.zeros(3), np.full(3, 400 * K_B))  # ΔU = k_B 400 K, ΔH = 1
    one, two = (Phase(at, pressure, U, np.ones(3), np.full(3, H)) for U, H in zip(energy, (0.0, 1.0), strict=True))
    assert_allclose(phase_boundary(one, two).temperature, 400.0)


def test_a_heat_capacity_gives_its_entropy() -> None:
    constant = 3 * np.log(T / T[0])
    for degree in (None, 1, 3):
        assert_allclose(heat_entropy(T[::-1], -3 + 3 * K_B * T[::-1], degree=degree).entropy, constant, atol=1e-9)
    rising = heat_entropy(T, -3 + K_B * (3 * T + 2e-4 * T**2), 0.001, degree=2)  # C_p = 3 + 4e-4 T/K
    assert_allclose(rising.entropy, constant + 4e-4 * (T - T[0]), atol=1e-9)
    assert_allclose(rising.heat_capacity, 3 + 4e-4 * T)
    assert_allclose(rising.configurational, rising.entropy - 1.5 * np.log(T / T[0]))
    assert np.abs(rising.residual).max() < 1e-12


@pytest.mark.parametrize("degree", [None, 2])
def test_the_covariance_is_that_of_drawn_enthalpies(degree: int | None) -> None:
    sigma = np.linspace(0.001, 0.003, len(T))
    found = heat_entropy(T, 3 * K_B * T, sigma, degree=degree)
    rng = np.random.default_rng(0)
    drawn = [heat_entropy(T, rng.normal(3 * K_B * T, sigma), sigma, degree=degree).entropy for _ in range(3000)]
    assert_allclose(np.cov(np.transpose(drawn)), found.covariance, atol=0.08 * found.covariance.max())
    assert_allclose(found.error, np.sqrt(np.diag(found.covariance)))


def test_a_spring_that_stiffens_gives_its_free_energy() -> None:
    soft, stiff, at = 2.0, 6.0, np.linspace(0, 1, 13)
    slope = 0.5 * K_B * 500 * (stiff - soft) / (soft + at * (stiff - soft))
    found = coupling_entropy(500, K_B * 500, at, slope, -0.1, energy_error=0.001, slope_error=0.002)
    change = 0.5 * K_B * 500 * math.log(stiff / soft)
    assert found.free_energy == pytest.approx(-0.1 + change, abs=1e-6)
    assert found.entropy == pytest.approx((K_B * 500 - found.free_energy) / (K_B * 500))
    assert found.free_energy_error == pytest.approx(0.002 / math.sqrt(12), rel=0.05)
    assert found.error == pytest.approx(math.hypot(0.001, found.free_energy_error) / (K_B * 500))


def test_a_line_is_recovered_within_its_error() -> None:
    heat = heat_entropy(T, 3 * K_B * T, 0.002, degree=2)
    rng, off = np.random.default_rng(1), []
    for seed in range(40):
        S = rng.multivariate_normal(heat.entropy, heat.covariance)
        y = rng.normal(2 + 0.7 * heat.entropy, 0.05)
        found = compare(S, y, error=0.05, covariance=heat.covariance, draws=100, seed=seed)
        off.append((found.slope - 0.7) / found.slope_error)
        assert found.correlation == pytest.approx(np.corrcoef(S, y)[0, 1])
        assert (found.slope, found.intercept) == pytest.approx(tuple(np.polyfit(S, y, 1)))
        assert_allclose(found.residual, y - found.intercept - found.slope * S)
    assert np.sqrt(np.mean(np.square(off))) == pytest.approx(1.0, abs=0.3)
    assert math.isnan(compare(heat.entropy, heat.entropy).slope_error)


def test_the_scatter_of_a_slope_is_that_of_least_squares() -> None:
    y = [0.0, 1.2, 1.9, 3.1]
    covariance = np.polyfit(range(4), y, 1, cov=True)[1]
    assert compare(range(4), y).slope_scatter == pytest.approx(math.sqrt(covariance[0, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: state_entropies([]), "no states"),
        (lambda: state_entropies([state(0)], size=1000), "1 samples of 1000 environments: a state has 126"),
        (lambda: state_entropies([state(0)], blocks=1), "blocks must be a whole number of at least 2, not 1"),
        (lambda: state_entropies([(np.zeros((4, 2)), [0, 3])]), "state 0: frame_offsets must be .* the 4 rows"),
        (lambda: state_entropies([(np.zeros(4), [0, 4])]), r"must have shape \(n, d\)"),
        (lambda: state_entropies([(np.full((4, 2), np.nan), [0, 4])]), "not finite"),
        (lambda: window_entropies(*state(0), 20), "a window of 20 frames .* has 12"),
        (lambda: window_entropies(*state(0), 0), "width must be a whole number"),
        (lambda: heat_entropy([300, 300], [1, 2]), "each of them once"),
        (lambda: heat_entropy([300, 400], [1, np.nan]), "enthalpy must hold numbers, and row 1"),
        (lambda: heat_entropy([300, 400], [1, 2]), "degree must be from 1 to 1 for 2"),
        (lambda: heat_entropy([300, -400], [1, 2], degree=1), "temperature must hold positive numbers"),
        (lambda: heat_entropy([300, 400], [1, 2], [1, -1], degree=1), "2 standard errors"),
        (lambda: coupling_entropy(300, 0, [0, 0.5], [1, 1], 0), "from 0 to 1"),
        (lambda: compare([1], [1]), "two states"),
        (lambda: compare([1, 2], [1, 2, 3]), "of one length"),
        (lambda: compare([1, 2], [1, 3], covariance=np.eye(3)), "symmetric matrix"),
        (lambda: phase_boundary(phase(0, 1, 1), phase(0, 1, 1), degree=0), "degree must be"),
        (lambda: phase_boundary(Phase([300], [0], [0], [1], [1]), phase(0, 1, 1)), "no pressure with two temperatures"),
        (lambda: phase_boundary(Phase([300] * 2, [0] * 2, [0] * 2, [1] * 2, [1] * 2), phase(0, 1, 1)), "there twice"),
        (lambda: Phase([300], [0], [0], [0], [1]), "volume must hold positive numbers"),
        (lambda: Phase([300], [0], ["a"], [1], [1]), "energy must hold numbers"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
