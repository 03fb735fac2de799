"""The loop, with real parts: copper, LAMMPS, POD, and EMT as its oracle."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections import Counter

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from loops import calls, config, write_frames

from quests_md import Index
from quests_md.errors import (
    CalibrationError,
    ConfigError,
    HostError,
    IndexFileError,
    LearningError,
    OracleError,
    OutputError,
    TrainingError,
)
from quests_md.files import FolderLock
from quests_md.index import Residuals
from quests_md.labelling import Labels, Queue, digest
from quests_md.learning import learn
from quests_md.learning._loop import COLUMNS
from quests_md.learning._loop_folder import Folder, State
from quests_md.learning._residual_stage import fill_residuals
from quests_md.learning._stages import Work
from quests_md.training import PodTrainer, Potential
from quests_md.training._model_forces import fingerprint_potential

pytestmark = pytest.mark.lammps


class Heard:
    """A reporter that remembers."""

    def __init__(self):
        self.stages, self.rows, self.texts = [], [], []

    def stage(self, generation, name, total):
        self.stages.append((generation, name))

    def step(self, done, text=""):
        self.texts += [text] if text else []

    def row(self, row):
        self.rows.append(row)


def record(folder, generation):
    return json.loads((folder / "out" / f"generation-{generation:03d}" / "generation.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a loop that came to its end, its result, and what was heard of it."""
    folder, heard = tmp_path_factory.mktemp("loop"), Heard()
    return folder, learn(config(folder), heard), heard


def test_it_converges(finished):
    _, result, heard = finished
    assert result.status == "converged", result.reason
    assert result.generation >= 1
    assert result.force_error < 0.06
    assert heard.rows[0]["covered_share"] < 0.98 <= heard.rows[-1]["covered_share"]
    assert heard.rows[-1]["force_rmse"] < heard.rows[0]["force_rmse"]


def test_the_stages_come_in_their_order(finished):
    _, result, heard = finished
    assert heard.stages[:2] == [(0, "check"), (0, "index")]
    one = ["train", "residuals", "explore", "select", "label", "extend"]
    for generation in range(result.generation):
        assert [name for g, name in heard.stages[2:] if g == generation and name != "confirm"] == one
    assert heard.stages[-1][1] in ("explore", "confirm")


def test_every_label_is_computed_once_and_three_frames_again(finished):
    folder, result, _ = finished
    queue = Queue(folder / "out" / "queue.db")
    done = [entry.digest for entry in queue.entries(["done"])]
    assert len(done) == result.labels > 0
    training = ase.io.read(folder / "training.xyz", ":")
    checked = [digest(training[i]) for i in (0, 4, 9)]
    assert Counter(calls(folder)) == Counter(done + checked)


def test_what_is_trained_on_and_what_the_index_knows_are_the_same_frames(finished):
    folder, result, _ = finished
    labels = 0
    for generation in range(result.generation + 1):
        index = Index.open(folder / "out" / f"index-{generation:03d}.qindex")
        assert index.generation == generation
        assert len(index.frame_offsets) - 1 == len(record(folder, generation)["training"]["frames"]) == 10 + labels
        labels += len(record(folder, generation)["labels"]["done"])
    assert labels == result.labels


def test_thresholds_and_bandwidth_are_frozen(finished):
    folder, result, _ = finished
    state = json.loads((folder / "out" / "learning.json").read_text())
    assert state["thresholds"] == {"select": {"Cu": 0.0}, "halt": {"Cu": 30.0}}
    assert state["watched"] == {"Cu": 32}
    for generation in range(result.generation + 1):
        assert Index.open(folder / "out" / f"index-{generation:03d}.qindex").bandwidth == state["bandwidth"]
        assert record(folder, generation)["thresholds"] == state["thresholds"]


def test_every_exploration_has_a_seed_of_its_own(finished):
    folder, _, _ = finished
    jobs = [json.loads(path.read_text()) for path in (folder / "out").glob("generation-*/*/*/job.json")]
    assert len({job["seed"] for job in jobs}) == len(jobs) >= 4


