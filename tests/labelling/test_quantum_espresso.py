"""Labels by a real electronic-structure code: what is stored is what it printed, and a fault costs its frame only."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from ase.units import Bohr, Ry
from dft import MISSING, PRESENT, PSEUDO, espresso, log_starts, rattled
from limits import FOREVER, LIMIT
from oracles import oracle, states, wait_for, wait_for_end
from paths import DOCS

from quests_md.errors import OracleError
from quests_md.labelling import Oracle, Queue, _compute, compute, label, make_executor
from quests_md.toml import tomllib

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


ORACLE = """
calculator = "ase.calculators.espresso:Espresso"
scratch = "{scratch}"
[keywords]
profile = {profile}
pseudopotentials = {{ Si = "Si.pbe-rrkj.UPF" }}
input_data = {{ system = {{ ecutwfc = 20, occupations = "smearing", smearing = "mv", degauss = 0.01 }} }}
"""


def label_command(queue, toml):
    return [sys.executable, "-m", "quests_md.cli", "label", queue.name, "--calculator", str(toml)]


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


# -- faults --------------------------------------------------------------------------------------------------

SLOW = {"keywords": {"kpts": [4, 4, 4]}, "electrons": {"conv_thr": 1e-14, "electron_maxstep": 500}}


def test_a_version_that_does_not_come_costs_no_label(queue, executor, tmp_path, monkeypatch):
    monkeypatch.setattr(_compute, "_VERSION", 1.0)
    script = tmp_path / "pw"
    script.write_text(f'#!/bin/sh\n[ "$1" = -in ] || exec sleep {FOREVER}\nexec pw.x "$@"\n')
    script.chmod(0o755)
    queue.add(rattled())
    assert label(queue, espresso(str(script)), executor, workers=1).done == 1
    assert queue.entry(1).record["program_version"] == "unknown"


def test_the_recipe_of_the_manual_labels():
    text = (DOCS / "labelling.md").read_text(encoding="utf-8")
    (found,) = [block for block in re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S) if "espresso:" in block]
    outcome = compute(Oracle(**(tomllib.loads(found) | {"kspacing": 0.8})), rattled())
    assert outcome.labels is not None, outcome.reason
    assert outcome.labels.stress is not None
    assert outcome.record["mesh"] == [3, 3, 3]


def test_spin_is_polarised_where_moments_are_given(tmp_path):
    outcome = compute(espresso(kspacing=1.2, moments={"Si": 0.5}), rattled(), folder=tmp_path)
    assert outcome.labels is not None, outcome.reason
    assert "nspin            = 2" in (tmp_path / "espresso.pwi").read_text()


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


def test_the_parts_of_a_sum_must_converge_too(tmp_path):
    command, log = log_starts(tmp_path)
    for electrons, problem in (({"electron_maxstep": 2, "scf_must_converge": False}, "failed"), ({}, "")):
        given = espresso(command, electrons=electrons, keywords={"kpts": [2, 2, 2]}).keywords
        pair = {"call": "ase.calculators.lj:LennardJones", "epsilon": 0.01, "sigma": 2.0}
        parts = [{"call": "ase.calculators.espresso:Espresso", **given}, pair]
        summed = oracle("ase.calculators.mixing:SumCalculator", keywords={"calcs": parts})
        outcome = compute(summed, rattled())
        assert outcome.problem == problem, outcome.reason
        assert ("is above the threshold" in outcome.reason) == bool(problem)
    assert log.read_text().count("-in") == 2


def test_an_element_without_a_pseudopotential_costs_its_frame_and_no_start(queue, executor, tmp_path):
    command, log = log_starts(tmp_path)
    queue.add(rattled(0, "Ge"))
    queue.add(rattled(1))
    assert label(queue, espresso(command), executor, workers=1).done == 1
    assert states(queue) == ["failed", "done"]
    assert "no pseudopotential for Ge: pseudopotentials names Si" in queue.entry(1).reason
    assert log.read_text().count("-in") == 1


def test_a_pseudopotential_that_is_not_there_is_named():
    outcome = compute(espresso(pseudopotentials={"Si": "nothing.UPF"}), rattled())
    assert outcome.reason.startswith(f"no pseudopotential for Si: there is no nothing.UPF in {PSEUDO}")


def test_a_calculation_that_moves_atoms_is_refused():
    with pytest.raises(OracleError, match="calculation = 'vc-relax': labels are those of the frame as it is"):
        compute(espresso(keywords={"input_data": {"control": {"calculation": "vc-relax"}}}), rattled())


def test_keywords_may_be_flat():
    flat = {"input_data": {"ecutwfc": 20, "conv_thr": 1e-8, "TPRNFOR": True}, "kpts": [2, 2, 2]}
    outcome = compute(espresso(keywords=flat), rattled())
    assert outcome.labels is not None, outcome.reason
    assert outcome.labels.stress is not None


def test_an_error_of_the_program_is_told_in_its_words():
    outcome = compute(espresso(keywords={"input_dft": "nonsense"}), rattled())
    assert (outcome.problem, outcome.labels) == ("failed", None)
    assert "Error in routine" in outcome.reason


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"command": "/nowhere/pw.x"}, "No such file or directory: '/nowhere/pw.x'"),
        (
            {"electrons": {"electron_maxstep": 1}},
            "Quantum ESPRESSO says in espresso.pwo: convergence NOT achieved",
        ),
    ],
)
def test_what_fails_for_all_frames_ends_the_labelling_before_the_queue_is_spent(tmp_path, executor, given, reason):
    queue = Queue(tmp_path / "queue.db")
    for seed in range(5):
        queue.add(rattled(seed))
    with pytest.raises(OracleError, match=f"frames 1, 2, 3, the first ones, have failed in the same way.*{reason}"):
        label(queue, espresso(**given), executor, workers=1, give_up=3)
    assert [(entry.state, entry.tries) for entry in queue.entries()] == [("waiting", 1)] * 3 + [("waiting", 0)] * 2


def test_the_second_try_has_its_own_keywords(tmp_path, executor):
    queue = Queue(tmp_path / "queue.db", tries=2)
    queue.add(rattled())
    given = espresso(electrons={"electron_maxstep": 2}, retry={"electron_maxstep": 100})
    assert label(queue, given, executor, workers=1).done == 1
    entry = queue.entry(1)
    assert (entry.tries, entry.record["retry"]) == (2, {"electron_maxstep": 100})


def test_a_program_that_is_killed_costs_its_frame(queue, executor, tmp_path):
    script, told = tmp_path / "pw", tmp_path / "told"
    script.write_text(f'#!/bin/sh\nif [ -e "{told}" ]; then exec pw.x "$@"; fi\n[ "$1" = -in ] && touch "{told}"\n'
                      'pw.x "$@" & sleep 0.2; kill -9 $!; wait $!\n')  # fmt: skip
    script.chmod(0o755)
    for seed in range(2):
        queue.add(rattled(seed))
    assert label(queue, espresso(str(script), **SLOW), executor, workers=1).done == 1
    assert states(queue) == ["failed", "done"]
    assert "exit status 137" in queue.entry(1).reason


def test_the_wall_time_ends_the_program(queue, executor, tmp_path):
    script = tmp_path / "pw"
    script.write_text(f'#!/bin/sh\npw.x "$@"\n[ "$1" != -in ] || exec sleep {FOREVER}\n')
    script.chmod(0o755)
    queue.add(rattled())
    label(queue, espresso(str(script), wall_time=15.0), executor, workers=1)
    assert re.match(r"timeout: killed after 15 s, its wall_time; the end of espresso\.pwo: ", queue.entry(1).reason)


def test_folders_of_failures_hold_no_wavefunctions_unless_asked(tmp_path):
    for keep in (False, True):
        scratch = tmp_path / f"scratch{keep}"
        scratch.mkdir()
        compute(espresso(electrons={"electron_maxstep": 2}, scratch=str(scratch), keep=keep), rattled())
        (kept,) = scratch.iterdir()
        names = {path.name for path in kept.iterdir()}
        assert {"espresso.pwi", "espresso.pwo", "output.txt"} <= names
        assert ({"pwscf.save", "pwscf.wfc1"} <= names) == keep
        assert keep or names <= {"espresso.pwi", "espresso.pwo", "espresso.err", "output.txt", "CRASH"}


def test_two_labellers_calculate_each_frame_once(queue, tmp_path):
    command, log = log_starts(tmp_path)
    for seed in range(4):
        queue.add(rattled(seed))
    toml = tmp_path / "oracle.toml"
    profile = f'{{ call = "ase.calculators.espresso:EspressoProfile", command = "{command}", pseudo_dir = "{PSEUDO}" }}'
    toml.write_text(ORACLE.format(profile=profile, scratch=tmp_path))
    started = [subprocess.Popen(label_command(queue, toml), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [program.communicate(timeout=LIMIT)[0] for program in started]
    assert sum(int(text.partition(" frames labelled")[0]) for text in said) == 4
    assert states(queue) == ["done"] * 4
    assert log.read_text().count("-in") == 4


def test_a_labeller_that_is_killed_leaves_no_program_and_no_folder(queue, tmp_path):
    for seed in range(2):
        queue.add(rattled(seed))
    scratch, told = tmp_path / "scratch", tmp_path / "told"
    scratch.mkdir()
    script = tmp_path / "pw"
    script.write_text(f'#!/bin/sh\nif [ "$1" = -in ] && [ ! -e "{told}" ]; then echo $$ > "{told}.part"; '
                      f'mv "{told}.part" "{told}"; exec sleep {FOREVER}; fi\nexec pw.x "$@"\n')  # fmt: skip
    script.chmod(0o755)
    toml = tmp_path / "oracle.toml"
    profile = f'{{ call = "ase.calculators.espresso:EspressoProfile", command = "{script}", pseudo_dir = "{PSEUDO}" }}'
    toml.write_text(ORACLE.format(profile=profile, scratch=scratch))
    first = subprocess.Popen(label_command(queue, toml), stdout=subprocess.PIPE, text=True)
    program = int(wait_for(told))
    first.kill()
    first.wait()
    first.stdout.close()
    wait_for_end(program)
    assert len(list(scratch.iterdir())) == 1
    done = subprocess.run([*label_command(queue, toml), "--lease", "0.5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []
    assert {"done"} == set(states(queue)) or states(queue) == ["running", "done"]
