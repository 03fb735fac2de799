"""ABINIT and CP2K, where they are: the recipes of the manual label, and what has not converged is no label."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from dft import rattled
from oracles import oracle, silicon
from paths import DOCS

from quests_md.labelling import Oracle, compute
from quests_md.toml import tomllib

pytestmark = pytest.mark.usefixtures("scratch_folders")
abinit = pytest.mark.skipif(shutil.which("abinit") is None, reason="apt-get install abinit abinit-data")
cp2k = pytest.mark.skipif(shutil.which("cp2k_shell.psmp") is None, reason="apt-get install cp2k cp2k-data")
CP2K = {"command": "cp2k_shell.psmp", "cutoff": 2000, "xc": "PBE"}
PROFILE = {"call": "ase.calculators.abinit:AbinitProfile", "command": "abinit", "pp_paths": ["/usr/share/abinit/psp"]}
ABINIT = {
    "profile": PROFILE,
    "ecut": 220, "xc": "LDA", "pps": "fhi", "toldff": 5e-5, "chksymtnons": 0,
}  # fmt: skip


def recipe(name, **changed):
    """Return an oracle of the manual."""
    text = (DOCS / "labelling.md").read_text(encoding="utf-8")
    (found,) = [block for block in re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S) if f"{name}:" in block]
    return Oracle(**(tomllib.loads(found) | changed))


@abinit
@pytest.mark.parametrize("kspacing", [0.8, 5.0])
def test_the_recipe_for_abinit_labels(kspacing):
    outcome = compute(recipe("abinit", kspacing=kspacing), rattled())
    assert outcome.labels is not None, outcome.reason
    assert outcome.record["mesh"] == ([3, 3, 3] if kspacing == 0.8 else [1, 1, 1])
    np.testing.assert_allclose(outcome.labels.forces.sum(axis=0), 0, atol=1e-3)


@abinit
def test_abinit_that_has_not_converged_has_failed():
    outcome = compute(oracle("ase.calculators.abinit:Abinit", keywords={**ABINIT, "nstep": 3}, kspacing=1.2), silicon())
    assert (outcome.problem, outcome.labels) == ("failed", None)
    assert "ABINIT says in abinit.abo: nstep= 3 was not enough SCF cycles to converge" in outcome.reason


@cp2k
def test_the_recipe_for_cp2k_labels_frame_after_frame():
    given = recipe("cp2k", kspacing=5.0)
    for seed in range(2):
        outcome = compute(given, silicon(seed))
        assert outcome.labels is not None, outcome.reason
        assert outcome.record["scf_steps"] > 3


@cp2k
def test_cp2k_takes_a_mesh():
    outcome = compute(recipe("cp2k", kspacing=1.2), rattled())
    assert outcome.labels is not None, outcome.reason
    assert outcome.record["mesh"] == [2, 2, 2]


@cp2k
def test_cp2k_that_has_not_converged_has_failed_frame_after_frame():
    given = oracle("ase.calculators.cp2k:CP2K", keywords={**CP2K, "max_scf": 2})
    for seed in range(2):
        outcome = compute(given, silicon(seed))
        assert (outcome.problem, outcome.labels) == ("failed", None)
        assert "CP2K says in cp2k.out: *** WARNING in qs_scf.F" in outcome.reason