def test_learning_csv_has_a_row_for_each_generation(finished):
    folder, result, heard = finished
    with open(folder / "out" / "learning.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["generation"]) for row in rows] == list(range(result.generation + 1))
    for row, told in zip(rows, heard.rows, strict=True):
        for name in COLUMNS:
            assert row[name] == "" if told[name] is None else math.isclose(float(row[name]), told[name], rel_tol=1e-9)
    assert int(rows[-1]["labels"]) == result.labels


def test_each_index_has_the_residuals_of_its_potential_from_fits_without_the_frame(finished):
    folder, result, _ = finished
    for generation in range(result.generation + 1):
        index = Index.open(folder / "out" / f"index-{generation:03d}.qindex")
        residuals = index.residuals_of()
        assert residuals.describe() == record(folder, generation)["residuals"]
        assert (residuals.name, residuals.origin) == (f"generation-{generation:03d}", "cross-validated")
        potential = Potential.open(folder / "out" / f"generation-{generation:03d}" / "training")
        assert residuals.fingerprint == fingerprint_potential(potential)
        assert residuals.labelled == len(index)
        errors = record(folder, generation)["training"]["errors"]
        rmse = np.sqrt((residuals.values.astype(float) ** 2).mean() / 3)
        assert errors["training"]["force_rmse"] < rmse < 10 * errors["held_out"]["force_rmse"]
        assert not (folder / "out" / f"generation-{generation:03d}" / "fold").exists()
        assert record(folder, generation)["seconds"]["residuals"] > 0


def test_a_trainer_that_is_not_quick_has_residuals_of_its_training_data(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "out" / "index-000.qindex"
    before = Index.open(path)
    Index.with_residuals(before).save(path)
    (tmp_path / "out" / "generation-000" / "generation.json").unlink()
    monkeypatch.setattr(PodTrainer, "quick", False)
    heard = Heard()
    work = work_of(tmp_path, heard)
    fill_residuals(work, 0)
    made = Index.open(path).residuals_of()
    assert (made.origin, made.labelled, made.fingerprint) == (
        "training",
        len(before),
        before.residuals_of().fingerprint,
    )
    rmse = np.sqrt((made.values.astype(float) ** 2).mean() / 3)
    assert rmse == pytest.approx(record(folder, 0)["training"]["errors"]["training"]["force_rmse"], rel=1e-4)
    content = path.read_bytes()
    fill_residuals(work, 0)  # nothing is left to do
    assert path.read_bytes() == content
    assert heard.stages == [(0, "residuals")]


def test_a_loop_goes_on_without_residuals(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path, heard = tmp_path / "out" / "index-001.qindex", Heard()
    index = Index.open(path)
    old = Residuals("generation-000", "0" * 64, "training", index.residuals_of().values)
    index.with_residuals(old).save(path)

    def fail(*_, **__):
        raise TrainingError("no\nfit")
        yield

    monkeypatch.setattr("quests_md.learning._residual_stage.cross_validate", fail)
    monkeypatch.setattr("quests_md.learning._residual_stage.compute_forces", fail)
    fill_residuals(work_of(tmp_path, heard), 1)
    assert Index.open(path).residuals == ()  # and not those of another potential
    assert heard.texts == ["no residuals (cross-validated): no fit", "no residuals (training): no fit"]


def test_a_loop_that_selects_by_error_does_not_go_on_without_residuals(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "out" / "index-001.qindex"
    Index.with_residuals(Index.open(path)).save(path)

    def fail(*_, **__):
        raise TrainingError("no fit")
        yield

    monkeypatch.setattr("quests_md.learning._residual_stage.cross_validate", fail)
    monkeypatch.setattr("quests_md.learning._residual_stage.compute_forces", fail)
    with pytest.raises(LearningError, match=r'generation 1: select_by = "both" needs the force errors .*: no fit'):
        fill_residuals(work_of(tmp_path, Heard(), select_by="both"), 1)


def test_what_residuals_say_of_errors_is_calibrated(finished):
    folder, result, _ = finished
    index = Index.open(folder / "out" / f"index-{result.generation:03d}.qindex")
    bound = index.calibration.local_error
    assert (bound.potential, bound.errors) == (f"generation-{result.generation:03d}", "left out")
    assert 0.0 < bound.elements["Cu"].median < bound.elements["Cu"].factor


@pytest.mark.parametrize("by", ["error", "both"])
def test_a_loop_selects_by_the_error_to_be_expected(tmp_path, by):
    result = learn(config(tmp_path, select_by=by, stop={"generations": 2}))
    assert result.labels > 0
    made = json.loads((tmp_path / "out" / "generation-000" / "selected.json").read_text())
    assert (made["by"], made["measure"]) == (by, "expected error")
    assert 0 < len(made["frames"]) <= 4
    for frame in made["frames"]:
        assert (frame["error"] or 0.0) > 0.0 or frame["outside"] > 0
    ranks = [(frame["outside"], frame["error"] or 0.0) for frame in made["frames"]]
    if by == "error":
        assert ranks == sorted(ranks, reverse=True)


def work_of(folder, heard, **changes):
    made = config(folder, output=str(folder / "out"), **changes)
    where = Folder(folder / "out")
    state = State.model_validate_json((folder / "out" / "learning.json").read_text())
    state._path = folder / "out" / "learning.json"
    return Work(made, where, state, Queue(where.queue), heard, lambda: None)


def test_the_records_hash_the_files(finished):
    folder, _, _ = finished
    files = record(folder, 0)["files"] | record(folder, 1)["files"]
    assert {"index-000.qindex", "index-001.qindex", "generation-000/training/training.json"} <= set(files)
    for name, sha256 in files.items():
        assert hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() == sha256


def test_the_potential_is_of_use(finished):
    folder, result, _ = finished
    atoms = ase.io.read(folder / "held_out.xyz@0")
    stored = atoms.get_forces()
    calculator = Potential.open(result.potential).ase_calculator()
    atoms.calc = calculator
    assert np.sqrt(np.mean((atoms.get_forces() - stored) ** 2)) < 0.06
    calculator.clean()


def test_a_loop_that_has_ended_does_nothing_when_it_is_started_again(finished):
    folder, result, _ = finished
    before = len(calls(folder))
    assert learn(config(folder)) == result
    assert len(calls(folder)) == before


def test_a_folder_is_for_one_loop(finished):
    folder, _, _ = finished
    lock = FolderLock(folder / "out")
    with pytest.raises(OutputError, match="is the output of another run"):
        learn(config(folder))
    lock.release()


# -- other ends --------------------------------------------------------------------------------------------------------


def test_limits_end_it_and_may_be_raised(tmp_path):
    result = learn(config(tmp_path, explore={"time": 0.1}, stop={"generations": 1}))
    assert (result.status, result.generation, result.labels) == ("generations", 0, 0)
    result = learn(config(tmp_path, explore={"time": 0.1}, stop={"labels": 3, "force_error": 1e-4}))
    assert (result.status, result.generation, result.labels) == ("labels", 1, 3)
    assert record(tmp_path, 0)["ended"] is None
    assert record(tmp_path, 1)["ended"] == "labels"


def test_covered_above_the_limit_of_the_error_is_an_end_of_its_own(tmp_path):
    calm = {"temperature": [10.0]}
    result = learn(config(tmp_path, explore=calm, monitor={"select": 40.0, "halt": 60.0}, stop={"force_error": 1e-9}))
    assert result.status == "covered"
    assert "propose nothing, but" in result.reason


def test_a_frame_whose_labelling_fails_costs_that_frame(tmp_path):
    given = {"oracle": {"keywords": {"log": str(tmp_path / "calls"), "refused": [4]}}, "explore": {"time": 0.1}}
    heard = Heard()
    learn(config(tmp_path, **given, stop={"generations": 2}), heard)
    assert (heard.rows[0]["failed"], heard.rows[0]["labels"]) == (1, 3)
    assert any("did not converge" in text for text in heard.texts)
    (lost,) = record(tmp_path, 0)["labels"]["failed"]
    queue = Queue(tmp_path / "out" / "queue.db")
    assert queue.entry(lost).state == "failed"
    assert heard.rows[1]["training_frames"] == 13
    # Tried again by hand, it is trained on with the next generation.
    assert queue.retry([lost]) == 1
    # Somebody labels it elsewhere, with the same oracle, which converges by now.
    claim = queue.claim("somebody")
    atoms = claim.atoms.copy()
    atoms.calc = EMT()
    queue.done(claim, Labels(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()), {})
    heard = Heard()
    learn(config(tmp_path, **given, stop={"generations": 3}), heard)
    assert lost in record(tmp_path, 1)["labels"]["done"]
    assert heard.rows[-1]["training_frames"] == 10 + heard.rows[-1]["labels"]
    known = [frame["digest"] for frame in record(tmp_path, 2)["training"]["frames"]]
    assert len(set(known)) == len(known)
    # And a label that is gone is told of, and not left out in silence.
    queue.quarantine(taken(queue, lost), "by hand")
    shutil.rmtree(tmp_path / "out" / "generation-002")
    with pytest.raises(LearningError, match=f"frames {lost} had labels, and have none now"):
        learn(config(tmp_path, **given, stop={"generations": 3}))


def test_a_loop_labels_by_dask_and_asks_no_more_than_it_is_told(tmp_path):
    pytest.importorskip("distributed")
    keywords = {"log": str(tmp_path / "calls"), "refused": [4]}
    oracle = {"keywords": keywords, "executor": "dask", "workers": 2, "tries": 1}
    learn(config(tmp_path, oracle=oracle, stop={"generations": 2}))
    queue = Queue(tmp_path / "out" / "queue.db")
    (lost,) = queue.entries(["failed"])
    assert (lost.tries, queue.counts()["done"]) == (1, 3)
    assert Counter(calls(tmp_path))[lost.digest] == 1


def test_too_many_failures_stop_it_and_it_goes_on_when_the_oracle_is_right(tmp_path):
    log = {"log": str(tmp_path / "calls")}
    broken = {"keywords": {**log, "refused": list(range(3, 20))}}
    with pytest.raises(
        OracleError, match=r"4 of 4 frames of generation 0 have no labels.*did not converge.*queue retry"
    ):
        learn(config(tmp_path, oracle=broken, stop={"generations": 2}))
    with pytest.raises(ConfigError, match=r"oracle.keywords.refused was \[3"):
        learn(config(tmp_path, stop={"generations": 2}))


def test_training_frames_of_another_oracle_are_found_before_anything_is_spent(tmp_path):
    write_frames(tmp_path)
    frames = ase.io.read(tmp_path / "training.xyz", ":")
    frames[4].calc.results["energy"] += 1.0
    ase.io.write(tmp_path / "training.xyz", frames)
    with pytest.raises(OracleError, match=r"no longer gives the labels that it gave: frame 4, energy per atom"):
        learn(config(tmp_path))
    assert not list((tmp_path / "out").glob("generation-*"))


def taken(queue, number):
    """Return a claim of a frame that is done, as if somebody had changed its row."""
    with ase.db.connect(queue.name) as rows:
        rows.update(number, state="waiting")
    return queue.claim("somebody")


def test_a_damaged_index_is_found_and_one_that_was_removed_is_made_again(finished):
    folder, result, _ = finished
    path = folder / "out" / f"index-{result.generation:03d}.qindex"
    whole = path.read_bytes()
    rows = Index.open(path).rows.copy()
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(IndexFileError, match="Remove it, and start the loop again"):
        learn(config(folder))
    path.unlink()
    assert learn(config(folder)) == result
    assert (Index.open(path).rows == rows).all()
    path.write_bytes(whole)


def test_a_setting_that_was_refused_at_the_start_may_be_set_right(tmp_path):
    with pytest.raises(ConfigError, match="select = 40 lies above halt = 30"):
        learn(config(tmp_path, monitor={"select": 40.0}))
    assert learn(config(tmp_path, explore={"time": 0.1}, stop={"generations": 1})).status == "generations"


def test_one_atom_can_be_explored_from(tmp_path):
    write_frames(tmp_path)
    ase.io.write(tmp_path / "start.xyz", bulk("Cu"))
    learn(config(tmp_path, explore={"time": 0.02}, stop={"generations": 1}))
    (one, _) = record(tmp_path, 0)["explorations"]
    assert one["status"] == "finished"


def test_explorations_that_cannot_begin_are_told_of(tmp_path):
    write_frames(tmp_path)
    (tmp_path / "setup.lammps").write_text("this is no command\n")
    with pytest.raises(HostError, match=r"exploration [39]00K cannot be run: .*this is no command"):
        learn(config(tmp_path, explore={"setup": str(tmp_path / "setup.lammps")}))


def test_explorations_that_crash_at_once_are_told_of(tmp_path):
    write_frames(tmp_path)
    (tmp_path / "setup.lammps").write_text("fix lost all print 5 x\nfix gone all deform 1 x scale 0.01\n")
    with pytest.raises(LearningError, match=r"propose nothing .*00K: "):
        learn(config(tmp_path, explore={"setup": str(tmp_path / "setup.lammps")}, monitor={"every": 50}))


def test_a_rate_that_the_training_frames_cannot_resolve_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"a false-alarm rate of 0\.001 .* is not resolved"):
        learn(config(tmp_path, monitor={"select": {"false_alarm": 0.001}}))


def test_rates_become_numbers(tmp_path):
    learn(config(tmp_path, monitor={"select": {"false_alarm": 0.3}}, explore={"time": 0.1}, stop={"generations": 1}))
    index = Index.open(tmp_path / "out" / "index-000.qindex")
    state = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert state["thresholds"]["select"] == index.calibration.false_alarm(0.3, {"Cu": 32})
    (job,) = (tmp_path / "out").glob("generation-000/explore/300K/job.json")
    assert json.loads(job.read_text())["monitor"]["select"] == state["thresholds"]["select"]["Cu"]


def test_a_loop_of_ase_and_cutouts_needs_a_trainer_that_masks(tmp_path):
    cutout = {"radius": 2.0, "shape": "cluster", "most": 3}
    with pytest.raises(TrainingError, match="are cut-outs"):
        learn(config(tmp_path, monitor={"cutout": cutout}, explore={"host": "ase", "time": 0.1}, budget=2))
    assert len(Queue(tmp_path / "out" / "queue.db").entries()) == 2
    atoms = Queue(tmp_path / "out" / "queue.db").atoms(1)
    assert atoms.arrays["core"].any()
    assert not atoms.arrays["core"].all()
