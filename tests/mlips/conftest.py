"""Potentials of others, made once: `scripts/test-mlips` makes an environment that has them."""

from __future__ import annotations

import os
import runpy

import numpy as np
import pytest
from paths import ROOT

from benchmarks.potentials import KINDS, is_here, make_calculator, train_potential
from quests_md import Index

# e3nn 0.4, which MACE needs, reads a file of its own in a way that PyTorch asks to allow.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def need(kind):
    if not is_here(kind):
        pytest.skip(f"no {KINDS[kind].package}: scripts/test-mlips makes an environment with it")


@pytest.fixture(scope="session")
def frames():
    """Return labelled frames of copper: those of the example, fewer."""
    make_frames = runpy.run_path(str(ROOT / "lammps_examples/deepmd_deviation/frames.py"))["make_frames"]
    return [frame for seed, t in enumerate((300, 900)) for frame in make_frames(t, 8, seed)]


@pytest.fixture(scope="session")
def trained(frames, tmp_path_factory):
    """Return a function that gives a trained potential and its record."""
    made = {}

    def give(kind):
        need(kind)
        if kind not in made:
            made[kind] = train_potential(kind, frames, tmp_path_factory.mktemp("trained") / kind, short=True)
        return made[kind]

    return give


@pytest.fixture(scope="session")
def calculator(trained):
    """Return a function that gives the calculator of a potential."""
    made = {}

    def give(kind):
        need(kind)
        if kind not in made:
            made[kind] = make_calculator(kind, trained(kind)[0] if KINDS[kind].is_trained else None)
        return made[kind]

    return give


@pytest.fixture(scope="session")
def index(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "cu.qindex"
    Index.build(frames, bandwidth=0.05, threads=1).save(path)
    return Index.open(path)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Return an empty working folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(0)  # noqa: NPY002 - what the packages draw from
