"""Adversarial frames: what a climb comes to, and what the verb writes."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from click.testing import CliRunner

from quests_md import Index
from quests_md.cli import main
from quests_md.errors import FrameError, InputError
from quests_md.hosts.attack import attack


def _copper(size, seed=0):
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(size, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def index():
    return Index.build([_copper(0.05, seed) for seed in range(10)], bandwidth=0.03)


def test_a_climb_gains_dH_within_its_limits(index):
    atoms = _copper(0.03, 50)
    cold, hot = (attack(atoms, EMT(), index, temperature=T, displacement=0.4, steps=25) for T in (300.0, 3000.0))
    for found in (cold, hot):
        assert found.dH.max() > found.before
        assert found.displacement <= 0.4
        np.testing.assert_allclose(found.dH, index.delta_entropy(found.atoms))
    assert hot.dH.max() > cold.dH.max()
    found = hot.atoms.copy()
    found.calc = EMT()
    assert found.get_potential_energy() == pytest.approx(hot.atoms.info["model_energy"])
    np.testing.assert_allclose(found.get_forces(), hot.atoms.arrays["model_forces"], atol=1e-10)


def test_what_it_refuses(index):
    with pytest.raises(InputError, match="temperature must be above 0"):
        attack(_copper(0.03), EMT(), index, temperature=0.0)
    near = _copper(0.0)
    near.positions[1] = near.positions[0] + [1.2, 0.0, 0.0]
    with pytest.raises(FrameError, match="too near"):
        attack(near, EMT(), index, temperature=300.0)


def test_the_verb_writes_candidates(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index.save(tmp_path / "cu.qindex")
    ase.io.write("start.xyz", [_copper(0.03, seed) for seed in (50, 51)])
    command = ["attack", "start.xyz", "--index", "cu.qindex", "--temperature", "2000", "--steps", "8", "-o", "near.xyz"]
    done = CliRunner().invoke(main, [*command, "--calculator", "ase.calculators.emt:EMT", "--repeats", "2"])
    assert done.exit_code == 0, done.output
    frames = ase.io.read("near.xyz", ":")
    assert [atoms.info["parent"] for atoms in frames] == [0, 0, 1, 1]
    for atoms in frames:
        np.testing.assert_allclose(atoms.arrays["dH"], index.delta_entropy(atoms), atol=1e-9)
        assert atoms.info["dH_max"] > atoms.info["dH_before"]
    assert "4 frames in near.xyz" in done.output
    again = CliRunner().invoke(main, [*command, "--calculator", "ase.calculators.emt:EMT"])
    assert again.exit_code == 1
    assert "near.xyz exists" in again.output
    wrong = CliRunner().invoke(main, [*command, "--overwrite", "--calculator", "ase.calculators.emt:Emt"])
    assert wrong.exit_code == 1
    assert "cannot be made" in wrong.output
