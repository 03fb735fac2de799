"""A run as a model deviation: the columns that DP-GEN reads. tests/mlips has DP-GEN's own reader."""

from __future__ import annotations

import math

import numpy as np
import pytest
from calibrations import with_errors
from click.testing import CliRunner
from watched import CANDIDATE, COVERED, HALTING, build_index, frame_of, rows_of, session_of

from quests_md import read_run
from quests_md.cli import main
from quests_md.errors import InputError, OutputError
from quests_md.recording.model_deviation import format_model_deviation


@pytest.fixture
def folder(tmp_path):
    with session_of(build_index(), tmp_path / "uq", select=2.0, halt=1e9, every=10, implausible="continue") as session:
        for step, scale in ((0, COVERED), (10, CANDIDATE), (10, HALTING), (20, COVERED)):
            session.observe(frame_of(step, scale))
        broken = frame_of(30)
        broken.positions = np.full((32, 3), np.nan)
        session.observe(broken)
    return tmp_path / "uq"


def test_a_line_for_each_step_with_the_last_evaluation_of_it(folder):
    text = format_model_deviation(read_run(folder))
    assert text.splitlines()[0].split() == [
        "#", "step", "max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f",
    ]  # fmt: skip
    rows = rows_of(folder)
    assert [int(row["step"]) for row in rows] == [0, 10, 10, 20, 30]
    table = np.loadtxt(text.splitlines())
    np.testing.assert_array_equal(table[:, 0], [0, 10, 20, 30])
    np.testing.assert_array_equal(table[:, 1:4], 0.0)
    kept = [rows[place] for place in (0, 2, 3, 4)]
    np.testing.assert_allclose(table[:, 4], [float(row["max"]) for row in kept], rtol=1e-6)
    np.testing.assert_allclose(table[:, 6], [float(row["mean"]) for row in kept], rtol=1e-6)
    assert table[-1, 4] == math.inf
    assert np.isnan(table[:, 5]).all()


def test_only_the_last_run_counts_because_its_steps_begin_anew(tmp_path):
    with session_of(build_index(), tmp_path / "uq", every=10) as session:
        for step, scale in ((0, COVERED), (10, COVERED), (20, COVERED), (0, CANDIDATE)):
            session.observe(frame_of(step, scale))
    assert [row["run"] for row in rows_of(tmp_path / "uq")] == ["1", "1", "1", "2"]
    table = np.loadtxt(format_model_deviation(read_run(tmp_path / "uq")).splitlines(), ndmin=2)
    assert table[:, 0].tolist() == [0]
    assert table[0, 4] == pytest.approx(float(rows_of(tmp_path / "uq")[-1]["max"]), rel=1e-6)


def test_expected_errors_are_inf_beyond_the_calibration(tmp_path):
    with session_of(with_errors(build_index()), tmp_path / "uq", select=1e9, halt=1e9) as session:
        for step, scale in enumerate((COVERED, CANDIDATE, HALTING)):
            session.observe(frame_of(step, scale))
    rows = rows_of(tmp_path / "uq")
    outside = [int(row["n_outside"]) > 0 for row in rows]
    assert outside[2] > outside[0]
    expected = [math.inf if out else float(row["expected_error"]) for row, out in zip(rows, outside, strict=True)]
    table = np.loadtxt(format_model_deviation(read_run(tmp_path / "uq"), "expected_error").splitlines())
    np.testing.assert_allclose(table[:, 4], expected, rtol=1e-6)


def test_what_a_run_does_not_have_is_an_error(folder, tmp_path):
    with pytest.raises(OutputError, match=r"monitor\.csv has no expected errors: watch with an index that is"):
        format_model_deviation(read_run(folder), "expected_error")
    with pytest.raises(InputError, match="must be one of dH, expected_error, not 'x'"):
        format_model_deviation(read_run(folder), "x")
    with session_of(build_index(), tmp_path / "none"):
        pass
    with pytest.raises(OutputError, match="no evaluations"):
        format_model_deviation(read_run(tmp_path / "none"))


def test_the_verb_writes_the_file_once(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["export", "model-devi", "uq"])
    assert (done.exit_code, done.output) == (0, "model_devi.out: 4 steps\n")
    assert (tmp_path / "model_devi.out").read_text() == format_model_deviation(read_run(folder))
    again = CliRunner().invoke(main, ["export", "model-devi", "uq"])
    assert again.exit_code == 1
    assert "model_devi.out exists: choose another name, or give --overwrite" in again.output
    assert CliRunner().invoke(main, ["export", "model-devi", "uq", "--overwrite"]).exit_code == 0
