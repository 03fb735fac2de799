"""Labels that were made elsewhere: which frame they are of, and which are refused."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner
from oracles import EMT_PATH, copper, fill, oracle, states

from quests_md.cli import main
from quests_md.labelling import Queue, import_labels, label, make_executor


@pytest.fixture
def queue(address):
    queue = Queue(address)
    fill(queue, [0, 0, 0])
    return queue


def labelled(atoms, **changed):
    """Return a frame with labels of EMT, and other ones in their place."""
    found = atoms.copy()
    found.calc = EMT()
    results = {"energy": found.get_potential_energy(), "forces": found.get_forces(), "stress": found.get_stress()}
    found.calc = SinglePointCalculator(found, **(results | changed))
    return found


def test_labels_of_the_same_frame_are_stored(queue):
    found = import_labels(queue, [labelled(copper(1)), labelled(copper(0))], code="EMT", source="a file")
    assert (found.done, found.there, found.refused) == ([2, 1], [], [])
    assert states(queue) == ["done", "done", "waiting"]
    assert {"code": "EMT", "imported": "a file"}.items() <= queue.entry(1).record.items()
    np.testing.assert_allclose(queue.atoms(1).get_forces(), labelled(copper(0)).get_forces(), rtol=0, atol=1e-12)
    assert import_labels(queue, [labelled(copper(1))]).there == [2]


def test_a_frame_with_its_id_may_have_fewer_digits_and_other_images(queue, tmp_path):
    """It is exported, written by ASE with 8 decimals, moved by a vector of the cell, and comes back."""
    wanted = tmp_path / "wanted.extxyz"
    wanted.write_bytes(b"".join(queue.format(id, with_id=True) for id in (1, 2, 3)))
    frames = [labelled(atoms) for atoms in ase.io.read(wanted, ":")]
    assert [atoms.info["queue_id"] for atoms in frames] == [1, 2, 3]
    frames[1].positions[2] += frames[1].cell[0]
    ase.io.write(tmp_path / "labels.extxyz", frames)
    assert import_labels(queue, ase.io.read(tmp_path / "labels.extxyz", ":")).done == [1, 2, 3]
    assert states(queue) == ["done"] * 3
    assert b"queue_id" not in queue.format(1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"energy": np.nan}, "the energy is nan eV"),
        ({"forces": np.full((4, 3), 90.0)}, "the force on atom 0 is 155.9 eV/Å, above max_force = 50"),
        ({"forces": np.zeros((3, 3))}, r"forces of shape (3, 3) for 4 atoms"),
    ],
)
def test_labels_that_cannot_be_true_are_refused(queue, changed, reason):
    found = import_labels(queue, [labelled(copper(0), **changed)])
    assert (found.done, found.refused) == ([], [f"frame 0: {reason}"])
    assert (queue.entry(1).state, queue.entry(1).tries) == ("waiting", 0)


def test_a_frame_that_is_not_in_the_queue_is_refused(queue):
    unknown, other, missing, moved = (labelled(copper(seed)) for seed in (7, 7, 0, 0))
    other.info["queue_id"], missing.info["queue_id"], moved.info["queue_id"] = 1, 99, 1
    moved.positions[1, 0] += 0.01
    found = import_labels(queue, [unknown, other, missing, moved])
    assert found.done == []
    assert "frame 0: it has no queue_id, and no frame of" in found.refused[0]
    assert "frame 1: it is not frame 1 of" in found.refused[1]
    assert "frame 2: queue_id = 99: " in found.refused[2]
    assert found.refused[3].endswith("atom 1 is 0.0100 Å away")
    assert states(queue) == ["waiting"] * 3


def test_a_failed_frame_takes_labels_and_one_that_is_calculated_does_not(queue):
    Queue.fail(queue, queue.claim("somebody"), "failed: not converged")
    claim = queue.claim("somebody else")
    assert claim.id == 1
    assert import_labels(queue, [labelled(copper(0)), labelled(copper(1))]).there == [1]
    assert states(queue) == ["running", "done", "waiting"]


def test_labels_of_both_kinds_fit_into_one_queue(queue):
    import_labels(queue, [labelled(copper(0))])
    with make_executor("local", 1) as executor:
        assert label(queue, oracle(EMT_PATH), executor, workers=1).done == 2


def test_labels_go_out_and_come_back_by_the_command_line(tmp_path):
    queue, runner, files = Queue(tmp_path / "queue.db"), CliRunner(), tmp_path / "wanted.xyz"
    fill(queue, [0, 0])
    arguments = ["queue", "export", queue.name, "-o", str(files), "--state", "waiting", "--with-id"]
    assert runner.invoke(main, arguments).exit_code == 0
    frames = [labelled(atoms) for atoms in ase.io.read(files, ":")]
    frames[1].calc.results["energy"] = np.inf
    ase.io.write(tmp_path / "labels.extxyz", frames)
    done = runner.invoke(main, ["queue", "import", queue.name, str(tmp_path / "labels.extxyz"), "--code", "EMT"])
    assert (done.exit_code, done.stdout) == (1, f"{queue.name}: 1 frames got labels, 0 had some, 1 refused\n")
    assert f"{tmp_path / 'labels.extxyz'}: frame 1: the energy is inf eV" in done.stderr
    assert states(queue) == ["done", "waiting"]
