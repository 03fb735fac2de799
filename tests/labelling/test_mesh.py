"""Meshes of k-points: as VASP counts them, whatever the cell."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from oracles import EMT_PATH, copper, oracle

from quests_md.errors import ConfigError, OracleError
from quests_md.labelling import Oracle, compute
from quests_md.labelling._mesh import choose_mesh, find_fixed_mesh, measure_spacing, mesh_keywords
from quests_md.toml import make_settings


@pytest.mark.parametrize("frame", [bulk("Si"), bulk("Si", cubic=True), bulk("Ti") * (1, 3, 1)])
@pytest.mark.parametrize("kspacing", [0.1, 0.25, 0.6, 5.0])
def test_the_mesh_is_the_coarsest_within_the_spacing(frame, kspacing):
    lengths = 2 * np.pi * np.linalg.norm(frame.cell.reciprocal(), axis=1)
    mesh = np.array(choose_mesh(frame.cell, frame.pbc, kspacing))
    assert (lengths / mesh <= kspacing + 1e-9).all()
    assert all(n == 1 or length / (n - 1) > kspacing for n, length in zip(mesh, lengths, strict=True))


def test_the_spacing_has_two_pi():
    assert choose_mesh(np.eye(3) * 5.43, [True] * 3, 0.25) == [5, 5, 5]  # 2π / 5.43 Å = 1.157 1/Å


def test_a_spacing_that_divides_the_length_gives_no_point_more():
    for n in range(1, 20):
        assert choose_mesh(np.eye(3) * 3.61, [True] * 3, 2 * np.pi / 3.61 / n) == [n] * 3


def test_axes_that_are_not_periodic_have_one_point():
    slab = fcc111("Cu", (1, 1, 3))  # without a vector along z
    assert choose_mesh(slab.cell, slab.pbc, 0.3)[2] == 1
    assert choose_mesh(slab.cell, slab.pbc, 0.3)[0] > 1
    assert choose_mesh(molecule("H2O").cell, [False] * 3, 0.3) == [1, 1, 1]
    assert measure_spacing(molecule("H2O").cell, [False] * 3, [1, 1, 1]) is None


def test_a_fixed_mesh_is_found_among_keywords():
    assert find_fixed_mesh({"kpts": [2, 3, 4]}) == [2, 3, 4]
    assert find_fixed_mesh({"kpts": {"size": [2, 2, 2], "gamma": True}}) == [2, 2, 2]
    assert find_fixed_mesh({"k_grid": [1, 1, 1]}) == [1, 1, 1]
    assert find_fixed_mesh({"kpts": {"density": 3.0}}) is None


def test_a_function_that_makes_a_calculator_gets_the_mesh_as_kpts():
    assert mesh_keywords(lambda kpts: None, [2, 2, 2], True, {}) == {"kpts": [2, 2, 2]}
    with pytest.raises(ValueError, match="kspacing: how this calculator takes a mesh is known of Quantum ESPRESSO"):
        mesh_keywords(lambda: None, [2, 2, 2], True, {})


def test_a_calculator_without_k_points_takes_no_spacing():
    with pytest.raises(OracleError, match="EMT cannot be made: ValueError: kspacing: how this calculator"):
        compute(oracle(EMT_PATH, kspacing=0.3), copper())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kspacing": 0.3, "keywords": {"kpts": [1, 1, 1]}}, "kspacing gives the mesh of k-points: leave kpts out"),
        ({"moments": {"Iron": 2.0}}, "moments: 'Iron' is no element"),
        ({"energy": "total"}, "energy: input should be 'free' or 'extrapolated', not 'total'"),
        ({"kspacing": 0.0}, "kspacing: input should be greater than 0"),
    ],
)
def test_keys_that_contradict_are_an_error(keys, message):
    with pytest.raises(ConfigError, match=message):
        make_settings(Oracle, {"calculator": "a:b", **keys}, "oracle.toml")


def test_the_second_try_has_other_keywords():
    given = Oracle(calculator="a:b", keywords={"a": 1, "t": {"x": 1, "y": 2}}, retry={"b": 3, "t": {"x": 5}})
    assert given.keywords_of_try(again=False) == {"a": 1, "t": {"x": 1, "y": 2}}
    assert given.keywords_of_try(again=True) == {"a": 1, "b": 3, "t": {"x": 5, "y": 2}}
    assert "retry" not in given.settings
