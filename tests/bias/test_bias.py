"""What a bias is: its shape, its strength, when it is off, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ase.build import bulk
from ranks import part_of, run

from quests_md import DescriptorSpec, Index
from quests_md.bias import Bias, BiasSettings
from quests_md.bias._shape import Shape
from quests_md.errors import ElementError, InputError
from quests_md.frame import Frame


def _silicon(seed=0, size=0.1):
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.rattle(size, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def index():
    return Index.build([_silicon(seed) for seed in range(8)], bandwidth=0.03)


def _frame(size=0.15, **more):
    return Frame.from_atoms(_silicon(77, size), **more)


@pytest.mark.parametrize("focus", ["all", "worst"])
def test_slopes_are_the_derivatives_of_the_energy(focus):
    shape, dH = Shape(-4.0, 10.0, focus), np.linspace(-6.0, 12.0, 61)

    def energy(values):
        return shape.finish(shape.weigh(*shape.compute(values))[0])[0]

    _, along = shape.weigh(*shape.compute(dH))
    along = along * shape.finish(shape.weigh(*shape.compute(dH))[0])[1]
    for i in range(len(dH)):
        step = np.zeros(len(dH))
        step[i] = 1e-5
        assert (energy(dH + step) - energy(dH - step)) / 2e-5 == pytest.approx(along[i], abs=1e-8)
    assert not along[(dH <= -4.0) | (dH >= 10.0)].any()
    assert np.all(along[(dH > -3.9) & (dH < 9.9)] > 0.0)


def test_the_worst_atoms_get_the_push_however_large_the_cell():
    shape = Shape(0.0, 10.0, "worst")
    for n in (10, 100_000):
        dH = np.zeros(n)
        dH[3] = 5.0
        total, along = shape.weigh(*shape.compute(dH))
        factor = shape.finish(total)[1]
        assert factor * along[3] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("focus", ["all", "worst"])
@pytest.mark.parametrize("species", [None, "neighbours"])
def test_forces_are_minus_the_derivatives_of_the_energy(index, focus, species):
    if species is not None:
        index = Index.build([_silicon(seed) for seed in range(8)], DescriptorSpec(species=species), bandwidth=0.03)
    bias = Bias(index, {"tau": 0.1, "floor": -2.0, "ceiling": 30.0, "focus": focus, "largest_force": 1e9})
    atoms = _silicon(77, 0.15)
    push = bias.push(Frame.from_atoms(atoms))
    assert push.off == ""
    assert push.largest == pytest.approx(np.linalg.norm(push.forces, axis=1).max())
    for i, c in ((0, 0), (5, 1), (20, 2)):
        energies = []
        for step in (1e-5, -1e-5):
            moved = atoms.copy()
            moved.positions[i, c] += step
            energies.append(bias.push(Frame.from_atoms(moved)).energy)
        assert (energies[1] - energies[0]) / 2e-5 == pytest.approx(push.forces[i, c], abs=1e-5 * push.largest)
    np.testing.assert_allclose(push.forces.sum(axis=0), 0.0, atol=1e-9)


def test_the_largest_force_is_a_limit_and_the_sum_stays_zero(index):
    bias = Bias(index, {"tau": 10.0, "ceiling": 30.0, "largest_force": 0.3})
    push = bias.push(_frame())
    assert push.largest == pytest.approx(0.3)
    assert np.linalg.norm(push.forces, axis=1).max() == pytest.approx(0.3)
    assert push.tau == 10.0
    np.testing.assert_allclose(push.forces.sum(axis=0), 0.0, atol=1e-12)


def test_a_strength_is_reached_and_then_fixed(index):
    settings = {"strength": 0.25, "ceiling": 30.0, "warm_up": 3, "largest_force": 1e9}
    bias, forces = Bias(index, settings), np.random.default_rng(0).normal(size=(64, 3))
    first = bias.push(_frame(forces=forces))
    of_model = np.linalg.norm(forces, axis=1).mean()
    assert np.linalg.norm(first.forces, axis=1).mean() == pytest.approx(0.25 * of_model)
    for size in (0.12, 0.18):
        bias.push(_frame(size, forces=forces))
    fixed = bias.tau
    bias.push(_frame(0.2, forces=3.0 * forces))
    assert bias.tau == fixed > 0.0
    again = Bias(index, settings)
    again.resume(fixed)
    again.push(_frame(0.2, forces=3.0 * forces))
    assert again.tau == fixed


def test_it_is_off_above_halt_near_overlaps_and_when_paused(index):
    bias = Bias(index, {"tau": 0.1, "floor": -5.0})
    above = bias.push(_frame(), halt=-4.5)
    near = _silicon(77)
    near.positions[1] = near.positions[0] + [1.3, 0.0, 0.0]
    crowded = bias.push(Frame.from_atoms(near), halt=1e6)
    paused = bias.push(_frame(), halt=1e6, paused="an event is open")
    unknown = bias.push(_frame(), halt=math.inf)
    for push, why in ((above, "above halt"), (crowded, "too near"), (paused, "event"), (unknown, "threshold")):
        assert why in push.off
        assert not push.forces.any()
        assert push.energy == push.largest == 0.0
    assert bias.push(_frame(), halt=1e6).off == ""


def test_without_a_thermostat_it_says_so(index):
    bias, rng = Bias(index, {"tau": 0.01, "ceiling": 30.0}), np.random.default_rng(0)
    for step in range(400):
        hot = 1.0 if step < 100 else 1.6
        bias.push(_frame(velocities=hot * rng.normal(size=(64, 3))))
        if step < 100:
            assert bias.warning == ""
    assert "thermostat" in bias.warning


def test_ranks_share_a_frame(index):
    atoms = _silicon(77, 0.15)
    settings = {"strength": 0.3, "ceiling": 30.0, "largest_force": 0.2}
    model = np.random.default_rng(0).normal(size=(64, 3))
    alone = Bias(index, settings).push(Frame.from_atoms(atoms, forces=model))
    owners, whole = (np.arange(len(atoms)) < 30).astype(int), Frame.from_atoms(atoms)
    parts = [part_of(atoms, whole, owners, rank) for rank in range(2)]

    def work(comm):
        frame = parts[comm.rank]
        frame.forces = model[frame.ids[: frame.n_local]]
        return Bias(index, settings, comm=comm).push(frame)

    pushes = run(2, work)
    for push, part in zip(pushes, parts, strict=True):
        np.testing.assert_allclose(push.forces, alone.forces[part.ids[: part.n_local]], atol=1e-12)
        np.testing.assert_allclose(push.virial, alone.virial, atol=1e-10)
        assert push.energy == pytest.approx(alone.energy)
        assert push.largest == pytest.approx(alone.largest)


def test_an_error_of_one_rank_is_raised_by_all(index):
    frames = [_frame(), Frame.from_atoms(bulk("Ge", cubic=True))]

    def work(comm):
        with pytest.raises(Exception, match="Ge"):
            Bias(index, {"tau": 0.1, "ceiling": 30.0}, comm=comm).push(frames[comm.rank])
        return True

    assert run(2, work) == [True, True]
    with pytest.raises(ElementError):
        Bias(index, {"tau": 0.1, "ceiling": 30.0}).push(frames[1])


def test_a_frame_without_forces_needs_tau(index):
    with pytest.raises(InputError, match="give tau"):
        Bias(index, {"strength": 0.1, "ceiling": 30.0}).push(_frame())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either strength"),
        ({"strength": 0.1, "tau": 0.1}, "either strength"),
        ({"strength": 3.0}, "tear bonds"),
        ({"strength": True}, "positive number"),
        ({"tau": -1.0}, "positive number"),
        ({"tau": math.nan}, "positive number"),
        ({"tau": 1.0, "floor": 5.0, "ceiling": 3.0}, "below ceiling"),
        ({"tau": 1.0, "focus": "best"}, "focus"),
        ({"tau": 1.0, "warm_up": 0}, "warm_up"),
        ({"tau": 1.0, "pause_in_events": 1}, "pause_in_events"),
        ({"strenght": 0.1}, "did you mean 'strength'"),
        (0.1, "must be a table"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(InputError, match=message):
        BiasSettings.make(given)


def test_own_descriptors_and_a_floor_above_the_ceiling_are_refused(index):
    own = Index.from_descriptors(np.random.default_rng(0).normal(size=(50, 4)), bandwidth=0.1)
    with pytest.raises(InputError, match="own descriptors"):
        Bias(own, {"tau": 0.1})
    with pytest.raises(InputError, match="must lie below"):
        Bias(index, {"tau": 0.1, "floor": 3.0}).push(_frame(), halt=2.0)
