"""Labels by a real electronic-structure code: what is stored is what it printed, and a fault costs its frame only."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ase.units import Bohr, Ry
from dft import MISSING, PRESENT, espresso, log_starts, rattled

from quests_md.labelling import Queue, compute, label, make_executor

pytestmark = [
    pytest.mark.dft,
    pytest.mark.skipif(not PRESENT, reason=MISSING),
    pytest.mark.usefixtures("scratch_folders"),
]


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.db", tries=1)


@pytest.fixture
def executor():
    with make_executor("local", 1) as executor:
        yield executor


def read_printed(text):
    """Return energy (eV), forces (eV/Å) and stress (eV/Å³) as pw.x prints them: in Ry, Ry/bohr and Ry/bohr³."""
    energy = float(re.findall(r"^! +total energy += +(\S+) Ry", text, re.M)[-1]) * Ry
    forces = np.array(re.findall(r"atom +\d+ type +\d+ +force = +(\S+) +(\S+) +(\S+)", text), float)[:2] * Ry / Bohr
    rows = text.partition("total   stress")[2].splitlines()[1:4]
    pressure = np.array([row.split()[:3] for row in rows], float) * Ry / Bohr**3
    return energy, forces, -pressure.flat[[0, 4, 8, 5, 2, 1]]


def test_a_label_is_what_the_code_printed(tmp_path):
    outcome = compute(espresso(kspacing=0.6), rattled(), folder=tmp_path)
    energy, forces, stress = read_printed((tmp_path / "espresso.pwo").read_text())
    assert outcome.labels.energy == pytest.approx(energy, rel=2e-7)  # ASE reads this code with the constants of 2006
    np.testing.assert_allclose(outcome.labels.forces, forces, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(outcome.labels.stress, stress, rtol=1e-6, atol=2e-9)
    assert abs(forces).max() > 0.1
    assert outcome.record["energy"] == "free_energy"


def test_a_frame_is_calculated_once_and_the_version_asked_once(queue, executor, tmp_path):
    command, log = log_starts(tmp_path)
    for seed in range(3):
        queue.add(rattled(seed))
    assert label(queue, espresso(command), executor, workers=1).done == 3
    starts = log.read_text().splitlines()
    assert [("-in" in start) for start in starts] == [False, True, True, True]
    assert {entry.record["program_version"] for entry in queue.entries()} == {"6.7MaX"}


@pytest.mark.parametrize(
    ("electrons", "reason"),
    [
        ({"electron_maxstep": 2}, "convergence NOT achieved after 2 iterations: stopping"),
        ({"electron_maxstep": 2, "scf_must_converge": False}, "the last estimated scf accuracy, .* Ry, is above"),
    ],
)
def test_what_has_not_converged_is_no_label(electrons, reason):
    outcome = compute(espresso(electrons=electrons), rattled())
    assert (outcome.problem, outcome.labels) == ("failed", None)
    assert re.search(reason, outcome.reason)
