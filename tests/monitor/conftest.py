"""The reference of most monitors here."""

from __future__ import annotations

import pytest
from ase.build import bulk

from quests_md import Index


@pytest.fixture(scope="module")
def index():
    frames = [bulk("Si", cubic=True) for _ in range(20)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return Index.build(frames, bandwidth=0.03)
